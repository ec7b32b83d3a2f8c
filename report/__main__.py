"""What the Makefile calls: ``python -m report COMMAND ...``. Errors are one line each."""

import argparse
import sys
from pathlib import Path

from lib import paths


def execute(notebook: str) -> None:
    """Run a notebook from a clean kernel and write it, executed."""
    from report import notebooks

    path = Path(notebook).resolve()
    notebooks.execute(path, paths.folder(path.parent.name) / path.name)


def pdf() -> None:
    """Write report/report.pdf from the executed report notebook."""
    from report import pdf

    paths.write(paths.folder("report") / "report.pdf", pdf.report())


def check_name(lastname: str, firstname: str, id: str) -> None:
    """Say how the zip to hand in will be called."""
    from report import submission

    print(f"{submission.submission_name(lastname, firstname, id)}.zip is the name")


def submission(lastname: str, firstname: str, id: str) -> None:
    """Write the zip to hand in."""
    from report import submission

    print(f"wrote {submission.submission(lastname, firstname, id)}")


def colab(repo: str) -> None:
    """Write the repository's address (owner/name) and the Colab badges into notebooks, README and pyproject.toml."""
    from report import colab

    print("\n".join(f"wrote {path}" for path in colab.link(repo)) or "nothing to change")


def summary(since: str, log: str) -> None:
    """Say what was written after the file since was, and print the lines that the runs left in log."""
    places = [paths.folder(name) for name in ("notebooks", "results", "figures", "report")]
    files = [p for place in places for p in sorted(place.rglob("*.*")) if ".ipynb_checkpoints" not in p.parts]
    files = [p for p in files if p.suffix not in (".lock", ".pyc") and p.stat().st_mtime >= Path(since).stat().st_mtime]
    lines = [f"wrote {p.relative_to(paths.PROJECT)}" for p in files]
    runs = Path(log).read_text(encoding="utf-8").splitlines() if Path(log).exists() else []
    print("\n".join([*(lines or ["nothing was out of date"]), *dict.fromkeys(runs)]))


COMMANDS = {
    execute: ("notebook",), pdf: (), check_name: ("lastname", "firstname", "id"),
    submission: ("lastname", "firstname", "id"), colab: ("repo",), summary: ("since", "log"),
}  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m report", description="Build what is handed in.")
    parser.error = lambda message: sys.exit(f"error: {message}")  # in one line
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for function, names in COMMANDS.items():
        command = commands.add_parser(function.__name__, help=function.__doc__, description=function.__doc__)
        command.set_defaults(function=function)
        command.error = parser.error
        for name in names:
            command.add_argument(name)
    options = vars(parser.parse_args(arguments))
    function = options.pop("function")
    try:
        paths.smoke(), paths.retrain()  # a wrong setting stops before anything is written
        function(**options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: no half-written file is left")


if __name__ == "__main__":
    main()
