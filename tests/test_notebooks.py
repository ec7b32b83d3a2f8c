import ast
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

PROJECT = Path(__file__).parent.parent
NOTEBOOKS = sorted(PROJECT.glob("notebooks/*.ipynb"))


def code_cells(path):
    return [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]


def printed(path):
    """All text of a notebook's outputs, without its images."""
    parts = []
    for cell in code_cells(path):
        for output in cell.outputs:
            texts = {k: v for k, v in output.get("data", {}).items() if not k.startswith("image/")}
            parts += [output.get("text", ""), *map(str, texts.values())]
    return "\n".join(parts)


def setup(path=NOTEBOOKS[0]):
    return code_cells(path)[0].source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_executed_from_top_to_bottom(path):
    cells = [c for c in code_cells(path) if c.source.strip()]
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_clean(path):
    for cell in code_cells(path):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text
    text = printed(path)
    assert not re.search(r"\w*Warning\b|Traceback", text)
    assert not re.findall(r"(?<![\w.:/])/(?:home|Users|root|tmp|work|content|opt|usr|var|mnt)/[^\s'\"]*", text)
    assert str(PROJECT) not in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_form(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    assert notebook.cells[-1].cell_type == "markdown"
    for cell in code_cells(path):
        ast.parse(re.sub(r"(?m)^\s*[%!].*", "", cell.source))
    assert path.stat().st_size < 5e6


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_setup_cell_is_the_same_everywhere(path):
    assert setup(path) == setup()


# ---------------------------------------------------------------- the set-up cell, run

LIB = "import importlib.util; print('lib:', importlib.util.find_spec('lib').origin)"

COLAB = """
import subprocess, sys, google.colab
run = subprocess.run
def stub(command, **options):
    print("ran:", *command[:3])
    return run([sys.executable, "-c", ""], **options) if "pip" in command else run(command, **options)
subprocess.run = stub
"""


def run(source, cwd, path=""):
    """Run this Python source in cwd with path on sys.path; the installed project is out of reach."""
    hide = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
    hide += f"sys.path[:] = [p for p in sys.path if p not in ('', {str(PROJECT)!r})]\n"
    hide += f"sys.path.insert(0, {str(path)!r})\n" if path else ""
    env = {"PATH": "/usr/bin:/bin:/usr/local/bin", "HOME": str(cwd), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, "-c", hide + source], cwd=cwd, env=env, capture_output=True, text=True)


@pytest.fixture
def remote(tmp_path):
    """The address of a repository that holds lib/."""
    folder = tmp_path / "remote"
    (folder / "lib").mkdir(parents=True)
    for name in ("__init__.py", "losses.py"):
        (folder / "lib" / name).write_text((PROJECT / "lib" / name).read_text())
    git = ["git", "-C", str(folder), "-c", "user.name=test", "-c", "user.email=test"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "lib"]):
        subprocess.run([*git, *command], check=True)
    return folder.as_uri()


@pytest.fixture
def colab(tmp_path):
    """A stand-in for Colab: run(address, times) executes the set-up cell in an empty folder."""
    (tmp_path / "stubs/google/colab").mkdir(parents=True)
    (tmp_path / "stubs/google/colab/__init__.py").touch()
    (tmp_path / "content").mkdir()

    def execute(address, times=1):
        cell, replaced = re.subn(r'(?m)^REPO = ".*?"', f'REPO = "{address}"', setup())
        assert replaced == 1
        return run("\n".join([COLAB, *[cell] * times, LIB]), tmp_path / "content", tmp_path / "stubs")

    return execute


@pytest.mark.parametrize("folder", ["", "notebooks", "lib"])
def test_setup_finds_lib_from_any_folder(folder):
    result = run(f"{setup()}\n{LIB}", PROJECT / folder)
    assert result.stdout == f"lib: {PROJECT / 'lib' / '__init__.py'}\n" and result.stderr == ""


def test_setup_outside_the_project_says_what_to_do(tmp_path):
    result = run(setup(), tmp_path)
    assert result.returncode == 1
    assert result.stderr == "lib/ not found: start Jupyter inside the project's folder (`make lab` does)\n"


def test_setup_on_colab_clones_and_installs(colab, remote, tmp_path):
    result = colab(remote)
    assert result.returncode == 0, result.stderr
    steps = [line for line in result.stdout.splitlines() if line.startswith("ran:")]
    assert steps == ["ran: git clone --quiet", f"ran: {sys.executable} -m pip"]
    assert f"lib: {tmp_path / 'content/study/lib/__init__.py'}" in result.stdout


def test_setup_on_colab_clones_once(colab, remote):
    result = colab(remote, times=2)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("ran: git clone") == 1


def test_setup_on_colab_without_address(colab):
    result = colab("")
    assert result.returncode == 1
    assert result.stderr.startswith("REPO is empty: run `make colab REPO=owner/name`")
    assert result.stderr.count("\n") == 1


def test_setup_on_colab_with_a_wrong_address(colab, tmp_path):
    result = colab((tmp_path / "nowhere").as_uri())
    assert result.returncode != 0 and "nowhere" in result.stderr
    assert "ran: " + sys.executable not in result.stdout  # nothing is installed
