"""Runs over margins and scale: maps of both, and small data sets from which ``recommend`` learns.

A point (m2, m3, s) stands for the target logit s (cos(theta_y + m2) - m3), margins as in Deng et al. 2019,
eq. 4, with m1 = 1: NormFace (0, 0), ArcFace (m2, 0), CosFace (0, m3), else CombinedMargin.

A run trains on some of the classes and is measured twice: by its accuracy on validation images of these
(closed set), and by how well its embeddings tell the classes apart that it has never seen (open set).
No test image is read.
"""

import dataclasses
import functools
import itertools
import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from lib import data as datasets
from lib import heads, metrics, models, train
from studies import records, runs
from studies.statistics import differences
from studies.study import Study

NAMES = {"mnist": "MNIST", "cifar10": "CIFAR-10", "digits": "digits"}
S = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
M2 = (0.0, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 1.8)  # radians
M3 = (0.0, 0.1, 0.2, 0.35, 0.5, 0.8, 1.2)
WARMUPS = (0.0, 2.0)  # epochs, beside the maps' 1
# the library's default of each loss, and two neighbours: every seed has them, and they measure the noise first
DEFAULTS = ((0.0, 0.0, 16.0), (0.3, 0.0, 16.0), (0.0, 0.2, 16.0), (0.2, 0.1, 16.0))
REFERENCES = (*DEFAULTS, (0.2, 0.0, 16.0), (0.0, 0.1, 16.0))
# what is tried on each small data set: points of the maps
TRIALS = (
    *REFERENCES[:5],
    *((m2, m3, s) for s in (4.0, 64.0) for m2, m3 in ((0.3, 0.0), (0.0, 0.2), (0.0, 0.0))),
    (0.1, 0.0, 16.0), (0.5, 0.0, 16.0), (0.8, 0.0, 16.0), (0.0, 0.35, 16.0), (0.0, 0.5, 16.0),
)  # fmt: skip
# small data sets: classes and training images; few of the digits, so that some errors are left to compare
SMALL = {
    "digits": ((10, 500), (10, 200), (10, 100), (5, 100), (3, 60)),
    "mnist": ((10, 2000), (10, 500), (10, 200), (5, 1000), (3, 300)),
    "cifar10": ((10, 2000), (10, 500), (5, 1000), (3, 600)),
}
# a map's training on a CPU; a GPU takes the data set's recipe and all images
SHORT = {
    "mnist": {"batch_size": 128, "lr": 0.05, "train_size": 7000},
    "cifar10": {"network": "NarrowAirNet", "batch_size": 128, "lr": 0.35, "muon_lr": 0.06, "train_size": 3500},
}
VAL_SIZE, WATCHED = 5000, 250  # validation images at the end, and after each epoch


@dataclass(frozen=True)
class Run(runs.Config):
    """A Config on some of the classes: known of them, 0 for all; split numbers the random choice of classes
    and images. train_size counts images of the known classes."""

    known: int = 0
    split: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.known == 1:
            raise ValueError("known must be 2 or more, or 0 for all classes, got 1")


def head_of(m2: float, m3: float, s: float) -> dict:
    """The Config fields head and constants of a point."""
    fields = {
        (False, False): ("NormFace", {}),
        (True, False): ("ArcFace", {"m": m2}),
        (False, True): ("CosFace", {"m": m3}),
        (True, True): ("CombinedMargin", {"m2": m2, "m3": m3}),
    }
    head, constants = fields[m2 > 0, m3 > 0]
    return {"head": head, "constants": {"s": s, **constants}}


def point(head: str, constants=()) -> tuple[float, float, float] | None:
    """The point (m2, m3, s) of a loss with these constants, else its defaults; None for a loss that has none."""
    if head not in ("NormFace", "ArcFace", "CosFace", "CombinedMargin"):
        return None
    made = heads.make(head, 10, 2, **dict(constants))
    if head == "CombinedMargin":
        return (made.m2, made.m3, made.s) if made.m1 == 1 else None
    m = getattr(made, "m", 0.0)
    return (0.0, m, made.s) if head == "CosFace" else (m, 0.0, made.s)


def grid() -> list[tuple[tuple[float, float, float], float]]:
    """The points of a data set's maps and, at two scales, of other warm-ups: (point, warm-up in epochs)."""
    arc = [(m2, 0.0, s) for s in S for m2 in M2]
    cos = [(0.0, m3, s) for s in S for m3 in M3]
    both = [(m2, m3, 16.0) for m2 in M2[1:5] for m3 in M3[1:5]]
    large = itertools.product(M2[4:], (0.0,), (16.0, 64.0), WARMUPS)
    maps = [(p, 1.0) for p in dict.fromkeys((*REFERENCES, *arc, *cos, *both))]
    return maps + [((m2, m3, s), warmup) for m2, m3, s, warmup in large]


def map_runs(data: str, full: bool = False, seeds: int = 3) -> list[Run]:
    """The runs of a data set's maps, each seed with its own choice of seven classes; the references of all seeds first,
    then seed after seed, so that a part of it is a smaller study. full: the recipe and all images, for a GPU."""
    recipe = runs.RECIPES[data] | ({} if full else SHORT[data])
    planned = [
        (p not in REFERENCES or warmup != 1, seed, Run(
            data, **head_of(*p), **recipe, margin_warmup=warmup, seed=seed, known=7, split=seed
        ))
        for seed in range(seeds)
        for p, warmup in grid()
    ]  # fmt: skip
    return [run for _, _, run in sorted(planned, key=lambda entry: (entry[0], entry[1] if entry[0] else 0))]


def small_runs(data: str, full: bool = False, seeds: int = 2) -> list[Run]:
    """The runs on small parts of a data set, seeds in the outer loop; the same for a GPU."""
    return [
        Run(
            data, **head_of(*p), epochs=max(15, 6000 // size),  # 100 images need more of them
            batch_size=32, lr=0.05, train_size=size, known=known, seed=seed,
        )
        for seed in range(seeds)
        for (known, size), p in itertools.product(SMALL[data], TRIALS)
    ]  # fmt: skip


# ---------------------------------------------------------------- one run


def select(run: Run) -> tuple[datasets.Data, datasets.Split]:
    """The data of a run, its known classes renumbered, and the validation images of the others.

    The validation images are filled up to 5,000 with training images that the run leaves out. The test
    split is empty.
    """
    data = runs.load(run.data, crop_padding=run.crop_padding)
    C, generator = len(data.classes), torch.Generator().manual_seed(run.split)
    known = torch.randperm(C, generator=generator)[: run.known or C].sort().values
    position = torch.full((C,), -1)
    position[known] = torch.arange(len(known))
    position = position.to(data.train.labels.device)

    def part(split: datasets.Split, seen: bool = True) -> datasets.Split:
        labels = position[split.labels]
        return datasets.Split(split.images, labels if seen else split.labels)[(labels >= 0) == seen]

    rows = (position[data.train.labels] >= 0).nonzero()[:, 0]
    rows = rows[torch.randperm(len(rows), generator=generator).to(rows.device)]
    size, val = run.train_size or len(rows), part(data.val)
    room = max(0, VAL_SIZE - len(val))
    spare = part(data.train[rows[size:][:room]])
    val = datasets.Split(torch.cat([val.images, spare.images]), torch.cat([val.labels, spare.labels]))
    classes = [data.classes[c] for c in known]
    chosen = dataclasses.replace(data, train=part(data.train[rows[:size]]), val=val, test=val[:0], classes=classes)
    return chosen, part(data.val, seen=False)


def execute(run: Run, progress: bool = False) -> tuple[models.Classifier | None, dict]:
    """Train one run; returns the model and its record. Nothing is written.

    The metrics are val_accuracy over val_size images and, if classes are left out, those of ``open_set``;
    of a run whose loss became infinite, diverged alone (and no model).
    """
    data, unseen = select(run)
    watched = dataclasses.replace(data, val=data.val[:WATCHED])
    start = time.perf_counter()
    try:
        model, history = runs.fit(run, watched, progress)
        measured = records.attempt(lambda: measure(model, data, unseen))
    except FloatingPointError:
        model, history, measured = None, {}, {"diverged": True}
    seconds = time.perf_counter() - start
    return model, records.record(run, measured, history, data.train.labels.device, seconds)


def measure(model: models.Classifier, data: datasets.Data, unseen: datasets.Split) -> dict:
    y = data.val.labels.cpu()
    measured = {"val_accuracy": metrics.accuracy(train.predict(model, data, data.val), y), "val_size": len(y)}
    return measured | (open_set(train.embed(model, data, unseen), unseen.labels.cpu()) if len(unseen) else {})


def open_set(x: Tensor, y: Tensor) -> dict[str, float]:
    """Of embeddings x (N, d) of unseen classes y (N,): auc, the probability that a pair of one class has a
    larger cosine than a pair of two, and recall_at_1, how often the nearest other image is of the same class."""
    x = F.normalize(x)
    cos, same = x @ x.T, y[:, None] == y  # (N, N)
    pairs = torch.ones_like(same).triu(1)
    auc = roc_auc_score(same[pairs].numpy(), cos[pairs].numpy())
    return {"auc": float(auc), "recall_at_1": metrics.recall_at_1(x, y)}


# ---------------------------------------------------------------- all runs


MAPS = {
    data: Study(
        f"margins_{data}", f"Which margin and scale suit {NAMES[data]}, seen and unseen classes?", Run,
        functools.partial(map_runs, data), execute, file="margins",
    )
    for data in SHORT
}  # fmt: skip
SMALL_SETS = {
    data: Study(
        f"small_{data}", f"Margins and scales on small parts of {NAMES[data]}, for the recommender", Run,
        functools.partial(small_runs, data), execute, file="margins",
    )
    for data in SMALL
}  # fmt: skip
STUDIES = [*MAPS.values(), *SMALL_SETS.values()]


def maps(data: str, found: dict[Run, dict]) -> pd.DataFrame:
    """The runs found of a data set's maps, by the recipe or the short training, whichever has more.

    One row per run: ``records.frame``'s columns and m2, m3, s, point (these as text) and stalled: is the
    accuracy nearer to chance than to the best of the seed? A run that diverged counts as one that guesses.
    Raises ValueError if not even the references are recorded.
    """
    candidates = [[run for run in MAPS[data].planned(full) if run in found] for full in (True, False)]
    planned = max(candidates, key=len)
    if len(planned) < len(REFERENCES):
        raise ValueError(f"margins.jsonl lacks the maps of {data}: `python -m studies margins_{data}` trains them")
    points = np.array([point(run.head, run.constants) for run in planned])
    chance = {"val_accuracy": 1 / 7, "auc": 0.5, "recall_at_1": 1 / 3}
    frame = records.frame(found[run] for run in planned).fillna(chance)
    frame[["m2", "m3", "s"]] = points
    frame["point"] = ["{:g} {:g} {:g}".format(*p) for p in points]
    best = frame.groupby("seed")["val_accuracy"].transform("max")
    return frame.assign(stalled=frame["val_accuracy"] < (1 / 7 + best) / 2)


def surface(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A map's cells, by (m2, m3, s): n, value in percent, stalled (did any of its runs?), best, low and high (the
    95 % interval of the difference to the best cell, for all cells at once) and near: that difference is not shown.

    Seeds differ in their seven classes, and of a later seed only some cells may be recorded. So a value is the
    default's mean plus the difference to it: in the model of ``statistics.differences``, or, of a cell that
    stalls, seed by seed. Such a cell says nothing about the noise of the others, and is none of the near ones.
    """
    frame = frame[frame["margin_warmup"] == 1].assign(head=lambda f: f["point"])
    cells = frame.groupby(["m2", "m3", "s"]).agg(head=("head", "first"), stalled=("stalled", "any"), n=("seed", "size"))
    trained = frame[frame["head"].isin(cells.loc[~cells["stalled"], "head"])]
    default = "{:g} {:g} {:g}".format(*point("ArcFace"))
    own = frame[frame["head"] == default].set_index("seed")[metric]
    gaps = 100 * (frame[metric] - frame["seed"].map(own)).groupby(frame["head"]).mean()
    if default in set(trained["head"]) and trained["head"].nunique() > 1:
        gaps.update(differences(trained, metric, default, factor=100)["mean"])
    cells["value"] = 100 * own.mean() + cells["head"].map(gaps)
    candidates = cells if cells["stalled"].all() else cells[~cells["stalled"]]
    best = candidates.loc[candidates["value"].round(6).idxmax(), "head"]  # of equal ones the first, on every machine
    cells["best"] = cells["head"] == best
    to_best = pd.DataFrame(columns=["low", "high"], dtype=float)
    if trained["head"].nunique() > 1:
        to_best = differences(trained, metric, best, factor=100)
    cells["low"], cells["high"] = (cells["head"].map(to_best[side]) for side in ("low", "high"))
    cells["near"] = cells["best"] | (cells["high"] >= 0)
    return cells


def label(m2: float, m3: float, s: float) -> str:
    """A point as the loss that it is, with its constants."""
    fields = head_of(m2, m3, s)
    return f"{fields['head']} (" + ", ".join(f"{k} = {v:g}" for k, v in fields["constants"].items()) + ")"


def best_point(cells: pd.DataFrame) -> dict:
    """Of a ``surface``: best, its point; default, the point of the default; trained, how many points train; near, how
    many of them cannot be told from the best; scales, the smallest and largest of these; gap, the default minus the
    best, as a row with mean, low and high."""
    best, default = cells["best"].idxmax(), point("ArcFace")
    scales = [s for _, _, s in cells.index[cells["near"]]]
    row = cells.loc[default]
    gap = pd.Series({"mean": row["value"] - cells.loc[best, "value"], "low": row["low"], "high": row["high"]})
    return {
        "best": best, "default": default, "trained": int((~cells["stalled"]).sum()), "near": len(scales),
        "scales": (min(scales), max(scales)), "gap": gap,
    }  # fmt: skip
