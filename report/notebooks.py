"""Read and execute notebooks. Whatever a user can get wrong raises ValueError or OSError with one line that names the
cause and the cure."""

import base64
import io
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from PIL import Image
from tqdm import tqdm

from lib import paths
from report import freshness, machine, reads

# what a progress bar of tqdm says of time, as in "[00:29<00:00, 10.56step/s, loss=0.003]"
_TIME = r"\d[\d:]*<[\d:?]+, *[\d.?]+ ?\w+/\w+"
TIMES = re.compile(rf" \[{_TIME}\]|(?<=\[){_TIME}, ")
PNG = re.compile(r"(?<=data:image/png;base64,)[A-Za-z0-9+/]+=*")


def read(notebook: Path) -> nbformat.NotebookNode:
    """The notebook. Raises ValueError if there is none."""
    try:
        return nbformat.read(notebook, as_version=4)
    except FileNotFoundError:
        raise ValueError(f"{notebook} is missing: run `make report`") from None
    except (ValueError, AttributeError, KeyError) as error:
        raise ValueError(f"{notebook} is not a notebook ({line(error)}): restore it") from None


def line(message) -> str:
    text = " ".join(str(message).split())
    return text if len(text) <= 300 else text[:299] + "…"


def run_cells(notebook: Path, destination: Path) -> None:
    """Run a notebook from a clean kernel in its own folder and write the result to destination, with the hashes of
    what it was executed from.

    Raises ValueError with the notebook, the section and the exception of a failing cell.
    """
    nb = read(notebook)
    headings, current = sections(nb), 0
    client = NotebookClient(nb, timeout=None, kernel_name="python3", coalesce_streams=True)
    client.resources = {"metadata": {"path": str(notebook.parent)}}

    def show(cell, cell_index):
        nonlocal current
        current = cell_index
        bar.update(cell_index + 1 - bar.n)
        bar.set_postfix_str(headings[cell_index])

    client.on_cell_start = show
    start = time.time()
    # off a terminal, where each of its steps would be a line, the bar is left out
    bar = tqdm(total=len(nb.cells), unit="cell", desc=notebook.stem, file=sys.stdout, disable=None)
    with bar, tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "read")
        first = f"__import__('runpy').run_path({reads.__file__!r})['note']({str(log)!r})"
        client.extra_arguments = ["--log-level=ERROR", f"--IPKernelApp.exec_lines={first}"]
        try:
            client.execute()
        except (CellExecutionError, DeadKernelError) as error:
            cause = f"{error.ename}: {error.evalue}" if isinstance(error, CellExecutionError) else "Kernel died"
            if getattr(error, "ename", "") == "NoneType":  # while a result was shown; only the traceback names it
                cause = re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip().splitlines()[-1]
            place = f"{notebook.name}, section {headings[current]!r}"
            raise ValueError(f"{place}: {machine.of_kernel(line(cause))}") from None
        files = log.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    for cell in nb.cells:
        cell.metadata.pop("execution", None)  # time stamps
        for output in cell.get("outputs", ()):
            _quantise(output.get("data", {}))
            if output.output_type == "stream":
                output.text = without_times(output.text)
    nb.metadata[freshness.KEY] = freshness.stamp(nb, set(files))
    paths.write(destination, nbformat.writes(nb) + "\n")
    took = f"{time.time() - start:.0f}"
    profile = "smoke" if paths.smoke() else "full"
    paths.write(paths.PROJECT / ".build" / profile / "seconds" / notebook.stem, took)  # for course.form
    if bar.disable:
        print(f"{notebook.stem}: executed in {took} s")


def without_times(text: str) -> str:
    """Without the times in progress bars: no two machines take the same, and a committed file changes by its results
    alone."""
    return TIMES.sub("", text)


def _quantise(data: dict) -> None:
    """Store an output's PNGs, also those within its HTML, as ``_in_256_colours``."""
    if "image/png" in data:
        data["image/png"] = _in_256_colours(data["image/png"])
    if "text/html" in data:
        data["text/html"] = PNG.sub(lambda found: _in_256_colours(found[0]), data["text/html"])


def _in_256_colours(png: str) -> str:
    """A PNG in base64 as ``lib.plots.save`` writes it: a third as large, and it looks the same. One that has so few
    colours already, is transparent somewhere or is damaged stays as it is."""
    try:
        image, file = Image.open(io.BytesIO(base64.b64decode(png))), io.BytesIO()
    except (ValueError, OSError):  # no image
        return png
    if image.mode == "P" or image.convert("RGBA").getextrema()[3][0] < 255:
        return png
    small = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def sections(nb) -> list[str]:
    """The heading above each cell."""
    names, current = [], "before the first heading"
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            current = (re.findall(r"^#+ +(.+?)(?: *\{.*\})?$", cell.source, re.M) or [current])[-1]
        names.append(current)
    return names
