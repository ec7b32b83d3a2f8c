import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as reference
from torch.nn import functional as F

from lib import metrics


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


def test_temperature_of_perfect_predictions_is_finite():
    t = metrics.temperature(5 * torch.eye(3), torch.arange(3))
    assert 0 < t < 0.1


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


def test_evaluate_against_sklearn(scores):
    logits, y = scores
    logits, val_logits, y, val_y = logits[:300], logits[300:], y[:300], y[300:]
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(1))
    result, predicted = metrics.evaluate(logits, y, x, val_logits, val_y), logits.argmax(1)
    assert result["test_accuracy"] == pytest.approx(reference.accuracy_score(y, predicted))
    assert result["val_accuracy"] == pytest.approx(reference.accuracy_score(val_y, val_logits.argmax(1)))
    for name in ("precision", "recall", "f1"):
        score = getattr(reference, f"{name}_score")
        assert result[name] == pytest.approx(score(y, predicted, average="macro"))
    t = metrics.temperature(val_logits, val_y)  # nothing is fitted on test data
    assert result["temperature"] == t != metrics.temperature(logits, y)
    assert result["test_loss"] == pytest.approx(reference.log_loss(y, (logits.double() / t).softmax(1)))
    assert result["ece"] == metrics.calibration_error(logits / t, y)
    assert result["intra_angle"] == metrics.angles(x, y)["intra_angle"]


def test_confusion_rows_are_true_classes():
    logits = F.one_hot(torch.tensor([0, 1, 1, 1]), 4).float()  # class 3 never occurs
    y = torch.tensor([0, 0, 1, 2])
    result = metrics.evaluate(logits, y, torch.randn(4, 2), logits, y)
    assert result["confusion"] == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=9).filter(lambda v: np.std(v) > 1e-3))
def test_interval_against_scipy(values):
    mean, low, high = metrics.interval(values)
    expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert (mean, low, high) == pytest.approx((np.mean(values), *expected), abs=1e-9)


def test_interval_of_one_value_has_no_width():
    mean, low, high = metrics.interval([3])
    assert mean == 3 and math.isnan(low) and math.isnan(high)


def test_interval_level():
    values = [1.0, 2, 4]
    expected = stats.t.interval(0.8, 2, np.mean(values), stats.sem(values))
    assert metrics.interval(values, 0.8)[1:] == pytest.approx(expected)


def long(scores):
    rows = [{"head": h, "seed": s, "f1": v} for h, values in scores.items() for s, v in enumerate(values)]
    return pd.DataFrame(rows[::-1])  # the order of the rows must not matter


def test_differences_of_two_losses_are_a_paired_t_test():
    table = metrics.differences(long({"A": [1.0, 2, 3], "B": [1.5, 2.6, 3.4]}), "f1", "A", factor=100)
    test = stats.ttest_rel([1.5, 2.6, 3.4], [1.0, 2, 3])
    expected = (3, 100 * test.confidence_interval().low, 100 * test.confidence_interval().high)
    assert tuple(table.loc["B", ["n", "low", "high"]]) == pytest.approx(expected)
    assert table.loc["B", "mean"] == pytest.approx(50)


def test_differences_of_several_losses_are_a_randomised_block_design():
    scores = np.array([[1.0, 2, 3], [1.5, 2.6, 3.4], [0.2, 2.9, 1.1]])  # (losses, seeds)
    table = metrics.differences(long(dict(zip("ABC", scores, strict=True))), "f1", "A")
    residual = scores - scores.mean(1, keepdims=True) - scores.mean(0) + scores.mean()
    half = stats.t.ppf(1 - 0.05 / 2 / 2, 4) * np.sqrt(2 * (residual**2).sum() / 4 / 3)  # two comparisons, 4 = 2 * 2
    for row, head in enumerate("BC", 1):
        mean = scores[row].mean() - scores[0].mean()
        assert tuple(table.loc[head, ["mean", "low", "high"]]) == pytest.approx((mean, mean - half, mean + half))


def test_fewer_comparisons_give_narrower_intervals():
    frame = long({"A": [1.0, 2, 3], "B": [1.5, 2.6, 3.4], "C": [0.2, 2.9, 1.1]})
    every, one = metrics.differences(frame, "f1", "A"), metrics.differences(frame, "f1", "A", ["B"])
    assert list(one.index) == ["B"] and one.loc["B", "high"] < every.loc["B", "high"]


def test_a_loss_with_fewer_seeds_is_compared_within_its_seeds():
    # every seed adds the same to all losses, so the difference must come out exactly
    frame = long({"A": [1.0, 2, 5], "B": [1.3, 2.3, 5.3], "C": [0.9]})
    table = metrics.differences(frame, "f1", "A")
    assert list(table.loc[["B", "C"], "mean"]) == pytest.approx([0.3, -0.1])
    assert dict(table["verdict"]) == {"B": "higher", "C": "lower"}


def test_without_a_second_seed_nothing_is_claimed():
    table = metrics.differences(long({"A": [1.0], "B": [9.0]}), "f1", "A")
    assert math.isnan(table.loc["B", "low"]) and table.loc["B", "verdict"] == "one seed: open"
    assert metrics.summary(long({"A": [1.0]}), {"F1": ("f1", 1, 1)}).loc["A", "F1"] == "1.0"


def test_means_pool_the_spread_over_the_groups():
    groups = {"A": [1.0, 3], "B": [2.0, 2.5, 6], "C": [7.0]}
    pooled = math.sqrt((np.var([1, 3]) * 2 + np.var([2, 2.5, 6]) * 3) / 3)
    for name, (mean, low, high) in metrics.means(groups).items():
        half = stats.t.ppf(0.975, 3) * pooled / math.sqrt(len(groups[name]))
        assert (mean, low, high) == pytest.approx((np.mean(groups[name]), mean - half, mean + half))


def test_means_of_one_group_are_its_interval():
    values = np.array([[1.0, 5], [2, 7], [4, 4]])  # (seeds, epochs)
    by_epoch = metrics.means({"A": values})["A"]
    np.testing.assert_allclose(by_epoch.T, [metrics.interval(column) for column in values.T])


def test_summary():
    frame = pd.DataFrame({"head": ["B", "A", "B"], "f1": [0.5, 0.25, 0.7], "ece": [0.1, 0.2, 0.1]})
    table = metrics.summary(frame, {"F1 (%)": ("f1", 100, 1), "ECE": ("ece", 1, 3)})
    assert list(table.index) == ["B", "A"] and list(table["n"]) == [2, 1]
    half = stats.t.ppf(0.975, 1) * 100 * np.std([0.5, 0.7], ddof=1)
    assert list(table["F1 (%)"]) == [f"60.0 ± {half / 2**0.5:.1f}", f"25.0 ± {half:.1f}"]
    assert list(table["ECE"]) == ["0.100 ± 0.000", "0.200 ± 0.000"]
