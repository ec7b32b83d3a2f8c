"""What is measured on a trained model, and intervals over seeds."""

import numpy as np
import pandas as pd
import torch
from scipy import stats
from scipy.optimize import minimize_scalar
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import Tensor
from torch.nn import functional as F


def accuracy(logits: Tensor, y: Tensor) -> float:
    """Share of rows of logits (N, C) whose largest entry is the label y (N,)."""
    return (logits.argmax(1) == y).double().mean().item()


def cross_entropy(logits: Tensor, y: Tensor, temperature: float = 1.0) -> float:
    """Mean cross-entropy (nats) of logits (N, C) / temperature."""
    return F.cross_entropy(logits.double() / temperature, y).item()


def temperature(logits: Tensor, y: Tensor) -> float:
    """The temperature that minimises the cross-entropy (Guo et al. 2017, arXiv 1706.04599).

    Losses of heads with different s are comparable only after this; fit it on validation data.
    """
    best = minimize_scalar(
        lambda log_t: cross_entropy(logits, y, np.exp(log_t)), bounds=(-5, 5), method="bounded", options={"xatol": 1e-3}
    )
    return float(np.exp(best.x))


def calibration_error(logits: Tensor, y: Tensor, bins: int = 15) -> float:
    """Expected calibration error: mean |confidence - accuracy| over equal-width confidence bins."""
    confidence, predicted = logits.double().softmax(1).max(1)
    correct = (predicted == y).double()
    index = (confidence * bins).long().clamp_max(bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, index, confidence - correct)  # sum per bin
    return (gap.abs().sum() / len(y)).item()


def angles(x: Tensor, y: Tensor) -> dict[str, float]:
    """Geometry of embeddings x (N, d) with labels y (N,), in degrees.

    intra: mean angle between an embedding and the mean direction of its class.
    inter: smallest angle between the mean directions of two classes, averaged over the classes.
    """
    x = F.normalize(x.double())
    C = int(y.max()) + 1
    centres = F.normalize(torch.zeros(C, x.shape[1], dtype=x.dtype).index_add_(0, y, x))
    intra = torch.rad2deg((x * centres[y]).sum(1).clamp(-1, 1).acos()).mean()
    between = (centres @ centres.T).clamp(-1, 1).acos().fill_diagonal_(torch.inf)
    return {"intra_angle": intra.item(), "inter_angle": torch.rad2deg(between.min(1).values).mean().item()}


def evaluate(logits: Tensor, y: Tensor, x: Tensor, val_logits: Tensor, val_y: Tensor) -> dict:
    """All test metrics of one run from its label-free test logits (N, C), labels and embeddings.

    The temperature behind test_loss and ece is fitted on validation logits.
    """
    t = temperature(val_logits, val_y)
    predicted = logits.argmax(1)
    precision, recall, f1, _ = precision_recall_fscore_support(y, predicted, average="macro", zero_division=0)
    return {
        "test_accuracy": accuracy(logits, y),
        "val_accuracy": accuracy(val_logits, val_y),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "test_loss": cross_entropy(logits, y, t),
        "ece": calibration_error(logits / t, y),
        "temperature": t,
        **angles(x, y),
        "confusion": confusion_matrix(y, predicted, labels=range(logits.shape[1])).tolist(),
    }


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
