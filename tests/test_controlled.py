"""Trials, finalists and final runs as studies/PROTOCOL.md has them, on records that are made up."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from scipy import stats
from test_runs import fake

from lib import heads, paths
from studies import __main__ as command
from studies import answers, controlled, records, runs, search
from studies.study import Incomplete, Study

DATA = list(controlled.SETTINGS)


def write(study, found):
    lines = [json.dumps(record) + "\n" for record in found]
    paths.write(study.path, (study.path.read_text() if study.path.exists() else "") + "".join(lines))


def record_trials(data, scores=None):
    """A record for every trial, also behind the ends of ranges; scores: {(head, trial): val_accuracy}, else 0.5."""
    counts, found = {}, []
    for config in controlled.trials(data):
        trial = counts[config.head] = counts.get(config.head, -1) + 1
        found.append(fake(config, metrics={"val_accuracy": (scores or {}).get((config.head, trial), 0.5)}))
    write(controlled.TRIALS[data], found)
    write(controlled.WIDER[data], [fake(c, metrics={"val_accuracy": 0.4}) for c in controlled.wider(data)])


def record_finalists(data, scores=None):
    """A record for every finalist; scores: {(head, s of its constants, seed): val_accuracy}."""
    found = []
    for config in controlled.finalists(data):
        key = config.head, dict(config.constants).get("s"), config.seed
        history = {"margins": [[0.1] * 10, [0.2, 0.4] * 5]} if config.head == "AdaLoss" else {}
        found.append(fake(config, metrics={"val_accuracy": (scores or {}).get(key, 0.5)}, history=history))
    write(controlled.FINALISTS[data], found)


@pytest.mark.parametrize("data", DATA)
def test_trials_of_equal_number_in_the_setting_of_the_final_runs(data):
    trials, losses = controlled.trials(data), controlled.SETTINGS[data].losses
    assert [t.head for t in trials] == list(losses) * search.TRIALS == list(losses) * 12
    assert len(set(trials)) == len(trials) and {t.seed for t in trials} == {1000}
    rates = {head: [t.lr for t in trials if t.head == head] for head in losses}
    scales = {head: [dict(t.constants).get("s") for t in trials if t.head == head] for head in losses}
    assert all(r == rates["Softmax"] for r in rates.values()) and len(set(rates["Softmax"])) == 12
    assert all(s == scales["ArcFace"] for head, s in scales.items() if head != "Softmax")
    free = {"constants", "lr", "muon_lr", "seed", "head"}
    settings = {tuple((k, v) for k, v in dataclasses.asdict(t).items() if k not in free) for t in trials}
    assert len(settings) == 1


def test_the_first_trial_is_the_default_and_adaloss_is_not_clipped():
    for trial in controlled.trials("mnist")[: len(controlled.SETTINGS["mnist"].losses)]:
        free = {"m_min": 0.0, "m_max": 1.5} if trial.head == "AdaLoss" else {}
        assert trial == runs.recipe("mnist", trial.head, 1000, constants=free)
    for trial in controlled.trials("cifar10"):
        head = heads.make(trial.head, 10, 8, **dict(trial.constants))  # every constant is one of the head's
        if trial.head == "AdaLoss":
            assert (head.m_min, head.m_max) == (0, 1.5)


def test_scale_and_rate_are_drawn_apart_and_widely():
    trials = [t for t in controlled.trials("mnist") if t.head == "ArcFace"][1:]
    s, lr = ([f(t) for t in trials] for f in (lambda t: dict(t.constants)["s"], lambda t: t.lr))
    assert min(s) < 4 and max(s) > 32 and min(lr) < 0.05 and max(lr) > 0.2
    assert abs(torch.corrcoef(torch.tensor([s, lr]).log())[0, 1]) < 0.4


def test_the_best_three_run_again_and_the_mean_of_the_two_decides(project):
    with pytest.raises(Incomplete, match="12 of 12 trials of ArcFace"):
        controlled.finalists("mnist")
    record_trials("mnist", {("ArcFace", 3): 0.9, ("ArcFace", 5): 0.8, ("ArcFace", 7): 0.7})
    planned = controlled.finalists("mnist")
    assert len(planned) == 6 * 3 * 2 and [r.seed for r in planned] == [1001] * 18 + [1002] * 18
    arcface = [t for t in controlled.trials("mnist") if t.head == "ArcFace"]
    best = [arcface[i] for i in (3, 5, 7)]
    assert [r for r in planned if r.head == "ArcFace"][:3] == [dataclasses.replace(b, seed=1001) for b in best]
    with pytest.raises(Incomplete, match="36 of 36 finalists"):
        controlled.chosen("mnist")
    s = [dict(b.constants)["s"] for b in best]
    scores = {("ArcFace", s[0], 1001): 0.9, ("ArcFace", s[0], 1002): 0.1, ("ArcFace", s[1], 1001): 0.6}
    record_finalists("mnist", scores | {("ArcFace", s[1], 1002): 0.6})  # means 0.5, 0.6, 0.5
    assert controlled.chosen("mnist")["ArcFace"].constants == best[1].constants


def test_all_that_was_tried_as_rows(project):
    record_trials("mnist", {("ArcFace", 3): 0.9, ("ArcFace", 5): 0.8, ("ArcFace", 7): 0.7})
    record_finalists("mnist")
    rows = controlled.tried("mnist")
    arcface = rows[rows["head"] == "ArcFace"]
    wider = [run for run in controlled.wider("mnist") if run.head == "ArcFace"]
    assert arcface["stage"].tolist() == ["trial"] * 12 + ["wider"] * len(wider) + ["finalist"] * 6
    assert rows["head"].nunique() == 6
    best = controlled.chosen("mnist")["ArcFace"]
    picked = arcface[arcface["chosen"]]
    assert picked["stage"].tolist() == ["trial", "finalist", "finalist"] and picked["seed"].tolist() == [
        1000,
        1001,
        1002,
    ]
    assert picked["val_accuracy"].iloc[0] == 0.9 and set(picked["lr"]) == {best.lr}
    assert arcface["factor"].iloc[0] == 1 and 0.25 <= rows["factor"].min() < rows["factor"].max() <= 4


def test_final_runs(project):
    record_trials("mnist")
    record_finalists("mnist")
    plan = controlled.final("mnist")
    first = [name for run, name in plan.items() if run.seed == 0]
    assert first == [*controlled.SETTINGS["mnist"].losses, "same mean", "permuted", "random"]
    assert [name for run, name in plan.items() if run.seed == 19] == [
        "ArcFace", "AdaLoss", "same mean", "permuted", "random",
    ]  # fmt: skip
    seeds = [run.seed for run in plan]
    assert seeds == sorted(seeds) and len(plan) == 10 * 9 + 10 * 5
    arms = {name: run for run, name in plan.items() if run.seed == 0}
    assert dict(arms["same mean"].constants)["m"] == pytest.approx(0.3)
    assert dict(arms["random"].constants)["spread"] == pytest.approx(0.1)
    assert arms["permuted"].constants == arms["AdaLoss"].constants and arms["permuted"].head == "PermutedAdaLoss"
    assert {arms[n].lr for n in ("same mean", "permuted", "random")} == {arms["AdaLoss"].lr}
    assert not set(plan) & set(controlled.finalists("mnist"))
    assert all(run.epochs == 16 and run.head in controlled.CORE for run in controlled.long("mnist"))


def test_rows_say_which_runs_are_stalled(project):
    record_trials("mnist")
    record_finalists("mnist")
    plan = controlled.final("mnist")
    write(controlled.FINAL["mnist"], [
        fake(run, metrics={"val_accuracy": 0.1 if name == "random" else 0.9, "test_accuracy": 0.9})
        for run, name in plan.items() if run.seed < 2
    ])  # fmt: skip
    frame = controlled.finished("mnist")
    assert len(frame) == 18 and set(frame.loc[frame["stalled"], "head"]) == {"random"}
    assert {"same mean", "permuted"} <= set(frame["head"])


def test_trials_hold_no_test_result_and_diverged_ones_count(project):
    run = controlled.trials("mnist")[0]

    def finite(run, progress=False):
        return "model", fake(run, metrics={"val_accuracy": 0.7, "test_accuracy": 0.9})

    def diverges(run, progress=False):
        raise FloatingPointError("the loss is nan in epoch 2")

    assert search.hide_test(finite, "val_accuracy")(run)[1]["metrics"] == {"val_accuracy": 0.7}
    assert search.count_failures(finite, "val_accuracy")(run)[1]["metrics"]["test_accuracy"] == 0.9
    for wrapped in (search.hide_test, search.count_failures):
        model, record = wrapped(diverges, "val_accuracy")(run)
        assert model is None
        assert record["metrics"] == {"val_accuracy": 0.0, "failed": "the loss is nan in epoch 2"}


def test_a_final_run_keeps_which_test_images_are_wrong(project):
    run = runs.recipe("digits", "ArcFace", epochs=1, train_size=100)
    _, record = answers.with_answers(runs.execute)(run)
    wrong = answers.unpack(json.loads(json.dumps(record["wrong"])))
    assert wrong.shape == (359,) and 1 - wrong.mean() == pytest.approx(record["metrics"]["test_accuracy"])
    assert 0 < wrong.sum() < 359

    def diverges(run, progress=False):
        raise FloatingPointError("the loss is nan in epoch 2")

    model, record = search.count_failures(answers.with_answers(diverges), "val_accuracy")(run)
    assert model is None and "wrong" not in record


def test_which_images_are_right_by_arm_and_seed(project):
    record_trials("mnist")
    record_finalists("mnist")
    packed = answers.pack(np.arange(10) == 3)
    plan = [run for run in controlled.final("mnist") if run.seed < 2]
    write(controlled.FINAL["mnist"], [
        fake(run) | ({"wrong": packed} if run.head != "Softmax" or run.seed else {}) for run in plan
    ])  # fmt: skip
    right = controlled.right("mnist")
    assert right["Softmax"].keys() == {1} and right["same mean"].keys() == {0, 1}
    assert right["AdaLoss"][1].tolist() == [True] * 3 + [False] + [True] * 6
    with pytest.raises(ValueError, match="two seeds"):
        answers.other_images(right["AdaLoss"], right["Softmax"])


def test_the_interval_for_other_images_holds_the_truth():
    """An image is hard for both losses and, apart, for one; a seed is lucky. All normal, so the truth is known."""
    generator, width = np.random.default_rng(0), math.sqrt(1.5**2 + 1.5**2 + 0.05**2 + 1)
    truth = stats.norm.cdf(2.6 / width) - stats.norm.cdf(2.5 / width)
    held = held_for_seeds = 0
    for _ in range(300):
        easy, pair = generator.normal(0, 1.5, 400), []
        for mean in (2.6, 2.5):
            own = easy + generator.normal(mean, 1.5, 400)
            lucky = generator.normal(0, 0.05, 10)
            pair.append({seed: own + lucky[seed] + generator.normal(0, 1, 400) > 0 for seed in range(10)})
        found = answers.other_images(*pair)
        held += found["low"] <= truth <= found["high"]
        held_for_seeds += abs(found["mean"] - truth) <= stats.t.ppf(0.975, 9) * found["seeds"]
    assert held >= 0.95 * 300 - 6
    assert held_for_seeds < 0.8 * held  # that of the seeds alone is for the same images


def test_what_lies_at_the_end_of_a_range():
    run = controlled.default("mnist", "ArcFace")

    def at(lr=0.1, head="ArcFace", **constants):
        return search.beyond(dataclasses.replace(run, head=head, constants=constants, lr=lr), run)

    assert at(s=11, m=0.5) == {} and at(s=2.1, m=0.5) == {"s": (1, 2)} and at() == {}
    assert at(s=63, m=0.98) == {"s": (64, 128), "m": (1, 1.98)}
    assert at(s=11, m=0.03) == {} and at(lr=0.39, s=11, m=0.5) == {"lr": (4, 8)}
    kappa = at(head="KappaFace", s=11, m0=2.75)["m0"]
    assert kappa[0] == 2.8 and kappa[1] < 3.2  # an angle ends at pi


def test_a_best_trial_at_an_end_gets_six_more_behind_it(project):
    record_trials("mnist")
    assert controlled.wider("mnist") == []
    arcface = [t for t in controlled.trials("mnist") if t.head == "ArcFace"]
    low = min(range(1, 12), key=lambda i: dict(arcface[i].constants)["s"])
    end = dict(arcface[low].constants)["s"]
    if search.beyond(arcface[low], controlled.default("mnist", "ArcFace")).get("s") is None:
        pytest.skip(f"the smallest scale drawn, {end}, is not at the end")
    record_trials("mnist", {("ArcFace", low): 0.9})
    more = controlled.wider("mnist")
    assert len(more) == 6 and {t.head for t in more} == {"ArcFace"} and {t.seed for t in more} == {1000}
    assert all(1 <= dict(t.constants)["s"] <= 2 for t in more) and not set(more) & set(arcface)
    write(controlled.WIDER["mnist"], [fake(t, metrics={"val_accuracy": 0.95}) for t in more])
    best = [run for run in controlled.finalists("mnist") if run.head == "ArcFace"]
    assert best[:3] == [dataclasses.replace(t, seed=1001) for t in more[:3]]


# ---------------------------------------------------------------- one machine per seed, committed code


def paired_study(tmp_seeds):
    plan = [runs.recipe("digits", head, seed) for seed in tmp_seeds for head in ("Softmax", "ArcFace")]
    trained = []

    def execute(run, progress=False):
        trained.append((run.head, run.seed))
        record = fake(run, metrics={"val_accuracy": 1.0})
        return None, record | {"machine": records.machine(torch.device("cpu"), torch.get_num_threads())}

    return Study("mine", "?", runs.Config, lambda full: plan, execute, paired=True), plan, trained


def test_a_seed_begun_elsewhere_is_trained_again_as_a_whole(project):
    study, plan, trained = paired_study([0, 1, 2])
    elsewhere = [fake(run) | {"machine": "elsewhere"} for run in plan[:3]]  # seed 0 whole, seed 1 half
    write(study, elsewhere)
    study.train()
    assert trained == [("Softmax", 1), ("ArcFace", 1), ("Softmax", 2), ("ArcFace", 2)]
    assert len(study.path.read_text().splitlines()) == 7  # nothing recorded is lost
    trained.clear()
    study.train()
    assert trained == []


def test_a_seed_from_two_machines_is_mended(project):
    study, plan, trained = paired_study([0])
    here = records.machine(torch.device("cpu"), torch.get_num_threads())
    write(study, [fake(plan[0]) | {"machine": "elsewhere"}, fake(plan[1]) | {"machine": here}])
    study.train()
    assert trained == [("Softmax", 0)]


def test_changed_code_trains_nothing(project, monkeypatch):
    monkeypatch.setattr(records, "commit", lambda: "abc1234+")
    monkeypatch.setattr(Study, "train", lambda *args, **options: pytest.fail("a study was trained"))
    with pytest.raises(SystemExit, match="error: lib, studies or benchmarks have changes that are not committed"):
        command.main(["trials_mnist"])


def test_what_a_study_needs_is_trained_first(project, monkeypatch):
    order = []
    monkeypatch.setattr(Study, "train", lambda self, *args, **options: order.append(self.name))
    command.main(["final_mnist"])
    assert order == ["trials_mnist", "wider_mnist", "finalists_mnist", "final_mnist"]


def test_a_machine_is_named_exactly():
    name = records.machine(torch.device("cpu"), 1)
    assert name.startswith(records.name(torch.device("cpu"), 1)) and torch.backends.cpu.get_cpu_capability() in name
