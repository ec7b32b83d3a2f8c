"""S3's trials and final runs, on records that are made up and on digits."""

import dataclasses

import pytest
import torch
from test_replicas import fake
from test_tuning import write

from studies import __main__ as command
from studies import evidence, replicas, s3, search
from studies.study import Incomplete, Study

DATA = list(s3.NAMES)


def scored(runs, score):
    """A record for each run, with this validation accuracy."""
    return {run: fake(run, score(run)) for run in runs}


def record(data, score):
    """Write a record for every trial; returns all of them."""
    found = scored(s3.trials(data), score)
    found |= scored(s3.all_trials(data, found), score)
    write(s3.TRIALS[data], *found.values())
    return found


def near(rate):
    """A score that is best at this rate."""
    return lambda run: 1 / (1 + abs(run.lr - rate))


@pytest.mark.parametrize("data", DATA)
def test_every_loss_has_the_same_number_of_trials_in_the_setting_of_the_final_runs(project, data):
    trials = s3.trials(data)
    assert [run.loss for run in trials] == list(s3.LOSSES) * 12 and len(set(trials)) == 36
    rates = {loss: [run.lr for run in trials if run.loss == loss] for loss in s3.LOSSES}
    assert rates["Softmax"] == rates["ArcFace"] == rates["Triplet"] and len(set(rates["Softmax"])) == 12
    assert min(rates["Softmax"]) < 0.0015 and max(rates["Softmax"]) > 0.07
    assert len({run.s for run in trials if run.loss == "ArcFace"}) == 12
    assert {loss: len({run.m for run in trials if run.loss == loss}) for loss in s3.LOSSES} == {
        "Softmax": 1, "ArcFace": 12, "Triplet": 12,
    }  # fmt: skip
    free = {"loss", "lr", "s", "m", "seed", "evaluated", "imbalance"}
    final = s3.of_seed(data, 0, record(data, near(0.01))).values()
    fixed = [{k: v for k, v in dataclasses.asdict(run).items() if k not in free} for run in (*trials, *final)]
    assert all(one == fixed[0] for one in fixed)


def test_both_data_sets_have_one_setting():
    of_mnist, of_cifar10 = ([dataclasses.replace(run, data="mnist") for run in s3.trials(data)] for data in DATA)
    assert of_mnist == of_cifar10


@pytest.mark.parametrize("best", [0.01, 0.0911, 0.00117])
def test_an_optimum_at_an_end_gives_every_loss_as_many_trials_more(project, best):
    planned = s3.trials("mnist")
    tried = s3.all_trials("mnist", scored(planned, lambda run: near(best)(run) * (run.loss == "Softmax")))
    counts = [sum(run.loss == loss for run in tried) for loss in s3.LOSSES]
    assert counts == [12 if best == 0.01 else 18] * 3 and len(set(tried)) == len(tried)
    more = [run for run in tried[len(planned) :] if run.loss == "Softmax"]
    assert all(0.1 <= run.lr <= 0.2 if best > 0.01 else 0.0005 <= run.lr <= 0.001 for run in more)
    assert all(0.001 <= run.lr <= 0.1 for run in tried if run.loss != "Softmax")


def test_what_lies_at_an_end():
    run = s3.default("mnist", "ArcFace")
    assert s3.past_ends(run) == {} == s3.past_ends(dataclasses.replace(run, m=0.02))  # no margin is a choice
    assert s3.past_ends(dataclasses.replace(run, s=63.0)) == {"s": (64.0, 128.0)}
    assert s3.past_ends(dataclasses.replace(run, m=0.99, lr=0.0011)) == {"lr": (0.05, 0.1), "m": (1.0, 1.98)}
    assert s3.past_ends(dataclasses.replace(run, lr=0.3)) == {"lr": (10.0, 20.0)}


def test_validation_accuracy_alone_chooses_and_of_equals_the_earlier(project):
    found = record("cifar10", lambda run: 0.5 + 0.1 * (0.01 < run.lr < 0.03))
    chosen = s3.of_seed("cifar10", 4, found)
    assert list(chosen) == ["Softmax", "ArcFace", "Triplet", "Softmax, long tail", "ArcFace, long tail"]
    first = next(run for run in s3.trials("cifar10") if run.loss == "ArcFace" and 0.01 < run.lr < 0.03)
    assert chosen["ArcFace"] == dataclasses.replace(first, seed=4, evaluated="test")
    assert chosen["ArcFace, long tail"] == dataclasses.replace(chosen["ArcFace"], imbalance=100.0)
    assert list(s3.final("cifar10")) == [
        run for seed in range(5) for run in s3.of_seed("cifar10", seed, found).values()
    ]


def test_no_trial_reads_a_test_image(project, monkeypatch):
    assert {run.evaluated for data in DATA for run in s3.trials(data)} == {"val"}
    assert search.TRIAL_SEED not in range(s3.SEEDS)
    run = dataclasses.replace(s3.default("mnist", "Softmax"), data="digits", epochs=1, train_size=256)
    _, clean = replicas.execute(run)
    load = replicas.runs.load

    def spoilt(name):
        data = load(name)
        return dataclasses.replace(data, test=dataclasses.replace(data.test, images=255 - data.test.images))

    monkeypatch.setattr(replicas.runs, "load", spoilt)
    _, again = replicas.execute(run)
    assert clean["metrics"] == again["metrics"] and clean["metrics"].keys() == {"val_accuracy"}
    assert clean["history"].keys() == {"loss", "val_accuracy", "seconds"}
    read = dataclasses.replace(run, evaluated="test")  # the same spoilt images do change a final run
    spoilt_score = replicas.execute(read)[1]["metrics"]["test_accuracy"]
    monkeypatch.setattr(replicas.runs, "load", load)
    assert replicas.execute(read)[1]["metrics"]["test_accuracy"] != spoilt_score


def test_a_trial_that_diverges_is_an_outcome(project):
    run = dataclasses.replace(s3.default("mnist", "Softmax"), data="digits", epochs=1, train_size=256, lr=1e9)
    _, made = replicas.execute(run)
    assert made["metrics"]["val_accuracy"] < 0.3 and "error" not in made


def test_the_ledger_takes_whole_seeds_of_final_runs(project):
    found = record("mnist", near(0.01))
    with pytest.raises(Incomplete, match="python -m studies s3_final_mnist"):
        s3.complete("mnist", found)
    assert "s3_final_mnist" not in evidence.answered(found)
    finals = {run: fake(run) for run in s3.final("mnist")}
    broken = {run: made for run, made in finals.items() if (run.loss, run.seed) != ("Triplet", 3)}
    assert list(s3.complete("mnist", found | broken)) == [0, 1, 2, 4]
    assert evidence.answered(found | finals)["s3_final_mnist"] == (s3.EPOCHS, s3.complete("mnist", found | finals))


def test_final_runs_wait_for_all_trials(project, monkeypatch, capsys):
    trained = []

    def train(self, full=False, **options):
        runs = [run for run in self.planned() if run not in self.read()][: allowed - len(trained)]
        write(self, *self.read().values(), *scored(runs, near(0.0911)).values())
        trained.extend(runs)

    monkeypatch.setattr(Study, "train", train)
    allowed = 30
    command.train(command.named("s3_final_mnist"))
    assert len(trained) == 30 and "s3_final_mnist waits: 6 of 36 trials of S3 on MNIST" in capsys.readouterr().out
    allowed = 1000
    command.train(command.named("s3_final_mnist"))
    assert [run.evaluated for run in trained] == ["val"] * 54 + ["test"] * 25
    assert {run.lr for run in trained[54:]} == {max(trained[:54], key=near(0.0911)).lr}


def test_a_stride_takes_the_place_of_pooling():
    model = replicas.Model(s3.default("cifar10", "ArcFace"), (3, 32, 32), 10)
    assert not any(isinstance(layer, torch.nn.MaxPool2d) for layer in model.body)
    assert [layer.stride for layer in model.body if isinstance(layer, torch.nn.Conv2d)] == [(2, 2)] * 3
    assert model.embedding.in_features == 64 * 4 * 4
