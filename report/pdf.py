"""From an executed notebook to a PDF that holds what JupyterLab shows. Whatever a user can get wrong raises ValueError
or OSError with one line that names the cause and the cure."""

import base64
import copy
import datetime
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
import nbformat
import numpy as np
import pikepdf
import pypandoc
import typst
import yaml
from nbconvert.exporters import Exporter, TemplateExporter
from PIL import Image
from pypdf import PdfReader
from pypdf.errors import PyPdfError
from traitlets import Bool, Dict, default
from traitlets.config import Config

from lib import paths
from report import cells, markup, styles
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

    strict, for the report: nothing is marked, but raises ValueError; every picture has an alternative text, its title:
    ``![caption](file "text")``, as PDF/UA asks; code and what it prints are shown only
    where tagged ``listing``; metadata.yml and references.bib stand beside the notebook or in the project's report/.
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

    def from_file(self, file_stream, resources=None, **kwargs):
        try:
            text = file_stream.read()
            text = text if isinstance(text, str) else text.decode()
            nb = nbformat.reads(_completed(text.removeprefix("\ufeff")), as_version=4)
        except (ValueError, AttributeError, KeyError, TypeError, nbformat.ValidationError) as error:
            name = _name(resources or {})
            raise ValueError(f"{name} is no notebook ({line(error)}): save it anew in Jupyter") from None
        return self.from_notebook_node(nb, resources, **kwargs)

    def from_notebook_node(self, nb, resources=None, **kwargs):
        nb = _tagged(nb)
        numbers, headings = len(nb.cells), sections(nb)
        try:
            nb, resources = Exporter.from_notebook_node(self, nb, resources, **kwargs)
        except nbformat.ValidationError as error:
            place = ".".join(map(str, error.absolute_path))
            cause = f"the notebook's {place} is damaged ({line(error.message)})"
            raise ValueError(f"{cause}: save it anew in Jupyter") from None
        resources["output_extension"] = self.file_extension
        problems = []
        front = cells.front_matter(nb, problems.append)
        _excluded(nb, self)
        home = Path(resources.get("metadata", {}).get("path") or ".").resolve()

        def complain(message, cell=0):
            place = f"cell {cell}, section {headings[cell - 1]!r}: " if 0 < cell <= numbers else ""
            problems.append(place + message)

        places = [cell.metadata.pop("place") for cell in nb.cells]
        parts, pictures = cells.parts(nb, self.strict, lambda message, cell: complain(message, places[cell - 1]))
        for part in parts:
            part["cell"], part["section"] = places[part["cell"] - 1], headings[places[part["cell"] - 1] - 1]
        info = self._info(nb, front, home, resources)
        sources = _beside(home, "references.bib", self.strict)
        known = keys(sources) if sources else {}
        labels = {}
        for one in (one for part in parts for one in part.get("math", [])):
            labels |= {label: tag for label, tag in one.get("labels", {}).items() if tag or label not in labels}
        job = {"parts": parts, "strict": self.strict, "title": info["title"], "keys": known, "labels": labels}
        with tempfile.TemporaryDirectory() as work:  # typst reads nothing outside its root
            _copy_fonts(Path(work, "fonts"))
            _style_markdown(parts, cells.style_sheets(nb), lambda message, cell: complain(message, cell))
            document = _document(job, complain)
            attachments = {place: cell.get("attachments", {}) for place, cell in zip(places, nb.cells, strict=True)}
            _place_pictures(document, Path(work), home, pictures, attachments, complain)
            styles.draw(document["blocks"])
            info["title"] = info["title"] or _text(document["meta"].get("title", "")) or _name(resources)
            if sources:
                shutil.copy(sources, Path(work, "references.bib"))
            source = _source(document, self.strict, complain)
            if self.strict and problems:  # without a page to look at
                raise ValueError("report: " + "; ".join(dict.fromkeys(problems)))

            def where(sign):
                texts = ((part["text"] + json.dumps(part.get("math"), ensure_ascii=False), part) for part in parts)
                return next((part["cell"] for text, part in texts if sign in text), 0)

            def cell_at(place):
                return _cell_at(place, document, Path(work), info)

            counted = _counted(document, self.strict)
            try:
                pdf = _typst(source, Path(work), info, counted, complain, where, cell_at)
            except typst.TypstError as error:
                if not _as_source(document, parts, Path(work), info, complain):
                    raise ValueError(f"report: {line(error.message)}") from None
                if self.strict:
                    raise ValueError("report: " + "; ".join(dict.fromkeys(problems))) from None
                source = _source(document, self.strict, complain)
                pdf = _typst(source, Path(work), info, _counted(document, False), complain, where, cell_at)
        problems = list(dict.fromkeys(problems))
        if self.strict and problems:
            raise ValueError("report: " + "; ".join(problems))
        for problem in problems:
            self.log.warning("%s: %s", _name(resources), problem)
        return pdf, resources

    def _info(self, nb, front: dict, home: Path, resources: dict) -> dict[str, str]:
        info = dict.fromkeys(TITLE_BLOCK, "") | {"strict": "yes" if self.strict else ""}
        if self.strict:
            info |= title_block(_beside(home, "metadata.yml", True)) | self.title_block
            if _name(resources) != "report":
                info["title"] = f"{_name(resources).capitalize()} to “{info['title'].split(':')[0]}”"
            return info
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
    names = [str(one.get("name") or "") if isinstance(one, dict) else str(one) for one in authors]
    found = {key: str(value).strip() for key, value in found.items()}
    if names:
        found["author"] = ", ".join(name for name in names if name)
    day = re.match(r"\d{4}-\d{2}-\d{2}", found.pop("date", ""))
    return {**found, "date": day[0]} if day and _is_day(day[0]) else found


def _is_day(text: str) -> bool:
    try:
        return bool(re.fullmatch(r"\d{4}-\d{2}-\d{2}", text) and datetime.date.fromisoformat(text))
    except ValueError:
        return False


def title_block(path: Path) -> dict[str, str]:
    """The entries of a metadata file. Raises ValueError for a missing one and for a date of another form."""
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
        info = {key: str(entries[key]).strip() for key in TITLE_BLOCK}
    except (KeyError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} ({line(error)}): give each of {', '.join(TITLE_BLOCK)}") from None
    if not _is_day(info["date"]):
        raise ValueError(f"{path}: the date {info['date']!r} is not of the form 2026-01-31")
    return info


def _beside(home: Path, name: str, strict: bool) -> Path | None:
    folders = (home, paths.PROJECT / "report") if strict else (home,)
    path = next((folder / name for folder in folders if (folder / name).exists()), None)
    if strict and not path:
        raise ValueError(f"report/{name} is missing: restore it")
    return path


def keys(path: Path) -> dict[str, bool]:
    """The keys of a file of sources, as notebook.lua looks them up."""
    return dict.fromkeys(re.findall(r"^\s*@\w+\s*\{\s*([^,\s]+)", path.read_text(encoding="utf-8"), re.M), True)


def _name(resources: dict) -> str:
    return resources.get("metadata", {}).get("name") or "Notebook"


def _completed(text: str) -> str:
    """A notebook's file with the metadata that other programs leave out."""
    nb = json.loads(text) if text.lstrip().startswith("{") else {}
    if nb.get("nbformat") != 4 or not isinstance(nb.get("cells"), list):
        return text  # as nbformat says
    for part in (nb, *(cell for cell in nb["cells"] if isinstance(cell, dict))):
        part["metadata"] = part.get("metadata") or {}
    return json.dumps(nb)


def _tagged(nb):
    """A copy whose tags are written in one way, remove-input, and whose cells know their number. What other programs
    than Jupyter leave out or write otherwise is put in order."""
    nb = copy.deepcopy(nb)
    title, authors = nb.metadata.get("title", ""), nb.metadata.get("authors", [])
    if not isinstance(title, str):
        nb.metadata["title"] = ": ".join(map(str, title)) if isinstance(title, list) else str(title)
    if not isinstance(authors, list):
        nb.metadata["authors"] = [authors]
    for number, cell in enumerate(nb.cells, 1):
        cell.source = cell.get("source") or ""
        if not isinstance(cell.metadata.get("jupyter", {}), dict):
            del cell.metadata["jupyter"]
        if not cell.get("attachments", True):
            del cell["attachments"]
        if cell.cell_type == "code":
            cell.setdefault("outputs", [])
            cell.setdefault("execution_count", None)
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.setdefault("name", "stdout")
            elif output.output_type in ("display_data", "execute_result"):
                output.setdefault("metadata", nbformat.NotebookNode())
        cell.metadata["place"] = number
        tags = cell.metadata.pop("tags", None) or []
        tags = [str(tag) for tag in ([tags] if isinstance(tags, str) else tags)]
        if tags:
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


def pandoc(text: str, complain, *options: str) -> str:
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


def _document(job: dict, complain) -> dict:
    return json.loads(pandoc(json.dumps(job), complain, f"--from={LAYOUT / 'notebook.lua'}", "--to=json"))


def _source(document: dict, strict: bool, complain) -> str:
    """The document in typst."""
    return pandoc(
        json.dumps(document), complain, "--from=json", "--to=typst-smart" if strict else "--to=typst", "--columns=250",
        f"--template={LAYOUT / 'report.typ'}", f"--lua-filter={LAYOUT / 'crossref.lua'}",
    )  # fmt: skip


def _as_source(document: dict, parts: list[dict], work: Path, info: dict[str, str], complain) -> bool:
    """Each part of the document of which typst can make no page, as its source instead; False if there is none."""

    def failing(pairs):
        source = _source({**document, "blocks": [block for block, _ in pairs]}, False, lambda *_: None)
        (work / "part.typ").write_text(source, encoding="utf-8")
        try:
            _compiler(work, work / "fonts", False, info, "part.typ").compile(format="pdf")
        except typst.TypstError as error:
            if len(pairs) == 1:
                return [(*pairs[0], error)]
            half = len(pairs) // 2
            return failing(pairs[:half]) + failing(pairs[half:])
        return []

    found = failing(list(zip(document["blocks"], parts, strict=True)))
    for block, part, error in found:
        complain(f"it cannot be drawn ({line(error.message)}) and is shown as its source", part["cell"])
        math = part.get("math", [])
        text = re.sub(r"@@(\d+)@@", lambda m, math=math: math[int(m[1])]["source"] if math else m[0], part["text"])
        block["c"][1] = [{"t": "CodeBlock", "c": [["", [], []], text]}]
    return bool(found)


def _style_markdown(parts: list[dict], page: list[str], complain) -> None:
    """For the Markdown with elements of HTML in a style: its HTML, styled, which notebook.lua reads then."""
    chosen = [part for part in parts if part["kind"] == "markdown" and markup.has_styles(part["text"])]
    if not chosen:
        return
    job = {"parts": chosen, "strict": False, "title": "", "keys": {}, "labels": {}, "asked": True}
    for part, block in zip(chosen, _document(job, lambda *_: None)["blocks"], strict=True):
        content = block["c"][1]
        if content and content[0]["t"] == "RawBlock":
            part["styled"] = markup.styled(
                content[0]["c"][1], page, lambda message, cell=part["cell"]: complain(message, cell)
            )


# ---------------------------------------------------------------- pictures


def _walk(node, cell=0):
    """Every element of pandoc's JSON with the number of its cell."""
    if isinstance(node, list):
        for one in node:
            yield from _walk(one, cell)
    elif isinstance(node, dict):
        if node.get("t") == "Div" and "part" in node["c"][0][1] and "section" in dict(node["c"][0][2]):
            cell = int(dict(node["c"][0][2])["cell"])
        if "t" in node:
            yield node, cell
        yield from _walk(list(node.values()), cell)


def _place_pictures(document: dict, work: Path, home: Path, outputs: dict, attachments: dict, complain) -> None:
    """Every picture decoded and put into work, its target its name there; one that cannot be read is named instead."""
    for number, (node, cell) in enumerate(_walk(document["blocks"])):
        if node["t"] != "Image":
            continue
        attributes, caption, (target, title) = node["c"]
        own = target in outputs
        try:
            content = outputs[target] if own else _fetched(target, home, attachments.get(cell, {}))
            name = "in the output" if own else target.split(",")[0] if target.startswith("data:") else target[:100]
            content, suffix = cells.picture(content, name)
            size = _size(dict(attributes[2]), content, suffix, own)
            size += [["alt", title]] if title else []
            if suffix == "svg":
                content = _legible(content, name, work, lambda message, cell=cell: complain(message, cell))
            if more := _more(content, suffix):
                complain(f"image {name} has {more}, of which the first is shown: save the others too", cell)
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
        try:
            return base64.b64decode(next(iter(found.values())))
        except ValueError:
            return b"no base64"  # which is no picture either
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


def _points(value) -> float | None:
    """A length in pixels, as HTML and notebooks give it, in points; None for percents and what is no length."""
    pixels = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:px)?\s*", str(value or ""))
    return float(pixels[1]) * 0.75 if pixels else None


def _size(given: dict, content: bytes, suffix: str, output: bool) -> list:
    """The attributes of a picture on the page: an output as wide as on the screen, none wider than the text."""
    given |= dict(re.findall(r"(?<![\w-])(width|height)\s*:\s*([\d.]+(?:px|%))", given.get("style", "")))
    height = _points(given.get("height"))
    if suffix not in ("svg", "pdf") and "width" not in given:
        wide, high = Image.open(io.BytesIO(content)).size
        if height:
            given["width"] = f"{height / 0.75 * wide / high}px"
        elif output:
            given["width"] = f"{wide}px"
    points = _points(given.get("width"))
    if points:
        given["width"] = "100%" if points > TEXT else f"{points:.0f}pt"
    elif height and "width" not in given:
        return [["height", f"{height:.0f}pt"]]
    return [[key, value] for key, value in given.items() if key == "width"]


def _legible(content: bytes, name: str, work: Path, complain) -> bytes:
    """An SVG whose signs without a glyph are boxes: typst may look for their font for ever. Raises ValueError with its
    name where it cannot be drawn."""
    text, fonts = content.decode(), work / "fonts"
    text = re.sub(r"&#(\d{3,6});", lambda m: chr(int(m[1])), text)
    lacking = _lacking(text, work, fonts, own=True)
    lacking = _lacking(" ".join(lacking), work, fonts, own=False)
    for sign in lacking:
        text = text.replace(sign, "□")
    (work / "tried.svg").write_text(text, encoding="utf-8")
    (work / "tried.typ").write_text('#image("tried.svg")')
    try:
        _compiler(work, fonts, True, {}, "tried.typ").compile(format="pdf")
    except typst.TypstError as error:
        cause = re.sub(r" in tried\.svg", "", line(error.message))
        raise ValueError(f"image {name} cannot be read ({cause}): replace it") from None
    if lacking:
        complain(f"no font here shows {_listed(lacking)} in image {name}: install Noto or write it otherwise")
    return text.encode()


def _more(content: bytes, suffix: str) -> str:
    """The number of a PDF's pages or of a moving picture's frames, "" for one."""
    if suffix == "pdf":
        try:
            count, kind = len(PdfReader(io.BytesIO(content)).pages), "pages"
        except PyPdfError:  # as is said where it is drawn
            return ""
    else:
        count, kind = 1 if suffix == "svg" else getattr(Image.open(io.BytesIO(content)), "n_frames", 1), "frames"
    return f"{count} {kind}" if count > 1 else ""


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


def _typst(source: str, work: Path, info: dict[str, str], counted: Counter, complain, where, cell_at) -> bytes:
    """The PDF, the same bytes for the same inputs. Raises TypstError where typst can make none."""
    fonts = work / "fonts"
    (work / "report.typ").write_text(source, encoding="utf-8")

    figures = "".join(path.read_text(encoding="utf-8") for path in sorted(work.glob("image-*.svg")))
    own, lacking = True, _lacking(source + "".join(info.values()) + figures, work, fonts, own=True)
    if lacking:
        own, lacking = False, _lacking(" ".join(lacking), work, fonts, own=False)
    cells_of: dict[int, list[str]] = {}
    for sign in lacking:
        cells_of.setdefault(where(sign), []).append(sign)
    for cell, signs in cells_of.items():
        complain(f"no font here shows {_listed(signs)}: install Noto or write it otherwise", cell)
    rules = "".join(f'#show "{sign}": "⟨{_sign(sign)}⟩"\n' for sign in lacking)
    (work / "report.typ").write_text(rules + source, encoding="utf-8")
    made = _compiler(work, fonts, own, info)
    # the report is PDF/UA: every picture and formula has an alternative text
    pdf, warnings = made.compile_with_warnings(format="pdf", pdf_standards="ua-1" if info["strict"] else [])
    for warning in warnings:
        if "is deprecated" not in warning.message:  # pandoc's older symbol names
            complain(line(warning.message))
    if sign := _unshown(made if info["date"] else _compiler(work, fonts, own, {**info, "date": "1970-01-01"})):
        complain(f"no font here shows {sign}, perhaps in a figure: install Noto or write it otherwise")
    for place in _overflowing(made):
        complain(f"page {place[0]} holds something wider than its text: break or shorten it", cell_at(place))
    for kind, (there, wanted) in _holes(pdf, counted).items():
        complain(f"the PDF holds {there} of {wanted} {kind}")
    return _packed(pdf)


def _copy_fonts(fonts: Path) -> None:
    """Of matplotlib's fonts, those that a figure with text as text names."""
    fonts.mkdir()
    for font in Path(matplotlib.get_data_path(), "fonts", "ttf").glob("DejaVuSans*.ttf"):
        shutil.copy(font, fonts)


def _packed(pdf: bytes) -> bytes:
    """The same PDF, a quarter smaller: typst writes every object on its own, the thousands that tag the text too."""
    file = io.BytesIO()
    with pikepdf.open(io.BytesIO(pdf)) as whole:
        whole.save(file, object_stream_mode=pikepdf.ObjectStreamMode.generate, deterministic_id=True)
    return file.getvalue()


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


def _lacking(text: str, work: Path, fonts: Path, own: bool) -> list[str]:
    """The signs of text for which no font has a glyph; own: of those within typst and matplotlib."""
    signs = {sign for sign in text if ord(sign) > 0x24F and unicodedata.category(sign)[0] not in "ZC"}
    signs -= {sign for sign in signs if "VARIATION SELECTOR" in unicodedata.name(sign, "")}  # which are not seen
    signs |= {sign for sign in text if unicodedata.category(sign) == "Co"}
    signs |= set(re.findall("[A-Za-z][\u0300-\u036f\u20d0-\u20ff]+", text))  # a font may have both, and not together
    if not signs:
        return []
    # each on a page of its own, where pypdf reads the missing glyph as a zero
    page = '#set page(width: 80pt, height: 40pt)\n#set text(font: "New Computer Modern")\n'
    page += "#pagebreak()\n".join(f"#{json.dumps(sign, ensure_ascii=False)}\n" for sign in sorted(signs))
    (work / "signs.typ").write_text(page, encoding="utf-8")
    made = PdfReader(io.BytesIO(_compiler(work, fonts, own, {}, "signs.typ").compile(format="pdf")))
    return [sign for sign, one in zip(sorted(signs), made.pages, strict=True) if "\0" in one.extract_text()]


def _listed(signs: list[str]) -> str:
    shown = ", ".join(f"{sign!r} ({_sign(sign)})" for sign in signs[:3])
    return shown + f" and {len(signs) - 3} more signs" * (len(signs) > 3)


def _sign(sign: str) -> str:
    if len(sign) > 1:
        return f"{sign[0]} with {', '.join(map(_sign, sign[1:]))}"
    name = unicodedata.name(sign, "").lower()
    return name if name and not re.search(r"ideograph|syllable", name) else f"U+{ord(sign):04X}"


def _overflowing(compiler: typst.Compiler) -> list[tuple[int, float]]:
    """The pages with ink in their left or right margin, each with the points from its top where it ends."""
    pages, ppi = compiler.compile(format="png", ppi=50), 50
    edge, found = int((MARGIN - 8) * ppi / 72), []
    for number, page in enumerate(pages if isinstance(pages, list) else [pages], 1):
        dark = np.asarray(Image.open(io.BytesIO(page)).convert("L")) < 200
        rows = dark[:, :edge].any(1) | dark[:, -edge:].any(1)
        if rows.any():
            found.append((number, float(np.flatnonzero(rows)[-1]) * 72 / ppi))
    return found


def _cell_at(place: tuple[int, float], document: dict, work: Path, info: dict[str, str]) -> int:
    """The number of the cell that stands at a place, a page and points from its top."""
    document = {**document, "meta": {**document["meta"], "places": {"t": "MetaBool", "c": True}}}
    (work / "places.typ").write_text(_source(document, False, lambda *_: None), encoding="utf-8")
    places = json.loads(_compiler(work, work / "fonts", False, info, "places.typ").query("<where:cell>", field="value"))
    return max((one for one in map(tuple, places) if one[:2] <= place), default=(0, 0, 0))[2]


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


def report(name: str = "report", **title: str) -> bytes:
    """The PDF of one of ``build.DOCUMENTS``, from its executed notebook; title replaces entries of its title block."""
    path = paths.folder("report") / f"{name}.ipynb"
    exporter = ReportExporter(title_block=title, strict=True)
    return exporter.from_notebook_node(read(path), {"metadata": {"path": str(path.parent), "name": name}})[0]
