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
    """Mean and interval (Student's t over runs) of a sequence; one value alone has none (NaN)."""
    values = np.asarray(values, dtype=float)
    mean = values.mean()
    if len(values) < 2:
        return mean, np.nan, np.nan
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return mean, mean - half, mean + half


def summary(frame: pd.DataFrame, columns: dict[str, tuple[str, float, int]]) -> pd.DataFrame:
    """A table by loss: n and, per column, the mean ± half the 95 % interval over seeds.

    columns: heading -> (metric, factor, decimals), for instance {"accuracy (%)": ("test_accuracy", 100, 2)}.
    """
    rows = []
    for head, group in frame.groupby("head", sort=False):
        row = {"loss": head, "n": len(group)}
        for heading, (metric, factor, decimals) in columns.items():
            mean, low, high = (factor * v for v in interval(group[metric]))
            row[heading] = f"{mean:.{decimals}f}" + (f" ± {(high - low) / 2:.{decimals}f}" if len(group) > 1 else "")
        rows.append(row)
    return pd.DataFrame(rows).set_index("loss")


def differences(frame: pd.DataFrame, metric: str, reference: str, factor: float = 1.0) -> pd.DataFrame:
    """Each loss minus the reference, paired by seed: n, mean, low, high and what can be said.

    The intervals hold for all losses at once with 95 % (Bonferroni), so that one of many
    comparisons does not look like a finding by chance.
    """
    table = factor * frame.pivot(index="seed", columns="head", values=metric)
    others = [head for head in frame["head"].unique() if head != reference]
    rows = []
    for head in others:
        difference = (table[head] - table[reference]).dropna()
        mean, low, high = interval(difference, 1 - 0.05 / len(others))
        verdict = "higher" if low > 0 else "lower" if high < 0 else "no difference shown"
        rows.append({"loss": head, "n": len(difference), "mean": mean, "low": low, "high": high, "verdict": verdict})
    return pd.DataFrame(rows).set_index("loss")
