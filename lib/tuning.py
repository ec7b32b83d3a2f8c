"""Tuning with equal budgets, and the final runs of the controlled study at what it found.

Every loss gets the same number of trials: its defaults, then constants and learning rate drawn from
``SPACE``. Validation accuracy alone chooses, and a trial's record holds no test result. ``python -m lib.missing
controlled_mnist`` trains the trials and then the final runs, ``tuning_mnist`` the trials alone; with --full in
the setting for a GPU.
"""

import dataclasses
import math

import numpy as np
import pandas as pd
from scipy.stats import qmc

from lib import losses, statistics, store, study, train

LOSSES = (*losses.HEADS, "Triplet")
SEEDS = {"mnist": 10, "cifar10": 5}  # of the final runs
TRIALS = 8  # per loss
SEED = 1000  # of the trials: no final run has their weights and order
# changes to the recipe: on a GPU; on a CPU, with a smaller network; and of trials on a CPU, which are shorter
FULL = {"mnist": {}, "cifar10": {"epochs": 12}}
CPU = {"mnist": {}, "cifar10": {"network": "NarrowAirNet"}}
SHORT = {"mnist": {"epochs": 2}, "cifar10": {"train_size": 10_000, "epochs": 6}}

# the ranges of the constants (margins in radians, or in cosine for CosFace, AdaFace and m3), and of the factor on the
# recipe's learning rates, which every loss has; s and the factor are drawn log-uniformly, the others uniformly
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
# what the final runs are asked: metric -> title, factor, unit, decimals, whether lower is better
QUESTIONS = {
    "test_accuracy": ("test accuracy", 100, "points", 2, False),
    "curve": ("mean validation accuracy", 100, "points", 2, False),
    "angle_ratio": ("angle within / between", 1, "", 3, True),
}


class Incomplete(ValueError):
    """A trial is not recorded."""


def trials(data: str, full: bool = False) -> list[study.Config]:
    """All trials of a data set, ``TRIALS`` per loss, the first ones of all losses first; full: for a GPU.

    The points are Sobol's, the same for all losses: trial i has one factor on the learning rate, and one s.
    """
    names, count = (("Softmax", "ArcFace", "AdaFace", "AdaLoss"), 2) if store.smoke() else (LOSSES, TRIALS)
    setting = FULL[data] if full else CPU[data] | SHORT[data]
    width = 1 + max(map(len, SPACE.values()))
    points = qmc.Sobol(width, seed=0).random_base2(math.ceil(math.log2(count)))[1:count]
    runs = [study.recipe(data, head, SEED, **setting) for head in names]
    for point in points:
        factor, *rest = point
        for head in names:
            ranges = SPACE[head].items()
            constants = {name: _drawn(name, *limits, u) for (name, limits), u in zip(ranges, rest, strict=False)}
            default = study.recipe(data, head, SEED, **setting)
            runs.append(dataclasses.replace(default, constants=constants, **_rates(data, _drawn("lr", *LR, factor))))
    return [study.shrunk(run) for run in runs]


def _drawn(name: str, low: float, high: float, u: float) -> float:
    value = low * (high / low) ** u if name in ("lr", "s") else low + (high - low) * u
    return float(f"{value:.3g}")


def _rates(data: str, factor: float) -> dict:
    """The recipe's learning rates, SGD's and Muon's, times a factor."""
    return {rate: float(f"{factor * getattr(study.recipe(data, 'Softmax'), rate):.6g}") for rate in ("lr", "muon_lr")}


def runs(configs: list[study.Config], name: str, *, n_jobs: int = 1, budget: float | None = None) -> None:
    """Train what is missing of the trials, as ``study.runs`` does, and record them without test results."""
    store.collect(configs, name, study.Config, _train_one, n_jobs=n_jobs, budget=budget)


def _train_one(config: study.Config, progress: bool) -> dict:
    try:
        record = study.execute(config, progress)[2]
    except FloatingPointError:  # a trial that diverges has lost, and the others go on
        history = {"val_accuracy": [0.0], "val_loss": [math.inf]}
        record = store.record(config, {"val_accuracy": 0.0}, history, train.best_device(), 0.0)
    # what is not recorded cannot be looked at
    return record | {"metrics": {"val_accuracy": record["metrics"]["val_accuracy"]}}


def recorded(data: str, full: bool | None = None) -> pd.DataFrame:
    """All trials as rows of ``store.frame`` with their number (trial), factor on the learning rates, val_loss, and
    whether they are chosen: the highest validation accuracy of a loss; of equal ones the lower val_loss.

    full: those for a GPU or those for a CPU; None for the GPU's once a seed of their final runs is complete. In the
    smoke profile they are trained first. Raises Incomplete if one is missing.
    """
    configs = trials(data, _full(data) if full is None else full)
    if store.smoke():
        runs(configs, f"tuning_{data}")
    records = store.read(store.folder("results") / f"tuning_{data}.jsonl", study.Config)
    if missing := sum(config not in records for config in configs):
        raise Incomplete(
            f"tuning_{data}.jsonl lacks {missing} of {len(configs)} trials: "
            f"`python -m lib.missing controlled_{data}` trains them"
        )
    frame = store.frame(records[c] for c in configs)
    frame["trial"] = frame.groupby("head", sort=False).cumcount()
    frame["factor"] = (frame["lr"] / study.recipe(data, "Softmax").lr).round(3)
    frame["val_loss"] = [history["val_loss"][-1] for history in frame["history"]]
    ranked = frame.sort_values(["val_accuracy", "val_loss", "trial"], ascending=[False, True, True])
    return frame.assign(chosen=frame.index.isin(ranked.groupby("head").head(1).index))


def _full(data: str) -> bool:
    """Is a seed of the final runs for a GPU complete?"""
    try:
        return not store.smoke() and len(study.finished(final(data, True), f"controlled_{data}")) > 0
    except ValueError:
        return False


def final(data: str, full: bool | None = None) -> list[study.Config]:
    """The final runs at each loss's tuned constants, in the setting of the trials, seeds in the outer loop. full: as
    in ``recorded``. Raises Incomplete."""
    full = _full(data) if full is None else full
    frame = recorded(data, full)
    setting = FULL[data] if full else CPU[data]
    chosen = frame[frame["chosen"]].set_index("head").loc[frame["head"].unique()]
    return [
        study.recipe(data, head, seed, **setting, **run[["constants", "lr", "muon_lr"]])
        for seed in range(2 if store.smoke() else SEEDS[data])
        for head, run in chosen.iterrows()
    ]


def finished(data: str) -> pd.DataFrame:
    """The rows of the final runs, of those seeds that are complete, with curve: the mean of the validation accuracies
    after every epoch, higher for a run that gets there sooner. Raises ValueError if there are none."""
    frame = study.finished(final(data), f"controlled_{data}")
    return frame.assign(curve=[np.mean(history["val_accuracy"]) for history in frame["history"]])


def compare(frame: pd.DataFrame, metric: str, reference: str = "ArcFace", heads: list[str] | None = None):
    """``statistics.compare`` of final runs in one of ``QUESTIONS``."""
    _, factor, _, _, lower_is_better = QUESTIONS[metric]
    return statistics.compare(frame, metric, reference, heads, factor, lower_is_better)


def answer(frame: pd.DataFrame, others=("CurricularFace", "AdaFace")) -> str:
    """Does AdaLoss beat ArcFace? A paragraph on ``QUESTIONS``, from the comparison of all losses, with what these other
    adaptive losses show."""
    said, wins, found = [], [], {head: [] for head in others}
    for metric, (title, _, unit, decimals, lower_is_better) in QUESTIONS.items():
        better = "lower" if lower_is_better else "higher"
        table = compare(frame, metric)
        texts = {head: f"{statistics.bracket(row, decimals)} {unit}".strip() for head, row in table.iterrows()}
        row = table.loc["AdaLoss"]
        verdict = {"higher": "worse", "lower": "worse", better: "better"}.get(row["verdict"], row["verdict"])
        wins += [title] * (verdict == "better")
        power = f" (one of {row['detectable']:.{decimals}f} would have been found with 80 % probability)"
        said.append(f"{title} {texts['AdaLoss']}, {verdict}{power * (verdict == 'no difference shown')}")
        for head in table.index.intersection(others):
            if (verdict := table.at[head, "verdict"]) in ("higher", "lower"):
                found[head].append(f"{'better' if verdict == better else 'worse'} in {title} ({texts[head]})")
    end = f"beats the fixed margin in {' and '.join(wins)}" if wins else "is not shown to beat the fixed margin"
    rest = "; ".join(f"{head} is {' and '.join(parts)}" for head, parts in found.items() if parts)
    return (
        f"AdaLoss minus ArcFace: {'; '.join(said)}. Over {frame['seed'].nunique()} seeds, AdaLoss {end}. Of the other "
        f"adaptive losses, {rest or 'none is shown to differ from ArcFace'}."
    )


def written(constants) -> str:
    """Constants as text, for a table."""
    return ", ".join(f"{name} = {value:.3g}" for name, value in constants) or "none"


def space() -> pd.DataFrame:
    """``SPACE`` as a table."""
    rows = {
        head: ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in SPACE[head].items()) for head in LOSSES
    }
    return pd.DataFrame({"constants drawn": rows}).rename_axis("loss").replace("", "none")


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Of ``recorded``: by loss the validation accuracies (%) of all trials, and what the chosen one has."""
    result = (100 * frame.pivot(index="head", columns="trial", values="val_accuracy")).map("{:.2f}".format)
    result.columns = ["defaults", *map(str, result.columns[1:])]
    chosen = frame[frame["chosen"]].set_index("head").loc[result.index]
    result["chosen"] = [str(trial or "defaults") for trial in chosen["trial"]]
    result["factor on lr"] = chosen["factor"].map("{:g}".format)
    result["constants"] = chosen["constants"].map(written).where(chosen["trial"] > 0, "defaults")
    return result.loc[frame["head"].unique()].rename_axis("loss")


def settings(frame: pd.DataFrame) -> pd.DataFrame:
    """Of ``recorded``: every trial with its setting and its validation accuracy."""
    columns = {
        "loss": frame["head"], "trial": frame["trial"], "factor on lr": frame["factor"],
        "constants": frame["constants"].map(written).where(frame["trial"] > 0, "defaults"),
        "validation accuracy (%)": (100 * frame["val_accuracy"]).map("{:.2f}".format),
    }  # fmt: skip
    return pd.DataFrame(columns).sort_values("loss", key=lambda loss: loss.map(LOSSES.index), kind="stable")
