"""Train what the studies lack: ``python -m lib.missing [study ...]``, or ``make study`` for all of them."""

import argparse
import sys
import time

import torch

from lib import ablation, store, study, tuning

PLANS = {"tuning": tuning.trials, "controlled": tuning.final, "ablation": ablation.plan}
STUDIES = (*study.MAIN, "controlled_mnist", "controlled_cifar10", "ablation_cifar10")


def plan(name: str, full: bool = False) -> list[study.Config]:
    """The runs of a study, with full those for a GPU; what its file records if no module plans it.

    Raises ValueError for an unknown name, and tuning.Incomplete for final runs whose trials are not all recorded.
    """
    kind, _, data = name.partition("_")
    if name in study.MAIN:
        return study.plan(name)
    if name in STUDIES or (kind == "tuning" and data in study.MAIN):
        return PLANS[kind](data, full)
    recorded = list(store.read(store.folder("results") / f"{name}.jsonl", study.Config))
    if not recorded:
        raise ValueError(f"unknown study {name!r}: choose one of {', '.join(STUDIES)}, or one in results/")
    return recorded


def train_missing(studies, full: bool = False, *, n_jobs: int = 1, budget: float | None = None) -> None:
    """Train what these studies lack; before the final runs of the controlled study, its trials."""
    start = time.time()
    for name in studies:
        for part in [name.replace("controlled", "tuning"), name] if name.startswith("controlled") else [name]:
            left = None if budget is None else budget - (time.time() - start)
            train_all = tuning.runs if part.startswith("tuning") else study.runs
            try:
                train_all(plan(part, full), part, n_jobs=n_jobs, budget=left)
            except tuning.Incomplete as error:  # the budget ended before the trials did
                print(f"{part} waits: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train what is missing of the studies.")
    parser.add_argument("studies", nargs="*", default=STUDIES, help=", ".join(STUDIES))
    parser.add_argument("--full", action="store_true", help="the controlled study and ablation as a GPU affords them")
    parser.add_argument("--budget", type=float, help="seconds after which no further run is started")
    parser.add_argument("--jobs", type=int, default=1, help="runs trained at the same time")
    options = parser.parse_args()
    try:
        for name in {*options.studies} - {*STUDIES}:
            plan(name)  # a wrong name stops before anything is trained
        train_missing(options.studies, options.full, n_jobs=options.jobs, budget=options.budget)
    except torch.OutOfMemoryError:
        sys.exit("error: the device has no memory left: lower --jobs")
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
