"""The ledger of the claims: its rules, its figures, and what they rest on."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_replicas import fake

from studies import claims, margin_maps, replicas, statistics
from studies.study import Study


def figure(low, high, **other):
    return claims.Figure((low + high) / 2, low, high, 3, **other)


def test_rules():
    assert claims.effect_verdict(figure(1, 2)) == "reproduced"
    assert claims.effect_verdict(figure(-2, -1), figure(1, 2)) == "reversed"
    assert claims.effect_verdict(figure(-1, 1), figure(1, 2)) == "reproduced but for another reason"
    assert claims.effect_verdict(figure(-1, 1), figure(-1, 2)) == claims.effect_verdict(figure(-1, 1)) == "within noise"
    assert claims.influence_verdict(figure(-2, -1)) == claims.influence_verdict(figure(1, 2)) == "reproduced"
    assert claims.influence_verdict(figure(-1, 2)) == "within noise"
    assert claims.property_verdict(figure(0.1, 1)) == "reproduced"
    assert claims.property_verdict(figure(-0.1, 1)) == "not reproduced"
    value = claims.value_verdict
    assert value(figure(98, 99), 98.5, 0) == value(figure(98, 99), 99.05, 0.05) == "reproduced"
    assert value(figure(98, 99), 97, 0.5) == value(figure(98, 99), 99.1, 0.05) == "not reproduced"
    short = figure(98, 99, reduced=True)
    assert value(short, 97, 0.5) == "not reproduced" and value(short, 98.5, 0) == value(short, 99.9, 0) == claims.OPEN
    single = claims.Figure(1.0, math.nan, math.nan, 1)
    for rule in (claims.effect_verdict, claims.influence_verdict, claims.property_verdict):
        assert rule(single) == claims.OPEN
    assert value(single, 1.0, 0) == claims.OPEN


def test_prediction_holds_one_more_run():
    runs = np.random.default_rng(0).normal(size=(4000, 4))
    inside = []
    for *seen, new in runs:
        mean, low, high = claims.prediction(seen)
        assert mean == pytest.approx(np.mean(seen))
        inside.append(low < new < high)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)
    assert np.isnan(claims.prediction([1.0])[1:]).all()


def test_every_claim_has_a_known_kind_and_known_plans():
    table = claims.claims()
    assert list(table.index) == list(range(1, len(table) + 1)) and set(table["kind"]) <= set(claims.KINDS)
    assert set(" ".join(table["plans"]).split()) <= {*replicas.PLANS, *claims.CONTROLLED, "margins"}
    needs = table["kind"].isin(["value", "outlier", "exact"])
    assert (table["published"].notna() == needs).all() and (table["tolerance"].notna() == needs).all()


def s1_records(name="mnist", epochs=10, **readings):
    """S1's arms as published; readings: arm -> accuracies by seed, (label-free, leaked)."""
    records = {}
    for seed in range(3):
        for key, run in replicas.published(name, epochs, seed).items():
            free, leaked = readings[key.split(":")[0]]
            records[run] = fake(run, free[seed], leaked[seed])
    return records


def row_of(table, text):
    return table[table["claim"].str.contains(text, regex=False)].iloc[0]


def numbers(*texts):
    table = claims.claims()
    return [row_of(table, text).name for text in texts]


def test_artefact_of_the_evaluation():
    texts = "MNIST: AdaLoss is more accurate", "MNIST: ArcFace reaches 97.86 %", "MNIST: 97.86 % says"
    arcface, adaloss = ([0.990, 0.991, 0.990], [0.978, 0.979, 0.978]), ([0.991, 0.990, 0.990], [0.9] * 3)
    table = claims.ledger(s1_records(ArcFace=arcface, AdaLoss=adaloss), numbers(*texts))
    verdicts = {text: row_of(table, text)["verdict"] for text in texts}
    assert list(verdicts.values()) == ["reproduced but for another reason", "reproduced", "not reproduced"]
    worse = s1_records(ArcFace=arcface, AdaLoss=([0.985, 0.985, 0.984], [0.9] * 3))
    assert claims.ledger(worse, numbers(texts[0]))["verdict"].item() == "reversed"
    better = s1_records(ArcFace=([0.9786, 0.978, 0.979], [0.9] * 3), AdaLoss=([0.9911, 0.9905, 0.9915], [0.9] * 3))
    row = claims.ledger(better, numbers(texts[0])).iloc[0]
    assert row["verdict"] == "reproduced" and row["n"] == 3 and row["figure"].startswith("1.25 [")
    assert row["command"] == f"python -m studies claims {row.name}" and row["setting"] == "10 epochs"


def changing(record):
    """The record of a run whose accuracy still rises."""
    curve = record["history"]["test_accuracy"]
    curve[:] = [value - 0.01 * (len(curve) - 1 - i) for i, value in enumerate(curve)]
    return record


def test_shorter_runs_stand_in_and_say_so():
    lower = s1_records("cifar10", 10, ArcFace=([0.6, 0.61, 0.6], [0.5] * 3), AdaLoss=([0.5, 0.5, 0.51], [0.4] * 3))
    every = {run: fake(run) for seed in range(3) for run in replicas.waterfall("cifar10", 10, seed).values()}
    asked = numbers("CIFAR-10: AdaLoss is more accurate", "CIFAR-10: AdaLoss conv", "CIFAR-10: AdaLoss reaches 68")
    table = claims.ledger(every | lower, asked)
    gap, first, accuracy = (row_of(table, part) for part in ("more accurate", "converges", "reaches 68"))
    assert gap["setting"] == "10 epochs, not 20: settled" and gap["verdict"] == "reversed"
    assert first["setting"] == "1 epoch" and first["verdict"] == "reversed"
    assert accuracy["setting"] == "no runs recorded" and accuracy["verdict"] == claims.OPEN
    table = claims.ledger({run: changing(record) for run, record in (every | lower).items()}, asked)
    gap, first = (row_of(table, part) for part in ("more accurate", "converges"))
    assert gap["setting"] == "10 epochs, not 20" and gap["figure"] and gap["verdict"] == claims.OPEN
    assert first["verdict"] == "reversed"


def test_settled_curves_count_in_full():
    def record(curve):
        return {"history": {"test_accuracy": curve}}

    assert claims.settled([record([0.5] * 10 + [0.99] * 10 + [0.9905] * 10)])
    assert not claims.settled([record([0.5] * 10 + [0.98] * 10 + [0.99] * 10)])
    assert not claims.settled([record([0.99, 0.99, 0.99])])  # too short to tell


@pytest.mark.parametrize(
    ("accuracy", "verdict"), [(0.9700, "not reproduced"), (0.9900, claims.OPEN), (0.9908, claims.OPEN)]
)
def test_a_drift_that_counts_as_settled_decides_nothing(accuracy, verdict):
    def record(value):
        return {
            "config": {"epochs": 30},
            "metrics": {"test_accuracy": value},
            "history": {"test_accuracy": [value] * 30},
        }

    by_seed = {seed: {"ArcFace": record(accuracy + 1e-4 * seed)} for seed in (-1, 0, 1)}
    row = row_of(claims.claims(), "ArcFace reaches 99.08 %")
    assert claims.value({"s5": (30, by_seed)}, row)[1] == verdict
    assert claims.value({"s5": (100, by_seed)}, row)[1] == ("reproduced" if accuracy == 0.9908 else "not reproduced")


def grid_records(effect, seeds=4, noise=0.0005):
    rng = np.random.default_rng(0)
    return {
        run: fake(run, 0.9885 + effect(*pair) + noise * rng.standard_normal())
        for seed in range(seeds)
        for pair, run in replicas.s5_grid(20, seed).items()
    }


def test_margins_against_seeds():
    m = numbers("ArcFace is sensitive to the margin m")
    flat = claims.ledger(grid_records(lambda m2, m3: 0), m).iloc[0]
    steep = claims.ledger(grid_records(lambda m2, m3: 0.1 * (m2 - 0.5)), m).iloc[0]
    assert flat["verdict"] == "within noise" and steep["verdict"] == "reproduced"
    same = grid_records(lambda m2, m3: 0, noise=0.0)
    for i, run in enumerate(same):  # every margin has the same four accuracies, in another order
        same[run]["metrics"]["test_accuracy"] += 0.001 * ((run.seed + i) % 4)
    alike, verdict = claims.margins({"s5_grid": replicas.complete("s5_grid", same)}, None)
    assert alike.high < 0 and verdict == "within noise"
    table = 100 * np.random.default_rng(1).normal(size=(20, 4))
    rows = {
        run: fake(run, table[i, seed])
        for seed in range(4)
        for i, run in enumerate(list(replicas.s5_grid(20, seed).values())[:20])
    }
    rest = {run: fake(run) for seed in range(4) for run in replicas.s5_grid(20, seed).values()}
    figure = claims.margins({"s5_grid": replicas.complete("s5_grid", rest | rows)}, None)[0]
    blocked = table - table.mean(0)  # by hand: F of the margins, seeds as blocks
    within = ((blocked - blocked.mean(1, keepdims=True)) ** 2).sum() / 57
    F_ratio = 4 * blocked.mean(1).var(ddof=1) / within
    assert figure.value == pytest.approx((F_ratio - 1) / 4)
    assert (figure.low > 0) == (stats.f.sf(F_ratio, 19, 57) < 0.025)


def test_outliers_and_best_margins():
    records = grid_records(lambda m2, m3: 0.002 * (m3 > 0))
    table = claims.ledger(records, numbers("96.01 %", "98.93 %", "The combined margin", "m = 0.50 is the best"))
    assert row_of(table, "96.01 %")["verdict"] == "not reproduced" and row_of(table, "96.01 %")["n"] == 80
    assert (
        row_of(table, "98.93 %")["verdict"] == "reproduced" or row_of(table, "98.93 %")["verdict"] == "not reproduced"
    )
    assert row_of(table, "The combined margin")["verdict"] == "reproduced"
    assert row_of(table, "m = 0.50 is the best")["verdict"] == "within noise"
    diverging = grid_records(lambda m2, m3: 0, noise=0.01)
    assert claims.ledger(diverging, numbers("97.58 %"))["verdict"].item() == "reproduced"


def test_geometry_needs_no_records(monkeypatch):
    monkeypatch.setattr(claims.recommend, "observations", pd.DataFrame)  # those in results/ would need the data sets
    monkeypatch.setattr(claims.recommend, "leave_out", lambda observed, column: observed)
    table = claims.ledger({})
    assert row_of(table, "7.8 degrees")["figure"] == "7.943 degrees"
    assert row_of(table, "7.8 degrees")["verdict"] == "not reproduced"
    for text in ("2.83 apart", "distance is 6.8", "leaves the angle unchanged", "L2", "L3", "vector of cosines"):
        assert row_of(table, text)["verdict"] == "reproduced", text
    assert row_of(table, "disturbed values")["verdict"] == "reversed"
    assert row_of(table, "missing values")["verdict"] == "reproduced"
    assert set(table["verdict"]) <= set(claims.VERDICTS)
    open_rows = table[table["verdict"] == claims.OPEN]
    assert set(open_rows["source"]) == {"S1", "S2", "S3", "S5"} and (open_rows["figure"] == "").all()


def test_controlled_study_answers_claims(project, monkeypatch):
    rows = [("ArcFace", seed, 0.90 + seed / 100) for seed in range(3)]
    rows += [("AdaLoss", seed, 0.91 + seed / 100 + seed / 1000) for seed in range(3)]
    frame = pd.DataFrame(rows, columns=["head", "seed", "test_accuracy"]).assign(epochs=4)
    number = numbers("MNIST: a tuned adaptive mechanism")
    assert claims.ledger({}, number)["setting"].item() == "no runs recorded"
    assert "not testable here" in claims.printed(number)
    assert [study.name for study in claims.needed(number)] == ["controlled_mnist"]
    monkeypatch.setitem(claims.CONTROLLED, "controlled_mnist", lambda: frame)
    row = claims.ledger({}, number).iloc[0]
    mean, low, high = statistics.interval([1.0, 1.1, 1.2])
    assert row["figure"] == f"{mean:.2f} [{low:.2f}, {high:.2f}] points" and row["verdict"] == "reproduced"
    assert row["n"] == 3 and row["setting"] == "4 epochs"
    assert claims.needed(number) == []


def test_the_check_of_the_recommender_answers_its_claim(project, monkeypatch):
    checks = {"family": pd.DataFrame({"log_odds": [-0.20, -0.25, -0.30]})}
    monkeypatch.setattr(claims.recommend, "observations", lambda: "observed")
    monkeypatch.setattr(claims.recommend, "leave_out", lambda observed, column: checks[column])
    number = numbers("A regression over recorded runs")
    row = claims.ledger({}, number).iloc[0]
    mean, low, high = statistics.interval([-0.20, -0.25, -0.30])
    assert row["figure"] == f"{mean:.3f} [{low:.3f}, {high:.3f}] log-odds" and row["verdict"] == "reversed"
    assert row["n"] == 3 and row["setting"] == "each family left out in turn"
    checks["family"] = pd.DataFrame()
    assert claims.ledger({}, number)["setting"].item() == "no runs recorded"
    assert claims.needed(number) == margin_maps.STUDIES


def test_a_claim_needs_what_is_not_recorded(project, monkeypatch):
    first, drop = numbers("MNIST: AdaLoss is more accurate", "ArcFace is sensitive to the margin m")
    assert [study.name for study in claims.needed([first])] == ["s1_mnist"]  # which stands in for its waterfall
    assert [study.name for study in claims.needed([first, drop])] == ["s1_mnist", "s5_grid"]
    found = {run: fake(run) for run in replicas.REPLICAS["s1_mnist"].planned()}
    monkeypatch.setattr(Study, "read", lambda self, full=False: found)
    assert claims.needed([first]) == []
    monkeypatch.setenv("RETRAIN", "1")
    assert [study.name for study in claims.needed([first])] == ["s1_mnist"]


def test_numbers_are_those_of_claims():
    assert claims.numbers(["1", "52"]) == [1, 52] and claims.numbers([]) == []
    for text in ("0", "999", "x", "-1", "1.0"):
        with pytest.raises(ValueError, match=rf"^there is no claim {text}: choose from 1 to \d+$"):
            claims.numbers(["1", text])


def test_equations_can_fail():
    assert claims.equation_error("ArcFace", m=0.5) < 1e-9 < 0.1 < claims.equation_error("CosFace", m=0.5)


def test_difficulty_correlation():
    confusion = np.diag([90, 80, 70, 60]) + np.eye(4, k=1, dtype=int) * 10
    record = {"metrics": {"confusion": confusion.tolist(), "factor_by_class": [0.1, 0.2, 0.3, 0.0]}}
    error = 1 - confusion.diagonal() / confusion.sum(1)
    assert claims.follows_difficulty(record) == pytest.approx(stats.spearmanr([0.1, 0.2, 0.3, 0.0], error).statistic)


def test_ledger_is_written_whole(project):
    table = claims.ledger({}, [1, 52])
    claims.write_ledger(table)
    again = pd.read_csv(project / "results" / "claims.csv")
    assert list(again["number"]) == [1, 52] and list(again["verdict"]) == list(table["verdict"])
