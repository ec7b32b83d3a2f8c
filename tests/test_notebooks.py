import ast
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from report import colab as colab_tools
from report import notebooks as notebook_tools

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
    assert notebook_tools.without_times(text) == text


@pytest.mark.parametrize(
    ("bar", "left"),
    [
        ("100%|██| 312/312 [00:29<00:00, 10.56step/s, val=98.58%]\n", "100%|██| 312/312 [val=98.58%]\n"),
        ("\r  0%|  | 0/6 [00:00<?, ?run/s]\r100%|██| 6/6 [1:00:29<00:00,  1.46s/run]", "\r  0%|  | 0/6\r100%|██| 6/6"),
        ("x[3:5] [1, 2] <[3] []", "x[3:5] [1, 2] <[3] []"),
    ],
)
def test_a_progress_bar_is_kept_without_its_times(bar, left):
    assert notebook_tools.without_times(bar) == left


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_form(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    assert notebook.cells[-1].cell_type == "markdown"
    for cell in code_cells(path):
        ast.parse(re.sub(r"(?m)^\s*[%!].*", "", cell.source))
    assert path.stat().st_size < 5e6


@pytest.mark.parametrize("path", [*NOTEBOOKS, *(PROJECT / "report").glob("*.ipynb")], ids=lambda p: p.stem)
def test_setup_cell_is_the_same_everywhere(path):
    assert colab_tools.ADDRESS.sub('REPO = ""', setup(path)) == colab_tools.CELL.read_text().rstrip()
    assert setup(path) == setup()


# ---------------------------------------------------------------- the set-up cell, run

LIB = "import importlib.util; print('lib:', importlib.util.find_spec('lib').origin)"

COLAB = """
import subprocess, sys, google.colab
run = subprocess.run
def stub(command, **options):
    print("ran:", *command[:4])
    return run([sys.executable, "-c", INSTALL], **options) if "report" in command else run(command, **options)
subprocess.run = stub
INSTALL = "print('installed')"
"""
CELL_BY_CELL = """
from IPython.core.interactiveshell import InteractiveShell
import sys
shell = InteractiveShell.instance(colors="nocolor", history_load_length=0)
shell.history_manager.enabled = False
for cell in CELLS:
    if not shell.run_cell(cell).success:
        sys.exit(1)
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
    """A stand-in for Colab: run(*cells) executes these in an empty folder, as a notebook does."""
    (tmp_path / "stubs/google/colab").mkdir(parents=True)
    (tmp_path / "stubs/google/colab/__init__.py").touch()
    (tmp_path / "content").mkdir()

    def execute(*cells):
        source = CELL_BY_CELL.replace("CELLS", repr([COLAB, *cells]))
        return run(source, tmp_path / "content", tmp_path / "stubs")

    return execute


def at(address, **others):
    """The set-up cell with this address."""
    cell, replaced = re.subn(r'(?m)^REPO = ".*?"', f'REPO = "{address}"', setup())
    assert replaced == 1
    for old, new in others.items():
        cell = cell.replace(old, new)
    return cell


@pytest.mark.parametrize("folder", ["", "notebooks", "lib"])
def test_setup_finds_lib_from_any_folder(folder):
    result = run(f"{setup()}\n{LIB}", PROJECT / folder)
    assert result.stdout == f"lib: {PROJECT / 'lib' / '__init__.py'}\n" and result.stderr == ""


def stopped(result):
    """The one line with which a notebook stops."""
    assert result.returncode == 1 and not result.stderr
    line = result.stdout.splitlines()[-1]
    assert line.startswith("Stopped: ") and "Traceback" not in result.stdout and "Warning" not in result.stdout
    return line


def test_setup_outside_the_project_says_what_to_do(tmp_path):
    result = run(CELL_BY_CELL.replace("CELLS", repr([setup()])), tmp_path)
    line = "Stopped: lib/ not found: start Jupyter inside the project's folder (`make lab` does)"
    assert stopped(result) == line and result.stdout.splitlines() == [line]


def test_setup_on_colab_clones_and_installs(colab, remote, tmp_path):
    result = colab(at(remote), LIB)
    assert result.returncode == 0, result.stdout + result.stderr
    steps = [line for line in result.stdout.splitlines() if line.startswith("ran:")]
    assert steps == ["ran: git clone --quiet --depth=1", f"ran: {sys.executable} -m report on_colab"]
    assert f"lib: {tmp_path / 'content/study'}" in result.stdout and "lib/__init__.py" in result.stdout


def test_setup_on_colab_clones_once_and_installs_again(colab, remote):
    result = colab(at(remote), at(remote))
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("ran: git clone") == 1 and result.stdout.count("installed") == 2


def test_setup_on_colab_goes_on_after_a_failed_installation(colab, remote):
    line = stopped(colab("INSTALL = 'import sys; sys.exit(1)'", at(remote)))
    assert line == "Stopped: the installation failed (the reason is above): run this cell again"
    result = colab(at(remote), LIB)
    assert result.returncode == 0 and "git clone" not in result.stdout and "installed" in result.stdout


def test_setup_on_colab_follows_a_changed_address(colab, remote, tmp_path):
    other = tmp_path / "other"
    subprocess.run(["git", "clone", "--quiet", remote, other], check=True)
    result = colab(at(remote), at(other.as_uri()), LIB)
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("ran: git clone") == 2 and "other/lib/__init__.py" in result.stdout


def test_setup_on_colab_without_address(colab):
    line = stopped(colab(at("")))
    assert line.startswith("Stopped: set REPO in this cell to the address")


def test_setup_on_colab_with_a_wrong_address(colab, tmp_path):
    address = (tmp_path / "nowhere").as_uri()
    result = colab(at(address))
    assert f"Stopped: {address} cannot be fetched: correct REPO" in result.stdout and "Traceback" not in result.stdout
    assert "installed" not in result.stdout


def test_setup_on_colab_mounts_the_drive_if_asked(colab, remote):
    stub = "import types; google.colab.drive = types.SimpleNamespace(mount=lambda path: print('mounted', path))"
    result = colab(stub, at(remote, **{"DRIVE = False": "DRIVE = True"}), "print(kept)")
    assert result.returncode == 0, result.stdout
    assert "mounted /content/drive" in result.stdout and "['--drive', '/content/drive/MyDrive']" in result.stdout
    assert "mounted" not in colab(stub, at(remote)).stdout
