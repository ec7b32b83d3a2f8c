"""Published relatives of the heads in lib.losses, on the same base.

The rules are those of lib.losses: no label, no margin; ``margin_scale`` multiplies every margin; a shifted
angle beyond pi continues downwards. Running statistics move in training mode only.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.losses import MAX, Amount, Angle, ArcFace, Cosine, Head, NormFace, Share, angle, per_class, psi


class CurricularFace(ArcFace):
    """ArcFace with re-weighted hard negatives (Huang et al. 2020, arXiv 2004.00288, eq. 10-12).

    A class j with cos(theta_j) > target counts as hard; its cosine becomes
    cos(theta_j) (t + cos(theta_j)), where t, the running mean of cos(theta_y), starts at 0 and
    grows, so easy negatives dominate early and hard ones late. Faces: m = 0.5, s = 64.
    """

    t: Tensor

    def __init__(self, num_classes: int, embedding_dim: int, **constants: Any):
        super().__init__(num_classes, embedding_dim, **constants)
        self.register_buffer("t", torch.zeros(()))

    def observe(self, cos_y: Tensor, norm: Tensor, y: Tensor, others: Callable[[], Tensor]) -> None:
        self.t.lerp_(cos_y.mean().to(self.t.dtype), 0.01)

    def negatives(self, cos_theta: Tensor, target: Tensor) -> Tensor:
        hard = cos_theta > target[:, None]
        return torch.where(hard, cos_theta * (self.t + cos_theta), cos_theta)


class AdaFace(Head):
    """Margin by image quality, read from the norm of x (Kim et al. 2022, arXiv 2204.00964, eq. 8-10).

    k = clip(h (|x| - mu) / sigma, -1, 1); target cos(theta_y - m k) - (m k + m): a long embedding
    gets a cosine margin, a short one an angular one. mu and sigma are running statistics of |x|.
    The published code starts them at 20 and 100 and hardly adapts in a short training; here they
    start from the first batch, and move in training mode only. Faces: m = 0.4, h = 0.333, s = 64.
    """

    m: Cosine = 0.2
    h: Amount = 0.333
    mu: Tensor
    sigma: Tensor
    started: Tensor  # 1 from the first batch on
    seen: Tensor  # (2, C): sum of k over each class's samples since the last describe, and their number

    def __init__(self, num_classes: int, embedding_dim: int, **constants: Any):
        super().__init__(num_classes, embedding_dim, **constants)
        self.register_buffer("mu", torch.zeros(()))
        self.register_buffer("sigma", torch.ones(()))
        self.register_buffer("started", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(2, num_classes), persistent=False)

    def observe(self, cos_y: Tensor, norm: Tensor, y: Tensor, others: Callable[[], Tensor]) -> None:
        clipped = norm.clamp(1e-3, 100).to(self.mu.dtype)
        rate = torch.where(self.started > 0, 0.01, 1.0)
        self.mu.lerp_(clipped.mean(), rate)
        # population deviation: a batch of one has none, where the unbiased estimate gives NaN
        self.sigma.lerp_(clipped.std(correction=0), rate)
        self.started.fill_(1)
        k = self.quality(norm).to(self.seen.dtype)
        self.seen.index_add_(1, y, torch.stack([k, torch.ones_like(k)]))

    def quality(self, norm: Tensor) -> Tensor:
        """k in [-1, 1] of embeddings of these lengths, both (B,); -1 is low quality."""
        norm, mu, sigma = self._precise(norm, self.mu, self.sigma)
        return (self.h * (norm.clamp(1e-3, 100) - mu) / (sigma + 1e-3)).clamp(-1, 1)

    def describe(self) -> dict[str, Tensor]:
        """The mean quality (C,) of each class's training samples since the last call, 0 without any."""
        total, count = self.seen.clone()
        self.seen.zero_()
        return {"quality": total / count.clamp_min(1)}

    def target(self, cos_y: Tensor, y: Tensor, norm: Tensor) -> Tensor:
        k, m = self.quality(norm.detach()), self.margin_scale * self.m
        return psi((angle(cos_y) - m * k).clamp_min(0)) - (m * k + m)


class ElasticFace(Head):
    """cos(theta_y + E(m, sigma)): ArcFace with a random margin (Boutros et al. 2022, arXiv 2109.09416).

    Every sample of a training batch draws its margin from a normal distribution; a draw below 0
    counts as 0. plus (ElasticFace+): the batch's draws are handed out by distance, the largest to
    the sample furthest from its centre. (The published code indexes by the order where its inverse
    is needed, which mixes them again.) The draws come from torch's CPU generator, so a run's seed
    fixes them on every device; in evaluation mode the margin is m. Faces: m = 0.5, sigma = 0.05
    (0.0175 with plus), s = 64.
    """

    m: Angle = 0.3
    sigma: Angle = 0.05
    plus: Annotated[bool, 0, 1] = False

    def target(self, cos_y: Tensor, y: Tensor, norm: Tensor) -> Tensor:
        m = torch.full_like(cos_y, self.m)
        if self.training:
            m = (self.m + self.sigma * torch.randn(len(y)).to(cos_y, non_blocking=True)).clamp_min(0)
        if self.plus:
            m = torch.zeros_like(m).scatter(0, cos_y.argsort(descending=True), m.sort().values)
        return psi(angle(cos_y) + self.margin_scale * m)


class MagFace(Head):
    """cos(theta_y + m(a)) with a = |x| (Meng et al. 2021, arXiv 2103.06627): a longer embedding gets more margin.

    a is clipped to [l_a, u_a]; m(a) rises linearly from l_m to u_m; lambda_g g(a) with
    g(a) = 1/a + a / u_a^2 joins the loss. The gradient flows through a: an easy sample can afford
    the margin and becomes long, so that length measures quality. For a sample to leave l_a,
    lambda_g must exceed s (u_m - l_m) / (u_a - l_a) / (1/l_a^2 - 1/u_a^2). The bounds suit
    64-dimensional embeddings behind batch normalisation, whose length is about 8.
    Faces: (l_a, u_a) = (10, 110), (l_m, u_m) = (0.45, 0.8), lambda_g = 35, s = 64.
    """

    l_a: Amount = 4.0
    u_a: Amount = 16.0
    l_m: Angle = 0.2
    u_m: Angle = 0.4
    lambda_g: Amount = 5.0

    def __init__(self, num_classes: int, embedding_dim: int, **constants: Any):
        super().__init__(num_classes, embedding_dim, **constants)
        if not 0 < self.l_a < self.u_a:
            raise ValueError(f"MagFace: the lengths must satisfy 0 < l_a < u_a, got {self.l_a:g} and {self.u_a:g}")

    def target(self, cos_y: Tensor, y: Tensor, norm: Tensor) -> Tensor:
        a = norm.clamp(self.l_a, self.u_a)
        m = self.l_m + (self.u_m - self.l_m) / (self.u_a - self.l_a) * (a - self.l_a)
        return psi(angle(cos_y) + self.margin_scale * m)

    def regulariser(self, x: Tensor) -> Tensor:
        a = self._precise(x)[0].norm(dim=1).clamp(self.l_a, self.u_a)
        return self.lambda_g * (1 / a + a / self.u_a**2).mean()


class AdaCos(NormFace):
    """s cos(theta_y): no margin, and a scale that follows the training (Zhang et al. 2019, arXiv 1905.00292).

    s starts at sqrt(2) ln(C - 1) (section 4.1). Every training batch sets it to
    ln(B_avg) / cos(min(pi / 4, theta_med)) (section 4.2): B_avg is the batch mean of the sum of
    exp(s cos(theta_j)) over the other classes, theta_med the median of theta_y. For ten classes s
    falls from 3.1 to about 2, below the bound of ``scale_for``: the rule is made for many classes.
    It can even turn negative for two or three, so s is kept at 1 at least.
    """

    s: Tensor  # type: ignore[assignment]  # part of the state, no constant

    def __init__(self, num_classes: int, embedding_dim: int, **constants: Any):
        super().__init__(num_classes, embedding_dim, **constants)
        self.register_buffer("s", torch.tensor(max(1.0, 2**0.5 * math.log(max(num_classes - 1, 1)))))

    def observe(self, cos_y: Tensor, norm: Tensor, y: Tensor, others: Callable[[], Tensor]) -> None:
        log_B = others().logsumexp(0) - math.log(len(y))
        theta_med = angle(cos_y).median()
        self.s.copy_((log_B / theta_med.clamp_max(math.pi / 4).cos()).clamp_min(1))


class KappaFace(Head):
    """cos(theta_y + psi_y m0): the less concentrated or the rarer a class, the larger its margin
    (Oinar et al. 2023, arXiv 2201.07394).

    kappa_c = r (d - r^2) / (1 - r^2) (eq. 5) estimates the concentration of a von Mises-Fisher
    distribution, with r the length of the mean unit embedding of class c. With k its value less the
    mean over the classes, over their deviation, w_k = 1 - sigmoid(T k). With n_c the number of images
    and K the largest, w_s = (cos(pi n_c / K) + 1) / 2. psi_c = gamma w_k + (1 - gamma) w_s, as in
    the published code. The paper remembers one vector per training image and renews kappa once an
    epoch; a head does not know which image it sees, so here each class has a running mean z_c of
    its batches (the first one, then 2 % a step) and n_c counts the labels seen.
    Faces: m0 = 0.8, T = 0.4, gamma = 0.7, s = 64; with classes of equal size m0 psi_c is about 0.28.
    """

    m0: Angle = 0.8
    T: Amount = 0.4
    gamma: Share = 0.7
    z: Tensor
    n: Tensor

    def __init__(self, num_classes: int, embedding_dim: int, **constants: Any):
        super().__init__(num_classes, embedding_dim, **constants)
        self.register_buffer("z", torch.zeros(num_classes, embedding_dim))
        self.register_buffer("n", torch.zeros(num_classes))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        logits = super().forward(x, y)
        if self.training and y is not None and len(y):
            x = F.normalize(self._precise(x)[0])
            self._learn(self.remember, x, y.clamp(0, len(self.W) - 1), logits.sum(1))  # later batches feel it
        return logits

    def remember(self, x: Tensor, y: Tensor, _: Tensor) -> None:
        """Update z and n from unit embeddings x (B, d)."""
        x = x.to(self.z.dtype)
        total, count = per_class(x, y, len(self.n)), per_class(torch.ones_like(x[:, 0]), y, len(self.n))
        rate = torch.where(self.n == 0, 1.0, 0.02) * (count > 0)  # absent classes keep theirs
        self.z.lerp_(total / count.clamp_min(1)[:, None], rate[:, None].to(self.z.dtype))
        self.n += count

    @property
    def kappa(self) -> Tensor:
        """The concentration of every class now, (C,); 0 for one that has not been seen."""
        (z,) = self._precise(self.z)
        r = z.norm(dim=1).clamp_max(1 - 1e-4)
        return r * (z.shape[1] - r**2) / (1 - r**2)

    @property
    def margins(self) -> Tensor:
        """The margin of every class now, (C,), in radians."""
        kappa, n = self._precise(self.kappa, self.n.clamp_min(1))
        mean = kappa.mean()
        k = (kappa - mean) / kappa.std(correction=0).clamp_min(1e-3 * mean + 1e-6)  # not rounding over rounding
        w_k, w_s = 1 - (self.T * k).sigmoid(), ((math.pi * n / n.max()).cos() + 1) / 2
        return self.margin_scale * self.m0 * (self.gamma * w_k + (1 - self.gamma) * w_s)

    def target(self, cos_y: Tensor, y: Tensor, norm: Tensor) -> Tensor:
        return psi(angle(cos_y) + self.margins[y])


class LDAM(Head):
    """cos(theta_y) - Delta_y with Delta_c proportional to n_c^(-1/4): a rare class gets a larger cosine
    margin (Cao et al. 2019, arXiv 1906.07413, eq. 12-13).

    m is the rarest class's margin; with classes of equal size this is CosFace. n_c counts the labels
    seen in training: only ratios matter, and these settle within the first epoch. The paper, on
    CIFAR-10 and larger: m = 0.5, s = 30; its deferred re-weighting of the loss is no part of the head.
    """

    m: Cosine = 0.5
    n: Tensor

    def __init__(self, num_classes: int, embedding_dim: int, **constants: Any):
        super().__init__(num_classes, embedding_dim, **constants)
        self.register_buffer("n", torch.zeros(num_classes))

    def observe(self, cos_y: Tensor, norm: Tensor, y: Tensor, others: Callable[[], Tensor]) -> None:
        self.n += per_class(torch.ones_like(cos_y), y, len(self.n))

    @property
    def margins(self) -> Tensor:
        """The margin Delta_c of every class now, (C,), in units of the cosine."""
        (n,) = self._precise(self.n.clamp_min(1))
        return self.margin_scale * self.m * (n.min() / n) ** 0.25

    def target(self, cos_y: Tensor, y: Tensor, norm: Tensor) -> Tensor:
        return cos_y - self.margins[y]


class SubCenterArcFace(ArcFace):
    """ArcFace with K centres a class, of which the nearest counts (Deng et al. 2020, ECCV).

    cos(theta_j) = max_k cos(x, W_jk), with and without labels: a mislabelled or unusual image can
    gather at a sub-centre of its own instead of pulling at the class's main one. W (C, d) holds the
    first sub-centre of every class, the same start as for every other head, and V (K - 1, C, d) the
    others. Faces: K = 3, m = 0.5, s = 64.
    """

    K: Annotated[int, 1, MAX] = 3

    def __init__(self, num_classes: int, embedding_dim: int, **constants: Any):
        super().__init__(num_classes, embedding_dim, **constants)
        self.V = nn.Parameter(torch.randn(self.K - 1, num_classes, embedding_dim) / embedding_dim**0.5)

    def cosines(self, x: Tensor, W: Tensor) -> Tensor:
        centres = F.normalize(torch.cat([W[None], self.V.to(W.dtype)]), dim=2)  # (K, C, d)
        return F.linear(x, centres.flatten(0, 1)).unflatten(1, centres.shape[:2]).amax(1)


HEADS = {
    head.__name__: head
    for head in (CurricularFace, AdaFace, ElasticFace, MagFace, AdaCos, KappaFace, LDAM, SubCenterArcFace)
}
