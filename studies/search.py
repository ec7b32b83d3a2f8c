"""How constants are chosen under ``studies/PROTOCOL.md``: trials of equal number, the best ones again, one choice."""

import dataclasses
import math

import numpy as np
from scipy.stats import qmc

from lib import device, heads
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


def trials(default) -> list:
    """``TRIALS`` trials of the loss of one run, a dataclass with head, constants, lr, muon_lr and seed.

    The first has the loss's defaults and the run's own rates, the others Sobol's points, the same for all losses: trial
    i has one factor on the learning rates and one s.
    """
    first = dataclasses.replace(default, constants=FIXED.get(default.head, {}), seed=TRIAL_SEED)
    return [first, *drawn_from(first, SPACE[default.head], LR, TRIALS, seed=0)]


def wider(default, planned: list, found: dict, measure: str) -> list:
    """``MORE`` trials beyond the ends of the ranges near which the best planned trial of the default's loss lies; none
    where there is no such end. Raises Incomplete if a trial is missing."""
    best = _ranked([run for run in planned if run.head == default.head], found, measure)[0]
    ends = beyond(best, default)
    if not ends:
        return []
    first = dataclasses.replace(default, constants=FIXED.get(default.head, {}), seed=TRIAL_SEED)
    ranges = {name: ends.get(name, limits) for name, limits in SPACE[default.head].items()}
    return drawn_from(first, ranges, ends.get("lr", LR), MORE + 1, seed=1)


def drawn_from(first, ranges: dict, lr: tuple, n: int, seed: int) -> list:
    """n - 1 trials of one loss with constants, and a factor on the rates of its first run, from these ranges; s and
    the factor are drawn log-uniformly, the others uniformly."""
    width = 1 + max(map(len, SPACE.values()))
    points = qmc.Sobol(width, seed=seed).random_base2(math.ceil(math.log2(n)))[1:n]
    drawn = []
    for u, *rest in points:
        constants = {name: _drawn(name, *limits, v) for (name, limits), v in zip(ranges.items(), rest, strict=False)}
        factor = _drawn("lr", *lr, u)
        rates = {rate: float(f"{factor * getattr(first, rate):.6g}") for rate in ("lr", "muon_lr")}
        drawn.append(dataclasses.replace(first, constants=dict(first.constants) | constants, **rates))
    return drawn


def _drawn(name: str, low: float, high: float, u: float) -> float:
    value = low * (high / low) ** u if name in ("lr", "s") else low + (high - low) * u
    return float(f"{value:.3g}")


def hide_test(execute, measure: str):
    """Like execute(run, progress), but the record holds no metric but this one: what is not recorded cannot be looked
    at. A run that diverges has lost: it is recorded with the measure 0 and why."""

    def hidden(run, progress: bool = False) -> tuple:
        try:
            model, record = execute(run, progress)
            return model, record | {"metrics": {measure: record["metrics"].get(measure, math.nan)}}
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
    heads = dict.fromkeys(run.head for run in planned)
    ranked = {head: _ranked([run for run in planned if run.head == head], found, measure) for head in heads}
    return [
        dataclasses.replace(run, seed=seed) for seed in FINALIST_SEEDS for head in heads for run in ranked[head][:BEST]
    ]


def _ranked(planned: list, found: dict, measure: str) -> list:
    """Trials, the best first, of equal ones the earlier."""
    if missing := sum(run not in found for run in planned):
        raise Incomplete(f"{missing} of {len(planned)} trials of {planned[0].head} are not recorded")
    return sorted(planned, key=lambda run: -_score(found[run], measure))  # which is stable


def _score(record: dict, measure: str) -> float:
    value = record["metrics"].get(measure, math.nan)
    if math.isnan(value):
        raise ValueError(
            f"a run has no {measure} ({record.get('error', 'NaN')}): take its line away and train it again"
        )
    return value


def chosen(finalists: list, found: dict, measure: str) -> dict:
    """By loss the finalist with the highest mean of the recorded measure over its seeds, as the run of the first of
    these. Raises Incomplete if one is missing."""
    if missing := sum(run not in found for run in finalists):
        raise Incomplete(f"{missing} of {len(finalists)} finalists are not recorded")
    scores: dict = {}
    for run in finalists:
        scores.setdefault(dataclasses.replace(run, seed=FINALIST_SEEDS[0]), []).append(_score(found[run], measure))
    best: dict = {}
    for run, values in scores.items():
        if run.head not in best or np.mean(values) > np.mean(scores[best[run.head]]):
            best[run.head] = run
    return best


def controls(run, mean: float, spread: float) -> dict:
    """By name, margins that do not adapt in a run like this one of AdaLoss: one for all classes, AdaLoss's own given to
    the wrong classes, random ones. mean, spread: of AdaLoss's margins, over the classes."""
    mean, spread = float(f"{mean:.4g}"), float(f"{spread:.4g}")
    scale = {name: value for name, value in run.constants if name == "s"}  # the defaults have none
    arms = {
        "same mean": ("ArcFace", scale | {"m": mean}),
        "permuted": ("PermutedAdaLoss", run.constants),
        "random": ("RandomMargin", scale | {"m": mean, "spread": spread}),
    }
    return {name: dataclasses.replace(run, head=head, constants=constants) for name, (head, constants) in arms.items()}


def beyond(run, default) -> dict[str, tuple[float, float]]:
    """What lies within ``EDGE`` of an end of its range in a trial, constants and lr, with as wide a range behind that
    end. default: the run with the recipe's rates. No margin, and no gamma, is a choice of its own: those have no
    lower end."""
    limits = heads.find(run.head).ranges()
    values, ranges = dict(run.constants, lr=run.lr / default.lr), dict(SPACE[run.head], lr=LR)
    found = {}
    for name, (low, high) in ranges.items():
        if name not in values:  # at its default
            continue
        log, value = name in ("lr", "s"), values[name]
        u = math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)
        most = limits[name][2] if name in limits else math.inf
        if u > 1 - EDGE and high < most:
            found[name] = (high, min(2 * high if log else 2 * high - low, most))
        elif u < EDGE and log:
            found[name] = (low / 2, low)
    return found
