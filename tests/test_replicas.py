import ast
import dataclasses
import functools
import itertools
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
ARCFACE, ADALOSS = (replicas.s1("mnist", loss, 1, 0) for loss in ("ArcFace", "AdaLoss"))


def tiny(run, **changes):
    """A run of a fraction of a second on digits."""
    return dataclasses.replace(run, data="digits", **{"epochs": 1, "train_size": 256, **changes})


def example(run, B=40, C=10, scale=1.0):
    """A model with random centres, embeddings (B, d) and labels (B,)."""
    torch.manual_seed(0)
    model = replicas.Model(run, (1, 8, 8), C)
    return model, scale * torch.randn(B, run.embedding_dim), torch.arange(B) % C


def without(run, **changes):
    return dataclasses.replace(run, **changes)


# ---------------------------------------------------------------- the defects are there, and go


def test_dot_product_is_no_cosine():
    model, x, _ = example(ARCFACE, scale=3)
    as_published = replicas.logits(ARCFACE, model, x) / ARCFACE.s
    torch.testing.assert_close(as_published, (x @ model.W.T).clamp(-1, 1))
    longer = replicas.logits(ARCFACE, model, 100 * x) / ARCFACE.s
    assert longer.abs().max() == 1 and not torch.allclose(longer, as_published)
    mended = without(ARCFACE, dot_product=False)
    torch.testing.assert_close(replicas.logits(mended, model, 100 * x), replicas.logits(mended, model, x))
    torch.testing.assert_close(replicas.logits(mended, model, x), 30 * F.cosine_similarity(x[:, None], model.W, dim=2))


def test_no_gradient_returns_from_beyond_the_clamp():
    model, x, y = example(ARCFACE)
    x = (1e6 * x).requires_grad_()
    F.cross_entropy(replicas.logits(ARCFACE, model, x, y), y).backward()
    assert (x.grad == 0).all()


def test_the_margin_is_on_the_cosine():
    cos = torch.linspace(-0.8, 0.99, 50)[:, None]
    assert torch.equal(replicas.target(ARCFACE, cos, None), cos - 0.5)
    mended = without(ARCFACE, cosine_margin=False)
    torch.testing.assert_close(replicas.target(mended, cos, None), (cos.acos() + 0.5).cos(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("run", [ARCFACE, without(ARCFACE, cosine_margin=False), replicas.s5("ArcFace", 1, 0, m3=0.2)])
def test_half_the_margin_lies_between(run):
    cos = torch.linspace(-0.5, 0.9, 20)[:, None]
    none, half, whole = (replicas.target(run, cos, None, w) for w in (0.0, 0.5, 1.0))
    torch.testing.assert_close(none, cos)
    halved = dataclasses.replace(run, m=run.m / 2, m3=run.m3 / 2)
    torch.testing.assert_close(half, replicas.target(halved, cos, None))
    assert (none > half).all() and (half > whole).all()


def test_the_margin_grows_in_the_first_epochs(project, monkeypatch):
    seen, logits = [], replicas.logits
    monkeypatch.setattr(replicas, "logits", lambda *args: seen.append(args[4:]) or logits(*args))
    replicas.execute(tiny(without(ARCFACE, margin_warmup=1.5), epochs=2))
    shares = [w[0] for w in seen if w]
    steps = len(shares) // 2
    assert shares[0] == 0 and shares == sorted(shares) and shares[-1] == 1
    assert shares[steps] == pytest.approx(1 / 1.5)


@pytest.mark.parametrize("run", [ARCFACE, ADALOSS], ids=["ArcFace", "AdaLoss"])
def test_centres_stay_where_they_start(project, run):
    torch.manual_seed(0)
    start = replicas.Model(run, (1, 8, 8), 10).W
    assert torch.equal(replicas.execute(tiny(run))[0].W, start)
    assert not torch.allclose(replicas.execute(tiny(without(run, frozen_centres=False)))[0].W, start)


def test_quality_factor_is_rounding_noise():
    _, x, _ = example(ADALOSS, B=64)
    lengths = 2.0 ** torch.randint(-5, 5, (64, 1))  # a power of two changes no digit of the direction
    k = replicas.quality(ADALOSS, x)
    assert torch.equal(replicas.quality(ADALOSS, lengths * x), k)  # it does not see the length at all
    assert len(k.unique()) < 10 and k.abs().max() > 0.05  # a few steps of the last digit, over 1e-7
    mended = without(ADALOSS, unit_norms=False)
    torch.manual_seed(1)
    lengths = torch.rand(64, 1) + 0.5
    k, norm = replicas.quality(mended, lengths * x), (lengths * x).norm(dim=1)
    torch.testing.assert_close(k, (0.33 * (norm - norm.mean()) / norm.std()).clamp(-1, 1), atol=1e-5, rtol=1e-4)
    assert torch.equal(k.argsort(), norm.argsort())


def test_adaloss_as_published_is_cosface_where_its_factor_is_zero():
    model, _, _ = example(ADALOSS)
    x = torch.eye(128)[:40]  # norms of exactly 1
    y = torch.arange(40) % 10
    assert (replicas.quality(ADALOSS, x) == 0).all()
    head = losses.CosFace(10, 128, s=64, m=0.4)
    head.W.data = model.W.data
    torch.testing.assert_close(replicas.logits(ADALOSS, model, x, y), head(x, y), atol=1e-3, rtol=0)
    fixed = replicas.cosface("mnist", 1, 0)["CosFace"]
    torch.testing.assert_close(replicas.logits(fixed, model, x, y), head(x, y), atol=1e-3, rtol=0)


def test_a_margin_moves_the_leaking_reading_and_not_the_label_free_one():
    model, x, y = example(ARCFACE)
    x = x + 60 * model.W[y]
    read = {
        leak: [replicas.accuracy(without(ARCFACE, m=m), model, x, y, leak) for m in (0.0, 0.5, 1.0, 2.0)]
        for leak in (False, True)
    }
    assert len(set(read[False])) == 1 and read[True][0] == read[False][0]
    assert read[True] == sorted(read[True], reverse=True) and read[True][-1] < read[True][1] < read[True][0]


def test_record_holds_both_readings(project):
    _, record = replicas.execute(tiny(ARCFACE, epochs=3, lr=3e-3))
    history = record["history"]
    assert len(history["loss"]) == 3 and history["loss"][-1] < history["loss"][0]
    assert record["metrics"]["test_accuracy"] == pytest.approx(history["test_accuracy"][-1], abs=1e-5)
    assert record["metrics"]["leaked_accuracy"] == history["leaked_accuracy"][-1] < history["test_accuracy"][-1]


def test_adaloss_record_shows_its_factor(project):
    metrics = replicas.execute(tiny(ADALOSS, epochs=2))[1]["metrics"]
    assert sum(metrics["factor_counts"]) == 2 * 256 and len(metrics["factor_by_class"]) == 10
    assert 0 < metrics["factor_zero"] < 1
    centre = metrics["factor_counts"][100] / 512
    assert centre == pytest.approx(metrics["factor_zero"], abs=0.05)  # the bin around 0 holds little but zeros
    mended = replicas.execute(tiny(without(ADALOSS, unit_norms=False)))[1]["metrics"]
    assert mended["factor_zero"] < 0.01 and sum(count > 0 for count in mended["factor_counts"]) > 60


def test_plain_arcface_rises_beyond_pi():
    run = replicas.s5("ArcFace", 1, 0, m=0.5)
    cos = torch.tensor([-0.999, -0.95, -0.5, 0.5])[:, None]
    ours = replicas.target(run, cos, None)[:, 0]
    head = losses.ArcFace(10, 64, m=0.5).target(cos[:, 0], None, None)
    torch.testing.assert_close(ours[2:], head[2:], atol=1e-5, rtol=0)
    assert (ours[:2] > head[:2]).all() and ours[0] > ours[1]
    combined = replicas.s5("ArcFace", 1, 0, m=0.3, m3=0.2)
    expected = losses.CombinedMargin(10, 64, m2=0.3, m3=0.2).target(cos[2:, 0], None, None)
    torch.testing.assert_close(replicas.target(combined, cos[2:], None)[:, 0], expected, atol=1e-5, rtol=0)


# ---------------------------------------------------------------- the waterfall


def changed(a, b):
    return {f.name for f in dataclasses.fields(a) if getattr(a, f.name) != getattr(b, f.name)}


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_each_step_takes_one_defect_away(name):
    runs = replicas.waterfall(name, 3, 1)
    steps = list(dict.fromkeys(key.split(": ")[1] for key in runs))
    arms = {loss: [runs[f"{loss}: {step}"] for step in steps] for loss in ("ArcFace", "AdaLoss")}
    differences = {loss: [changed(a, b) for a, b in itertools.pairwise(r)] for loss, r in arms.items()}
    rate = {"lr"} if name == "cifar10" else set()
    centres, warmup, scale = {"frozen_centres"}, {"margin_warmup"}, {"s"}
    assert differences["ArcFace"] == [centres, {"dot_product"}, {"cosine_margin"}, warmup, set(), set(), scale]
    assert differences["AdaLoss"] == [centres, set(), set(), warmup, {"network"} | rate, {"unit_norms"}, scale]
    assert changed(*(arm[-1] for arm in arms.values())) == {"loss", "m"}
    assert not any(getattr(arm[-1], flaw) for arm in arms.values() for flaw in ("dot_product", "unit_norms"))


def test_networks_are_those_of_the_source():
    shapes = {
        "S1 ArcFace MNIST": (1, 28, [(32, 1), (64, 32), (128, 64 * 7 * 7)]),
        "S1 ArcFace CIFAR-10": (3, 32, [(64, 3), (128, 64), (256, 128), (128, 256 * 4 * 4)]),
        "S1 AdaLoss": (3, 32, [(32, 3), (64, 32), (256, 64 * 16 * 16), (128, 256)]),
    }
    for name, (channels, side, expected) in shapes.items():
        model = replicas.Model(without(ARCFACE, network=name), (channels, side, side), 10)
        weights = [p for key, p in model.named_parameters() if key.endswith("weight")]
        assert [tuple(w.shape[:2]) for w in weights] == expected
    images = torch.randn(4, 1, 28, 28)
    for arm, nonnegative in ((ARCFACE, True), (ADALOSS, False)):
        assert (replicas.Model(arm, (1, 28, 28), 10)(images) >= 0).all() == nonnegative


def test_nothing_else_imports_the_replicas():
    for path in set(STUDIES.glob("*.py")) - {
        STUDIES / name for name in ("replicas.py", "claims.py", "evidence.py", "__main__.py")
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
    assert record["metrics"]["distorted_accuracy"] <= record["metrics"]["test_accuracy"]
    if loss == "Triplet":  # its classes are the mean directions of training embeddings
        data, part, _ = replicas.splits(run)
        x, y = F.normalize(replicas.embed(run, model, data, part.images)), part.labels
        means = torch.stack([x[y == c].mean(0) for c in range(10)])
        torch.testing.assert_close(F.normalize(means), F.normalize(model.W.data), atol=1e-2, rtol=0)


def test_a_diverged_run_is_recorded(project):
    _, record = replicas.execute(tiny(replicas.s3("mnist", "Softmax", 1, 0, 1e9), epochs=2))
    assert not math.isfinite(record["history"]["loss"][-1]) and record["metrics"]["test_accuracy"] < 0.3


# ---------------------------------------------------------------- records


def fake(run, accuracy=0.9, leaked=None, **metrics):
    """A record as execute makes it, without training."""
    values = {"test_accuracy": accuracy, "leaked_accuracy": accuracy if leaked is None else leaked}
    curves = {key: [value] * run.epochs for key, value in values.items()}
    record = {"config": dataclasses.asdict(run), "metrics": values | metrics, "seconds": 1.0}
    return json.loads(json.dumps(record | {"history": curves | {"loss": [1.0] * run.epochs}}))


def two(epochs, seed):
    """A plan of two digits runs, by name."""
    return {loss: tiny(run, epochs=epochs, seed=seed) for loss, run in (("a", ARCFACE), ("b", ADALOSS))}


@pytest.fixture
def grown(project, monkeypatch):
    """The plan "tiny" of two digits runs and two seeds, and its study."""
    monkeypatch.setitem(replicas.PLANS, "tiny", ("What?", two, (2, 1), 2))
    plan = functools.partial(replicas.replica_runs, "tiny")
    return dataclasses.replace(replicas.REPLICAS["fp32"], name="tiny", plan=plan)


def test_runs_are_recorded_and_resumed(grown, capsys):
    assert grown.train(budget=0) == {} and "4 left" in capsys.readouterr().out
    first = grown.train()
    assert "4 trained now" in capsys.readouterr().out
    assert [(run.seed, run.loss) for run in first] == [(s, x) for s in (0, 1) for x in ("ArcFace", "AdaLoss")]
    path = grown.path
    assert path.name == "replicas.jsonl" and len(path.read_text().splitlines()) == 4 and replicas.read() == first
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    grown.train()
    assert "3 runs from replicas.jsonl, 1 trained now" in capsys.readouterr().out
    assert replicas.recorded().keys() == first.keys()


def test_same_run_same_result(project):
    first, again, other = (replicas.execute(tiny(ADALOSS, seed=seed))[1]["metrics"] for seed in (0, 0, 1))
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
    with pytest.raises(Incomplete, match=r"replicas\.jsonl holds no runs: `python -m studies s1_mnist` trains some"):
        replicas.recorded()


def test_every_plan_is_whole(project):
    write(replicas.REPLICAS["s3_search"], *map(fake, replicas.search().values()))
    for name, (_, _, lengths, seeds) in replicas.PLANS.items():
        arms = replicas.named_runs(name, lengths[-1], 2)
        assert all(isinstance(run, replicas.Replica) for run in arms.values()), name
        assert name == "s3_search" or {run.seed for run in arms.values()} == {2}
        assert len(replicas.REPLICAS[name].planned()) == len(set(arms.values())) * seeds
    assert len(replicas.s5_grid(20, 0)) == 40 == len(set(replicas.s5_grid(20, 0).values()))


def test_gaps_change_only_the_reading_first():
    runs = replicas.waterfall("mnist", 3, 0)
    by_seed = {
        seed: {key: fake(run, 0.9 + 0.01 * key.startswith("Ada"), 0.8) for key, run in runs.items()} for seed in (0, 2)
    }
    table = replicas.gaps(by_seed)
    assert list(table.index.unique("step"))[:3] == ["as published", "label-free evaluation", "centres trained"]
    assert len(table) == 2 * 9
    assert table.loc[("as published", 2)].tolist() == pytest.approx([80, 91, 11])
    assert table.loc[("label-free evaluation", 2)].tolist() == pytest.approx([90, 91, 1])


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
        ({"data": "fashion"}, "unknown data 'fashion': choose one of mnist, cifar10, digits"),
        ({"network": "ResNet"}, "unknown network 'ResNet': choose one of "),
        ({"m": 2.1}, r"CosFace: m must be a number in \[0, 2\], got 2.1"),
        ({"s": 0}, "s must be a number from 0.001"),
        ({"s": float("nan")}, "s must be a number"),
        ({"lr": -1}, "lr must be a number from 0"),
        ({"epochs": 0}, "epochs must be a whole number from 1"),
        ({"batch_size": 1}, "batch_size must be a whole number from 2"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"fp32": 1}, "fp32 must be of type bool"),
        ({"optimizer": "AdamW"}, "unknown optimizer 'AdamW': choose one of Adam, SGD"),
        ({"evaluated": "tests"}, "unknown evaluated 'tests': choose one of val, test"),
        ({"m3": 3}, r"m3 must be a number in \[0, 2\]"),
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
