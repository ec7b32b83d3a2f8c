"""Packages: groups, locks and the environment that a command finds or makes. Nothing is installed here."""

import ast
import importlib.metadata
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from report import colab, environment
from report.__main__ import main

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
GROUPS = PROJECT["dependency-groups"]
LOCK = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))
REQUIREMENTS = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
CUDA = ("nvidia-", "cuda-", "triton")
MAIN, README = ((ROOT / name).read_text(encoding="utf-8") for name in ("report/__main__.py", "README.md"))


def name(requirement):
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=!~\[ ;]", requirement)[0]).lower()


def minimum(requirement):
    return tuple(int(part) for part in re.search(r"[>=]=([\d.]+)", requirement)[1].split("."))


# ---------------------------------------------------------------- groups


def imported(*parts):
    """The top-level modules that the code of these folders imports."""
    found = set()
    for path in (path for part in parts for path in (ROOT / part).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"lib", "studies", "report", "benchmarks", "google", "tomli"}


def modules(*groups):
    return {module for group in groups for module in environment.GROUPS[group]}


def test_the_groups_name_the_modules_of_their_packages():
    assert set(GROUPS) == set(environment.GROUPS)
    provided = importlib.metadata.packages_distributions()
    for group, requirements in GROUPS.items():
        own = {name(requirement) for requirement in requirements} | ({"torch"} if group == "study" else set())
        by_module = {module: {name(one) for one in provided.get(module, ())} for module in environment.GROUPS[group]}
        installed = {module: found for module, found in by_module.items() if found}
        assert len(environment.GROUPS[group]) == len(own), group
        assert all(found & own for found in installed.values()), (group, installed)


def test_each_part_imports_what_its_groups_hold():
    own = {"nbformat", "traitlets"}  # with nbconvert
    assert imported("report/site") <= modules("report", "site") | own | {"docutils"}  # the last with Sphinx
    assert imported("report") - imported("report/site") <= modules("report") | own
    assert imported("lib", "studies", "benchmarks") <= modules("study")
    assert name(PROJECT["project"]["dependencies"][0]) == "torch" and len(PROJECT["project"]["dependencies"]) == 1
    assert imported("lib/heads") <= {"torch", "pytorch_metric_learning"}


def test_beside_jupyter_the_heads_break_nothing():
    # nbconvert loads the exporters that all packages declare, and stops where one lacks what it imports
    assert "entry-points" not in PROJECT["project"]


def test_no_bar_and_no_figure_asks_for_widgets():
    # without ipywidgets tqdm.auto and tqdm.notebook warn in every notebook
    assert not [package for package in LOCK["package"] if "widgets" in package["name"]]
    parts = ("lib", "studies", "course", "report", "benchmarks")
    code = [path for part in parts for path in (ROOT / part).rglob("*.py")]
    for path in [*code, *(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "report").glob("*.ipynb")]:
        assert not re.search(r"tqdm\.(auto|notebook|autonotebook)|import ipywidgets", path.read_text(encoding="utf-8"))


def test_the_report_needs_no_torch():
    code = "import sys; sys.modules['torch'] = sys.modules['scipy'] = None; import report.pdf, report.submission"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    locked = {package["name"]: package for package in LOCK["package"]}
    needed, queue = set(), [name(requirement) for requirement in GROUPS["report"]]
    while queue:
        if (one := queue.pop()) not in needed:
            needed.add(one)
            queue += [dependency["name"] for dependency in locked[one].get("dependencies", ())]
    assert not {"torch", "jupyterlab", "pandas"} & needed and "typst" in needed and len(needed) < 70


# ---------------------------------------------------------------- locks


def test_the_lock_is_that_of_pyproject():
    project = next(package for package in LOCK["package"] if package["name"] == PROJECT["project"]["name"])
    locked = {
        group: {(name(entry["name"]), entry.get("specifier", "")) for entry in entries}
        for group, entries in project["metadata"]["requires-dev"].items()
    }
    wanted = {
        group: {(name(requirement), re.sub(r"^[\w.-]+|;.*", "", requirement)) for requirement in requirements}
        for group, requirements in GROUPS.items()
    }
    assert locked == wanted
    assert [entry["name"] for entry in project["metadata"]["requires-dist"]] == ["torch"]
    assert LOCK["requires-python"].replace(" ", "") == PROJECT["project"]["requires-python"]


def test_the_lock_names_public_places_only():
    hosts = set(re.findall(r"https?://([^/\"]+)", (ROOT / "uv.lock").read_text(encoding="utf-8")))
    assert hosts == {"pypi.org", "files.pythonhosted.org"}
    assert "://" not in "".join(REQUIREMENTS)


def test_pip_gets_the_versions_of_the_lock():
    locked = {
        (package["name"], package["version"]) for package in LOCK["package"] if "virtual" not in package["source"]
    }
    locked = {pair for pair in locked if pair[0] != PROJECT["project"]["name"] and not pair[0].startswith(CUDA)}
    pinned = {(name(line), re.search(r"==([^ ;]+)", line)[1]) for line in REQUIREMENTS}
    assert pinned == locked


def test_conda_gets_them_too():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *packages, pip = conda["dependencies"]
    assert packages == [f"python{PROJECT['project']['requires-python']}", "pip"]
    assert pip == {"pip": ["-r requirements.txt", "-e ."]}


PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]


def test_the_same_pythons_are_named_everywhere():
    first, last = PYTHONS[0], PYTHONS[-1]
    after = f"3.{int(last.partition('.')[2]) + 1}"
    assert PROJECT["project"]["requires-python"] == f">={first},<{after}"
    assert f"if not (3, {first[2:]}) <= sys.version_info < (3, {after[2:]}):" in MAIN
    for text in (MAIN, README, (ROOT / "requirements.txt").read_text(encoding="utf-8")):
        assert f"{first} to {last}" in text and f"Python {first} or newer" not in text


def surroundings(python, system):
    """What the markers of requirements ask for. system is the beginning of a wheel's tag, and where that is not enough
    the machine."""
    darwin, windows = system.startswith("mac"), system.startswith("win")
    machine = system.partition(" ")[2] or re.sub(r"macosx_\d+_\d+_", "", system).replace("win_amd64", "AMD64")
    return {
        "python_version": python, "python_full_version": f"{python}.9", "implementation_name": "cpython",
        "platform_python_implementation": "CPython", "os_name": "nt" if windows else "posix",
        "sys_platform": "win32" if windows else "darwin" if darwin else "linux", "platform_machine": machine,
        "platform_system": "Windows" if windows else "Darwin" if darwin else "Linux", "extra": "",
    }  # fmt: skip


def holds(requirement, there):
    from packaging.markers import Marker

    marker = requirement.partition(";")[2].strip()
    return not marker or Marker(marker).evaluate(there)


def pins(there):
    """The versions that pip gets there."""
    lines = [line for line in REQUIREMENTS if holds(line, there)]
    return {name(line): line.partition(";")[0].strip().partition("==")[2] for line in lines}


def installed(groups, there):
    """The names of all packages of the lock that these groups need there."""

    def chosen(package):  # where there are several versions, each says for which Python it is
        marked = package.get("resolution-markers")
        return not marked or any(holds(f";{marker}", there) for marker in marked)

    found = set()
    queue = [(name(one), ()) for group in groups for one in GROUPS[group] if holds(one, there)]
    queue += [("torch", ())] * ("study" in groups)
    while queue:
        found.add(one := queue.pop())
        package, extras = one
        locked = next(p for p in LOCK["package"] if p["name"] == package and chosen(p))
        needed = [*locked.get("dependencies", ())]
        needed += [entry for extra in extras for entry in locked["optional-dependencies"][extra]]
        needed = [entry for entry in needed if holds(f";{entry.get('marker', '')}", there)]
        queue += [pair for e in needed if (pair := (e["name"], tuple(e.get("extra", ())))) not in found]
    return {package for package, _ in found}


def without_wheels(packages, python, system):
    """Those that are not pure Python and have no wheel that fits there; by the names of the wheels alone."""
    from packaging.utils import parse_wheel_filename

    minor, (first, _, machine) = int(python.split(".")[1]), system.partition(" ")

    def fits(tag):
        interpreter = tag.interpreter in ("py3", "py2.py3", f"cp3{minor}") or (
            tag.abi == "abi3" and int(tag.interpreter[3:] or 0) <= minor
        )
        if not (interpreter and tag.abi in ("none", "abi3", f"cp3{minor}")):
            return False
        if tag.platform == "any" or not (mac := re.match(r"macosx_(\d+)_\d+_(.+)", system)):
            return tag.platform == "any" or (tag.platform.startswith(first) and tag.platform.endswith(machine))
        version = re.match(rf"macosx_(\d+)_\d+_({mac[2]}|universal2)$", tag.platform)
        return bool(version) and int(version[1]) <= int(mac[1])

    wheels = {(package["name"], package.get("version")): package.get("wheels", ()) for package in LOCK["package"]}
    pinned, without = pins(surroundings(python, system)), []
    for package in packages:
        files = [wheel["url"].rsplit("/", 1)[1] for wheel in wheels[package, pinned[package]]]
        if not any(fits(tag) for file in files for tag in parse_wheel_filename(file)[3]):
            without.append(package)
    return without


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("system", ["win_amd64", "macosx_14_0_arm64", "manylinux x86_64", "manylinux aarch64"])
def test_the_lock_has_wheels(python, system):
    there = pins(surroundings(python, system))
    assert "torch" in there and "jupyterlab" in there
    assert without_wheels(there, python, system) == []


@pytest.mark.parametrize("python", PYTHONS)
def test_a_mac_with_an_intel_processor_makes_the_pdf_and_the_zip(python):
    system = "macosx_13_0_x86_64"
    there = installed({"report"}, surroundings(python, system))
    assert "typst" in there and "torch" not in there
    assert without_wheels(there, python, system) == [] and "macOS 13" in README
    assert "torch" in without_wheels(["torch"], python, system)


def test_readme_counts_the_packages_of_the_lock():
    there = surroundings("3.11", "manylinux x86_64")
    lab = installed({"study", "report", "notebooks"}, there)
    counted = {
        "the PDF": installed({"report"}, there), "the first notebook open": lab,
        "the same with PyTorch's CPU build": {one for one in lab if not one.startswith(CUDA)},
        "all tests passed": installed(GROUPS, there), "every notebook executed": lab,
    }  # fmt: skip
    for row, packages in counted.items():
        assert re.search(rf"^\| {row}[^|]*\| (\d+) \|", README, re.M)[1] == str(len(packages)), row


# ---------------------------------------------------------------- which environment


@pytest.fixture
def outside(project, monkeypatch):
    """The system's Python, in an empty project with the lock; returns what is started in place of it."""
    for variable in ("CONDA_PREFIX", "CONDA_DEFAULT_ENV", "VIRTUAL_ENV", "COLAB_RELEASE_TAG", "TORCH"):
        monkeypatch.delenv(variable, raising=False)
    for path in ("uv.lock", "pyproject.toml", "requirements.txt"):
        (project / path).write_text((ROOT / path).read_text(encoding="utf-8"), encoding="utf-8")
    started = []

    def run(command, **options):
        started.append([str(part) for part in command])
        if command[1:2] in (["sync"], ["venv"]) or "venv" in command:
            environment.python().parent.mkdir(parents=True, exist_ok=True)
            environment.python().touch()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(environment.sys, "prefix", sys.base_prefix)
    monkeypatch.setattr(environment.subprocess, "run", run)
    monkeypatch.setattr(
        environment.os, "execv", lambda path, arguments: sys.exit(started.append(["again", *arguments]))
    )
    monkeypatch.setattr(environment.shutil, "which", lambda program: "uv" if program == "uv" else None)
    monkeypatch.setattr(environment.urllib.request, "urlopen", lambda *a, **o: (_ for _ in ()).throw(OSError))
    return started


def test_the_report_alone_is_installed_without_the_project(outside, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["report", "submission", "Lovelace", "Ada", "1"])
    with pytest.raises(SystemExit):
        environment.enter({"report"})
    (sync, again) = outside
    assert sync[1] == "sync" and sync[-3:-1] == ["--only-group", "report"] and "--frozen" in sync
    assert again == ["again", str(environment.python()), "-m", "report", "submission", "Lovelace", "Ada", "1"]
    environment.fill({"report"})
    assert len(outside) == 2  # nothing more to install


def test_a_second_command_adds_its_groups_and_a_changed_lock_installs_anew(outside, project):
    environment.fill({"report"})
    environment.fill({"study"})
    assert [part for part in outside[-1] if part in environment.GROUPS] == ["report", "study"]
    environment.fill({"report", "study"})
    assert len(outside) == 2
    (project / "uv.lock").write_text("version = 1\n")
    environment.fill({"report"})
    assert [part for part in outside[-1] if part in environment.GROUPS] == ["report", "study"]


@pytest.mark.parametrize("never_written", [True, False])
def test_packages_are_compiled_once_where_python_would_not_keep_what_it_compiles(outside, monkeypatch, never_written):
    run, settings = subprocess.run, []
    monkeypatch.setattr(sys, "dont_write_bytecode", never_written)
    monkeypatch.setattr(
        environment.subprocess, "run", lambda command, **o: settings.append(o["env"]) or run(command, **o)
    )
    monkeypatch.delenv("UV_COMPILE_BYTECODE", raising=False)
    environment.fill({"report"})
    assert [env.get("UV_COMPILE_BYTECODE") for env in settings] == ["1" if never_written else None]


def test_without_uv_it_is_installed_first(outside, monkeypatch):
    monkeypatch.setattr(environment.shutil, "which", lambda program: None)
    environment.fill({"report"})
    assert outside[0][1:3] == ["-m", "venv"] and outside[1][1:4] == ["-m", "pip", "install"]
    assert outside[2][0] == str(environment.python().with_name("uv")) and outside[2][1] == "sync"


def test_a_failed_installation_is_tried_again(outside, monkeypatch):
    succeed = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1))
    with pytest.raises(OSError, match=r"^\.venv is incomplete"):
        environment.fill({"report"})
    monkeypatch.setattr(subprocess, "run", succeed)
    environment.fill({"report"})
    assert outside[-1][1] == "sync"


@pytest.mark.parametrize(
    ("variables", "prefix", "cure"),
    [
        ({"CONDA_DEFAULT_ENV": "mine", "CONDA_PREFIX": sys.base_prefix}, sys.base_prefix, "conda env update"),
        ({"VIRTUAL_ENV": "/mine"}, "/mine", "python -m pip install -r requirements.txt"),
    ],
)
def test_an_active_environment_is_used_or_what_it_lacks_is_named(outside, monkeypatch, variables, prefix, cure):
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(environment.sys, "prefix", prefix)
    environment.enter({"report", "study"})
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda module: None if module == "typst" else module)
    with pytest.raises(ValueError, match=f"^the active environment lacks typst: run `{cure}"):
        environment.enter({"report", "study"})
    environment.enter({"study"})
    assert not outside


def test_an_older_python_needs_no_packages_of_the_web_edition(outside, monkeypatch):
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda module: None)
    assert set(environment.lacking({"site"})) == set(environment.GROUPS["site"])
    monkeypatch.setattr(environment.sys, "version_info", (3, 10, 4))
    assert environment.lacking({"site"}) == []
    assert all("python_version >= '3.11'" in requirement for requirement in GROUPS["site"])


def test_an_older_python_is_told_before_anything_is_installed(outside, project, monkeypatch):
    message = "error: the web edition needs Python 3.11 or newer, this is 3.10: call a newer one"
    monkeypatch.setattr(environment.sys, "version_info", (3, 10, 4))
    with pytest.raises(SystemExit, match=f"^{message}$"):
        main(["site"])
    monkeypatch.setattr(environment.sys, "version_info", (3, 12, 1))
    environment.python().parent.mkdir(parents=True)
    environment.python().touch()
    settings = project / ".venv" / "pyvenv.cfg"
    for line in ("version_info = 3.10.4", "version = 3.10.4"):  # uv's, and that of Python's own venv
        settings.write_text(f"home = /usr/bin\n{line}\n")
        with pytest.raises(SystemExit, match=f"^{message} without \\.venv$"):
            main(["site"])
    assert not outside
    settings.write_text("version_info = 3.11.7\n")
    environment.at_least((3, 11), "the web edition")


def test_conda_base_is_no_environment_that_somebody_chose(outside, monkeypatch):
    monkeypatch.setenv("CONDA_DEFAULT_ENV", "base")
    monkeypatch.setenv("CONDA_PREFIX", sys.base_prefix)
    with pytest.raises(SystemExit):
        environment.enter({"report"})
    assert outside[0][1] == "sync" and outside[1][0] == "again"


# ---------------------------------------------------------------- with or without CUDA


def answering(*arguments, **options):
    return open(os.devnull, "rb")


@pytest.mark.parametrize(
    ("asked", "answers", "gpu", "cpu"),
    [
        ("", True, False, True), ("", True, True, False), ("", False, False, False), ("cpu", False, True, True),
        ("gpu", True, False, False),
    ],
)  # fmt: skip
def test_pytorch_without_cuda_is_taken_where_there_is_no_gpu(outside, monkeypatch, capsys, asked, answers, gpu, cpu):
    monkeypatch.setenv("TORCH", asked)
    monkeypatch.setattr(environment.sys, "platform", "linux")
    monkeypatch.setattr(environment.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(environment.shutil, "which", lambda program: gpu if program == "nvidia-smi" else "uv")
    if answers:
        monkeypatch.setattr(environment.urllib.request, "urlopen", answering)
    assert environment.wants_cpu() is cpu
    assert ("does not answer" in capsys.readouterr().out) is not (asked or answers or gpu)
    environment.fill({"study"})
    with_backend = [call for call in outside if "--torch-backend" in call]
    assert len(with_backend) == cpu and any("sync" in call for call in outside) is not cpu


def test_an_unknown_build_is_refused(outside, monkeypatch):
    monkeypatch.setenv("TORCH", "rocm")
    with pytest.raises(ValueError, match=r"^TORCH=rocm is unknown: leave it out or use TORCH=cpu or TORCH=gpu$"):
        environment.fill({"study"})


def test_pypi_is_taken_where_the_cpu_build_fails(outside, monkeypatch, capsys):
    succeed = subprocess.run

    def run(command, **options):
        done = succeed(command, **options)
        return subprocess.CompletedProcess(command, int("--torch-backend" in command)) if done else done

    monkeypatch.setenv("TORCH", "cpu")
    monkeypatch.setattr(subprocess, "run", run)
    environment.fill({"study"})
    assert outside[-1][1] == "sync" and "PyPI's is taken" in capsys.readouterr().out


# ---------------------------------------------------------------- its size


@pytest.mark.parametrize(("bytes_there", "fits"), [(2**20, True), (3 * 2**20, False)])
def test_more_on_disk_than_readme_says_is_an_error(tmp_path, bytes_there, fits):
    size = runpy.run_path(str(ROOT / ".ci" / "size.py"))
    assert size["stated"](README) == float(re.search(r"^\| all tests passed .*\| ([\d.]+) GB", README, re.M)[1]) > 1
    (tmp_path / "file").write_bytes(bytes(bytes_there))
    (tmp_path / "again").hardlink_to(tmp_path / "file")  # counted once
    said = size["compared"](tmp_path, 2 / 1024)
    assert said.startswith("error: ") is not fits and "\n" not in said


def test_a_readme_without_the_size_is_an_error():
    with pytest.raises(ValueError, match=r"^README's table names no GB"):
        runpy.run_path(str(ROOT / ".ci" / "size.py"))["stated"]("| all tests passed | 200 | much |")


# ---------------------------------------------------------------- Colab


def test_colab_installs_what_is_missing_and_changes_nothing_else(monkeypatch, tmp_path):
    there = {name(requirement): "99" for requirement in [*GROUPS["study"], "torch", "ipywidgets", "some_thing"]}
    del there["pytorch-metric-learning"]
    distributions = [type("D", (), {"metadata": {"Name": key}, "version": value}) for key, value in there.items()]
    monkeypatch.setattr(colab.importlib.metadata, "distributions", lambda: distributions)
    calls = []

    def run(command, **options):
        if "--constraint" in command:
            calls.append((command, Path(command[command.index("--constraint") + 1]).read_text().splitlines()))
        return subprocess.CompletedProcess(command, 0, stdout="Tesla T4\n")

    monkeypatch.setattr(colab.subprocess, "run", run)
    colab.install()
    ((command, pins),) = calls
    assert command[-1] == "pytorch-metric-learning>=2.9" and command[-2].endswith("constraints.txt")
    assert {"torch==99", "torchvision==99", "ipywidgets==99", "some-thing==99"} <= set(pins)
    there["pytorch-metric-learning"] = "99"
    distributions.append(type("D", (), {"metadata": {"Name": "pytorch_metric_learning"}, "version": "99"}))
    colab.install()
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("torch", "torchvision", "said"),
    [
        ("2.9.0+cu126", "0.24.0", ""),
        ("2.10.0", "0.25", ""),
        ("2.8.0+cu126", "0.24.1", "(torch 2.8.0+cu126, needed is torch>=2.9)"),
        ("1.13", "0.9.0", "(torch 1.13, needed is torch>=2.9, torchvision 0.9.0, needed is torchvision>=0.24)"),
    ],
)
def test_a_pytorch_on_colab_that_is_too_old_is_named_with_a_cure(monkeypatch, capsys, torch, torchvision, said):
    there = {name(requirement): "99" for requirement in GROUPS["study"]} | {"torch": torch, "torchvision": torchvision}
    distributions = [type("D", (), {"metadata": {"Name": key}, "version": value}) for key, value in there.items()]
    monkeypatch.setattr(colab.importlib.metadata, "distributions", lambda: distributions)
    monkeypatch.setattr(colab.subprocess, "run", lambda *a, **o: (_ for _ in ()).throw(FileNotFoundError))
    if not said:
        colab.install()
        return
    with pytest.raises(SystemExit) as ended:
        main(["on_colab"])
    line = str(ended.value.code)
    assert line.startswith(f"error: PyTorch is too old here {said} and is not replaced: choose the latest runtime")
    assert "\n" not in line and not capsys.readouterr().out


def test_colab_says_which_gpu_it_found(monkeypatch, capsys):
    monkeypatch.setattr(colab, "lacking", lambda: ([], []))
    monkeypatch.setattr(colab, "too_old", list)
    done = subprocess.CompletedProcess([], 0, stdout="Tesla T4\n")
    monkeypatch.setattr(colab.subprocess, "run", lambda *a, **o: done)
    colab.install()
    assert capsys.readouterr().out == "GPU: Tesla T4\n"
    monkeypatch.setattr(colab.subprocess, "run", lambda *a, **o: (_ for _ in ()).throw(FileNotFoundError))
    colab.install()
    assert "Runtime > Change runtime type" in capsys.readouterr().out


def test_records_on_the_drive_are_kept_and_get_those_of_the_clone(project, tmp_path):
    drive = tmp_path / "drive"
    records = project / "results" / "runs.jsonl"
    records.parent.mkdir()
    records.write_text("one\n")
    kept = colab.keep_on_drive(drive) / "runs.jsonl"
    with records.open("a") as file:  # trained on Colab
        file.write("mine\n")
    assert kept.read_text() == "one\nmine\n" and colab.keep_on_drive(drive) == kept.parent
    records.parent.unlink()  # another day: a new clone, with a further record
    records.parent.mkdir()
    records.write_text("one\ntwo\n")
    (project / "results_of_the_clone").rename(project / "old")
    colab.keep_on_drive(drive)
    assert records.read_text() == "two\none\nmine\n"
