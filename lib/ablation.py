"""What makes an adaptive margin work? Variants of AdaLoss, each with one part exchanged.

Also two controls that adapt to nothing: a margin that follows a schedule, and random margins of the
classes. If a control does as well as AdaLoss, adaptivity is not what helps.
"""

import pandas as pd
import torch

from lib import store, study, tuning
from lib.losses import AdaLoss, Head, angle, psi

SEEDS = 3
TRAIN_SIZE = 45_000  # of CIFAR-10 without its validation split


class AngleAdaLoss(AdaLoss):
    """AdaLoss whose difficulty is the target angle over pi, in place of 1 - p_y."""

    def observe(self, cos_y, norm, y, others):
        self.remember(angle(cos_y) / torch.pi, y)


class ErrorAdaLoss(AdaLoss):
    """AdaLoss whose difficulty is the class's share of errors, label-free, in place of 1 - p_y."""

    def forward(self, x, y=None):
        if self.training and y is not None and len(x):
            self._check(x, y)
            with torch.no_grad():
                self.remember(super().forward(x).argmax(1) != y, y)
        return super().forward(x, y)

    def observe(self, cos_y, norm, y, others):  # the logsumexp of the others does not tell which is largest
        pass


class AbsoluteAdaLoss(AdaLoss):
    """m_c = w (m_min + (m_max - m_min) d_c): the margin follows the difficulty itself, not its share of the mean.

    m and gamma have no effect. d starts at 1, so every class starts with the largest margin.
    """

    @property
    def margins(self):
        (d,) = self._precise(self.d)
        return self.w * (self.m_min + (self.m_max - self.m_min) * d)


class GlobalAdaLoss(AbsoluteAdaLoss):
    """One margin for all classes, from their mean difficulty. (The mean of the relative rule is a fixed margin.)"""

    @property
    def margins(self):
        return super().margins.mean().expand(len(self.d))


class ScheduledMargin(Head):
    """ArcFace whose margin goes in a straight line from m to m_end within the first steps batches: no data in it."""

    def __init__(self, num_classes, embedding_dim, *, s=16.0, m=0.0, m_end=0.6, steps=100):
        super().__init__(num_classes, embedding_dim, s=s, m=m, m_end=m_end, steps=steps)
        self.register_buffer("step", torch.zeros(()))

    def observe(self, cos_y, norm, y, others):
        self.step += 1

    @property
    def margins(self):
        """The margin of every class now, (C,), in radians."""
        (step,) = self._precise(self.step)
        share = (step / max(self.steps, 1)).clamp(max=1)
        return (self.w * (self.m + (self.m_end - self.m) * share)).expand(len(self.W))

    def target(self, cos_y, y, norm):
        return psi(angle(cos_y) + self.margins[y])


class RandomMargin(Head):
    """ArcFace with a margin m_c per class drawn once at random, with mean m and deviation spread over the classes.

    The draws follow W's from torch's CPU generator, so a run's seed fixes them; m_c below 0 counts as 0.
    """

    def __init__(self, num_classes, embedding_dim, *, s=16.0, m=0.3, spread=0.05):
        super().__init__(num_classes, embedding_dim, s=s, m=m, spread=spread)
        z = torch.randn(num_classes)
        self.register_buffer("z", (z - z.mean()) / z.std(correction=0).clamp_min(1e-6))

    @property
    def margins(self):
        """The margin of every class now, (C,), in radians."""
        (z,) = self._precise(self.z)
        return self.w * (self.m + self.spread * z).clamp_min(0)

    def target(self, cos_y, y, norm):
        return psi(angle(cos_y) + self.margins[y])


HEADS = {
    head.__name__: head
    for head in (AngleAdaLoss, ErrorAdaLoss, AbsoluteAdaLoss, GlobalAdaLoss, ScheduledMargin, RandomMargin)
}


def arms(steps: int) -> dict[str, tuple[str, dict]]:
    """Head and constants of every arm; s and, but for the two schedules, m are the same in all.

    steps: batches of a training. A schedule with the mean course of AdaLoss's margins would be the fixed margin,
    since that mean hardly moves; so the two schedules here rise and fall, with a mean over the training of m.
    The random margins have the spread that AdaLoss's reach by the end of the CIFAR-10 recipe.
    """
    everything = {
        "fixed margin": ("ArcFace", {}),
        "AdaLoss": ("AdaLoss", {}),
        "schedule: rising": ("ScheduledMargin", {"m": 0.0, "m_end": 0.6, "steps": steps}),
        "random margins": ("RandomMargin", {"spread": 0.05}),
        "schedule: falling": ("ScheduledMargin", {"m": 0.6, "m_end": 0.0, "steps": steps}),
        "signal: target angle": ("AngleAdaLoss", {}),
        "signal: class error": ("ErrorAdaLoss", {}),
        "memory: 10 times shorter": ("AdaLoss", {"rate": 0.2}),
        "memory: 10 times longer": ("AdaLoss", {"rate": 0.002}),
        "gamma = 1": ("AdaLoss", {"gamma": 1.0}),
        "gamma = 2": ("AdaLoss", {"gamma": 2.0}),
        "gamma = 2, wide bounds": ("AdaLoss", {"gamma": 2.0, "m_min": 0.0, "m_max": 1.2}),
        "narrow bounds": ("AdaLoss", {"m_min": 0.2, "m_max": 0.4}),
        "absolute rule": ("AbsoluteAdaLoss", {}),
        "absolute rule, global": ("GlobalAdaLoss", {}),
    }
    return dict(list(everything.items())[:4]) if store.smoke() else everything


def plan(data: str = "cifar10", full: bool = False) -> list[study.Config]:
    """All arms with every seed, seeds in the outer loop, in the setting of the tuning's trials; full: for a GPU."""
    setting = tuning.FULL[data] if full else tuning.CPU[data] | tuning.SHORT[data]
    run = study.recipe(data, "ArcFace", **setting)
    steps = run.epochs * ((run.train_size or TRAIN_SIZE) // run.batch_size)
    return [
        study.recipe(data, head, seed, constants=constants, **setting)
        for seed in range(2 if store.smoke() else SEEDS)
        for head, constants in arms(steps).values()
    ]


def finished(data: str = "cifar10") -> pd.DataFrame:
    """The rows of the complete seeds, of those for a GPU if there are any, with the arm's name as head.
    Raises ValueError if there are none."""
    try:
        frame = study.finished(plan(data, full=not store.smoke()), f"ablation_{data}")
    except ValueError:
        frame = study.finished(plan(data), f"ablation_{data}")
    names = list(arms(0))
    return frame.assign(head=names * (len(frame) // len(names)))
