import math

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from sklearn.neighbors import NearestNeighbors
from torch.nn import functional as F

from lib import metrics
from studies import runs


@pytest.fixture
def scores():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 4, generator=g)
    return logits, torch.multinomial((2 * logits).softmax(1), 1, generator=g).squeeze(1)


def test_accuracy_by_hand():
    logits = torch.tensor([[2.0, 1], [0, 3], [5, 4], [1, 2]])
    assert metrics.accuracy(logits, torch.tensor([0, 1, 1, 0])) == 0.5


def test_cross_entropy_by_hand():
    logits, y = torch.tensor([[2.0, 0.0], [0.0, 4.0]]), torch.tensor([0, 0])
    expected = [(math.log(1 + math.exp(-2 / t)) + math.log(1 + math.exp(4 / t))) / 2 for t in (1, 2)]
    assert [metrics.cross_entropy(logits, y, t) for t in (1, 2)] == pytest.approx(expected)


def test_temperature_recovers_the_true_scale(scores):
    logits, y = scores  # drawn from softmax(2 logits)
    assert metrics.temperature(logits, y) == pytest.approx(0.5, rel=0.15)
    assert metrics.temperature(10 * logits, y) == pytest.approx(10 * metrics.temperature(logits, y), rel=5e-3)


def test_temperature_is_the_best_of_a_grid(scores):
    best = metrics.cross_entropy(*scores, metrics.temperature(*scores))
    assert best <= min(metrics.cross_entropy(*scores, t) for t in np.geomspace(0.1, 10, 60)) + 1e-6


UNDEFINED = {  # logits and labels for which no temperature is best
    "all right": (5 * torch.eye(3), torch.arange(3)),
    "all right, and hardly": (torch.eye(3) / 1000, torch.arange(3)),
    "nothing said": (torch.ones(6, 3), torch.arange(6) % 3),
    "worse than nothing": (-torch.eye(3), torch.arange(3)),
    "not a number": (torch.eye(3) * torch.nan, torch.arange(3)),
}


@pytest.mark.parametrize("case", UNDEFINED)
def test_a_temperature_at_an_end_of_its_search_is_none(case):
    logits, y = UNDEFINED[case]
    assert math.isnan(metrics.temperature(logits, y))
    found = runs.evaluate(logits, y, torch.randn(len(y), 4), logits, y)
    assert [math.isnan(found[name]) for name in ("temperature", "test_loss", "ece")] == [True] * 3
    assert "error" not in found  # that is no failure
    assert metrics.least_cross_entropy(logits, y) <= math.log(3) + 1e-2 or case == "not a number"


def test_the_least_cross_entropy_is_that_of_the_best_temperature(scores):
    assert metrics.least_cross_entropy(*scores) == metrics.cross_entropy(*scores, metrics.temperature(*scores))


def test_rows_that_are_not_numbers_are_wrong():
    logits = torch.tensor([[torch.nan, 1.0], [1.0, torch.nan], [2.0, 1.0], [torch.nan, torch.nan]])
    assert metrics.accuracy(logits, torch.tensor([0, 1, 0, 0])) == 0.25
    assert math.isnan(metrics.calibration_error(logits, torch.tensor([0, 1, 0, 0])))
    assert math.isnan(metrics.accuracy(logits[:0], torch.tensor([], dtype=torch.int64)))


def test_a_class_alone_is_not_asked_for():
    x = torch.tensor([[1.0, 0], [1, 0.1], [0, 1]])
    assert metrics.recall_at_1(x, torch.tensor([0, 0, 1])) == 1
    assert metrics.recall_at_1(x, torch.tensor([0, 1, 0])) == 0
    for y in ([0, 1, 2], [5, 1, 3]):
        assert math.isnan(metrics.recall_at_1(x, torch.tensor(y)))
    assert math.isnan(metrics.recall_at_1(x[:1], torch.tensor([0])))
    assert math.isnan(metrics.recall_at_1(x[:0], torch.tensor([], dtype=torch.int64)))
    assert math.isnan(metrics.recall_at_1(x * torch.nan, torch.tensor([0, 0, 1])))


def test_angles_count_only_what_there_is():
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(8) // 4
    usual = metrics.angles(x, y)
    assert metrics.angles(x, 2 * y) == usual == metrics.angles(x, 3 - y)  # absent classes are none
    one = metrics.angles(x, 0 * y)
    assert one["intra_angle"] > 0 and [math.isnan(one[k]) for k in one] == [False, True, True, True]
    alone = metrics.angles(x[:3], torch.arange(3))
    assert [math.isnan(alone[k]) for k in alone] == [True, False, False, True]
    mixed = metrics.angles(x[:5], y[:5])  # the second class has one
    assert mixed["intra_angle"] == metrics.angles(x[:4], y[:4])["intra_angle"] and mixed["inter_angle"] > 0
    assert all(map(math.isnan, metrics.angles(x[:0], y[:0]).values()))
    assert all(map(math.isnan, metrics.angles(x * torch.nan, y).values()))


def logits_of(*confidences):
    return torch.tensor([[math.log(p), math.log(1 - p)] for p in confidences], dtype=torch.float64)


def test_calibration_error_by_hand():
    # five bins: [0.6, 0.8) holds 0.7 right, 0.75 wrong; [0.8, 1] holds 0.9 right and 1 - 1e-9 right
    logits, y = logits_of(0.7, 0.75, 0.9, 1 - 1e-9), torch.tensor([0, 1, 0, 0])
    expected = abs(0.7 + 0.75 - 1) / 4 + abs(0.9 + 1 - 2) / 4
    assert metrics.calibration_error(logits, y, bins=5) == pytest.approx(expected, abs=1e-6)


def test_calibration_error_at_its_ends():
    assert metrics.calibration_error(logits_of(0.75, 0.75, 0.75, 0.75), torch.tensor([0, 0, 0, 1])) < 1e-9
    certain = torch.tensor([[100.0, 0.0]])
    assert metrics.calibration_error(certain, torch.tensor([0])) == 0
    assert metrics.calibration_error(certain, torch.tensor([1])) == 1


def test_angles_of_a_constructed_geometry():
    # class 0 at 0 +- 10 degrees, class 1 at 60 +- 20, class 2 at 180 +- 0; lengths must not matter
    degrees = torch.tensor([-10.0, 10, 40, 80, 180, 180], dtype=torch.float64)
    radians, lengths = degrees.deg2rad(), torch.tensor([1.0, 1, 2, 2, 5, 0.1])
    x = lengths[:, None] * torch.stack([radians.cos(), radians.sin()], 1)
    result = metrics.angles(x, torch.tensor([0, 0, 1, 1, 2, 2]))
    assert result["intra_angle"] == pytest.approx((10 + 20 + 0) / 3, abs=1e-4)
    assert result["inter_angle"] == pytest.approx((60 + 60 + 120) / 3, abs=1e-4)
    assert result["smallest_angle"] == pytest.approx(60, abs=1e-4)
    assert result["angle_ratio"] == pytest.approx(10 / 80, abs=1e-6)


@pytest.mark.parametrize("chunk", [2, 4, 1000])
def test_recall_at_1_by_hand(chunk):
    # the nearest by angle: 0 and 10 find each other, 30 finds 10, 32 finds 30, 90 finds 32; lengths must not matter
    radians = torch.tensor([0.0, 10, 30, 32, 90]).deg2rad()
    x = torch.tensor([1.0, 9, 2, 5, 1])[:, None] * torch.stack([radians.cos(), radians.sin()], 1)
    assert metrics.recall_at_1(x, torch.tensor([0, 0, 0, 1, 1]), chunk) == pytest.approx(3 / 5)


def test_recall_at_1_against_sklearn():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(120, 6, generator=g), torch.randint(3, (120,), generator=g)
    index = NearestNeighbors(n_neighbors=2, metric="cosine").fit(x.numpy()).kneighbors(x.numpy())[1][:, 1]
    assert metrics.recall_at_1(x, y, chunk=50) == pytest.approx((y[index] == y).float().mean().item())


def test_evaluate_against_sklearn(scores):
    logits, y = scores
    logits, val_logits, y, val_y = logits[:300], logits[300:], y[:300], y[300:]
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(1))
    result, predicted = runs.evaluate(logits, y, x, val_logits, val_y), logits.argmax(1)
    assert result["test_accuracy"] == pytest.approx(reference.accuracy_score(y, predicted))
    assert result["val_accuracy"] == pytest.approx(reference.accuracy_score(val_y, val_logits.argmax(1)))
    for name in ("precision", "recall", "f1"):
        score = getattr(reference, f"{name}_score")
        assert result[name] == pytest.approx(score(y, predicted, average="macro"))
    t = metrics.temperature(val_logits, val_y)  # nothing is fitted on test data
    assert result["temperature"] == t != metrics.temperature(logits, y)
    assert result["test_loss"] == pytest.approx(reference.log_loss(y, (logits.double() / t).softmax(1)))
    assert result["ece"] == metrics.calibration_error(logits / t, y)
    assert result.items() >= metrics.angles(x, y).items()
    assert result["recall_at_1"] == metrics.recall_at_1(x, y)


def test_confusion_rows_are_true_classes():
    logits = F.one_hot(torch.tensor([0, 1, 1, 1]), 4).float()  # class 3 never occurs
    y = torch.tensor([0, 0, 1, 2])
    result = runs.evaluate(logits, y, torch.randn(4, 2), logits, y)
    assert result["confusion"] == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
