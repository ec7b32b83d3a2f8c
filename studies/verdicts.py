"""The decision rule of ``studies/PROTOCOL.md``: what paired runs say about two losses."""

import math

import numpy as np
import pandas as pd
from scipy import stats

from studies import statistics

LEVEL = 0.05
MOST_STALLED = 0.1  # of the pairs; with more there is no interval
DIRECTION = {1: "higher", -1: "lower"}


def decide(differences, bound: float, comparisons: int = 1) -> dict:
    """The rule for paired differences (n,) of one comparison in a family of so many.

    mean, low, high: Student's t interval, of level 1 - 0.05 / comparisons. inner_low, inner_high: of 1 - 0.1 /
    comparisons, which has to lie within the bounds for equivalence. verdict: "higher" or "lower", "equivalent", "higher
    by less than the bound", "not decided"; without any spread, and with fewer than three differences, "cannot be told".
    """
    d = np.asarray(differences, dtype=float)
    n, level = len(d), LEVEL / comparisons
    found = {"n": n, "mean": d.mean() if n else np.nan}
    spread = d.std(ddof=1) if n > 1 else 0.0
    if n < 3 or spread <= 1e-9 * max(1e-9, np.abs(d).max()):  # rounding is no spread
        empty = dict.fromkeys(("low", "high", "inner_low", "inner_high"), np.nan)
        return found | empty | {"verdict": "cannot be told"}
    error = spread / math.sqrt(n)
    outer, inner = (error * stats.t.ppf(1 - tail, n - 1) for tail in (level / 2, level))
    mean = found["mean"]
    return found | {
        "low": mean - outer, "high": mean + outer, "inner_low": mean - inner, "inner_high": mean + inner,
        "verdict": word(mean, outer, inner, bound),
    }  # fmt: skip


def word(mean: float, outer: float, inner: float, bound: float) -> str:
    """The verdict for a mean difference with an interval of half-width outer, and inner for equivalence; a bound that
    is no number is none."""
    different = DIRECTION[int(np.sign(mean))] if abs(mean) > outer else ""
    equivalent = abs(mean) + inner < bound
    if different and equivalent:
        return f"{different} by less than the bound"
    return different or ("equivalent" if equivalent else "not decided")


def sign_flip_p(differences) -> float:
    """Two-sided p of paired differences (n,) from all 2^n ways to flip their signs, exact: they are counted as whole
    numbers of millionths, so that no tie is lost to rounding."""
    d = np.rint(1e6 * np.asarray(differences, dtype=float)).astype(np.int64)
    d = np.abs(d[d != 0])
    if not len(d):
        return 1.0
    observed = abs(int(np.rint(1e6 * np.sum(differences))))
    unit = int(np.gcd.reduce([*d, observed]))
    d, observed = d // unit, observed // unit
    ways = np.ones(1)  # of the sums -total to total in steps of 1, as shares of all flips
    for step in d:
        longer = np.zeros(len(ways) + 2 * step)
        longer[: len(ways)] += ways / 2
        longer[2 * step :] += ways / 2
        ways = longer
    sums = np.arange(-int(d.sum()), int(d.sum()) + 1)
    return float(ways[np.abs(sums) >= observed].sum().clip(max=1))


def stalled(frame: pd.DataFrame, measure: str = "val_accuracy", reference: str = "Softmax") -> pd.Series:
    """Which runs of one setting (rows with head and the measure) are stalled: they failed, or their measure is below
    half of the reference's median. Where all of the reference's runs failed, only those that failed are."""
    if reference not in set(frame["head"]):
        raise ValueError(f"what is stalled is judged by {reference}, and these runs hold none of it")
    typical = frame.loc[frame["head"] == reference, measure].median()
    failed = frame["failed"].notna() if "failed" in frame else False
    return failed | ~(frame[measure] >= (0 if np.isnan(typical) else typical / 2))


def compare(
    frame: pd.DataFrame, loss: str, reference: str, metric: str, bound: float, factor: float = 1.0, comparisons: int = 1
) -> dict:
    """``decide`` for loss minus reference, times factor, over the seeds that both have.

    frame: rows with head, seed, machine, the metric and stalled. stalled, stalled_reference: how many runs of each are;
    their pairs are left out, and if these are more than a tenth of all, the verdict is the counts. detectable: the
    difference that is found with a power of 80 %. p: ``sign_flip_p``, which decides nothing. Raises ValueError for a
    pair from two machines and for a seed given twice.
    """
    rows = frame[frame["head"].isin([loss, reference])]
    if rows.duplicated(["head", "seed"]).any():
        raise ValueError(f"{loss} or {reference} has a seed twice: keep one run of each")
    wide = rows.pivot(index="seed", columns="head", values=[metric, "stalled", "machine"])
    pairs = wide.dropna(subset=[("machine", loss), ("machine", reference)])
    machines, bad = pairs["machine"], pairs["stalled"].astype(bool)
    if moved := list(pairs.index[machines[loss] != machines[reference]]):
        raise ValueError(f"{loss} and {reference} with seed {moved[0]} ran on two machines: train that seed again")
    left_out = bad[loss] | bad[reference]
    d = factor * (pairs[metric][loss] - pairs[metric][reference])[~left_out].astype(float)
    if d.isna().any():
        raise ValueError(f"{d.isna().sum()} of {len(d)} pairs of {loss} and {reference} have no {metric}")
    counts = {"stalled": int(bad[loss].sum()), "stalled_reference": int(bad[reference].sum())}
    if left_out.sum() <= MOST_STALLED * len(pairs):
        sd = d.std() if len(d) > 1 else np.nan
        beside = {"detectable": statistics.detectable(sd, len(d), comparisons), "p": sign_flip_p(d)}
        return decide(d, bound, comparisons) | counts | beside
    verdict = f"stalled: {counts['stalled']} of {len(pairs)}, {reference} {counts['stalled_reference']}"
    return (
        decide([], bound, comparisons)
        | {"n": len(pairs), "verdict": verdict, "detectable": np.nan, "p": np.nan}
        | counts
    )


def family(frame: pd.DataFrame, reference: str, metric: str, bound: float, factor: float = 1.0) -> pd.DataFrame:
    """``compare`` of every other loss with the reference, as one family; a row per loss."""
    losses = [head for head in frame["head"].unique() if head != reference]
    rows = {loss: compare(frame, loss, reference, metric, bound, factor, len(losses)) for loss in losses}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("loss")
