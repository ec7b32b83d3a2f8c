"""What the commands do on a machine that is full, read-only, or without a home."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from report import __main__ as driver
from report import build, machine, notebooks


@pytest.fixture
def homeless(monkeypatch, tmp_path):
    """A place for temporary files, and a home that each test sets."""
    monkeypatch.setattr(machine.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", "/nowhere")
    return tmp_path


def test_a_home_that_can_be_written_is_kept(homeless, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(homeless))
    machine.home()
    assert os.environ["HOME"] == str(homeless) and not any(homeless.iterdir()) and not capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="a home is found otherwise there")
def test_without_a_home_the_tools_have_one(homeless, monkeypatch, capsys):
    machine.home()
    first = Path(os.environ["HOME"])
    assert first.parent == homeless and first.stat().st_mode & 0o777 == 0o700
    assert capsys.readouterr().err == f"there is no home folder: the settings and caches of the tools go to {first}\n"
    monkeypatch.setenv("HOME", "/nowhere")
    machine.home()
    assert os.environ["HOME"] == str(first)  # the same at every start
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setenv("HOME", str(homeless))
    machine.home()
    assert f"{homeless} cannot be written" in capsys.readouterr().err
    first.rmdir()
    first.write_text("somebody's")
    monkeypatch.undo()
    assert machine._own_folder() != first


def test_every_command_has_a_home(homeless, monkeypatch):
    monkeypatch.setattr(driver.naming, "submission_name", lambda *args: "x")
    driver.main(["check_name", "Lovelace", "Ada", "1"])
    assert os.environ["HOME"].startswith(str(homeless))


ENDS = {
    "memory": (MemoryError(), "no memory is left: close other programs"),
    "a fork": (OSError(errno.ENOMEM, "Cannot allocate memory"), "no memory is left"),
    "a disk": (OSError(errno.ENOSPC, "No space left on device", "x.pdf"), "no space is left on the disk ("),
    "a quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), "no space is left on the disk"),
    "read only": (
        OSError(errno.EROFS, "Read-only file system", ".build"),
        ".build cannot be read or written (Read-only",
    ),
    "not ours": (PermissionError(errno.EACCES, "Permission denied", "x"), "x cannot be read or written (Permission"),
    "no temporary files": (
        FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"),
        "name one in TMPDIR",
    ),
    "a message": (ValueError("two\nlines"), "two lines"),
}


@pytest.mark.parametrize("case", ENDS)
def test_what_ends_a_command_is_said_in_one_line(monkeypatch, case):
    error, said = ENDS[case]
    monkeypatch.setattr(driver.naming, "submission_name", lambda *args: (_ for _ in ()).throw(error))
    with pytest.raises(SystemExit) as end:
        driver.main(["check_name", "Lovelace", "Ada", "1"])
    line = str(end.value.code)
    assert line.startswith("error: ") and said in line and "\n" not in line


def test_a_defect_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(driver.naming, "submission_name", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        driver.main(["check_name", "Lovelace", "Ada", "1"])


CELLS = {
    "memory": ("raise MemoryError", "MemoryError: no memory is left: close other programs"),
    "a tensor": ('raise RuntimeError("DefaultCPUAllocator: can\'t allocate memory: 9 bytes")', "no memory is left"),
    "a disk": ("raise OSError(28, 'No space left on device')", "No space left on device: free space on the disk"),
    "killed": (
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "the kernel was killed, most likely because no",
    ),
    "another": ("1 / 0", "ZeroDivisionError: division by zero"),
    "while a result is shown": (
        "class Shown:\n    def _repr_mimebundle_(self, **kw):\n        return {}['gone']\nShown()",
        "KeyError: 'gone'",
    ),
}


@pytest.mark.parametrize("case", CELLS)
def test_a_notebook_that_fails_says_why(tmp_path, case):
    source, said = CELLS[case]
    cells = [nbformat.v4.new_markdown_cell("# T\n\n## Part"), nbformat.v4.new_code_cell(source)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "x.ipynb")
    with pytest.raises(ValueError, match=r"^x\.ipynb, section 'Part': ") as error:
        notebooks.run_cells(tmp_path / "x.ipynb", tmp_path / "y.ipynb")
    assert said in str(error.value) and "\n" not in str(error.value) and not (tmp_path / "y.ipynb").exists()


def test_what_is_up_to_date_needs_nothing_written(project, monkeypatch):
    monkeypatch.setattr(build, "stale", lambda *args: {})
    monkeypatch.setattr(build, "pdfs", lambda: None)
    monkeypatch.setattr(build, "_restamp", lambda notebooks: None)
    assert build.build() == ["nothing was out of date"] and not any(project.iterdir())


# ---------------------------------------------------------------- Ctrl-C

PROGRAM = """
import signal, sys, time
def end(*_):
    time.sleep(1)
    sys.exit(print("saved") or 3)
signal.signal(signal.SIGINT, end)
print("ready", flush=True)
time.sleep(100)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no process groups as a terminal's there")
def test_at_ctrl_c_a_program_ends_in_its_own_way():
    code = f"import sys; from report import machine; sys.exit(machine.call([sys.executable, '-c', {PROGRAM!r}]))"
    command = [sys.executable, "-c", code]
    options = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, cwd=driver.paths.PROJECT, **options) as started:
        assert started.stdout.readline() == "ready\n"
        os.killpg(started.pid, signal.SIGINT)
        assert started.communicate(timeout=100)[0] == "saved\n" and started.returncode == 3


def test_what_a_signal_ends_has_the_status_of_a_shell():
    assert machine.call([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"]) in (143, 15)
