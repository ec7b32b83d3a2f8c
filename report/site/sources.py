"""What Sphinx reads: the notebooks and documents of the project in the folders that they have here, so that their links
to each other hold, and beside them the pages of report/site/pages."""

import base64
import hashlib
import html
import importlib.metadata
import json
import re
from pathlib import Path

from lib import paths
from report import build

PAGES = Path(__file__).resolve().parent / "pages"
DOCS = ("docs/*.md",)
MADE = ("figures/*.png", "report/figures/*.svg", "report/*.pdf")  # in the smoke profile they lie in its folder
README = "README.md"  # the front page has its answer
CODE = (README, "lib/**/*.py", "report/*.py", "report/*.bib", "report/*.yml", "report/layout/*.*", "report/site/**/*.*")
PICTURES = "_static/pictures"
IMAGES = {"image/png": "png", "image/jpeg": "jpg", "image/gif": "gif", "image/webp": "webp", "image/svg+xml": "svg"}
WIDGET = "application/vnd.jupyter.widget-view+json"
EMBEDDED = re.compile(
    r'<img\b(?P<before>[^>]*?)\bsrc="data:(?P<kind>image/(?:png|jpeg|gif|webp));base64,(?P<data>[^"]*)"(?P<after>[^>]*)>'
)
MOVING = re.compile(r'(<figure class="picture-[^>]*>)(<img\b[^>]*>)(?=</figure>)')  # of course/interactive.py
# what the front page takes from README, by the first words of the paragraph
PARAGRAPHS = {"the answer": "**The answer.**", "two exceptions": "Two exceptions "}


def inputs() -> list[Path]:
    """Every file that the pages are made of."""
    here = [path for pattern in (*DOCS, *CODE) for path in paths.PROJECT.glob(pattern)]
    made = [path for name in MADE for path in paths.folder(".").glob(name)]
    found = {*here, *made, *map(build.executed, build.sources())}
    return sorted(path for path in found if path.is_file() and "__pycache__" not in path.parts)


def files() -> dict[str, bytes]:
    """The content of every file by its path from the source folder. Raises ValueError for a notebook that is missing or
    cannot be a page."""
    from report.site import article

    notebooks = build.sources()[: -len(build.DOCUMENTS)]
    if not notebooks:
        raise ValueError("there are no notebooks here: clone the project to build its web edition")
    found = {p.relative_to(PAGES).as_posix(): p.read_bytes() for p in sorted(PAGES.rglob("*.*")) if p.suffix != ".lua"}
    for home, patterns in ((paths.PROJECT, DOCS), (paths.folder("."), MADE)):
        found |= {p.relative_to(home).as_posix(): p.read_bytes() for name in patterns for p in sorted(home.glob(name))}
    found["index.md"] = front(found["index.md"].decode(), (paths.PROJECT / README).read_text(encoding="utf-8")).encode()
    found["_static/mathjax/tex-svg.js"] = mathjax().read_bytes()
    for source in notebooks:
        text, pictures = notebook(build.executed(source))
        found |= {f"notebooks/{source.name}": text.encode(), **pictures}
    for name in build.DOCUMENTS:
        found[f"report/{name}.md"] = article.page(name).encode()
    return found


def front(page: str, readme: str) -> str:
    """The front page with README's answer, so that the two cannot differ. Raises ValueError if README has none."""
    for name, opening in PARAGRAPHS.items():
        found = [paragraph for paragraph in readme.split("\n\n") if paragraph.startswith(opening)]
        if len(found) != 1:
            raise ValueError(f"the front page has {name} from {README}, in which one paragraph begins “{opening}”")
        page = page.replace(f"<!-- {name} -->", found[0])
    return page.replace("(#the-result)", "(#two-exceptions)")


def mathjax() -> Path:
    """The one file that typesets the formulas, without a network and without fonts."""
    package = importlib.metadata.distribution("sphinx-mathjax-offline")
    return Path(next(file for file in package.files if file.name == "tex-svg.js").locate())


def notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """An executed notebook for the site, and its pictures by their path: what is folded in JupyterLab is folded here
    under its title, pictures are files, and widgets, which need a kernel, are left out."""
    from report.notebooks import read

    nb, pictures, section = read(path), {}, ""
    nb.metadata = {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            section = (re.findall(r"^#+ +(.+?)$", cell.source, re.M) or [section])[-1]
        if cell.cell_type == "code":
            cell.metadata = _folded(cell)
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
            for output in cell.outputs:
                _shown(output.get("data", {}), f"A figure of the section “{section}”; it has no description.", pictures)
    return json.dumps(nb, ensure_ascii=False, indent=1, sort_keys=True) + "\n", pictures


def _shown(data: dict, alt: str, pictures: dict[str, bytes]) -> None:
    """Let an output show its pictures as files; alt is for one without a text of its own."""
    kind = next((kind for kind in IMAGES if kind in data), "")
    if kind and "text/html" not in data and "text/markdown" not in data:
        content = data[kind].encode() if kind == "image/svg+xml" else base64.b64decode(data[kind])
        data["text/html"] = _picture(f'<img alt="{html.escape(alt)}"', content, kind, ">", pictures)
    elif "text/html" in data:
        data["text/html"] = EMBEDDED.sub(
            lambda m: _picture(
                f"<img{m['before']}", base64.b64decode(m["data"]), m["kind"], m["after"] + ">", pictures
            ),
            data["text/html"],
        )
        # the picture is a box of its own within the figure: on a phone it moves, its sliders stay
        data["text/html"] = MOVING.sub(r'\1<div class="wide">\2</div>', data["text/html"])
    if "text/html" in data:
        for kind in IMAGES:
            data.pop(kind, None)


def _folded(cell) -> dict:
    """The metadata by which MyST folds a cell that another reader folds."""
    tags = [tag for tag in cell.metadata.get("tags", []) if not tag.startswith("hide-")]
    own, kept = cell.metadata.get("jupyter", {}), {*cell.metadata.get("tags", [])}
    title = re.match(r"#\s*@title\s+(.+)", cell.source)
    closed = own.get("source_hidden") or cell.metadata.get("hide_input") or {"hide-input", "setup"} & kept
    hidden = own.get("outputs_hidden") or "hide-output" in kept
    tags += ["hide-input"] * bool(closed) + ["hide-output"] * bool(hidden)
    shown = f"Code: {title[1].strip()}" if title else "Code"
    return {"tags": tags, "mystnb": {"code_prompt_show": shown, "code_prompt_hide": shown}}


def _picture(before: str, content: bytes, kind: str, after: str, pictures: dict[str, bytes]) -> str:
    """Add a picture to the files; its element, which leads to it in full size."""
    name = f"{hashlib.sha256(content).hexdigest()[:16]}.{IMAGES[kind]}"
    pictures[f"{PICTURES}/{name}"] = content
    size = ""
    if kind == "image/png":  # its head has both: so the page does not move when it appears
        width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
        size = f' width="{width}" height="{height}"'
    source = f"../{PICTURES}/{name}"
    return f'<a class="wide" href="{source}">{before.rstrip()} src="{source}"{size} loading="lazy"{after}</a>'
