"""Many small runs: one after the other with the whole machine, or several at once with a part of it each.

    python -m benchmarks.together

A small network keeps neither many cores nor a GPU busy. The runs are one epoch of MNIST each; the
ways of sharing the machine take turns. All of it takes minutes.
"""

import contextlib
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch

from benchmarks import command, keep, scaled, spread
from lib.device import best_device
from studies import runs as study_runs
from studies import smoke

RUNS, ROUNDS = 8, 3


def run(seed: int, threads: int) -> None:
    torch.set_num_threads(threads)
    study_runs.execute(smoke.shrink(study_runs.recipe("mnist", "ArcFace", seed, epochs=1)))


def seconds(pool: ProcessPoolExecutor, jobs: int, runs: int) -> float:
    threads = max(1, (os.cpu_count() or 1) // jobs)
    start = time.perf_counter()
    list(pool.map(run, range(runs), [threads] * runs))
    return time.perf_counter() - start


def main() -> None:
    device = best_device()
    most = RUNS if device.type == "cuda" else min(RUNS, os.cpu_count() or 4)
    ways, runs, rounds = scaled((sorted({1, 2, 4, most}), RUNS, ROUNDS), ((1, 2), 2, 1))
    taken = {jobs: [] for jobs in ways}
    with contextlib.ExitStack() as stack:
        context = multiprocessing.get_context("spawn")
        pools = {jobs: stack.enter_context(ProcessPoolExecutor(jobs, context)) for jobs in ways}
        for jobs, pool in pools.items():
            seconds(pool, jobs, jobs)  # the processes start and load the data
        for _ in range(rounds):
            for jobs, pool in pools.items():
                taken[jobs].append(seconds(pool, jobs, runs))
    rows = [
        {"at_once": jobs, "runs": runs, "seconds": spread(t), "gain": float(np.median(np.divide(taken[1], t)))}
        for jobs, t in taken.items()
    ]
    keep("together", rows, device)


if __name__ == "__main__":
    from benchmarks.together import main  # under its own name, so that other processes can unpickle its functions

    command(main, __doc__)
