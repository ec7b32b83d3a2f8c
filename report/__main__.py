"""Build what is handed in, and set up what that needs: python -m report COMMAND (make knows the same commands).

Only Python 3.10 to 3.14 has to be there. A command sets up .venv with the packages that it needs, or takes the active
conda or virtual environment. Behind each command stands how long it takes, seconds to hours. Errors are one line each.
"""

import sys

if not (3, 10) <= sys.version_info < (3, 15):  # for a newer one the locked packages have no wheels
    sys.exit("error: Python 3.10 to 3.14 is needed, this is {}.{}: call one of these".format(*sys.version_info))

import argparse
import os
import shutil
from pathlib import Path

from lib import paths
from report import build as building
from report import environment, machine
from report import submission as naming

ALL = {"study", "report", "notebooks", "dev", "site"}


def setup() -> None:
    """Fill .venv with all packages, so that notebooks, studies and tests run (3 GB to download; half a minute to
    minutes). TORCH=cpu or TORCH=gpu chooses PyTorch's build."""
    print("everything is installed")


def build(all: bool) -> None:
    """Execute the notebooks that are out of date and write report.pdf and supplement.pdf (seconds if none is, some ten
    minutes for all; PROFILE=smoke: everything in miniature in .smoke/; RETRAIN=1: train the recorded runs anew,
    hours)."""
    print("\n".join(building.build(all)))


def status() -> None:
    """List the notebooks that are out of date, and why (a second)."""
    reasons = building.stale()
    print("\n".join(f"{source.stem}: {', '.join(why)}" for source, why in reasons.items()) or "nothing is out of date")
    sys.exit(bool(reasons))


def submission(lastname: str, firstname: str, id: str) -> None:
    """Build what is out of date, then write the zip to hand in: code, records, figures, and the PDF with your name
    (half a minute if nothing is out of date)."""
    print("\n".join(building.build()))
    print(f"wrote {naming.submission(lastname, firstname, id).name}")


def check_name(lastname: str, firstname: str, id: str) -> None:
    """Say how the zip to hand in will be called (a second)."""
    print(f"{naming.submission_name(lastname, firstname, id)}.zip is the name")


def pdf() -> None:
    """Write report.pdf and supplement.pdf from their executed notebooks in report/ (ten seconds)."""
    building.pdfs()


def site() -> None:
    """Write the web edition to .build/site/: notebooks, report and the reference of lib as pages that need no network
    (half a minute; seconds if little has changed)."""
    from report import site

    print("\n".join(site.build()))


def execute(notebook: str) -> None:
    """Execute one notebook from a clean kernel and write it (seconds to minutes)."""
    from report import notebooks

    path = Path(notebook).resolve()
    notebooks.run_cells(path, paths.folder(path.parent.name) / path.name)


def lab(*others: str) -> None:
    """Open JupyterLab; further options go to it (it runs until Ctrl-C)."""
    root = ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # in a container one often is
    _call("jupyter", "lab", *root, *others)


def test(*others: str) -> None:
    """Style, types, spelling and tests; further options go to pytest (some minutes; nothing is downloaded)."""
    _call("ruff", "check", ".")
    _call("mypy")
    _call("codespell_lib")
    _call("pytest", *(others or ("-n", "auto", "--maxprocesses=4")))


def study(*others: str) -> None:
    """Train what the studies lack; further options go to python -m studies (hours on a CPU; its --list tells)."""
    _call("studies", "--fetch", *others)  # which looks at the options first


def bench() -> None:
    """Measure time and memory of the heads, operations of a step, images per second, runs at once (minutes)."""
    _call("studies", "data")
    for name in ("head_costs", "operations", "throughput", "together"):
        _call(f"benchmarks.{name}")


def colab(repo: str) -> None:
    """Write the repository's address, or that of its git remote, and the Colab badges into notebooks, README and
    pyproject.toml (a second)."""
    from report import colab

    print("\n".join(f"wrote {path.relative_to(paths.PROJECT)}" for path in colab.link(repo)) or "nothing to change")


def on_colab(drive: str) -> None:
    """What the set-up cell calls on Colab: install what is missing there, and keep the records in a folder of your
    Drive if one is given (seconds)."""
    from report import colab

    colab.install(drive)


def clean() -> None:
    """Remove the smoke profile's files and all caches (a second)."""
    for name in (".build", ".smoke", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis"):
        shutil.rmtree(paths.PROJECT / name, ignore_errors=True)
    for part in ("lib", "studies", "report", "benchmarks", "tests"):
        for folder in (paths.PROJECT / part).rglob("__pycache__"):
            shutil.rmtree(folder, ignore_errors=True)


def _call(module: str, *arguments: str) -> None:
    """Run a module here; it has said itself what went wrong."""
    code = machine.call([sys.executable, "-m", module, *arguments], cwd=paths.PROJECT)
    if code:
        sys.exit(code)


# each command with the groups of packages that it needs to be set up
NAME = ("lastname", "firstname", "id")
COMMANDS = {
    build: {"report"}, submission: {"report"}, test: ALL, lab: ALL - {"dev", "site"}, setup: ALL, study: {"study"},
    bench: {"study"}, site: {"report", "study", "site"}, status: set(), colab: set(), clean: set(), check_name: set(),
    pdf: set(), execute: set(), on_colab: set(),
}  # fmt: skip
ARGUMENTS = {submission: NAME, check_name: NAME, execute: ("notebook",)}


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(
        prog="python -m report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    main.error = lambda message: sys.exit(f"error: {message}")  # in one line
    commands = main.add_subparsers(required=True, metavar="COMMAND")
    for function in COMMANDS:
        text = " ".join(function.__doc__.split())
        command = commands.add_parser(function.__name__, help=text, description=text)
        command.set_defaults(function=function)
        command.error = main.error
        for name in ARGUMENTS.get(function, ()):
            command.add_argument(name)
        if function is build:
            command.add_argument("--all", action="store_true", help="execute all notebooks again")
        if function is colab:
            command.add_argument("repo", nargs="?", default="", help="owner/name or the full address")
        if function is on_colab:
            command.add_argument("--drive", default="", help="a folder of your Drive")
    return main


def main(arguments: list[str] | None = None) -> None:
    machine.any_letter()
    known = parser()
    options, others = known.parse_known_args(arguments)
    options = vars(options)
    function = options.pop("function")
    if others and function not in (lab, test, study):
        known.error(f"unrecognized arguments: {' '.join(others)}")
    try:
        paths.smoke(), paths.retrain()  # a wrong setting stops before anything is written
        machine.home()
        groups = COMMANDS[function]
        if function is submission:
            naming.submission_name(**options)
        if function is site:
            environment.at_least(environment.SITE, "the web edition")
        if function in (build, status, submission, pdf, site):
            building.check_sources()
        if function in (build, submission) and building.stale(options.get("all", False)):
            groups = ALL - {"dev", "site"}
        if groups:
            environment.enter(groups)
        function(*others, **options)
    except KeyboardInterrupt:
        sys.exit("interrupted: no half-written file is left")
    except Exception as error:
        said = machine.explained(error)  # without :=, for Python 3.6 reads all of this file before it stops above
        if said:
            sys.exit(f"error: {said}")
        raise


if __name__ == "__main__":
    main()
