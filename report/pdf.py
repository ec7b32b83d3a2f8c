"""From an executed notebook to a PDF that holds what JupyterLab shows. Whatever a user can get wrong raises ValueError
or OSError with one line that names the cause and the cure."""

import base64
import copy
import io
import json
import re
import shutil
import subprocess
import tempfile
import unicodedata
import urllib.request
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import matplotlib
import numpy as np
import pypandoc
import typst
import yaml
from nbconvert.exporters import Exporter, TemplateExporter
from PIL import Image
from pypdf import PdfReader
from traitlets import Bool, Dict, default
from traitlets.config import Config

from lib import paths
from report import cells
from report.notebooks import line, read, sections

LAYOUT = Path(__file__).resolve().parent / "layout"
TITLE_BLOCK = ("title", "author", "id", "course", "date")
REMOVED = {
    "remove_cell_tags": {"setup", "hide", "remove-cell", "hide-cell"},
    "remove_input_tags": {"remove-input", "hide-input"},
    "remove_all_outputs_tags": {"remove-output", "hide-output"},
}
MARGIN, TEXT = 73.7, 448  # of a page, in points


class ReportExporter(TemplateExporter):
    """Notebook -> pandoc -> typst -> PDF: ``jupyter nbconvert --to report.pdf.ReportExporter``.

    What JupyterLab shows of a notebook is shown, without what its tags or nbconvert's switches take out. What cannot
    be shown is logged, with its cell and section, and marked on the page. Title, author and date: of the notebook's
    metadata, of a raw first cell, of a metadata.yml beside the notebook; the title also of its only heading of level 1.

    strict, for the report: nothing is marked, but raises ValueError; code and what it prints are shown only where
    tagged ``listing``; metadata.yml and references.bib stand beside the notebook or in the project's report/.
    """

    file_extension = ".pdf"
    output_mimetype = "application/pdf"
    export_from_notebook = "PDF via typst"
    strict = Bool(False, help="fail where the page would have a hole").tag(config=True)
    title_block = Dict(help="entries that replace those of the metadata").tag(config=True)

    @default("template_file")
    def _no_template(self):
        return ""

    @property
    def default_config(self):
        return Config(
            {"TagRemovePreprocessor": {"enabled": True, **REMOVED}, "CoalesceStreamsPreprocessor": {"enabled": False}}
        )

    def from_notebook_node(self, nb, resources=None, **kwargs):
        numbers, headings = len(nb.cells), sections(nb)
        nb = _tagged(nb)
        nb, resources = Exporter.from_notebook_node(self, nb, resources, **kwargs)
        resources["output_extension"] = self.file_extension
        front = cells.front_matter(nb)
        _excluded(nb, self)
        home = Path(resources.get("metadata", {}).get("path") or ".").resolve()
        problems = []

        def complain(message, cell=0):
            place = f"cell {cell}, section {headings[cell - 1]!r}: " if 0 < cell <= numbers else ""
            problems.append(place + message)

        places = [cell.metadata.pop("place") for cell in nb.cells]
        parts, pictures = cells.parts(nb, self.strict, lambda message, cell: complain(message, places[cell - 1]))
        for part in parts:
            part["cell"], part["section"] = places[part["cell"] - 1], headings[places[part["cell"] - 1] - 1]
        info = self._info(nb, front, home, resources)
        sources = _beside(home, "references.bib", self.strict)
        keys = re.findall(r"^\s*@\w+\s*\{\s*([^,\s]+)", sources.read_text(encoding="utf-8"), re.M) if sources else []
        job = {"parts": parts, "strict": self.strict, "title": info["title"], "keys": dict.fromkeys(keys, True)}
        with tempfile.TemporaryDirectory() as work:  # typst reads nothing outside its root
            document = json.loads(_pandoc(json.dumps(job), complain, f"--from={LAYOUT / 'notebook.lua'}", "--to=json"))
            attachments = {place: cell.get("attachments", {}) for place, cell in zip(places, nb.cells, strict=True)}
            _place_pictures(document, Path(work), home, pictures, attachments, complain)
            info["title"] = info["title"] or _text(document["meta"].get("title", "")) or _name(resources)
            if sources:
                shutil.copy(sources, Path(work, "references.bib"))
            source = _pandoc(
                json.dumps(document), complain, "--from=json", "--to=typst",
                "--columns=250", f"--template={LAYOUT / 'report.typ'}", f"--lua-filter={LAYOUT / 'crossref.lua'}",
            )  # fmt: skip
            if self.strict and problems:  # without a page to look at
                raise ValueError("report: " + "; ".join(dict.fromkeys(problems)))

            def where(sign):
                return next((part["cell"] for part in parts if sign in part["text"]), 0)

            pdf = _typst(source, Path(work), info, _counted(document, self.strict), complain, where)
        problems = list(dict.fromkeys(problems))
        if self.strict and problems:
            raise ValueError("report: " + "; ".join(problems))
        for problem in problems:
            self.log.warning("%s: %s", _name(resources), problem)
        return pdf, resources

    def _info(self, nb, front: dict, home: Path, resources: dict) -> dict[str, str]:
        info = dict.fromkeys(TITLE_BLOCK, "") | {"strict": "yes" if self.strict else ""}
        if self.strict:
            return info | title_block(_beside(home, "metadata.yml", True)) | self.title_block
        beside = _beside(home, "metadata.yml", False)
        for entries in yaml.safe_load(beside.read_text(encoding="utf-8")) if beside else {}, nb.metadata, front:
            info |= _entries(entries or {})
        return info | self.title_block


def _entries(entries: dict) -> dict[str, str]:
    """The title block of a notebook's metadata, whose authors may be a list of names or of dicts with a name."""
    found = {
        key: entries[key]
        for key in TITLE_BLOCK
        if isinstance(entries.get(key), (str, int)) or (key == "date" and entries.get(key))
    }
    authors = entries.get("authors") or entries.get("author") or []
    authors = authors if isinstance(authors, list) else [authors]
    names = [str(one.get("name", "")) if isinstance(one, dict) else str(one) for one in authors]
    found = {key: str(value).strip() for key, value in found.items()}
    if names:
        found["author"] = ", ".join(name for name in names if name)
    day = re.match(r"\d{4}-\d{2}-\d{2}", found.get("date", ""))
    return {**found, "date": day[0]} if day else {key: value for key, value in found.items() if key != "date"}


def title_block(path: Path) -> dict[str, str]:
    """The entries of a metadata file. Raises ValueError for a missing one and for a date of another form."""
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
        info = {key: str(entries[key]).strip() for key in TITLE_BLOCK}
    except (KeyError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} ({line(error)}): give each of {', '.join(TITLE_BLOCK)}") from None
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", info["date"]):
        raise ValueError(f"{path}: the date {info['date']!r} is not of the form 2026-01-31")
    return info


def _beside(home: Path, name: str, strict: bool) -> Path | None:
    folders = (home, paths.PROJECT / "report") if strict else (home,)
    path = next((folder / name for folder in folders if (folder / name).exists()), None)
    if strict and not path:
        raise ValueError(f"report/{name} is missing: restore it")
    return path


def _name(resources: dict) -> str:
    return resources.get("metadata", {}).get("name") or "Notebook"


def _tagged(nb):
    """A copy whose tags are written in one way, remove-input, and whose cells know their number."""
    nb = copy.deepcopy(nb)
    for number, cell in enumerate(nb.cells, 1):
        cell.metadata["place"] = number
        if tags := cell.metadata.get("tags"):
            cell.metadata["tags"] = list(dict.fromkeys([*tags, *(tag.lower().replace("_", "-") for tag in tags)]))
        if cell.metadata.get("hide_input"):
            cell.metadata.setdefault("jupyter", {})["source_hidden"] = True
    return nb


def _excluded(nb, exporter) -> None:
    """What nbconvert's switches take out, --no-input for one."""
    for kind, gone in (
        ("markdown", exporter.exclude_markdown),
        ("raw", exporter.exclude_raw),
        ("code", exporter.exclude_code_cell),
    ):
        if gone:
            nb.cells = [cell for cell in nb.cells if cell.cell_type != kind]
    for cell in nb.cells:
        if cell.cell_type == "code" and exporter.exclude_input:
            cell.metadata.setdefault("transient", {})["remove_source"] = True
        if cell.cell_type == "code" and exporter.exclude_output:
            cell.outputs = []


def _pandoc(text: str, complain, *options: str) -> str:
    """What pandoc makes of text; its warnings, and those of the filters as "cell<tab>message", are complained of."""
    command = [pypandoc.get_pandoc_path(), *options]
    done = subprocess.run(command, input=text.encode(), capture_output=True, env={"LC_ALL": "C.UTF-8"})
    said = done.stderr.decode(errors="replace")
    if done.returncode:
        raise ValueError(f"report: {line(said)}")
    for warning in re.split(r"^\[\w+\]", said, flags=re.M):
        if found := re.search(r"(\d+)\t(.*)", warning, re.S):
            complain(line(found[2]), int(found[1]))
    return done.stdout.decode()


# ---------------------------------------------------------------- pictures


def _walk(node, cell=0):
    """Every element of pandoc's JSON with the number of its cell."""
    if isinstance(node, list):
        for one in node:
            yield from _walk(one, cell)
    elif isinstance(node, dict):
        if node.get("t") == "Div" and "part" in node["c"][0][1]:
            cell = int(dict(node["c"][0][2])["cell"])
        if "t" in node:
            yield node, cell
        yield from _walk(list(node.values()), cell)


def _place_pictures(document: dict, work: Path, home: Path, outputs: dict, attachments: dict, complain) -> None:
    """Every picture decoded and put into work, its target its name there; one that cannot be read is named instead."""
    for number, (node, cell) in enumerate(_walk(document["blocks"])):
        if node["t"] != "Image":
            continue
        attributes, caption, (target, _) = node["c"]
        own = target in outputs
        try:
            content = outputs[target] if own else _fetched(target, home, attachments.get(cell, {}))
            content, suffix = cells.picture(content, "in the output" if own else target[:100])
            size = _width(dict(attributes[2]), content, suffix, own)
            if suffix == "pdf":
                content, suffix = _drawn(content, target, work), "png"
        except ValueError as error:
            complain(str(error), cell)
            text = _text(caption) or f"Not shown here: {error}"
            node.clear()
            node.update({"t": "Emph", "c": [{"t": "Str", "c": text}]})
            continue
        name = f"image-{number}.{suffix}"
        (work / name).write_bytes(content)
        attributes[2] = size
        node["c"] = [attributes, caption, [name, ""]]


def _fetched(target: str, home: Path, attachments: dict) -> bytes:
    """The content that a target names. Raises ValueError with the target if there is none."""
    missing = f"image {target[:100]} is missing: save it, or correct its name"
    if target.startswith("attachment:"):
        found = attachments.get(unquote(target[11:])) or attachments.get(target[11:])
        if not found:
            raise ValueError(missing)
        return base64.b64decode(next(iter(found.values())))
    try:
        if re.match(r"(https?|data):", target):
            with urllib.request.urlopen(target, timeout=10) as answer:
                return answer.read()
        name = unquote(re.sub(r"^file://", "", target))
        path = home / name
        if not path.is_file():
            path = home / re.sub(r"[?#].*$", "", name)
        return path.read_bytes()
    except OSError:
        raise ValueError(
            missing if "://" not in target else f"image {target[:100]} cannot be fetched: save it"
        ) from None
    except ValueError as error:
        raise ValueError(f"image {target[:60]} cannot be read ({line(error)}): replace it") from None


def _width(given: dict, content: bytes, suffix: str, output: bool) -> list:
    """The attributes of a picture on the page: an output as wide as on the screen, none wider than the text."""
    if output and "width" not in given and suffix not in ("svg", "pdf"):
        given["width"] = f"{Image.open(io.BytesIO(content)).width}px"
    pixels = re.fullmatch(r"(\d+(?:\.\d+)?)(?:px)?", given.get("width", ""))
    if pixels:
        points = float(pixels[1]) * 0.75
        given["width"] = "100%" if points > TEXT else f"{points:.0f}pt"
    return [[key, value] for key, value in given.items() if key == "width"]


def _drawn(content: bytes, name: str, work: Path) -> bytes:
    """The first page of a PDF as PNG."""
    (work / "drawn.pdf").write_bytes(content)
    (work / "drawn.typ").write_text('#set page(width: auto, height: auto, margin: 0pt)\n#image("drawn.pdf")')
    try:
        return typst.Compiler(f"{work}/drawn.typ", root=str(work), ignore_system_fonts=True).compile(
            format="png", ppi=220
        )
    except typst.TypstError as error:
        raise ValueError(f"image {name} cannot be read ({line(error.message)}): replace it") from None


# ---------------------------------------------------------------- the page, and what is checked on it


def _typst(source: str, work: Path, info: dict[str, str], counted: Counter, complain, where) -> bytes:
    """The PDF, the same bytes for the same inputs. Raises ValueError where typst can make none."""
    fonts = work / "fonts"  # of matplotlib's, those that a figure with text as text names
    fonts.mkdir()
    for font in Path(matplotlib.get_data_path(), "fonts", "ttf").glob("DejaVuSans*.ttf"):
        shutil.copy(font, fonts)
    (work / "report.typ").write_text(source, encoding="utf-8")

    try:
        own, lacking = True, _lacking(source + "".join(info.values()), work, fonts, own=True)
        if lacking:
            own, lacking = False, _lacking(lacking, work, fonts, own=False)
        for sign in lacking:
            complain(f"no font here shows {sign!r} ({_sign(sign)}): install Noto or write it otherwise", where(sign))
        rules = "".join(f'#show "{sign}": "⟨{_sign(sign)}⟩"\n' for sign in lacking)
        (work / "report.typ").write_text(rules + source, encoding="utf-8")
        made = _compiler(work, fonts, own, info)
        pdf, warnings = made.compile_with_warnings(format="pdf")
    except typst.TypstError as error:
        raise ValueError(f"report: {line(error.message)}") from None
    for warning in warnings:
        if "is deprecated" not in warning.message:  # pandoc's older symbol names
            complain(line(warning.message))
    if sign := _unshown(made if info["date"] else _compiler(work, fonts, own, {**info, "date": "1970-01-01"})):
        complain(f"no font here shows {sign}, perhaps in a figure: install Noto or write it otherwise")
    for page in _overflowing(made):
        complain(f"page {page} holds something wider than its text: break or shorten it")
    for kind, (there, wanted) in _holes(pdf, counted).items():
        complain(f"the PDF holds {there} of {wanted} {kind}")
    return pdf


def _compiler(work: Path, fonts: Path, own: bool, info: dict[str, str], name: str = "report.typ") -> typst.Compiler:
    return typst.Compiler(
        str(work / name), root=str(work), ignore_system_fonts=own, font_paths=[str(fonts)], sys_inputs=info
    )


def _unshown(compiler: typst.Compiler) -> str:
    """The first text without a glyph, also within figures: no level of PDF/A allows one."""
    try:
        compiler.compile(format="pdf", pdf_standards="a-2b")
    except typst.TypstError as error:
        found = re.search(r'the text `?"?(.+?)"?`? could not be displayed', error.message)
        return found[1] if found else ""
    return ""


def _lacking(text: str, work: Path, fonts: Path, own: bool) -> str:
    """The signs of text for which no font has a glyph; own: of those within typst and matplotlib."""
    signs = {sign for sign in text if ord(sign) > 0x24F and unicodedata.category(sign)[0] not in "MZC"}
    signs |= {sign for sign in text if unicodedata.category(sign) == "Co"}
    lacking = ""
    while signs:
        written = json.dumps(" ".join(sorted(signs)), ensure_ascii=False)
        page = "#set document(date: datetime(year: 1970, month: 1, day: 1))\n"
        page += f'#set text(font: "New Computer Modern")\n#{written}'
        (work / "signs.typ").write_text(page, encoding="utf-8")
        sign = _unshown(_compiler(work, fonts, own, {}, "signs.typ"))
        if not sign or sign[0] not in signs:
            break
        lacking += sign[0]
        signs -= {sign[0]}
    return lacking


def _sign(sign: str) -> str:
    return unicodedata.name(sign, f"U+{ord(sign):04X}").lower()


def _overflowing(compiler: typst.Compiler) -> list[int]:
    """The pages with ink in their left or right margin."""
    pages, ppi = compiler.compile(format="png", ppi=50), 50
    edge, found = int((MARGIN - 8) * ppi / 72), []
    for number, page in enumerate(pages if isinstance(pages, list) else [pages], 1):
        dark = np.asarray(Image.open(io.BytesIO(page)).convert("L")) < 200
        if dark[:, :edge].any() or dark[:, -edge:].any():
            found.append(number)
    return found


def _text(node) -> str:
    """The words of a part of pandoc's JSON."""
    if isinstance(node, list):
        return "".join(map(_text, node))
    if not isinstance(node, dict):
        return ""
    kind = node.get("t")
    if kind == "Str" or kind == "MetaString":
        return node["c"]
    return " " if kind in ("Space", "SoftBreak", "LineBreak") else _text(node.get("c", []))


def _counted(document: dict, strict: bool) -> Counter:
    """What the PDF must hold at least: pictures, captions, headings, formulas and pieces of code of the document."""
    kinds = {
        "Image": "pictures",
        "Header": "headings",
        "Math": "formulas",
        "Code": "pieces of code",
        "CodeBlock": "pieces of code",
    }
    counted = Counter()
    for node, _ in _walk(document["blocks"]):
        kind = node["t"]
        if kind in kinds and not (strict and kind == "Header" and _text(node["c"][2]) in ("Abstract", "References")):
            counted[kinds[kind]] += 1
        if kind in ("Figure", "Table"):
            counted["captions"] += bool(_text(node["c"][1][1]))
        if kind == "CodeBlock":
            counted["captions"] += "caption" in dict(node["c"][0][2])
    return counted


def _holes(pdf: bytes, counted: Counter) -> dict[str, tuple[int, int]]:
    """Of which kinds the PDF holds less than counted: how many it holds, and how many it should."""
    kinds = {"/Figure": "pictures", "/Caption": "captions", "/Formula": "formulas", "/Code": "pieces of code"}
    root, found, stack = PdfReader(io.BytesIO(pdf)).trailer["/Root"], Counter(), []
    stack.append(root.get("/StructTreeRoot"))
    while stack:
        node = stack.pop()
        node = node.get_object() if hasattr(node, "get_object") else node
        if isinstance(node, list):
            stack += node
        elif isinstance(node, dict):
            tag = str(node.get("/S", ""))
            found[kinds.get(tag) or ("headings" if re.fullmatch(r"/H\d*", tag) else tag)] += 1
            stack.append(node.get("/K"))
    return {kind: (found[kind], wanted) for kind, wanted in counted.items() if found[kind] < wanted}


def report(**title: str) -> bytes:
    """The PDF of the executed report notebook; title replaces entries of its title block."""
    path = paths.folder("report") / "report.ipynb"
    exporter = ReportExporter(title_block=title, strict=True)
    return exporter.from_notebook_node(read(path), {"metadata": {"path": str(path.parent)}})[0]
