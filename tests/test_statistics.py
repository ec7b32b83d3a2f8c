import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from studies import statistics, tables


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
    assert tables.summary(long({"A": [1.0]}), {"F1": ("f1", 1, 1)}).loc["A", "F1"] == "1.0"


@pytest.mark.parametrize("bootstrapped", [False, True])
def test_what_is_not_defined_is_a_dash(bootstrapped):
    frame = long({"A": np.arange(6.0), "B": [np.nan, *range(5)], "C": np.arange(6.0) + 1})
    table = tables.summary(frame, {"F1": ("f1", 1, 1)}, bootstrapped)
    alone = tables.summary(frame[frame["head"] != "B"], {"F1": ("f1", 1, 1)}, bootstrapped)
    assert table.loc["B", "F1"] == tables.DASH == "\N{EN DASH}" and table.drop("B").equals(alone)
    gone = tables.summary(frame.assign(f1=np.nan), {"F1": ("f1", 1, 1)}, bootstrapped)
    assert list(gone["F1"]) == 3 * [tables.DASH]
    assert tables.bracket(pd.Series({"mean": np.nan, "low": np.nan, "high": np.nan})) == tables.DASH
    two = statistics.compare(long({"A": [1.0], "B": [2.0]}), "f1", "A")
    assert {tables.as_text(two).loc["B", key] for key in ("p", "p (Holm)")} == {tables.DASH}


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
    table = tables.summary(frame, {"F1 (%)": ("f1", 100, 1), "ECE": ("ece", 1, 3)})
    assert list(table.index) == ["B", "A"] and list(table["n"]) == [2, 1]
    half = stats.t.ppf(0.975, 1) * 100 * np.std([0.5, 0.7], ddof=1)
    assert list(table["F1 (%)"]) == [f"60.0 ± {half / 2**0.5:.1f}", f"25.0 ± {half:.1f}"]
    assert list(table["ECE"]) == ["0.100 ± 0.000", "0.200 ± 0.000"]


def test_summary_with_bootstrap_intervals():
    frame = pd.DataFrame({"head": ["A"] * 5 + ["B"] * 5, "f1": [0.1, 0.2, 0.3, 0.4, 0.9] + [0.5] * 5})
    columns = {"F1": ("f1", 100, 1), "recall": ("recall_at_1", 100, 1)}
    mean, low, high = statistics.bootstrap(100 * frame["f1"][:5])
    table = tables.summary(frame, columns, bootstrapped=True)
    assert list(table["F1"]) == [f"{mean:.1f} [{low:.1f}, {high:.1f}]", "50.0 [50.0, 50.0]"]
    assert "recall" not in table  # older records lack it
    few = frame[:-1]
    assert tables.summary(few, columns, bootstrapped=True).equals(tables.summary(few, columns))


def test_bootstrap_by_hand():
    # of all samples of five, a share of 0.00032 each is 0 or 10 in all draws, and ten times as many in all but one
    values = [0, 0, 0, 0, 10]
    mean, low, high = statistics.bootstrap(values)
    assert (mean, low) == (2, 0) and high == 6  # three or more tens: 5.8 %, four or more: 0.7 %
    assert statistics.bootstrap([3] * 5) == (3, 3, 3)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_bootstrap_of_too_few_values_has_no_width(n):
    mean, low, high = statistics.bootstrap([3] * n)
    assert mean == 3 and math.isnan(low) and math.isnan(high)


@pytest.mark.parametrize("n, coverage", [(5, 0.85), (10, 0.90)])
def test_bootstrap_of_few_runs_is_too_narrow(n, coverage):
    drawn = np.random.default_rng(0).normal(size=(150, n))
    covered = [low < 0 < high for _, low, high in map(statistics.bootstrap, drawn)]
    assert np.mean(covered) == pytest.approx(coverage, abs=0.06)


# ---------------------------------------------------------------- convergence

HISTORY = {"val_accuracy": [0.5, 0.8, 0.7, 0.9], "seconds": [2.0, 4.0, 6.0, 8.0]}


def test_reached_is_the_first_epoch_at_the_accuracy():
    frame = pd.DataFrame({"history": [HISTORY, HISTORY]}, index=[7, 3])
    assert statistics.reached(frame, 0.8).loc[3].tolist() == [2, 4]
    assert statistics.reached(frame, 0.75).loc[7].tolist() == [2, 4]
    assert statistics.reached(frame, 0.91).isna().all(axis=None)


def test_convergence_does_not_average_over_some_of_the_runs():
    slow = {"val_accuracy": [0.1, 0.2, 0.3, 0.8], "seconds": [2.0, 4.0, 6.0, 8.0]}
    frame = pd.DataFrame({"head": ["A", "A"], "history": [HISTORY, slow]})
    table = tables.convergence(frame, [0.8, 0.9])
    assert table.loc["A"].tolist() == [2, "3.0", "6", "1 of 2 runs", "1 of 2 runs"]
    table = tables.convergence(pd.DataFrame({"head": "A", "history": [HISTORY] * 3 + [slow] * 3}), [0.8])
    assert table.loc["A"].tolist() == [6, "3.0 [2.3, 3.7]", "6 [5, 7]"]


# ---------------------------------------------------------------- paired comparison


def test_permutation_p_by_hand():
    y = np.zeros(4)
    # differences 1, 2, 3, 4: only their own signs give a sum of 10, and all opposite ones -10
    assert statistics.permutation_p(np.array([1, 2, 3, 4]), y) == 2 / 16
    # 1, 2, 3, -4: the sum 2 is matched or passed by the 7 sign patterns with sums 2 (twice), 4 (twice), 6, 8, 10
    assert statistics.permutation_p(np.array([1, 2, 3, -4]), y) == 14 / 16
    assert statistics.permutation_p(y, y) == 1
    assert math.isnan(statistics.permutation_p(y[:1], y[:1]))


@pytest.mark.parametrize("n", [2, 5, 10])
def test_smallest_p_of_the_exact_test(n):
    assert statistics.permutation_p(np.arange(1.0, n + 1), np.zeros(n)) == 2.0 ** (1 - n)


def test_holm_by_hand():
    # sorted .01, .02, .03, .04, times 4, 3, 2, 1: .04, .06, .06, .04, and never falling
    assert statistics.holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert statistics.holm([0.6, 0.5]) == pytest.approx([1, 1])
    assert statistics.holm([0.04]) == pytest.approx([0.04])


def test_detectable_effect_needs_less_with_a_pooled_spread():
    pooled, alone = (statistics.detectable(1, 3, 9, df) for df in (18, 2))
    shift = stats.norm.ppf(1 - 0.05 / 18) + stats.norm.ppf(0.8)  # if the spread were known
    assert shift / 3**0.5 < pooled < alone / 3
    assert statistics.detectable(1, 3, 9, df=10**7) == pytest.approx(shift / 3**0.5, rel=1e-3)


@pytest.mark.parametrize("n, comparisons", [(3, 1), (5, 9), (10, 9)])
def test_detectable_effect_has_its_power(n, comparisons):
    shift = statistics.detectable(2.0, n, comparisons)
    drawn = np.random.default_rng(0).normal(shift, 2, size=(20_000, n))
    assert np.mean(stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05 / comparisons) == pytest.approx(0.8, abs=0.01)


def test_detectable_effect_falls_with_runs():
    effects = [statistics.detectable(1, n, 9) for n in (2, 3, 5, 10)]
    assert effects == sorted(effects, reverse=True)
    assert math.isnan(statistics.detectable(1, 1)) and math.isnan(statistics.detectable(math.nan, 5))


@pytest.fixture
def ten():
    """Ten seeds of a reference A, of B that is always higher, and of C that is not."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=10)
    return long({"A": a, "B": a + 1 + rng.random(10), "C": a + rng.normal(size=10)})


def test_compare_joins_what_its_parts_say(ten):
    table = statistics.compare(ten, "f1", "A", factor=100)
    wide = 100 * ten.pivot(index="seed", columns="head", values="f1")
    for head in "BC":
        difference, row = (wide[head] - wide["A"]).to_numpy(), table.loc[head]
        assert row["n"] == 10 and row["p"] == statistics.permutation_p(difference, 0 * difference)
    pd.testing.assert_frame_equal(table[["mean", "low", "high"]], statistics.differences(
        ten, "f1", "A", factor=100)[["mean", "low", "high"]])  # fmt: skip
    assert table["p_holm"].to_dict() == pytest.approx({"B": 2 * 2.0**-9, "C": table.loc["C", "p"]})
    assert dict(table["verdict"]) == {"B": "higher", "C": "no difference shown"}


def test_with_five_seeds_the_interval_decides(ten):
    table = statistics.compare(ten[ten["seed"] < 5], "f1", "A")
    assert table.loc["B", "p"] == 2.0**-4 and table.loc["B", "low"] > 0
    assert table.loc["B", "verdict"] == "higher"  # which p could not say


def test_compare_needs_common_seeds_only(ten):
    part = ten[(ten["head"] != "B") | (ten["seed"] < 4)]
    assert statistics.compare(part, "f1", "A")["n"].to_dict() == {"B": 4, "C": 10}


def test_compare_of_one_seed_claims_nothing(ten):
    table = statistics.compare(ten[ten["seed"] == 0], "f1", "A")
    assert set(table["verdict"]) == {"one seed: open"} and table[["p", "p_holm"]].isna().all(axis=None)


def test_compare_of_a_missing_metric(ten):
    with pytest.raises(ValueError, match="30 of 30 runs have no recall_at_1: train them again"):
        statistics.compare(ten, "recall_at_1", "A")
    with pytest.raises(ValueError, match="1 of 30 runs have no f1"):
        statistics.compare(ten.assign(f1=[np.nan, *ten["f1"][1:]]), "f1", "A")


def test_readable_shows_every_number(ten):
    table = statistics.compare(ten, "f1", "A")
    row = tables.as_text(table, 1).loc["B"]
    assert row["difference"] == tables.bracket(table.loc["B"], 1)
    assert (row["n"], row["p"], row["p (Holm)"]) == (10, "0.002", "0.004")


def test_triplet_neither_widens_the_other_intervals_nor_borrows_their_spread(ten):
    rng = np.random.default_rng(3)
    wild = pd.DataFrame([{"head": "Triplet", "seed": s, "f1": rng.normal(0.5, 0.2), "apart": True} for s in range(10)])
    both = pd.concat([ten.assign(apart=False), wild], ignore_index=True)
    table, without = (statistics.compare(frame, "f1", "A", ["B", "C"]) for frame in (both, ten))
    pd.testing.assert_frame_equal(table, without)
    every = statistics.compare(both, "f1", "A")
    wide = both.pivot(index="seed", columns="head", values="f1")
    test = stats.ttest_rel(wide["Triplet"], wide["A"]).confidence_interval(1 - 0.05 / 3)  # three comparisons
    assert tuple(every.loc["Triplet", ["low", "high"]]) == pytest.approx((test.low, test.high))
    values, alone = statistics.by_loss(both, "f1"), statistics.by_loss(ten, "f1")
    means = statistics.means(values, apart=statistics.apart(both))
    np.testing.assert_allclose(means["A"], statistics.means(alone)["A"])
    np.testing.assert_allclose(means["Triplet"], statistics.interval(values["Triplet"]))
    columns = {"F1": ("f1", 1, 3)}
    assert tables.summary(both, columns).loc["A", "F1"] == tables.summary(ten, columns).loc["A", "F1"]


def test_apart_is_what_a_column_marks(ten):
    assert statistics.apart(ten) == set()
    marked = ten.assign(apart=ten["head"] == "C", stalled=(ten["head"] == "B") & (ten["seed"] == 3))
    assert statistics.apart(marked) == {"B", "C"} and statistics.apart(marked[marked["seed"] != 3]) == {"C"}
