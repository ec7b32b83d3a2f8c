"""Colab: the repository's address and the badges, written into notebooks, README and pyproject.toml."""

import re
from pathlib import Path

import nbformat

from lib import paths
from report.notebooks import read

BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
BADGES_START, BADGES_END = "<!-- badges: written by make colab -->", "<!-- badges: end -->"


def link(repo: str) -> list[Path]:
    """Write the repository's address and the Colab badges; returns the files that changed. All are
    written or, with a ValueError, none.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,38}/(?!\.+$)[A-Za-z0-9_.-]{1,100}", repo):
        raise ValueError(f"REPO {repo!r} is not owner/name: run `make colab REPO=owner/name`")
    notebooks = sorted((paths.PROJECT / "notebooks").glob("*.ipynb"))
    url = f"https://colab.research.google.com/github/{repo}/blob/main/notebooks"
    badges = {path: f"[![Open in Colab]({BADGE})]({url}/{path.name})" for path in notebooks}
    texts = {}
    for path in [*notebooks, paths.PROJECT / "report" / "report.ipynb"]:
        nb = read(path)
        setup = next((c for c in nb.cells if re.search(r'^REPO = ".*?"', c.source, re.M)), None)
        if setup is None:
            raise ValueError(f'{path.name} has no set-up cell (the line REPO = ""): copy that of another notebook')
        setup.source = re.sub(r'^REPO = ".*?"', f'REPO = "https://github.com/{repo}"', setup.source, flags=re.M)
        title = next((c for c in nb.cells if c.cell_type == "markdown"), None)
        if path in badges and title:  # the report goes on paper
            prose = "\n".join(line for line in title.source.split("\n") if BADGE not in line)
            title.source = f"{badges[path]}\n\n{prose.strip()}"
        texts[path] = nbformat.writes(nb) + "\n"
    readme, pyproject = paths.PROJECT / "README.md", paths.PROJECT / "pyproject.toml"
    texts[readme] = _with_badges(readme.read_text(encoding="utf-8"), [f"- {p.stem} {b}" for p, b in badges.items()])
    texts[pyproject] = _with_url(pyproject.read_text(encoding="utf-8"), f'Repository = "https://github.com/{repo}"')
    changed = [path for path, text in texts.items() if path.read_text(encoding="utf-8") != text]
    for path in changed:
        paths.write(path, texts[path])
    return changed


def _with_badges(readme: str, lines: list[str]) -> str:
    """The list between the README's markers, which go to its end if there are none."""
    if BADGES_START not in readme:
        readme = f"{readme.rstrip()}\n\n{BADGES_START}\n{BADGES_END}\n"
    before, after = readme.split(BADGES_START, 1)
    return "\n".join([before + BADGES_START, *lines, BADGES_END + after.split(BADGES_END, 1)[-1]])


def _with_url(pyproject: str, line: str) -> str:
    if "[project.urls]" not in pyproject:
        return pyproject.replace("[build-system]", f"[project.urls]\n{line}\n\n[build-system]", 1)
    return re.sub(r"^Repository = .*$", line, pyproject, flags=re.M)
