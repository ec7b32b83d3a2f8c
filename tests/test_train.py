import dataclasses
import math
import platform
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from lib import data, losses, metrics, models, study, train


def build(digits, head="ArcFace", d=16, seed=0, network="SmallNet", **constants):
    torch.manual_seed(seed)
    net = models.network(network, digits, d)
    return models.Classifier(net, losses.make(head, 10, d, **constants))


def fit(model, digits, **changes):
    options = {"epochs": 1, "batch_size": 128, "lr": 0.1, "progress": False}
    return train.fit(model, digits, **{**options, **changes})


def snapshot(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("head", losses.heads())
def test_learns_digits(digits, head):
    model = build(digits, head, d=32)
    fit(model, digits, epochs=6, batch_size=64, lr=0.05)
    assert metrics.accuracy(train.predict(model, digits, digits.test), digits.test.labels) > 0.95


def test_the_regulariser_joins_the_loss(digits, monkeypatch):
    plain = fit(build(digits), digits)["loss"][0]
    monkeypatch.setattr(losses.ArcFace, "regulariser", lambda head, x: 7 + 0 * x.sum())
    assert fit(build(digits), digits)["loss"][0] == pytest.approx(plain + 7, rel=1e-5)


def test_magface_regulariser_lengthens_the_embeddings(digits):
    lengths = []
    for lambda_g in (0, 200):
        model = build(digits, "MagFace", lambda_g=lambda_g, l_a=1)
        fit(model, digits, epochs=3)
        lengths.append(train.embed(model, digits, digits.val).norm(dim=1).mean().item())
    assert lengths[1] > 1.2 * lengths[0]


@pytest.mark.parametrize("d", [2, 3])
def test_learns_with_few_dimensions(digits, d):
    model = build(digits, "ArcFace", d=d, m=0.1)
    history = fit(model, digits, epochs=10, batch_size=64, lr=0.05)
    assert train.embed(model, digits, digits.test).shape == (359, d)
    assert history["val_accuracy"][-1] > (0.7 if d == 2 else 0.9)


def test_same_seed_same_result(digits):
    models_, histories = [build(digits) for _ in range(3)], []
    for model, seed in zip(models_, (5, 5, 6), strict=True):
        histories.append(fit(model, digits, seed=seed))
        histories[-1].pop("seconds")
    first, again, other = (snapshot(m) for m in models_)
    assert histories[0] == histories[1] != histories[2]
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["head.W"], other["head.W"])


@pytest.mark.parametrize("head", ["ArcFace", "AdaLoss", "AdaFace"])
def test_history(digits, head):
    history = fit(build(digits, head), digits, epochs=2)
    keys = ["loss", "train_accuracy", "val_accuracy", "val_loss", "seconds"]
    assert list(history) == keys + {"AdaLoss": ["margins"], "AdaFace": ["quality"]}.get(head, [])
    assert all(len(values) == 2 for values in history.values())
    assert 0 < history["seconds"][0] < history["seconds"][1]
    assert history["loss"][1] < history["loss"][0]
    assert all(0 <= a <= 1 for key in keys[1:3] for a in history[key])
    if head == "AdaLoss":
        assert len(history["margins"][0]) == 10 and history["margins"][0] != history["margins"][1]


def test_quality_is_that_of_the_epochs_samples_by_class(digits, monkeypatch):
    seen, target = [], losses.AdaFace.target

    def watched(head, cos_y, y, norm):
        seen.append((head.quality(norm.detach()), y))
        return target(head, cos_y, y, norm)

    monkeypatch.setattr(losses.AdaFace, "target", watched)
    history = fit(build(digits, "AdaFace", h=0.1), digits, epochs=2)
    k, y = map(torch.cat, zip(*seen[len(seen) // 2 :], strict=True))
    assert history["quality"][1] == pytest.approx([k[y == c].mean().item() for c in range(10)], abs=1e-5)
    assert np.ptp(history["quality"][1]) > 0.01


def test_history_is_what_was_measured(digits):
    model = build(digits)
    history = fit(model, digits)
    logits, y = train.predict(model, digits, digits.val), digits.val.labels
    assert history["val_accuracy"] == [metrics.accuracy(logits, y)]
    assert history["val_loss"] == [metrics.cross_entropy(logits, y, metrics.temperature(logits, y))]


def test_train_accuracy_is_label_free(digits):
    # with this margin the training logits of the target never win
    history = fit(build(digits, "CosFace", m=2), digits, epochs=2, margin_warmup=0)
    assert history["train_accuracy"][-1] > 0.5


@pytest.mark.parametrize("head", losses.heads())
def test_every_parameter_is_trained(digits, head):
    model = build(digits, head)
    before = snapshot(model)
    fit(model, dataclasses.replace(digits, train=digits.train[:256]))
    after = model.state_dict()
    unmoved = [k for k, _ in model.named_parameters() if torch.equal(before[k], after[k])]
    assert not unmoved and "head.W" in before


def test_statistics_are_not_touched_by_evaluation(digits):
    model = build(digits, "AdaFace")
    before = snapshot(model)
    train.predict(model, digits, digits.val)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    "warmup, expected",
    [(0, [1, 1, 1, 1, 1, 1]), (1, [0, 1 / 3, 2 / 3, 1, 1, 1]), (2, [0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])],
)
def test_margin_warmup_sets_w(digits, monkeypatch, warmup, expected):
    model, seen = build(digits, "CosFace"), []
    target = losses.CosFace.target
    monkeypatch.setattr(losses.CosFace, "target", lambda head, *args: seen.append(head.w) or target(head, *args))
    fit(model, dataclasses.replace(digits, train=digits.train[:384]), epochs=2, margin_warmup=warmup)
    assert seen == pytest.approx(expected)  # three steps in each of two epochs


def test_linear_warmup_by_hand(digits, monkeypatch):
    rates, step = [], torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda o, *a: rates.append(o.param_groups[0]["lr"]) or step(o, *a))
    part = dataclasses.replace(digits, train=digits.train[: 64 * 11])
    fit(build(digits), part, epochs=1, batch_size=64, lr=1.0, linear_warmup=3 / 11)
    # from a 25th up to 1 in two steps, and down to almost nothing in eight
    assert rates == pytest.approx([0.04, 0.52, *(1 - k / 8 for k in range(9))], abs=1e-5)


def test_every_epoch_has_its_number(digits):
    numbers = []

    class Counted(data.Data):
        def epoch(self, batch_size, generator, number=0):
            numbers.append(number)
            return super().epoch(batch_size, generator, number)

    fit(build(digits), Counted(**{**digits.__dict__, "train": digits.train[:64]}), epochs=3)
    assert numbers == [0, 1, 2]


@pytest.mark.parametrize("epochs", range(1, 6))
def test_any_number_of_steps(digits, epochs):
    history = fit(build(digits), dataclasses.replace(digits, train=digits.train[:100]), epochs=epochs)
    assert len(history["loss"]) == epochs  # a step each


def test_low_resolution_epochs(digits, monkeypatch):
    model, sides = build(digits), []
    model.network.register_forward_pre_hook(lambda net, args: sides.append(args[0].shape[-1]) if net.training else None)
    fit(model, dataclasses.replace(digits, train=digits.train[:128]), epochs=3, low_res_epochs=2)
    assert sides == [6, 6, 8]


def test_muon_steps_are_orthogonal_and_keep_the_length_of_kernels(digits, monkeypatch):
    m = build(digits)
    before = {name: p.detach().clone() for name, p in m.named_parameters()}
    steps = []
    step = torch.optim.Muon.step

    def watched(self):
        matrices = [p for group in self.param_groups for p in group["params"]]
        old = [p.detach().clone() for p in matrices]
        step(self)
        steps.append([(p - o) / group["lr"] for group in self.param_groups for p, o in zip(matrices, old, strict=True)])

    monkeypatch.setattr(torch.optim.Muon, "step", watched)
    fit(m, digits, muon_lr=0.05)
    kernels = {name: p for name, p in m.named_parameters() if p.ndim == 4}
    assert len(steps[0]) == len(kernels) == 3
    for update, kernel in zip(steps[0], kernels.values(), strict=True):
        scale = max(1, update.shape[0] / update.shape[1]) ** 0.5
        values = torch.linalg.svdvals(update.float()) / scale
        assert values.min() > 0.6 and values.max() < 1.3  # Muon's iteration ends near 1, not at it
        assert kernel.norm().item() == pytest.approx(len(kernel) ** 0.5, rel=1e-4)
    for name, p in m.named_parameters():
        assert not torch.equal(p, before[name]), name


def test_muon_takes_the_same_steps_in_either_layout(digits, monkeypatch):
    moved = []
    for layout in (torch.channels_last, torch.contiguous_format):
        monkeypatch.setattr(torch, "channels_last", layout)
        m = build(digits)
        kernels = [p for p in m.parameters() if p.ndim == 4]
        before = [p.detach().clone() for p in kernels]
        fit(m, digits, muon_lr=0.05)
        moved.append([(p.detach() - old).flatten() for p, old in zip(kernels, before, strict=True)])
    for a, b in zip(*moved, strict=True):  # rounding differs
        assert torch.cosine_similarity(a.contiguous(), b.contiguous(), dim=0) > 0.9


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("muon_lr", [0.0, 0.05])
def test_a_kernel_and_its_matrix_share_memory(digits, muon_lr, layout):
    m = build(digits).to(memory_format=layout)
    _, kernels = train._optimizers(m, 0.1, 0.9, 0.0, muon_lr)
    assert len(kernels) == (3 if muon_lr else 0)
    for kernel, matrix in kernels.items():
        matrix.data.fill_(2.0)
        assert (kernel == 2).all()


@pytest.mark.parametrize("epoch, step", [(1, 1), (2, 2)])
def test_nonfinite_loss_stops_with_its_place(digits, monkeypatch, epoch, step):
    model, calls = build(digits), []

    def target(head, cos_y, y, norm):
        calls.append(1)
        return cos_y * (math.nan if len(calls) == 3 * (epoch - 1) + step else 1)

    monkeypatch.setattr(losses.ArcFace, "target", target)
    config = study.Config("digits", "ArcFace", lr=7.5)
    small = dataclasses.replace(digits, train=digits.train[:384])
    message = rf"became nan in epoch {epoch}, step {step}: lower lr.*{re.escape(str(config))}"
    with pytest.raises(FloatingPointError, match=message) as error:
        fit(model, small, epochs=2, name=config)
    assert "lr=7.5" in str(error.value) and "\n" not in str(error.value)
    assert all(p.isfinite().all() for p in model.parameters())  # stopped before the step


def test_progress_bar_shows_loss_and_accuracy(digits, capsys):
    fit(build(digits), digits, progress=True)
    shown = capsys.readouterr().out
    assert re.search(r"accuracy=[\d.]+%, loss=\d\.\d{3}, val=[\d.]+%", shown)


def test_embed_is_the_network_in_evaluation_mode(digits):
    model = build(digits).train()
    x = train.embed(model, digits, digits.test)
    again = train.embed(model, digits, digits.test[100:], batch_size=7)
    assert x.dtype == torch.float32 and x.device.type == "cpu" and not x.requires_grad
    torch.testing.assert_close(x[100:], again, rtol=0, atol=0.05)  # bf16 rounding
    with train.autocast(torch.device("cpu")):
        expected = model.eval().network(digits.normalise(digits.test.images))
    torch.testing.assert_close(x, expected.float(), rtol=0, atol=0.05)


def test_mirrored_data_is_embedded_with_its_mirror_image(digits):
    model, flipped = build(digits), dataclasses.replace(digits, flip=True)
    mirror = data.Split(digits.test.images.flip(-1), digits.test.labels)
    x, x_mirror = (train.embed(model, digits, split) for split in (digits.test, mirror))
    torch.testing.assert_close(train.embed(model, flipped, digits.test), (x + x_mirror) / 2)
    assert not torch.allclose(x, x_mirror, atol=0.05)


def test_shifted_views_join_the_mean(digits):
    model, shifted = build(digits), dataclasses.replace(digits, shifted_views=True)
    lower, upper = (np.pad(digits.test.images, ((0, 0), (0, 0), pad, pad), "reflect") for pad in ((1, 0), (0, 1)))
    views = digits.test.images, torch.from_numpy(lower[:, :, :8, :8]), torch.from_numpy(upper[:, :, 1:, 1:])
    x = [train.embed(model, digits, data.Split(view, digits.test.labels)) for view in views]
    torch.testing.assert_close(train.embed(model, shifted, digits.test), sum(x) / 3)
    assert len(shifted.views(views[0])) == 3 and not any(torch.allclose(x[0], other, atol=0.05) for other in x[1:])
    assert len(dataclasses.replace(shifted, flip=True).views(views[0])) == 6


@pytest.mark.parametrize("head", losses.heads())
def test_predict_is_label_free(digits, head):
    model = build(digits, head)
    logits = train.predict(model, digits, digits.val)
    shuffled = data.Split(digits.val.images, digits.val.labels.roll(1))
    assert torch.equal(logits, train.predict(model, digits, shuffled))
    assert torch.equal(logits, model.head(train.embed(model, digits, digits.val)))


def test_one_seed_gives_every_head_the_same_network(digits):
    first = snapshot(build(digits, "Softmax").network)
    for head in losses.heads():
        assert all(torch.equal(first[k], v) for k, v in build(digits, head).network.state_dict().items())
    assert not torch.equal(first["embedding.0.weight"], build(digits, seed=1).network.embedding[0].weight)


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize("d", [2, 3, 128])
@pytest.mark.parametrize("network, size", [("SmallNet", 8), ("SmallNet", 28), ("AirNet", 24), ("SmoothAirNet", 32)])
def test_embedding_sizes(network, size, d):
    images = torch.randn(4, 3, size, size)
    net = models.NETWORKS[network](3, d)
    x = net(images)
    assert x.shape == (4, d) and (x < 0).any() and (x > 0).any()  # no ReLU behind it
    logits = models.Classifier(net, losses.ArcFace(10, d))(images)
    assert logits.shape == (4, 10)


def test_a_smooth_network_has_no_relu_in_its_blocks():
    count = {name: [type(m) for m in models.NETWORKS[name](3, 2).modules()].count for name in models.NETWORKS}
    assert [count["AirNet"](nn.ReLU), count["AirNet"](nn.GELU)] == [6, 0]
    assert [count["SmoothAirNet"](nn.ReLU), count["SmoothAirNet"](nn.GELU)] == [0, 6]


def test_classifier_holds_network_and_head():
    model = models.Classifier(models.SmallNet(1, 3), losses.CosFace(10, 3, m=1.0)).eval()
    assert {"head.W", "network.embedding.0.weight"} <= set(dict(model.named_parameters()))
    images, y = torch.randn(4, 1, 8, 8), torch.arange(4)
    x = model.network(images)
    assert torch.equal(model(images), model.head(x)) and torch.equal(model(images, y), model.head(x, y))
    assert not torch.equal(model(images), model(images, y))


def test_whitening_layer_decorrelates():
    g = torch.Generator().manual_seed(0)
    images = torch.nn.functional.avg_pool2d(torch.randn(200, 3, 20, 20, generator=g), 5, stride=1)
    images += images.mean(1, keepdim=True)  # neighbours and channels correlated
    net = models.AirNet(3, 8)
    net.prepare(images, eps=1e-6)
    out = (net.whiten(images) - net.whiten.bias[:, None, None]).transpose(0, 1).flatten(1)[:12]  # (12, patches)
    torch.testing.assert_close(out @ out.T / out.shape[1], torch.eye(12), atol=0.02, rtol=0)
    assert torch.equal(net.whiten.weight[12:], -net.whiten.weight[:12])


def test_whitening_layer_stays_fixed(digits):
    big = dataclasses.replace(
        digits, **{k: data.Split(s.images[:128].repeat(1, 1, 4, 4), s.labels[:128]) for k, s in digits.splits().items()}
    )
    model = build(big, network="AirNet")
    weight = model.network.whiten.weight.clone()
    bias = model.network.whiten.bias.clone()
    fit(model, big, batch_size=64)
    assert torch.equal(model.network.whiten.weight, weight)
    assert not torch.equal(model.network.whiten.bias, bias)


def test_unknown_network(digits):
    with pytest.raises(ValueError, match="unknown network 'resnet': choose one of SmallNet, AirNet"):
        models.network("resnet", digits, 8)


def test_best_device_is_available():
    assert torch.ones(1, device=train.best_device()).item() == 1


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_freed_memory_is_kept():
    program = """if True:
        import re, torch
        from pathlib import Path
        from lib import train

        def resident():
            return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

        def left():
            before = resident()
            torch.ones(50_000_000)
            return resident() - before

        print(left())
        train.reuse_memory()
        print(left())
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    usual, kept = map(int, done.stdout.split())
    assert usual < 20e6 and kept > 180e6  # of 200e6 bytes
