"""How much of a course a notebook is: ``python -m course.form`` measures all of them, and says how many seconds the
last build took for each that it executed. It takes a few seconds.

A folded cell carries the marks of all who fold: ``jupyter.source_hidden`` (JupyterLab), ``cellView: form`` with a
first line ``# @title ...`` (Colab), and the tag ``hide-input`` (Jupyter Book and MyST). The solution of an exercise is
Markdown inside ``<details>``, which every reader folds: its ``python`` blocks are run by tests/test_course.py behind
the notebook's cells, and must print what the ``text`` block behind them shows.
"""

import argparse
import itertools
import re
import statistics
import sys
from pathlib import Path

import nbformat
import pandas as pd

from lib import paths

SOLUTION = re.compile(r"<details>\s*<summary>Solution</summary>(.*?)</details>", re.S)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def folded(cell) -> bool:
    """Whether a code cell is folded, in all of the ways at once. Raises ValueError for one that is in some only."""
    marks = (
        cell.metadata.get("jupyter", {}).get("source_hidden") is True,
        cell.metadata.get("cellView") == "form",
        "hide-input" in cell.metadata.get("tags", []),
        cell.source.startswith("# @title "),
    )
    if len(set(marks)) > 1:
        names = ("source_hidden", "cellView: form", "the tag hide-input", "a first line # @title")
        lacking = [name for name, there in zip(names, marks, strict=True) if not there]
        raise ValueError(f"cell {cell.get('id')} is folded only in part: it lacks {', '.join(lacking)}")
    return marks[0]


def solutions(cell) -> list[list[tuple[str, str]]]:
    """The solutions in a Markdown cell, each a list of (python, what it prints)."""
    found = []
    for text in SOLUTION.findall(cell.source):
        blocks = [*BLOCK.findall(text), ("", "")]
        code = [(a, b) for a, b in itertools.pairwise(blocks) if a[0] == "python"]
        found.append([(a[1], b[1] if b[0] == "text" else "") for a, b in code])
    return found


def alternatives(cell) -> list[str]:
    """The alternative text of every figure in a cell's outputs: "" where there is none."""
    texts = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        images = re.findall(r"<img\b[^>]*>", "".join(data.get("text/html", "")))
        texts += [(re.findall(r'\balt="([^"]*)"', image) or [""])[0] for image in images]
        if not images and any(kind.startswith("image/") for kind in data):
            texts.append("")
    return texts


def measures(path: Path) -> dict[str, float]:
    """The measures of one notebook, by name; lengths in characters, without the blocks of code in Markdown."""
    cells = nbformat.read(path, 4).cells
    markdown = [c for c in cells if c.cell_type == "markdown"]
    shown = [c.source for c in cells if c.cell_type == "code" and c.source.strip() and not folded(c)]
    texts = [text for c in cells for text in alternatives(c)]
    prose, code = sum(len(BLOCK.sub("", c.source)) for c in markdown), sum(map(len, shown))
    return {
        "prose / open code": round(prose / max(code, 1), 2),
        "open cells": len(shown),
        "their median lines": statistics.median([len(source.splitlines()) for source in shown] or [0]),
        "longest open line": max([len(line) for source in shown for line in source.splitlines()] or [0]),
        "exercises": len(re.findall(r"^#+ Exercise \d", "\n".join(c.source for c in markdown), re.M)),
        "solutions": sum(len(solutions(c)) for c in markdown),
        "figures": len(texts),
        "without alternative text": sum(not text for text in texts),
    }


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m course.form", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    try:
        profile = "smoke" if paths.smoke() else "full"
        paths.retrain()  # a wrong setting stops here, as everywhere
    except ValueError as error:
        sys.exit(f"error: {error}")
    notebooks = sorted((paths.PROJECT / "notebooks").glob("*.ipynb"))
    table = pd.DataFrame({path.stem: measures(path) for path in notebooks}).T
    took = paths.PROJECT / ".build" / profile / "seconds"
    files = [took / name for name in table.index]
    table["seconds"] = [file.read_text(encoding="utf-8") if file.exists() else "" for file in files]
    print(table.to_markdown(floatfmt="g"))


if __name__ == "__main__":
    main()
