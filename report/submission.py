"""The zip to hand in: code, figures, and the PDF under one's name."""

import io
import re
import unicodedata
import zipfile
from collections.abc import Collection
from pathlib import Path

from lib import paths
from report import build, colab, freshness

# folders whose files go into the zip, and what else somebody needs to run them
CODE = ("lib", "lib/heads", "lib/sets", "studies", "course", "benchmarks", "report", "report/layout", "report/site")
CODE += ("report/site/pages", "report/site/pages/_static", "tests")
SUFFIXES = (".py", ".js", ".mplstyle", ".typ", ".lua", ".yml", ".bib")
OTHERS = ("README.md", "LICENSE", "pyproject.toml", "uv.lock", "requirements.txt", "environment.yml")
OTHERS += ("docs/*.md", "studies/*.md", "results/*.jsonl", "results/*.csv", "results/embeddings/*.npz")
OTHERS += ("results/weights/*.safetensors",)
IN_THIS_ZIP = """\
## In this zip

`{stem}.pdf` is the report, `supplement.pdf` its supplement. `notebooks/` holds the notebooks as scripts, `figures/`
their figures, `results/` the record of every training, `tests/` the tests.

With Python 3.10 to 3.14, in the folder of this file:

```sh
python -m pip install -r requirements.txt         # on Linux 3 GB, in an environment of your own
python -m studies data                            # fetches the data sets, 0.4 GB, where they are missing
python notebooks/02_arcface_derivation.py         # runs a notebook's code, from the records, in about a minute
python -m pytest tests/test_losses.py             # the tests of the heads need no data, and minutes
```

The images are not in the zip. Files that are at hand already can be put where `python -m studies data` looks for them:

```
data/MNIST/raw/                       train-images-idx3-ubyte and the three others
data/cifar-10-batches-py/             data_batch_1 to data_batch_5, test_batch, batches.meta
data/omniglot-py/images_background/   a folder per alphabet, in it one per character
data/omniglot-py/images_evaluation/   the same
```

"""
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
    readme = files["README.md"].decode()
    missing = []
    for path in [
        *sorted(paths.folder("notebooks").glob("*.ipynb")),
        *(paths.folder("report") / f"{name}.ipynb" for name in build.DOCUMENTS),
    ]:
        nb = read(path)
        script = PythonExporter(exclude_input_prompt=True).from_notebook_node(nb)[0]
        files[f"{path.parent.name}/{path.stem}.py"] = for_a_terminal(script).encode()
        missing += [f"{p.parent.name}/{p.name}" for p in freshness.figures(nb) if not p.exists()]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing: run `make report`")
    files |= {f"figures/{p.name}": p.read_bytes() for p in paths.folder("figures").glob("*.png")}
    author = {"author": f"{_name(firstname)} {_name(lastname)}", "id": id.strip()}
    files[f"{stem}.pdf"] = report(**author)
    files["supplement.pdf"] = report("supplement", **author)
    files["README.md"] = readme_of_the_zip(readme, stem, files.keys()).encode()
    target = paths.folder(f"{stem}.zip")
    paths.write(target, _zip(files))
    return target


def for_a_terminal(script: str) -> str:
    """The script of a notebook, whose figures and sentences are shown by their text from the set-up cell on."""
    found_lib = colab.CELL.read_text(encoding="utf-8").splitlines()[-1]
    return script.replace(
        f"{found_lib}\n", f"{found_lib}\n\nfrom report import as_script  # shows text in a terminal\n", 1
    )


def readme_of_the_zip(readme: str, stem: str, files: Collection[str]) -> str:
    """The project's README without what only a clone can do, and with what the zip holds; a link to a file that is not
    in it leads to the file made from that, or is plain text."""
    intro, *rest = re.split(r"^(?=## )", readme, flags=re.M)
    intro = re.sub(r"^\* \*\*.*", "", intro, flags=re.M | re.S)  # its bullets speak of commands of a clone
    rest = [part for part in rest if not part.startswith(("## Run it\n", "## More\n"))]
    places = {"report/report.pdf": f"{stem}.pdf", "report/supplement.pdf": "supplement.pdf"}

    def there(link: re.Match) -> str:
        text, place = link.groups()
        place = places.get(place, re.sub(r"\.ipynb$", ".py", place))
        known = place.startswith(("http", "#")) or place.partition("#")[0] in files
        return f"[{text}]({place})" if known else text

    return re.sub(r"\[([^\[\]]*)\]\(([^()]+)\)", there, intro + IN_THIS_ZIP.format(stem=stem) + "".join(rest))


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
