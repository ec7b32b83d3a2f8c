"""The decision rule, on simulated records in which the truth is known."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from studies import verdicts

REPEATS = 1000
TOLERANCE = 0.02  # three standard errors of a share of 0.05 from so many repeats, and a little


def simulated(n, delta=0.0, correlation=0.96, sd=0.3, seed=0):
    """Paired differences (REPEATS, n) of two losses with normal noise of that correlation, delta apart, on a grid of
    hundredths like an accuracy from 10,000 images."""
    rng = np.random.default_rng(seed)
    noise = rng.multivariate_normal([0, 0], sd**2 * np.array([[1, correlation], [correlation, 1]]), (REPEATS, n))
    a, b = np.moveaxis(np.round(noise + np.array([88 + delta, 88]), 2), -1, 0)
    return a - b


def shares(differences, bound, comparisons=1):
    found = pd.DataFrame([verdicts.decide(d, bound, comparisons) for d in differences])
    verdict = found["verdict"]
    return {
        "different": verdict.str.contains("higher|lower").mean(),
        "equivalent": verdict.str.contains("equivalent|by less").mean(),
        "covered": ((found["low"] <= 0) & (found["high"] >= 0)).mean(),
    }


@pytest.mark.parametrize("n", [5, 10, 20])
@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_errors_of_the_verdicts_stay_below_five_percent(n, correlation):
    equal = shares(simulated(n, 0.0, correlation), bound=0.2)
    assert equal["different"] < 0.05 + TOLERANCE and equal["covered"] == pytest.approx(0.95, abs=TOLERANCE)
    at_the_bound = shares(simulated(n, 0.2, correlation, seed=1), bound=0.2)
    assert at_the_bound["equivalent"] < 0.05 + TOLERANCE


def test_it_finds_what_is_there():
    assert shares(simulated(20, 0.1, 0.96), bound=0.2)["different"] > 0.95
    assert shares(simulated(20, 0.0, 0.96), bound=0.2)["equivalent"] > 0.95
    assert shares(simulated(20, 0.1, 0.96), bound=0.2)["equivalent"] > 0.8  # "higher by less than the bound"


def test_a_family_errs_in_five_percent_of_cases_at_most():
    wrong = np.zeros(REPEATS, dtype=bool)
    for k in range(8):
        wrong |= np.array([
            "not" not in verdicts.decide(d, 0.0, 8)["verdict"] for d in simulated(10, 0.0, 0.5, seed=k)
        ])  # fmt: skip
    assert wrong.mean() < 0.05 + TOLERANCE


def test_verdicts_by_hand():
    d = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    found = verdicts.decide(d, bound=10)
    assert (found["low"], found["high"]) == pytest.approx(stats.ttest_1samp(d, 0).confidence_interval(0.95))
    assert (found["inner_low"], found["inner_high"]) == pytest.approx(stats.ttest_1samp(d, 0).confidence_interval(0.9))
    assert found["verdict"] == "higher by less than the bound" and found["n"] == 5
    assert verdicts.decide(d, bound=4.5)["verdict"] == "higher"
    assert verdicts.decide(-d, bound=4.5)["verdict"] == "lower"
    assert verdicts.decide(d - 3, bound=4.5)["verdict"] == "equivalent"
    assert verdicts.decide(d - 3, bound=1)["verdict"] == "not decided"
    four = verdicts.decide(d, 10, comparisons=4)
    assert (four["low"], four["high"]) == pytest.approx(stats.ttest_1samp(d, 0).confidence_interval(1 - 0.05 / 4))


@pytest.mark.parametrize("d", [[], [1.0], [1.0, 1.1], [0.3] * 9, [0.1 + 0.2, 0.3, 0.3], [0.0, 0.0, 0.0]])
def test_without_spread_there_is_no_verdict(d):
    found = verdicts.decide(d, 0.5)
    assert found["verdict"] == "cannot be told" and np.isnan(found["low"]) and found["n"] == len(d)


def test_sign_flips_are_exact_with_ties():
    rng = np.random.default_rng(0)
    for n in (3, 8, 11):
        d = rng.integers(-4, 5, n)
        signs = np.array(list(itertools.product((1, -1), repeat=n)))
        exact = (abs(signs @ d) >= abs(d.sum())).mean()
        for scale in (1e-4, 0.01, 1):
            assert verdicts.sign_flip_p(d * scale) == pytest.approx(exact, abs=1e-12)
    assert verdicts.sign_flip_p([0.0, 0.0]) == 1


def frame(losses, sd=0.1, seeds=10, correlation=0.9):
    """Rows of simulated runs; losses: the true value of each, in percent."""
    rng = np.random.default_rng(0)
    shared = rng.normal(0, sd * correlation**0.5, seeds)
    own = sd * (1 - correlation) ** 0.5
    rows = [
        {"head": head, "seed": seed, "test_accuracy": value + shared[seed] + own * rng.normal()}
        for head, value in losses.items()
        for seed in range(seeds)
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(val_accuracy=0.9, stalled=False, machine="here")


def stall(runs, head, seeds):
    """Those runs end at chance."""
    bad = (runs["head"] == head) & runs["seed"].isin(seeds)
    runs.loc[bad, ["test_accuracy", "val_accuracy"]] = [10.0, 0.1]
    return runs.assign(stalled=verdicts.stalled(runs))


def test_a_bimodal_loss_is_counted_and_not_averaged():
    runs = stall(frame({"Softmax": 88, "ArcFace": 88.5}, seeds=20), "ArcFace", [3])
    found = verdicts.compare(runs, "ArcFace", "Softmax", "test_accuracy", 0.2)
    assert found["stalled"] == 1 and found["n"] == 19 and found["verdict"] == "higher" and 0.4 < found["mean"] < 0.6
    runs = stall(runs, "ArcFace", [3, 4, 5])
    found = verdicts.compare(runs, "ArcFace", "Softmax", "test_accuracy", 0.2)
    assert found["verdict"] == "stalled: 3 of 20, Softmax 0" and np.isnan(found["low"]) and found["n"] == 20
    found = verdicts.compare(runs, "Softmax", "ArcFace", "test_accuracy", 0.2)
    assert found["verdict"] == "stalled: 0 of 20, ArcFace 3"


def test_what_is_stalled():
    runs = frame({"Softmax": 88, "ArcFace": 88}, seeds=4)
    runs["val_accuracy"] = [0.9, 0.8, 0.1, 0.9, 0.44, 0.43, np.nan, 0.9]  # Softmax's median is 0.85
    assert verdicts.stalled(runs).tolist() == [False, False, True, False, False, False, True, False]
    runs["failed"] = [None] * 7 + ["the loss is nan"]
    assert verdicts.stalled(runs).tolist() == [False, False, True, False, False, False, True, True]
    runs.loc[runs["head"] == "Softmax", "val_accuracy"] = np.nan  # all of the reference's failed: no level is known
    assert verdicts.stalled(runs).tolist() == [True] * 4 + [False, False, True, True]
    with pytest.raises(ValueError, match="judged by Softmax"):
        verdicts.stalled(runs[runs["head"] == "ArcFace"])


def test_pairs_come_from_one_machine_and_once():
    runs = frame({"Softmax": 88, "ArcFace": 88})
    moved = runs.assign(machine=["here"] * 19 + ["there"])
    with pytest.raises(ValueError, match="seed 9 ran on two machines"):
        verdicts.compare(moved, "ArcFace", "Softmax", "test_accuracy", 0.2)
    with pytest.raises(ValueError, match="a seed twice"):
        verdicts.compare(pd.concat([runs, runs[:1]]), "ArcFace", "Softmax", "test_accuracy", 0.2)
    runs.loc[3, "test_accuracy"] = np.nan
    with pytest.raises(ValueError, match="1 of 10 pairs of ArcFace and Softmax have no test_accuracy"):
        verdicts.compare(runs, "ArcFace", "Softmax", "test_accuracy", 0.2)


def test_only_common_seeds_are_compared():
    runs = frame({"Softmax": 88, "ArcFace": 88})
    assert verdicts.compare(runs[:-3], "ArcFace", "Softmax", "test_accuracy", 0.2)["n"] == 7


def test_a_family_is_corrected_for_its_number():
    runs = frame({"Softmax": 88, "ArcFace": 88.5, "CosFace": 87.5, "NormFace": 88})
    table = verdicts.family(runs, "Softmax", "test_accuracy", 0.2)
    assert list(table.index) == ["ArcFace", "CosFace", "NormFace"]
    assert list(table["verdict"])[:2] == ["higher", "lower"]
    alone = verdicts.compare(runs, "ArcFace", "Softmax", "test_accuracy", 0.2)
    assert table.loc["ArcFace", "low"] < alone["low"] and table.loc["ArcFace", "mean"] == pytest.approx(alone["mean"])


def test_detectable_is_found_in_four_of_five():
    found = []
    for d in simulated(10, 0.0, 0.5)[:20]:
        runs = pd.DataFrame(
            {"head": ["ArcFace"] * 10 + ["Softmax"] * 10, "seed": [*range(10)] * 2, "x": [*d] + [0.0] * 10}
        )
        runs = runs.assign(stalled=False, machine="here")
        found.append(verdicts.compare(runs, "ArcFace", "Softmax", "x", 0.2)["detectable"])
    assert shares(simulated(10, np.median(found), 0.5), 0.2)["different"] == pytest.approx(0.8, abs=0.08)
