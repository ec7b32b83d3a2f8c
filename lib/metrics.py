"""What is measured on a trained model."""

import numpy as np
import torch
from scipy.optimize import minimize_scalar
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

    intra_angle: mean angle between an embedding and the mean direction of its class.
    inter_angle: smallest angle between the mean directions of two classes, averaged over the classes;
    smallest_angle: the smallest of all of them. angle_ratio: intra over inter.
    """
    x = F.normalize(x.double())
    C = int(y.max()) + 1
    centres = F.normalize(torch.zeros(C, x.shape[1], dtype=x.dtype).index_add_(0, y, x))
    intra = torch.rad2deg((x * centres[y]).sum(1).clamp(-1, 1).acos()).mean().item()
    between = (centres @ centres.T).clamp(-1, 1).acos().fill_diagonal_(torch.inf)
    nearest = torch.rad2deg(between.min(1).values)  # (C,)
    inter = nearest.mean().item()
    return {
        "intra_angle": intra, "inter_angle": inter, "smallest_angle": nearest.min().item(),
        "angle_ratio": intra / max(inter, 1e-9),
    }  # fmt: skip


def recall_at_1(x: Tensor, y: Tensor, chunk: int = 1000) -> float:
    """Share of embeddings x (N, d) whose nearest other one, by cosine, has the same label y (N,)."""
    x = F.normalize(x.float())
    found = 0.0
    for start in range(0, len(x), chunk):
        cos = x[start : start + chunk] @ x.T  # (chunk, N)
        cos.diagonal(start).fill_(-torch.inf)  # not its own neighbour
        found += (y[cos.argmax(1)] == y[start : start + chunk]).sum().item()
    return found / len(x)
