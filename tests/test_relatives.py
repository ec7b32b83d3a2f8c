"""The heads of lib.heads.relatives by hand; what holds for every head is in test_losses."""

import math

import numpy as np
import pytest
import pytorch_metric_learning.losses as pml
import torch
from scipy import stats
from test_losses import at, batch, cos, gradients, make, plane
from torch.nn import functional as F

from lib import heads, losses
from lib.heads import relatives, variants

LABEL = torch.tensor([0])


def margins_of(head, theta):
    """The angular margins (B,) that the head puts on embeddings at angles theta (B,) to centre 0."""
    x = torch.stack([theta.cos(), theta.sin()], dim=1)
    logits = head(x, torch.zeros(len(x), dtype=torch.int64))[:, 0]
    return (logits / head.s).acos() - theta


# ---------------------------------------------------------------- the nine and the six


def test_all_heads_by_name():
    assert heads.NINE == (
        "Softmax", "NormFace", "SphereFace", "CosFace", "ArcFace", "CombinedMargin", "CurricularFace", "AdaFace",
        "AdaLoss",
    )  # fmt: skip
    assert tuple(heads.heads())[:9] == heads.NINE
    assert set(heads.heads()) == {*losses.HEADS, *relatives.HEADS, "Triplet"}
    assert not set(heads.heads()) & set(variants.HEADS)
    for name, head in {**heads.heads(), **variants.HEADS}.items():
        assert heads.find(name) is head and type(heads.make(name, 10, 8)) is head


# ---------------------------------------------------------------- ElasticFace


def elastic(**constants):
    head = plane("ElasticFace", 0, 90, **constants).double().train()
    torch.manual_seed(0)
    return head, torch.linspace(0.1, 1.5, 3000, dtype=torch.float64)


@pytest.mark.parametrize("plus", [False, True])
def test_elastic_margins_are_normal(plus):
    head, theta = elastic(m=0.4, sigma=0.07, plus=plus)
    margins = margins_of(head, theta)
    assert stats.kstest(margins.detach(), "norm", args=(0.4, 0.07)).pvalue > 0.1
    assert abs(np.corrcoef(theta, margins.detach())[0, 1]) < 0.05 or plus


def test_elastic_plus_gives_the_largest_margin_to_the_furthest():
    (head, theta), (plus, _) = elastic(), elastic(plus=True)
    theta = theta[torch.randperm(len(theta))]
    torch.manual_seed(1)
    drawn = margins_of(head, theta)
    torch.manual_seed(1)
    given = margins_of(plus, theta)
    torch.testing.assert_close(given[theta.argsort()], drawn.sort().values)


def test_elastic_draws_repeat_with_the_seed_and_stop_in_evaluation():
    (head, theta), (again, _) = elastic(), elastic()
    torch.manual_seed(0)
    first = margins_of(head, theta)
    assert not torch.equal(first, margins_of(head, theta))
    torch.manual_seed(0)
    assert torch.equal(first, margins_of(again, theta))
    state = torch.get_rng_state()
    torch.testing.assert_close(margins_of(head.eval(), theta), torch.full_like(theta, 0.3))
    assert torch.equal(state, torch.get_rng_state())  # an evaluation does not shift the draws


def test_elastic_margin_is_never_negative_and_warms_up():
    head, theta = elastic(m=0.1, sigma=0.3)
    full = margins_of(head, theta)
    assert full.min() > -1e-6 and (full < 1e-6).float().mean().item() == pytest.approx(
        stats.norm.cdf(0, 0.1, 0.3), abs=0.03
    )
    head.margin_scale = 0.5
    torch.manual_seed(0)
    torch.testing.assert_close(margins_of(head, theta), full / 2)


@pytest.mark.parametrize("plus", [False, True])
def test_elastic_gradcheck_while_it_draws(plus):
    head, x, y = batch("ElasticFace", B=8, plus=plus)

    def logits(x, W):
        torch.manual_seed(0)
        return torch.func.functional_call(head.train(), {"W": W}, (x, y))

    assert torch.autograd.gradcheck(logits, (x, head.W.detach().requires_grad_()))


# ---------------------------------------------------------------- MagFace

MAG = {"l_a": 5, "u_a": 15, "l_m": math.pi / 18, "u_m": math.pi / 6, "lambda_g": 7, "s": 10}  # 10 to 30 degrees


@pytest.mark.parametrize("length, margin", [(1, 10), (5, 10), (10, 20), (12.5, 25), (15, 30), (40, 30)])
def test_magface_by_hand(length, margin):
    logits = plane("MagFace", 0, 90, 180, **MAG)(length * at(40), LABEL)
    expected = [10 * c for c in (cos(40 + margin), cos(50), cos(140))]
    assert logits[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_magface_regulariser_by_hand():
    x = torch.tensor([[3.0, 4.0], [0.0, 10.0], [0.3, 0.4], [30.0, 0.0]])  # lengths 5, 10, 0.5 -> 5, 30 -> 15
    a = np.array([5, 10, 5, 15])
    head = heads.make("MagFace", 3, 2, **MAG)
    assert head.regulariser(x).item() == pytest.approx(7 * np.mean(1 / a + a / 225))
    assert head.regulariser(x.bfloat16()).dtype == torch.float32
    y = torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(head.loss(x, y), F.cross_entropy(head(x, y), y) + head.regulariser(x))


def test_magface_gradient_through_the_length():
    head, x, y = batch("MagFace", B=8, **MAG)
    x = (torch.linspace(6, 14, 8)[:, None] * F.normalize(x)).detach().requires_grad_()  # away from the clips

    def loss(x, W):
        logits = torch.func.functional_call(head, {"W": W}, (x, y))
        return F.cross_entropy(logits, y) + head.regulariser(x)

    W = head.W.detach().requires_grad_()
    assert torch.autograd.gradcheck(loss, (x, W))
    (grad,) = torch.autograd.grad(loss(x, W), x)
    assert (x * grad).sum(1).abs().min() > 1e-4  # it moves every length


def test_magface_default_lambda_lets_every_sample_leave_the_shortest_length():
    head = plane("MagFace", *range(0, 360, 36)).double()
    theta = torch.linspace(0, math.pi, 100, dtype=torch.float64)
    length = torch.full((100, 1), head.l_a + 1e-6, dtype=torch.float64, requires_grad=True)
    x = length * torch.stack([theta.cos(), theta.sin()], dim=1)
    y = torch.zeros(100, dtype=torch.int64)
    (F.cross_entropy(head(x, y), y, reduction="sum") + 100 * head.regulariser(x)).backward()
    assert (length.grad < 0).all()
    bound = head.s * (head.u_m - head.l_m) / (head.u_a - head.l_a) / (1 / head.l_a**2 - 1 / head.u_a**2)
    assert bound < head.lambda_g < 1.2 * bound
    faces = 64 * (0.8 - 0.45) / (110 - 10) / (1 / 10**2 - 1 / 110**2)
    assert 22 < faces < 35  # the same rule holds for the published constants


# ---------------------------------------------------------------- AdaCos


def test_adacos_scale_by_hand():
    head, x, y = batch("AdaCos", C=6, d=4, B=9, seed=1)
    unit, W = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x.detach().numpy(), head.W.detach().numpy()))
    cosines, rows = unit @ W.T, np.arange(9)
    s = math.sqrt(2) * math.log(5)
    assert head.s.item() == pytest.approx(s)
    head.train()
    for _ in range(3):
        B_avg = (np.exp(s * cosines).sum(1) - np.exp(s * cosines[rows, y])).mean()
        theta_med = np.median(np.arccos(cosines[rows, y]))
        s = math.log(B_avg) / math.cos(min(math.pi / 4, theta_med))
        logits = head(x, y)
        assert head.s.item() == pytest.approx(s)
        np.testing.assert_allclose(logits.detach(), s * cosines, atol=1e-6)
    assert torch.equal(head(x), logits)  # label-free with the same scale


def test_adacos_uses_a_median_below_45_degrees():
    head = plane("AdaCos", 0, 90, 180).train()
    head(at(10, 20, 70), torch.tensor([0, 0, 0]))
    s = math.sqrt(2) * math.log(2)  # below 1, so 1
    B_avg = sum(math.exp(cos(90 - a)) + math.exp(cos(180 - a)) for a in (10, 20, 70)) / 3
    assert s < 1 and head.s.item() == pytest.approx(max(1, math.log(B_avg) / cos(20)))


@pytest.mark.parametrize("C", [2, 3])
def test_adacos_scale_stays_positive(C):
    head = plane("AdaCos", *[0] * C).train()
    for _ in range(5):
        assert head(-at(*[0] * C), torch.arange(C)).isfinite().all() and head.s == 1


# ---------------------------------------------------------------- KappaFace


def test_kappaface_by_hand():
    head = plane("KappaFace", 0, 90, 180, m0=0.8, T=0.4, gamma=0.7)
    r, n = np.array([0.6, 0.8, 0.9]), np.array([10, 40, 20])
    head.z.copy_(torch.tensor(r)[:, None] * at(30, 100, 200).double())
    head.n.copy_(torch.tensor(n))
    kappa = r * (2 - r**2) / (1 - r**2)
    w_k = 1 / (1 + np.exp(0.4 * (kappa - kappa.mean()) / kappa.std()))
    psi = 0.7 * w_k + 0.3 * (np.cos(np.pi * n / 40) + 1) / 2
    assert head.kappa.tolist() == pytest.approx(kappa)
    assert head.margins.tolist() == pytest.approx(0.8 * psi)
    logits = head(2 * at(100, 50), torch.tensor([1, 0]))
    expected = [math.cos(math.radians(a) + 0.8 * p) for a, p in ((10, psi[1]), (50, psi[0]))]
    assert (logits[[0, 1], [1, 0]] / 16).tolist() == pytest.approx(expected, abs=1e-5)


def test_kappaface_memory_by_hand():
    head = plane("KappaFace", 0, 90, 180).train()
    head(3 * at(0, 60, 90), torch.tensor([0, 0, 1]))  # the first images of a class set its mean
    first = (at(0) + at(60)) / 2
    torch.testing.assert_close(head.z, torch.cat([first, at(90), 0 * at(0)]))
    head(at(120, 180, 200), torch.tensor([0, 2, 2]))  # then 2 % a step; class 1 is absent
    torch.testing.assert_close(
        head.z, torch.cat([0.98 * first + 0.02 * at(120), at(90), (at(180) + at(200)) / 2]), atol=1e-6, rtol=0
    )
    assert head.n.tolist() == [3, 1, 2]


def test_kappaface_estimates_the_concentration():
    head, direction = heads.make("KappaFace", 3, 8).train(), np.eye(8)[0]
    for c, kappa in enumerate((5, 20, 80)):
        x = stats.vonmises_fisher(direction, kappa, seed=c).rvs(5000)
        head(2 * torch.from_numpy(x).float(), torch.full((5000,), c))
        assert head.kappa[c].item() == pytest.approx(stats.vonmises_fisher.fit(x)[1], rel=0.03)
    assert head.margins.diff().max() < 0  # the spread class gets the largest margin


def test_kappaface_starts_even_and_favours_rare_classes():
    head = plane("KappaFace", 0, 90, 180)
    assert head.margins.tolist() == pytest.approx([0.8 * 0.7 * 0.5] * 3)
    head.z.copy_(0.5 * at(0, 90, 180))
    head.z[0] *= 1 + 1e-6  # rounding is no difference between classes
    head.n.copy_(torch.tensor([100, 10, 50]))
    margins = head.margins
    assert margins[1] > margins[2] > margins[0] and margins[0].item() == pytest.approx(0.28, abs=1e-3)


# ---------------------------------------------------------------- LDAM


def test_ldam_by_hand():
    head = plane("LDAM", 0, 90, 180, m=0.4, s=10).train()
    y = torch.tensor([0] * 16 + [1] * 1)
    head(at(*[20] * 17), y)
    assert head.n.tolist() == [16, 1, 0]
    assert head.margins.tolist() == pytest.approx([0.4 / 2, 0.4, 0.4])  # 16^(1/4) = 2; unseen counts as 1
    logits = head.eval()(at(30), LABEL)
    assert logits[0].tolist() == pytest.approx([10 * c for c in (cos(30) - 0.2, cos(60), cos(150))], abs=1e-5)


def test_ldam_like_the_published_normalisation():
    counts = np.array([5000, 500, 50])
    published = 1 / np.sqrt(np.sqrt(counts))
    published *= 0.5 / published.max()
    head = heads.make("LDAM", 3, 8)
    head.n.copy_(torch.tensor(7 * counts))  # seven epochs
    assert head.margins.tolist() == pytest.approx(published)


def test_ldam_margins_are_as_precise_as_the_head():
    head = heads.make("LDAM", 3, 4).double()
    head.n.copy_(torch.tensor([7, 1000, 3]))
    expected = [0.5 * (3 / n) ** 0.25 for n in (7, 1000, 3)]
    assert head.margins.tolist() == pytest.approx(expected, abs=1e-15)


def test_ldam_is_cosface_for_equal_classes():
    head, x, y = batch("LDAM", m=0.3)
    head.n.fill_(20)
    twin = make("CosFace", head.W.data, m=0.3)
    torch.testing.assert_close(gradients(head, x, y), gradients(twin, x, y))


# ---------------------------------------------------------------- SubCenterArcFace


def sub_centres(K=3, C=5, d=4, seed=0, **constants):
    head, x, y = batch("SubCenterArcFace", C, d, B=60, seed=seed, K=K, **constants)
    g = torch.Generator().manual_seed(seed + 100)
    head.V.data = torch.randn(K - 1, C, d, generator=g, dtype=torch.float64)
    return head, x, y


def test_sub_centres_by_hand():
    head = plane("SubCenterArcFace", 0, 90, K=2, m=math.pi / 18, s=10)
    head.V.data = at(60, 200)[None]
    x, y = 3 * at(50, 10), torch.tensor([0, 1])
    # 50 degrees: 10 to class 0's second centre, 40 to class 1's first; 10 degrees: 10 and 80
    torch.testing.assert_close(head(x), 10 * torch.tensor([[cos(10), cos(40)], [cos(10), cos(80)]]))
    torch.testing.assert_close(
        head(x, y), 10 * torch.tensor([[cos(20), cos(40)], [cos(10), cos(90)]]), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("seed", range(3))
def test_sub_centres_like_pytorch_metric_learning(seed):
    head, x, y = sub_centres(K=3, seed=seed, m=0.25, s=10)
    theta = (head(x) / 10)[torch.arange(len(x)), y].acos()
    x, y = x[theta < math.pi - 0.25], y[theta < math.pi - 0.25]
    other = pml.SubCenterArcFaceLoss(
        margin=math.degrees(0.25), scale=10, num_classes=5, embedding_size=4, sub_centers=3
    ).double()
    centres = torch.cat([head.W[None], head.V]).detach()  # (K, C, d); there (d, C K)
    other.W.data = centres.transpose(0, 1).flatten(0, 1).T.clone()
    theirs = other(x, y)
    their_x, their_W = torch.autograd.grad(theirs, [x, other.W], retain_graph=True)
    ours = F.cross_entropy(head(x, y), y)
    our_x, our_W, our_V = torch.autograd.grad(ours, [x, head.W, head.V])
    our_centres = torch.cat([our_W[None], our_V]).transpose(0, 1).flatten(0, 1).T
    torch.testing.assert_close([ours, our_x, our_centres], [theirs, their_x, their_W])


def test_only_the_nearest_sub_centre_is_pulled():
    head = plane("SubCenterArcFace", 0, 90, K=2).double()
    head.V.data = at(60, 200)[None].double()
    x = at(50, dtype=torch.float64)
    grad_W, grad_V = torch.autograd.grad(F.cross_entropy(head(x, LABEL), LABEL), [head.W, head.V])
    assert grad_W[0].norm() == 0 < grad_V[0, 0].norm()
