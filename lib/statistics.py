"""What repeated runs show: intervals over seeds, and differences between losses."""

import numpy as np
import pandas as pd
from scipy import stats


def interval(values, level: float = 0.95) -> tuple[float, float, float]:
    """Mean and interval (Student's t) of repeated measurements; one value alone has none (NaN)."""
    values = np.asarray(values, dtype=float)
    mean = values.mean()
    if len(values) < 2:
        return mean, np.nan, np.nan
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values)
    return mean, mean - half, mean + half


def means(groups: dict[str, np.ndarray], level: float = 0.95) -> dict[str, np.ndarray]:
    """Mean and interval of each group of runs: (mean, low, high), stacked in front of further axes.

    groups: values (n,) or (n, epochs) per loss, over seeds. Student's t with one deviation for
    all groups, pooled over them (sum of n - 1 degrees of freedom): a few seeds alone estimate it
    badly. The intervals are NaN if no group has a second run.
    """
    groups = {name: np.asarray(values, dtype=float) for name, values in groups.items()}
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


def summary(frame: pd.DataFrame, columns: dict[str, tuple[str, float, int]]) -> pd.DataFrame:
    """A table by loss: n and, per column, the mean ± half the 95 % interval of ``means`` if there is one.

    columns: heading -> (metric, factor, decimals), for instance {"accuracy (%)": ("test_accuracy", 100, 2)}.
    """
    table = frame.groupby("head", sort=False).size().rename("n").to_frame().rename_axis("loss")
    for heading, (metric, factor, decimals) in columns.items():
        intervals = {head: factor * v for head, v in means(by_loss(frame, metric)).items()}
        table[heading] = [
            f"{mean:.{decimals}f}" + (f" ± {high - mean:.{decimals}f}" if np.isfinite(high) else "")
            for mean, _, high in intervals.values()
        ]
    return table


def differences(
    frame: pd.DataFrame, metric: str, reference: str, heads: list[str] | None = None, factor: float = 1.0
) -> pd.DataFrame:
    """Each loss (or those in heads) minus the reference: n, mean, low, high and what can be said.

    The runs of one seed share initial weights and data order, so a value is modelled as an effect
    of its loss plus an effect of its seed plus noise (randomised blocks, least squares). The
    intervals hold for all comparisons at once with 95 % (Bonferroni), so that one of many does not
    look like a finding by chance.
    """
    names, seeds = list(frame["head"].unique()), list(frame["seed"].unique())
    heads = [head for head in heads or names if head != reference]
    loss = frame["head"].to_numpy()[:, None] == np.array(names, dtype=object)  # (runs, losses)
    block = frame["seed"].to_numpy()[:, None] == np.array(seeds[1:])  # (runs, seeds - 1)
    X, y = np.hstack([loss, block]).astype(float), factor * frame[metric].to_numpy(dtype=float)
    effects, _, rank, _ = np.linalg.lstsq(X, y)
    df = len(y) - rank
    variance = np.sum((y - X @ effects) ** 2) / df if df else np.nan
    covariance = variance * np.linalg.pinv(X.T @ X)
    t = stats.t.ppf(1 - 0.025 / len(heads), df)
    rows = []
    for head in heads:
        contrast = np.zeros(X.shape[1])
        contrast[names.index(head)], contrast[names.index(reference)] = 1, -1
        mean, half = contrast @ effects, t * np.sqrt(contrast @ covariance @ contrast)
        verdict = "higher" if mean > half else "lower" if mean < -half else "no difference shown"
        verdict = verdict if df else "one seed: open"
        n = int(loss[:, names.index(head)].sum())
        rows.append({"loss": head, "n": n, "mean": mean, "low": mean - half, "high": mean + half, "verdict": verdict})
    return pd.DataFrame(rows).set_index("loss")


def bracket(row: pd.Series, digits: int = 2) -> str:
    """A row of ``differences`` as text: mean and, in brackets, its interval."""
    interval = f"[{row['low']:+.{digits}f}, {row['high']:+.{digits}f}]" if pd.notna(row["low"]) else "(no interval)"
    return f"{row['mean']:+.{digits}f} {interval}"
