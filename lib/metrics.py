"""What is measured on a trained model. What is not defined, as the angle between classes if there is one, is NaN."""

import numpy as np
import torch
from scipy.optimize import OptimizeResult, minimize_scalar
from torch import Tensor
from torch.nn import functional as F

ENDS = (-5, 5)  # of the search for a temperature, its logarithm


def accuracy(logits: Tensor, y: Tensor) -> float:
    """Share of rows of logits (N, C) whose largest entry is the label y (N,); a row with a NaN is wrong."""
    return ((logits.argmax(1) == y) & ~logits.isnan().any(1)).double().mean().item()


def cross_entropy(logits: Tensor, y: Tensor, temperature: float = 1.0) -> float:
    """Mean cross-entropy (nats) of logits (N, C) / temperature."""
    return F.cross_entropy(logits.double() / temperature, y).item()


def temperature(logits: Tensor, y: Tensor) -> float:
    """The temperature that minimises the cross-entropy (Guo et al. 2017, arXiv 1706.04599).

    Losses of heads with different s are comparable only after this; fit it on validation data. NaN where an end of the
    search is as good: none is best where every row is right, or where the logits say nothing.
    """
    found = _search(logits, y)
    ends = [cross_entropy(logits, y, np.exp(end)) for end in ENDS]
    return float(np.exp(found.x)) if found.fun < min(ends) else float("nan")


def least_cross_entropy(logits: Tensor, y: Tensor) -> float:
    """Mean cross-entropy (nats) at the best temperature."""
    return float(_search(logits, y).fun)


def _search(logits: Tensor, y: Tensor) -> OptimizeResult:
    loss = lambda log_t: cross_entropy(logits, y, np.exp(log_t))  # noqa: E731
    return minimize_scalar(loss, bounds=ENDS, method="bounded", options={"xatol": 1e-3})


def calibration_error(logits: Tensor, y: Tensor, bins: int = 15) -> float:
    """Expected calibration error: mean |confidence - accuracy| over equal-width confidence bins."""
    confidence, predicted = logits.double().softmax(1).max(1)
    if confidence.isnan().any():
        return float("nan")
    correct = (predicted == y).double()
    index = (confidence * bins).long().clamp_max(bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, index, confidence - correct)  # sum per bin
    return (gap.abs().sum() / len(y)).item()


def angles(x: Tensor, y: Tensor) -> dict[str, float]:
    """Geometry of embeddings x (N, d) with labels y (N,), in degrees.

    intra_angle: mean angle between an embedding and the mean direction of its class. inter_angle: smallest angle
    between the mean directions of two classes, averaged over the classes; smallest_angle: the smallest of all of them.
    angle_ratio: intra over inter. Classes without an embedding do not count, nor within a class those with one alone.
    """
    x = F.normalize(x.double())
    _, y, size = y.unique(return_inverse=True, return_counts=True)
    C = len(size)
    centres = F.normalize(torch.zeros(C, x.shape[1], dtype=x.dtype).index_add_(0, y, x))
    within = torch.rad2deg((x * centres[y]).sum(1).clamp(-1, 1).acos())
    intra = within[size[y] > 1].mean().item()
    between = (centres @ centres.T).clamp(-1, 1).acos().fill_diagonal_(torch.inf)
    nearest = torch.rad2deg(between.min(1).values) if C > 1 else torch.full((1,), torch.nan)  # (C,)
    inter = nearest.mean().item()
    return {
        "intra_angle": intra, "inter_angle": inter, "smallest_angle": nearest.min().item(),
        "angle_ratio": intra / max(inter, 1e-9),
    }  # fmt: skip


def recall_at_1(x: Tensor, y: Tensor, chunk: int = 1000) -> float:
    """Share of embeddings x (N, d) whose nearest other one, by cosine, has the same label y (N,); those alone in their
    class, which have nothing to find, do not count."""
    x, size = F.normalize(x.float()), y.unique(return_counts=True)[1]
    asked, found = size[size > 1].sum().item(), 0.0
    for start in range(0, len(x), chunk):
        cos = x[start : start + chunk] @ x.T  # (chunk, N)
        cos.diagonal(start).fill_(-torch.inf)  # not its own neighbour
        found += (y[cos.argmax(1)] == y[start : start + chunk]).sum().item()
    return found / asked if asked and x.isfinite().all() else float("nan")
