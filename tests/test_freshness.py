"""What is out of date is decided by what is in the files."""

import json
import os
import subprocess
from pathlib import Path

import nbformat
import numpy as np
import pytest
from matplotlib import image
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from lib import paths
from report import build, freshness, notebooks

ROOT = Path(__file__).resolve().parent.parent

MODULE = '''"""What it is for."""

import json


def twice(x):
    """Twice x."""
    return 2 * x  # not three times


VALUE = "a # b"
'''
CELL = """import sys
sys.path.insert(0, "..")
import pathlib
from studies import parts
from lib import style
"""
READ = """text = pathlib.Path('../results/runs.jsonl').read_text(); print(parts.twice(len(text)))
text = pathlib.Path('../results/embeddings/one.npz').read_text()"""
SAVE = "class plots: save = lambda *_: None\nfig = 0; plots.save(fig, '01_curve')"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def study(project):
    """A project of one notebook, executed, that reads one file of records and imports two modules."""
    write(project / "studies" / "parts.py", MODULE)
    write(project / "lib" / "style.py", "import studies.deeper\n")
    write(project / "studies" / "deeper.py", "LEVEL = 2\n")
    write(project / "studies" / "other.py", "")
    write(project / "results" / "runs.jsonl", '{"a": 1}\n')
    write(project / "results" / "others.jsonl", '{"a": 1}\n')
    write(project / "results" / "embeddings" / "one.npz", "1")
    (project / "figures").mkdir()
    image.imsave(project / "figures" / "01_curve.png", np.eye(4))
    cells = [new_code_cell('REPO = ""  # the address'), *map(new_code_cell, (CELL, READ, SAVE))]
    nb = new_notebook(cells=[new_markdown_cell("# Title"), *cells])
    for number, cell in enumerate(nb.cells):
        cell["id"] = f"cell-{number}"
    path = project / "notebooks" / "01_first.ipynb"
    path.parent.mkdir()
    nbformat.write(nb, path)
    notebooks.run_cells(path, path)
    return project


@pytest.fixture
def reasons(study):
    path = study / "notebooks" / "01_first.ipynb"
    return lambda: freshness.reasons(path, path)


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_nothing_is_out_of_date_after_an_execution(study, reasons):
    assert reasons() == []
    known = notebooks.read(study / "notebooks" / "01_first.ipynb").metadata[freshness.KEY]
    modules, results = ("lib/style", "studies/parts", "studies/deeper"), ("runs.jsonl", "embeddings/one.npz")
    files = {*(f"{name}.py" for name in modules), *(f"results/{name}" for name in results), "figures/01_curve.png"}
    assert set(known) == {freshness.CELLS, *files}


def test_the_times_of_files_do_not_count(study, reasons):
    for number, path in enumerate(study.rglob("*.*")):
        os.utime(path, (number * 1e8, number * 1e8))
    assert reasons() == []


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("studies/parts.py", "  # not three times", ""),
        ("studies/parts.py", "Twice x.", "Two times x,\n    as a number."),
        ("studies/parts.py", '"""What it is for."""\n', ""),
        ("studies/parts.py", "\n\n\n", "\n\n# a heading\n\n"),
        ("studies/parts.py", "\n", "\r\n"),
        ("studies/other.py", "", "VALUE = 1\n"),
        ("results/others.jsonl", "1", "2"),
        ("notebooks/01_first.ipynb", "# Title", "# Another title"),
        ("notebooks/01_first.ipynb", r"REPO = \"\"", r"REPO = \"https://github.com/ada/margins\""),
    ],
)
def test_what_the_notebook_does_not_show_leaves_it_as_it_is(study, reasons, name, old, new):
    edit(study / name, old, new) if old else (study / name).write_text(new)
    assert reasons() == []


@pytest.mark.parametrize(
    ("name", "old", "new", "reason"),
    [
        ("studies/parts.py", "2 * x", "3 * x", "studies/parts.py"),
        ("studies/parts.py", '"a # b"', '"a # c"', "studies/parts.py"),
        ("studies/deeper.py", "2", "3", "studies/deeper.py"),
        ("results/runs.jsonl", "1", "2", "results/runs.jsonl"),
        ("notebooks/01_first.ipynb", "twice", "len", freshness.CELLS),
    ],
)
def test_what_it_was_made_from_counts(study, reasons, name, old, new, reason):
    edit(study / name, old, new)
    assert reasons() == [reason]


@pytest.mark.parametrize("name", ["studies/deeper.py", "results/runs.jsonl", "figures/01_curve.png"])
def test_what_is_gone_counts(study, reasons, name):
    (study / name).unlink()
    assert reasons() == [name]


def test_another_figure_of_that_name_counts(study, reasons):
    image.imsave(study / "figures" / "01_curve.png", np.ones((4, 4)))
    assert reasons() == ["figures/01_curve.png"]


def test_comments_count_where_source_is_shown(study):
    path = study / "notebooks" / "01_first.ipynb"
    edit(path, "print(parts", "import inspect; inspect.getsource(parts); print(parts")
    notebooks.run_cells(path, path)
    assert freshness.reasons(path, path) == []
    edit(study / "studies" / "parts.py", "  # not three times", "")
    assert freshness.reasons(path, path) == ["studies/parts.py"]


def test_a_notebook_without_its_outputs_counts(study, reasons):
    path = study / "notebooks" / "01_first.ipynb"
    nb = json.loads(path.read_text())
    nb["cells"][2].update(execution_count=None, outputs=[])
    path.write_text(json.dumps(nb))
    assert reasons() == ["it was not executed as a whole"]
    del nb["metadata"][freshness.KEY]
    nb["cells"][2]["execution_count"] = 2
    path.write_text(json.dumps(nb))
    assert reasons() == ["it does not say what it was executed from"]
    path.write_text("{")
    assert reasons() == ["it cannot be read"]
    path.unlink()
    assert reasons() == ["it was not executed"]


def test_restamp_takes_new_records_and_nothing_else(study, reasons):
    path = study / "notebooks" / "01_first.ipynb"
    before = path.read_text()
    assert not freshness.restamp(path) and path.read_text() == before
    edit(study / "results" / "runs.jsonl", "1", "2")
    edit(study / "results" / "embeddings" / "one.npz", "1", "2")  # another notebook has trained that run as well
    edit(study / "studies" / "deeper.py", "2", "3")
    assert len(reasons()) == 3 and freshness.restamp(path)
    assert reasons() == ["studies/deeper.py"]
    assert notebooks.read(path).cells == nbformat.reads(before, 4).cells


def test_the_smoke_profile_compares_its_own_copy(study, monkeypatch):
    monkeypatch.setenv("PROFILE", "smoke")
    source = study / "notebooks" / "01_first.ipynb"
    assert freshness.reasons(source, build.executed(source)) == ["it was not executed"]
    (study / ".smoke" / "figures").mkdir(parents=True)
    image.imsave(study / ".smoke" / "figures" / "01_curve.png", np.eye(4))
    notebooks.run_cells(source, build.executed(source))
    assert build.executed(source) == study / ".smoke" / "notebooks" / "01_first.ipynb"
    assert freshness.reasons(source, build.executed(source)) == []
    (study / "figures" / "01_curve.png").unlink()
    assert freshness.reasons(source, build.executed(source)) == []
    (study / ".smoke" / "figures" / "01_curve.png").unlink()
    assert freshness.reasons(source, build.executed(source)) == [".smoke/figures/01_curve.png"]


# ---------------------------------------------------------------- build


@pytest.fixture
def built(study, monkeypatch):
    """build.build with its calls noted: of notebooks that are executed in fact, data that is not fetched, no PDF."""
    calls = []

    def call(module, *arguments, env):
        calls.append((module, *(os.path.basename(argument) for argument in arguments)))
        if arguments[0] == "execute":
            path = paths.PROJECT / arguments[1]
            with (study / "results" / "others.jsonl").open("a") as file:
                file.write("a record\n")
            notebooks.run_cells(path, path)

    reads = "open('../results/others.jsonl').read(); open('../results/runs.jsonl')"
    report = new_notebook(cells=[new_code_cell(reads, id="cell-0")])
    for name in build.DOCUMENTS:
        nbformat.write(report, write(study / "report" / f"{name}.ipynb", ""))
    monkeypatch.setattr(build, "_call", call)
    monkeypatch.setattr(build, "pdfs", lambda: None)

    def run(**options):
        calls.clear()
        return build.build(**options), [call[-1] for call in calls]

    return run


def test_build_executes_what_is_out_of_date_and_then_nothing(study, built, monkeypatch):
    lines, calls = built()
    assert calls == ["data", "report.ipynb", "supplement.ipynb"] and "wrote report/report.ipynb" in lines
    assert built() == (["nothing was out of date"], [])
    edit(study / "studies" / "deeper.py", "2", "3")
    # what the notebook records is in the report that comes after it
    assert built()[1] == ["data", "01_first.ipynb", "report.ipynb", "supplement.ipynb"]
    assert built()[1] == []
    assert built(everything=True)[1] == ["data", "01_first.ipynb", "report.ipynb", "supplement.ipynb"]
    monkeypatch.setenv("RETRAIN", "1")
    assert built()[1] == ["data", "01_first.ipynb", "report.ipynb", "supplement.ipynb"]
    monkeypatch.delenv("RETRAIN")
    assert built()[1] == []


def test_records_of_one_build_are_no_reason_to_execute_earlier_notebooks_again(study, built):
    path = study / "notebooks" / "00_before.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("open('../results/others.jsonl').read()", id="cell-0")]), path)
    assert built()[1] == ["data", "00_before.ipynb", "report.ipynb", "supplement.ipynb"]
    edit(study / "studies" / "deeper.py", "2", "3")
    assert built()[1] == ["data", "01_first.ipynb", "report.ipynb", "supplement.ipynb"]
    assert built()[1] == []
    with (study / "results" / "others.jsonl").open("a") as file:
        file.write("a record of another day\n")
    assert built()[1] == ["data", "00_before.ipynb", "report.ipynb", "supplement.ipynb"]


def test_build_stops_at_a_notebook_that_fails(study, built, monkeypatch):
    edit(study / "studies" / "deeper.py", "2", "3")

    def fail(*arguments, env):
        raise ValueError("`python -m report execute` failed")

    monkeypatch.setattr(build, "_call", fail)
    with pytest.raises(ValueError, match="failed"):
        built()


def test_the_committed_notebooks_rest_on_committed_files_only():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    if not any(tracked):
        pytest.skip("not a git repository")
    for path in [*sorted((ROOT / "notebooks").glob("*.ipynb")), *(ROOT / "report").glob("*.ipynb")]:
        known = json.loads(path.read_text(encoding="utf-8"))["metadata"][freshness.KEY]
        assert known.keys() - {freshness.CELLS} <= set(tracked), path.name


def test_the_tree_is_small():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a clone")
    sizes = {name: (ROOT / name).stat().st_size for name in listed.stdout.split("\0") if (ROOT / name).is_file()}
    assert max(sizes.values()) < 5e6 and sum(sizes.values()) < 25e6, sum(sizes.values())
