"""The web edition: notebooks, report and a reference of lib as pages that need neither a network nor a kernel."""

import hashlib
import importlib.metadata
import shutil
from pathlib import Path

from lib import paths
from report import colab
from report.site import sources

TOOLS = ("sphinx", "myst-nb", "myst-parser", "furo")


def build() -> list[str]:
    """Write the site to .build/site/, in the smoke profile to .smoke/site/; returns what was done. Raises ValueError
    where a page cannot be made or Sphinx warns, of a link that leads nowhere for one."""
    home = paths.PROJECT / (".smoke" if paths.smoke() else ".build")
    return write_site(home / "site", home / "site_source")


def write_site(target: Path, source: Path) -> list[str]:
    """Write the site to target, from files that are laid out in source; only what has changed, if both are there."""
    repository, start = colab.address(), target / "index.html"
    mark, now = source.with_name(f"{source.name}.hash"), _digest(repository)
    if start.exists() and mark.exists() and mark.read_text(encoding="utf-8") == now:
        return [f"nothing has changed: open {_shown(start)}"]
    mark.unlink(missing_ok=True)
    if _laid_out(sources.files(), source):  # Sphinx does not remove the page of a file that has gone
        shutil.rmtree(target, ignore_errors=True)
    _sphinx(source, target, repository)
    mark.write_text(now, encoding="utf-8")
    return [f"wrote {_shown(target)}: open {_shown(start)}"]


def _digest(repository: str) -> str:
    """A hash of all that the pages are made of."""
    parts = [*(f"{name} {importlib.metadata.version(name)}" for name in TOOLS), repository]
    for path in sources.inputs():
        parts.append(f"{path.relative_to(paths.PROJECT).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _laid_out(files: dict[str, bytes], source: Path) -> list[Path]:
    """Write the files that differ from those in source; removes and returns those that are no longer among them."""
    gone = [path for path in source.rglob("*") if path.is_file() and path.relative_to(source).as_posix() not in files]
    for path in gone:
        path.unlink()
    for name, content in files.items():
        path = source / name
        if not path.exists() or path.read_bytes() != content:  # Sphinx reads anew what is newer
            paths.write(path, content)
    return gone


def _sphinx(source: Path, target: Path, repository: str) -> None:
    from sphinx.cmd.build import main

    options = ["-q", "--fail-on-warning", "--keep-going", "-b", "html"]
    options += ["-d", str(source.with_name(f"{source.name}.read")), "-D", f"site_repository={repository}"]
    if main([*options, str(source), str(target)]):
        raise ValueError("the site is not whole (what is wrong with it is above): mend that and call it again")


def _shown(path: Path) -> str:
    return path.relative_to(paths.PROJECT).as_posix() if path.is_relative_to(paths.PROJECT) else str(path)
