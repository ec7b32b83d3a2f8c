import math
import warnings

import pytest
import pytorch_metric_learning.losses as pml
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from lib import ablation, losses

HEADS = [*losses.heads(), *ablation.HEADS]
ANGULAR = [name for name in HEADS if name != "Softmax"]
RELATIVE = ["AdaLoss", "AngleAdaLoss", "ErrorAdaLoss"]  # their margins start from m_min
WITHOUT_MARGIN = ["NormFace", "AdaCos", "Triplet"]  # on a logit
WITH_MARGIN = [name for name in ANGULAR if name not in WITHOUT_MARGIN]
STATISTICS = {
    "CurricularFace": ["t"], "AdaFace": ["mu", "sigma", "started"], "AdaLoss": ["d"],
    "AdaCos": ["s"], "KappaFace": ["z", "n"], "LDAM": ["n"],
    "AngleAdaLoss": ["d"], "ErrorAdaLoss": ["d"], "AbsoluteAdaLoss": ["d"], "GlobalAdaLoss": ["d"],
    "ScheduledMargin": ["step"],
}  # fmt: skip
FIXED = {"RandomMargin": ["z"]}  # buffers that never move
PARAMETERS = {"Softmax": {"b": (7,)}, "SubCenterArcFace": {"V": (2, 7, 3)}}  # besides W, for seven classes
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def at(*degrees, dtype=torch.float32):
    """Unit vectors (len(degrees), 2) at these angles."""
    radians = torch.tensor([math.radians(a) for a in degrees], dtype=torch.float64)
    return torch.stack([radians.cos(), radians.sin()], dim=1).to(dtype)


def cos(degrees):
    return math.cos(math.radians(degrees))


def make(name, W, **constants):
    """An evaluating head with these centres W (C, d)."""
    head = losses.make(name, *W.shape, **constants).to(W.dtype).eval()
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
    statistics = {"t": 0.25, "mu": 1.5, "sigma": 0.499, "d": torch.tensor([0.4, 0.1, 0.1])}
    for name, buffer in head.named_buffers():
        buffer.copy_(torch.as_tensor(statistics.get(name, True)))
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
    head = plane("AdaLoss", 0, 90, 180, m=0.3, gamma=gamma, m_min=0, m_max=9)
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
    assert all(v.isfinite().all() for v in head.state_dict().values())


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

LARGE = {
    "SphereFace": {"m1": 3}, "CosFace": {"m": 2}, "ArcFace": {"m": 1.5}, "CombinedMargin": {"m1": 2, "m2": 1, "m3": 1},
    "CurricularFace": {"m": 1}, "AdaFace": {"m": 1}, "AdaLoss": {"m": 0.6}, "ElasticFace": {"m": 1, "plus": True},
    "MagFace": {"l_m": 1, "u_m": 2, "l_a": 1}, "KappaFace": {"m0": 1.5}, "LDAM": {"m": 1},
    "SubCenterArcFace": {"m": 1}, "AngleAdaLoss": {"m": 0.6}, "ErrorAdaLoss": {"m": 0.6},
    "AbsoluteAdaLoss": {}, "GlobalAdaLoss": {}, "ScheduledMargin": {"m": 1}, "RandomMargin": {"m": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", WITH_MARGIN)
def test_no_margin_without_label(name):
    head, x, y = batch(name, **LARGE[name])
    plain = make("NormFace", head.W.data)(x) if name != "SubCenterArcFace" else head(x)
    for _ in range(2):  # training mode and earlier labels change nothing
        assert torch.equal(head(x), plain)
        assert (head(x, y) != plain).any()
        head.train()


@pytest.mark.parametrize("name", WITH_MARGIN)
def test_margin_only_on_the_target(name):
    head, x, y = batch(name, **LARGE[name])
    changed = head(x, y) != head(x)
    on_target = F.one_hot(y, 5).bool()
    assert changed[on_target].all() and (head(x, y) <= head(x))[on_target].all()
    if name != "CurricularFace":
        assert not changed[~on_target].any()


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_move_in_training_mode_only(name):
    head, x, y = batch(name)
    start = {k: v.clone() for k, v in head.named_buffers()}
    assert list(start) == STATISTICS[name]
    head(x, y), head(x), head.train()(x)
    assert all(torch.equal(v, start[k]) for k, v in head.named_buffers())
    head(x, y)
    assert all(not torch.equal(v, start[k]) for k, v in head.named_buffers())


@pytest.mark.parametrize("name", [name for name in WITH_MARGIN if name not in RELATIVE])
def test_warmup_grows_the_margin_from_zero(name):
    head, x, y = batch(name, **LARGE[name])
    targets = []
    for head.w in (0.0, 0.3, 0.6, 1.0):
        targets.append(head(x, y).gather(1, y[:, None]))
    torch.testing.assert_close(targets[0], head(x).gather(1, y[:, None]))
    assert (torch.cat(targets, 1).diff(dim=1) <= 1e-9).all()


def test_adaloss_warmup_starts_from_m_min():
    head = plane("AdaLoss", 0, 90, m=0.4, m_min=0.1)
    margins = []
    for head.w in (0.0, 0.5, 1.0):
        margins.append(head.margins[0].item())
    assert margins == pytest.approx([0.1, 0.2, 0.4])


# ---------------------------------------------------------------- properties

fractions = st.floats(0, 1, width=32)


@st.composite
def heads(draw, names=tuple(HEADS)):
    """A head name with constants from zero to far beyond the papers'."""
    name = draw(st.sampled_from(names))
    ranges = {
        "m": 1.5, "m1": 4, "m2": 1.5, "m3": 1, "h": 2, "gamma": 2, "m_min": 0.1, "m_max": 1.5,
        "sigma": 1, "l_m": 1, "u_m": 1.5, "lambda_g": 40, "m0": 1.5, "T": 2, "m_end": 1.5,
        "spread": 0.5,
    }  # fmt: skip
    keys = {
        "SphereFace": ["m1"], "CombinedMargin": ["m1", "m2", "m3"], "AdaFace": ["m", "h"], "NormFace": [],
        "AdaLoss": ["m", "gamma", "m_min"], "Softmax": [], "ElasticFace": ["m", "sigma"], "AdaCos": [],
        "MagFace": ["l_m", "u_m", "lambda_g"], "KappaFace": ["m0", "T"],
        "AngleAdaLoss": ["m", "gamma"], "ErrorAdaLoss": ["m", "gamma"], "AbsoluteAdaLoss": ["m_min"],
        "GlobalAdaLoss": ["m_min"], "ScheduledMargin": ["m", "m_end"], "RandomMargin": ["m", "spread"],
    }.get(name, ["m"])  # fmt: skip
    constants = {key: ranges[key] * draw(fractions) for key in keys}
    if name not in ("Softmax", "AdaCos"):
        constants["s"] = draw(st.sampled_from([1.0, 16.0, 64.0, "auto"]))
    return name, constants


def finite(logits, x, head, y):
    (F.cross_entropy(logits, y) + head.regulariser(x)).backward()
    return all(t.isfinite().all() for t in (logits, x.grad, head.W.grad))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(case=heads(), seed=st.integers(0, 999), size=st.sampled_from([1e-3, 1.0, 50.0]), training=st.booleans())
def test_random_inputs_give_finite_value_and_gradient(dtype, case, seed, size, training):
    head, x, y = batch(case[0], seed=seed, dtype=torch.float32, **case[1])
    x = (size * x.detach()).to(dtype).requires_grad_()
    assert finite(head.train(training)(x, y), x, head, y)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@given(case=heads(), d=st.sampled_from([2, 3, 64]), seed=st.integers(0, 999), axes=st.booleans())
def test_finite_at_angle_zero_and_pi(dtype, case, d, seed, axes):
    W = torch.randn(5, d, generator=torch.Generator().manual_seed(seed))
    if axes:  # cosines of exactly 1 and -1, where the others are within rounding of it
        W = torch.eye(d)[torch.arange(5) % d]
    W = W.to(torch.promote_types(dtype, torch.float32))
    head, y = make(case[0], W, **case[1]), torch.arange(5).repeat(2)
    x = torch.cat([W, -W]).to(dtype).requires_grad_()
    assert finite(head(x, y), x, head, y)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_does_not_touch_the_margin(name, dtype):
    head, x, y = batch(name, dtype=torch.float32)
    expected = gradients(head, x, y)
    half = x.detach().to(dtype)
    with torch.autocast("cpu", dtype):
        loss = F.cross_entropy(head(x, y), y)
        from_half = head(half, y)
    actual = loss, *torch.autograd.grad(loss, [x, head.W])
    torch.testing.assert_close(actual, expected, atol=0, rtol=0)
    assert from_half.dtype == torch.float32
    assert torch.equal(from_half, head(half.float(), y))


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_half_precision_head_computes_in_fp32(name, dtype):
    head, x, y = batch(name, dtype=dtype)
    twin = losses.make(name, 5, 4).eval()
    twin.load_state_dict(head.state_dict())
    assert head(x, y).dtype == torch.float32
    torch.testing.assert_close(head(x, y), twin(x.float(), y))


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.bfloat16, torch.float32)], ids=str)
def test_embeddings_may_be_more_precise_than_the_head(name, dtypes):
    head, x, y = batch(name, dtype=dtypes[0])
    assert head.train()(x.to(dtypes[1]), y).dtype == dtypes[1]


@given(case=heads(tuple(ANGULAR)), w=fractions, statistic=fractions, dtype=st.sampled_from([*DTYPES, torch.float64]))
def test_target_logit_never_rises_with_the_angle(case, w, statistic, dtype):
    head = plane(case[0], 0, 90, 200, **case[1])
    head.w = w
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
@pytest.mark.parametrize("seed", range(3))
def test_gradcheck(name, seed):
    head, x, y = batch(name, B=8, seed=seed)

    def logits(x, W):  # AdaFace reads the length of x without gradient, so it is held at 2
        return torch.func.functional_call(head, {"W": W}, (2 * F.normalize(x), y))

    assert torch.autograd.gradcheck(logits, (x, head.W.detach().requires_grad_()))


@pytest.mark.parametrize("name", [name for name in ANGULAR if name not in ("MagFace", "SubCenterArcFace")])
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
@pytest.mark.parametrize("name", ANGULAR)
def test_heads_punish_the_collapse(name, s, m):
    constants = {
        "NormFace": {}, "SphereFace": {}, "CombinedMargin": {}, "MagFace": {"l_m": m, "u_m": m},
        "KappaFace": {"m0": 2 * m, "gamma": 1}, "AbsoluteAdaLoss": {"m_max": m}, "GlobalAdaLoss": {"m_max": m},
        "RandomMargin": {"m": m, "spread": 0},
    }.get(name, {"m": m})  # fmt: skip
    loss = collapsed(plane(name, *[0] * 10, **({"s": s, **constants} if name != "AdaCos" else {})))
    if name in WITHOUT_MARGIN:
        assert loss == pytest.approx(math.log(10), rel=1e-5)
    else:
        assert loss > math.log(10) + 1
    if name in ("ArcFace", "AdaLoss", "ElasticFace", "MagFace", "KappaFace", "SubCenterArcFace", *ablation.HEADS):
        assert loss == pytest.approx(math.log(1 + 9 * math.exp(s * (1 - math.cos(m)))), rel=1e-4)


# ---------------------------------------------------------------- module and constants


@pytest.mark.parametrize("name", HEADS)
def test_state_dict_round_trip(name):
    head, x, y = batch(name, dtype=torch.float32)
    head.train()(3 * x, y)
    twin = losses.make(name, 5, 4)
    twin.load_state_dict(head.state_dict())
    assert set(head.state_dict()) == {"W", *PARAMETERS.get(name, {}), *(STATISTICS | FIXED).get(name, [])}
    for h in (head, twin):  # one more step, so that "started" counts too
        h.train()(x, y)
    assert torch.equal(head.eval()(x, y), twin.eval()(x, y))


@pytest.mark.parametrize("name", HEADS)
def test_centres_and_bias_are_parameters(name):
    head = losses.make(name, 7, 3)
    shapes = {k: tuple(p.shape) for k, p in head.named_parameters()}
    assert shapes == {"W": (7, 3)} | PARAMETERS.get(name, {})
    assert all(p.requires_grad for p in head.parameters())


@pytest.mark.parametrize("name", HEADS)
def test_one_seed_gives_every_head_the_same_centres(name):
    centres = []
    for head in (name, "ArcFace"):
        torch.manual_seed(1)
        centres.append(losses.make(head, 7, 3).W)
    assert torch.equal(*centres)


def test_constants_are_attributes():
    head = losses.AdaLoss(10, 8, s=20, m=0.4, gamma=1, m_min=0.1, m_max=0.5)
    assert (head.s, head.m, head.gamma, head.m_min, head.m_max) == (20, 0.4, 1, 0.1, 0.5)
    assert str(losses.ArcFace(10, 8, m=0.4)) == "ArcFace(10, 8, s=16, m=0.4)"


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
    "label too large": (X, Y + 3, r"labels must lie in \[0, 5\), got 3 to 5: .*num_classes"),
    "negative label": (X, Y - 1, r"labels must lie in \[0, 5\), got -1 to 1: .*num_classes"),
    "embedding of length zero": (X * torch.tensor([[1.0], [0], [1]]), Y, "length zero.*: remove the ReLU"),
}


@pytest.mark.parametrize("name", ["ArcFace", "Softmax"])
@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls_are_refused(case, name):
    x, y, message = BAD_CALLS[case]
    head = losses.make(name, 5, 4)
    if (name, case) == ("Softmax", "embedding of length zero"):
        assert head(x, y).isfinite().all()  # it has no angle, and needs none
        return
    with pytest.raises(ValueError, match=message) as error:
        head(x, y)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", STATISTICS)
def test_a_refused_batch_leaves_statistics_alone(name):
    head = losses.make(name, 5, 4)
    start = {k: v.clone() for k, v in head.state_dict().items()}
    for case in BAD_CALLS.values():
        with pytest.raises(ValueError):
            head(case[0], case[1])
    assert all(torch.equal(v, start[k]) for k, v in head.state_dict().items())


BAD_CONSTANTS = [
    ("ArcFace", {"s": 0}, "scale s must be positive, got 0"),
    ("ArcFace", {"s": -1}, "s must be a number >= 0, got -1"),
    ("ArcFace", {"s": "large"}, "s must be a number >= 0, got 'large'"),
    ("ArcFace", {"m": math.nan}, "m must be a number >= 0, got nan"),
    ("ArcFace", {"m": math.inf}, "m must be a number >= 0, got inf"),
    ("CosFace", {"m": -0.1}, "CosFace: m must be a number >= 0, got -0.1"),
    ("SphereFace", {"m1": None}, "m1 must be a number >= 0, got None"),
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
        losses.make(name, 10, 8, **constants)
    assert "\n" not in str(error.value)
