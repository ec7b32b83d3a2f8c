"""The parts of a notebook that JupyterLab shows, in order, each with its cell and section."""

import base64
import gzip
import io
import itertools
import json
import re
from xml.etree import ElementTree

import yaml
from PIL import Image

from report import ansi, cascade, formulas, markup
from report.notebooks import line, sections

PICTURES = {
    "image/svg+xml": "svg", "application/pdf": "pdf", "image/png": "png", "image/jpeg": "jpg", "image/gif": "gif",
    "image/webp": "webp",
}  # fmt: skip
EMBEDDED = re.compile(r'\s*<img\b[^>]*\bsrc="data:(image/[\w.+-]+);base64,([^"]+)"[^>]*>\s*')  # all of an output
# what stands for the same in fewer words or not at all, or is shown by an extension of the browser alone
RICH = re.compile(r"application/(?!json$)|text/(?!plain|html|markdown|latex)|audio/|video/")
FENCE = re.compile(r"^(`{3,})[ ]*\{\.?(\w*)[ ]*#(lst:[\w-]+)(?: caption=\"(.*?)\")?\}[ ]*$", re.M)


def _clean(text: str) -> str:
    """text without what is no sign: control characters, and halves of signs, as of an emoji that was cut."""
    return re.sub("[\ud800-\udfff]", "\ufffd", re.sub("[\0-\b\v\x0e-\x1f\x7f\ufffe\uffff]", "", text))


def parts(nb, strict: bool, complain) -> tuple[list[dict], dict[str, bytes]]:
    """The parts, each a dict of kind (markdown, html, code, picture or note), text, cell (from 1) and section, and the
    pictures in the outputs by name. What cannot be shown goes to complain(message, cell). strict: code and what it
    prints only where it is tagged listing, and what else is not the report's is complained of.
    """
    found, pictures, macros = [], {}, {}
    page = style_sheets(nb)
    for number, (cell, section) in enumerate(zip(nb.cells, sections(nb), strict=True), 1):
        here = []

        def add(kind, text, here=here, **more):
            here.append({"kind": kind, "text": _clean(text), **more})

        def markdown(text, here=here, number=number):
            here.append(_markdown(_clean(text), strict, macros, lambda message: complain(message, number)))

        def html(text, here=here, number=number):
            here.append(_html(_clean(text), page, macros, lambda message: complain(message, number)))

        if cell.cell_type == "markdown":
            markdown(cell.source)
        elif cell.cell_type == "raw":
            _raw(cell, add, markdown, html, lambda message, number=number: complain(message, number))
        else:
            listing = not strict or "listing" in cell.metadata.get("tags", [])
            hidden = cell.metadata.get("jupyter", {})
            if listing and cell.source.strip() and not _removed(cell) and not hidden.get("source_hidden"):
                add("code", cell.source, language=_language(nb, cell))
            for output in () if hidden.get("outputs_hidden") else _joined(cell.outputs):
                if strict and not listing and not set(output.get("data", {})) - {"text/plain"}:
                    if output.output_type == "error":
                        complain("its output is an error: mend it and execute the notebook", number)
                    continue
                _output(
                    output, add, markdown, html, pictures,
                    lambda message, number=number: complain(message, number), strict,
                )  # fmt: skip
        found += [{**part, "cell": number, "section": section} for part in here]
    return found, pictures


def front_matter(nb, complain) -> dict:
    """The entries of a raw first cell of YAML between two lines of dashes, which is taken out of nb."""
    first = nb.cells[0] if nb.cells else None
    if (
        first
        and first.cell_type == "raw"
        and (block := re.fullmatch(r"\s*---\s*\n(.*)\n(?:---|\.\.\.)\s*", first.source, re.S))
    ):
        try:
            entries = yaml.safe_load(block[1])
        except yaml.YAMLError as error:
            complain(f"the raw first cell is no YAML ({line(error)}): put values with a colon in quotes")
            return {}
        if isinstance(entries, dict):
            nb.cells = nb.cells[1:]
            return entries
    return {}


def _removed(cell) -> bool:
    return cell.metadata.get("transient", {}).get("remove_source", False)


def _language(nb, cell) -> str:
    magic = re.match(r"%%(bash|html|javascript|latex|markdown|perl|ruby|R|sql)\b", cell.source)
    return magic[1] if magic else nb.metadata.get("language_info", {}).get("name", "python")


def _markdown(text: str, strict: bool, macros: dict, complain) -> dict:
    if strict:  # the report's notes within a sentence
        notes = re.findall(r"\^\[([^\[\]]+)\]", text)
        for number, note in enumerate(notes):
            text = text.replace(f"^[{note}]", f"[^inline{number}]", 1) + f"\n\n[^inline{number}]: {note}"
    listings = [{"class": m[2], "id": m[3], "caption": m[4] or ""} for m in FENCE.finditer(text)]
    numbers = iter(range(len(listings)))
    text = FENCE.sub(lambda m: f"{m[1]}listing-{next(numbers)}", text)
    text, sources = formulas.remove(text)
    math = _math(sources, macros, complain)
    text, dashes = _tables(text, strict)
    return {"kind": "markdown", "text": text, "dashes": dashes, "math": math, "listings": listings}


def style_sheets(nb) -> list[str]:
    """The style sheets of all outputs, for they act on the others too."""
    shown = [output for cell in nb.cells for output in cell.get("outputs", [])]
    texts = [output.get("data", {}).get("text/html") or "" for output in shown]
    texts = [text for text in texts if isinstance(text, (str, list))]
    texts += [cell.source for cell in nb.cells if cell.cell_type == "raw" and "<style" in cell.source]
    return [sheet for text in texts for sheet in cascade.sheets("".join(text))]


def _html(text: str, page: list[str], macros: dict, complain) -> dict:
    if re.search(r"background[\w-]*\s*:[^;{}>]*\burl\(", text):
        complain("a picture behind the text of an output is not shown: display it as an image")
    text, sources = markup.prepared(text, page, complain)
    return {"kind": "html", "text": text, "math": _math(sources, macros, complain)}


def _math(sources: list[str], macros: dict, complain) -> list[dict]:
    """The formulas as notebook.lua reads them: one that cannot be converted, and what looks like the mark of one, has
    but its source."""
    found = []
    for source in sources:
        if source.startswith("@@"):
            found.append({"source": source, "plain": True})
        elif reference := formulas.REFERENCE.fullmatch(source):
            found.append({"source": source, "label": reference[2], "round": bool(reference[1])})
        else:
            try:
                found.append(formulas.formula(source, macros))
            except ValueError as error:
                complain(str(error))
                found.append({"source": source, "plain": False})
    return found


def _tables(text: str, strict: bool) -> tuple[str, list[str]]:
    """A blank line before each table, for GFM lets one stand right below a paragraph, and pandoc's reader does not;
    and the widths of each table's columns in the dashes below its head, in the report if its lines are long."""
    lines, out, dashes, fence = text.split("\n"), [], [], ""
    for i, row in enumerate(lines):
        mark = re.match(r" {0,3}(`{3,}|~{3,})", row)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        below = lines[i + 1] if i + 1 < len(lines) else ""
        rule = re.fullmatch(r" {0,3}\|?[ ]*:?-+:?[ ]*(\|[ ]*:?-+:?[ ]*)*\|?[ ]*", below)
        if not fence and "|" in row and rule and "|" in below:
            rows = list(itertools.takewhile(lambda row: "|" in row, lines[i:]))
            widths = [str(len(one.strip())) for one in below.strip().strip("|").split("|")]
            dashes.append(" ".join(widths) if strict and max(map(len, rows)) > 250 else "")
            if out and out[-1].strip() and "|" not in out[-1]:
                out.append("")
        out.append(row)
    return "\n".join(out), dashes


def _raw(cell, add, markdown, html, complain) -> None:
    form = cell.metadata.get("format") or cell.metadata.get("raw_mimetype") or ""
    if form == "text/markdown":
        markdown(cell.source)
    elif form == "text/html":
        html(cell.source)
    elif form == "text/latex" and re.match(r"\s*(\$|\\begin)", cell.source):
        markdown(cell.source)
    elif cell.source.strip():
        if form not in ("", "text/plain"):
            complain(f"a raw cell of {form} is shown as its source")
        add("code", cell.source, language="")


def _joined(outputs) -> list:
    """The outputs, neighbouring pieces of one stream as one: a progress bar comes in many."""
    joined = []
    for output in outputs:
        if output.output_type == "stream" and joined and joined[-1].get("name") == output.name:
            joined[-1] = {**joined[-1], "text": joined[-1]["text"] + output.text}
        else:
            joined.append(dict(output))
    return [_Output(output) for output in joined]


class _Output(dict):
    @property
    def output_type(self) -> str:
        return self["output_type"]


def terminal(text: str) -> str:
    """What a terminal shows in the end, without its colours."""
    return ansi.terminal(text)[0]


def _printed(add, text: str, language: str, complain) -> None:
    """What a cell prints, with its colours."""
    if ansi.PICTURE.search(text):
        complain("a picture that a terminal draws is not shown: display it as an image")
    shown, styles = ansi.terminal(text)
    add("code", shown.rstrip("\n"), language=language, **({"styles": ansi.typst(styles)} if styles else {}))


def _output(output, add, markdown, html, pictures, complain, strict) -> None:
    if output.output_type == "stream":
        _printed(add, output["text"], "stderr" if output["name"] == "stderr" else "output", complain)
        return
    if output.output_type == "error":
        if strict:
            complain("its output is an error: mend it and execute the notebook")
        trace = "\n".join(output.get("traceback") or [f"{output.get('ename')}: {output.get('evalue')}"])
        _printed(add, trace, "stderr", complain)
        return
    data = {
        kind: "".join(text) if isinstance(text, list) and not kind.endswith("json") else text
        for kind, text in output.get("data", {}).items()
        if text is not None
    }
    data = {k: v if isinstance(v, str) or k.endswith("json") else json.dumps(v) for k, v in data.items()}
    if "text-repr-fallback" in data.get("text/html", "") or (  # scikit-learn's and xarray's boxes, rich's colours
        "\x1b[" in data.get("text/plain", "") and re.fullmatch(r"\s*<pre\b.*</pre>\s*", data.get("text/html", ""), re.S)
    ):
        data["text/html"] = ""
    bare = re.sub(r"<(script|style)\b.*?</\1>|<!--.*?-->", "", data.get("text/html", ""), flags=re.S | re.I)
    if re.search("<table", bare) and not re.sub(r"<[^>]*>|\s", "", bare) and "<img" not in bare:
        data["text/html"] = ""  # an empty DataFrame, which its plain text names
    if "text/plain" in data and data.get("text/html") == "":
        del data["text/html"]
    if (whole := EMBEDDED.fullmatch(data.get("text/html", ""))) and whole[1] in PICTURES:
        data.setdefault(whole[1], whole[2])  # a picture within HTML, which gives it an alternative text
    for kind in (*PICTURES, *(kind for kind in data if kind.startswith("image/"))):
        if kind in data:
            suffix = PICTURES.get(kind, kind[6:])
            try:
                content = data[kind].encode() if suffix == "svg" else base64.b64decode(data[kind])
            except ValueError:
                content = b"no base64"  # which is no picture, as is said where it is placed
            name = f"output-{len(pictures)}.{suffix}"
            pictures[name] = content
            if strict:
                complain("an image has no caption: save it and link it as ![caption](../figures/name.png){#fig:name}")
            size = (output.get("metadata") or {}).get(kind) or {}
            size = size if isinstance(size, dict) else {}
            add("picture", name, **{side: str(size.get(side) or "") for side in ("width", "height")})
            return
    if "text/markdown" in data:
        markdown(data["text/markdown"])
    elif "text/html" in data and not _script_only(data["text/html"]):
        if strict:
            complain(f"raw html is dropped in the PDF, write markdown: {line(data['text/html'])[:60]}")
        html(data["text/html"])
    elif "text/latex" in data and not re.match(r"\s*\\begin\{(tabular|table|longtable)\b", data["text/latex"]):
        _latex(data["text/latex"].strip(), markdown, html)
    elif rich := next((kind for kind in data if RICH.match(kind) or kind == "text/html"), None):
        said = terminal(data.get("text/plain", "")).strip()
        complain(
            f"an output of {rich} is shown by a browser alone: display it as an image too"
            + f" ({line(said)[:60]})" * bool(said)
        )
        add("note", f"Not shown here: {rich}" + f", {said}" * bool(said))
    elif "application/json" in data:
        add("code", json.dumps(data["application/json"], indent=2, ensure_ascii=False), language="json")
    elif "text/plain" in data:
        _printed(add, data["text/plain"], "output", complain)
    elif "text/latex" in data:
        complain("an output of text/latex is no formula and is shown as its source")
        add("code", data["text/latex"], language="")
    elif data:
        complain(f"an output of {next(iter(data))} cannot be shown")
        add("note", f"Not shown here: {next(iter(data))}")


def _latex(text: str, markdown, html) -> None:
    """A formula, which then has a line of its own, or a text with formulas: of LaTeX JupyterLab draws no more."""
    if re.match(r"\$|\\begin\{", text):
        whole = re.fullmatch(r"\$\s*\\displaystyle\b([^$]*)\$", text)
        markdown(f"$${whole[1]}$$" if whole else text)
    else:
        html("<p>" + text.replace("&", "&amp;").replace("<", "&lt;").replace("\n\n", "</p><p>") + "</p>")


def _script_only(html: str) -> bool:
    """Does the browser draw it all? Then there is no text, or as for plotly the words of a script."""
    if re.search(r"<(iframe|video|audio|canvas|object|embed)\b", html, re.I):
        return True
    bare = re.sub(r"<(script|style)\b.*?</\1>|<!--.*?-->", "", html, flags=re.S | re.I)
    return "<script" in html.lower() and not re.search(r"<(table|img|svg|p|pre|ul|h\d)\b", bare, re.I)


def picture(content: bytes, name: str) -> tuple[bytes, str]:
    """An image file as typst reads it, and its suffix. Raises ValueError with its name where it cannot be decoded."""
    try:
        if content.lstrip()[:5] == b"%PDF-":
            return content, "pdf"
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)  # an .svgz
        if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"<svg" in content[:4096] or content[:5] == b"<?xml":
            root = ElementTree.fromstring(content)
            for element in root.iter():
                if str(element.tag).endswith("foreignObject"):
                    raise ValueError("HTML within the SVG is not drawn: save it as PNG")
                links = [
                    v for k, v in element.attrib.items() if k.endswith("href") and str(element.tag).endswith("image")
                ]
                if any(not link.startswith("data:") for link in links):
                    raise ValueError("the SVG links to another file: embed it")
            try:
                content.decode()
            except UnicodeDecodeError:  # typst reads no other encoding
                content = ElementTree.tostring(root, "utf-8")
            return content, "svg"
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            if image.format in ("PNG", "GIF", "WEBP", "JPEG"):
                return content, {"JPEG": "jpg"}.get(image.format, image.format.lower())
            file = io.BytesIO()
            (image if image.mode in ("1", "L", "LA", "RGB", "RGBA", "P") else image.convert("RGB")).save(file, "PNG")
            return file.getvalue(), "png"
    except (OSError, ValueError, SyntaxError, ElementTree.ParseError, Image.DecompressionBombError) as error:
        cause = "it is empty" if not content else line(error).replace("cannot identify image file", "no image in")
        raise ValueError(
            f"image {name} cannot be read ({re.sub(r' <_io.BytesIO.*?>', ' it', cause)}): replace it"
        ) from None
