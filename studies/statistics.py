"""What repeated runs show: intervals over seeds, and differences between losses.

Runs of one seed share initial weights and data order, so losses are compared seed by seed. Which interval
is which: ``means`` and ``differences`` assume normal noise of one size and pool it over all losses but ``apart``,
which is what two or three seeds allow; ``bootstrap`` uses a loss's own runs, and needs five or more. The rule that
decides under the protocol is in ``verdicts``.
"""

import numpy as np
import pandas as pd
from scipy import optimize, stats

ENOUGH = 5  # runs for a bootstrap: of two, its 95 % interval would hold the true mean in half of the cases


def interval(values, level: float = 0.95) -> tuple[float, float, float]:
    """Mean and interval (Student's t) of repeated measurements; one value alone has none (NaN)."""
    values = np.asarray(values, dtype=float)
    mean = values.mean()
    if len(values) < 2:
        return mean, np.nan, np.nan
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values)
    return mean, mean - half, mean + half


def bootstrap(values, level: float = 0.95) -> tuple[float, float, float]:
    """Mean and percentile bootstrap interval (Efron 1979) of runs over seeds; fewer than ``ENOUGH`` have none (NaN).

    Of few runs it is too narrow: with normal noise, a 95 % interval holds the true mean in about 85 % of
    cases at n = 5 and in 90 % at n = 10.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < ENOUGH:
        return values.mean(), np.nan, np.nan
    drawn = stats.bootstrap((values,), np.mean, confidence_level=level, method="percentile", random_state=0)
    return values.mean(), *drawn.confidence_interval


def apart(frame: pd.DataFrame) -> set[str]:
    """The losses whose noise is of another size: those with a run that the columns apart or stalled mark, where the
    frame has them."""
    marked = (frame.loc[frame[column].astype(bool), "head"] for column in ("apart", "stalled") if column in frame)
    return set().union(*marked)


def means(groups: dict[str, np.ndarray], level: float = 0.95, apart=()) -> dict[str, np.ndarray]:
    """Mean and interval of each group of runs: (mean, low, high), stacked in front of further axes.

    groups: values (n,) or (n, epochs) per loss, over seeds. Student's t with one deviation for
    all groups but those apart, pooled over them (sum of n - 1 degrees of freedom): a few seeds alone
    estimate it badly. The intervals are NaN if no group has a second run.
    """
    groups = {name: np.asarray(values, dtype=float) for name, values in groups.items()}
    if len(groups) > 1 and not groups.keys().isdisjoint(apart):
        found = means({name: v for name, v in groups.items() if name not in apart}, level)
        return {name: found[name] if name in found else means({name: v}, level)[name] for name, v in groups.items()}
    df = sum(len(v) - 1 for v in groups.values())
    squares = sum(((v - v.mean(0)) ** 2).sum(0) for v in groups.values())
    half = stats.t.ppf((1 + level) / 2, df) * np.sqrt(squares / df) if df else np.nan
    return {
        name: np.stack([v.mean(0), v.mean(0) - half / len(v) ** 0.5, v.mean(0) + half / len(v) ** 0.5])
        for name, v in groups.items()
    }


def by_loss(frame: pd.DataFrame, metric: str) -> dict[str, np.ndarray]:
    """Values of a metric over seeds, by loss."""
    return {head: group[metric].to_numpy() for head, group in frame.groupby("head", sort=False)}


def reached(frame: pd.DataFrame, accuracy: float) -> pd.DataFrame:
    """Epochs and training seconds after which each run's validation accuracy is first at least this; NaN if never."""
    rows = []
    for history in frame["history"]:
        first = np.flatnonzero(np.array(history["val_accuracy"]) >= accuracy)[:1]
        rows.append((first[0] + 1, history["seconds"][first[0]]) if len(first) else (np.nan, np.nan))
    return pd.DataFrame(rows, columns=["epochs", "seconds"], index=frame.index, dtype=float)


def differences(
    frame: pd.DataFrame, metric: str, reference: str, heads: list[str] | None = None, factor: float = 1.0
) -> pd.DataFrame:
    """Each loss (or those in heads) minus the reference: n, mean, low, high and what can be said.

    The runs of one seed share initial weights and data order, so a value is modelled as an effect
    of its loss plus an effect of its seed plus noise (randomised blocks, least squares). The
    intervals hold for all comparisons at once with 95 % (Bonferroni), so that one of many does not
    look like a finding by chance. The noise of all losses but ``apart`` together estimates one spread, so that three
    losses and two seeds already have an interval; ``compare`` adds an exact test.
    """
    names = list(frame["head"].unique())
    heads = [head for head in heads or names if head != reference]
    if not heads or not {reference, *heads} <= set(names):
        raise ValueError(f"no runs to compare with {reference}: there are runs of {', '.join(names)}")
    rows, models = [], {}  # most comparisons rest on the same runs, and so on one model
    for head in heads:
        pool = _pool(frame, head, reference)
        names = tuple(pool["head"].unique())
        if names not in models:
            models[names] = _effects(pool, metric, names)
        effects, covariance, df = models[names]
        i, j = names.index(head), names.index(reference)
        error = np.sqrt(covariance[i, i] + covariance[j, j] - 2 * covariance[i, j])
        mean, half = factor * (effects[i] - effects[j]), factor * error * stats.t.ppf(1 - 0.025 / len(heads), df)
        verdict = "higher" if mean > half else "lower" if mean < -half else "no difference shown"
        verdict = verdict if df else "one seed: open"
        n = int((frame["head"] == head).sum())
        rows.append({"loss": head, "n": n, "mean": mean, "low": mean - half, "high": mean + half, "verdict": verdict})
    return pd.DataFrame(rows).set_index("loss")


def _pool(frame: pd.DataFrame, head: str, reference: str) -> pd.DataFrame:
    """The runs that estimate the noise of head minus reference."""
    others = apart(frame)
    alone = not others.isdisjoint([head, reference])
    return frame[frame["head"].isin([head, reference]) if alone else ~frame["head"].isin(others)]


def _effects(frame: pd.DataFrame, metric: str, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, int]:
    """The model of ``differences``: its effects (those of the losses first, in the order of names), their covariance,
    and the noise's degrees of freedom."""
    seeds = list(frame["seed"].unique())
    loss = frame["head"].to_numpy()[:, None] == np.array(names, dtype=object)  # (runs, losses)
    block = frame["seed"].to_numpy()[:, None] == np.array(seeds[1:])  # (runs, seeds - 1)
    X, y = np.hstack([loss, block]).astype(float), frame[metric].to_numpy(dtype=float)
    effects, _, rank, _ = np.linalg.lstsq(X, y)
    df = len(y) - rank
    variance = np.sum((y - X @ effects) ** 2) / df if df else np.nan
    return effects, variance * np.linalg.pinv(X.T @ X), df


def compare(
    frame: pd.DataFrame, metric: str, reference: str, heads: list[str] | None = None, factor: float = 1.0
) -> pd.DataFrame:
    """``differences`` to the reference, and a test that assumes no distribution, from the seeds that both losses have.

    mean, low, high: as ``differences``; n: seeds in common. p: exact paired permutation test, all 2^n ways to swap the
    two losses within seeds, two-sided; p_holm: corrected for the comparisons of this table (Holm 1979). verdict: by
    p_holm at 5 %, or by the interval where there are too few seeds for that test to reach 5 %.
    Raises ValueError if the metric is missing in some run.
    """
    if metric not in frame or frame[metric].isna().any():
        missing = frame[metric].isna().sum() if metric in frame else len(frame)
        raise ValueError(f"{missing} of {len(frame)} runs have no {metric}: train them again or compare something else")
    table = differences(frame, metric, reference, heads, factor)
    wide = factor * frame.pivot(index="seed", columns="head", values=metric)
    for head in table.index:
        x, y = wide[[head, reference]].dropna().to_numpy().T  # (n,) each
        table.loc[head, ["n", "p"]] = len(x), permutation_p(x, y)
    table["p_holm"] = holm(table["p"])
    if len(table) * 2.0 ** (1 - table["n"].min()) <= 0.05:
        effect = np.where(table["mean"] > 0, "higher", "lower")
        table["verdict"] = np.where(table["p_holm"] < 0.05, effect, "no difference shown")
    return table


def permutation_p(x: np.ndarray, y: np.ndarray) -> float:
    """Two-sided p of the paired values x, y (n,), from all 2^n swaps within pairs; 2^(1 - n) at the smallest."""
    if len(x) < 2:
        return np.nan
    test = stats.permutation_test(
        (x, y), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=2 ** len(x),
    )  # fmt: skip
    return float(test.pvalue)


def holm(p) -> np.ndarray:
    """p values corrected for their number by Holm's step-down rule (1979)."""
    p = np.asarray(p, dtype=float)
    order = p.argsort()
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return corrected


def detectable(sd: float, n: int, comparisons: int = 1, df: float | None = None) -> float:
    """The smallest true mean difference that a two-sided t test of n pairs finds with a power of 80 % at the level of
    5 %, for normal noise.

    sd: deviation of the paired differences, estimated with df degrees of freedom (n - 1 if not given). comparisons: the
    level is divided by their number (Bonferroni). NaN for less than two pairs.
    """
    if n < 2 or not np.isfinite(sd):
        return np.nan
    found, power, largest = _t_power(n - 1 if df is None else df, 0.05 / comparisons), 0.8, 50.0  # standard errors
    if found(largest) < power:
        return np.nan
    return sd / n**0.5 * optimize.brentq(lambda shift: found(shift) - power, 0, largest, xtol=1e-3)


def _t_power(df: float, level: float):
    """Share of experiments in which a t test finds a mean of so many standard errors, as a function of that number."""
    t = stats.t.ppf(1 - level / 2, df)
    # the estimated deviation over the true one, at even steps of its distribution: scipy's nct has no value at n = 2
    ratio = np.sqrt(stats.chi2.ppf((np.arange(4000) + 0.5) / 4000, df) / df)
    return lambda shift: np.mean(stats.norm.sf(t * ratio - shift) + stats.norm.cdf(-t * ratio - shift))
