"""What a notebook was executed from, and whether that has changed since.

Executing a notebook writes into its metadata the hash of its code cells, of the project's modules and records that its
kernel read, and of the figures that it saved. So a clone knows what is out of date, whatever the times of its files.
Standard library only.
"""

import ast
import hashlib
import io
import json
import re
import tokenize
from importlib.util import source_from_cache
from pathlib import Path

from lib import paths

KEY = "executed_from"
CELLS = "its code cells"
ADDRESS = re.compile(r'^REPO = ".*?"', re.M)  # the set-up cell has it: that cell finds lib and shows nothing
FIGURE = re.compile(r"""(?:plots\.save|show)\(\s*\w+,\s*["']([\w.-]+)["']""")
RECORDS = (".jsonl", ".npz")  # runs, and embeddings that are kept of some
# what a kernel reads there is no source of what a notebook shows, or the notebook's own product
NO_INPUTS = ("data", "figures", "notebooks", "report", "tests", "your_data")


def code_cells(nb: dict) -> list[str]:
    """The sources of the code cells, without the set-up cell."""
    sources = ["".join(cell["source"]) for cell in nb["cells"] if cell["cell_type"] == "code"]
    return [source for source in sources if not ADDRESS.search(source)]


def figures(nb: dict) -> list[Path]:
    """The figures that the notebook saves."""
    return [paths.folder("figures") / f"{name}.png" for name in FIGURE.findall("\n".join(code_cells(nb)))]


def inputs(read: set[str]) -> set[Path]:
    """The modules, records and styles of the project among the files that a kernel has read."""
    found = set()
    for name in read:
        path = Path(name)
        if path.suffix == ".pyc":
            path = Path(source_from_cache(name))
        if not path.is_relative_to(paths.PROJECT):
            continue
        parts = path.relative_to(paths.PROJECT).parts
        if parts[0] == ".smoke":
            parts = parts[1:]
        if parts[0].endswith(".egg-info"):  # pip's, which a clone does not have
            continue
        if len(parts) > 1 and not parts[0].startswith(".") and parts[0] not in NO_INPUTS and path.is_file():
            found.add(path)
    return found


def stamp(nb: dict, read: set[str]) -> dict[str, str]:
    """The hashes to be kept with a notebook that was executed and has read these files."""
    whole = _shows_source(nb)
    files = sorted(inputs(read) | {path for path in figures(nb) if path.exists()})
    hashes = {path.relative_to(paths.PROJECT).as_posix(): digest(path, whole) for path in files}
    return {CELLS: _cells(nb), **hashes}


def reasons(source: Path, executed: Path) -> list[str]:
    """Why the executed notebook is out of date: what has changed since; empty if nothing has. In the smoke profile
    executed is another file than source."""
    try:
        nb, done = (json.loads(path.read_text(encoding="utf-8")) for path in (source, executed))
        known = done["metadata"].get(KEY)
    except FileNotFoundError:
        return ["it was not executed"]
    except (ValueError, KeyError, AttributeError):
        return ["it cannot be read"]
    if any(_unexecuted(cell) for cell in done["cells"]):
        return ["it was not executed as a whole"]
    if not known:
        return ["it does not say what it was executed from"]
    whole = _shows_source(nb)
    reasons = [] if known.get(CELLS) == _cells(nb) else [CELLS]
    saved = {path.relative_to(paths.PROJECT).as_posix() for path in figures(nb)}
    for name in sorted((known.keys() | saved) - {CELLS}):
        path = paths.PROJECT / name
        if not path.is_file() or digest(path, whole) != known.get(name):
            reasons.append(name)
    return reasons


def restamp(executed: Path) -> bool:
    """Take the records, and what is kept of runs, as they are now for those that the notebook was executed from: what
    notebooks of one build record is no reason to execute those before them again. True if that changed something."""
    nb = json.loads(executed.read_text(encoding="utf-8"))
    known = nb["metadata"][KEY]
    names = [name for name in known if name.endswith(RECORDS) and (paths.PROJECT / name).is_file()]
    now = {name: digest(paths.PROJECT / name) for name in names}
    if all(known[name] == value for name, value in now.items()):
        return False
    known.update(now)
    paths.write(executed, json.dumps(nb, ensure_ascii=False, indent=1, sort_keys=True) + "\n")  # as nbformat does
    return True


def digest(path: Path, whole: bool = False) -> str:
    """A hash of what is in a file, the same on every system; of a module without its comments and docstrings, unless
    its whole text is asked for."""
    content = path.read_bytes()
    if path.suffix == ".png":
        return _hash(content)
    content = content.replace(b"\r\n", b"\n")
    return _hash(content if whole or path.suffix != ".py" else _without_comments(content.decode()).encode())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _cells(nb: dict) -> str:
    return _hash("\0".join(source.strip() for source in code_cells(nb)).encode())


def _shows_source(nb: dict) -> bool:
    """Whether the notebook shows code of modules, with its comments."""
    return any("getsource" in source for source in code_cells(nb))


def _unexecuted(cell: dict) -> bool:
    code = cell["cell_type"] == "code" and "".join(cell["source"]).strip()
    return bool(code) and cell.get("execution_count") is None


def _without_comments(text: str) -> str:
    """The lines of a module that do something; the text itself if it is no Python."""
    lines = text.split("\n")
    try:
        tree = ast.parse(text)
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (SyntaxError, tokenize.TokenError, ValueError):
        return text
    for token in tokens:
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str):
                start, end = first.lineno - 1, first.end_lineno - 1
                before, after = lines[start][: first.col_offset], lines[end].encode()[first.end_col_offset :]
                if not before.strip() and not after.strip():  # nothing else stands on these lines
                    lines[start : end + 1] = [""] * (end + 1 - start)
    return "\n".join(line.rstrip() for line in lines if line.strip())
