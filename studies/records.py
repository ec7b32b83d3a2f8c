"""Records: one JSON line per finished run, in results/, whatever its dataclass."""

import contextlib
import dataclasses
import functools
import json
import math
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import pandas as pd
import torch
import torchvision
from filelock import FileLock

from lib import device, paths
from studies import machine as own_machine

PROBE = 2**18  # bytes, more than the longest record


def environment(on: torch.device) -> dict:
    """Where a run was trained: device, what exactly that is (machine), dtype of the matrix products, versions, commit,
    date."""
    return {
        "device": name(on, torch.get_num_threads()),
        "machine": machine(on, torch.get_num_threads()),
        "dtype": {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(device.precision(on), "fp32"),
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__,
        },
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }  # fmt: skip


def name(on: torch.device, threads: int) -> str:
    """What people call the device: a GPU's name, or the processor's with the number of threads."""
    if on.type == "cuda":
        return torch.cuda.get_device_name(on)
    cpu = device.cpu().get("cpu_name") or platform.machine()
    return f"{cpu}, {threads} thread{'s' if threads > 1 else ''}" if on.type == "cpu" else f"{on.type}, {cpu}"


def machine(on: torch.device, threads: int) -> str:
    """The device as exactly as it is known: of a processor also the generation, which its name may leave open, and the
    instructions used. The same run gives the same numbers only where this is the same."""
    if on.type != "cpu":
        return name(on, threads)
    return ", ".join([name(on, threads), *_generation(), torch.backends.cpu.get_cpu_capability()])


@functools.cache
def _generation() -> tuple[str, ...]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    except OSError:  # not Linux
        return (platform.processor() or platform.machine(),)
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return tuple(f"{key} {found[key]}" for key in ("cpu family", "model", "stepping") if key in found)


@functools.cache  # of the code as it was loaded, whatever is committed while a run lasts
def commit() -> str:
    """The short hash, with a + if code has changes that are not committed; "unknown" for a copy without a history of
    its own, also one that lies in another repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(paths.PROJECT), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    try:
        top = git("rev-parse", "--show-toplevel")
        if not top or Path(top).resolve() != paths.PROJECT.resolve():
            return "unknown"
        changed = git("status", "--porcelain", "lib", "studies", "benchmarks")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "") or "unknown"
    except OSError:
        return "unknown"


def check_committed() -> None:
    """Raises ValueError where code has changes that are not committed: what it trains could not be repeated."""
    if commit().endswith("+") and not paths.smoke():
        raise ValueError("lib, studies or benchmarks have changes that are not committed: commit them, then train")


def rounded(value):
    """The floats in nested dicts and lists to six digits, which keeps a line short."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else value


def in_json(value):
    """value in what JSON holds: tensors, arrays and their scalars as lists and numbers, anything else as its text, so
    that no run is lost for what is recorded of it."""
    if isinstance(value, dict):
        return {str(k): in_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [in_json(v) for v in value]
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
    if hasattr(value, "tolist"):
        return in_json(value.tolist())
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def record(run, measured, history: dict, on: torch.device, seconds: float) -> dict:
    """What is recorded of a finished run, a dataclass; of its metrics and history six digits. measured: its metrics, or
    a function that gives them: if it fails the run is recorded all the same, with what went wrong as its error."""
    found = attempt(measured) if callable(measured) else measured
    error = found.get("error")
    found = {"metrics": {k: v for k, v in found.items() if k != "error"}, "history": history, "seconds": seconds}
    found |= ({"error": error} if error else {}) | environment(on)
    return {"config": dataclasses.asdict(run), **rounded(in_json(found))}


def attempt(measure) -> dict:
    """What measure() gives, or {"error": what went wrong}."""
    try:
        return measure()
    except Exception as error:  # also of a device that has no memory left
        return {"error": cause(error)}


def metrics_of(functions: dict) -> dict:
    """The metrics that these functions give, each under its name or, where it gives several, its tuple of names. Those
    of a function that fails are NaN; the first cause is the entry error."""
    found, causes = {}, []
    for names, function in functions.items():
        names, several = ((names,), False) if isinstance(names, str) else (names, True)
        try:
            values = function()
            values = list(values) if several else [values]
        except Exception as error:
            causes.append(cause(error))
            values = [math.nan] * len(names)
        found |= dict(zip(names, values, strict=True))
    return found | ({"error": causes[0]} if causes else {})


def cause(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else text[:299] + "…"


def read(path: Path, kind: type) -> dict:
    """The records of a file by their run, a dataclass of this kind; of several records of one run the last counts.

    A torn last line (a killed write) is reported and left out. Raises ValueError, naming the
    line, for any other line that is not a run record.
    """
    records = {}
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record["metrics"], dict) or not isinstance(record["history"], dict):
                raise TypeError("metrics and history must be objects")
            records[kind(**record["config"])] = record
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if number == len(lines):  # no newline behind it
                print(f"{path.name}, line {number}: torn by an interrupted write, left out", file=sys.stderr)
            else:
                raise ValueError(
                    f"{path}, line {number} is not a run record ({str(error)[:60]}): move that line to another file"
                ) from None
    return records


def append(path: Path, record: dict, show: bool = True) -> None:
    """Add one record as one line, also with several processes at work. A torn last line, of a killed write, goes.
    Raises OSError if that fails, and the file is as it was; show: the record is then printed, so that it is not lost.
    """
    line = json.dumps(in_json(record)).encode() + b"\n"
    try:
        with FileLock(f"{path}.lock"), path.open("ab+", buffering=0) as file:
            file.seek(0)
            content = file.read()
            last = content[content.rfind(b"\n") + 1 :]
            size = len(content)
            if last and _whole(last):
                line = b"\n" + line  # only its newline is missing
            else:
                size -= len(last)
            file.truncate(size)
            try:
                _write(file, line)
            except OSError:  # on a full disk a part of it may be there
                with contextlib.suppress(OSError):
                    file.truncate(size)
                raise
    except OSError as error:
        if show:
            print(line.decode().strip(), file=sys.stderr)
        raise OSError(
            f"{path} cannot be written ({error.strerror}): free space or make it writable, then append the line above"
        ) from error


def _write(file, line: bytes) -> None:
    """All of the line, and onto the disk: an unbuffered file takes as much as there is room for."""
    while line:
        line = line[file.write(line) :]
    os.fsync(file.fileno())


def _whole(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def frame(records) -> pd.DataFrame:
    """Records as rows: config fields, metrics, history, seconds, device, commit, date, machine."""
    columns = ("history", "seconds", "device", "commit", "date")
    return pd.DataFrame(
        [
            {
                **r["config"],
                **r["metrics"],
                **{c: r.get(c) for c in columns},
                "machine": r.get("machine", r.get("device")),
            }
            for r in records
        ]
    )


def check_writable(path: Path) -> None:
    """Raises OSError if records cannot be written there, or no space is left for some: better before a training than
    after it."""
    probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
        probe.write_bytes(bytes(PROBE))
    except OSError as error:
        cure = "free space" if error.errno in own_machine.FULL else "make the folder writable"
        raise OSError(f"{path} cannot be written ({error.strerror}): {cure}") from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
