"""The notebooks as a course: their form, their exercises with solutions, and what course/ draws into them."""

import ast
import itertools
import json
import re
import subprocess
import symtable
import sys

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

from course import form, labels, page
from course.interactive import Picture, Slider
from lib import paths

NOTEBOOKS = sorted((paths.PROJECT / "notebooks").glob("*.ipynb"))
COURSE = NOTEBOOKS

every = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
converted = pytest.mark.parametrize("path", COURSE, ids=lambda p: p.stem)


def cells(path):
    return nbformat.read(path, 4).cells


@every
def test_the_set_up_is_folded_and_no_cell_is_folded_in_part(path):
    code = [cell for cell in cells(path) if cell.cell_type == "code"]
    assert form.folded(code[0]) and "setup" in code[0].metadata.tags
    for cell in code:
        form.folded(cell)


@converted
def test_form(path):
    found = form.measures(path)
    assert found["prose / open code"] >= 1.5
    assert found["their median lines"] <= 8
    assert found["longest open line"] <= (100 if path.stem == "08_replication" else 88)  # where the site cuts
    assert 3 <= found["exercises"] == found["solutions"] <= 5
    assert found["figures"] >= 5 and found["without alternative text"] == 0


@every
def test_the_kernel_has_one_name(path):
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert nbformat.read(path, 4).metadata.kernelspec == kernel


@converted
def test_header(path):
    title = cells(path)[0].source
    where = NOTEBOOKS.index(path)
    for neighbour in NOTEBOOKS[max(where - 1, 0) : where] + NOTEBOOKS[where + 1 : where + 2]:
        assert f"({neighbour.name})" in title
    assert "(../README.md#what-is-here)" in title and "**Afterwards you can**" in title
    assert all(f"\n| {entry} |" in title for entry in ("You need", "Time", "What is computed"))
    assert re.search(r"\*\*[^*]+\?\*\*", title), "no question"


@converted
def test_links_lead_somewhere(path):
    text = "\n".join(cell.source for cell in cells(path) if cell.cell_type == "markdown")
    links = re.findall(r"\]\((?!http)([^)#]+)(?:#[\w-]+)?\)", text)
    assert links and [link for link in links if not (path.parent / link).exists()] == []


@converted
def test_a_caption_follows_every_figure_and_the_numbers_are_in_order(path):
    notebook = cells(path)
    for kind in ("Figure", "Table"):
        numbers = [int(n) for cell in notebook for n in re.findall(rf"^\*\*{kind} (\d+)\.\*\*", cell.source, re.M)]
        assert numbers == list(range(1, len(numbers) + 1)), kind
    for cell, after in itertools.pairwise(notebook):
        if cell.cell_type == "code" and form.alternatives(cell) and form.folded(cell):
            assert after.cell_type == "markdown" and after.source.startswith("**Figure "), cell.id


@converted
def test_a_sentence_is_no_code(path):
    """Long text in code is a caption for those who cannot see, or a sentence for its numbers, in a folded cell."""
    for cell in cells(path):
        if cell.cell_type == "code" and not form.folded(cell):
            assert "Markdown(" not in cell.source and "say(" not in cell.source


RUN = """
import contextlib, io, json, sys
import course.page
course.page.show = course.page.say = lambda *a, **k: None  # nothing is written
space, printed = {"display": print}, []
for kind, source in json.load(sys.stdin):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(source, kind, "exec"), space)
    printed += [out.getvalue()] if kind == "solution" else []
print(json.dumps(printed))
"""
SHOWS = re.compile(r"\b(show|say|display|print)\(")


def names(source):
    """The names of the notebook that a cell makes or changes, and those that it uses and did not make in an earlier
    line."""
    table = symtable.symtable(source, "cell", "exec")
    made = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
    used, inner = {s.get_name() for s in table.get_symbols() if s.is_referenced()}, [*table.get_children()]
    while inner:
        below = inner.pop()
        used |= {s.get_name() for s in below.get_symbols() if s.is_global() and s.is_referenced()}
        inner += below.get_children()
    first = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            kind = (node.id, isinstance(node.ctx, ast.Load))
            first[kind] = min(node.lineno, first.get(kind, node.lineno))
        elif isinstance(node, (ast.Subscript, ast.Attribute)) and not isinstance(node.ctx, ast.Load):
            made |= {part.id for part in ast.walk(node.value) if isinstance(part, ast.Name)}
    made |= used & {"rng"}  # whoever draws changes what comes next
    own = {name for name in made - {"rng"} if first.get((name, False), 10**6) < first.get((name, True), 0)}
    return made, used - own


def needed(code, solutions):
    """The numbers of the cells without which the solutions cannot run. One that shows something is left out, unless it
    alone makes a name that they use."""
    parts = [names(source) for source in code]
    wanted, kept = set().union(*(names(source)[1] for source in solutions)), {0}  # the first cell finds lib
    quiet = {i for i, source in enumerate(code) if not SHOWS.search(source)}
    while True:
        more = {i for i in quiet - kept if parts[i][0] & wanted}
        if not more:
            lacking = wanted.difference(*(parts[i][0] for i in kept))
            more = {i for i in range(len(code)) if parts[i][0] & lacking} - kept
        if not more:
            return kept
        kept |= more
        wanted = wanted.union(*(parts[i][1] for i in more))


def test_cells_that_a_solution_needs():
    cells = ["import sys", "import numpy as np", "a = np.ones(2)", "show(a)", "def f(x):\n    c = x\n    return c + b"]
    cells += ["b = 1", "a[0] = 2", "c = 3", "a = b = np.zeros(2)\nshow(a)", "d = 1\nshow(d)"]
    assert needed(cells, ["print(f(a))"]) == {0, 1, 2, 4, 5, 6}
    assert needed(cells, ["print(c)"]) == {0, 7}
    assert needed(cells, ["print(d)"]) == {0, 9}


@converted
def test_solutions_print_what_they_show(path):
    order, shown = [], []  # cells and solutions, as a reader comes upon them
    for cell in cells(path):
        if cell.cell_type == "code":
            order.append(("cell", cell.source))
        for source, prints in (pair for solution in form.solutions(cell) for pair in solution):
            order.append(("solution", source))
            shown.append(prints)
    assert len(shown) >= 3
    code, solved = ([source for kind, source in order if kind == wanted] for wanted in ("cell", "solution"))
    kept = {code[i] for i in needed(code, solved)}
    given = json.dumps([(kind, source) for kind, source in order if kind == "solution" or source in kept])
    done = subprocess.run([sys.executable, "-c", RUN], input=given, cwd=paths.PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == shown


# ---------------------------------------------------------------- course.form

FOLDED = {"jupyter": {"source_hidden": True}, "cellView": "form", "tags": ["hide-input"]}


def test_a_cell_folded_in_part_is_refused():
    assert form.folded(new_code_cell("# @title Figure\nx", metadata=FOLDED)) and not form.folded(new_code_cell("x"))
    for mark in FOLDED:
        part = {key: value for key, value in FOLDED.items() if key != mark}
        with pytest.raises(ValueError, match=r"is folded only in part: it lacks"):
            form.folded(new_code_cell("# @title Figure\nx", metadata=part))
    with pytest.raises(ValueError, match=r"it lacks a first line # @title"):
        form.folded(new_code_cell("x", metadata=FOLDED))


def test_measures(tmp_path):
    solution = (
        "<details>\n<summary>Solution</summary>\n\nSo.\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n</details>"
    )
    figure = [new_output("display_data", {"text/html": '<img alt="a line" src="data:">', "image/png": "", "x": ""})]
    bare = [new_output("display_data", {"image/png": ""}), new_output("display_data", {"text/html": "<img src=''>"})]
    notebook = nbformat.v4.new_notebook(
        cells=[
            new_markdown_cell("# Title\n\n" + "x" * 11), new_markdown_cell(f"### Exercise 1 · Try\n\n{solution}"),
            new_code_cell("a\nbb\nccc", outputs=figure), new_code_cell("1" * 12, outputs=bare),
            new_code_cell("# @title Figure\n" + "y" * 99, metadata=FOLDED),
        ]
    )  # fmt: skip
    nbformat.write(notebook, tmp_path / "a.ipynb")
    prose = (
        len("# Title\n\n" + "x" * 11)
        + len(f"### Exercise 1 · Try\n\n{solution}")
        - len("```python\nprint(1)\n```" + "```text\n1\n```")
    )
    assert form.measures(tmp_path / "a.ipynb") == {
        "prose / open code": round(prose / 20, 2), "open cells": 2, "their median lines": 2, "longest open line": 12,
        "exercises": 1, "solutions": 1, "figures": 3, "without alternative text": 2,
    }  # fmt: skip
    assert form.solutions(notebook.cells[1]) == [[("print(1)\n", "1\n")]]


def test_the_table_is_printed_by_one_command():
    done = subprocess.run([sys.executable, "-m", "course.form"], cwd=paths.PROJECT, capture_output=True, text=True)
    assert done.returncode == 0 and all(path.stem in done.stdout for path in NOTEBOOKS), done.stderr


# ---------------------------------------------------------------- course.page


@pytest.fixture
def shown(monkeypatch, tmp_path):
    """What is displayed; figures go to tmp_path."""
    out = []
    monkeypatch.setattr(page, "display", lambda thing, **_: out.append(thing))
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    monkeypatch.delenv("PROFILE", raising=False)
    return out


@pytest.mark.parametrize("name", ["01_line", None])
def test_show_gives_a_figure_its_alternative_text(shown, tmp_path, name):
    fig = plt.figure()
    page.show(fig, name, 'a "line" & more')
    (bundle,) = shown
    assert 'alt="a &quot;line&quot; &amp; more"' in bundle["text/html"] and "image/png" not in bundle  # once is enough
    assert bundle["text/plain"] == 'a "line" & more' and not plt.fignum_exists(fig.number)
    assert [p.name for p in tmp_path.rglob("*.png")] == ([f"{name}.png"] if name else [])


def test_a_figure_that_cannot_be_written_is_shown_and_said(shown, tmp_path, monkeypatch, capsys):
    (tmp_path / "figures").write_text("a file where the folder should be")
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    fig = plt.figure(figsize=(2, 1))
    page.show(fig, "01_line", "A line.")
    assert "cannot be written" in capsys.readouterr().out and '<img alt="A line."' in shown[0]["text/html"]


def test_say_puts_numbers_into_a_sentence(shown):
    page.say("At {:.1f} % and {m:g}.", 12.34, m=0.5)
    assert shown[0].data == "At 12.3 % and 0.5."


# ---------------------------------------------------------------- course.labels


@pytest.mark.parametrize(
    "ends, placed",
    [
        ([], []), ([0, 20, 40], [0, 20, 40]), ([0, 4, 40], [-3, 7, 40]), ([5, 5, 5], [-5, 5, 15]),
        ([0, 4, 14], [-4, 6, 16]),  # the third would now be too close to the first two, moved apart
    ],
)  # fmt: skip
def test_labels_that_would_overlap_are_moved_apart(ends, placed):
    assert labels.pushed_apart(ends, 10) == pytest.approx(placed)


def test_every_line_with_a_label_is_named_at_its_end():
    fig, ax = plt.subplots()
    ax.plot([1, 2], [0, 5], color="red", label="steep")
    ax.plot([1, 2], [1, 1], color="blue", label="level")
    ax.plot([1, 2], [2, 2])
    labels.beside(ax)
    assert [(text.get_text(), text.xy, text.get_color()) for text in ax.texts] == [
        ("level", (1, 1), "blue"), ("steep", (1, 5), "red"),
    ]  # fmt: skip
    plt.close(fig)


# ---------------------------------------------------------------- course.interactive; in a browser: test_browser.py


def picture():
    made = Picture([Slider("m", "margin", [0, 1, 2], 1), Slider("s", "scale", [1, 10], 10)], 'a <b> & "c"', (400, 300))
    panel = made.panel((0, 2, [0, 1, 2]), (0, 20, [0, 10, 20]), "x", "y")
    panel.line(lambda: ([0, 1, 2], [0, np.nan, 20]))
    panel.line(lambda m, s: ([0, 2], [0, m * s]))
    panel.handle(lambda m: (m, 0))
    panel.text(lambda s: (0, 0, f"<{s}>"))
    made.readout(lambda s, m: f"{m} times {s}")
    return made


def drawn():
    made = picture()
    return made, *made._drawn()


def test_every_part_has_a_frame_for_every_position_it_follows():
    _, _, data = drawn()
    assert [part["follows"] for part in data["parts"]] == [[], [0, 1], [0], [1], [1, 0]]
    assert [len(part["frames"]) for part in data["parts"]] == [1, 6, 3, 2, 6]
    assert [frame[2] for frame in data["parts"][4]["frames"]] == ["0 times 1", "1 times 1", "2 times 1"] + [
        f"{m} times 10" for m in range(3)
    ]
    left, top, right, bottom = data["handles"][0]["panel"]
    assert data["handles"][0]["places"] == [[left, bottom], [(left + right) / 2, bottom], [right, bottom]]
    assert data["parts"][1]["frames"][-1] == f"M{left:.1f},{bottom:.1f}L{right:.1f},{top:.1f}"
    assert data["parts"][0]["frames"][0].count("M") == 2  # a gap


def test_the_still_picture_is_the_start_position_and_is_the_same_each_time():
    made, svg, data = drawn()
    assert data["parts"][1]["frames"][3] in svg and data["parts"][1]["frames"][4] not in svg
    assert "1 times 10" in svg and "&lt;10&gt;" in svg
    bundle = made._repr_mimebundle_()
    assert bundle == picture()._repr_mimebundle_()
    assert bundle["text/plain"] == 'a <b> & "c"' and 'alt="a &lt;b&gt; &amp; &quot;c&quot;"' in bundle["text/html"]
    assert "<input" not in bundle["text/html"]  # no dead slider without JavaScript
    script = bundle["text/html"].split("<script>")[1].split("</script>")[0]
    assert "<10>" not in script.split("\n")[-1]  # no markup inside the script


def test_a_dot_without_a_place_is_not_drawn():
    panel = Picture([], "", (400, 300)).panel((0, 1, []), (0, 1, []))
    panel.box = (0, 0, 100, 100)
    assert panel._dots([0, np.nan], [0, 1]) == "M0.0,100.0h0" and panel._dots([0], [np.nan]) == "M-9,-9"


def test_wrong_names_and_starts_are_refused():
    with pytest.raises(ValueError, match="slider 'm': start 3 is none of its values"):
        Slider("m", "margin", [0, 1], 3)
    made = picture()
    made.readout(lambda z: "")
    with pytest.raises(ValueError, match="no slider is called 'z', only m, s"):
        made._repr_mimebundle_()
