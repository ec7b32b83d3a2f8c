import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lib import data as datasets
from lib import metrics
from studies import s1, smoke
from studies.study import Incomplete

ARMS = {(data, loss): s1.published(data, loss) for data in s1.NAMES for loss in s1.LOSSES}
ARCFACE, ADALOSS = ARMS["mnist", "ArcFace"], ARMS["mnist", "AdaLoss"]
SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}


def without(run, **changes):
    return dataclasses.replace(run, **changes)


def example(run, B=64, scale=1.0):
    """A model, embeddings (B, 128) as its network gives them, and labels (B,)."""
    torch.manual_seed(0)
    model = s1.Model(run, SHAPES[run.data], 10)
    x = scale * torch.randn(B, 128)
    return model, F.normalize(x) if model.unit else x.relu(), torch.arange(B) % 10


@pytest.fixture
def generated(monkeypatch):
    """Learnable images of MNIST's shape in place of MNIST: a bright block per class, and noise."""
    generator = torch.Generator().manual_seed(0)

    def part(N):
        labels = torch.randint(0, 10, (N,), generator=generator)
        images = torch.randint(0, 80, (N, 1, 28, 28), generator=generator, dtype=torch.uint8)
        for image, c in zip(images, labels.tolist(), strict=True):
            image[0, 5 * (c // 2) : 5 * (c // 2) + 6, 14 * (c % 2) : 14 * (c % 2) + 14] += 150
        return datasets.Split(images, labels)

    classes = [str(c) for c in range(10)]
    data = datasets.Data("mnist", part(200), part(70), part(100), classes, (0.13,), (0.31,))
    monkeypatch.setattr(s1.runs, "load", lambda name: data)
    return data


def tiny(run, **changes):
    return without(run, **{"epochs": 1, "train_size": 128, **changes})


# ---------------------------------------------------------------- the facts of S1


def test_the_constants_are_those_of_the_source():
    facts = {key: (run.s, run.m, run.lr, run.epochs, run.network) for key, run in ARMS.items()}
    assert facts == {
        ("mnist", "ArcFace"): (30, 0.5, 1e-3, 10, "ArcFace MNIST"),
        ("mnist", "AdaLoss"): (64, 0.4, 1e-3, 10, "AdaLoss"),
        ("cifar10", "ArcFace"): (10, 0.5, 1e-4, 20, "ArcFace CIFAR-10"),
        ("cifar10", "AdaLoss"): (64, 0.4, 1e-3, 20, "AdaLoss"),
    }
    assert all(run.batch_size == 64 and not run.train_size and not run.margin_warmup for run in ARMS.values())


def by_hand(run, x, W, y):
    """S1's loss of embeddings x as its network gives them, sample by sample, in double precision."""
    losses, norms = [], F.normalize(x).norm(dim=1)  # these in fp32, for their rounding is what S1 measures
    mean, std = norms.mean().item(), norms.std().item() + 1e-7
    for i, c in enumerate(y.tolist()):
        row = []
        for j in range(10):
            dot = sum((x[i].double() * W[j].double()).tolist())
            if run.loss == "ArcFace":
                value = max(-1.0, min(1.0, dot)) - 0.5 * (j == c)
            else:
                value = dot / x[i].double().norm().item() / W[j].double().norm().item()
                if j == c:
                    k = max(-1.0, min(1.0, (norms[i].item() - mean) / std * 0.33))
                    theta = math.acos(max(-0.9999, min(0.9999, value)))
                    value = math.cos(theta - 0.4 * k) - (0.4 + 0.4 * k)
            row.append(run.s * value)
        losses.append(math.log(sum(math.exp(v - max(row)) for v in row)) + max(row) - row[c])
    return sum(losses) / len(losses)


@pytest.mark.parametrize("run", ARMS.values(), ids=map("-".join, ARMS))
@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
def test_the_losses_are_those_of_the_source(run, scale):
    model, x, y = example(run, B=32, scale=scale)
    x[3] = (F.normalize(model.W[y[3]], dim=0) * x[3].norm()).detach()  # cosine 1: beyond the clamp of AdaLoss
    ours = F.cross_entropy(s1.logits(run, model, x, y), y)
    assert ours.item() == pytest.approx(by_hand(run, x, model.W.detach(), y), rel=1e-4)


def test_the_angle_of_adaloss_is_clamped_before_its_margin_and_not_behind_it():
    run, x = without(ADALOSS, unit_norms=False), torch.eye(128)[:2] * torch.tensor([[3.0], [1.0]])
    k = 0.33 / 2**0.5 * torch.tensor([[1.0], [-1.0]])  # of two norms
    cos = torch.tensor([[1.0], [-1.0]], requires_grad=True)  # angles 0 and pi: the margins lead out of [0, pi]
    theta = torch.tensor([[0.9999], [-0.9999]]).acos()
    target = s1.target(run, cos, x)
    torch.testing.assert_close(target, (theta - 0.4 * k).cos() - 0.4 * k - 0.4, atol=1e-6, rtol=0)
    assert torch.equal(torch.autograd.grad(target.sum(), cos)[0], torch.zeros(2, 1))


@pytest.mark.parametrize(("key", "run"), ARMS.items())
def test_initial_deviations(key, run):
    torch.manual_seed(0)
    model = s1.Model(run, SHAPES[key[0]], 10)
    channels, side = SHAPES[key[0]][0], SHAPES[key[0]][1]
    if run.loss == "ArcFace":
        widths = (32, 64) if key[0] == "mnist" else (64, 128, 256)
        fan_in = [channels * 9, *(9 * w for w in widths[:-1]), widths[-1] * (side // 2 ** len(widths)) ** 2]
        expected = [(n, (3 * n) ** -0.5) for n in fan_in]  # uniform in +-1/sqrt(fan in)
        outputs = [*widths, 128]
    else:
        flat = 64 * (side // 2) ** 2
        expected = [(n, (3 * n) ** -0.5) for n in (channels * 9, 288)] + [(n, (2 / n) ** 0.5) for n in (flat, 256)]
        outputs = [32, 64, 256, 128]
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert [(len(layer.weight), layer.weight[0].numel()) for layer in layers] == [
        (out, n) for out, (n, _) in zip(outputs, expected, strict=True)
    ]
    for layer, (n, deviation) in zip(layers, expected, strict=True):
        weight = layer.weight
        assert weight.std().item() == pytest.approx(deviation, rel=4 / weight.numel() ** 0.5)
        normal = isinstance(layer, torch.nn.Linear) and run.loss == "AdaLoss"
        assert weight.abs().max() > (6 / n) ** 0.5 if normal else weight.abs().max() <= n**-0.5
        assert layer.bias.abs().max() <= n**-0.5 and layer.bias.std().item() == pytest.approx((3 * n) ** -0.5, rel=0.3)
    assert model.W.shape == (10, 128) and 0.2 < model.W.abs().max() <= (6 / 138) ** 0.5
    assert model.W.std().item() == pytest.approx((2 / 138) ** 0.5, rel=0.03)


@pytest.mark.parametrize(("key", "run"), ARMS.items())
def test_networks_are_those_of_the_source(key, run):
    model, images = example(run)[0], torch.rand(3, *SHAPES[key[0]])
    x = images
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    for i, layer in enumerate(convolutions):  # S1's order: ReLU, then pooling
        x = F.relu(F.conv2d(x, layer.weight, layer.bias, padding=1))
        x = F.max_pool2d(x, 2) if run.loss == "ArcFace" or i == 1 else x
    x = x.flatten(1)
    if run.loss == "ArcFace":
        x = F.relu(F.linear(x, linears[0].weight, linears[0].bias))
    else:
        x = F.linear(F.relu(F.linear(x, linears[0].weight, linears[0].bias)), linears[1].weight, linears[1].bias)
        x = x / x.norm(dim=1, keepdim=True)
    torch.testing.assert_close(model(images), x)


@pytest.mark.parametrize("run", [ARCFACE, ADALOSS], ids=["ArcFace", "AdaLoss"])
def test_the_optimizer_does_not_hold_the_centres(run):
    model = example(run)[0]
    for frozen in (True, False):
        adam = s1.optimizer(without(run, frozen_centres=frozen), model)
        (group,) = adam.param_groups
        assert any(p is model.W for p in group["params"]) != frozen
        assert len(group["params"]) == len(list(model.parameters())) - frozen
        assert type(adam) is torch.optim.Adam and group["lr"] == run.lr
        assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.999), 1e-8, 0)


def test_pixels_lie_between_minus_one_and_one():
    values = s1.pixels(torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)).flatten()
    torch.testing.assert_close(values, torch.linspace(-1, 1, 256))


def test_the_validation_split_joins_the_training(generated):
    assert len(s1.splits(ARCFACE)[1]) == 270 and len(s1.splits(tiny(ARCFACE))[1]) == 128
    labels = torch.cat([generated.train.labels, generated.val.labels])
    assert torch.equal(s1.splits(ARCFACE)[1].labels, labels)


# ---------------------------------------------------------------- the defects are there, and go


def test_the_quality_factor_is_zero_for_most_samples():
    torch.manual_seed(0)
    x = torch.randn(100, 64, 128)
    k = torch.stack([s1.quality(ADALOSS, F.normalize(batch)) for batch in x])
    assert 0.85 < (k == 0).float().mean() < 0.99  # what is left is the rounding of the last digit
    once = torch.stack([s1.quality(ADALOSS, batch) for batch in x])
    assert (once == 0).float().mean() < 0.75
    assert torch.equal(s1.quality(ADALOSS, x[0] * 4), once[0])  # no length is seen
    mended = s1.quality(without(ADALOSS, unit_norms=False), x[0])
    norm = x[0].norm(dim=1, keepdim=True)
    torch.testing.assert_close(mended, (0.33 * (norm - norm.mean()) / norm.std()).clamp(-1, 1))


def test_dot_product_is_no_cosine():
    model, x, _ = example(ARCFACE, scale=3)
    torch.testing.assert_close(s1.logits(ARCFACE, model, x), 30 * (x @ model.W.T).clamp(-1, 1))
    assert s1.logits(ARCFACE, model, 1000 * x).abs().max() == 30
    mended = without(ARCFACE, dot_product=False)
    torch.testing.assert_close(s1.logits(mended, model, x), 30 * F.cosine_similarity(x[:, None], model.W, dim=2))


def test_the_margin_is_on_the_cosine_or_on_the_angle():
    cos = torch.linspace(-0.8, 0.99, 50)[:, None]
    assert torch.equal(s1.target(ARCFACE, cos, None), cos - 0.5)
    mended = s1.target(without(ARCFACE, cosine_margin=False), cos, None)
    torch.testing.assert_close(mended, (cos.acos() + 0.5).cos(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("flaw", "run"),
    [(flaw, ARCFACE) for flaw in ("dot_product", "cosine_margin")]
    + [("unit_norms", without(ADALOSS, network="ArcFace MNIST"))],
)
def test_a_defect_of_the_loss_changes_nothing_else(flaw, run):
    model, x, y = example(run)
    mended = without(run, **{flaw: False})
    assert (s1.logits(mended, model, x, y) != s1.logits(run, model, x, y))[torch.arange(64), y].any()
    assert torch.equal(s1.logits(mended, model, x), s1.logits(run, model, x)) == (flaw != "dot_product")
    again = example(mended)[0]
    assert all(map(torch.equal, again.parameters(), model.parameters()))  # the start
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(again(images), model(images))


def test_norms_before_normalising_take_it_out_of_the_network():
    images = torch.rand(4, 1, 28, 28)
    unit, real = (example(run)[0](images) for run in (ADALOSS, without(ADALOSS, unit_norms=False)))
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(4))
    assert real.norm(dim=1).std() > 0.01
    torch.testing.assert_close(F.normalize(real), unit)


@pytest.mark.parametrize("run", [ARCFACE, ADALOSS, without(ARCFACE, cosine_margin=False)])
def test_a_share_of_the_margin(run):
    cos, (_, x, _) = torch.linspace(-0.5, 0.9, 64)[:, None], example(run)
    torch.testing.assert_close(s1.target(run, cos, x, 0.0), cos)
    torch.testing.assert_close(s1.target(run, cos, x, 0.5), s1.target(without(run, m=run.m / 2), cos, x))


@pytest.mark.parametrize("run", [ARCFACE, ADALOSS], ids=["ArcFace", "AdaLoss"])
def test_centres_stay_where_they_start(generated, run):
    torch.manual_seed(0)
    start = s1.Model(run, SHAPES["mnist"], 10).W
    assert torch.equal(s1.execute(tiny(run))[0].W, start)
    assert not torch.allclose(s1.execute(tiny(run, frozen_centres=False))[0].W, start)


# ---------------------------------------------------------------- readings


def test_readings_of_arcface():
    model, _, _ = example(ARCFACE)
    with torch.no_grad():
        model.W.copy_(torch.eye(10, 128) * torch.linspace(1, 2, 10)[:, None])
    x = torch.zeros(4, 128)
    x[0, 0] = 0.3  # right, but by less than the margin
    x[1, 1] = 0.85  # right, and by more
    x[2, [3, 2]] = torch.tensor([0.95, 0.9])  # both products beyond 1: a tie that goes to the first class, 2
    x[3, [7, 5]] = torch.tensor([0.34, 0.35])  # class 7 by the product, class 5 by the cosine
    read = s1.readings(ARCFACE, model, x, torch.tensor([0, 1, 3, 7]))
    assert read == {
        "test_accuracy": 0.75, "test_accuracy_unclamped": 1.0, "cosine_accuracy": 0.75, "leaked_accuracy": 0.25,
    }  # fmt: skip
    mended = s1.readings(without(ARCFACE, dot_product=False), model, x, torch.tensor([0, 1, 3, 7]))
    assert mended["test_accuracy"] == mended["test_accuracy_unclamped"] == mended["cosine_accuracy"] == 0.75


def test_adaloss_is_read_with_raw_centres():
    model, _, y = example(ADALOSS)
    x = F.normalize(model.W[y] + 0.1 * torch.randn(64, 128)).detach()
    with torch.no_grad():
        model.W *= torch.linspace(0.1, 3, 10)[:, None]
    read = s1.readings(ADALOSS, model, x, y)
    raw, unit = ((x @ W.T).argmax(1) for W in (model.W, F.normalize(model.W)))
    assert read["test_accuracy"] == read["test_accuracy_unclamped"] == (raw == y).double().mean().item()
    assert read["cosine_accuracy"] == (unit == y).double().mean().item() != read["test_accuracy"]


def test_the_leaking_reading_sees_batches_of_64(monkeypatch):
    sizes, logits = [], s1.logits
    monkeypatch.setattr(s1, "logits", lambda *args: sizes.append([len(part) for part in args[2:]]) or logits(*args))
    s1.readings(ADALOSS, *example(ADALOSS, B=150))
    assert sizes == [[64, 64], [64, 64], [22, 22]]  # as S1 reads, since the quality factor depends on its batch


def test_a_margin_moves_the_leaking_reading_alone():
    model, x, y = example(ARCFACE)
    x = (x + 60 * model.W[y]).detach() / 100
    read = [s1.readings(without(ARCFACE, m=m), model, x, y) for m in (0.0, 0.2, 0.5, 2.0)]
    leaked = [r.pop("leaked_accuracy") for r in read]
    assert read[0] == read[1] == read[2] == read[3] and leaked[0] == read[0]["test_accuracy"]
    assert leaked == sorted(leaked, reverse=True) and leaked[-1] == 0


# ---------------------------------------------------------------- runs


def test_a_run_and_its_record(generated):
    run = tiny(ARCFACE, epochs=2, train_size=0)
    _, record = s1.execute(run)
    history, metrics = record["history"], record["metrics"]
    assert s1.Arm(**record["config"]) == run and record["dtype"] == "fp32"
    assert all(len(values) == 2 for values in history.values()) and history["loss"][-1] < 0.5 * history["loss"][0]
    for key in ("test_accuracy", "test_accuracy_unclamped", "cosine_accuracy", "leaked_accuracy"):
        assert metrics[key] == history[key][-1]
    assert metrics["test_accuracy"] > 0.8 and metrics["leaked_accuracy"] < metrics["test_accuracy"]
    assert 0 < history["seconds"][0] < history["seconds"][1] == record["seconds"]
    assert metrics["dead"] is False and set(history["no_gradient"]) == {0.0}
    again = s1.execute(run)[1]
    assert {**again["history"], "seconds": 0} == {**history, "seconds": 0} and again["metrics"] == metrics


def test_loss_of_an_epoch_is_the_mean_of_its_batch_means(generated, monkeypatch):
    seen, cross_entropy = [], F.cross_entropy
    monkeypatch.setattr(s1.F, "cross_entropy", lambda *args: seen.append(cross_entropy(*args)) or seen[-1])
    history = s1.execute(tiny(ADALOSS, train_size=0))[1]["history"]  # 270 images: the last of five batches has 14
    assert history["loss"] == [pytest.approx(sum(loss.item() for loss in seen) / 5, rel=1e-5)] and len(seen) == 5


def test_adaloss_record_shows_its_factor(generated):
    metrics = s1.execute(tiny(ADALOSS, epochs=2))[1]["metrics"]
    assert sum(metrics["factor_counts"]) == 2 * 128 and len(metrics["factor_by_class"]) == 10
    assert metrics["factor_zero"] > 0.8


def test_a_dead_start_is_an_outcome(generated, monkeypatch):
    xavier = torch.nn.init.xavier_uniform_
    monkeypatch.setattr(s1.nn.init, "xavier_uniform_", lambda W: xavier(W) * 1e4)  # every product is beyond 1
    record = s1.execute(tiny(ARCFACE, epochs=2))[1]
    assert record["metrics"]["dead"] is True and record["history"]["no_gradient"] == [1.0, 1.0]
    assert s1.execute(tiny(ARCFACE, dot_product=False))[1]["metrics"]["dead"] is False


def test_the_margin_grows_in_the_first_epochs(generated, monkeypatch):
    shares, target = [], s1.target
    monkeypatch.setattr(s1, "target", lambda *args: shares.extend(args[3:]) or target(*args))
    s1.execute(tiny(ARCFACE, epochs=2, batch_size=16, margin_warmup=1.5))
    shares = shares[:8] + shares[10:]
    assert shares[:8] == pytest.approx([i / 12 for i in range(8)]) and 1.0 in shares and max(shares) == 1.0


# ---------------------------------------------------------------- the studies


def changed(a, b):
    return {f.name for f in dataclasses.fields(a) if getattr(a, f.name) != getattr(b, f.name)}


@pytest.mark.parametrize("data", s1.NAMES)
def test_each_step_takes_one_defect_away(data):
    runs = s1.waterfall(data, 1)
    arms = {loss: [runs[f"{loss}: {step}"] for step in s1.STEPS] for loss in s1.LOSSES}
    differences = {loss: [changed(a, b) for a, b in itertools.pairwise(arm)] for loss, arm in arms.items()}
    rate, angle = {"lr"} if data == "cifar10" else set(), {"cosine_margin", "margin_warmup"}
    centres = {"frozen_centres"}
    assert differences["ArcFace"] == [set(), {"dot_product"}, rate, {"s", "m"}, centres, angle, set()]
    assert differences["AdaLoss"] == [set(), set(), {"network"}, {"s"}, centres, {"margin_warmup"}, {"unit_norms"}]
    assert changed(*(arm[-1] for arm in arms.values())) == {"loss"}


@pytest.mark.parametrize("data", s1.NAMES)
def test_pairs_on_one_network(data):
    runs = s1.same_network(data, 2)
    differences = [changed(runs[f"ArcFace: {pair}"], runs[f"AdaLoss: {pair}"]) for pair in s1.PAIRS]
    flaws = {"dot_product", "cosine_margin", "unit_norms"}
    assert differences == [{"loss", "s", "m"} | flaws, {"loss", "m"} | flaws, {"loss", "cosine_margin", "unit_norms"}]
    assert {run.network for run in runs.values()} == {s1.published(data, "ArcFace").network}
    assert {run.lr for run in runs.values()} == {1e-3} and all(run.frozen_centres for run in runs.values())


def test_without_its_factor_adaloss_is_the_other_of_the_last_pair():
    runs = s1.same_network("mnist", 0)
    arcface, adaloss = (runs[f"{loss}: same margin, normalised"] for loss in s1.LOSSES)
    model, _, _ = example(adaloss)
    x, y = 3 * torch.eye(128)[:40], torch.arange(40) % 10  # all norms are equal
    assert (s1.quality(adaloss, x) == 0).all()
    ours, other = (s1.logits(run, model, x, y) for run in (adaloss, arcface))
    torch.testing.assert_close(ours, other, atol=1e-4, rtol=0)


def test_nothing_is_planned_twice_and_seeds_come_first():
    plans = {study.name: study.planned() for study in s1.STUDIES}
    assert {name: max(run.seed for run in plan) + 1 for name, plan in plans.items()} == {
        "s1_published_mnist": 5, "s1_same_network_mnist": 5, "s1_waterfall_mnist": 3,
        "s1_published_cifar10": 5, "s1_same_network_cifar10": 5, "s1_waterfall_cifar10": 3,
    }  # fmt: skip
    for study in s1.STUDIES:
        seeds = [run.seed for run in study.planned()]
        assert seeds == sorted(seeds) and study.planned(full=True) == study.planned() and study.path.name == "s1.jsonl"
    for data in s1.NAMES:
        steps = set(plans[f"s1_waterfall_{data}"])
        shared = {run for run in plans[f"s1_published_{data}"] if run.seed < 3}
        assert shared <= steps
        pairs = {run for run in plans[f"s1_same_network_{data}"] if run.seed < 3}
        assert len(pairs - steps) == 3 * (2 if data == "cifar10" else 1)
    assert len(set().union(*plans.values())) == 104


def test_gaps_change_only_the_reading_first():
    def fake(run):
        keys = ("test_accuracy", "leaked_accuracy", "cosine_accuracy")
        values = (0.9, 0.8, 0.7) if run.loss == "ArcFace" else (0.91, 0.6, 0.92)
        return {"metrics": dict(zip(keys, values, strict=True))}

    found = {run: fake(run) for seed in (0, 2) for run in s1.waterfall("mnist", seed).values()}
    table = s1.gaps(s1.complete("s1_waterfall_mnist", found))
    assert list(table.index.unique("step")) == list(s1.STEPS) and len(table) == 2 * len(s1.STEPS)
    assert table.loc[("as published", 2)].tolist() == pytest.approx([80, 91, 11])
    assert table.loc[("label-free", 2)].tolist() == pytest.approx([90, 92, 2])
    with pytest.raises(Incomplete, match="s1_same_network_mnist"):
        s1.complete("s1_same_network_mnist", found)


def test_smoke_runs_are_small(monkeypatch):
    monkeypatch.setenv("PROFILE", "smoke")
    runs = smoke.thin(s1.plan("s1_waterfall_cifar10"))
    assert {(run.epochs, run.train_size, run.batch_size) for run in runs} == {(1, 128, 64)}
    assert {run.seed for run in runs} == {0, 1}


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
        ({"dot_product": 1}, "dot_product must be of type bool"),
        ({"m": 28.6, "cosine_margin": False}, "ArcFace: m must be .* in radians: 28.6 degrees are 0.499"),
        ({"data": "omniglot"}, "unknown data 'omniglot': choose one of mnist"),
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


def test_a_run_whose_evaluation_fails_is_recorded(generated, monkeypatch):
    monkeypatch.setattr(metrics, "angles", lambda *args: 1 / 0)
    _, record = s1.execute(tiny(ARCFACE))
    assert record["history"]["loss"] and record["metrics"]["test_accuracy"] == record["history"]["test_accuracy"][-1]
    assert record["error"] == "ZeroDivisionError: division by zero"
