"""The smoke profile (PROFILE=smoke): every study in miniature. Only this file knows how; plans do not ask."""

import dataclasses
from collections import Counter

from lib import paths
from lib.data import Data

SEEDS, TRIALS = 2, 2  # of a plan; per seed and loss that differ in constants and rates alone
SMALL = {"epochs": 1, "low_res_epochs": 0, "train_size": 128, "batch_size": 64}
LEFT_OUT = ("SphereFace", "CosFace", "CombinedMargin", "CurricularFace")  # enough losses are left
# of Omniglot's runs, of a single seed and one trial a loss: losses, numbers of classes
OMNIGLOT = ("Softmax", "NormFace", "ArcFace", "AdaLoss", "PermutedAdaLoss", "RandomMargin"), (0, 10)


def shrink(run):
    """A run of a fraction of a second in the smoke profile, the same run elsewhere; any dataclass of runs."""
    if not paths.smoke():
        return run
    fields = {field.name for field in dataclasses.fields(run)}
    small = {name: value for name, value in SMALL.items() if name in fields}
    if "head" in fields:
        small["network"] = "TinyAirNet" if "AirNet" in run.network else run.network
    return dataclasses.replace(run, **small)


def thin(plan) -> list:
    """The distinct runs of a plan; in the smoke profile of few seeds, losses and constants, and shrunk."""
    plan = list(dict.fromkeys(plan))
    if not paths.smoke():
        return plan
    seeds, counts, kept = list(dict.fromkeys(run.seed for run in plan))[:SEEDS], Counter(), []
    for run in plan:
        if run.seed not in seeds:
            continue
        if hasattr(run, "trial"):
            losses, classes = OMNIGLOT
            if run.seed != seeds[0] or run.head not in losses or run.classes not in classes:
                continue
        if hasattr(run, "head"):
            setting = dataclasses.replace(run, constants=(), lr=0.0, muon_lr=0.0)
            counts[setting] += 1
            most = 1 if getattr(run, "trial", False) else TRIALS
            if counts[setting] > most or (run.head in LEFT_OUT and not hasattr(run, "known")):
                continue
        kept.append(shrink(run))
    return list(dict.fromkeys(kept))


def shrink_data(data: Data) -> Data:
    """In the smoke profile a set of 1,000 training images and 250 others each; of one with unseen classes more, so that
    there are some of every kind."""
    if not paths.smoke():
        return data
    train, test = (2000, 1000) if data.unseen else (1000, 250)
    return dataclasses.replace(data, train=data.train[:train], val=data.val[:250], test=data.test[:test])
