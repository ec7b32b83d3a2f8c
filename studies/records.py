"""Records: one JSON line per finished run, in results/, whatever its dataclass."""

import dataclasses
import functools
import json
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


def environment(on: torch.device) -> dict:
    """Where a run was trained: device, what exactly that is (machine), dtype of the matrix products, versions, commit,
    date."""
    return {
        "device": name(on, torch.get_num_threads()),
        "machine": machine(on, torch.get_num_threads()),
        "dtype": "bf16" if device.has_bf16(on) else "fp32",
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
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
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


def plain(value):
    """value in what JSON holds: tensors, arrays and their scalars as lists and numbers, anything else as its text, so
    that no run is lost for what is recorded of it."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def record(run, measured: dict, history: dict, on: torch.device, seconds: float) -> dict:
    """What is recorded of a finished run, a dataclass; of its metrics and history six digits."""
    found = {"metrics": measured, "history": history, "seconds": seconds, **environment(on)}
    return {"config": dataclasses.asdict(run), **rounded(plain(found))}


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
            record["metrics"], record["history"]
            records[kind(**record["config"])] = record
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):  # no newline behind it
                print(f"{path.name}, line {number}: torn by an interrupted write, left out", file=sys.stderr)
            else:
                raise ValueError(
                    f"{path}, line {number} is not a run record ({str(error)[:60]}): move that line to another file"
                ) from None
    return records


def append(path: Path, record: dict) -> None:
    """Add one record as one line, also with several processes at work. A torn last line, of a killed write, goes.
    Raises OSError if that fails; the record is then printed, so that it is not lost."""
    line = json.dumps(plain(record)).encode() + b"\n"
    try:
        with FileLock(f"{path}.lock"), path.open("ab+") as file:
            file.seek(0)
            content = file.read()
            last = content[content.rfind(b"\n") + 1 :]
            if last and _whole(last):
                line = b"\n" + line  # only its newline is missing
            else:
                file.truncate(len(content) - len(last))
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        print(line.decode().strip(), file=sys.stderr)
        raise OSError(
            f"{path} cannot be written ({error.strerror}): free space or make it writable, then append the line above"
        ) from error


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
            {**r["config"], **r["metrics"], **{c: r[c] for c in columns}, "machine": r.get("machine", r["device"])}
            for r in records
        ]
    )


def check_writable(path: Path) -> None:
    """Raises OSError if records cannot be written there: better before a training than after it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error.strerror}): make the folder writable") from error
