import ast
import dataclasses
import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from test_tuning import write
from torch.nn import functional as F

from lib import losses, metrics
from studies import __main__ as command
from studies import replicas
from studies.study import Incomplete, Study

STUDIES = Path(replicas.__file__).parent
ARCFACE, SOFTMAX = (replicas.s3("mnist", loss, 1, 0, 0.03) for loss in ("ArcFace", "Softmax"))


def tiny(run, **changes):
    """A run of a fraction of a second on digits."""
    return dataclasses.replace(run, data="digits", **{"epochs": 1, "train_size": 256, **changes})


def example(run, B=40, C=10):
    """A model with random centres, embeddings (B, d) and labels (B,)."""
    torch.manual_seed(0)
    model = replicas.Model(run, (1, 8, 8), C)
    return model, torch.randn(B, run.embedding_dim), torch.arange(B) % C


def without(run, **changes):
    return dataclasses.replace(run, **changes)


# ---------------------------------------------------------------- losses


def test_logits_are_scaled_cosines():
    model, x, _ = example(ARCFACE)
    expected = ARCFACE.s * F.cosine_similarity(x[:, None], model.W, dim=2)
    for lengths in (1, 100):
        torch.testing.assert_close(replicas.logits(ARCFACE, model, lengths * x), expected, atol=1e-4, rtol=1e-5)


def test_the_margin_is_for_training_alone():
    model, x, y = example(ARCFACE)
    runs = [without(ARCFACE, m=m) for m in (0.0, 0.5, 1.0)]
    losses = [replicas.criterion(run, model)(x, y).item() for run in runs]
    assert losses == sorted(losses) and losses[0] < losses[-1]
    assert len({replicas.accuracy(run, model, x, y) for run in runs}) == 1


def test_plain_arcface_rises_beyond_pi():
    run = replicas.s5("ArcFace", 1, 0, m=0.5)
    cos = torch.tensor([-0.999, -0.95, -0.5, 0.5])[:, None]
    ours = replicas.target(run, cos)[:, 0]
    head = losses.ArcFace(10, 64, m=0.5).target(cos[:, 0], None, None)
    torch.testing.assert_close(ours[2:], head[2:], atol=1e-5, rtol=0)
    assert (ours[:2] > head[:2]).all() and ours[0] > ours[1]
    combined = replicas.s5("ArcFace", 1, 0, m=0.3, m3=0.2)
    expected = losses.CombinedMargin(10, 64, m2=0.3, m3=0.2).target(cos[2:, 0], None, None)
    torch.testing.assert_close(replicas.target(combined, cos[2:])[:, 0], expected, atol=1e-5, rtol=0)


def test_networks_are_those_of_the_source():
    shapes = {
        "S3": (3, 32, [(64, 3), (256, 64), (64, 256), (64, 64 * 4 * 4)]),
        "S5": (1, 28, [(16, 1), (32, 16), (64, 32), (64, 64), (64, 64 * 2 * 2)]),
    }
    for name, (channels, side, expected) in shapes.items():
        model = replicas.Model(without(ARCFACE, network=name), (channels, side, side), 10)
        weights = [p for key, p in model.named_parameters() if key.endswith("weight") and p.ndim > 1]
        assert [tuple(w.shape[:2]) for w in weights] == expected


def test_nothing_else_imports_the_replicas():
    for path in set(STUDIES.glob("*.py")) - {
        STUDIES / name for name in ("replicas.py", "s3.py", "claims.py", "evidence.py", "__main__.py")
    }:
        imports = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Import | ast.ImportFrom)]
        assert not any("replicas" in ast.unparse(node) for node in imports), path


# ---------------------------------------------------------------- data of a run


def test_validation_images_join_the_training(project):
    data, part, evaluated = replicas.splits(tiny(ARCFACE, train_size=0))
    assert len(part) == len(data.train) + len(data.val) and evaluated is data.test
    trial = tiny(ARCFACE, train_size=0, evaluated="val")
    assert len(replicas.splits(trial)[1]) == len(data.train) and replicas.splits(trial)[2] is data.val


def test_long_tail(project):
    full = np.bincount(replicas.splits(tiny(ARCFACE, train_size=0))[1].labels)
    tail = np.bincount(replicas.splits(tiny(ARCFACE, train_size=0, imbalance=10.0))[1].labels)
    np.testing.assert_allclose(tail, full * 10 ** (-np.arange(10) / 9), atol=1)


@pytest.mark.parametrize("loss", ["Softmax", "ArcFace", "Triplet"])
def test_s3_learns_digits(project, loss):
    run = tiny(replicas.s3("mnist", loss, 1, 0, 0.03), train_size=800, epochs=3)
    model, record = replicas.execute(run)
    assert record["metrics"]["test_accuracy"] > 0.8
    assert not {"temperature", "ece", "test_loss", "val_accuracy"} & record["metrics"].keys()
    assert record["metrics"]["distorted_accuracy"] <= record["metrics"]["test_accuracy"]
    if loss == "Triplet":  # its classes are the mean directions of training embeddings
        data, part, _ = replicas.splits(run)
        x, y = F.normalize(replicas.embed(run, model, data, part.images)), part.labels
        means = torch.stack([x[y == c].mean(0) for c in range(10)])
        torch.testing.assert_close(F.normalize(means), F.normalize(model.W.data), atol=1e-2, rtol=0)


def test_a_diverged_run_is_recorded(project):
    _, record = replicas.execute(tiny(replicas.s3("mnist", "Softmax", 1, 0, 1e9), epochs=2))
    assert not math.isfinite(record["history"]["loss"][-1]) and record["metrics"]["test_accuracy"] < 0.3


# ---------------------------------------------------------------- the one-cycle schedule


def cosine(start, end, share):
    """The value at this share of the way along half a cosine."""
    return start + (end - start) * (1 - math.cos(math.pi * share)) / 2


def test_one_cycle_has_the_rates_and_momenta_of_fastai():
    model, _, _ = example(replicas.s5("Softmax", 1, 0))
    optimizer, schedule = replicas.as_fastai(model, 1e-3, steps=400)
    steps = []
    for _ in range(400):
        for group in optimizer.param_groups:
            assert (group["betas"][1], group["eps"]) == (0.99, 1e-5)
        (here,) = {(group["lr"], group["betas"][0]) for group in optimizer.param_groups}
        steps.append(here)
        optimizer.step()
        schedule.step()
    rates, momenta = np.array(steps).T
    assert (rates[0], momenta[0]) == pytest.approx((1e-3 / 25, 0.95))
    assert rates.argmax() == momenta.argmin() == 99  # after a quarter of 400 steps
    assert (rates[99], momenta[99]) == pytest.approx((1e-3, 0.85))
    assert (rates[399], momenta[399]) == pytest.approx((1e-3 / 100_000, 0.95))
    for step, share, (low, high) in ((33, 1 / 3, (4e-5, 1e-3)), (199, 2 / 3, (1e-8, 1e-3))):
        assert rates[step] == pytest.approx(cosine(low, high, share))
        assert momenta[step] == pytest.approx(cosine(0.95, 0.85, share))


def test_one_cycle_decays_weights_and_no_biases():
    model, _, _ = example(replicas.s5("Softmax", 1, 0))
    optimizer, _ = replicas.as_fastai(model, 1e-3, steps=100)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    names = {name: decay[id(p)] for name, p in model.named_parameters()}
    assert len(names) == len(decay) == 12
    assert names == {name: 0.0 if name.endswith(("bias", "b")) else 0.01 for name in names}


def test_a_run_goes_through_one_cycle_and_no_further(project, monkeypatch):
    made, own = [], replicas.as_fastai
    monkeypatch.setattr(replicas, "as_fastai", lambda *args: made.append(own(*args)) or made[-1])
    run = tiny(replicas.s5("Softmax", 1, 0), one_cycle=True, train_size=300, epochs=3)
    _, record = replicas.execute(run)
    ((_, schedule),) = made
    assert schedule.total_steps == 9 == schedule.last_epoch  # three batches of 128 an epoch
    _, by_hand = replicas.execute(without(run, one_cycle=False))
    assert record["history"]["loss"] != by_hand["history"]["loss"]


def test_s5s_trainers_differ_in_the_schedule_alone_and_share_the_runs_by_hand():
    arms, known = replicas.s5_trainers(30, 2), replicas.s5_group(30, 2)
    assert list(arms) == ["Softmax", "ArcFace", "Softmax, one-cycle", "ArcFace, one-cycle"]
    for loss in ("Softmax", "ArcFace"):
        assert arms[loss] == known[loss] == without(arms[f"{loss}, one-cycle"], one_cycle=False)
        assert arms[loss] != arms[f"{loss}, one-cycle"] and not arms[loss].one_cycle


# ---------------------------------------------------------------- records


def test_records_made_before_a_field_was_there_are_those_of_the_same_runs(project):
    run = replicas.s5("ArcFace", 30, 0)
    old = fake(run)
    del old["config"]["one_cycle"]
    write(replicas.REPLICAS["s5"], old)
    assert replicas.read() == {run: old}
    recorded = [json.loads(line) for line in (STUDIES.parent / "results" / "replicas.jsonl").read_text().splitlines()]
    by_hand = [r for r in recorded if r["config"]["source"] == "S5" and not r["config"].get("one_cycle")]
    found = {replicas.Replica(**r["config"]) for r in by_hand}
    assert set(replicas.s5_group(30, 0).values()) <= found and set(replicas.s5_margins(20, 2).values()) <= found


def fake(run, accuracy=0.9):
    """A record as execute makes it, without training."""
    read = f"{run.evaluated}_accuracy"
    history = {"loss": [1.0] * run.epochs, read: [accuracy] * run.epochs}
    record = {"config": dataclasses.asdict(run), "metrics": {read: accuracy}, "seconds": 1.0}
    return json.loads(json.dumps(record | {"history": history}))


def two(epochs, seed):
    """A plan of two digits runs, by name."""
    return {loss: tiny(run, epochs=epochs, seed=seed) for loss, run in (("a", ARCFACE), ("b", SOFTMAX))}


@pytest.fixture
def grown(project, monkeypatch):
    """The plan "tiny" of two digits runs and two seeds, and its study."""
    monkeypatch.setitem(replicas.PLANS, "tiny", ("What?", two, (2, 1), 2))
    plan = functools.partial(replicas.replica_runs, "tiny")
    return dataclasses.replace(replicas.REPLICAS["s5"], name="tiny", plan=plan)


def test_runs_are_recorded_and_resumed(grown, capsys):
    assert grown.train(budget=0) == {} and "4 left" in capsys.readouterr().out
    first = grown.train()
    assert "4 trained now" in capsys.readouterr().out
    assert [(run.seed, run.loss) for run in first] == [(s, x) for s in (0, 1) for x in ("ArcFace", "Softmax")]
    path = grown.path
    assert path.name == "replicas.jsonl" and len(path.read_text().splitlines()) == 4 and replicas.read() == first
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    grown.train()
    assert "3 runs from replicas.jsonl, 1 trained now" in capsys.readouterr().out
    assert replicas.recorded().keys() == first.keys()


def test_same_run_same_result(project):
    first, again, other = (replicas.execute(tiny(ARCFACE, seed=seed))[1]["metrics"] for seed in (0, 0, 1))
    assert first == again != other


def test_complete_prefers_the_published_length(grown):
    def records(*lengths_and_seeds):
        return {run: fake(run) for e, seed in lengths_and_seeds for run in two(e, seed).values()}

    with pytest.raises(Incomplete, match=r"lacks runs of tiny: `python -m studies tiny` trains them"):
        replicas.complete("tiny", records())
    assert replicas.complete("tiny", records((2, 0)))[0] == 2
    assert replicas.complete("tiny", records((2, 0), (1, 0), (1, 1)))[0] == 1  # two seeds before length
    epochs, by_seed = replicas.complete("tiny", records((2, 0), (2, 3), (1, 0), (1, 1), (1, 2)))
    assert epochs == 2 and list(by_seed) == [0, 3]
    partial = records((1, 0), (1, 1))
    partial.pop(two(1, 1)["b"])
    assert list(replicas.complete("tiny", partial)[1]) == [0]


def test_s3_takes_what_has_the_best_validation_accuracy(project):
    def accuracy(run):
        return 0.5 + (run.lr == 0.03) + (run.m == 0.1) if run.loss == "ArcFace" else run.lr

    write(replicas.REPLICAS["s3_search"], *(fake(run, accuracy(run)) for run in replicas.search().values()))
    group = replicas.s3_group("cifar10", 3, 0)
    assert {name: (run.lr, run.m) for name, run in group.items()} == {
        "Softmax": (0.1, 0.0), "ArcFace": (0.03, 0.1), "Triplet": (0.1, 0.2),
        "Softmax, long tail": (0.1, 0.0), "ArcFace, long tail": (0.03, 0.1),
    }  # fmt: skip


def test_no_records(project):
    for found in (None, {}):
        with pytest.raises(Incomplete, match=r"lacks S3's search: run `python -m studies s3_search`"):
            replicas.s3_group("cifar10", 3, 0, found)
    with pytest.raises(Incomplete, match=r"replicas\.jsonl holds no runs: `python -m studies s5` trains some"):
        replicas.recorded()


def test_every_plan_is_whole(project):
    write(replicas.REPLICAS["s3_search"], *map(fake, replicas.search().values()))
    for name, (_, _, lengths, seeds) in replicas.PLANS.items():
        arms = replicas.named_runs(name, lengths[-1], 2)
        assert all(isinstance(run, replicas.Replica) for run in arms.values()), name
        assert name == "s3_search" or {run.seed for run in arms.values()} == {2}
        assert len(replicas.REPLICAS[name].planned()) == len(set(arms.values())) * seeds
    assert len(replicas.s5_margins(20, 0)) == 40 == len(set(replicas.s5_margins(20, 0).values()))


def test_s3_waits_for_its_search(project, monkeypatch, capsys):
    trained = []

    def train(self, full=False, **options):
        runs = self.planned()[: allowed - len(trained)]  # until the budget is spent
        write(self, *self.read().values(), *(fake(run, 0.5 + run.lr) for run in runs))
        trained.extend(runs)

    monkeypatch.setattr(Study, "train", train)
    allowed = 10
    command.train(command.named("s3_mnist"))
    assert {run.evaluated for run in trained} == {"val"} and len(trained) == 10
    assert "s3_mnist waits: replicas.jsonl lacks S3's search" in capsys.readouterr().out
    trained.clear()
    allowed = 100
    command.train(command.named("s3_mnist"))
    search = len(replicas.search())
    assert {run.evaluated for run in trained[:search]} == {"val"} and {run.lr for run in trained[search:]} == {0.1}
    assert [run.seed for run in trained[search:]] == [0] * 5 + [1] * 5 + [2] * 5


# ---------------------------------------------------------------- plans


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"loss": "Arcface"}, "unknown loss 'Arcface': choose one of "),
        ({"source": "S1"}, "unknown source 'S1': choose one of S3, S5"),
        ({"data": "fashion"}, "unknown data 'fashion': choose one of mnist, cifar10, digits"),
        ({"network": "ResNet"}, "unknown network 'ResNet': choose one of "),
        ({"m": 3.2}, "m must be a number from 0 to 3.14"),
        ({"loss": "Triplet", "m": 2.1}, "m must be a number from 0 to 2, got 2.1"),
        ({"s": 0}, "s must be a number from 0.001"),
        ({"s": float("nan")}, "s must be a number"),
        ({"lr": -1}, "lr must be a number from 0"),
        ({"epochs": 0}, "epochs must be a whole number from 1"),
        ({"batch_size": 1}, "batch_size must be a whole number from 2"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"optimizer": "AdamW"}, "unknown optimizer 'AdamW': choose one of Adam, SGD"),
        ({"evaluated": "tests"}, "unknown evaluated 'tests': choose one of val, test"),
        ({"m3": 3}, "m3 must be a number from 0 to 2"),
        ({"imbalance": 0.5}, "imbalance must be a number from 1"),
        ({"w_std": 0}, "w_std must be a number"),
    ],
)
def test_what_cannot_run_is_refused_when_it_is_planned(wrong, message):
    with pytest.raises(ValueError, match=message) as error:
        without(ARCFACE, **wrong)
    assert "\n" not in str(error.value)


def test_scalars_of_other_libraries_are_pythons():
    ours = without(ARCFACE, s=30, m=0.5, epochs=2, seed=1)
    theirs = without(ARCFACE, s=np.int64(30), m=torch.tensor(0.5), epochs=np.float32(2), seed=torch.tensor(1))
    assert ours == theirs and json.dumps(dataclasses.asdict(ours)) == json.dumps(dataclasses.asdict(theirs))
    assert without(ours, lr=np.float32(0.001)) == without(ours, lr=0.001)


def test_a_run_whose_evaluation_fails_is_recorded(project, monkeypatch):
    monkeypatch.setattr(metrics, "angles", lambda *args: 1 / 0)
    _, record = replicas.execute(tiny(ARCFACE))
    assert record["history"]["loss"] and record["metrics"]["test_accuracy"] == record["history"]["test_accuracy"][-1]
    assert record["error"] == "ZeroDivisionError: division by zero"


def test_a_record_says_what_the_convolutions_were_in(project, monkeypatch):
    monkeypatch.setattr(replicas.device, "precision", lambda on: torch.float16)  # a GPU without bf16
    for bf16, said in ((False, "fp32"), (True, "bf16 convolutions, fp32 behind them")):
        monkeypatch.setattr(replicas.device, "has_bf16", lambda on, bf16=bf16: bf16)
        _, record = replicas.execute(tiny(ARCFACE, train_size=64))
        assert record["dtype"] == said and record["history"].keys() == {"loss", "test_accuracy", "seconds"}
