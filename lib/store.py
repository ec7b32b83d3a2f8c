"""Records: one JSON line per finished run, in results/; every study, of any dataclass of runs, keeps them so.

Environment: PROFILE=smoke works in .smoke/ instead of the project's folders; RETRAIN=1 trains what is
recorded anew (the newest record of a run counts).
"""

import dataclasses
import functools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

import joblib
import pandas as pd
import torch
import torchvision
from filelock import FileLock
from tqdm import tqdm

from lib import train

PROJECT = Path(__file__).resolve().parent.parent


def smoke() -> bool:
    return os.environ.get("PROFILE") == "smoke"


def folder(name: str) -> Path:
    """The project's results/, figures/ or report/ folder; in the smoke profile its copy in .smoke/."""
    path = PROJECT / ".smoke" / name if smoke() else PROJECT / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def environment(device: torch.device) -> dict:
    """Where a run was trained: device, dtype of the matrix products, versions, commit, date."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        cpu = train.cpu().get("cpu_name") or platform.machine()
        threads = torch.get_num_threads()
        name = f"{cpu}, {threads} thread{'s' * (threads > 1)}" if device.type == "cpu" else f"{device.type}, {cpu}"
    return {
        "device": name,
        "dtype": "bf16" if train.has_bf16(device) else "fp32",
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__,
        },
        "commit": COMMIT,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }  # fmt: skip


def _commit() -> str:
    """The short hash, with a + if lib/ or benchmarks/ have changes that are not committed."""
    git = functools.partial(subprocess.run, cwd=PROJECT, capture_output=True, text=True)
    try:
        commit = git(["git", "rev-parse", "--short", "HEAD"]).stdout.strip()
        changed = git(["git", "status", "--porcelain", "lib", "benchmarks"]).stdout.strip()
        return commit + ("+" if changed else "") or "unknown"
    except OSError:
        return "unknown"


COMMIT = _commit()  # of the code as it was loaded, whatever is committed while a run lasts


def rounded(value):
    """The floats in nested dicts and lists to six digits, which keeps a line short."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else value


def record(run, measured: dict, history: dict, device: torch.device, seconds: float) -> dict:
    """What is recorded of a finished run, a dataclass; of its metrics and history six digits."""
    found = {"metrics": measured, "history": history, "seconds": seconds, **environment(device)}
    return {"config": dataclasses.asdict(run), **rounded(found)}


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


def _whole(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def append(path: Path, record: dict) -> None:
    """Add one record as one line, whole or not at all, also with several processes at work."""
    line = json.dumps(record).encode() + b"\n"
    try:
        with FileLock(f"{path}.lock"), path.open("ab+") as file:
            file.seek(0)
            content = file.read()
            last = content[content.rfind(b"\n") + 1 :]
            if last and _whole(last):
                line = b"\n" + line  # only its newline is missing
            else:
                file.truncate(len(content) - len(last))  # drops a torn last line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        try:
            with tempfile.NamedTemporaryFile("wb", suffix=f"-{path.name}", delete=False) as copy:
                copy.write(line)
            kept = f"kept in {copy.name}"
        except OSError:
            print(line.decode(), file=sys.stderr)
            kept = "printed above"
        raise OSError(
            f"{path} cannot be written ({error.strerror}): free space or make it writable, "
            f"then append the finished run {kept}"
        ) from error


def collect(
    runs, study: str, kind: type, train_one, *, keep=None, n_jobs: int = 1, budget: float | None = None
) -> dict:
    """The records, by run, of runs of this dataclass: those in results/<study>.jsonl, and what is missing is trained.

    n_jobs at a time (-1: as many as there are workers); each finished run is written at once. Under
    joblib.parallel_config(backend="dask") the runs go to a cluster: give its workers one thread each, since the
    random numbers of runs in one process would mix. budget: seconds after which no further run is started; the
    records are then those that exist. Raises OSError before any training if records cannot be written.

    train_one(run, progress) returns the record (progress: show a bar?). It writes nothing, for it may be on another
    machine; bytes that it leaves in the record under "embeddings" go to keep(run, bytes) instead of the file.
    """
    path = folder("results") / f"{study}.jsonl"
    runs = list(dict.fromkeys(runs))
    records = read(path, kind)
    missing = [run for run in runs if run not in records or os.environ.get("RETRAIN") == "1"]
    if missing:
        _check_writable(path)
    deadline = time.time() + budget if budget is not None else float("inf")
    workers = joblib.effective_n_jobs(n_jobs)
    threads = max(1, (os.cpu_count() or 1) // workers) if workers > 1 else 0
    jobs = joblib.Parallel(n_jobs=n_jobs, batch_size=1, return_as="generator_unordered")(
        joblib.delayed(_in_time)(train_one, run, deadline, threads) for run in missing
    )
    trained = {}
    for run, record in tqdm(jobs, total=len(missing), unit="run", disable=not missing, file=sys.stdout):
        if record:
            embeddings = record.pop("embeddings", None)
            record["jobs"] = workers  # that shared the machine: its seconds compare with their like only
            append(path, record)
            trained[run] = record
            if embeddings:
                keep(run, embeddings)
    records.update(trained)
    done = [run for run in runs if run in records]
    report = f"{study}: {len(done) - len(trained)} runs from {path.name}, {len(trained)} trained now"
    if len(done) < len(runs):
        report += f", {len(runs) - len(done)} left for the next start (time budget)"
    print(report)
    if log := os.environ.get("RUN_LOG"):
        with open(log, "a") as file:
            file.write(report + "\n")
    return {run: records[run] for run in done}


def _in_time(train_one, run, deadline: float, threads: int):
    """run and what train_one makes of it with so many threads (0: as many as there are); None after the deadline."""
    if time.time() >= deadline:
        return run, None
    if threads:
        torch.set_num_threads(threads)
    return run, train_one(run, not threads)


def frame(records) -> pd.DataFrame:
    """Records as rows: config fields, metrics, history, seconds, device, commit."""
    columns = ("history", "seconds", "device", "commit", "date")
    return pd.DataFrame([{**r["config"], **r["metrics"], **{c: r[c] for c in columns}} for r in records])


def _check_writable(path: Path) -> None:
    try:
        path.open("ab").close()
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error.strerror}): make the folder writable") from error
