"""Six more heads on the base of lib.losses, outside the study's nine.

The rules are those of lib.losses: no label, no margin; ``w`` multiplies every margin; a shifted
angle beyond pi continues downwards. Running statistics move in training mode only.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.losses import Head, angle, psi


class ElasticFace(Head):
    """cos(theta_y + E(m, sigma)): ArcFace with a random margin (Boutros et al. 2022, arXiv 2109.09416).

    Every sample of a training batch draws its margin from a normal distribution; a draw below 0
    counts as 0. plus (ElasticFace+): the batch's draws are handed out by distance, the largest to
    the sample furthest from its centre. (The published code indexes by the order where its inverse
    is needed, which mixes them again.) The draws come from torch's CPU generator, so a run's seed
    fixes them on every device; in evaluation mode the margin is m. Faces: m = 0.5, sigma = 0.05
    (0.0175 with plus), s = 64.
    """

    def __init__(self, num_classes, embedding_dim, *, s=16.0, m=0.3, sigma=0.05, plus=False):
        super().__init__(num_classes, embedding_dim, s=s, m=m, sigma=sigma, plus=plus)

    def target(self, cos_y, y, norm):
        m = torch.full_like(cos_y, self.m)
        if self.training:
            m = (self.m + self.sigma * torch.randn(len(y)).to(cos_y)).clamp_min(0)
        if self.plus:
            m = torch.zeros_like(m).scatter(0, cos_y.argsort(descending=True), m.sort().values)
        return psi(angle(cos_y) + self.w * m)


class MagFace(Head):
    """cos(theta_y + m(a)) with a = |x| (Meng et al. 2021, arXiv 2103.06627): a longer embedding gets more margin.

    a is clipped to [l_a, u_a]; m(a) rises linearly from l_m to u_m; lambda_g g(a) with
    g(a) = 1/a + a / u_a^2 joins the loss. The gradient flows through a: an easy sample can afford
    the margin and becomes long, so that length measures quality. For a sample to leave l_a,
    lambda_g must exceed s (u_m - l_m) / (u_a - l_a) / (1/l_a^2 - 1/u_a^2). The bounds suit
    64-dimensional embeddings behind batch normalisation, whose length is about 8.
    Faces: (l_a, u_a) = (10, 110), (l_m, u_m) = (0.45, 0.8), lambda_g = 35, s = 64.
    """

    def __init__(
        self, num_classes, embedding_dim, *, s=16.0, l_a=4.0, u_a=16.0, l_m=0.2, u_m=0.4, lambda_g=5.0
    ):  # fmt: skip
        super().__init__(num_classes, embedding_dim, s=s, l_a=l_a, u_a=u_a, l_m=l_m, u_m=u_m, lambda_g=lambda_g)
        if not 0 < l_a < u_a:
            raise ValueError(f"MagFace: the lengths must satisfy 0 < l_a < u_a, got {l_a} and {u_a}")

    def target(self, cos_y, y, norm):
        a = norm.clamp(self.l_a, self.u_a)
        m = self.l_m + (self.u_m - self.l_m) / (self.u_a - self.l_a) * (a - self.l_a)
        return psi(angle(cos_y) + self.w * m)

    def regulariser(self, x):
        a = self._precise(x)[0].norm(dim=1).clamp(self.l_a, self.u_a)
        return self.lambda_g * (1 / a + a / self.u_a**2).mean()


class AdaCos(Head):
    """s cos(theta_y): no margin, and a scale that follows the training (Zhang et al. 2019, arXiv 1905.00292).

    s starts at sqrt(2) ln(C - 1) (section 4.1). Every training batch sets it to
    ln(B_avg) / cos(min(pi / 4, theta_med)) (section 4.2): B_avg is the batch mean of the sum of
    exp(s cos(theta_j)) over the other classes, theta_med the median of theta_y. For ten classes s
    falls from 3.1 to about 2, below the bound of ``scale_for``: the rule is made for many classes.
    It can even turn negative for two or three, so s is kept at 1 at least.
    """

    def __init__(self, num_classes, embedding_dim):
        s = max(1.0, 2**0.5 * math.log(max(num_classes - 1, 1)))
        super().__init__(num_classes, embedding_dim, s=s)
        del self.s  # part of the state from here on
        self.register_buffer("s", torch.tensor(s))

    def observe(self, cos_y, norm, y, others):
        log_B = others().logsumexp(0) - math.log(len(y))
        theta_med = angle(cos_y).median()
        self.s.copy_((log_B / theta_med.clamp_max(math.pi / 4).cos()).clamp_min(1))

    def target(self, cos_y, y, norm):
        return cos_y


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

    def __init__(self, num_classes, embedding_dim, *, s=16.0, m0=0.8, T=0.4, gamma=0.7):
        super().__init__(num_classes, embedding_dim, s=s, m0=m0, T=T, gamma=gamma)
        self.register_buffer("z", torch.zeros(num_classes, embedding_dim))
        self.register_buffer("n", torch.zeros(num_classes, dtype=torch.int64))

    def forward(self, x, y=None):
        logits = super().forward(x, y)
        if self.training and y is not None:
            self.remember(F.normalize(self._precise(x.detach())[0]), y)
        return logits

    def remember(self, x: Tensor, y: Tensor) -> None:
        """Update z and n from unit embeddings x (B, d); later batches feel it."""
        count = torch.bincount(y, minlength=len(self.n))
        mean = torch.zeros_like(self.z).index_add_(0, y, x.to(self.z.dtype)) / count.clamp_min(1)[:, None]
        rate = torch.where(self.n == 0, 1.0, 0.02) * (count > 0)  # absent classes keep theirs
        self.z.lerp_(mean.to(self.z.dtype), rate[:, None].to(self.z.dtype))
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
        return self.w * self.m0 * (self.gamma * w_k + (1 - self.gamma) * w_s)

    def target(self, cos_y, y, norm):
        return psi(angle(cos_y) + self.margins[y])


class LDAM(Head):
    """cos(theta_y) - Delta_y with Delta_c proportional to n_c^(-1/4): a rare class gets a larger cosine
    margin (Cao et al. 2019, arXiv 1906.07413, eq. 12-13).

    m is the rarest class's margin; with classes of equal size this is CosFace. n_c counts the labels
    seen in training: only ratios matter, and these settle within the first epoch. The paper, on
    CIFAR-10 and larger: m = 0.5, s = 30; its deferred re-weighting of the loss is no part of the head.
    """

    def __init__(self, num_classes, embedding_dim, *, s=16.0, m=0.5):
        super().__init__(num_classes, embedding_dim, s=s, m=m)
        self.register_buffer("n", torch.zeros(num_classes, dtype=torch.int64))

    def observe(self, cos_y, norm, y, others):
        self.n += torch.bincount(y, minlength=len(self.n))

    @property
    def margins(self) -> Tensor:
        """The margin Delta_c of every class now, (C,), in units of the cosine."""
        (n,) = self._precise(self.n.clamp_min(1))
        return self.w * self.m * (n.min() / n) ** 0.25

    def target(self, cos_y, y, norm):
        return cos_y - self.margins[y]


class SubCenterArcFace(Head):
    """ArcFace with K centres a class, of which the nearest counts (Deng et al. 2020, ECCV).

    cos(theta_j) = max_k cos(x, W_jk), with and without labels: a mislabelled or unusual image can
    gather at a sub-centre of its own instead of pulling at the class's main one. W (C, d) holds the
    first sub-centre of every class, the same start as for every other head, and V (K - 1, C, d) the
    others. Faces: K = 3, m = 0.5, s = 64.
    """

    def __init__(self, num_classes, embedding_dim, *, s=16.0, m=0.3, K=3):
        super().__init__(num_classes, embedding_dim, s=s, m=m, K=K)
        if K < 1 or K % 1:
            raise ValueError(f"SubCenterArcFace: K must be a whole number >= 1, got {K}")
        self.V = nn.Parameter(torch.randn(int(K) - 1, num_classes, embedding_dim) / embedding_dim**0.5)

    def cosines(self, x, W):
        centres = F.normalize(torch.cat([W[None], self.V.to(W.dtype)]), dim=2)  # (K, C, d)
        return F.linear(x, centres.flatten(0, 1)).unflatten(1, centres.shape[:2]).amax(1)

    def target(self, cos_y, y, norm):
        return psi(angle(cos_y) + self.w * self.m)


HEADS = {head.__name__: head for head in (ElasticFace, MagFace, AdaCos, KappaFace, LDAM, SubCenterArcFace)}
