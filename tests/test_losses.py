import contextlib
import copy
import io
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import pytorch_metric_learning.losses as pml
import torch
import torch.distributed as dist
from hypothesis import given, reject
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode

from lib import heads, losses

ALL = {**heads.heads(), **heads.variants.HEADS}
HEADS = list(ALL)
ANGULAR = [name for name in HEADS if name != "Softmax"]
WITH_MARGIN = [name for name in ANGULAR if ALL[name].target is not losses.NormFace.target]  # on the logit
LEARNING = [name for name in HEADS if ALL[name].observe is not losses.Head.observe or hasattr(ALL[name], "remember")]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def large(name):
    """Constants of a head well above its defaults: three times as large, or half of what is allowed."""
    constants = {}
    for constant, (kind, low, high) in ALL[name].ranges().items():
        if constant != "s":
            middle, default = (low + high) / 2, getattr(ALL[name], constant)
            constants[constant] = kind(min(3 * default or middle, middle))
    return constants


def statistics(head):
    """What a head remembers of its batches, by name."""
    return {k: v.clone() for k, v in head.named_buffers() if k in head.state_dict()}


def at(*degrees, dtype=torch.float32):
    """Unit vectors (len(degrees), 2) at these angles."""
    radians = torch.tensor([math.radians(a) for a in degrees], dtype=torch.float64)
    return torch.stack([radians.cos(), radians.sin()], dim=1).to(dtype)


def cos(degrees):
    return math.cos(math.radians(degrees))


def make(name, W, **constants):
    """An evaluating head with these centres W (C, d)."""
    head = heads.make(name, *W.shape, **constants).to(W.dtype).eval()
    head.W.data = W.clone()
    return head


def plane(name, *degrees, **constants):
    """A head whose centres, and all of a class's sub-centres, lie at these angles of the plane."""
    head = make(name, at(*degrees), **constants)
    if hasattr(head, "V"):
        head.V.data = head.W.data.expand_as(head.V).clone()
    return head


def logit(head, theta):
    """The target logit (B,) of 2-D embeddings at angles theta (radians) to centre 0 at angle 0."""
    x = torch.stack([theta.cos(), theta.sin()], dim=1).to(head.W.dtype)
    return head(x, torch.zeros(len(x), dtype=torch.int64))[:, 0]


def batch(name, C=5, d=4, B=12, seed=0, dtype=torch.float64, **constants):
    """A head with random centres, random embeddings (B, d) and labels (B,)."""
    g = torch.Generator().manual_seed(seed)
    head = make(name, torch.randn(C, d, generator=g, dtype=torch.float64).to(dtype), **constants)
    head.W.requires_grad_()  # Triplet asks for no gradient of its own, but its logits have one
    x = torch.randn(B, d, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    return head, x, torch.randint(C, (B,), generator=g)


def gradients(head, x, y):
    loss = F.cross_entropy(head(x, y), y)
    return loss, *torch.autograd.grad(loss, [x, head.W])


# ---------------------------------------------------------------- by hand

# centres at 0, 90 and 180 degrees, an embedding of length 2 and label 0: (constants, its angle,
# the cosine of the target, those of the other classes)
BY_HAND = {
    "NormFace": ({}, 30, cos(30), [cos(60), cos(150)]),
    "SphereFace": ({"m1": 1.5}, 30, cos(45), [cos(60), cos(150)]),
    "SphereFace beyond pi": ({"m1": 4}, 60, -2 - cos(240), [cos(30), cos(120)]),
    "SphereFace beyond 2 pi": ({"m1": 4}, 100, cos(400) - 4, [cos(10), cos(80)]),
    "CosFace": ({"m": 0.2}, 30, cos(30) - 0.2, [cos(60), cos(150)]),
    "ArcFace": ({"m": math.pi / 6}, 30, cos(60), [cos(60), cos(150)]),
    "ArcFace beyond pi": ({"m": math.pi / 9}, 170, -2 - cos(190), [cos(80), cos(10)]),
    "CombinedMargin": ({"m1": 1.5, "m2": math.pi / 12, "m3": 0.1}, 30, cos(60) - 0.1, [cos(60), cos(150)]),
    # target cos(30 + 60) = 0: the class at 60 degrees is harder, the one at 150 is not; t = 0.25
    "CurricularFace": ({"m": math.pi / 3}, 30, 0, [0.5 * (0.25 + 0.5), cos(150)]),
    # target cos(10 + 10): no class is harder
    "CurricularFace easy": ({"m": math.pi / 18}, 10, cos(20), [cos(80), cos(170)]),
    # length 2, mu = 1.5, sigma = 0.499: k = 0.5 (2 - 1.5) / (0.499 + 0.001) = 0.5
    "AdaFace": ({"m": math.pi / 9, "h": 0.5}, 30, cos(30 - 10) - 1.5 * math.pi / 9, [cos(60), cos(150)]),
    # d = (0.4, 0.1, 0.1) has mean 0.2: m_0 = pi / 9 * 2^1
    "AdaLoss": ({"m": math.pi / 9, "gamma": 1, "m_max": 1}, 30, cos(70), [cos(60), cos(150)]),
}  # fmt: skip


@pytest.mark.parametrize("case", BY_HAND)
def test_logits_by_hand(case):
    constants, degrees, target, others = BY_HAND[case]
    head = plane(case.split()[0], 0, 90, 180, s=10, **constants)
    values = {"t": 0.25, "mu": 1.5, "sigma": 0.499, "d": torch.tensor([0.4, 0.1, 0.1])}
    for name, buffer in head.named_buffers():
        if name in values:
            buffer.copy_(torch.as_tensor(values[name]))
    logits = head(2 * at(degrees), torch.tensor([0]))
    torch.testing.assert_close(logits, 10 * torch.tensor([[target, *others]]), atol=1e-5, rtol=0)


def test_softmax_by_hand():
    head = make("Softmax", torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    head.b.data = torch.tensor([0.5, -1.0])
    x, y = torch.tensor([[1.0, -1.0]]), torch.tensor([1])
    assert head(x, y).tolist() == head(x).tolist() == [[-0.5, -2.0]]


@pytest.mark.parametrize("length, k", [(2.0, 0.5), (1.5, 0.0), (1.0, -0.5), (50.0, 1.0), (0.01, -1.0)])
def test_adaface_quality_is_clipped(length, k):
    head = plane("AdaFace", 0, 90, m=0.3, h=0.5)
    head.mu.fill_(1.5), head.sigma.fill_(0.499)
    assert head.quality(torch.tensor([length])).item() == pytest.approx(k, abs=1e-5)
    expected = math.cos(1.2 - 0.3 * k) - (0.3 * k + 0.3)
    x = length * torch.tensor([[math.cos(1.2), math.sin(1.2)]])
    assert head(x, torch.tensor([0]))[0, 0].item() == pytest.approx(16 * expected, abs=1e-4)


def test_adaface_never_turns_the_angle_negative():
    head = plane("AdaFace", 0, 90, m=0.3)
    head.mu.fill_(1.0), head.sigma.fill_(0.1)
    close, on_centre = (head(50 * at(a), torch.tensor([0]))[0, 0] for a in (5, 0))  # k = 1
    assert close.item() == pytest.approx(on_centre.item(), abs=1e-4)


def test_adaloss_margins_by_hand():
    head = plane("AdaLoss", 0, 90, 180, 270, m=0.2, gamma=0.5, m_min=0.1, m_max=0.3)
    assert head.margins.tolist() == pytest.approx([0.2] * 4)  # all equally hard at the start
    head.d.copy_(torch.tensor([0.36, 0.16, 0.01, 0.11]))  # mean 0.16
    assert head.margins.tolist() == pytest.approx([0.3, 0.2, 0.1, 0.2 * (11 / 16) ** 0.5])


@given(d=st.lists(st.floats(0.01, 1), min_size=3, max_size=3), gamma=st.floats(0, 1))
def test_adaloss_mean_margin_stays(d, gamma):
    head = plane("AdaLoss", 0, 90, 180, m=0.3, gamma=gamma, m_min=0, m_max=3)
    head.d.copy_(torch.tensor(d))
    assert head.margins.mean().item() <= 0.3 + 1e-6
    order = head.d.argsort()
    assert (head.margins[order].diff() >= -1e-6).all()  # harder class, larger margin
    head.gamma = 1.0
    assert head.margins.mean().item() == pytest.approx(0.3, abs=1e-5)


def test_adaloss_learns_difficulty_by_hand():
    head = plane("AdaLoss", 0, 90, 180, s=2.0).train()
    head(at(0, 60), torch.tensor([0, 0]))
    # margin-free probabilities of class 0 with cosines (1, 0, -1) and (0.5, cos 30, -0.5)
    p = [math.exp(2 * c[0]) / sum(math.exp(2 * v) for v in c) for c in [(1, 0, -1), (0.5, cos(30), -0.5)]]
    assert head.d.tolist() == pytest.approx([0.98 + 0.02 * (1 - sum(p) / 2), 1, 1])


def test_curricular_t_is_a_running_mean():
    head = plane("CurricularFace", 0, 90).train()
    head(at(0, 60), torch.tensor([0, 0]))  # mean target cosine 0.75
    assert head.t.item() == pytest.approx(0.01 * 0.75)
    head(at(90), torch.tensor([1]))
    assert head.t.item() == pytest.approx(0.99 * 0.0075 + 0.01)


def test_adaface_starts_from_first_batch():
    head = plane("AdaFace", 0, 90).train()
    head(torch.tensor([[1.0, 0], [3.0, 0]]), torch.tensor([0, 1]))
    assert (head.mu.item(), head.sigma.item()) == pytest.approx((2, 1))
    head(torch.tensor([[0, 500.0], [0, 40.0]]), torch.tensor([0, 1]))  # 500 counts as 100
    assert (head.mu.item(), head.sigma.item()) == pytest.approx((0.99 * 2 + 0.01 * 70, 0.99 * 1 + 0.01 * 30))


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("B", [0, 1])
def test_smallest_batches_leave_statistics_finite(name, B):
    head, x, y = batch(name, B=B, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logits = head.train()(x, y)
    assert logits.shape == (B, 5) and logits.isfinite().all()
    assert all(v.isfinite().all() for v in statistics(head).values())


# ---------------------------------------------------------------- against another implementation

REFERENCES = {
    "ArcFace": (pml.ArcFaceLoss, {"margin": math.degrees(0.25), "scale": 10}, {"m": 0.25, "s": 10}),
    "CosFace": (pml.CosFaceLoss, {"margin": 0.35, "scale": 10}, {"m": 0.35, "s": 10}),
    "SphereFace": (pml.SphereFaceLoss, {"margin": 4, "scale": 10}, {"m1": 4, "s": 10}),
    "NormFace": (pml.NormalizedSoftmaxLoss, {"temperature": 0.1}, {"s": 10}),
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", REFERENCES)
def test_same_value_and_gradient_as_pytorch_metric_learning(name, seed):
    reference, its_constants, constants = REFERENCES[name]
    head, x, y = batch(name, seed=seed, B=60, **constants)
    if name == "ArcFace":  # beyond pi the definitions differ
        theta = F.cosine_similarity(x, head.W[y]).acos()
        x, y = x[theta < math.pi - 0.25], y[theta < math.pi - 0.25]
    unit = F.normalize(x)  # its SphereFace multiplies by the length of x
    other = reference(5, 4, **its_constants).double()
    other.W.data = head.W.data.T.clone()  # (d, C)
    theirs = other(unit, y)
    theirs_x, theirs_W = torch.autograd.grad(theirs, [x, other.W], retain_graph=True)
    ours = F.cross_entropy(head(unit, y), y)
    ours_x, ours_W = torch.autograd.grad(ours, [x, head.W])
    torch.testing.assert_close([ours, ours_x, ours_W], [theirs, theirs_x, theirs_W.T])


# ---------------------------------------------------------------- identities

IDENTITIES = [
    ("ArcFace", {"m": 0}, "NormFace", {}),
    ("CosFace", {"m": 0}, "NormFace", {}),
    ("SphereFace", {"m1": 1}, "NormFace", {}),
    ("CombinedMargin", {"m1": 1, "m2": 0, "m3": 0}, "NormFace", {}),
    ("CombinedMargin", {"m1": 1.5, "m2": 0, "m3": 0}, "SphereFace", {"m1": 1.5}),
    ("CombinedMargin", {"m1": 1, "m2": 0.4, "m3": 0}, "ArcFace", {"m": 0.4}),
    ("CombinedMargin", {"m1": 1, "m2": 0, "m3": 0.4}, "CosFace", {"m": 0.4}),
    ("AdaFace", {"h": 0, "m": 0.4}, "CosFace", {"m": 0.4}),
    ("AdaFace", {"m": 0}, "NormFace", {}),
    ("AdaLoss", {"gamma": 0, "m": 0.4}, "ArcFace", {"m": 0.4}),
    ("AdaLoss", {"gamma": 0, "m": 0, "m_min": 0}, "NormFace", {}),
    ("ElasticFace", {"m": 0.4}, "ArcFace", {"m": 0.4}),  # in evaluation mode
    ("MagFace", {"l_m": 0.4, "u_m": 0.4}, "ArcFace", {"m": 0.4}),
    ("KappaFace", {"m0": 0}, "NormFace", {}),
    ("KappaFace", {"m0": 0.8, "T": 0, "gamma": 1}, "ArcFace", {"m": 0.4}),
    ("LDAM", {"m": 0}, "NormFace", {}),
    ("SubCenterArcFace", {"m": 0.4, "K": 1}, "ArcFace", {"m": 0.4}),
]


@pytest.mark.parametrize("name, constants, other, its_constants", IDENTITIES)
def test_heads_reduce_to_each_other(name, constants, other, its_constants):
    head, x, y = batch(name, **constants)
    for buffer in head.buffers():  # must not matter
        buffer.copy_(torch.linspace(0.1, 0.9, buffer.numel()).view(buffer.shape))
    twin = make(other, head.W.data, **its_constants)
    torch.testing.assert_close(gradients(head, x, y), gradients(twin, x, y))


def test_curricular_is_arcface_for_easy_negatives():
    W = torch.eye(4, dtype=torch.float64)
    x, y = 3 * W + 0.1, torch.arange(4)
    curricular, arc = (make(name, W, m=0.3)(x, y) for name in ("CurricularFace", "ArcFace"))
    torch.testing.assert_close(curricular, arc)


# ---------------------------------------------------------------- no label, no margin


@pytest.mark.parametrize("name", WITH_MARGIN)
def test_no_margin_without_label(name):
    head, x, y = batch(name, **large(name))
    own = ALL[name].cosines is not losses.Head.cosines
    plain = head(x) if own else make("NormFace", head.W.data)(x)
    for _ in range(2):  # training mode and earlier labels change nothing
        assert torch.equal(head(x), plain)
        assert (head(x, y) != plain).any()
        head.train()


@pytest.mark.parametrize("name", WITH_MARGIN)
def test_margin_only_on_the_target(name):
    head, x, y = batch(name, **large(name))
    changed = head(x, y) != head(x)
    on_target = F.one_hot(y, 5).bool()
    assert changed[on_target].all() and (head(x, y) <= head(x))[on_target].all()
    if type(head).negatives is losses.Head.negatives:  # the others stay as they are
        assert not changed[~on_target].any()


@pytest.mark.parametrize("name", HEADS)
def test_statistics_move_in_training_mode_only(name):
    head, x, y = batch(name)
    start = statistics(head)
    head(x, y), head(x), head.train()(x)
    assert all(torch.equal(v, start[k]) for k, v in statistics(head).items())
    head(x, y)
    assert all(torch.equal(v, start[k]) != (name in LEARNING) for k, v in statistics(head).items())


@pytest.mark.parametrize("name", WITH_MARGIN)
def test_warmup_grows_the_margin_from_zero(name):
    lowest = {"m_min": 0} if "m_min" in ALL[name].ranges() else {}  # AdaLoss's margins start from there
    head, x, y = batch(name, **{**large(name), **lowest})
    targets = []
    for head.margin_scale in (0.0, 0.3, 0.6, 1.0):
        targets.append(head(x, y).gather(1, y[:, None]))
    torch.testing.assert_close(targets[0], head(x).gather(1, y[:, None]))
    assert (torch.cat(targets, 1).diff(dim=1) <= 1e-9).all()


def test_adaloss_warmup_starts_from_m_min():
    head = plane("AdaLoss", 0, 90, m=0.4, m_min=0.1)
    margins = []
    for head.margin_scale in (0.0, 0.5, 1.0):
        margins.append(head.margins[0].item())
    assert margins == pytest.approx([0.1, 0.2, 0.4])


# ---------------------------------------------------------------- properties

fractions = st.floats(0, 1, width=32)


@st.composite
def cases(draw, names=tuple(HEADS)):
    """A head name with constants from the smallest allowed to far beyond the papers'."""
    name, constants = draw(st.sampled_from(names)), {}
    for constant, (kind, low, high) in ALL[name].ranges().items():
        if constant == "s":
            constants["s"] = draw(st.sampled_from([1.0, 16.0, 64.0, "auto"]))
            continue
        high = min(high, 4 * getattr(ALL[name], constant) + 1)
        constants[constant] = (
            draw(st.integers(low, high)) if kind is int else kind(low + (high - low) * draw(fractions))
        )
    try:
        heads.make(name, 5, 4, **constants)
    except ValueError:  # two of them do not fit together
        reject()
    return name, constants


def finite(loss, x, head):
    loss.backward()
    return loss.isfinite() and all(p is None or p.isfinite().all() for p in (x.grad, head.W.grad))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(case=cases(), seed=st.integers(0, 999), size=st.sampled_from([1e-3, 1.0, 50.0]), training=st.booleans())
def test_random_inputs_give_finite_value_and_gradient(dtype, case, seed, size, training):
    head, x, y = batch(case[0], seed=seed, dtype=torch.float32, **case[1])
    x = (size * x.detach()).to(dtype).requires_grad_()
    assert finite(head.train(training).loss(x, y), x, head)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@given(case=cases(), d=st.sampled_from([2, 3, 64]), seed=st.integers(0, 999), axes=st.booleans())
def test_finite_at_angle_zero_and_pi(dtype, case, d, seed, axes):
    W = torch.randn(5, d, generator=torch.Generator().manual_seed(seed))
    if axes:  # cosines of exactly 1 and -1, where the others are within rounding of it
        W = torch.eye(d)[torch.arange(5) % d]
    W = W.to(torch.promote_types(dtype, torch.float32))
    head, y = make(case[0], W, **case[1]), torch.arange(5).repeat(2)
    x = torch.cat([W, -W]).to(dtype).requires_grad_()
    assert finite(head.loss(x, y), x, head)


@pytest.mark.parametrize("name", HEADS)
def test_autocast_does_not_touch_the_margin(name):
    head, x, y = batch(name, dtype=torch.float32)
    expected = gradients(head, x, y)
    half = x.detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(head(x, y), y)
        from_half = head(half, y)
    actual = loss, *torch.autograd.grad(loss, [x, head.W])
    torch.testing.assert_close(actual, expected, atol=0, rtol=0)
    assert from_half.dtype == torch.float32
    assert torch.equal(from_half, head(half.float(), y))


@pytest.mark.parametrize("name", HEADS)
def test_a_half_precision_head_computes_in_fp32(name):
    head, x, y = batch(name, dtype=torch.float16)
    twin = heads.make(name, 5, 4).eval()
    twin.load_state_dict(head.state_dict())
    assert head(x, y).dtype == torch.float32
    torch.testing.assert_close(head(x, y), twin(x.float(), y))


@pytest.mark.parametrize("name", LEARNING)
def test_a_half_precision_head_keeps_its_statistics_in_fp32(name):
    head, x, y = batch(name, dtype=torch.float32)
    head.train()(x, y)
    before = statistics(head)
    torch.testing.assert_close(statistics(head.half()), before, rtol=0, atol=0)
    head(x, y)


@pytest.mark.parametrize("name", HEADS)
def test_embeddings_may_be_more_precise_than_the_head(name):
    head, x, y = batch(name, dtype=torch.float32)
    assert head.train()(x.double(), y).dtype == torch.float64


@given(case=cases(tuple(ANGULAR)), w=fractions, statistic=fractions, dtype=st.sampled_from([*DTYPES, torch.float64]))
def test_target_logit_never_rises_with_the_angle(case, w, statistic, dtype):
    head = plane(case[0], 0, 90, 200, **case[1])
    head.margin_scale = w
    for buffer in head.buffers():
        buffer.fill_(statistic)
    head = head.double() if dtype == torch.float64 else head
    theta = torch.linspace(0, math.pi, 2001, dtype=torch.float64).to(dtype).double()
    target = logit(head, theta)
    slack = 2e-6 if head.W.dtype == torch.float32 else 1e-9  # rounding
    assert (target.diff() <= slack * head.s * 5).all()


@pytest.mark.parametrize("name", WITH_MARGIN)
def test_target_logit_falls_strictly(name):
    head = plane(name, 0, 90)
    target = logit(head.double(), torch.linspace(0.5, math.pi - 0.01, 500, dtype=torch.float64))
    assert (target.diff() < 0).all()


@pytest.mark.parametrize(
    "name, constants, turn",
    [
        ("ArcFace", {"m": 0.5}, math.pi - 0.5),
        ("AdaLoss", {"m": 0.5}, math.pi - 0.5),
        ("CurricularFace", {"m": 0.5}, math.pi - 0.5),
        ("SphereFace", {"m1": 4}, math.pi / 4),
        ("SphereFace", {"m1": 4}, math.pi / 2),
        ("CombinedMargin", {"m1": 2, "m2": 0.5, "m3": 0.1}, (math.pi - 0.5) / 2),
        ("AdaFace", {"m": 0.5, "h": 0}, math.pi),
    ],
)
def test_continuous_where_the_shifted_angle_passes_pi(name, constants, turn):
    head = plane(name, 0, 90, s=1, **constants).double()
    theta = turn + torch.tensor([-1e-6, 0, 1e-6], dtype=torch.float64)
    target = logit(head, theta)
    assert target.diff().abs().max() < 1e-5
    if name != "AdaFace":  # the slope is continuous too: zero at the turn
        far = logit(head, turn + torch.tensor([-0.01, 0.01], dtype=torch.float64)) - target[1]
        assert far.tolist() == pytest.approx([-far[1].item(), -far[0].item()], abs=1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_gradcheck(name):
    head, x, y = batch(name, B=8)

    def logits(x, W):  # AdaFace reads the length of x without gradient, so it is held at 2
        return torch.func.functional_call(head, {"W": W}, (2 * F.normalize(x), y))

    assert torch.autograd.gradcheck(logits, (x, head.W.detach().requires_grad_()))


@pytest.mark.parametrize("name", [name for name in ANGULAR if ALL[name].regulariser is losses.Head.regulariser])
def test_no_gradient_along_the_embedding(name):
    head, x, y = batch(name)
    _, x_grad, W_grad = gradients(head, x, y)
    for v, grad in ((x, x_grad), (head.W, W_grad)):
        assert (v * grad).sum(1).abs().max() < 1e-12 < grad.norm()


@given(theta=st.floats(0, math.pi))
def test_angle_inverts_the_cosine(theta):
    cosine = torch.tensor(math.cos(theta), dtype=torch.float64)
    assert losses.angle(cosine).item() == pytest.approx(theta, abs=1e-7)


@given(phi=st.floats(0, 20))
def test_psi_by_hand(phi):
    k = phi // math.pi
    expected = (-1) ** k * math.cos(phi) - 2 * k
    assert losses.psi(torch.tensor(phi, dtype=torch.float64)).item() == pytest.approx(expected, abs=1e-9)


# ---------------------------------------------------------------- the antipodal collapse


def collapsed(head, C=10):
    """Loss with all centres in one point and every embedding opposite to it."""
    y = torch.arange(C)
    return F.cross_entropy(head(-at(*[0] * C), y), y).item()


@pytest.mark.parametrize("s, m, value", [(16, 0.45, 1.04), (64, 0.5, 0.0036)])
def test_plain_arcface_rewards_the_collapse(s, m, value):
    class Plain(losses.ArcFace):  # as printed in the paper
        def target(self, cos_y, y, norm):
            return torch.cos(losses.angle(cos_y) + self.m)

    loss = collapsed(Plain(10, 2, s=s, m=m).requires_grad_(False).apply(one_point))
    assert loss == pytest.approx(math.log(1 + 9 * math.exp(-s * (1 - math.cos(m)))), rel=1e-3)
    assert loss == pytest.approx(value, rel=0.02)


def one_point(head):
    head.W.data = at(*[0] * len(head.W))


@pytest.mark.parametrize("s, m", [(16, 0.45), (64, 0.5)])
def test_arcface_punishes_the_collapse(s, m):
    loss = collapsed(plane("ArcFace", *[0] * 10, s=s, m=m))
    assert loss == pytest.approx(math.log(1 + 9 * math.exp(s * (1 - math.cos(m)))), rel=1e-4)


@pytest.mark.parametrize("s", [16, 64])
@pytest.mark.parametrize("name", ANGULAR)
def test_heads_punish_the_collapse(name, s):
    scale = {"s": s} if "s" in ALL[name].ranges() else {}
    loss = collapsed(plane(name, *[0] * 10, **scale, **large(name)))
    if name in WITH_MARGIN:
        assert loss > math.log(10) + 1
    else:
        assert loss == pytest.approx(math.log(10), rel=1e-5)


# ---------------------------------------------------------------- module and constants


@pytest.mark.parametrize("name", HEADS)
def test_every_parameter_learns_from_logits_or_loss(name):
    head, x, y = batch(name, C=7, d=3)
    (F.cross_entropy(head(x, y), y) + head.loss(x, y)).backward()
    assert head.W.shape == (7, 3) and all(p.grad.norm() > 0 for p in head.parameters())


@pytest.mark.parametrize("name", HEADS)
def test_one_seed_gives_every_head_the_same_centres(name):
    centres = []
    for head in (name, "ArcFace"):
        torch.manual_seed(1)
        centres.append(heads.make(head, 7, 3).W)
    assert torch.equal(*centres)


def test_constants_are_attributes():
    head = losses.AdaLoss(10, 8, s=20, m=0.4, gamma=1, m_min=0.1, m_max=0.5)
    assert (head.s, head.m, head.gamma, head.m_min, head.m_max) == (20, 0.4, 1, 0.1, 0.5)
    assert str(losses.ArcFace(10, 8, m=0.4)) == "ArcFace(10, 8, s=16, m=0.4)"


@pytest.mark.parametrize("number", [2, 2.0, np.float64(2), np.int64(2), torch.tensor(2), torch.tensor(2.0)], ids=repr)
def test_numbers_of_every_kind_are_constants(number):
    head = heads.make("SubCenterArcFace", 10, 8, m=number, K=number)
    assert (head.m, type(head.m), head.K, type(head.K)) == (2, float, 2, int)
    assert heads.make("ElasticFace", 10, 8, plus=True).plus is heads.make("ElasticFace", 10, 8, plus=1.0).plus is True


def loaded(head, state):
    """The head after a trip of the state through a file, as weights alone."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    head.load_state_dict(torch.load(file, weights_only=True))
    return head


@pytest.mark.parametrize("name", HEADS)
def test_state_dict_round_trip(name):
    head, x, y = batch(name, dtype=torch.float32)
    head.margin_scale = 0.5
    head.train()(3 * x, y)
    copies = [loaded(heads.make(name, 5, 4), head.state_dict()), copy.deepcopy(head), pickle.loads(pickle.dumps(head))]
    logits = []
    for h in (head, *copies):  # one more step, so that AdaFace's "started" counts too
        torch.manual_seed(0)
        logits.append(h.train()(x, y))
        assert h.margin_scale == 0.5 and torch.equal(logits[-1], logits[0])


def tensors(head):
    return [value for value in head.state_dict().values() if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("name", [name for name in HEADS if large(name)])
def test_a_state_of_other_constants_is_refused(name):
    head = heads.make(name, 5, 4)
    constant, value = next((k, v) for k, v in large(name).items() if v != getattr(head, k))
    other, before = heads.make(name, 5, 4, **{constant: value}), [v.clone() for v in tensors(head)]
    with pytest.raises(ValueError, match=f"'{constant}'.* does not fit .*'{constant}'.*same constants") as error:
        head.load_state_dict(other.state_dict())
    assert str(value) in str(error.value) and str(getattr(head, constant)) in str(error.value)
    assert all(map(torch.equal, before, tensors(head)))  # nothing of it was taken
    with pytest.raises(ValueError, match=r"ArcFace.*CosFace"):
        heads.make("CosFace", 5, 4).load_state_dict(heads.make("ArcFace", 5, 4).state_dict())


def test_a_state_without_constants_lacks_a_key():
    head = losses.ArcFace(5, 4)
    with pytest.raises(RuntimeError, match=r'Missing key.*"_extra_state"'):
        head.load_state_dict({"W": head.W})
    head.load_state_dict({"W": head.W}, strict=False)


@pytest.mark.parametrize("name", HEADS)
def test_heads_can_be_averaged(name):
    head, x, y = batch(name, dtype=torch.float32)
    average = AveragedModel(head.train(), use_buffers=True)
    seen = []
    for _ in range(3):
        head(x, y)
        average.update_parameters(head)
        seen.append(statistics(head))
    for key, value in statistics(average.module).items():
        torch.testing.assert_close(value, sum(s[key] for s in seen) / 3)


@pytest.mark.parametrize("C, p", [(10, 0.999), (2, 0.9), (10_000, 0.999)])
def test_scale_for_reaches_the_probability(C, p):
    s = losses.scale_for(C, p)
    cosines = torch.full((C,), -1 / (C - 1), dtype=torch.float64)
    cosines[0] = 1
    assert (s * cosines).softmax(0)[0].item() == pytest.approx(p)


def test_automatic_scale():
    head = losses.ArcFace(10, 8, s="auto")
    assert head.s == losses.scale_for(10) == pytest.approx(0.9 * math.log(9 * 999))


# ---------------------------------------------------------------- bad input

X, Y = torch.ones(3, 4), torch.tensor([0, 1, 2])

BAD_CALLS = {
    "embeddings of another size": (torch.ones(3, 5), Y, r"shape \(B, 4\), got torch.float32 \(3, 5\): .*embedding_dim"),
    "embeddings of three dimensions": (torch.ones(3, 4, 1), None, r"got torch.float32 \(3, 4, 1\)"),
    "integer embeddings": (torch.ones(3, 4, dtype=torch.int64), None, "must be floats.*got torch.int64"),
    "too few labels": (X, Y[:2], r"labels must be int64 of shape \(3,\), got torch.int64 \(2,\)"),
    "labels with two dimensions": (X, Y[:, None], r"labels must be int64 of shape \(3,\), got torch.int64 \(3, 1\)"),
    "float labels": (X, Y.float(), r"labels must be int64.*got torch.float32"),
    "label too large": (X, Y + 3, r"labels must lie in \[0, 5\), got 5: .*num_classes"),
    "negative label": (X, Y - 1, r"labels must lie in \[0, 5\), got -1: .*num_classes"),
    "embedding of length zero": (X * torch.tensor([[1.0], [0], [1]]), Y, "length zero.*: remove the ReLU"),
}


@pytest.mark.parametrize("name", ["ArcFace", "Softmax"])
@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls_are_refused(case, name):
    x, y, message = BAD_CALLS[case]
    head = heads.make(name, 5, 4)
    if (name, case) == ("Softmax", "embedding of length zero"):
        assert head(x, y).isfinite().all()  # it has no angle, and needs none
        return
    with pytest.raises(ValueError, match=message) as error:
        head(x, y)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", HEADS)
def test_a_refused_batch_leaves_statistics_alone(name):
    head = heads.make(name, 5, 4)
    start = statistics(head)
    for case in BAD_CALLS.values():
        with contextlib.suppress(ValueError):
            head(case[0], case[1])
    assert all(torch.equal(v, start[k]) for k, v in statistics(head).items())


@pytest.mark.parametrize("name", HEADS)
def test_every_loss_refuses_bad_values(name):
    for x, y, message in list(BAD_CALLS.values())[6:]:
        if (name, message[:6]) != ("Softmax", "length"):
            with pytest.raises(ValueError, match=message):
                heads.make(name, 5, 4).loss(x, y)


@pytest.mark.parametrize("name", HEADS)
def test_where_values_cannot_be_read_problem_tells(name, monkeypatch):
    """As on a device, where a look at a value would wait for it."""
    monkeypatch.setattr(losses, "readable", lambda x: False)
    monkeypatch.setattr("lib.heads.triplet.readable", lambda x: False)
    head = heads.make(name, 5, 4)
    for x, y, message in list(BAD_CALLS.values())[6:]:
        start = statistics(head)
        if (name, message[:6]) != ("Softmax", "length"):
            assert head.loss(x, y).isnan()
            assert re.search(message.replace("got -1", "got others").replace("got 5", "got others"), head.problem())
        assert head.problem() is None
        assert all(torch.equal(v, start[k]) for k, v in statistics(head).items())
    torch.manual_seed(0)
    head.loss(torch.randn(6, 4), torch.arange(6) % 5)
    assert head.problem() is None


BAD_CONSTANTS = [
    ("ArcFace", {"s": 0}, "s must be a number >= 0.001, got 0"),
    ("ArcFace", {"s": "large"}, "s must be a number >= 0.001, got 'large'"),
    ("ArcFace", {"s": math.inf}, "s must be a number >= 0.001, got inf"),
    ("ArcFace", {"m": 28.6}, "m must be a number .*in radians: 28.6 degrees are 0.499"),
    ("ArcFace", {"m": math.pi}, "m must be a number .*in radians"),
    ("ArcFace", {"m": True}, "m must be a number .*got True"),
    ("ArcFace", {"m": torch.tensor(True)}, "m must be a number .*got True"),
    ("ArcFace", {"m": torch.ones(2)}, "m must be a number .*got tensor"),
    ("CosFace", {"m": 2.1}, r"CosFace: m must be a number in \[0, 2\], got 2.1"),
    ("SphereFace", {"m1": 0.9}, "m1 must be a number >= 1, got 0.9"),
    ("AdaLoss", {"rate": 2}, r"rate must be a number in \[0, 1\], got 2"),
    ("AdaLoss", {"m_min": 0.5, "m_max": 0.4}, "m_min must not exceed m_max, got 0.5 > 0.4"),
    ("ArcFace", {"margin": 0.5}, "ArcFace: .*'margin'"),
    ("MagFace", {"l_a": 9, "u_a": 9}, "MagFace: the lengths must satisfy 0 < l_a < u_a, got 9 and 9"),
    ("MagFace", {"l_a": 0}, "0 < l_a < u_a, got 0 and 16"),
    ("SubCenterArcFace", {"K": 1.5}, "SubCenterArcFace: K must be a whole number >= 1, got 1.5"),
    ("SubCenterArcFace", {"K": 0}, "K must be a whole number >= 1, got 0"),
    ("AdaCos", {"s": 16}, "AdaCos: .*'s'"),
    ("Softmax", {"s": 16}, "Softmax: .*'s'"),
    ("arcface", {}, "unknown loss 'arcface': choose one of Softmax, NormFace, .*AdaLoss, .*SubCenterArcFace"),
]


@pytest.mark.parametrize("name, constants, message", BAD_CONSTANTS)
def test_bad_constants_are_refused(name, constants, message):
    with pytest.raises(ValueError, match=message) as error:
        heads.make(name, 10, 8, **constants)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", HEADS)
def test_every_range_is_kept(name):
    for constant, (_, low, high) in ALL[name].ranges().items():
        for value in (low - 0.1, high * 1.01, math.nan, math.inf, "1", True, None):
            if (value, constant) != (True, "plus"):
                with pytest.raises(ValueError, match=f"{name}: {constant} must be"):
                    heads.make(name, 5, 4, **{constant: value})


# ---------------------------------------------------------------- values that are no numbers, and the largest


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30], ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_statistics_survive_a_batch_that_is_not_finite(name, bad):
    head, x, y = batch(name, dtype=torch.float32)
    head.train()(x, y)
    before = statistics(head) | head.describe()
    spoilt = x.detach().clone()
    spoilt[3, 1] = bad
    loss = head.loss(spoilt, y)
    assert loss.isnan() or name == "Softmax"  # also for a length of 1e30, which fp32 cannot square
    assert head(spoilt)[3].isnan().all() or name == "Softmax"
    assert all(torch.equal(v, before[k]) for k, v in statistics(head).items())
    head(x, y)
    assert all(v.isfinite().all() for v in statistics(head).values())


def test_a_spoilt_batch_is_not_in_the_quality():
    head, x, y = batch("AdaFace", dtype=torch.float32)
    head.train()(math.nan * x, y)
    assert head.describe()["quality"].tolist() == [0] * 5


@pytest.mark.parametrize("name", HEADS)
def test_the_loss_of_an_empty_batch_is_not_a_number(name):
    head, x, y = batch(name, B=0)
    assert head.train().loss(x, y).isnan() and head(x).shape == (0, 5)


# ---------------------------------------------------------------- what a training loop asks


@pytest.mark.parametrize("name", HEADS)
def test_margins_by_class_are_described(name):
    head, x, y = batch(name)
    head.train()(x, y)
    described = head.describe()
    assert all(v.shape == (5,) and v.isfinite().all() for v in described.values())
    assert ("margins" in described) == hasattr(head, "margins")
    if "margins" in described:
        assert torch.equal(described["margins"], head.margins)


def test_quality_is_described_by_hand():
    head = plane("AdaFace", 0, 90, h=0.5).train()
    batches = [((1.0, 3.0, 5.0), (0, 0, 1)), ((2.0, 2.5), (1, 1))]
    expected = torch.zeros(2)
    for lengths, labels in batches:
        head(torch.tensor([[a, 0.1] for a in lengths]), torch.tensor(labels))
        k = head.quality(torch.tensor([[a, 0.1] for a in lengths]).norm(dim=1))  # mu and sigma have moved
        expected += torch.stack([k[torch.tensor(labels) == c].sum() for c in (0, 1)])
    torch.testing.assert_close(head.describe()["quality"], expected / torch.tensor([2.0, 3.0]))
    assert head.describe()["quality"].tolist() == [0, 0]
    head.eval()(torch.ones(1, 2), torch.tensor([0]))
    assert head.describe()["quality"].tolist() == [0, 0]


class Reads(TorchDispatchMode):
    """Counts how often Python asks for a value and so would wait for a device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits = (torch.ops.aten._local_scalar_dense, torch.ops.aten.bincount, torch.ops.aten.nonzero)
        self.count += func.overloadpacket in waits
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_a_step_reads_no_value(name, on_device, monkeypatch):
    if on_device or name == "Triplet":  # on a CPU Triplet picks its terms, where nothing waits
        monkeypatch.setattr(losses, "readable", lambda x: False)
        monkeypatch.setattr("lib.heads.triplet.readable", lambda x: False)
    head, x, y = batch(name)
    with Reads() as reads:
        head.train().loss(x, y).backward()
        head(x), head(x, y)
    assert reads.count == 0
    with Reads() as reads:
        bool(x.sum() > 0)
    assert reads.count == 1


# ---------------------------------------------------------------- compiled and exported


@pytest.mark.parametrize("name", HEADS)
def test_compiles_to_one_graph(name):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    head, x, y = batch(name, dtype=torch.float32)
    twin = copy.deepcopy(head)
    torch._dynamo.reset()
    loss, logits = (torch.compile(f, backend=backend, fullgraph=True) for f in (head.loss, head))
    torch.testing.assert_close([logits(x), logits(x, y)], [twin(x), twin(x, y)])
    graphs.clear()
    for step in range(20):
        head.train().margin_scale = twin.train().margin_scale = step / 19
        torch.manual_seed(0)
        expected = twin.loss(x, y)
        torch.manual_seed(0)
        torch.testing.assert_close(loss(x, y), expected)
    torch.testing.assert_close(statistics(head), statistics(twin))
    assert len(graphs) <= 2


@pytest.mark.parametrize("name", HEADS)
def test_exports_without_labels(name, tmp_path):
    head, x, _ = batch(name, dtype=torch.float32)
    program = torch.export.export(head, (x,), dynamic_shapes=({0: torch.export.Dim("B")},))
    torch.export.save(program, tmp_path / "head.pt2")
    again = torch.export.load(tmp_path / "head.pt2").module()
    for batch_size in (12, 7):
        assert torch.equal(again(x[:batch_size]), head(x[:batch_size]))


# ---------------------------------------------------------------- several ranks


def rank_of_two(rank, folder):
    """Each rank's batches hold one class; any deviation from the single process raises."""
    torch.set_num_threads(1)
    cases = []
    for name in (*LEARNING, "Triplet"):
        head, *_ = batch(name, dtype=torch.float64)
        whole = copy.deepcopy(head)
        g = torch.Generator().manual_seed(3)
        batches = [torch.randn(16, 4, generator=g, dtype=torch.float64) for _ in range(4)]
        y = torch.arange(2).repeat_interleave(8)
        for x in batches:
            whole.train()(x, y)
        whole.epoch_end(lambda x=x, y=y: (x, y))
        cases.append((name, head, whole, batches, y))
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for name, head, whole, batches, y in cases:
        parallel = nn.parallel.DistributedDataParallel(head.train())
        for x in batches:
            parallel(x.chunk(2)[rank], y.chunk(2)[rank])
        head.epoch_end(lambda x=x, y=y: (x.chunk(2)[rank], y.chunk(2)[rank]))
        found, expected = ({"W": h.W, **statistics(h)} for h in (head, whole))
        torch.testing.assert_close(found, expected, msg=lambda m, name=name: f"{name}: {m}")
        torch.testing.assert_close(head.describe(), whole.describe())
    dist.barrier()
    dist.destroy_process_group()


def test_statistics_are_those_of_all_ranks(tmp_path):
    torch.multiprocessing.spawn(rank_of_two, args=(tmp_path,), nprocs=2)


def rank_with_a_wrong_label(rank, folder):
    """Of rank 1 alone, in the first of three batches, where values cannot be read as on a device."""
    losses.readable = lambda x: False
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    parallel = nn.parallel.DistributedDataParallel(losses.ArcFace(5, 4))
    for y in (Y + 3 * rank, Y, Y):
        parallel(X, y).sum().backward()
    assert ("labels must lie in [0, 5)" in (parallel.module.problem() or "")) == (rank == 1)
    dist.barrier()
    dist.destroy_process_group()


def test_each_rank_tells_its_own_problem(tmp_path):
    torch.multiprocessing.spawn(rank_with_a_wrong_label, args=(tmp_path,), nprocs=2)


# ---------------------------------------------------------------- alone

PROJECT = Path(__file__).parent.parent


def test_the_library_is_light():
    code = "import lib.losses, lib.models, sys; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], cwd=PROJECT, text=True).split()
    assert "torch" in loaded and not {"sklearn", "pandas", "joblib", "torchvision"} & set(loaded)


ALONE = """
import sys, torch, losses
assert not any(name.split(".")[0] == "lib" for name in sys.modules)
head = losses.AdaLoss(10, 8)
x, y = torch.randn(32, 8), torch.randint(10, (32,))
optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
start = head.loss(x, y)
for _ in range(20):
    optimizer.zero_grad()
    loss = head.loss(x, y)
    loss.backward()
    optimizer.step()
assert loss < start
"""


def test_the_file_of_losses_works_alone(tmp_path):
    shutil.copy(PROJECT / "lib" / "losses.py", tmp_path)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, env=environment, check=True)
