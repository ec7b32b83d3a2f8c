"""Which module may import which; and that an import does nothing else."""

import ast
import graphlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("lib", "studies", "course", "report", "benchmarks")
FILES = {  # by the name of the module, in dots
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for part in PARTS
    for path in (ROOT / part).rglob("*.py")
}


def imported(name):
    """The project's modules that a module imports anywhere, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports by a relative name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {full if full in FILES else node.module for full in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & FILES.keys() - {name}


IMPORTS = {name: imported(name) for name in FILES}


def test_no_module_imports_itself_in_a_circle():
    graphlib.TopologicalSorter(IMPORTS).prepare()  # a CycleError names it


@pytest.mark.parametrize(
    ("part", "allowed"),
    [
        ("lib", ("lib",)), ("studies", ("lib", "studies")), ("benchmarks", ("lib", "studies", "benchmarks")),
        ("course", ("lib.paths", "lib.plots", "course")), ("report", ("lib.paths", "report")), ("lib.losses", ()),
    ],
)  # fmt: skip
def test_each_part_imports_only_what_lies_below(part, allowed):
    def within(name, parts):
        return any(f"{name}.".startswith(f"{part}.") for part in parts)

    wrong = {(a, b) for a in IMPORTS if within(a, [part]) for b in IMPORTS[a] if not within(b, allowed)}
    assert not wrong and any(within(name, [part]) for name in IMPORTS)


def test_the_library_is_thin():
    # further heads, and the reading of data sets, lie in folders of their own, which may grow
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "lib").glob("*.py")}
    assert lines and sum(lines.values()) <= 1200, lines


def sources():
    """Modules by their names in dots, notebooks and pages with examples by their paths: what they do, as Python."""
    notebooks = [*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "report").glob("*.ipynb")]
    found = {name: path.read_text(encoding="utf-8") for name, path in FILES.items()}
    for path in [*notebooks, ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        text = path.read_text(encoding="utf-8")
        parts = [text] if path.suffix == ".md" else ["".join(cell["source"]) for cell in json.loads(text)["cells"]]
        examples = [part for text in parts for part in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
        if path.suffix == ".ipynb":
            cells = json.loads(text)["cells"]
            examples += ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        found[path.name] = "\n".join(re.sub(r"^[%!].*", "", example, flags=re.MULTILINE) for example in examples)
    return found


def named(place, tree):
    """The (module, name) of the project that a source names: its own names, imported ones, and module.name."""
    modules, found = {}, set()
    for node in ast.walk(tree):
        for alias in getattr(node, "names", []) if isinstance(node, ast.ImportFrom | ast.Import) else []:
            full = f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
            modules[alias.asname or alias.name] = full
            found.add(tuple(full.rsplit(".", 1)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            found.add((place, node.id))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.add((modules.get(node.value.id), node.attr))
    return found


def test_what_is_there_is_used():
    """By a module, a notebook or an example; a test alone is no use."""
    used = set().union(*(named(place, ast.parse(text)) for place, text in sources().items()))
    unused = {
        f"{module}.{node.name}"
        for module, path in FILES.items() if module.startswith(("lib", "studies", "benchmarks", "course"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and (module, node.name) not in used
    }  # fmt: skip
    assert unused <= {"studies.s1.gaps"}, unused


SAME = {  # names that stand in several modules, with their one meaning
    "main": "a command", "build": "write what is handed in", "submission": "the zip", "terminal": "what it shows",
    "lacking": "packages that are not installed", "explained": "the cause and cure of what ended a command",
    "load": "get by name or place", "read": "from a file", "cross_entropy": "its mean", "compare": "with a reference",
    "network": "images to embeddings", "fit": "train in place", "embed": "images to embeddings", "train": "train",
    "splits": "training and other images", "Run": "all that decides a run", "execute": "do the whole of a run or file",
    "measure": "what a run is measured by", "recorded": "records", "finished": "rows of complete seeds",
    "complete": "records of complete seeds", "prepare": "a run's data",
    "differences": "to a reference", "default": "a loss at its defaults", "trials": "of the tuning", "wider": "trials",
    "finalists": "of the trials", "chosen": "by the finalists", "controls": "margins that do not adapt",
    "final": "the runs that decide", "inputs": "what something is made from", "setup": "before anything else runs",
    "accuracy": "share that is right", "Model": "network and centres", "logits": "of embeddings",
    "answered": "plans with a whole seed", "target": "a cosine with its margin", "pixels": "images as numbers",
}  # fmt: skip


def test_a_name_means_one_thing():
    places = {}
    for module, path in FILES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(module)
    several = {name: modules for name, modules in places.items() if len(modules) > 1}
    assert not {name: modules for name, modules in several.items() if name not in SAME}
    assert not SAME.keys() - several.keys()


FRESH = """
import importlib, os, sys

project = sys.argv[1:]
watched = "subprocess.Popen", "os.posix_spawn", "os.fork", "os.exec", "os.system", "os.putenv", "os.unsetenv"
seen = []
sys.addaudithook(lambda event, arguments: seen.append((event, arguments)) if event in watched else None)

def own():
    return [name for name in sys.modules if name.split(".")[0] in ("lib", "studies", "course", "report", "benchmarks")]

before = dict(os.environ)
for name in project:
    importlib.import_module(name)
first = own()
for name in first:
    del sys.modules[name]
matplotlib = sys.modules["matplotlib"]
matplotlib.rcdefaults()
style = dict(matplotlib.rcParams)
os.environ.clear()
os.environ.update(before)
seen.clear()
for name in project:  # again: what PyTorch and others do at their import is done
    importlib.import_module(name)
assert sorted(own()) == sorted(first) and set(project) <= set(first)
assert not seen, seen
assert os.environ == before
assert matplotlib.rcParams == style
"""


def states_no_encoding(call):
    """Whether a call opens a file as text, in the encoding of whatever system it runs on."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if name not in ("open", "read_text", "write_text") or any(word.arg == "encoding" for word in call.keywords):
        return False
    if name == "write_text":  # ASCII is the same everywhere
        text = call.args[0] if call.args else None
        return not (isinstance(text, ast.Constant) and str(text.value).isascii())
    owner = getattr(getattr(call.func, "value", None), "id", "")
    modes = [arg.value for arg in [*call.args, *(word.value for word in call.keywords)] if hasattr(arg, "value")]
    binary = any(isinstance(mode, str) and "b" in mode for mode in modes)
    return name == "read_text" or not (binary or owner in ("Image", "os", "pikepdf", "urllib"))


@pytest.mark.parametrize("part", PARTS)
def test_every_file_of_text_states_its_encoding(part):
    calls = [
        (path.relative_to(ROOT).as_posix(), node.lineno)
        for path in sorted((ROOT / part).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and states_no_encoding(node)
    ]
    assert calls == []


def test_every_progress_bar_is_for_terminals_and_notebooks():
    """Off them, as in a log file, each time that it is drawn would be a line."""
    for part in PARTS:
        for path in (ROOT / part).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "tqdm":
                    shown = {word.arg: ast.unparse(word.value) for word in node.keywords}["disable"]
                    assert shown == "None" or shown.startswith("hidden("), path


def test_an_import_starts_no_process_and_sets_nothing():
    # the settings of Sphinx are no module, and the set-up cell is a notebook's
    names = [name for name in FILES if name not in ("report.site.pages.conf", "report.set_up_cell")]
    if not importlib.util.find_spec("sphinx"):  # for Python 3.10 there is none
        names.remove("report.site.mending")
    assert {"report.pdf", "report.cells", "report.formulas", "report.notebooks", "report.site"} <= set(names)
    command = [sys.executable, "-c", FRESH, *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""
