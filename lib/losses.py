"""Classification heads with angular margins.

Every head is a module ``Head(num_classes, embedding_dim, **constants)`` that owns the class
centres ``W`` of shape (C, d). For embeddings ``x`` of shape (B, d) and labels ``y`` of shape (B,)

    head(x)           label-free logits (B, C): for prediction and accuracy
    head(x, y)        training logits (B, C): the margin is on the target's logit
    head.loss(x, y)   F.cross_entropy(head(x, y), y) + head.regulariser(x)

Without a label there is no margin, so an evaluation cannot leak the label into the logits.
``regulariser`` is 0 for every head but MagFace, and only Triplet has another ``loss``. Nine heads are
here, in ``HEADS``; six more are in lib.family and one in lib.triplet, and ``heads`` and ``make`` know
them all. ``make`` also knows the variants of AdaLoss in lib.ablation.

theta_j is the angle between x and W_j, in radians as are all margins. Each paper changes the
target's logit only, in ``target``. Where a shifted angle passes pi every head here continues
the cosine downwards (see ``psi``), so a larger angle never earns a larger logit. The arithmetic
runs in fp32 at least, also under autocast, because in half precision a guard such as 1 - 1e-4
rounds to 1.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def angle(cos: Tensor) -> Tensor:
    """Angle in radians, in [0, pi], of a cosine; its gradient is finite at 0 and pi too.

    The derivative of arccos is infinite at +-1. The angle is taken from sine and cosine
    instead, and the sine passes no gradient where it vanishes.
    """
    sin = (1 - cos * cos).clamp_min(torch.finfo(cos.dtype).tiny).sqrt()
    return torch.atan2(sin, cos)


def psi(phi: Tensor) -> Tensor:
    """Cosine of an angle >= 0 (radians), continued beyond pi so that it keeps falling.

    psi(phi) = (-1)^k cos(phi) - 2k with k = floor(phi / pi): SphereFace's continuation (Liu et
    al. 2017, section 3.2), which is -2 - cos(phi) on [pi, 2 pi].
    """
    k = (phi / math.pi).floor()
    return (1 - 2 * (k % 2)) * phi.cos() - 2 * k


def scale_for(num_classes: int, p: float = 0.999) -> float:
    """Smallest scale s at which C separated classes can reach the target probability p.

    With x on its centre and the other centres at cosine -1/(C-1), softmax gives p at
    s = (C-1)/C ln((C-1) p / (1-p)); see Wang et al. 2018 (CosFace), section 3.3.
    """
    C = num_classes
    return (C - 1) / C * math.log((C - 1) * p / (1 - p))


class Head(nn.Module):
    """Base of all heads: centres W, cosines, scale s; a subclass overrides ``target``.

    s: a positive number, or "auto" for ``scale_for(num_classes)``. The default 16 suits ten
    classes; the papers' face-recognition value is 64, for 10^4 and more identities.
    w: margin warm-up in [0, 1], set by the training loop; it multiplies every margin.
    """

    w = 1.0

    def __init__(self, num_classes: int, embedding_dim: int, *, s: float | str = 16.0, **margins: float):
        super().__init__()
        self.s = scale_for(num_classes) if s == "auto" else s
        for name, value in {"s": self.s, **margins}.items():
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
                raise ValueError(f"{type(self).__name__}: {name} must be a number >= 0, got {value!r}")
            setattr(self, name, float(value))
        if self.s == 0:
            raise ValueError(f"{type(self).__name__}: the scale s must be positive, got 0; 16 suits ten classes")
        # rows of length about 1; only their direction matters to the angular heads
        self.W = nn.Parameter(torch.randn(num_classes, embedding_dim) / embedding_dim**0.5)
        self.constants = ("s", *margins)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Logits (B, C) of embeddings x (B, d); with labels y (B,) the margin is applied.

        Raises ValueError for wrong shapes, labels outside [0, C) and embeddings of length zero.
        """
        self._check(x, y)
        with torch.autocast(x.device.type, enabled=False):
            x, W = self._precise(x, self.W)
            x, norm = self._direction(x)
            cos_theta = self.cosines(x, W)  # (B, C)
            if y is None:
                return self.s * cos_theta
            cos_y = cos_theta.gather(1, y[:, None]).squeeze(1)  # (B,)
            if self.training and len(x):
                logits = (self.s * cos_theta).detach()
                self.observe(
                    cos_y.detach(), norm.detach(), y, lambda: logits.scatter(1, y[:, None], -math.inf).logsumexp(1)
                )
            target = self.target(cos_y, y, norm)  # (B,)
            others = self.negatives(cos_theta, target)  # (B, C)
            return self.s * others.scatter(1, y[:, None], target[:, None])

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Training loss of embeddings x (B, d) with labels y (B,), a mean over them."""
        return F.cross_entropy(self(x, y), y) + self.regulariser(x)

    @staticmethod
    def _direction(x: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (B, d) at length one, and their lengths (B,). Raises ValueError if one is zero."""
        norm = x.norm(dim=1)
        if (norm == 0).any():
            raise ValueError(
                "an embedding has length zero, so it has no angle: remove the ReLU behind the embedding "
                "layer or lower the learning rate"
            )
        return x / norm[:, None], norm

    def target(self, cos_y: Tensor, y: Tensor, norm: Tensor) -> Tensor:
        """The paper's hook: the target's cosine (B,) with its margin.

        cos_y (B,): cosine to the true class's centre; norm (B,): lengths of the embeddings.
        """
        raise NotImplementedError

    def cosines(self, x: Tensor, W: Tensor) -> Tensor:
        """Cosines (B, C) of unit embeddings x (B, d) to the centres W; only SubCenterArcFace has several a class."""
        return F.linear(x, F.normalize(W))

    def regulariser(self, x: Tensor) -> Tensor | float:
        """What is added to the mean cross-entropy of embeddings x (B, d); only MagFace has such a term."""
        return 0.0

    def negatives(self, cos_theta: Tensor, target: Tensor) -> Tensor:
        """Cosines (B, C) of the other classes; only CurricularFace changes them."""
        return cos_theta

    def observe(self, cos_y: Tensor, norm: Tensor, y: Tensor, others: Callable[[], Tensor]) -> None:
        """Update running statistics from a training batch (no gradient); most heads have none.

        cos_y, norm (B,): as for ``target``. others() (B,): logsumexp of the other classes' margin-free
        logits; computed when called, because over many classes it takes a pass of its own.
        """

    @staticmethod
    def _precise(*tensors: Tensor) -> list[Tensor]:
        """The tensors in their most precise dtype, at least fp32."""
        dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
        return [t.to(dtype) for t in tensors]

    def _check(self, x: Tensor, y: Tensor | None) -> None:
        C, d = self.W.shape
        if x.ndim != 2 or x.shape[1] != d or not x.is_floating_point():
            raise ValueError(
                f"embeddings must be floats of shape (B, {d}), got {x.dtype} {tuple(x.shape)}: "
                "set embedding_dim to the network's output size"
            )
        if y is None:
            return
        if y.shape != x.shape[:1] or y.dtype != torch.int64:
            raise ValueError(f"labels must be int64 of shape ({len(x)},), got {y.dtype} {tuple(y.shape)}: use y.long()")
        if len(y) and (y.min() < 0 or y.max() >= C):
            raise ValueError(
                f"labels must lie in [0, {C}), got {y.min().item()} to {y.max().item()}: "
                "set num_classes or renumber the labels"
            )

    def extra_repr(self) -> str:
        C, d = self.W.shape
        return ", ".join([f"{C}, {d}", *(f"{name}={getattr(self, name):g}" for name in self.constants)])


class Softmax(Head):
    """The plain linear classifier W x + b: no normalisation, no scale, no margin."""

    def __init__(self, num_classes: int, embedding_dim: int):
        super().__init__(num_classes, embedding_dim, s=1.0)
        self.constants = ()
        self.b = nn.Parameter(torch.zeros(num_classes))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        self._check(x, y)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(*self._precise(x, self.W, self.b))


class NormFace(Head):
    """cos(theta_y): normalised softmax without margin (Wang et al. 2017, arXiv 1704.06369)."""

    def target(self, cos_y, y, norm):
        return cos_y


class SphereFace(Head):
    """psi(m1 theta_y): multiplicative angular margin (Liu et al. 2017, arXiv 1704.08063, eq. 7).

    The paper uses m1 = 4 and the length of x as scale, annealed from plain softmax; here x is
    normalised and s fixed, as public re-implementations do with m1 = 1.5, s = 30.
    """

    def __init__(self, num_classes, embedding_dim, *, s=16.0, m1=1.35):
        super().__init__(num_classes, embedding_dim, s=s, m1=m1)

    def target(self, cos_y, y, norm):
        return psi((1 + self.w * (self.m1 - 1)) * angle(cos_y))


class CosFace(Head):
    """cos(theta_y) - m: additive cosine margin (Wang et al. 2018, arXiv 1801.09414, eq. 4).

    Faces: m = 0.35 to 0.40, s = 64.
    """

    def __init__(self, num_classes, embedding_dim, *, s=16.0, m=0.2):
        super().__init__(num_classes, embedding_dim, s=s, m=m)

    def target(self, cos_y, y, norm):
        return cos_y - self.w * self.m


class ArcFace(Head):
    """cos(theta_y + m): additive angular margin (Deng et al. 2019, arXiv 1801.07698, eq. 3).

    Faces: m = 0.5, s = 64. The published formula rises again for theta_y + m > pi, which allows a
    collapse with all centres in one point and a small loss at chance accuracy. ``psi`` makes that
    state costly; what keeps a training out of it is the margin warm-up (see notebook 02).
    """

    def __init__(self, num_classes, embedding_dim, *, s=16.0, m=0.3):
        super().__init__(num_classes, embedding_dim, s=s, m=m)

    def target(self, cos_y, y, norm):
        return psi(angle(cos_y) + self.w * self.m)


class CombinedMargin(Head):
    """cos(m1 theta_y + m2) - m3: all three margins (Deng et al. 2019, eq. 4).

    Faces: (m1, m2, m3) = (1, 0.3, 0.2), s = 64.
    """

    def __init__(self, num_classes, embedding_dim, *, s=16.0, m1=1.0, m2=0.2, m3=0.1):
        super().__init__(num_classes, embedding_dim, s=s, m1=m1, m2=m2, m3=m3)

    def target(self, cos_y, y, norm):
        m1 = 1 + self.w * (self.m1 - 1)
        return psi(m1 * angle(cos_y) + self.w * self.m2) - self.w * self.m3


class CurricularFace(Head):
    """ArcFace with re-weighted hard negatives (Huang et al. 2020, arXiv 2004.00288, eq. 10-12).

    A class j with cos(theta_j) > target counts as hard; its cosine becomes
    cos(theta_j) (t + cos(theta_j)), where t, the running mean of cos(theta_y), starts at 0 and
    grows, so easy negatives dominate early and hard ones late. Faces: m = 0.5, s = 64.
    """

    def __init__(self, num_classes, embedding_dim, *, s=16.0, m=0.3):
        super().__init__(num_classes, embedding_dim, s=s, m=m)
        self.register_buffer("t", torch.zeros(()))

    def observe(self, cos_y, norm, y, others):
        self.t.lerp_(cos_y.mean().to(self.t.dtype), 0.01)

    def target(self, cos_y, y, norm):
        return psi(angle(cos_y) + self.w * self.m)

    def negatives(self, cos_theta, target):
        hard = cos_theta > target[:, None]
        return torch.where(hard, cos_theta * (self.t + cos_theta), cos_theta)


class AdaFace(Head):
    """Margin by image quality, read from the norm of x (Kim et al. 2022, arXiv 2204.00964, eq. 8-10).

    k = clip(h (|x| - mu) / sigma, -1, 1); target cos(theta_y - m k) - (m k + m): a long embedding
    gets a cosine margin, a short one an angular one. mu and sigma are running statistics of |x|.
    The published code starts them at 20 and 100 and hardly adapts in a short training; here they
    start from the first batch, and move in training mode only. Faces: m = 0.4, h = 0.333, s = 64.
    """

    def __init__(self, num_classes, embedding_dim, *, s=16.0, m=0.2, h=0.333):
        super().__init__(num_classes, embedding_dim, s=s, m=m, h=h)
        self.register_buffer("mu", torch.zeros(()))
        self.register_buffer("sigma", torch.ones(()))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def observe(self, cos_y, norm, y, others):
        norm = norm.clamp(1e-3, 100).to(self.mu.dtype)
        rate = torch.where(self.started, 0.01, 1.0)
        self.mu.lerp_(norm.mean(), rate)
        # population deviation: a batch of one has none, where the unbiased estimate gives NaN
        self.sigma.lerp_(norm.std(correction=0), rate)
        self.started.fill_(True)

    def quality(self, norm: Tensor) -> Tensor:
        """k in [-1, 1] of embeddings of these lengths, both (B,); -1 is low quality."""
        norm, mu, sigma = self._precise(norm, self.mu, self.sigma)
        return (self.h * (norm.clamp(1e-3, 100) - mu) / (sigma + 1e-3)).clamp(-1, 1)

    def target(self, cos_y, y, norm):
        k, m = self.quality(norm.detach()), self.w * self.m
        return psi((angle(cos_y) - m * k).clamp_min(0)) - (m * k + m)


class AdaLoss(Head):
    """ArcFace whose margin follows each class's difficulty: the rule S1 and S2 state in words.

    m_c = clip(m w (d_c / mean d)^gamma, m_min, m_max); target cos(theta_y + m_y). d_c in [0, 1]
    is the running mean of 1 - p_y under the margin-free softmax of class c's training samples.
    Hard classes get more margin and easy ones less, while the mean stays near m, so the rule
    cannot win by shrinking all margins. No gradient flows through m_c. An absolute rule
    (m_c linear in d_c) locks in: at the start every class is hard and gets the largest margin.
    rate: the share of a batch in the running mean.
    """

    def __init__(self, num_classes, embedding_dim, *, s=16.0, m=0.3, gamma=0.5, m_min=0.05, m_max=0.6, rate=0.02):
        super().__init__(num_classes, embedding_dim, s=s, m=m, gamma=gamma, m_min=m_min, m_max=m_max, rate=rate)
        if m_min > m_max:
            raise ValueError(f"{type(self).__name__}: m_min must not exceed m_max, got {m_min} > {m_max}")
        if rate > 1:
            raise ValueError(f"{type(self).__name__}: rate is a share of at most 1, got {rate}")
        self.register_buffer("d", torch.ones(num_classes))

    def observe(self, cos_y, norm, y, others):
        self.remember(1 - (self.s * cos_y - others()).sigmoid(), y)

    def remember(self, difficulty: Tensor, y: Tensor) -> None:
        """Move d towards the mean difficulty (B,), in [0, 1], of each class in a batch with labels y (B,)."""
        count = torch.bincount(y, minlength=len(self.d))
        mean = torch.zeros_like(self.d).index_add_(0, y, difficulty.to(self.d.dtype)) / count.clamp_min(1)
        self.d.lerp_(mean, self.rate * (count > 0).to(self.d.dtype))  # absent classes keep theirs

    @property
    def margins(self) -> Tensor:
        """The margin m_c of every class now, (C,), in radians."""
        (d,) = self._precise(self.d)
        relative = d / d.mean().clamp_min(1e-12)
        return (self.m * self.w * relative**self.gamma).clamp(self.m_min, self.m_max)

    def target(self, cos_y, y, norm):
        return psi(angle(cos_y) + self.margins[y])


HEADS = {
    head.__name__: head
    for head in (Softmax, NormFace, SphereFace, CosFace, ArcFace, CombinedMargin, CurricularFace, AdaFace, AdaLoss)
}


def heads() -> dict[str, type[Head]]:
    """All heads by name: the nine of HEADS, the six of lib.family, and Triplet."""
    from lib import family, triplet  # they build on this module

    return HEADS | family.HEADS | {"Triplet": triplet.Triplet}


def find(name: str) -> type[Head]:
    """The head, or the variant of lib.ablation, of that name. Raises ValueError for an unknown one."""
    from lib import ablation

    known = heads() | ablation.HEADS
    if name not in known:
        raise ValueError(f"unknown loss {name!r}: choose one of {', '.join(heads())}")
    return known[name]


def make(name: str, num_classes: int, embedding_dim: int, **constants: float) -> Head:
    """The head of that name. Raises ValueError for an unknown name or constant."""
    head = find(name)
    try:
        return head(num_classes, embedding_dim, **constants)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from None
