"""Variants of AdaLoss, each with one part exchanged, and two controls that adapt to nothing: a margin that follows
a schedule, and random margins of the classes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lib.losses import AdaLoss, Amount, Angle, Head, angle, psi


class AngleAdaLoss(AdaLoss):
    """AdaLoss whose difficulty is the target angle over pi, in place of 1 - p_y."""

    def observe(self, cos_y: Tensor, norm: Tensor, y: Tensor, others: Callable[[], Tensor]) -> None:
        self.remember(angle(cos_y) / torch.pi, y)


class ErrorAdaLoss(AdaLoss):
    """AdaLoss whose difficulty is the class's share of errors, label-free, in place of 1 - p_y."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        if self.training and y is not None and len(x):
            self._check(x, y)
            with torch.no_grad():
                logits = super().forward(x)
                wrong = (logits.argmax(1) != y) + 0 * logits.sum(1)  # not a number where the logits are none
            self._learn(self.remember, wrong, self._labels(y)[0])
        return super().forward(x, y)

    def observe(self, cos_y: Tensor, norm: Tensor, y: Tensor, others: Callable[[], Tensor]) -> None:
        """Nothing: the logsumexp of the others does not tell which is largest."""


class AbsoluteAdaLoss(AdaLoss):
    """m_c = w (m_min + (m_max - m_min) d_c): the margin follows the difficulty itself, not its share of the mean.

    w is margin_scale. m and gamma have no effect. d starts at 1, so every class starts with the largest margin.
    """

    def absolute(self) -> Tensor:
        (d,) = self._precise(self.d)
        return self.margin_scale * (self.m_min + (self.m_max - self.m_min) * d)

    @property
    def margins(self) -> Tensor:
        return self.absolute()


class GlobalAdaLoss(AbsoluteAdaLoss):
    """One margin for all classes, from their mean difficulty. (The mean of the relative rule is a fixed margin.)"""

    @property
    def margins(self) -> Tensor:
        return self.absolute().mean().expand(len(self.d))


class PermutedAdaLoss(AdaLoss):
    """AdaLoss whose margins go to the wrong classes: the same values at every step, so the same mean and spread, but
    class c has the margin that the class C/2 places further on has earned."""

    @property
    def margins(self) -> Tensor:
        return self.earned().roll(len(self.d) // 2)


class ScheduledMargin(Head):
    """ArcFace whose margin goes in a straight line from m to m_end within the first steps batches: no data in it."""

    m: Angle = 0.0
    m_end: Angle = 0.6
    steps: Amount = 100
    step: Tensor

    def __init__(self, num_classes: int, embedding_dim: int, **constants: Any):
        super().__init__(num_classes, embedding_dim, **constants)
        self.register_buffer("step", torch.zeros(()))

    def observe(self, cos_y: Tensor, norm: Tensor, y: Tensor, others: Callable[[], Tensor]) -> None:
        self.step += 1

    @property
    def margins(self) -> Tensor:
        """The margin of every class now, (C,), in radians."""
        (step,) = self._precise(self.step)
        share = (step / max(self.steps, 1)).clamp(max=1)
        return (self.margin_scale * (self.m + (self.m_end - self.m) * share)).expand(len(self.W))

    def target(self, cos_y: Tensor, y: Tensor, norm: Tensor) -> Tensor:
        return psi(angle(cos_y) + self.margins[y])


class RandomMargin(Head):
    """ArcFace with a margin m_c per class drawn once at random, with mean m and deviation spread over the classes.

    The draws follow W's from torch's CPU generator, so a run's seed fixes them; m_c below 0 counts as 0.
    """

    m: Angle = 0.3
    spread: Angle = 0.05
    z: Tensor

    def __init__(self, num_classes: int, embedding_dim: int, **constants: Any):
        super().__init__(num_classes, embedding_dim, **constants)
        z = torch.randn(num_classes)
        self.register_buffer("z", (z - z.mean()) / z.std(correction=0).clamp_min(1e-6))

    @property
    def margins(self) -> Tensor:
        """The margin of every class now, (C,), in radians."""
        (z,) = self._precise(self.z)
        return self.margin_scale * (self.m + self.spread * z).clamp_min(0)

    def target(self, cos_y: Tensor, y: Tensor, norm: Tensor) -> Tensor:
        return psi(angle(cos_y) + self.margins[y])


VARIANTS = (
    AngleAdaLoss, ErrorAdaLoss, AbsoluteAdaLoss, GlobalAdaLoss, PermutedAdaLoss, ScheduledMargin, RandomMargin,
)  # fmt: skip
HEADS = {head.__name__: head for head in VARIANTS}
