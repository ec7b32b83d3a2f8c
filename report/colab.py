"""Colab: the repository's address and the badges, written into notebooks, README and pyproject.toml; and what the
set-up cell does there. Standard library only."""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from lib import paths
from report import build

BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
CELL = Path(__file__).with_name("set_up_cell.py")
ADDRESS = re.compile(r'^REPO = ".*?"', re.M)


def link(repo: str = "") -> list[Path]:
    """Write the set-up cell with the repository's address, and the Colab badges; returns the files that changed. repo
    is owner/name or an address on GitHub, by default that of the git remote origin. All are written or, with a
    ValueError, none.
    """
    repo = owner_and_name(repo or _git("remote", "get-url", "origin"))
    branch = _git("symbolic-ref", "--short", "refs/remotes/origin/HEAD").removeprefix("origin/") or "main"
    notebooks = sorted((paths.PROJECT / "notebooks").glob("*.ipynb"))
    url = f"https://colab.research.google.com/github/{repo}/blob/{branch}/notebooks"
    badges = {path: f"[![Open in Colab]({BADGE})]({url}/{path.name})" for path in notebooks}
    cell = ADDRESS.sub(f'REPO = "https://github.com/{repo}"', CELL.read_text(encoding="utf-8").rstrip())
    texts = {path: with_cell(path, cell, badges.get(path)) for path in [*notebooks, *_documents()]}
    readme, pyproject = paths.PROJECT / "README.md", paths.PROJECT / "pyproject.toml"
    texts[readme] = _with_badges(readme.read_text(encoding="utf-8"), badges)
    texts[pyproject] = _with_url(pyproject.read_text(encoding="utf-8"), f'Repository = "https://github.com/{repo}"')
    changed = [path for path, text in texts.items() if path.read_text(encoding="utf-8") != text]
    for path in changed:
        paths.write(path, texts[path])
    return changed


def owner_and_name(repo: str) -> str:
    """owner/name of an address on GitHub as it is pasted. Raises ValueError for what is none."""
    short = re.sub(r"^(\w+://)?([^/@]+@)?(www\.)?github\.com[/:]", "", repo.strip())
    short = re.sub(r"/(tree|blob)/.*", "", short).rstrip("/").removesuffix(".git")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,38}/(?!\.+$)[A-Za-z0-9_.-]{1,100}", short):
        cause = f"REPO {repo!r} is no repository on GitHub" if repo else "there is no git remote origin"
        raise ValueError(f"{cause}: run `make colab REPO=owner/name`")
    return short


def address() -> str:
    """The repository's address on GitHub: that in pyproject.toml, which ``link`` writes, else that of the git remote
    origin; "" if there is none."""
    text = (paths.PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    known = re.search(r'^Repository = "(.*)"$', text, re.M)
    try:
        return "https://github.com/" + owner_and_name(known[1] if known else _git("remote", "get-url", "origin"))
    except ValueError:
        return ""


def with_cell(path: Path, cell: str, badge: str | None = None) -> str:
    """The notebook with this set-up cell, and the badge below its title. Raises ValueError if it has no such cell."""
    try:
        nb = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ValueError(f"{path.name} is not a notebook: restore it") from None
    sources = {number: "".join(part["source"]) for number, part in enumerate(nb["cells"])}
    found = next((n for n, s in sources.items() if nb["cells"][n]["cell_type"] == "code" and ADDRESS.search(s)), None)
    if found is None:
        raise ValueError(f'{path.name} has no set-up cell (the line REPO = ""): copy that of another notebook')
    nb["cells"][found]["source"] = cell.splitlines(True)
    title = next((n for n in sources if nb["cells"][n]["cell_type"] == "markdown"), None)
    if badge and title is not None:
        nb["cells"][title]["source"] = _with_badge(sources[title], badge).splitlines(True)
    return json.dumps(nb, ensure_ascii=False, indent=1, sort_keys=True) + "\n"  # as nbformat does


def _with_badge(text: str, badge: str) -> str:
    """Markdown with the badge below its title, in place of an earlier one; a notebook begins with its title."""
    text = re.sub(rf"\n*^.*{re.escape(BADGE)}.*$\n*", "\n\n", text, flags=re.M).strip()
    title = re.search(r"^# .+$", text, re.M)
    end = title.end() if title else 0
    return "\n\n".join(part for part in (text[:end], badge, text[end:].lstrip("\n")) if part)


def _documents() -> list[Path]:
    return [paths.PROJECT / "report" / f"{name}.ipynb" for name in build.DOCUMENTS]


def _with_badges(readme: str, badges: dict[Path, str]) -> str:
    """A badge behind each notebook's link in the table of notebooks, in place of an earlier one."""
    for path, badge in badges.items():
        row = re.compile(rf"^(\| \[[^]]*\]\(notebooks/{re.escape(path.name)}\))[^|]*\|", re.M)
        readme = row.sub(lambda found, badge=badge: f"{found[1]} {badge} |", readme)
    return readme


def _with_url(pyproject: str, line: str) -> str:
    if "[project.urls]" not in pyproject:
        return pyproject.replace("[dependency-groups]", f"[project.urls]\n{line}\n\n[dependency-groups]", 1)
    return re.sub(r"^Repository = .*$", line, pyproject, flags=re.M)


def _git(*arguments: str) -> str:
    """What git says here; nothing if it fails."""
    try:
        done = subprocess.run(["git", *arguments], cwd=paths.PROJECT, capture_output=True, text=True, encoding="utf-8")
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


# ---------------------------------------------------------------- on Colab


def install(drive: str = "") -> None:
    """Install what the studies need and Colab lacks, say which GPU there is, and keep the records on Drive if a folder
    there is given. Raises OSError if pip fails, ValueError if PyTorch is too old."""
    missing, pins = lacking()
    if old := too_old():
        raise ValueError(
            f"PyTorch is too old here ({', '.join(old)}) and is not replaced: choose the latest runtime version "
            "(Runtime > Change runtime type), then run this cell again"
        )
    if missing:
        print(f"installing {', '.join(missing)}", flush=True)
        with tempfile.TemporaryDirectory() as folder:  # what is there stays as it is
            constraints = Path(folder, "constraints.txt")
            constraints.write_text("\n".join(pins), encoding="utf-8")
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(constraints), *missing]
            if subprocess.run(pip).returncode:
                raise OSError("pip failed (the reason is above)")
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        gpu = subprocess.run(query, capture_output=True, text=True, encoding="utf-8").stdout.strip()
    except OSError:
        gpu = ""
    print(f"GPU: {gpu}" if gpu else "no GPU: Runtime > Change runtime type offers one; it is needed for training only")
    if drive:
        print(f"records are kept in {keep_on_drive(Path(drive))}")


def lacking() -> tuple[list[str], list[str]]:
    """The studies' requirements that are not installed at all; and the versions of all that is installed, as pins."""
    installed = _installed()
    missing = [requirement for requirement in _requirements() if _package(requirement) not in installed]
    return missing, [f"{name}=={version}" for name, version in installed.items() if name and version]


def too_old() -> list[str]:
    """What is installed of torch and torchvision but older than the studies need. These two are never replaced: Colab
    has them built for its GPUs, and other packages beside them that need just these."""
    installed, floors = _installed(), [one for one in _requirements() if _package(one) in ("torch", "torchvision")]
    return [
        f"{_package(one)} {installed[_package(one)]}, needed is {one}"
        for one in floors
        if _package(one) in installed and _numbers(installed[_package(one)]) < _numbers(one.partition(">=")[2])
    ]


def _requirements() -> list[str]:
    """What pyproject.toml asks for, for the studies."""
    text = (paths.PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    torch = re.search(r'^dependencies = \["(.*?)"\]', text, re.M)[1]
    group = re.search(r"^study = \[$(.*?)^\]$", text, re.M | re.S)[1]
    return [torch, *re.findall(r'"(.*?)"', group)]


def _installed() -> dict[str, str]:
    """The version of every package, the one that is imported first where there are several."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        found.setdefault(_canonical(distribution.metadata["Name"] or ""), distribution.version)
    return found


def _package(requirement: str) -> str:
    return _canonical(re.split(r"[<>=!~\[ ;]", requirement)[0])


def _numbers(version: str) -> list[int]:
    """2.9.0+cu126 as [2, 9]: the release, which alone counts."""
    return [int(part) for part in re.findall(r"\d+", version)[:2]]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def keep_on_drive(drive: Path) -> Path:
    """Let results/ be a folder on Drive, which gets the lines of the records here that it lacks. Returns it."""
    here, there = paths.PROJECT / "results", drive / "angular-margin-study" / "results"
    if here.is_symlink():
        return there
    for path in sorted(p for p in here.rglob("*") if p.is_file()):
        copy = there / path.relative_to(here)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".jsonl" and copy.exists():
            kept = copy.read_bytes().splitlines(True)
            new = [line for line in path.read_bytes().splitlines(True) if line not in set(kept)]
            paths.write(copy, b"".join([*new, *kept]))  # the newest record of a run counts: those made on Colab
        else:
            shutil.copyfile(path, copy)
    here.rename(here.with_name("results_of_the_clone"))
    here.symlink_to(there, target_is_directory=True)
    return there
