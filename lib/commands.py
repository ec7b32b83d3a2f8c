"""The commands behind the Makefile: ``python -m lib.commands NAME ...``. Errors are one line each."""

import inspect
import sys
from pathlib import Path

from lib import export


def data() -> str:
    from lib import data  # imports torch, which takes seconds

    return "\n".join(f"data/ holds {name}: {len(data.load(name).test)} test images" for name in ("mnist", "cifar10"))


def execute(notebook: str) -> None:
    path = Path(notebook).resolve()
    export.execute(path, export.folder(path.parent.name) / path.name)


def report() -> None:
    export.write(export.folder("report") / "report.pdf", export.report())


def check_name(lastname: str, firstname: str, id: str) -> str:
    return f"{export.submission_name(lastname, firstname, id)}.zip is the name"


def submission(lastname: str, firstname: str, id: str) -> str:
    return f"wrote {export.submission(lastname, firstname, id)}"


def summary(since: str, log: str) -> str:
    """What was written after the file since was, and the lines that the runs left in log."""
    places = [export.folder(name) for name in ("notebooks", "results", "figures", "report")]
    paths = [p for place in places for p in sorted(place.rglob("*.*")) if ".ipynb_checkpoints" not in p.parts]
    paths = [p for p in paths if p.suffix != ".lock" and p.stat().st_mtime >= Path(since).stat().st_mtime]
    lines = [f"wrote {p.relative_to(export.PROJECT)}" for p in paths]
    runs = Path(log).read_text(encoding="utf-8").splitlines() if Path(log).exists() else []
    return "\n".join([*(lines or ["nothing was out of date"]), *dict.fromkeys(runs)])


COMMANDS = {function.__name__: function for function in (data, execute, report, check_name, submission, summary)}


def main(arguments: list[str]) -> None:
    needed = {name: [*inspect.signature(function).parameters] for name, function in COMMANDS.items()}
    function = COMMANDS.get(arguments[0] if arguments else "")
    if not function or len(arguments) - 1 != len(needed[arguments[0]]):
        usage = "; ".join(" ".join([name, *names]) for name, names in needed.items())
        sys.exit(f"usage: python -m lib.commands COMMAND, one of {usage}")
    try:
        if text := function(*arguments[1:]):
            print(text, flush=True)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: no half-written file is left")


if __name__ == "__main__":
    main(sys.argv[1:])
