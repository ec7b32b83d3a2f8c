"""Tuning with equal budgets, and the final runs of the controlled study at what it found.

Every loss gets the same number of trials: its defaults, then constants and learning rate drawn from
``SPACE``. Validation accuracy alone chooses, and a trial's record holds no test result. ``python -m studies
controlled_mnist`` trains the trials and then the final runs, ``tuning_mnist`` the trials alone; with --full in
the setting for a GPU.
"""

import functools
import math

import numpy as np
import pandas as pd

from lib import device
from lib.heads import NINE
from studies import records, runs, search, statistics
from studies.study import Incomplete, Study

LOSSES = (*NINE, "Triplet")
TITLES = {"mnist": "MNIST", "cifar10": "CIFAR-10"}
SEEDS = {"mnist": 10, "cifar10": 5}  # of the final runs
TRIALS = 8  # per loss
SEED = 1000  # of the trials: no final run has their weights and order
# changes to the recipe: on a GPU; on a CPU, with a smaller network; and of trials on a CPU, which are shorter
FULL = {"mnist": {}, "cifar10": {"epochs": 12}}
CPU = {"mnist": {}, "cifar10": {"network": "NarrowAirNet"}}
SHORT = {"mnist": {"epochs": 2}, "cifar10": {"train_size": 10_000, "epochs": 6}}

# the ranges of the constants (margins in radians, or in cosine for CosFace, AdaFace and m3), and of the factor on the
# recipe's learning rates, which every loss has
LR = (0.5, 2.0)
S = (8.0, 40.0)
SPACE = {
    "Softmax": {},
    "NormFace": {"s": S},
    "SphereFace": {"s": S, "m1": (1.1, 2.0)},
    "CosFace": {"s": S, "m": (0.05, 0.5)},
    "ArcFace": {"s": S, "m": (0.05, 0.6)},
    "CombinedMargin": {"s": S, "m1": (1.0, 1.3), "m2": (0.0, 0.4), "m3": (0.0, 0.3)},
    "CurricularFace": {"s": S, "m": (0.05, 0.6)},
    "AdaFace": {"s": S, "m": (0.05, 0.5), "h": (0.1, 1.0)},
    "AdaLoss": {"s": S, "m": (0.05, 0.6), "gamma": (0.1, 1.5)},
    "Triplet": {"m": (0.05, 0.5)},
}


def trials(data: str, full: bool = False) -> list[runs.Config]:
    """All trials of a data set, ``TRIALS`` per loss, the first ones of all losses first; full: for a GPU.

    The points are Sobol's, the same for all losses: trial i has one factor on the learning rate, and one s.
    """
    setting = FULL[data] if full else CPU[data] | SHORT[data]
    defaults = [runs.recipe(data, head, SEED, **setting) for head in LOSSES]
    by_loss = [[first, *search.drawn_from(first, SPACE[first.head], LR, TRIALS, seed=0)] for first in defaults]
    return [trial for same in zip(*by_loss, strict=True) for trial in same]


def execute_trial(config: runs.Config, progress: bool = False) -> tuple:
    """``runs.execute``, recorded without test results: what is not recorded cannot be looked at."""
    try:
        model, record = runs.execute(config, progress)
    except FloatingPointError:  # a trial that diverges has lost, and the others go on
        history = {"val_accuracy": [0.0], "val_loss": [math.inf]}
        model, record = None, records.record(config, {"val_accuracy": 0.0}, history, device.best_device(), 0.0)
    return model, record | {"metrics": {"val_accuracy": record["metrics"].get("val_accuracy", math.nan)}}


def results(data: str, full: bool | None = None) -> pd.DataFrame:
    """All trials as rows of ``records.frame`` with their number (trial), factor on the learning rates, val_loss, and
    whether they are chosen: the highest validation accuracy of a loss; of equal ones the lower val_loss.

    full: those for a GPU or those for a CPU; None for the GPU's once a seed of their final runs is complete.
    Raises Incomplete if one is missing.
    """
    study = TUNING[data]
    full = CONTROLLED[data].for_gpu() if full is None else full
    planned, found = study.planned(full), study.read(full)
    if missing := sum(config not in found for config in planned):
        raise Incomplete(
            f"{study.path.name} lacks {missing} of {len(planned)} trials: "
            f"`python -m studies controlled_{data}` trains them"
        )
    frame = records.frame(found[config] for config in planned)
    frame["trial"] = frame.groupby("head", sort=False).cumcount()
    frame["factor"] = (frame["lr"] / runs.recipe(data, "Softmax").lr).round(3)
    frame["val_loss"] = [history["val_loss"][-1] for history in frame["history"]]
    ranked = frame.sort_values(["val_accuracy", "val_loss", "trial"], ascending=[False, True, True])
    return frame.assign(chosen=frame.index.isin(ranked.groupby("head").head(1).index))


def finals(data: str, full: bool | None = None) -> list[runs.Config]:
    """The final runs at each loss's tuned constants, in the setting of the trials, seeds in the outer loop. full: as
    in ``results``. Raises Incomplete."""
    full = CONTROLLED[data].for_gpu() if full is None else full
    frame = results(data, full)
    setting = FULL[data] if full else CPU[data]
    chosen = frame[frame["chosen"]].set_index("head").loc[frame["head"].unique()]
    return [
        runs.recipe(data, head, seed, **setting, **run[["constants", "lr", "muon_lr"]])
        for seed in range(SEEDS[data])
        for head, run in chosen.iterrows()
    ]


TUNING = {
    data: Study(
        f"tuning_{data}", f"Which constants suit each loss on {title}? Trials of equal number", runs.Config,
        functools.partial(trials, data), execute_trial,
    )
    for data, title in TITLES.items()
}  # fmt: skip
CONTROLLED = {
    data: Study(
        f"controlled_{data}", f"Ten tuned losses on {title}: does an adaptive margin beat a fixed one?", runs.Config,
        functools.partial(finals, data), runs.execute, needs=f"tuning_{data}",
    )
    for data, title in TITLES.items()
}  # fmt: skip
STUDIES = [*TUNING.values(), *CONTROLLED.values()]


def finished(data: str) -> pd.DataFrame:
    """The rows of the final runs, of those seeds that are complete, with curve: the mean of the validation accuracies
    after every epoch, higher for a run that gets there sooner; and apart: triplet, which is trained in another way, has
    noise of its own. Raises ValueError if there are none."""
    frame = CONTROLLED[data].finished()
    frame = frame.assign(curve=[np.mean(history["val_accuracy"]) for history in frame["history"]])
    return frame.assign(apart=frame["head"] == "Triplet")


def compare(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """``statistics.compare`` of final runs with ArcFace, a share in percent."""
    return statistics.compare(frame, metric, "ArcFace", factor=100)
