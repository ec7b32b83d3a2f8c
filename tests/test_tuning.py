"""Equal budgets, a choice by validation alone, and final runs at what was chosen."""

import dataclasses
import json

import numpy as np
import pytest
from test_runs import fake

from lib import heads, paths
from studies import __main__ as command
from studies import records, runs, tuning, tuning_tables
from studies.study import Incomplete, Study

DATA, LOSSES = list(tuning.SEEDS), tuning.LOSSES


def write(study, *found):
    """Write a whole file of records, many at once."""
    paths.write(study.path, "".join(json.dumps(record) + "\n" for record in found))


def record_trials(data, scores=None, full=False):
    """Write a record for every trial; scores: {(head, trial): (val_accuracy, val_loss)}, 0.5 and 1 where absent."""
    counts, found = {}, list(tuning.TUNING[data].read().values())
    for config in tuning.trials(data, full):
        trial = counts[config.head] = counts.get(config.head, -1) + 1
        accuracy, loss = (scores or {}).get((config.head, trial), (0.5, 1.0))
        found.append(fake(config, metrics={"val_accuracy": accuracy}, history={"val_loss": [9.0, loss]}))
    write(tuning.TUNING[data], *found)


def tuned(data, head):
    """What the tuning chose for a loss."""
    frame = tuning.results(data)
    best = frame[(frame["head"] == head) & frame["chosen"]].iloc[0]
    return {"constants": best["constants"], "lr": best["lr"], "muon_lr": best["muon_lr"]}


# ---------------------------------------------------------------- the trials


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("full", [False, True])
def test_every_loss_has_the_same_budget(data, full):
    configs = tuning.trials(data, full)
    assert [c.head for c in configs] == [*heads.NINE, "Triplet"] * 8  # the first trials of all losses come first
    assert len(set(configs)) == len(configs) == 80
    same = {(c.epochs, c.train_size, c.batch_size, c.seed, c.network, c.margin_warmup) for c in configs}
    assert len(same) == 1 and (full or configs[0].epochs == tuning.SHORT[data]["epochs"])
    rates = {head: [c.lr for c in configs if c.head == head] for head in tuning.LOSSES}
    assert all(r == rates["Softmax"] for r in rates.values()) and len(set(rates["Softmax"])) == 8


def test_the_first_trial_is_the_default():
    setting = {"epochs": 2}
    assert tuning.trials("mnist")[:10] == [runs.recipe("mnist", h, tuning.SEED, **setting) for h in tuning.LOSSES]


def test_no_final_run_starts_like_a_trial():
    assert max(tuning.SEEDS.values()) < tuning.SEED


@pytest.mark.parametrize("data", DATA)
def test_trials_stay_in_the_space(data):
    recipe = runs.recipe(data, "Softmax")
    drawn = [c for c in tuning.trials(data)[10:]]
    for c in drawn:
        assert {name for name, _ in c.constants} == set(tuning.SPACE[c.head])
        for name, value in c.constants:
            low, high = tuning.SPACE[c.head][name]
            assert low <= value <= high
        factor = c.lr / recipe.lr
        assert 0.5 <= factor <= 2 and c.muon_lr == pytest.approx(factor * recipe.muon_lr, rel=1e-4)
        heads.make(c.head, 10, 8, **dict(c.constants))  # the head takes them
    for head, space in tuning.SPACE.items():  # and fill each range
        for name, (low, high) in space.items():
            values = sorted(dict(c.constants)[name] for c in drawn if c.head == head)
            assert values[0] < low + 0.4 * (high - low) and values[-1] > low + 0.6 * (high - low)


def test_the_same_trials_every_time():
    assert tuning.trials("mnist") == tuning.trials("mnist")
    assert tuning.trials("mnist")[14].lr == 0.0524


def test_a_trial_records_no_test_result(project, monkeypatch):
    short = {"epochs": 1, "train_size": 192, "embedding_dim": 8}
    configs = [runs.recipe("digits", head, tuning.SEED, lr=lr, **short) for lr in (0.05, 0.1) for head in LOSSES[::9]]
    study = dataclasses.replace(tuning.TUNING["mnist"], name="tuning_digits", plan=lambda full: configs)
    monkeypatch.setitem(tuning.TUNING, "digits", study)
    study.train()
    lines = [json.loads(line) for line in study.path.read_text().splitlines()]
    assert [list(line["metrics"]) for line in lines] == [["val_accuracy"]] * 4
    assert "test" not in json.dumps([line["history"] for line in lines])
    frame = tuning.results("digits", full=False)
    assert frame["chosen"].sum() == 2 and list(frame["trial"]) == [0, 0, 1, 1]
    assert frame["val_accuracy"].tolist() == pytest.approx([h["val_accuracy"][-1] for h in frame["history"]])
    study.train()  # nothing is trained twice
    assert len(study.path.read_text().splitlines()) == 4


# ---------------------------------------------------------------- the choice


def test_validation_accuracy_chooses(project):
    record_trials("mnist", {("ArcFace", 3): (0.9, 2.0), ("CosFace", 5): (0.7, 1.0), ("CosFace", 6): (0.6, 0.1)})
    chosen = {h: tuned("mnist", h) for h in ("ArcFace", "CosFace", "Softmax")}
    configs = {h: [c for c in tuning.trials("mnist") if c.head == h] for h in chosen}
    for head, trial in (("ArcFace", 3), ("CosFace", 5), ("Softmax", 0)):
        best = configs[head][trial]
        assert tuple(map(tuple, chosen[head]["constants"])) == best.constants
        assert (chosen[head]["lr"], chosen[head]["muon_lr"]) == (best.lr, best.muon_lr)


def test_equal_accuracies_go_by_validation_loss_then_by_order(project):
    record_trials("mnist", {("ArcFace", 3): (0.9, 2.0), ("ArcFace", 5): (0.9, 1.0), ("ArcFace", 7): (0.9, 1.0)})
    frame = tuning.results("mnist")
    assert frame.loc[(frame["head"] == "ArcFace") & frame["chosen"], "trial"].tolist() == [5]
    assert frame.groupby("head")["chosen"].sum().eq(1).all()


def test_the_test_set_does_not_choose(project):
    record_trials("mnist", {("ArcFace", 3): (0.9, 1.0)})
    other = [c for c in tuning.trials("mnist") if c.head == "ArcFace"][4]
    entry = fake(other, metrics={"val_accuracy": 0.8, "test_accuracy": 1.0}, history={"val_loss": [0.0]})
    records.append(tuning.TUNING["mnist"].path, entry)
    frame = tuning.results("mnist")
    assert frame.loc[(frame["head"] == "ArcFace") & frame["chosen"], "trial"].tolist() == [3]


def test_one_missing_trial_is_named(project):
    record_trials("cifar10")
    study = tuning.TUNING["cifar10"]
    write(study, *list(study.read().values())[:-1])
    for call in (lambda: tuned("cifar10", "Softmax"), tuning.CONTROLLED["cifar10"].planned):
        with pytest.raises(Incomplete, match=r"lacks 1 of 80 trials: `python -m studies controlled_cifar10` trains"):
            call()


def test_trials_for_a_gpu_count_with_the_first_seed_of_their_final_runs(project):
    record_trials("cifar10", {("ArcFace", 1): (0.9, 1.0)})
    record_trials("cifar10", {("ArcFace", 2): (0.8, 1.0)}, full=True)

    def chosen():
        frame = tuning.results("cifar10")
        trial = frame.loc[(frame["head"] == "ArcFace") & frame["chosen"], "trial"].item()
        return trial, set(frame["epochs"]), {(c.network, c.epochs) for c in tuning.finals("cifar10")}

    final = tuning.finals("cifar10", full=True)
    assert {(c.network, c.epochs) for c in final} == {("AirNet", 12)}
    assert tuning.CONTROLLED["cifar10"].planned(True) == final
    last = len(tuning.LOSSES) - 1  # of the first seed
    for part in (final[:last], final[last : last + 1]):
        assert chosen() == (1, {6}, {("NarrowAirNet", 4)})
        write(tuning.CONTROLLED["cifar10"], *tuning.CONTROLLED["cifar10"].read().values(), *map(fake, part))
    assert chosen() == (2, {12}, {("AirNet", 12)})


def test_a_diverging_trial_loses_and_the_others_go_on(project, monkeypatch):
    configs = [runs.recipe("digits", head, tuning.SEED, epochs=3) for head in ("NormFace", "ArcFace")]
    execute = runs.execute

    def diverge(config, progress):
        if config.head == "NormFace":
            raise FloatingPointError("the loss became nan")
        return execute(config, progress)

    monkeypatch.setattr(runs, "execute", diverge)
    found = dataclasses.replace(tuning.TUNING["mnist"], name="tuning_digits", plan=lambda full: configs).train()
    lost, won = found.values()
    assert lost["metrics"] == {"val_accuracy": 0.0} and won["metrics"]["val_accuracy"] > 0.5


# ---------------------------------------------------------------- the final runs


@pytest.mark.parametrize("data", DATA)
def test_final_runs_have_all_images_at_tuned_constants(project, data):
    record_trials(data, {("AdaLoss", 4): (0.9, 1.0)})
    configs, seeds = tuning.CONTROLLED[data].planned(), tuning.SEEDS[data]
    assert [(c.head, c.seed) for c in configs] == [(h, s) for s in range(seeds) for h in tuning.LOSSES]
    adaloss = [c for c in tuning.trials(data) if c.head == "AdaLoss"][4]
    for c in configs:
        recipe, best = runs.recipe(data, c.head, c.seed, **tuning.CPU[data]), adaloss if c.head == "AdaLoss" else None
        changes = {k: getattr(best, k) for k in ("constants", "lr", "muon_lr")} if best else {}
        assert c == dataclasses.replace(recipe, **changes)


def test_only_complete_seeds_count(project):
    record_trials("cifar10")
    with pytest.raises(ValueError, match=r"no complete seed: `python -m studies controlled_cifar10`"):
        tuning.finished("cifar10")
    part = tuning.CONTROLLED["cifar10"].planned()[:27]  # two seeds and seven runs of a third
    write(tuning.CONTROLLED["cifar10"], *(fake(config, history={"val_accuracy": [0.2, 0.6]}) for config in part))
    frame = tuning.finished("cifar10")
    assert list(frame["curve"]) == pytest.approx([0.4] * len(frame))
    assert list(frame["seed"].unique()) == [0, 1] and list(frame["head"]) == [*tuning.LOSSES] * 2


def test_the_command_trains_trials_before_final_runs(project, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(Study, "train", lambda self, *a, **k: calls.append((self.name, len(self.planned()))))
    command.main(["controlled_mnist", "--budget", "5"])
    assert calls == [("tuning_mnist", 80)]  # the budget ended before the trials did
    assert "controlled_mnist waits: tuning_mnist.jsonl lacks 80 of 80 trials" in capsys.readouterr().out
    record_trials("mnist")
    command.main(["controlled_mnist"])
    assert calls[1:] == [("tuning_mnist", 80), ("controlled_mnist", 100)]
    calls.clear()
    command.main(["controlled_mnist", "tuning_mnist"])
    assert calls == [("tuning_mnist", 80), ("controlled_mnist", 100)]  # each once


def test_constants_as_text():
    assert tuning_tables.written((("m", 0.3), ("s", 16.0))) == "m = 0.3, s = 16" and tuning_tables.written([]) == "none"
    assert np.isfinite([limit for space in tuning.SPACE.values() for r in space.values() for limit in r]).all()


def test_tables_show_every_trial(project):
    record_trials("mnist", {("ArcFace", 3): (0.9, 2.0), ("CosFace", 5): (0.7, 1.0)})
    frame = tuning.results("mnist")
    table = tuning_tables.table(frame)
    assert list(table.index) == list(tuning_tables.space().index) == list(tuning.LOSSES)
    assert table.loc["ArcFace", ["defaults", "1", "2", "3"]].tolist() == ["50.00", "50.00", "50.00", "90.00"]
    arcface = [c for c in tuning.trials("mnist") if c.head == "ArcFace"][3]
    row = table.loc["ArcFace", ["chosen", "factor on lr", "constants"]].tolist()
    assert row == ["3", f"{arcface.lr / 0.1:g}", tuning_tables.written(arcface.constants)]
    assert table.loc["Softmax", ["chosen", "constants"]].tolist() == ["defaults", "defaults"]
    assert tuning_tables.space().loc["AdaLoss"].item() == "s 8 to 40, m 0.05 to 0.6, gamma 0.1 to 1.5"
