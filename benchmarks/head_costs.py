"""Time and memory of one loss step against the number of classes.

    python -m benchmarks.head_costs

A step is the loss of a batch and its gradients to the embeddings and to the centres. For the time
the methods take turns in one process; for the memory each has a process of its own. What does not
fit into memory has no numbers. All of it takes minutes.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks import keep, scaled, spread
from lib import losses, paths
from lib.device import best_device
from lib.heads import many_classes

B, D, S, M = 512, 128, 64.0, 0.5  # batch, dimension, and the constants usual for faces
PEER = "pytorch-metric-learning"
METHODS = {
    PEER: lambda criterion, x, y: criterion(x, y),
    "plain head": lambda head, x, y: F.cross_entropy(head(x, y), y),
    "by blocks": many_classes.cross_entropy,
}
PRODUCT, BLOCK = "one matrix product", 8192  # (B, D) x (D, BLOCK)
PROC = Path("/proc")


def one_step(method: str, C: int, device: torch.device):
    """A function that takes one step and returns its seconds, and the centres."""
    torch.manual_seed(0)
    x, y = torch.randn(B, D, device=device, requires_grad=True), torch.randint(C, (B,), device=device)
    if method == PEER:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own imports
            from pytorch_metric_learning.losses import ArcFaceLoss
        module = ArcFaceLoss(C, D, margin=math.degrees(M), scale=S).to(device)
    else:
        module = losses.ArcFace(C, D, s=S, m=M).to(device)

    def step() -> float:
        synchronise(device)
        start = time.perf_counter()
        METHODS[method](module, x, y).backward()
        synchronise(device)
        seconds = time.perf_counter() - start
        x.grad = module.W.grad = None
        return seconds

    return step, module.W


def products(device: torch.device) -> list[float]:
    """Seconds of the product of embeddings and BLOCK centres: a step of a head has three per BLOCK classes, by
    blocks four."""
    x, W = torch.randn(B, D, device=device), torch.randn(BLOCK, D, device=device)
    out = torch.empty(B, BLOCK, device=device)
    taken = []
    for _ in range(30):
        synchronise(device)
        start = time.perf_counter()
        torch.mm(x, W.T, out=out)
        synchronise(device)
        taken.append(time.perf_counter() - start)
    return taken


def synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def fits(function, *arguments):
    """What the function returns, or None if it runs out of memory."""
    try:
        return function(*arguments)
    except RuntimeError as error:
        if not re.search("allocate memory|out of memory", str(error)):
            raise
        return None


def times(C: int, device: torch.device, budget: float) -> dict[str, list[float]]:
    """Seconds of the methods that fit, in turns: at least three each, then until the budget (seconds) is spent."""
    steps = {method: one_step(method, C, device)[0] for method in METHODS}
    taken = {method: [] for method, step in steps.items() if fits(step)}
    start = time.perf_counter()
    while len(taken["by blocks"]) < 3 or time.perf_counter() - start < budget:
        for method, seconds in taken.items():
            seconds.append(steps[method]())
    return taken


def extra_memory(method: str, C: int, device: torch.device) -> int | None:
    """Bytes that one step needs beyond the centres and their gradient; None where that cannot be measured."""
    step, W = one_step(method, C, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before - W.nbytes
    if not (PROC / "self/clear_refs").exists():
        return None
    before = kilobytes("self/status", "VmRSS")
    (PROC / "self/clear_refs").write_text("5")  # the peak counts from here
    step()
    return 1024 * (kilobytes("self/status", "VmHWM") - before) - W.nbytes


def kilobytes(file: str, field: str) -> int:
    return int(re.search(rf"{field}:\s+(\d+)", (PROC / file).read_text(encoding="ascii"))[1])


def limit_memory() -> None:
    """Let an allocation beyond the free memory fail, where it would otherwise bring the machine down."""
    if (PROC / "meminfo").exists():
        import resource

        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (1024 * kilobytes("meminfo", "MemAvailable"), hard))


def memory(method: str, classes: list[int]) -> list[int | None]:
    """``extra_memory`` for each number of classes, in a process of its own."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc: freed memory goes back at once
    command = [sys.executable, "-m", "benchmarks.head_costs", method, *map(str, classes)]
    done = subprocess.run(command, env=environment, cwd=paths.PROJECT, capture_output=True, text=True)
    if done.returncode:
        cause = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}, perhaps for want of memory"])[-1]
        raise RuntimeError(f"{method}: {cause}")
    return json.loads(done.stdout)


def print_memory(method: str, classes: list[int]) -> None:
    """What ``memory`` reads."""
    limit_memory()
    for C in (10, 2 * D):  # libraries and threads start
        one_step(method, C, best_device())[0]()
    print(json.dumps([fits(extra_memory, method, C, best_device()) for C in classes]))


def main() -> None:
    classes, budget = scaled(([10, 10**3, 10**5, 10**6], 15), ([10, 1000], 0.1))
    device = best_device()
    used = {method: dict(zip(classes, memory(method, classes), strict=True)) for method in METHODS}
    limit_memory()
    rows = [{"classes": BLOCK, "method": PRODUCT, "seconds": spread(products(device))}]
    for C in classes:
        taken = times(C, device, budget)
        for method in METHODS:
            row = {"classes": C, "method": method, "memory": used[method][C]}
            if method in taken:
                row["seconds"] = spread(taken[method])
            if method in taken and PEER in taken:
                row["time_ratio"] = float(np.median(np.divide(taken[method], taken[PEER])))
            if row["memory"] and used[PEER][C]:
                row["memory_ratio"] = row["memory"] / used[PEER][C]
            rows.append(row)
    keep("heads", rows, device, **{PEER: version(PEER)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", nargs="?", choices=METHODS, help="print the bytes of this one, in this process")
    parser.add_argument("classes", nargs="*", type=int, help="with so many classes")
    options = parser.parse_args()
    try:
        paths.smoke(), paths.retrain()
        main() if options.method is None else print_memory(options.method, options.classes)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
