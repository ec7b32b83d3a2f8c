"""What makes an adaptive margin work? AdaLoss against variants of it, each with one part exchanged.

Also two controls that adapt to nothing: a margin that follows a schedule, and random margins of the
classes. If a control does as well as AdaLoss, adaptivity is not what helps.
"""

import functools

import pandas as pd

from studies import records, runs, tuning
from studies.study import Study

SEEDS = 3
TRAIN_SIZE = 45_000  # of CIFAR-10 without its validation split
LOCKING = ("absolute rule", "absolute rule, global")  # on some seeds their margins lock in: their noise is their own


def arms(steps: int) -> dict[str, tuple[str, dict]]:
    """Head and constants of every arm; s and, but for the two schedules, m are the same in all.

    steps: batches of a training. A schedule with the mean course of AdaLoss's margins would be the fixed margin,
    since that mean hardly moves; so the two schedules here rise and fall, with a mean over the training of m.
    The random margins have the spread that AdaLoss's reach by the end of the CIFAR-10 recipe.
    """
    return {
        "fixed margin": ("ArcFace", {}),
        "AdaLoss": ("AdaLoss", {}),
        "schedule: rising": ("ScheduledMargin", {"m": 0.0, "m_end": 0.6, "steps": steps}),
        "random margins": ("RandomMargin", {"spread": 0.05}),
        "schedule: falling": ("ScheduledMargin", {"m": 0.6, "m_end": 0.0, "steps": steps}),
        "signal: target angle": ("AngleAdaLoss", {}),
        "signal: class error": ("ErrorAdaLoss", {}),
        "memory: 10 times shorter": ("AdaLoss", {"rate": 0.2}),
        "memory: 10 times longer": ("AdaLoss", {"rate": 0.002}),
        "gamma = 1": ("AdaLoss", {"gamma": 1.0}),
        "gamma = 2": ("AdaLoss", {"gamma": 2.0}),
        "gamma = 2, wide bounds": ("AdaLoss", {"gamma": 2.0, "m_min": 0.0, "m_max": 1.2}),
        "narrow bounds": ("AdaLoss", {"m_min": 0.2, "m_max": 0.4}),
        "absolute rule": ("AbsoluteAdaLoss", {}),
        "absolute rule, global": ("GlobalAdaLoss", {}),
    }


def arm_runs(data: str = "cifar10", full: bool = False) -> dict[runs.Config, str]:
    """All arms with every seed and their names, seeds in the outer loop, in the setting of the tuning's trials; full:
    for a GPU."""
    setting = tuning.FULL[data] if full else tuning.CPU[data] | tuning.SHORT[data]
    run = runs.recipe(data, "ArcFace", **setting)
    steps = run.epochs * ((run.train_size or TRAIN_SIZE) // run.batch_size)
    return {
        runs.recipe(data, head, seed, constants=constants, **setting): name
        for seed in range(SEEDS)
        for name, (head, constants) in arms(steps).items()
    }


ABLATION = Study(
    "ablation_cifar10", "AdaLoss with one part exchanged, on CIFAR-10", runs.Config,
    functools.partial(arm_runs, "cifar10"), runs.execute,
)  # fmt: skip
STUDIES = [ABLATION]


def finished() -> pd.DataFrame:
    """The rows of the complete seeds, of those for a GPU if there are any, with the arm's name as head and apart: is
    its noise its own? Raises ValueError if there are none."""
    full = ABLATION.for_gpu()
    names = ABLATION.arms(full)
    found = ABLATION.complete(full)
    frame = records.frame(found.values())
    return frame.assign(head=[names[run] for run in found]).assign(apart=lambda rows: rows["head"].isin(LOCKING))
