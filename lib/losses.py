"""Classification heads with angular margins.

Every head is a module ``Head(num_classes, embedding_dim, **constants)`` that owns the class
centres ``W`` of shape (C, d). For embeddings ``x`` of shape (B, d) and labels ``y`` of shape (B,)

    head.loss(x, y)   the loss to train with: F.cross_entropy(head(x, y), y) unless a head says otherwise
    head(x)           label-free logits (B, C): for prediction and accuracy
    head(x, y)        training logits (B, C): the margin is on the target's logit

Without a label there is no margin, so an evaluation cannot leak the label into the logits.
Seven heads are here, in ``HEADS``; lib.heads has more and knows all by name. This file needs torch alone.

theta_j is the angle between x and W_j, in radians as are all margins. Each paper changes the target's logit only, in
``target``. Where a shifted angle passes pi every head here continues the cosine downwards (see ``psi``), so a larger
angle never earns a larger logit. The arithmetic runs in fp32 at least, also under autocast, because in half precision a
guard such as 1 - 1e-4 rounds to 1.
"""

import functools
import inspect
import math
from collections.abc import Callable
from numbers import Real
from typing import Annotated, Any

import torch
import torch.distributed as dist
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


def per_class(values: Tensor, y: Tensor, num_classes: int) -> Tensor:
    """Sums (C, ...) of values (B, ...) by label y (B,)."""
    return values.new_zeros(num_classes, *values.shape[1:]).index_add_(0, y, values)


def readable(x: Tensor) -> bool:
    """May Python look at values? Only on a CPU: a device would have to be waited for, and a compiler has none."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


# what a constant may be: its type, the smallest and the largest value
MAX, PI = torch.finfo(torch.float64).max, math.nextafter(math.pi, 0)
Scale = Annotated[float, 1e-3, MAX]
Amount = Annotated[float, 0, MAX]
Factor = Annotated[float, 1, MAX]
Share = Annotated[float, 0, 1]
Cosine = Annotated[float, 0, 2]
Angle = Annotated[float, 0, PI]  # radians

INVALID = (
    "an embedding has length zero, so it has no angle: remove the ReLU behind it or lower the learning rate",
    "labels must lie in [0, {C}), got {got}: set num_classes or renumber the labels",
)


class Head(nn.Module):
    """Base of all heads: centres W, cosines, scale s; a subclass overrides ``target``.

    s: a positive number, or "auto" for ``scale_for(num_classes)``. The default 16 suits ten
    classes; the papers' face-recognition value is 64, for 10^4 and more identities.
    margin_scale: margin warm-up in [0, 1], set by the training loop; it multiplies every margin.

    A head declares constants as ``m: Angle = 0.3``: range and default. They and margin_scale are the extra state of
    its state_dict (a strict load without it reports a missing key); running statistics are buffers. A batch with a
    NaN or an infinity leaves these as they were. On several ranks of torch.distributed they follow all ranks'
    batches, which must be of one size.
    """

    W: Tensor
    s: Scale
    invalid: Tensor  # (2,): embeddings of length zero and labels outside [0, C) that could not be refused at once
    margin_scale: float = 1.0

    def __init__(self, num_classes: int, embedding_dim: int, **constants: Any):
        super().__init__()
        allowed = self.ranges()
        constants = {name: getattr(self, name, 16.0) for name in allowed} | constants  # only s has no class attribute
        for name, value in constants.items():
            if name not in allowed:
                raise TypeError(f"no constant {name!r}, only {', '.join(allowed) or 'none'}")
            value = scale_for(num_classes) if (name, value) == ("s", "auto") else value
            setattr(self, name, self._checked(name, value, *allowed[name]))
        # rows of length about 1; only their direction matters to the angular heads
        self.W = nn.Parameter(torch.randn(num_classes, embedding_dim) / embedding_dim**0.5)
        self.invalid = torch.zeros(2)  # no buffer: DistributedDataParallel would overwrite a rank's with another's

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """As of any module, but half precision is for parameters: statistics move too little for its rounding."""
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        self.invalid = fn(self.invalid).float()
        for name, buffer in self.named_buffers():
            if buffer.dtype in (torch.float16, torch.bfloat16):
                setattr(self, name, before[name].to(buffer.device))
        return self

    @classmethod
    def ranges(cls) -> dict[str, tuple]:
        """The constants by name: type, smallest and largest value."""
        bases = [base for base in reversed(cls.__mro__) if issubclass(base, Head)]
        hints = {name: hint for base in bases for name, hint in inspect.get_annotations(base, eval_str=True).items()}
        return {k: (hint.__origin__, *hint.__metadata__) for k, hint in hints.items() if hasattr(hint, "__metadata__")}

    @classmethod
    def _checked(cls, name: str, value: Any, kind: type, low: float, high: float) -> Any:
        value = value.item() if isinstance(value, Tensor) and value.ndim == 0 else value
        number = isinstance(value, Real) and (kind is bool or not isinstance(value, bool))
        if number and low <= value <= high and kind(value) == value:
            return kind(value)
        number_of = "whole number" if kind is int else "number"
        limits = f"in [{low:g}, {high:g}]" if high < MAX else f">= {low:g}"
        hint = f" in radians: {value:g} degrees are {math.radians(value):.3g}" if number and value > high == PI else ""
        raise ValueError(f"{cls.__name__}: {name} must be a {number_of} {limits}{hint or f', got {value!r}'}")

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Logits (B, C) of embeddings x (B, d); with labels y (B,) the margin is applied.

        Raises ValueError for wrong shapes. Labels outside [0, C) and embeddings of length zero raise it on a CPU;
        elsewhere they give NaN, and ``problem`` tells. A length is zero below 4e-23 in fp32, and NaN above 1.8e19.
        """
        self._check(x, y)
        with torch.autocast(x.device.type, enabled=False):
            x, W = self._precise(x, self.W)
            x, norm = self._direction(x)
            cos_theta = self.cosines(x, W)  # (B, C)
            if y is None:
                return self.s * cos_theta
            y, wrong = self._labels(y)
            cos_y = cos_theta.gather(1, y[:, None]).squeeze(1).masked_fill(wrong, math.nan)  # (B,)
            if self.training and len(y) and type(self).observe is not Head.observe:
                logits = (self.s * cos_theta).detach()
                others = lambda: self._all_ranks(logits.scatter(1, y[:, None], -math.inf).logsumexp(1))  # noqa: E731
                self._learn(functools.partial(self.observe, others=others), cos_y, norm, y)
            target = self.target(cos_y, y, norm)  # (B,)
            negatives = self.negatives(cos_theta, target)  # (B, C)
            return self.s * negatives.scatter(1, y[:, None], target[:, None])

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Training loss of embeddings x (B, d) with labels y (B,), a mean over them: NaN where B is 0."""
        return F.cross_entropy(self(x, y), y.clamp(0, len(self.W) - 1)) + self.regulariser(x)

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

    def describe(self) -> dict[str, Tensor]:
        """What to log after an epoch, each (C,): the margins of a head that has them by class."""
        margins = getattr(self, "margins", None)
        return {} if margins is None else {"margins": margins}

    def epoch_end(self, embeddings: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """Called after every epoch; embeddings() computes those of training images (N, d) and their labels (N,)."""

    def problem(self) -> str | None:
        """What was invalid since the last call and could not be refused at once; waits for the device."""
        lengths, labels = self.invalid.tolist()
        self.invalid.zero_()
        return INVALID[0] if lengths else INVALID[1].format(C=len(self.W), got="others") if labels else None

    def _refuse(self, kind: int, values: Tensor, wrong: Tensor) -> None:
        """Raise ValueError if any of the values (B,) is wrong (B,), or count them for ``problem``."""
        if not readable(wrong):
            if not torch.compiler.is_exporting():
                self.invalid[kind].add_(wrong.sum())
        elif wrong.any().tolist():  # unlike bool() no operation that waits
            raise ValueError(INVALID[kind].format(C=len(self.W), got=values[wrong][0].tolist()))

    def _direction(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (B, d) at length one, and their lengths (B,)."""
        norm = x.norm(dim=1)
        self._refuse(0, norm, norm == 0)
        norm = norm.masked_fill(norm.isinf(), math.nan)
        return x / norm[:, None], norm

    def _labels(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Labels (B,) that fit W, and where (B,) the given ones do not."""
        wrong = (y < 0) | (y >= len(self.W))
        self._refuse(1, y, wrong)
        return y.clamp(0, len(self.W) - 1), wrong

    @torch.no_grad()
    def _learn(self, update: Callable[..., None], *rows: Tensor) -> None:
        """Call update, which moves the statistics, with all ranks' rows (B, ...); undo it if one is not finite."""
        before = [buffer.clone() for buffer in self.buffers()]
        rows = tuple(self._all_ranks(row.detach()) for row in rows)
        update(*rows)
        finite = torch.stack([row.isfinite().all() for row in rows]).all()
        for buffer, old in zip(self.buffers(), before, strict=True):
            buffer.copy_(torch.where(finite, buffer, old))

    def _all_ranks(self, rows: Tensor) -> Tensor:
        """The rows (B, ...) of all ranks. Where lib.heads.many_classes shards W, every rank has them already."""
        if not (dist.is_available() and dist.is_initialized()) or hasattr(self.W, "device_mesh"):
            return rows
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def _precise(*tensors: Tensor) -> list[Tensor]:
        """The tensors in their most precise dtype, at least fp32."""
        dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
        return [t.to(dtype) for t in tensors]

    def _check(self, x: Tensor, y: Tensor | None) -> None:
        d = self.W.shape[1]
        if x.ndim != 2 or x.shape[1] != d or not x.is_floating_point():
            raise ValueError(
                f"embeddings must be floats of shape (B, {d}), got {x.dtype} {tuple(x.shape)}: "
                "set embedding_dim to the network's output size"
            )
        if y is not None and (y.shape != x.shape[:1] or y.dtype != torch.int64):
            raise ValueError(f"labels must be int64 of shape ({len(x)},), got {y.dtype} {tuple(y.shape)}: use y.long()")

    def get_extra_state(self) -> dict[str, Any]:
        constants = {name: getattr(self, name) for name in self.ranges()}
        return {"head": type(self).__name__, **constants, "margin_scale": self.margin_scale}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        own, state = self.get_extra_state(), state_dict.get(f"{prefix}_extra_state")
        if state and state != own | {"margin_scale": state["margin_scale"]}:  # before any tensor is overwritten
            raise ValueError(f"the state of {state} does not fit {own}: make the head with the same constants")
        super()._load_from_state_dict(state_dict, prefix, *others)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.margin_scale = state["margin_scale"]

    def extra_repr(self) -> str:
        return ", ".join(["{}, {}".format(*self.W.shape), *(f"{k}={getattr(self, k):g}" for k in self.ranges())])


class Softmax(Head):
    """The plain linear classifier W x + b: no normalisation, no scale, no margin."""

    s: float = 1.0

    def __init__(self, num_classes: int, embedding_dim: int, **constants: Any):
        super().__init__(num_classes, embedding_dim, **constants)
        self.b = nn.Parameter(torch.zeros(num_classes))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        self._check(x, y)
        if y is not None:
            x = x.masked_fill(self._labels(y)[1][:, None], math.nan)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(*self._precise(x, self.W, self.b))


class NormFace(Head):
    """cos(theta_y): normalised softmax without margin (Wang et al. 2017, arXiv 1704.06369)."""

    def target(self, cos_y: Tensor, y: Tensor, norm: Tensor) -> Tensor:
        return cos_y


class SphereFace(Head):
    """psi(m1 theta_y): multiplicative angular margin (Liu et al. 2017, arXiv 1704.08063, eq. 7).

    The paper uses m1 = 4 and the length of x as scale, annealed from plain softmax; here x is
    normalised and s fixed, as public re-implementations do with m1 = 1.5, s = 30.
    """

    m1: Factor = 1.35

    def target(self, cos_y: Tensor, y: Tensor, norm: Tensor) -> Tensor:
        return psi((1 + self.margin_scale * (self.m1 - 1)) * angle(cos_y))


class CosFace(Head):
    """cos(theta_y) - m: additive cosine margin (Wang et al. 2018, arXiv 1801.09414, eq. 4).

    Faces: m = 0.35 to 0.40, s = 64.
    """

    m: Cosine = 0.2

    def target(self, cos_y: Tensor, y: Tensor, norm: Tensor) -> Tensor:
        return cos_y - self.margin_scale * self.m


class ArcFace(Head):
    """cos(theta_y + m): additive angular margin (Deng et al. 2019, arXiv 1801.07698, eq. 3).

    Faces: m = 0.5, s = 64. The published formula rises again for theta_y + m > pi, which allows a
    collapse with all centres in one point and a small loss at chance accuracy. ``psi`` makes that
    state costly; what keeps a training out of it is the margin warm-up (see notebook 02).
    """

    m: Angle = 0.3

    def target(self, cos_y: Tensor, y: Tensor, norm: Tensor) -> Tensor:
        return psi(angle(cos_y) + self.margin_scale * self.m)


class CombinedMargin(Head):
    """cos(m1 theta_y + m2) - m3: all three margins (Deng et al. 2019, eq. 4).

    Faces: (m1, m2, m3) = (1, 0.3, 0.2), s = 64.
    """

    m1: Factor = 1.0
    m2: Angle = 0.2
    m3: Cosine = 0.1

    def target(self, cos_y: Tensor, y: Tensor, norm: Tensor) -> Tensor:
        m1 = 1 + self.margin_scale * (self.m1 - 1)
        return psi(m1 * angle(cos_y) + self.margin_scale * self.m2) - self.margin_scale * self.m3


class AdaLoss(Head):
    """ArcFace whose margin follows each class's difficulty: the rule S1 and S2 state in words.

    m_c = clip(m w (d_c / mean d)^gamma, m_min, m_max); target cos(theta_y + m_y). d_c in [0, 1] is the running mean of
    1 - p_y under the margin-free softmax of class c's training samples; w is margin_scale. Hard classes get more margin
    and easy ones less. Without the bounds the mean over the classes is m for gamma = 1, less for a smaller gamma and
    more for a larger one; m_max lowers it. No gradient flows through m_c. An absolute rule (m_c linear in d_c) locks
    in: at the start every class is hard and gets the largest margin. rate: the share of a batch in the running mean.
    """

    m: Angle = 0.3
    gamma: Amount = 0.5
    m_min: Angle = 0.05
    m_max: Angle = 0.6
    rate: Share = 0.02
    d: Tensor

    def __init__(self, num_classes: int, embedding_dim: int, **constants: Any):
        super().__init__(num_classes, embedding_dim, **constants)
        if self.m_min > self.m_max:
            raise ValueError(f"{type(self).__name__}: m_min must not exceed m_max, got {self.m_min} > {self.m_max}")
        self.register_buffer("d", torch.ones(num_classes))

    def observe(self, cos_y: Tensor, norm: Tensor, y: Tensor, others: Callable[[], Tensor]) -> None:
        self.remember(1 - (self.s * cos_y - others()).sigmoid(), y)

    def remember(self, difficulty: Tensor, y: Tensor) -> None:
        """Move d towards the mean difficulty (B,), in [0, 1], of each class in a batch with labels y (B,)."""
        difficulty = difficulty.to(self.d.dtype)
        total, count = (per_class(v, y, len(self.d)) for v in (difficulty, torch.ones_like(difficulty)))
        mean = total / count.clamp_min(1)
        self.d.lerp_(mean, self.rate * (count > 0).to(self.d.dtype))  # absent classes keep theirs

    def earned(self) -> Tensor:
        """The margin m_c that the difficulty of every class earns it, (C,), in radians."""
        (d,) = self._precise(self.d)
        relative = d / d.mean().clamp_min(1e-12)
        return (self.m * self.margin_scale * relative**self.gamma).clamp(self.m_min, self.m_max)

    @property
    def margins(self) -> Tensor:
        """The margin m_c of every class now, (C,), in radians."""
        return self.earned()

    def target(self, cos_y: Tensor, y: Tensor, norm: Tensor) -> Tensor:
        return psi(angle(cos_y) + self.margins[y])


HEADS = {head.__name__: head for head in (Softmax, NormFace, SphereFace, CosFace, ArcFace, CombinedMargin, AdaLoss)}
