"""What S4's geometry and S1's code say of themselves: numbers that are calculated, and need no run."""

import functools
import math

import numpy as np
import torch
from torch.nn import functional as F

from lib import data, heads
from studies import s1


def partners(x: np.ndarray, disturbed: np.ndarray) -> float:
    """Percentage points by which the angle finds more partners than the Euclidean distance: rows of
    disturbed (N, d) whose nearest row of x (N, d) is their own."""
    dots, own = disturbed @ x.T, np.arange(len(x))
    nearest = ((x**2).sum(1) - 2 * dots).argmin(1)
    aligned = (dots / np.linalg.norm(x, axis=1)).argmax(1)
    return 100 * ((aligned == own).mean() - (nearest == own).mean())


def quarter(rng, x: np.ndarray) -> np.ndarray:
    """A random quarter of the coordinates of each row of x (N, d), as a mask."""
    return rng.random(x.shape).argsort(1) < x.shape[1] / 4


@functools.cache
def digits() -> np.ndarray:
    return data.load("digits").train.images.flatten(1).numpy() / 255


def occluded_digits(rng, black: bool = False) -> tuple[np.ndarray, np.ndarray]:
    x = digits()
    return x, np.where(quarter(rng, x), 0 if black else rng.random(x.shape), x)


def normal(d: int, rng, N: int = 200) -> tuple[np.ndarray, np.ndarray]:
    x = rng.standard_normal((N, d))
    return x, x + 0.7 * math.sqrt(d) * rng.standard_normal((N, d)) * quarter(rng, x)


def degrees(a, b) -> float:
    return math.degrees(math.acos(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))))


def layer() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """S4's layer: 64 embeddings e (64, 100) and weights W (10, 100) of unit length, labels y (64,)."""
    generator = torch.Generator().manual_seed(0)
    e, W = (F.normalize(torch.randn(n, 100, generator=generator, dtype=torch.float64)) for n in (64, 10))
    return e, W, torch.randint(10, (64,), generator=generator)


def cosine_error() -> float:
    e, W, _ = (t.numpy() for t in layer())
    return max(abs(float(a @ b) - math.cos(math.radians(degrees(a, b)))) for a in e for b in W)


def equation_error(name: str, **constants: float) -> float:
    """Largest deviation of a head's loss from S4's L2 (no m) or L3, sample by sample."""
    e, W, y = layer()
    head = heads.make(name, 10, 100, **constants).double()
    head.W.data = W
    cos = e @ W.T
    own = F.one_hot(y, 10).bool()
    target = (head.s * (cos[own].acos() + constants.get("m", 0)).cos()).exp()
    printed = -(target / (target + (head.s * cos).exp().masked_fill(own, 0).sum(1))).log()
    return (F.cross_entropy(head(e, y), y, reduction="none") - printed).abs().max().item()


def alike(field: str) -> int:
    """Data sets, of two, on which S1's two arms have the same value of a field."""
    arms = ([getattr(s1.published(name, loss), field) for loss in s1.LOSSES] for name in s1.NAMES)
    return sum(one == other for one, other in arms)


P, Q = np.array([5, 2]), np.array([7, 4])
EXACT = {
    "distance": lambda: float(np.linalg.norm(P - Q)),
    "angle": lambda: degrees(P, Q),
    "arccos 0.99": lambda: math.degrees(math.acos(0.99)),
    "distance, grown": lambda: float(np.linalg.norm(P - 1.5 * Q)),
    "angle, grown": lambda: abs(degrees(P, 1.5 * Q) - degrees(P, Q)),
    "cosines": cosine_error,
    "L2": functools.partial(equation_error, "NormFace"),
    "L3": functools.partial(equation_error, "ArcFace", m=0.5),
    "networks": functools.partial(alike, "network"),
}
NOISE = {
    "digits": occluded_digits,
    "digits, black": functools.partial(occluded_digits, black=True),
    "256 dimensions": functools.partial(normal, 256),
    "4 dimensions": functools.partial(normal, 4),
}
