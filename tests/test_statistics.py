import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lib import statistics


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=9).filter(lambda v: np.std(v) > 1e-3))
def test_interval_against_scipy(values):
    mean, low, high = statistics.interval(values)
    expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert (mean, low, high) == pytest.approx((np.mean(values), *expected), abs=1e-9)


def test_interval_of_one_value_has_no_width():
    mean, low, high = statistics.interval([3])
    assert mean == 3 and math.isnan(low) and math.isnan(high)


def test_interval_level():
    values = [1.0, 2, 4]
    expected = stats.t.interval(0.8, 2, np.mean(values), stats.sem(values))
    assert statistics.interval(values, 0.8)[1:] == pytest.approx(expected)


def long(scores):
    rows = [{"head": h, "seed": s, "f1": v} for h, values in scores.items() for s, v in enumerate(values)]
    return pd.DataFrame(rows[::-1])  # the order of the rows must not matter


def test_differences_of_two_losses_are_a_paired_t_test():
    table = statistics.differences(long({"A": [1.0, 2, 3], "B": [1.5, 2.6, 3.4]}), "f1", "A", factor=100)
    test = stats.ttest_rel([1.5, 2.6, 3.4], [1.0, 2, 3])
    expected = (3, 100 * test.confidence_interval().low, 100 * test.confidence_interval().high)
    assert tuple(table.loc["B", ["n", "low", "high"]]) == pytest.approx(expected)
    assert table.loc["B", "mean"] == pytest.approx(50)


def test_differences_of_several_losses_are_a_randomised_block_design():
    scores = np.array([[1.0, 2, 3], [1.5, 2.6, 3.4], [0.2, 2.9, 1.1]])  # (losses, seeds)
    table = statistics.differences(long(dict(zip("ABC", scores, strict=True))), "f1", "A")
    residual = scores - scores.mean(1, keepdims=True) - scores.mean(0) + scores.mean()
    half = stats.t.ppf(1 - 0.05 / 2 / 2, 4) * np.sqrt(2 * (residual**2).sum() / 4 / 3)  # two comparisons, 4 = 2 * 2
    for row, head in enumerate("BC", 1):
        mean = scores[row].mean() - scores[0].mean()
        assert tuple(table.loc[head, ["mean", "low", "high"]]) == pytest.approx((mean, mean - half, mean + half))


def test_fewer_comparisons_give_narrower_intervals():
    frame = long({"A": [1.0, 2, 3], "B": [1.5, 2.6, 3.4], "C": [0.2, 2.9, 1.1]})
    every, one = statistics.differences(frame, "f1", "A"), statistics.differences(frame, "f1", "A", ["B"])
    assert list(one.index) == ["B"] and one.loc["B", "high"] < every.loc["B", "high"]


def test_a_loss_with_fewer_seeds_is_compared_within_its_seeds():
    # every seed adds the same to all losses, so the difference must come out exactly
    frame = long({"A": [1.0, 2, 5], "B": [1.3, 2.3, 5.3], "C": [0.9]})
    table = statistics.differences(frame, "f1", "A")
    assert list(table.loc[["B", "C"], "mean"]) == pytest.approx([0.3, -0.1])
    assert dict(table["verdict"]) == {"B": "higher", "C": "lower"}


def test_without_a_second_seed_nothing_is_claimed():
    table = statistics.differences(long({"A": [1.0], "B": [9.0]}), "f1", "A")
    assert math.isnan(table.loc["B", "low"]) and table.loc["B", "verdict"] == "one seed: open"
    assert statistics.summary(long({"A": [1.0]}), {"F1": ("f1", 1, 1)}).loc["A", "F1"] == "1.0"


def test_means_pool_the_spread_over_the_groups():
    groups = {"A": [1.0, 3], "B": [2.0, 2.5, 6], "C": [7.0]}
    pooled = math.sqrt((np.var([1, 3]) * 2 + np.var([2, 2.5, 6]) * 3) / 3)
    for name, (mean, low, high) in statistics.means(groups).items():
        half = stats.t.ppf(0.975, 3) * pooled / math.sqrt(len(groups[name]))
        assert (mean, low, high) == pytest.approx((np.mean(groups[name]), mean - half, mean + half))


def test_means_of_one_group_are_its_interval():
    values = np.array([[1.0, 5], [2, 7], [4, 4]])  # (seeds, epochs)
    by_epoch = statistics.means({"A": values})["A"]
    np.testing.assert_allclose(by_epoch.T, [statistics.interval(column) for column in values.T])


def test_summary():
    frame = pd.DataFrame({"head": ["B", "A", "B"], "f1": [0.5, 0.25, 0.7], "ece": [0.1, 0.2, 0.1]})
    table = statistics.summary(frame, {"F1 (%)": ("f1", 100, 1), "ECE": ("ece", 1, 3)})
    assert list(table.index) == ["B", "A"] and list(table["n"]) == [2, 1]
    half = stats.t.ppf(0.975, 1) * 100 * np.std([0.5, 0.7], ddof=1)
    assert list(table["F1 (%)"]) == [f"60.0 ± {half / 2**0.5:.1f}", f"25.0 ± {half:.1f}"]
    assert list(table["ECE"]) == ["0.100 ± 0.000", "0.200 ± 0.000"]
