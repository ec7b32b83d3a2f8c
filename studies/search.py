"""How constants are chosen under ``studies/PROTOCOL.md``: trials of equal number, the best ones again, one choice."""

import dataclasses
import math

import numpy as np
from scipy.stats import qmc

from lib import device
from studies import records
from studies.study import Incomplete

TRIALS, MORE = 12, 6  # per loss; and for a loss whose best constants lie at an end of a range
BEST = 3  # trials that are trained again
TRIAL_SEED, FINALIST_SEEDS = 1000, (1001, 1002)  # no final run has their weights and order
EDGE = 0.05  # of a range

# margins in radians, or in units of the cosine for CosFace, AdaFace and m3
S, LR = (2.0, 64.0), (0.25, 4.0)  # LR: a factor on the recipe's rates, which every loss has
FREE = {"m_min": 0.0, "m_max": 1.5}  # bounds of AdaLoss that do not clip
SPACE = {
    "Softmax": {},
    "NormFace": {"s": S},
    "SphereFace": {"s": S, "m1": (1.02, 3.0)},
    "CosFace": {"s": S, "m": (0.02, 0.8)},
    "ArcFace": {"s": S, "m": (0.02, 1.0)},
    "CombinedMargin": {"s": S, "m1": (1.0, 1.5), "m2": (0.0, 0.6), "m3": (0.0, 0.4)},
    "CurricularFace": {"s": S, "m": (0.02, 1.0)},
    "AdaFace": {"s": S, "m": (0.02, 0.8), "h": (0.05, 1.0)},
    "KappaFace": {"s": S, "m0": (0.05, 2.8)},  # its mean margin is about 0.35 m0
    "AdaLoss": {"s": S, "m": (0.02, 1.0), "gamma": (0.1, 3.0)},
    "Triplet": {"m": (0.02, 1.0)},
}
FIXED = {"AdaLoss": FREE}  # constants that are not searched


def trials(default, n: int = TRIALS, space: dict | None = None) -> list:
    """n trials of the loss of one run, a dataclass with head, constants, lr, muon_lr and seed.

    The first has the loss's defaults and the run's own rates, the others Sobol's points, the same for all losses: trial
    i has one factor on the learning rates and one s. space: ranges other than ``SPACE``'s.
    """
    ranges, fixed = (space or SPACE)[default.head], FIXED.get(default.head, {})
    default = dataclasses.replace(default, constants=fixed, seed=TRIAL_SEED)
    width = 1 + max(map(len, SPACE.values()))
    points = qmc.Sobol(width, seed=0).random_base2(math.ceil(math.log2(n)))[1:n]
    drawn = [default]
    for factor, *rest in points:
        constants = {name: _drawn(name, *limits, u) for (name, limits), u in zip(ranges.items(), rest, strict=False)}
        drawn.append(dataclasses.replace(default, constants=fixed | constants, **_rates(default, factor)))
    return drawn


def _drawn(name: str, low: float, high: float, u: float) -> float:
    value = low * (high / low) ** u if name in ("lr", "s") else low + (high - low) * u
    return float(f"{value:.3g}")


def _rates(run, u: float) -> dict:
    """The learning rates of a run, SGD's and Muon's where it has one, times a factor."""
    factor = _drawn("lr", *LR, u)
    rates = {name: getattr(run, name) for name in ("lr", "muon_lr") if hasattr(run, name)}
    return {name: float(f"{factor * rate:.6g}") for name, rate in rates.items()}


def hide_test(execute, measure: str):
    """Like execute(run, progress), but the record holds no metric but this one: what is not recorded cannot be looked
    at. A run that diverges has lost: it is recorded with the measure 0 and why."""

    def hidden(run, progress: bool = False) -> tuple:
        try:
            model, record = execute(run, progress)
            return model, record | {"metrics": {measure: record["metrics"][measure]}}
        except FloatingPointError as error:
            return None, failure(run, error, {measure: 0.0})

    return hidden


def count_failures(execute, measure: str):
    """Like execute(run, progress), but a run that diverges is recorded with the measure 0 and why, and the study
    goes on."""

    def counted(run, progress: bool = False) -> tuple:
        try:
            return execute(run, progress)
        except FloatingPointError as error:
            return None, failure(run, error, {measure: 0.0})

    return counted


def failure(run, error: Exception, measured: dict) -> dict:
    """The record of a run that did not end with finite numbers."""
    return records.record(run, measured | {"failed": str(error)}, {}, device.best_device(), 0.0)


def finalists(planned: list, found: dict, measure: str) -> list:
    """Of the trials planned of every loss the ``BEST`` by the recorded measure, of equal ones the earlier, with each of
    ``FINALIST_SEEDS``, seeds in the outer loop. Raises Incomplete if a trial is missing."""
    if missing := sum(run not in found for run in planned):
        raise Incomplete(f"{missing} of {len(planned)} trials are not recorded")
    best = []
    for head in dict.fromkeys(run.head for run in planned):
        runs = [run for run in planned if run.head == head]
        best += sorted(runs, key=lambda run: -found[run]["metrics"][measure])[:BEST]  # sorted is stable
    return [dataclasses.replace(run, seed=seed) for seed in FINALIST_SEEDS for run in best]


def chosen(finalists: list, found: dict, measure: str) -> dict:
    """By loss the finalist with the highest mean of the recorded measure over its seeds, as the run of the first of
    these. Raises Incomplete if one is missing."""
    if missing := sum(run not in found for run in finalists):
        raise Incomplete(f"{missing} of {len(finalists)} finalists are not recorded")
    scores: dict = {}
    for run in finalists:
        scores.setdefault(dataclasses.replace(run, seed=FINALIST_SEEDS[0]), []).append(found[run]["metrics"][measure])
    best: dict = {}
    for run, values in scores.items():
        if run.head not in best or np.mean(values) > np.mean(scores[best[run.head]]):
            best[run.head] = run
    return best


def at_edge(run, default, space: dict | None = None) -> list[str]:
    """The names of what lies within ``EDGE`` of an end of its range in a chosen run: constants, or lr. default: the
    run with the recipe's rates. A margin of nearly 0 is no edge: no margin is a choice of its own."""
    ranges = dict((space or SPACE)[run.head], lr=LR)
    values = dict(run.constants, lr=run.lr / default.lr)
    found = []
    for name, (low, high) in ranges.items():
        if name not in values:  # at its default
            continue
        value = values[name]
        u = math.log(value / low) / math.log(high / low) if name in ("lr", "s") else (value - low) / (high - low)
        if u > 1 - EDGE or (u < EDGE and name in ("lr", "s", "gamma")):
            found.append(name)
    return found
