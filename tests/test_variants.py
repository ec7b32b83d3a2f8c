"""The variants of AdaLoss by hand; what holds for every head is in test_losses."""

import math

import numpy as np
import pytest
import torch
from test_losses import at, batch, gradients, make, plane
from test_train import build, fit

from lib import heads, losses, metrics, train
from lib.heads import variants


def same(name, other, constants, other_constants):
    """Value and gradients of two heads with the same centres, after two training batches each."""
    head, x, y = batch(name, **constants)
    twin = make(other, head.W.data, **other_constants)
    for h in (head, twin):
        for _ in range(2):
            h.train()(x, y)
    torch.testing.assert_close(gradients(head, x, y), gradients(twin, x, y))


@pytest.mark.parametrize("name", ["AdaLoss", "AngleAdaLoss", "ErrorAdaLoss"])
def test_without_gamma_it_is_arcface(name):
    same(name, "ArcFace", {"gamma": 0, "m": 0.3}, {"m": 0.3})


def test_without_memory_speed_it_is_arcface():
    same("AdaLoss", "ArcFace", {"rate": 0, "m": 0.3}, {"m": 0.3})


def test_with_equal_bounds_it_is_arcface():
    same("AdaLoss", "ArcFace", {"m_min": 0.2, "m_max": 0.2}, {"m": 0.2})
    for name in ("AbsoluteAdaLoss", "GlobalAdaLoss"):
        same(name, "ArcFace", {"m_min": 0.2, "m_max": 0.2}, {"m": 0.2})


def test_a_flat_schedule_and_even_margins_are_arcface():
    same("ScheduledMargin", "ArcFace", {"m": 0.2, "m_end": 0.2}, {"m": 0.2})
    same("RandomMargin", "ArcFace", {"m": 0.2, "spread": 0}, {"m": 0.2})


def after_one_batch(name, angles, y, **constants):
    """d of a head with centres at 0 and 90 degrees after a training batch at these angles, with rate 1."""
    head = plane(name, 0, 90, rate=1, **constants).train()
    head(2 * at(*angles), torch.tensor(y))
    return head.d.tolist()


def test_difficulty_by_hand():
    angles, y = (30, 60, 80), [0, 0, 1]  # class 0 at 30 and 60 degrees from its centre, class 1 at 10
    assert after_one_batch("AngleAdaLoss", angles, y) == pytest.approx([45 / 180, 10 / 180], abs=1e-6)
    assert after_one_batch("ErrorAdaLoss", angles, y) == [0.5, 0]  # 60 degrees is nearer to centre 1
    p = [1 / (1 + math.exp(-16 * (math.cos(math.radians(a)) - math.sin(math.radians(a))))) for a in (30, 60)]
    assert after_one_batch("AdaLoss", angles, y)[0] == pytest.approx(1 - np.mean(p), abs=1e-5)


def test_memory_by_hand():
    head = plane("AngleAdaLoss", 0, 90, 180, rate=0.25).train()
    head(at(90), torch.tensor([0]))
    assert head.d.tolist() == pytest.approx([0.75 + 0.25 * 0.5, 1, 1])  # absent classes keep theirs
    with pytest.raises(ValueError, match="AdaLoss: rate must be"):
        losses.AdaLoss(10, 8, rate=2)


def test_the_error_is_label_free():
    # 40 degrees lies nearer to centre 0, but not with a margin of 30 degrees on it
    head = plane("ErrorAdaLoss", 0, 90, m=math.pi / 6, gamma=0, rate=1).train()
    assert head(at(40), torch.tensor([0])).argmax(1) == 1 and head.d[0] == 0


def test_absolute_rule_by_hand():
    for name, expected in (("AbsoluteAdaLoss", [0.1, 0.3, 0.5]), ("GlobalAdaLoss", [0.3, 0.3, 0.3])):
        head = plane(name, 0, 90, 180, m_min=0.1, m_max=0.5)
        head.d.copy_(torch.tensor([0, 0.5, 1]))
        assert head.margins.tolist() == pytest.approx(expected)
        head.margin_scale = 0.5
        assert head.margins.tolist() == pytest.approx([m / 2 for m in expected])


def test_the_mean_of_the_relative_rule_hardly_moves():
    # which is why one global margin by the relative rule would be ArcFace
    head = plane("AdaLoss", *[0] * 10)
    for seed in range(20):
        head.d.copy_(torch.rand(10, generator=torch.Generator().manual_seed(seed)).clamp_min(0.2))
        assert head.margins.mean().item() == pytest.approx(0.3, rel=0.06)


@pytest.mark.parametrize("m, m_end", [(0, 0.6), (0.6, 0)])
def test_schedule_by_hand(m, m_end):
    head, course = plane("ScheduledMargin", 0, 90, m=m, m_end=m_end, steps=4).train(), []
    for label in ([0], [1], [0], [0], [1], [0]):
        course.append(head.margins[0].item())
        head(at(20), torch.tensor(label))
    assert course == pytest.approx([m + (m_end - m) * share for share in (0, 0.25, 0.5, 0.75, 1, 1)])
    assert np.mean([*course[:5]]) == pytest.approx(0.3)  # the fixed margin's


def test_random_margins_have_mean_and_spread():
    torch.manual_seed(3)
    head = heads.make("RandomMargin", 10, 8, m=0.3, spread=0.05)
    assert head.margins.mean().item() == pytest.approx(0.3, abs=1e-6)
    assert head.margins.std(correction=0).item() == pytest.approx(0.05, rel=1e-4)
    torch.manual_seed(4)
    other = heads.make("RandomMargin", 10, 8)
    assert not torch.equal(head.z, other.z)
    torch.manual_seed(3)
    assert torch.equal(head.z, heads.make("RandomMargin", 10, 8).z)
    assert heads.make("RandomMargin", 10, 8, m=0.1, spread=0.5).margins.min() == 0


@pytest.mark.parametrize("name", variants.HEADS)
def test_variants_learn_digits_and_show_their_margins(digits, name):
    model = build(digits, name, d=32, **({"steps": 120, "m_end": 0.3} if name == "ScheduledMargin" else {}))
    history = fit(model, digits, epochs=6, batch_size=64, lr=0.05)
    assert metrics.accuracy(train.predict(model, digits, digits.test), digits.test.labels) > 0.95
    assert np.shape(history["margins"]) == (6, 10)


def test_permuted_margins_are_adalosss_for_other_classes():
    permuted, adaloss = (heads.make(name, 7, 4, m=0.3, gamma=1.0) for name in ("PermutedAdaLoss", "AdaLoss"))
    for head in (permuted, adaloss):
        head.d.copy_(torch.linspace(0.1, 0.7, 7))
    assert permuted.margins.tolist() == [*adaloss.margins[4:].tolist(), *adaloss.margins[:4].tolist()]
    assert (permuted.margins != adaloss.margins).all()
