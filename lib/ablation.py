"""What makes an adaptive margin work? Variants of AdaLoss, each with one part exchanged.

Also two controls that adapt to nothing: a margin that follows a schedule, and random margins of the
classes. If a control does as well as AdaLoss, adaptivity is not what helps.
"""

import torch

from lib.losses import AdaLoss, ArcFace, angle, psi


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


class ScheduledMargin(ArcFace):
    """ArcFace whose margin goes in a straight line from m to m_end within the first steps batches: no data in it."""

    def __init__(self, num_classes, embedding_dim, *, s=16.0, m=0.0, m_end=0.6, steps=100):
        super(ArcFace, self).__init__(num_classes, embedding_dim, s=s, m=m, m_end=m_end, steps=steps)
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


class RandomMargin(ArcFace):
    """ArcFace with a margin m_c per class drawn once at random, with mean m and deviation spread over the classes.

    The draws follow W's from torch's CPU generator, so a run's seed fixes them; m_c below 0 counts as 0.
    """

    def __init__(self, num_classes, embedding_dim, *, s=16.0, m=0.3, spread=0.05):
        super(ArcFace, self).__init__(num_classes, embedding_dim, s=s, m=m, spread=spread)
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
