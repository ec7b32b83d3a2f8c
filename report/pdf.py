"""From an executed notebook to the report's PDF. Whatever a user can get wrong raises ValueError or OSError with one
line that names the cause and the cure."""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pypandoc
import typst
import yaml
from matplotlib import font_manager, ft2font
from nbconvert.exporters import Exporter, MarkdownExporter
from traitlets import Dict
from traitlets.config import Config

from lib import paths
from report.notebooks import line, read

LAYOUT = Path(__file__).resolve().parent / "layout"
TITLE_BLOCK = ("title", "author", "id", "course", "date")
# beyond the letters and signs that the fonts within typst hold
FOREIGN = re.compile("[^\0-\u04ff\u0531-\u05f4\u1e00-\u23ff\u2500-\u27ff\u2900-\u2bff\U0001d400-\U0001d7ff]")


class ReportExporter(Exporter):
    """Notebook -> markdown -> pandoc -> typst -> PDF: ``jupyter nbconvert --to report.pdf.ReportExporter``.

    What a cell displays is shown; its code and what it prints only if tagged ``listing``; nothing if
    tagged ``setup`` or ``hide``. metadata.yml (the title block) and references.bib stand beside the
    notebook or in the project's report/. Raises ValueError where the page would have a hole.
    """

    file_extension = ".pdf"
    output_mimetype = "application/pdf"
    title_block = Dict(help="entries that replace those of metadata.yml").tag(config=True)

    def from_notebook_node(self, nb, resources=None, **kwargs):
        nb, resources = super().from_notebook_node(nb, resources, **kwargs)
        home = Path(resources.get("metadata", {}).get("path") or ".").resolve()
        info = {**title_block(_beside(home, "metadata.yml")), **self.title_block}
        markdown, images = _markdown(nb)
        with tempfile.TemporaryDirectory() as work:  # typst reads nothing outside its root
            for name, image in images.items():
                Path(work, name).write_bytes(image)
            shutil.copy(_beside(home, "references.bib"), work)
            document = _pandoc(markdown, work, home)
            return _typst(document, work, info), resources


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


def _beside(home: Path, name: str) -> Path:
    path = next((p for p in (home / name, paths.PROJECT / "report" / name) if p.exists()), None)
    if not path:
        raise ValueError(f"report/{name} is missing: restore it")
    return path


def _markdown(nb) -> tuple[str, dict[str, bytes]]:
    """The notebook as markdown and the images in its outputs."""
    for cell in nb.cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code" and "listing" not in tags:
            cell.metadata["tags"] = [*tags, "no-code"]
            cell.outputs = [output for output in cell.outputs if set(output.get("data", {})) - {"text/plain"}]
    config = Config()
    config.NbConvertBase.display_data_priority = ["text/markdown", "text/html", "image/png", "text/plain"]
    config.TagRemovePreprocessor.enabled = True
    config.TagRemovePreprocessor.remove_cell_tags = {"setup", "hide"}
    config.TagRemovePreprocessor.remove_input_tags = {"no-code"}
    markdown, resources = MarkdownExporter(config=config).from_notebook_node(nb)
    return markdown, resources.get("outputs") or {}


def _pandoc(markdown: str, work: str, home: Path) -> str:
    """markdown as a typst document whose images lie in work. Raises ValueError with all warnings."""
    reader = (
        "markdown-yaml_metadata_block-blank_before_header-blank_before_blockquote"
        "+lists_without_preceding_blankline+autolink_bare_uris"  # as Jupyter reads it
    )
    command = [
        pypandoc.get_pandoc_path(), f"--from={reader}", "--to=typst", "--columns=250", "--fail-if-warnings",
        f"--template={LAYOUT / 'report.typ'}", f"--lua-filter={LAYOUT / 'crossref.lua'}",
        "--extract-media=media", f"--resource-path={work}{os.pathsep}{home}",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=work, input=markdown.encode(), capture_output=True)
    if done.returncode:
        text = done.stderr.decode(errors="replace").replace("Failing because there were warnings.", "")
        text = re.sub(r"Scripting warning at .*?:\s", "", text)
        text = re.sub(r"Could not fetch resource (\S+): .*", r"image \1 is missing: save it, or correct its name", text)
        warnings = re.split(r"^\[\w+\]", text, flags=re.M)
        raise ValueError("report: " + "; ".join(dict.fromkeys(line(w) for w in warnings if w.strip())))
    return done.stdout.decode()


def _typst(document: str, work: str, info: dict[str, str]) -> bytes:
    """The PDF, the same bytes for the same inputs. Raises ValueError for errors and warnings alike."""
    Path(work, "report.typ").write_text(document, encoding="utf-8")
    own_fonts = not _foreign(document + "".join(info.values()))
    compiler = typst.Compiler(f"{work}/report.typ", root=work, ignore_system_fonts=own_fonts, sys_inputs=info)
    try:
        pdf, warnings = compiler.compile_with_warnings(format="pdf")
    except typst.TypstError as error:
        label = re.search(r"label `<(.+?)>` does not exist", error.message)
        cure = "add it to references.bib" if "#bibliography(" in document else "add the section ## References"
        cause = f"unknown citation @{label[1]}: {cure}" if label else line(error.message)
        raise ValueError(f"report: {cause}") from None
    holes = [line(w.message) for w in warnings if "is deprecated" not in w.message]  # pandoc's older symbol names
    if holes:
        raise ValueError("report: " + "; ".join(holes))
    return pdf


def _foreign(text: str) -> bool:
    """Whether text needs this machine's fonts. Raises ValueError if these lack one of its characters too."""
    needed = set(FOREIGN.findall(text))
    missing = set(needed)
    for path in sorted(font_manager.findSystemFonts()) if needed else ():
        try:
            missing -= set(map(chr, ft2font.FT2Font(path).get_charmap()))
        except RuntimeError:  # not a font that matplotlib reads
            continue
    if missing:
        raise ValueError(f"report: no font here shows {''.join(sorted(missing))!r}: install Noto or write it otherwise")
    return bool(needed)


def report(**title: str) -> bytes:
    """The PDF of the executed report notebook; title replaces entries of its title block."""
    path = paths.folder("report") / "report.ipynb"
    exporter = ReportExporter(title_block=title)
    return exporter.from_notebook_node(read(path), {"metadata": {"path": str(path.parent)}})[0]
