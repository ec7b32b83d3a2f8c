"""Short measurements of speed and memory. `make bench` takes them; each leaves one line in results/benchmarks.jsonl."""

import argparse
import contextlib
import json
import multiprocessing
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity
from torch.utils.flop_counter import FlopCounterMode

from lib import device as devices
from lib import paths
from studies import records

KINDS = {  # of operations, by their names
    "convolutions": "conv",
    "batch normalisation": "batch_norm",
    "pooling": "pool",
    "activations": "relu|threshold|clamp_min",
    "zeros": "fill_|zero_",
    "matrix products": "mm|linear",
    "optimizer": "optimizer|_foreach|_fused",
    "copies": "copy|index|cat|clone|pad",
}


def scaled(full, small):
    """The size of a measurement: the small one in the smoke profile."""
    return small if paths.smoke() else full


def spread(values) -> dict[str, float]:
    """Median, quartiles and number of repeated measurements."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(median), "low": float(low), "high": float(high), "n": len(values)}


def keep(name: str, rows: list[dict], device: torch.device, **versions: str) -> None:
    """Record one measurement, and print its rows."""
    record = {"benchmark": name, "rows": rows, **records.environment(device)}
    record["versions"].update(versions)
    path = paths.folder("results") / "benchmarks.jsonl"
    records.check_writable(path)
    records.append(path, records.rounded(record))
    print(f"\n{name}: {record['device']}, torch {torch.__version__}\n")
    print(pd.json_normalize(rows).to_string(index=False, float_format="{:.3g}".format), flush=True)


def measured(name: str, *each: str) -> pd.DataFrame:
    """The rows of the newest measurement on each device, and for each value of further columns. Raises
    ValueError if there is none."""
    path = paths.folder("results") / "benchmarks.jsonl"
    frames = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else [], 1):
        try:
            record = json.loads(line)
            if record["benchmark"] == name:
                versions = ", ".join(f"{package} {version}" for package, version in record["versions"].items())
                origin = {key: record[key] for key in ("device", "commit", "date")}
                frames.append(pd.json_normalize(record["rows"]).assign(**origin, versions=versions, line=number))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{path}, line {number} is not a measurement: move that line to another file") from None
    if not frames:
        raise ValueError(f"{path.name} holds no measurement of {name}: `make bench` takes it")
    frame = pd.concat(frames, ignore_index=True)
    newest = frame.groupby(["device", *each])["line"].transform("max")
    return frame[frame["line"] == newest].drop(columns="line").reset_index(drop=True)


def in_turns(ways: dict[str, tuple], rounds: int) -> dict[str, list]:
    """What each of several ways to do a thing returns, round by round in turns: the speed of a shared machine changes
    from minute to minute, and hits all of them alike. ways: by name, (make, *arguments), where make(*arguments)
    returns the function that is called each round; each in a process of its own, after a first call that does not
    count, for libraries to start."""
    with contextlib.ExitStack() as stack:
        context = multiprocessing.get_context("spawn")
        pools = {name: stack.enter_context(ProcessPoolExecutor(1, context, _make, way)) for name, way in ways.items()}
        for start in [pool.submit(_take_turn) for pool in pools.values()]:
            start.result()  # the processes start, all at once
        rows = [{name: pool.submit(_take_turn).result() for name, pool in pools.items()} for _ in range(rounds)]
    return {name: [row[name] for row in rows] for name in ways}


def command(measure, description: str) -> None:
    """A benchmark without options: --help, and errors of one line each."""
    argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    try:
        paths.smoke(), paths.retrain()  # a wrong setting stops before any measurement
        measure()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


_turn = None  # in a process of ``in_turns``, its function


def _make(make, *arguments) -> None:
    global _turn
    _turn = make(*arguments)


def _take_turn():
    return _turn()


def profile(step, device: torch.device) -> tuple[int, dict[str, float]]:
    """Floating-point operations of step(), and the share of its time by kind of operation."""
    step()  # warm-up
    with FlopCounterMode(display=False) as counter:
        step()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with torch.profiler.profile(activities=activities) as profiled:
        step()
    seconds = dict.fromkeys([*KINDS, "rest"], 0.0)
    for event in profiled.key_averages():
        if event.device_type != torch.autograd.DeviceType.CPU:
            continue  # a kernel's time stands under the operation that started it
        spent = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        kind = next((kind for kind, names in KINDS.items() if re.search(names, event.key, re.I)), "rest")
        seconds[kind] += spent
    return counter.get_total_flops(), {kind: spent / sum(seconds.values()) for kind, spent in seconds.items()}


def product_rate(device: torch.device) -> float:
    """Operations per second of a product of square matrices in the dtype of training; the best of ten."""
    size = 8192 if device.type == "cuda" else 2048  # a GPU needs longer for it than for starting it
    a = torch.randn(size, size, device=device, dtype=devices.precision(device))
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        F.linear(a, a)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
