import ast
import dataclasses
import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from lib import claims, losses, replicas, statistics, store

LIB = Path(replicas.__file__).parent
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
        leak: [replicas.accuracy(without(ARCFACE, m=m), model, x, y, leak) for m in (0.0, 0.5, 1.0, 2.5)]
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
    for path in set(LIB.glob("*.py")) - {LIB / "replicas.py", LIB / "claims.py"}:
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


@pytest.fixture
def grown(monkeypatch):
    """The plan "tiny" of two digits runs and two seeds."""

    def make(epochs, seed, records):
        return {loss: tiny(run, epochs=epochs, seed=seed) for loss, run in (("a", ARCFACE), ("b", ADALOSS))}

    monkeypatch.setitem(replicas.PLANS, "tiny", (make, (2, 1), 2))


def test_runs_are_recorded_and_resumed(project, grown, capsys):
    first = replicas.runs(["tiny"], budget=0)
    assert not first and "4 left" in capsys.readouterr().out
    records = replicas.runs(["tiny"])
    assert "4 trained now" in capsys.readouterr().out
    assert [(run.seed, run.loss) for run in records] == [(s, x) for s in (0, 1) for x in ("ArcFace", "AdaLoss")]
    path = project / "results" / "replicas.jsonl"
    assert len(path.read_text().splitlines()) == 4 and replicas.read() == records
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    replicas.runs(["tiny"])
    assert "3 runs from replicas.jsonl, 1 trained now" in capsys.readouterr().out
    assert replicas.recorded().keys() == records.keys()


def test_same_run_same_result(project):
    first, again, other = (replicas.execute(tiny(ADALOSS, seed=seed))[1]["metrics"] for seed in (0, 0, 1))
    assert first == again != other


def test_complete_prefers_the_published_length(grown):
    make = replicas.PLANS["tiny"][0]

    def records(*lengths_and_seeds):
        return {run: fake(run) for e, seed in lengths_and_seeds for run in make(e, seed, {}).values()}

    with pytest.raises(replicas.Incomplete, match=r"lacks runs of tiny: `python -m lib\.replicas tiny` trains them"):
        replicas.complete("tiny", records())
    assert replicas.complete("tiny", records((2, 0)))[0] == 2
    assert replicas.complete("tiny", records((2, 0), (1, 0), (1, 1)))[0] == 1  # two seeds before length
    epochs, by_seed = replicas.complete("tiny", records((2, 0), (2, 3), (1, 0), (1, 1), (1, 2)))
    assert epochs == 2 and list(by_seed) == [0, 3]
    partial = records((1, 0), (1, 1))
    partial.pop(make(1, 1, {})["b"])
    assert list(replicas.complete("tiny", partial)[1]) == [0]


def test_s3_takes_what_has_the_best_validation_accuracy(project):
    def accuracy(run):
        return 0.5 + (run.lr == 0.03) + (run.m == 0.1) if run.loss == "ArcFace" else run.lr

    records = {run: fake(run, accuracy(run)) for run in replicas.search().values()}
    group = replicas.s3_group("cifar10", 3, 0, records)
    assert {name: (run.lr, run.m) for name, run in group.items()} == {
        "Softmax": (0.1, 0.0), "ArcFace": (0.03, 0.1), "Triplet": (0.1, 0.2),
        "Softmax, long tail": (0.1, 0.0), "ArcFace, long tail": (0.03, 0.1),
    }  # fmt: skip
    with pytest.raises(replicas.Incomplete, match="s3_search"):
        replicas.s3_group("cifar10", 3, 0, {})


def test_no_records_and_unknown_names(project):
    with pytest.raises(ValueError, match=r"replicas\.jsonl holds no runs: `python -m lib\.replicas` trains them"):
        replicas.recorded()
    with pytest.raises(ValueError, match="unknown plan 's9': choose from s1_mnist"):
        replicas.runs(["s9"])


def test_every_plan_is_whole(project):
    rates = {run: fake(run) for run in replicas.search().values()}
    for name, (make, lengths, _) in replicas.PLANS.items():
        runs = make(lengths[-1], 2, rates)
        assert all(isinstance(run, replicas.Replica) for run in runs.values()), name
        assert name == "s3_search" or {run.seed for run in runs.values()} == {2}
    assert len(replicas.s5_grid(20, 0)) == 40 == len(set(replicas.s5_grid(20, 0).values()))


# ---------------------------------------------------------------- the ledger


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


def test_typed_table_is_whole():
    table = claims.claims()
    assert len(table) >= 30 and list(table.index) == list(range(1, len(table) + 1))
    assert set(table["source"]) == {"S1", "S2", "S3", "S4", "S5"}
    assert set(table["kind"]) <= set(claims.KINDS)
    assert set(" ".join(table["plans"]).split()) <= {*replicas.PLANS, *claims.CONTROLLED, "margins"}
    assert not table.duplicated(["source", "claim"]).any() and not (table[["claim", "test"]] == "").any(axis=None)
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
    assert row["command"] == f"python -m lib.claims {row.name}" and row["setting"] == "10 epochs"


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


def test_controlled_study_answers_claims(monkeypatch, capsys):
    rows = [("ArcFace", seed, 0.90 + seed / 100) for seed in range(3)]
    rows += [("AdaLoss", seed, 0.91 + seed / 100 + seed / 1000) for seed in range(3)]
    frame = pd.DataFrame(rows, columns=["head", "seed", "test_accuracy"]).assign(epochs=4)
    monkeypatch.setitem(claims.CONTROLLED, "controlled_mnist", lambda: frame)
    row = claims.ledger({}, numbers("MNIST: a tuned adaptive mechanism")).iloc[0]
    mean, low, high = statistics.interval([1.0, 1.1, 1.2])
    assert row["figure"] == f"{mean:.2f} [{low:.2f}, {high:.2f}] points" and row["verdict"] == "reproduced"
    assert row["n"] == 3 and row["setting"] == "4 epochs"

    def nothing():
        raise ValueError("no complete seed")

    monkeypatch.setitem(claims.CONTROLLED, "controlled_mnist", nothing)
    number = numbers("MNIST: a tuned adaptive mechanism")
    assert claims.ledger({}, number)["setting"].item() == "no runs recorded"
    trained = []
    monkeypatch.setattr(claims.missing, "train_missing", trained.append)
    monkeypatch.setattr(sys, "argv", ["claims", str(number[0])])
    claims.main()
    assert trained == [["controlled_mnist"]] and "not testable here" in capsys.readouterr().out


def test_the_check_of_the_recommender_answers_its_claim(monkeypatch, capsys):
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
    trained = []
    monkeypatch.setattr(claims.maps, "recorded", lambda: int("no runs"))  # a ValueError
    monkeypatch.setattr(claims.maps, "runs", lambda plan: trained.append(len(plan)))
    monkeypatch.setattr(sys, "argv", ["claims", str(number[0])])
    claims.main()
    assert trained == [len(claims.maps.plan())] and "not testable here" in capsys.readouterr().out


def test_equations_can_fail():
    assert claims.equation_error("ArcFace", m=0.5) < 1e-9 < 0.1 < claims.equation_error("CosFace", m=0.5)


def test_difficulty_correlation():
    confusion = np.diag([90, 80, 70, 60]) + np.eye(4, k=1, dtype=int) * 10
    record = {"metrics": {"confusion": confusion.tolist(), "factor_by_class": [0.1, 0.2, 0.3, 0.0]}}
    error = 1 - confusion.diagonal() / confusion.sum(1)
    assert claims.follows_difficulty(record) == pytest.approx(stats.spearmanr([0.1, 0.2, 0.3, 0.0], error).statistic)


def test_ledger_is_written_whole(project):
    table = claims.ledger({}, [1, 52])
    claims.write(table)
    again = pd.read_csv(project / "results" / "claims.csv")
    assert list(again["number"]) == [1, 52] and list(again["verdict"]) == list(table["verdict"])
    assert store.folder("results") == project / "results"


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


def test_s3_waits_for_its_search(project, monkeypatch):
    trained = []

    def in_time(train_one, run, deadline, threads):
        if len(trained) == allowed:  # the budget is spent
            return run, None
        trained.append("search" if run.evaluated == "val" else run)
        return run, fake(run, 0.5 + run.lr)

    monkeypatch.setattr(store, "_in_time", in_time)
    allowed = 10
    replicas.runs(["s3_mnist", "fp32"])
    assert [run.fp32 for run in trained[:3]] == [True] * 3 and trained[3:] == ["search"] * 7  # no rates, no S3
    allowed = 100
    replicas.runs(["s3_mnist"])
    assert trained[10:27] == ["search"] * (len(replicas.search()) - 7)
    assert {run.lr for run in trained[27:]} == {0.1}
    assert [run.seed for run in trained[27:]] == [0] * 5 + [1] * 5 + [2] * 5
