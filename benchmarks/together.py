"""Many small runs: one after the other with the whole machine, or several at once with a part of it each.

    python -m benchmarks.together

A small network keeps neither many cores nor a GPU busy. The runs are one epoch of MNIST each; the
ways of sharing the machine take turns.
"""

import os
import time

import joblib
import numpy as np
import torch

from benchmarks import keep, spread
from lib import study, train

RUNS, ROUNDS = 8, 3


def run(seed: int, threads: int) -> None:
    if threads:
        torch.set_num_threads(threads)
    study.execute(study.shrunk(study.recipe("mnist", "ArcFace", seed, epochs=1)), progress=False)


def seconds(jobs: int, runs: int = RUNS) -> float:
    """Of these runs, so many at a time."""
    threads = max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else 0
    with joblib.parallel_config("loky", n_jobs=jobs):
        start = time.perf_counter()
        joblib.Parallel(batch_size=1)(joblib.delayed(run)(seed, threads) for seed in range(runs))
        return time.perf_counter() - start


def main() -> None:
    device = train.best_device()
    ways = (1, 2) if study.smoke() else (1, 2, 4, 8) if device.type == "cuda" else (1, 2, os.cpu_count() or 4)
    for jobs in ways:
        seconds(jobs, runs=jobs)  # the processes start and load the data
    taken = {jobs: [] for jobs in ways}
    for _ in range(1 if study.smoke() else ROUNDS):
        for jobs in ways:
            taken[jobs].append(seconds(jobs))
    rows = [
        {"at_once": jobs, "runs": RUNS, "seconds": spread(t), "gain": float(np.median(np.divide(taken[1], t)))}
        for jobs, t in taken.items()
    ]
    keep("together", rows, device)


if __name__ == "__main__":
    from benchmarks.together import main  # under its own name, so that worker processes can unpickle its functions

    main()
