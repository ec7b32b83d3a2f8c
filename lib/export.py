"""From notebooks to what is handed in: executed notebooks, the report's PDF, the submission.

PROFILE=smoke works in .smoke/ and leaves the project's own files alone. Whatever a user can get
wrong raises ValueError or OSError with one line that names the cause and the cure.
"""

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unicodedata
import zipfile
from pathlib import Path

import nbformat
import pypandoc
import typst
import yaml
from matplotlib import font_manager, ft2font
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert.exporters import Exporter, MarkdownExporter, PythonExporter
from tqdm import tqdm
from traitlets import Dict
from traitlets.config import Config

PROJECT = Path(__file__).resolve().parent.parent
LIB = Path(__file__).resolve().parent
TITLE_BLOCK = ("title", "author", "id", "course", "date")
# beyond the letters and signs that the fonts within typst hold
FOREIGN = re.compile("[^\0-\u04ff\u0531-\u05f4\u1e00-\u23ff\u2500-\u27ff\u2900-\u2bff\U0001d400-\U0001d7ff]")
SUBMISSION = "run `make submission LASTNAME=Lovelace FIRSTNAME=Ada ID=1234567`"


def folder(name: str) -> Path:
    """The project's notebooks/, figures/ or report/; in the smoke profile its copy in .smoke/."""
    return (PROJECT / ".smoke" if os.environ.get("PROFILE") == "smoke" else PROJECT) / name


def read(notebook: Path) -> nbformat.NotebookNode:
    """The notebook. Raises ValueError if there is none."""
    try:
        return nbformat.read(notebook, as_version=4)
    except FileNotFoundError:
        raise ValueError(f"{notebook} is missing: run `make report`") from None
    except (ValueError, AttributeError, KeyError) as error:
        raise ValueError(f"{notebook} is not a notebook ({_line(error)}): restore it") from None


def write(path: Path, content: str | bytes) -> None:
    """Write whole or not at all, also on a full disk. Raises OSError."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.replace(path)
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error.strerror}): free space or make it writable") from None
    finally:
        part.unlink(missing_ok=True)


def _line(message) -> str:
    text = " ".join(str(message).split())
    return text if len(text) <= 300 else text[:299] + "…"


# --- executing a notebook


def execute(notebook: Path, destination: Path) -> None:
    """Run a notebook from a clean kernel in its own folder and write the result to destination.

    Raises ValueError with the notebook, the section and the exception of a failing cell.
    """
    nb = read(notebook)
    sections, current = _sections(nb), 0
    client = NotebookClient(nb, timeout=None, kernel_name="python3", coalesce_streams=True)
    client.resources = {"metadata": {"path": str(notebook.parent)}}
    client.extra_arguments = ["--log-level=ERROR"]

    def show(cell, cell_index):
        nonlocal current
        current = cell_index
        bar.update(cell_index + 1 - bar.n)
        bar.set_postfix_str(sections[cell_index])

    client.on_cell_start = show
    with tqdm(total=len(nb.cells), unit="cell", desc=notebook.stem, file=sys.stdout) as bar:
        try:
            client.execute()
        except (CellExecutionError, DeadKernelError) as error:
            cause = f"{error.ename}: {error.evalue}" if isinstance(error, CellExecutionError) else error
            raise ValueError(f"{notebook.name}, section {sections[current]!r}: {_line(cause)}") from None
    for cell in nb.cells:
        cell.metadata.pop("execution", None)  # time stamps
    write(destination, nbformat.writes(nb) + "\n")


def _sections(nb) -> list[str]:
    """The heading above each cell."""
    names, current = [], "before the first heading"
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            current = (re.findall(r"^#+ +(.+?)(?: *\{.*\})?$", cell.source, re.M) or [current])[-1]
        names.append(current)
    return names


# --- the report


class ReportExporter(Exporter):
    """Notebook -> markdown -> pandoc -> typst -> PDF: ``jupyter nbconvert --to lib.export.ReportExporter``.

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
        raise ValueError(f"{path} ({_line(error)}): give each of {', '.join(TITLE_BLOCK)}") from None
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", info["date"]):
        raise ValueError(f"{path}: the date {info['date']!r} is not of the form 2026-01-31")
    return info


def _beside(home: Path, name: str) -> Path:
    path = next((p for p in (home / name, PROJECT / "report" / name) if p.exists()), None)
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
        f"--template={LIB / 'report.typ'}", f"--lua-filter={LIB / 'crossref.lua'}",
        "--extract-media=media", f"--resource-path={work}{os.pathsep}{home}",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=work, input=markdown.encode(), capture_output=True)
    if done.returncode:
        text = done.stderr.decode(errors="replace").replace("Failing because there were warnings.", "")
        text = re.sub(r"Scripting warning at .*?:\s", "", text)
        text = re.sub(r"Could not fetch resource (\S+): .*", r"image \1 is missing: save it, or correct its name", text)
        warnings = re.split(r"^\[\w+\]", text, flags=re.M)
        raise ValueError("report: " + "; ".join(dict.fromkeys(_line(w) for w in warnings if w.strip())))
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
        cause = f"unknown citation @{label[1]}: {cure}" if label else _line(error.message)
        raise ValueError(f"report: {cause}") from None
    holes = [_line(w.message) for w in warnings if "is deprecated" not in w.message]  # pandoc's older symbol names
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
    path = folder("report") / "report.ipynb"
    exporter = ReportExporter(title_block=title)
    return exporter.from_notebook_node(read(path), {"metadata": {"path": str(path.parent)}})[0]


# --- the submission


def submission(lastname: str, firstname: str, id: str) -> Path:
    """Write lastname_firstname_ID_Project1.zip: lib, benchmarks, the notebooks as scripts, the figures and the PDF
    under that name and ID. Raises ValueError for an impossible name or ID and for what is missing.
    """
    stem = submission_name(lastname, firstname, id)
    code = [LIB, LIB.parent / "benchmarks"]
    files = {f"{p.parent.name}/{p.name}": p.read_bytes() for f in code for p in f.glob("*.*") if p.is_file()}
    expected = [folder("report") / "report.pdf"]
    for path in [*folder("notebooks").glob("*.ipynb"), folder("report") / "report.ipynb"]:
        script = PythonExporter(exclude_input_prompt=True).from_notebook_node(read(path))[0]
        files[f"{path.parent.name}/{path.stem}.py"] = script.encode()
        saved = re.findall(r"""plots\.save\(\s*\w+,\s*["']([\w.-]+)["']""", script)
        expected += [folder("figures") / f"{name}.png" for name in saved]
    missing = [f"{p.parent.name}/{p.name}" for p in expected if not p.exists()]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing: run `make report`")
    files |= {f"figures/{p.name}": p.read_bytes() for p in folder("figures").glob("*.png")}
    files[f"{stem}.pdf"] = report(author=f"{_name(firstname)} {_name(lastname)}", id=id.strip())
    target = folder(f"{stem}.zip")
    write(target, _zip(files))
    return target


def submission_name(lastname: str, firstname: str, id: str) -> str:
    """lastname_firstname_ID_Project1, with a hyphen for a space and no apostrophe. Raises ValueError."""
    for label, name in (("LASTNAME", _name(lastname)), ("FIRSTNAME", _name(firstname))):
        if not name.strip(" -'"):
            raise ValueError(f"{label} is empty: {SUBMISSION}")
        wrong = {c for c in name if unicodedata.category(c)[0] not in "LM" and c not in "-' "}
        if wrong:
            raise ValueError(
                f"{label} {name!r} holds {''.join(sorted(wrong))!r}, only letters and - ' go: {SUBMISSION}"
            )
    if not re.fullmatch(r"[A-Za-z0-9]+", id.strip()):
        raise ValueError(f"ID {id!r} is not made of digits and letters a to z: {SUBMISSION}")
    parts = [_name(name).replace(" ", "-").replace("'", "") for name in (lastname, firstname)]
    return "_".join([*parts, id.strip(), "Project1"])


def _name(text: str) -> str:
    """One spelling of a name: composed letters, single spaces, the plain apostrophe."""
    return " ".join(unicodedata.normalize("NFC", text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")).split())


def _zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name)  # dated 1980: the same files give the same bytes
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, files[name], zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
