"""The zip to hand in: code, figures, and the PDF under one's name."""

import io
import re
import unicodedata
import zipfile
from pathlib import Path

from lib import paths
from report import build, freshness

# folders whose files go into the zip, and what else somebody needs to run them
CODE = ("lib", "lib/heads", "lib/sets", "studies", "course", "benchmarks", "report", "report/layout", "report/site")
CODE += ("report/site/pages", "tests")
SUFFIXES = (".py", ".js", ".mplstyle", ".typ", ".lua", ".yml", ".bib")
OTHERS = ("README.md", "LICENSE", "pyproject.toml", "uv.lock", "requirements.txt", "environment.yml")
OTHERS += ("docs/*.md", "results/*.jsonl", "results/*.csv", "results/embeddings/*.npz", "results/weights/*.safetensors")
SUBMISSION = "run `make submission LASTNAME=Lovelace FIRSTNAME=Ada ID=1234567`"


def submission(lastname: str, firstname: str, id: str) -> Path:
    """Write lastname_firstname_ID_Project1.zip: the code, the notebooks as scripts, the records that they read, the
    figures, and the PDF under that name and ID. Raises ValueError for an impossible name or ID and for what is missing.
    """
    from nbconvert.exporters import PythonExporter  # the name is checked before anything is installed

    from report.notebooks import read
    from report.pdf import report

    stem = submission_name(lastname, firstname, id)
    here = Path(__file__).resolve().parent.parent
    code = (p for folder in CODE for p in (here / folder).glob("*.*") if p.suffix in SUFFIXES)
    others = (p for pattern in OTHERS for p in here.glob(pattern))
    files = {p.relative_to(here).as_posix(): p.read_bytes() for p in (*code, *others)}
    missing = []
    for path in [
        *sorted(paths.folder("notebooks").glob("*.ipynb")),
        *(paths.folder("report") / f"{name}.ipynb" for name in build.DOCUMENTS),
    ]:
        nb = read(path)
        script = PythonExporter(exclude_input_prompt=True).from_notebook_node(nb)[0]
        files[f"{path.parent.name}/{path.stem}.py"] = script.encode()
        missing += [f"{p.parent.name}/{p.name}" for p in freshness.figures(nb) if not p.exists()]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing: run `make report`")
    files |= {f"figures/{p.name}": p.read_bytes() for p in paths.folder("figures").glob("*.png")}
    author = {"author": f"{_name(firstname)} {_name(lastname)}", "id": id.strip()}
    files[f"{stem}.pdf"] = report(**author)
    files["supplement.pdf"] = report("supplement", **author)
    target = paths.folder(f"{stem}.zip")
    paths.write(target, _zip(files))
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
