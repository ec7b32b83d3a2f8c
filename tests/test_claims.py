"""The ledger of the claims: its rule, its figures, and what they rest on."""

import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_replicas import fake

from studies import claims, controlled, evidence, geometry, margin_maps, replicas, s1, s3, statistics, tuning, verdicts
from studies.study import Study


def row_of(table, text):
    return table[table["claim"].str.contains(text, regex=False)].iloc[0]


def numbers(*texts):
    table = claims.claims()
    return [row_of(table, text).name for text in texts]


def row(text, **changes):
    """The typed row of a claim."""
    typed = claims.claims()
    found = next(r for r in typed.itertuples() if text in r.claim)
    return found._replace(**changes)


def judged(d, **changes):
    return claims.tested(d, row("MNIST: AdaLoss is more accurate", **changes)).verdict


# ---------------------------------------------------------------- the rule


def test_one_rule_for_differences_of_either_sign():
    near, wide = np.array([-0.01, 0.0, 0.01]), np.array([-1.0, 0.0, 1.1])
    for d in (near, near + 1, wide, near + 0.05):
        words = judged(d), judged(-d)
        assert [word.replace("opposite", "as claimed") for word in words] == [
            words[0].replace("opposite", "as claimed")
        ] * 2
    assert judged(near + 1) == "as claimed" and judged(near - 1) == "opposite"
    assert judged(near) == "equivalent" and judged(near, bound=math.nan) == "not decided"
    assert judged(near + 0.05) == "as claimed, within the bound" and judged(wide) == "not decided"
    assert judged([1.0, 1.0, 1.0]) == judged([1.0, 1.1]) == "not decided"  # no spread, and too few
    assert set(claims.OF_DIFFERENCES.values()) >= {"as claimed", "opposite", "equivalent", "not decided"}


def test_an_influence_may_have_either_sign():
    here = row("MNIST: ArcFace is sensitive to the scale s")
    for d in (np.array([0.9, 1.0, 1.1]), -np.array([0.9, 1.0, 1.1])):
        assert claims.tested(d, here, either=True).verdict == "as claimed"
    assert claims.tested(np.array([-0.01, 0, 0.01]), here, either=True).verdict == "equivalent"


def test_each_figure_names_the_smallest_difference_in_reach():
    d = np.array([0.1, 0.2, 0.4])
    figure = claims.tested(d, row("MNIST: AdaLoss is more accurate"))
    assert figure.smallest == statistics.detectable(d.std(ddof=1), 3)
    assert (figure.low, figure.high) == pytest.approx(statistics.interval(d)[1:])


def test_no_interval_leaves_what_a_quantity_can_be():
    d = np.array([-60.0, 30.0, 80.0])
    assert claims.tested(d, row("MNIST: AdaLoss is more accurate")).high == 100
    assert claims.tested(d / 100, row("MNIST: the margin grows")).low == -1
    records = s1_records("s1_published_mnist", {})
    for run, record in records.items():
        record["metrics"]["beyond_one"] = 0.9 + 0.03 * run.seed
    figure = claims.value(evidence.answered(records), row("start from the same cosine"))
    assert figure.high == 100 and figure.verdict == "not as claimed"


def test_prediction_holds_one_more_run():
    runs = np.random.default_rng(0).normal(size=(4000, 4))
    inside = []
    for *seen, new in runs:
        mean, low, high = claims.prediction(seen)
        assert mean == pytest.approx(np.mean(seen))
        inside.append(low < new < high)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)
    assert np.isnan(claims.prediction([1.0])[1:]).all()


# ---------------------------------------------------------------- what is typed


def test_every_claim_has_a_known_kind_and_known_runs():
    table = claims.claims()
    assert list(table.index) == list(range(1, len(table) + 1)) and set(table["kind"]) <= set(claims.KINDS)
    plans = {plan.partition("/")[0] for text in table["plans"] for plan in text.replace(" | ", " ").split()}
    known = {study.name for study in (*tuning.STUDIES, *controlled.STUDIES, *margin_maps.STUDIES, *s3.STUDIES)}
    assert plans <= {*replicas.PLANS, *s1.PLANS, *known, "margins"}
    needs = table["kind"].isin(["value", "exact"])
    assert (table["published"].notna() == needs).all() and (table["tolerance"].notna() == needs).all()
    assert not table.duplicated("claim").any()
    test = ["plans", "a", "b", "metric", "published"]
    assert not table[table["plans"] != ""].duplicated(test).any()
    accuracy = (
        table["kind"].isin(["effect", "influence"])
        & table["metric"].str.contains("accuracy")
        & (table["unit"] == "points")
    )
    of_data = np.where(table["claim"].str.startswith("CIFAR-10"), 0.2, 0.1)
    assert (table.loc[accuracy, "bound"] == of_data[accuracy]).all()


def test_alternatives_are_whole_comparisons():
    first, last = claims.comparisons_of(row("MNIST: AdaLoss is more accurate"))
    assert (first.plans, first.a, first.confounder) == ("s1_same_network_mnist", "AdaLoss: same scale", "")
    assert (last.plans, last.a) == ("s1_published_mnist", "AdaLoss") and "scale" in last.confounder


# ---------------------------------------------------------------- S1


def s1_record(run, accuracy):
    """A record as ``s1.execute`` makes it, without training."""
    read = dict.fromkeys(("test_accuracy", "cosine_accuracy", "leaked_accuracy"), accuracy)
    metrics = read | {"train_accuracy": accuracy + 0.001, "beyond_one": 0.95, "dead": accuracy < 0.5}
    metrics |= {"factor_by_class": list(range(10)), "confusion": (np.diag(range(90, 100)) + np.eye(10, k=1)).tolist()}
    curves = {key: [value] * run.epochs for key, value in read.items()} | {"loss": [1.0] * run.epochs}
    record = {"config": dataclasses.asdict(run), "metrics": metrics, "history": curves, "seconds": 1.0}
    return json.loads(json.dumps(record))


def s1_records(plan, accuracies, seeds=3):
    """Records of one of S1's plans; accuracies: name -> those by seed, 0.99 where none are given."""
    records = {}
    for seed in range(seeds):
        for name, run in s1.PLANS[plan][1](seed).items():
            if run not in records or name in accuracies:  # some pairs share a run
                given = accuracies.get(name, [0.99 + 1e-4 * seed for seed in range(seeds)])
                records[run] = s1_record(run, given[seed])
    return records


def test_a_confounded_comparison_is_neither_reproduced_nor_reversed(project):
    asked, arcface = numbers("MNIST: AdaLoss is more accurate"), [0.978, 0.979, 0.978]
    for adaloss in ([0.991, 0.990, 0.990], [0.955, 0.955, 0.954], [0.9999, 0.9998, 0.9997]):
        records = s1_records("s1_published_mnist", {"ArcFace": arcface, "AdaLoss": adaloss})
        line = claims.ledger(records, asked).iloc[0]
        assert line["verdict"] == "confounded" and line["figure"] == ""
        assert "scale" in line["confounder"] and "points" in line["confounded"]


def test_the_pair_on_one_network_decides_as_soon_as_a_seed_is_whole(project):
    published = s1_records("s1_published_mnist", {"ArcFace": [0.98, 0.981, 0.982]})
    asked = numbers("MNIST: AdaLoss is more accurate")
    pair = {"AdaLoss: same scale": [0.995, 0.996, 0.994], "ArcFace: same scale": [0.990, 0.990, 0.990]}
    pairs = s1_records("s1_same_network_mnist", pair)
    line = claims.ledger(pairs, asked).iloc[0]
    assert line["verdict"] == "as claimed" and line["n"] == 3 and line["figure"].startswith("0.50 [")
    assert line["confounder"] == line["confounded"] == ""  # what is not recorded has no size
    assert claims.ledger(pairs | published, asked).iloc[0]["confounded"].startswith("0.91 [")
    one = {run: record for run, record in pairs.items() if run.seed == 0}
    line = claims.ledger(published | one, asked).iloc[0]
    assert line["verdict"] == "not decided" and line["n"] == 1
    broken = dict(list(one.items())[:-1])  # a seed that is not whole counts for nothing
    assert claims.ledger(published | broken, asked).iloc[0]["verdict"] == "confounded"


def test_claims_on_runs_that_are_not_recorded_say_so(project):
    """S1's are of two data sets, and those of one answer no claim on the other, nor on both."""
    typed = claims.claims()
    of_s1 = typed["plans"].str.contains("s1_")
    records = s1_records("s1_published_mnist", {}) | s1_records("s1_same_network_mnist", {})
    table = claims.ledger(records, list(typed.index[of_s1]))
    mnist = ~typed.loc[of_s1, "plans"].str.contains("cifar10")
    assert mnist.sum() == 11 and (~mnist).sum() == 11
    assert (table.loc[mnist, "figure"] != "").all() and (table.loc[mnist, "verdict"] != "confounded").all()
    without = table[~mnist]
    assert (without["setting"] == "no runs recorded").all() and (without["verdict"] == claims.NOT_RUN).all()
    assert (without[["figure", "confounded"]] == "").all(axis=None)


def test_stalled_runs_are_counted(project):
    dead = {"ArcFace": [0.098, 0.989, 0.990]}
    found = s1_records("s1_published_mnist", dead)
    table = claims.ledger(
        found, numbers("MNIST: 97.86 % says", "MNIST: AdaLoss reaches 99.11 %", "start from the same cosine")
    )
    line = row_of(table, "97.86 % says")
    assert line["verdict"] == "stalled: 1 of 3" and line["figure"] == "the others 98.90 to 99.00 %"
    assert not row_of(table, "AdaLoss reaches")["verdict"].startswith("stalled")
    assert not row_of(table, "same cosine")["verdict"].startswith(
        "stalled"
    )  # what a dead network multiplies, it multiplies
    pair = {"ArcFace: same scale": [0.1, 0.99, 0.99], "AdaLoss: same scale": [0.99, 0.99, 0.991]}
    line = claims.ledger(s1_records("s1_same_network_mnist", pair), numbers("MNIST: AdaLoss is more accurate")).iloc[0]
    assert (
        line["verdict"] == "stalled: AdaLoss 0 of 3, ArcFace 1 of 3"
        and line["figure"] == "the others 0.00 to 0.10 points"
    )


def test_stalled_runs_of_one_loss_are_told_apart(project):
    starts = {"ArcFace: same scale": [0.1, 0.99, 0.99], "ArcFace: same network and rate": [0.99] * 3}
    asked = numbers("MNIST: ArcFace is sensitive to the scale s")
    line = claims.ledger(s1_records("s1_same_network_mnist", starts), asked).iloc[0]
    assert line["verdict"] == "stalled: same scale 1 of 3, same network and rate 0 of 3"


def test_one_stalled_pair_of_many_is_left_out():
    def record(accuracy):
        return {
            "config": {"epochs": 4},
            "metrics": {"test_accuracy": accuracy},
            "history": {"test_accuracy": [accuracy]},
        }

    by_seed = {
        seed: {"Softmax": record(0.99), "ArcFace": record(0.991 + 1e-4 * (seed % 3) if seed else 0.1)}
        for seed in range(12)
    }
    here = row("MNIST: ArcFace is more accurate than cross-entropy", plans="plan")
    figure = claims.effect({"plan": (4, by_seed)}, here)
    assert figure.n == 11 and figure.verdict == "as claimed"
    assert evidence.which_stalled(by_seed)[0, "ArcFace"] and sum(evidence.which_stalled(by_seed).values()) == 1
    by_seed[1]["ArcFace"] = record(0.1)
    assert claims.effect({"plan": (4, by_seed)}, here).verdict == "stalled: ArcFace 2 of 12, Softmax 0 of 12"


def test_seeds_of_two_data_sets_are_no_pairs():
    def plan(name, *gaps):
        return {f"s1_same_network_{name}": (10, {seed: arms(gap) for seed, gap in enumerate(gaps)})}

    def arms(gap):
        metrics = ({"test_accuracy": 0.9, "cosine_accuracy": 0.9 + g} for g in (0, gap))
        return {
            f"{loss}: same scale": {"config": {"epochs": 10}, "metrics": m}
            for loss, m in zip(s1.LOSSES, metrics, strict=True)
        }

    easy, hard = [0.001, 0.002, 0.003], [0.05, 0.06, 0.04]
    here = claims.comparisons_of(row("larger on the harder data"))[0]
    figure = claims.harder(plan("mnist", *easy) | plan("cifar10", *hard), here)
    test = stats.ttest_ind(hard, easy, equal_var=False).confidence_interval()
    assert (figure.low, figure.high) == pytest.approx((100 * test.low, 100 * test.high))
    assert figure.verdict == "as claimed" and figure.smallest > 0


# ---------------------------------------------------------------- shorter runs


def changing(record):
    """The record of a run whose accuracy still rises."""
    curve = record["history"]["test_accuracy"]
    curve[:] = [value - 0.01 * (len(curve) - 1 - i) for i, value in enumerate(curve)]
    return record


def test_runs_that_still_change_decide_nothing(project):
    search = {run: fake(run) for run in replicas.search().values()}
    every = {
        run: fake(run, 0.9 + 0.001 * run.seed * (run.loss == "ArcFace") - 0.1 * (run.loss == "ArcFace"))
        for seed in range(3)
        for run in replicas.s3_group("cifar10", 10, seed, search).values()
    }
    asked = numbers("CIFAR-10: ArcFace is more accurate than cross-entropy", "CIFAR-10: ArcFace reaches about 88")
    line = row_of(claims.ledger(search | every, asked), "more accurate")
    assert line["setting"] == "10 epochs, not 30: settled" and line["verdict"] == "opposite"
    table = claims.ledger(search | {run: changing(record) for run, record in every.items()}, asked)
    for text in ("more accurate", "about 88"):
        line = row_of(table, text)
        assert line["setting"] == "10 epochs, not 30" and line["figure"] and line["verdict"] == claims.OPEN


def test_settled_curves_count_in_full():
    def record(curve):
        return {"history": {"test_accuracy": curve}}

    assert evidence.settled([record([0.5] * 10 + [0.99] * 10 + [0.9905] * 10)])
    assert not evidence.settled([record([0.5] * 10 + [0.98] * 10 + [0.99] * 10)])
    assert not evidence.settled([record([0.99, 0.99, 0.99])])  # too short to tell


@pytest.mark.parametrize(
    ("accuracy", "verdict"), [(0.9700, "not as claimed"), (0.9900, claims.OPEN), (0.9908, claims.OPEN)]
)
def test_a_drift_that_counts_as_settled_decides_nothing(accuracy, verdict):
    def record(value):
        return {
            "config": {"epochs": 30},
            "metrics": {"test_accuracy": value},
            "history": {"test_accuracy": [value] * 30},
        }

    by_seed = {seed: {"ArcFace": record(accuracy + 1e-4 * seed)} for seed in (-1, 0, 1)}
    here = row("ArcFace reaches 99.08 %")
    assert claims.value({"s5": (30, by_seed)}, here).verdict == verdict
    for arms in by_seed.values():
        arms["ArcFace"]["config"]["epochs"] = 100
    assert claims.value({"s5": (100, by_seed)}, here).verdict == (
        "as claimed" if accuracy == 0.9908 else "not as claimed"
    )


# ---------------------------------------------------------------- S5's grid


def grid_records(effect, seeds=4, noise=0.0005):
    rng = np.random.default_rng(0)
    return {
        run: fake(run, 0.9885 + effect(*pair) + noise * rng.standard_normal())
        for seed in range(seeds)
        for pair, run in replicas.s5_margins(20, seed).items()
    }


def test_margins_of_the_grid(project):
    m = numbers("ArcFace is sensitive to the margin m")
    flat = claims.ledger(grid_records(lambda m2, m3: 0), m).iloc[0]
    steep = claims.ledger(grid_records(lambda m2, m3: 0.1 * (m2 - 0.5)), m).iloc[0]
    assert flat["verdict"] == "equivalent" and steep["verdict"] == "as claimed"


def test_outliers_and_best_margins(project):
    records = grid_records(lambda m2, m3: 0.002 * (m3 > 0))
    table = claims.ledger(records, numbers("96.01 %", "98.93 %", "The combined margin", "m = 0.50 is the best"))
    assert row_of(table, "96.01 %")["verdict"] == "not as claimed" and row_of(table, "96.01 %")["n"] == 80
    assert row_of(table, "The combined margin")["verdict"] == "as claimed"
    assert row_of(table, "m = 0.50 is the best")["verdict"] in ("not decided", "equivalent")
    diverging = grid_records(lambda m2, m3: 0, noise=0.01)
    assert claims.ledger(diverging, numbers("97.58 %"))["verdict"].item() == "as claimed"
    grid, length = evidence.s5_grid(evidence.answered(records))
    assert grid.shape == (40, 4) and length == "20 epochs"


# ---------------------------------------------------------------- without records, and of other studies


def test_geometry_needs_no_records(project):
    table = claims.ledger({})
    assert row_of(table, "two points is 7.8")["figure"] == "7.943 degrees"
    for text in ("two points is 7.8", "cosine of 0.99", "Both losses have the same network"):
        assert row_of(table, text)["verdict"] == "not as claimed"
    for text in ("2.83 apart", "distance is 6.8", "leaves the angle unchanged", "L2", "L3", "vector of cosines"):
        assert row_of(table, text)["verdict"] == "as claimed", text
    assert row_of(table, "leaves the angle unchanged")["figure"] == "0 degrees"
    assert row_of(table, "disturbed values")["verdict"] == "opposite"
    assert row_of(table, "missing values")["verdict"] == "as claimed"
    open_rows = table[table["verdict"].isin([claims.OPEN, claims.NOT_RUN])]
    settings = {verdict: set(rows["setting"]) for verdict, rows in open_rows.groupby("verdict")}
    assert settings == {claims.OPEN: {""}, claims.NOT_RUN: {"no runs recorded"}}
    assert set(", ".join(open_rows["source"]).split(", ")) == {"S1", "S2", "S3", "S4", "S5"}
    assert (open_rows["figure"] == "").all()


def test_every_verdict_is_counted_once_per_source(project):
    table = claims.ledger({})
    counts = claims.counts(table)
    assert counts.to_numpy().sum() == table["source"].str.split(", ").str.len().sum()
    assert list(counts.columns) == list(claims.VERDICTS)
    made = pd.DataFrame({"source": ["S1", "S1, S2"], "verdict": ["stalled: 1 of 3", "as claimed, within the bound"]})
    assert claims.counts(made).loc["S1", ["stalled", "as claimed"]].tolist() == [1, 1]


def test_controlled_study_answers_claims(project, monkeypatch):
    rows = [("ArcFace", seed, 0.90 + seed / 100) for seed in range(3)]
    rows += [("AdaLoss", seed, 0.91 + seed / 100 + seed / 1000) for seed in range(3)]
    frame = pd.DataFrame(rows, columns=["head", "seed", "test_accuracy"])
    frame = frame.assign(epochs=4, seconds=1.0, history=[{} for _ in rows])
    number = numbers("MNIST: a tuned adaptive mechanism")
    assert claims.ledger({}, number)["setting"].item() == "no runs recorded"
    assert claims.printed(number).endswith(": no runs recorded\n  not run yet")
    assert [study.name for study in claims.needed(number)] == ["final_mnist"]
    monkeypatch.setattr(evidence.controlled, "finished", lambda name: frame)
    line = claims.ledger({}, number).iloc[0]
    mean, low, high = statistics.interval([1.0, 1.1, 1.2])
    assert line["figure"] == f"{mean:.2f} [{low:.2f}, {high:.2f}] points" and line["verdict"] == "as claimed"
    assert line["n"] == 3 and line["setting"] == "4 epochs"
    assert claims.needed(number) == []


def test_the_check_of_the_recommender_answers_its_claim(project, monkeypatch):
    checks = {"family": pd.DataFrame({"log_odds": [-0.20, -0.25, -0.30]})}
    monkeypatch.setattr(claims.recommend, "observations", lambda: "observed")
    monkeypatch.setattr(claims.recommend, "leave_out", lambda observed, column: checks[column])
    number = numbers("A regression over recorded runs")
    line = claims.ledger({}, number).iloc[0]
    mean, low, high = statistics.interval([-0.20, -0.25, -0.30])
    assert line["figure"] == f"{mean:.3f} [{low:.3f}, {high:.3f}] log-odds" and line["verdict"] == "opposite"
    assert line["n"] == 3 and line["setting"] == "each family left out in turn"
    checks["family"] = pd.DataFrame()
    assert claims.ledger({}, number)["setting"].item() == "no runs recorded"
    assert claims.needed(number) == margin_maps.STUDIES


def test_in_a_map_the_scales_are_the_repeats():
    def record(accuracy):
        return {"config": {"epochs": 4}, "metrics": {"val_accuracy": accuracy}, "history": {}}

    drop = {2.0: 0.01, 4.0: 0.02, 8.0: 0.04}
    by_seed = {
        (seed, s): {"m = 0.5": record(0.8 - d), "m = 0.1": record(0.8)} for seed in (0, 1) for s, d in drop.items()
    }
    figure = claims.influence({"map": (4, by_seed)}, row("MNIST: the choice of m", plans="map"))
    assert figure.n == 3 and figure.value == pytest.approx(-100 * np.mean(list(drop.values())))


def test_a_claim_needs_what_is_not_recorded(project, monkeypatch):
    first, m = numbers("MNIST: AdaLoss is more accurate", "ArcFace is sensitive to the margin m")
    assert [study.name for study in claims.needed([first])] == ["s1_same_network_mnist"]
    assert [study.name for study in claims.needed([first, m])] == ["s1_same_network_mnist", "s5_grid"]
    found = s1_records("s1_published_mnist", {})
    monkeypatch.setattr(evidence, "read", lambda: found)
    assert claims.needed([first]) == []
    monkeypatch.setenv("RETRAIN", "1")
    assert [study.name for study in claims.needed([first])] == ["s1_published_mnist"]
    assert all(isinstance(study, Study) for study in claims.needed([first, m]))


def test_numbers_are_those_of_claims():
    assert claims.numbers(["1", "52"]) == [1, 52] and claims.numbers([]) == []
    for text in ("0", "999", "x", "-1", "1.0"):
        with pytest.raises(ValueError, match=rf"^there is no claim {text}: choose from 1 to \d+$"):
            claims.numbers(["1", text])


def test_equations_can_fail():
    assert geometry.equation_error("ArcFace", m=0.5) < 1e-9 < 0.1 < geometry.equation_error("CosFace", m=0.5)


def test_difficulty_correlation():
    confusion = np.diag([90, 80, 70, 60]) + np.eye(4, k=1, dtype=int) * 10
    record = {"metrics": {"confusion": confusion.tolist(), "factor_by_class": [0.1, 0.2, 0.3, 0.0]}}
    error = 1 - confusion.diagonal() / confusion.sum(1)
    assert evidence.follows_difficulty(record) == pytest.approx(stats.spearmanr([0.1, 0.2, 0.3, 0.0], error).statistic)


def test_confused_groups():
    record = {"metrics": {"confusion": [[8, 1, 1], [0, 10, 0], [3, 0, 7]]}}
    assert evidence.confused(record, [0], [2]) == 4 / 20 and evidence.confused(record, [0, 1], [2]) == 4 / 30


def test_ledger_is_written_whole(project):
    table = claims.ledger({}, [1, 69])
    claims.write_ledger(table)
    again = pd.read_csv(project / "results" / "claims.csv")
    assert list(again["number"]) == [1, 69] and list(again["verdict"]) == list(table["verdict"])


def test_the_rule_is_that_of_the_protocol():
    d = np.array([0.1, 0.3, 0.5])
    of = verdicts.decide(d, 0.1)
    outer, inner = of["high"] - of["mean"], of["inner_high"] - of["mean"]
    assert of["verdict"] == verdicts.word(of["mean"], outer, inner, 0.1) == "not decided"


def test_a_margin_that_is_not_written_is_the_default():
    assert evidence.margin({"head": "ArcFace", "constants": []}) == 0.3
    assert evidence.margin({"head": "ArcFace", "constants": [["s", 8.0], ["m", 0.5]]}) == 0.5
