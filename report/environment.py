"""Where the project's commands run: in an active conda or virtual environment, else in .venv, which is made and filled
from uv.lock with the groups of packages that a command needs. Standard library only, for nothing is installed yet.
"""

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from lib import paths
from report import machine

# pyproject.toml's groups, with the modules that their packages are imported as
GROUPS = {
    "report": (
        "bs4", "IPython", "lxml", "matplotlib", "nbclient", "nbconvert", "numpy", "pikepdf", "PIL", "pypandoc", "pypdf",
        "soupsieve", "tinycss2", "tqdm", "typst", "yaml",
    ),
    "study": (
        "torch", "torchvision", "numpy", "scipy", "sklearn", "pandas", "tabulate", "matplotlib", "PIL", "seaborn",
        "joblib", "pytorch_metric_learning", "filelock", "safetensors", "threadpoolctl", "tqdm",
    ),
    "notebooks": ("ipykernel", "jupyterlab"),
    "site": ("sphinx", "myst_nb", "myst_parser", "furo", "sphinx-mathjax-offline"),
    "dev": (
        "codespell_lib", "distributed", "hypothesis", "mypy", "onnx", "onnxscript", "pdfua", "pypdf", "pytest", "xdist",
        "ruff", "websocket",
    ),
}  # fmt: skip
SITE = (3, 11)  # the Python that the web edition's packages need
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def enter(groups: set[str]) -> None:
    """Go on only where these groups are installed: here, or in .venv by starting this command anew. Raises ValueError
    for an active environment that lacks them, OSError if .venv cannot be filled."""
    if active():
        if missing := lacking(groups):
            conda = "CONDA_PREFIX" in os.environ and Path(os.environ["CONDA_PREFIX"]) == Path(sys.prefix)
            cure = "conda env update -f environment.yml" if conda else "python -m pip install -r requirements.txt"
            names = ", ".join(missing[:5]) + (" and others" if len(missing) > 5 else "")
            raise ValueError(f"the active environment lacks {names}: run `{cure}`, or deactivate it to use .venv")
        return
    fill(groups)
    if not _is_own():
        again = [str(python()), "-m", "report", *sys.argv[1:]]
        if os.name == "posix":
            sys.stdout.flush()
            os.execv(again[0], again)  # signals reach the command itself
        sys.exit(machine.call(again))


def active() -> bool:
    """Whether this Python belongs to an environment that somebody chose: not the system's, conda's base or .venv."""
    if _is_own():
        return False
    conda = os.environ.get("CONDA_DEFAULT_ENV", "base") != "base" and "CONDA_PREFIX" in os.environ
    return sys.prefix != sys.base_prefix or conda or "COLAB_RELEASE_TAG" in os.environ


def at_least(version: tuple[int, int], what: str) -> None:
    """Raises ValueError where the Python that runs the commands, this one or .venv's, is older than what needs."""
    settings = paths.PROJECT / ".venv" / "pyvenv.cfg"
    found, own = sys.version_info[:2], ""
    if not active() and not _is_own() and python().exists() and settings.exists():
        known = re.search(r"^version(?:_info)?\s*=\s*(\d+)\.(\d+)", settings.read_text(encoding="utf-8"), re.M)
        found = (int(known[1]), int(known[2])) if known else found
    if python().exists() and not active():
        own = " without .venv"
    if found < version:
        needed, there = (".".join(map(str, one)) for one in (version, found))
        raise ValueError(f"{what} needs Python {needed} or newer, this is {there}: call a newer one{own}")


def lacking(groups: set[str]) -> list[str]:
    """The modules of these groups that this Python does not find."""
    groups = groups if sys.version_info >= SITE else groups - {"site"}  # there it has no packages
    names = dict.fromkeys(name for group in GROUPS if group in groups for name in GROUPS[group])
    return [name for name in names if not importlib.util.find_spec(name)]


def python() -> Path:
    """.venv's Python."""
    return paths.PROJECT / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def fill(groups: set[str]) -> None:
    """Install in .venv, at uv.lock's versions, what these groups and those that it has need. Raises OSError."""
    stamp = paths.PROJECT / ".venv" / ".installed"
    lock = hashlib.sha256((paths.PROJECT / "uv.lock").read_bytes().replace(b"\r\n", b"\n")).hexdigest()
    known, *had = stamp.read_text(encoding="utf-8").split() or [""] if stamp.exists() else [""]
    groups = {*groups, *(group for group in had if group in GROUPS)}
    if python().exists() and known == lock and groups <= set(had):
        return
    start = time.time()
    print(f"setting up .venv for {', '.join(group for group in GROUPS if group in groups)}", flush=True)
    uv = shutil.which("uv") or _own_uv()
    cpu = "study" in groups and wants_cpu()
    if not (cpu and _install_cpu(uv)):
        if groups == {"report"}:
            chosen = ["--only-group", "report"]  # without the project, so without torch
        else:
            chosen = ["--no-default-groups", *(part for group in sorted(groups) for part in ("--group", group))]
        target = python() if python().exists() else sys.executable
        if _run(uv, "sync", "--frozen", "--inexact", "--python", str(target), *chosen):
            raise OSError(".venv is incomplete (the reason is above): mend it and call the same command again")
    stamp.write_text("\n".join([lock, *sorted(groups)]) + "\n", encoding="utf-8")
    print(f"set up in {time.time() - start:.0f} s", flush=True)


def wants_cpu() -> bool:
    """Whether to take PyTorch's build without CUDA: TORCH=cpu or TORCH=gpu says so; else, on Linux, where there is no
    NVIDIA GPU and PyTorch's own index answers, for PyPI has the build with CUDA only. Raises ValueError."""
    asked = os.environ.get("TORCH", "")
    if asked not in ("", "cpu", "gpu"):
        raise ValueError(f"TORCH={asked} is unknown: leave it out or use TORCH=cpu or TORCH=gpu")
    if asked or (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return asked == "cpu"
    if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists():
        return False
    try:
        urllib.request.urlopen(f"{CPU_INDEX}/torch/", timeout=5).close()
    except (OSError, ValueError):
        print("no GPU here, but PyTorch's index of CPU builds does not answer: PyPI's build with CUDA is taken")
        return False
    return True


def _install_cpu(uv: str) -> bool:
    """The locked versions, with torch and torchvision from PyTorch's index of CPU builds; False if that fails."""
    if not python().exists():
        _run(uv, "venv", "--python", sys.executable, str(paths.PROJECT / ".venv"))
    install = ["pip", "install", "--python", str(python())]
    failed = _run(uv, *install, "--torch-backend", "cpu", "-r", "requirements.txt")
    failed = failed or _run(uv, *install, "--no-deps", "-e", ".")
    if failed:
        print("the CPU build could not be installed: PyPI's is taken", flush=True)
    return not failed


def _own_uv() -> str:
    """uv, installed by pip in .venv, which is made if it is missing. Raises OSError."""
    own = python().with_name("uv.exe" if os.name == "nt" else "uv")
    if not own.exists():
        made = subprocess.run([sys.executable, "-m", "venv", str(paths.PROJECT / ".venv")]).returncode == 0
        pip = [str(python()), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv"]
        if not made or subprocess.run(pip).returncode:
            raise OSError("uv could not be installed (the reason is above): install it, or Python's venv and pip")
    return str(own)


def _run(uv: str, *arguments: str) -> int:
    quiet = [] if sys.stderr.isatty() else ["--quiet"]  # in a log neither bars nor a line per package
    env = {**os.environ, "UV_PROJECT_ENVIRONMENT": str(paths.PROJECT / ".venv")}
    env.pop("VIRTUAL_ENV", None)
    if sys.dont_write_bytecode:  # as in many containers; else every process would compile all packages again
        env["UV_COMPILE_BYTECODE"] = "1"
    return subprocess.run([uv, *arguments, *quiet], cwd=paths.PROJECT, env=env).returncode


def _is_own() -> bool:
    own = paths.PROJECT / ".venv"
    return own.exists() and own.samefile(sys.prefix)
