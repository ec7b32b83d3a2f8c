import collections
import contextlib
import dataclasses
import io
import math
import platform
import re
import subprocess
import sys
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from lib import data, device, heads, losses, metrics, models, muon, train
from studies import machine

CPU = torch.device("cpu")


def build(digits, head="ArcFace", d=16, seed=0, network="SmallNet", **constants):
    torch.manual_seed(seed)
    net = models.network(network, digits.sample(), d)
    return models.Classifier(net, heads.make(head, 10, d, **constants))


def few(digits, steps, batch_size=64):
    return dataclasses.replace(digits, train=digits.train[: batch_size * steps], val=digits.val[:20])


def fit(model, digits, **changes):
    options = {"epochs": 1, "batch_size": 128, "lr": 0.1, "progress": False}
    return train.fit(model, digits, **{**options, **changes})


def snapshot(model):
    return {k: v.clone() for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}


@pytest.mark.parametrize("head", heads.heads())
def test_learns_digits(digits, head):
    model = build(digits, head, d=32)
    fit(model, digits, epochs=6, batch_size=64, lr=0.05)
    assert metrics.accuracy(train.predict(model, digits, digits.test), digits.test.labels) > 0.95


def test_the_loss_is_the_heads_own(digits, monkeypatch):
    plain, loss = fit(build(digits), digits)["loss"][0], losses.ArcFace.loss
    monkeypatch.setattr(losses.ArcFace, "loss", lambda head, x, y: loss(head, x, y) + 7)
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
    assert history["val_accuracy"][-1] > (0.4 if d == 2 else 0.9)  # in two dimensions rounding decides how far


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
    seen, target = [], heads.relatives.AdaFace.target

    def watched(head, cos_y, y, norm):
        seen.append((head.quality(norm.detach()), y))
        return target(head, cos_y, y, norm)

    monkeypatch.setattr(heads.relatives.AdaFace, "target", watched)
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


@pytest.mark.parametrize("head", heads.heads())
def test_every_parameter_is_trained(digits, head):
    model = build(digits, head)
    before = snapshot(model)
    fit(model, dataclasses.replace(digits, train=digits.train[:256]))
    after = snapshot(model)
    unmoved = [k for k, _ in model.named_parameters() if torch.equal(before[k], after[k])]
    assert not unmoved and "head.W" in before


def test_statistics_are_not_touched_by_evaluation(digits):
    model = build(digits, "AdaFace")
    before = snapshot(model)
    train.predict(model, digits, digits.val)
    after = snapshot(model)
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize(
    "warmup, expected",
    [(0, [1, 1, 1, 1, 1, 1]), (1, [0, 1 / 3, 2 / 3, 1, 1, 1]), (2, [0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])],
)
def test_margin_warmup_sets_the_scale(digits, monkeypatch, warmup, expected):
    model, seen = build(digits, "CosFace"), []
    target = losses.CosFace.target
    monkeypatch.setattr(
        losses.CosFace, "target", lambda head, *args: seen.append(head.margin_scale) or target(head, *args)
    )
    fit(model, dataclasses.replace(digits, train=digits.train[:384]), epochs=2, margin_warmup=warmup)
    assert seen == pytest.approx(expected)  # three steps in each of two epochs


def test_linear_warmup_by_hand(digits, monkeypatch):
    rates, step = [], torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda o, *a: rates.append(o.param_groups[0]["lr"]) or step(o, *a))
    part = dataclasses.replace(digits, train=digits.train[: 64 * 11])
    fit(build(digits), part, epochs=1, batch_size=64, lr=1.0, linear_warmup=3 / 11)
    # from a 25th up to 1 in two steps, and down to almost nothing in eight
    assert rates == pytest.approx([0.04, 0.52, *(1 - k / 8 for k in range(9))], abs=1e-5)


def rates(optimizer, steps, linear_warmup):
    schedule, seen = train.one_cycle(optimizer, steps, linear_warmup), []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_both_halves_of_the_default_schedule_are_cosines_with_the_peak_at_a_quarter():
    seen = rates(torch.optim.SGD([torch.zeros(1)], lr=2.0), 40, 0.0)
    rise = [0.08 + (2 - 0.08) * (1 - math.cos(math.pi * k / 9)) / 2 for k in range(10)]
    fall = [2 * (1 + math.cos(math.pi * k / 30)) / 2 for k in range(31)]
    assert seen == pytest.approx([*rise, *fall[1:]], abs=1e-5)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("muon_lr", [0.0, 0.1])
def test_what_decays_and_what_each_optimizer_moves(digits, momentum, muon_lr):
    model = build(digits, "Softmax")
    model.head.threshold = nn.Parameter(torch.zeros(()))  # as a head of one's own may have
    sgd, *others = train.build_optimizers(model, 0.3, momentum, 0.02, muon_lr)
    matrices, vectors = sgd.param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.02, 0.0)
    assert all(g["nesterov"] == (momentum > 0) and g["momentum"] == momentum for g in sgd.param_groups)
    names = {p: name for name, p in model.named_parameters()}
    kinds = {f"{place}.weight": type(module) for place, module in model.named_modules()}
    norms = {name for name, kind in kinds.items() if kind in (nn.BatchNorm1d, nn.BatchNorm2d)}
    biases = norms | {name for name in names.values() if name.endswith(("bias", "head.b", "threshold"))}
    kernels = {name for name, kind in kinds.items() if kind is nn.Conv2d}
    assert {names[p] for p in vectors["params"]} == biases >= {"head.b", "head.threshold"}
    assert {names[p] for p in matrices["params"]} == set(names.values()) - biases - (kernels if muon_lr else set())
    assert len(kernels) == 3 and len(others) == bool(muon_lr)
    for optimizer in others:
        (group,) = optimizer.param_groups
        assert {names[p] for p in group["params"]} == kernels and (group["lr"], group["momentum"]) == (0.1, momentum)


def test_every_epoch_has_its_number(digits):
    numbers = []

    class Counted(data.Data):
        def epoch(self, batch_size, generator, number=0):
            numbers.append(number)
            return super().epoch(batch_size, generator, number)

    fields = {field.name: getattr(digits, field.name) for field in dataclasses.fields(digits)}
    fit(build(digits), Counted(**{**fields, "train": digits.train[:64]}), epochs=3)
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


def kernels_with_gradients(layout, shapes=((32, 1, 3, 3), (64, 32, 3, 3), (8, 64, 3, 3), (16, 4, 2, 2))):
    g = torch.Generator().manual_seed(0)
    for shape in shapes:
        kernel, grad = (torch.randn(shape, generator=g).to(memory_format=layout) for _ in range(2))
        yield nn.Parameter(kernel), grad


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_muon_is_torchs_on_matrices(layout):
    kernels, grads = zip(*kernels_with_gradients(layout), strict=True)
    order = (0, 2, 3, 1) if layout == torch.channels_last else (0, 1, 2, 3)
    matrices = [nn.Parameter(k.detach().permute(order).flatten(1).clone()) for k in kernels]
    ours = muon.ConvMuon(list(kernels), lr=0.05, momentum=0.8)
    reference = torch.optim.Muon(matrices, lr=0.05, momentum=0.8, weight_decay=0.0)
    for step in range(3):
        for kernel, matrix, grad in zip(kernels, matrices, grads, strict=True):
            kernel.grad = grad * (1 + step) + step
            matrix.grad = kernel.grad.permute(order).flatten(1)
        ours.step()
        reference.step()
        for kernel, matrix in zip(kernels, matrices, strict=True):
            matrix.data *= len(matrix) ** 0.5 / matrix.norm()
            assert torch.equal(kernel.permute(order).flatten(1), matrix)


def test_muon_steps_are_orthogonal_and_keep_the_length_of_kernels():
    for kernel, kernel.grad in kernels_with_gradients(torch.channels_last):
        step = muon.orthogonal(kernel.grad.flatten(1))
        values = torch.linalg.svdvals(step.float())
        assert values.min() > 0.6 and values.max() < 1.3  # Muon's iteration ends near 1, not at it
        muon.ConvMuon([kernel], lr=0.1, momentum=0.9).step()
        assert kernel.norm().item() == pytest.approx(len(kernel) ** 0.5, rel=1e-4)


def test_muon_trains_the_kernels(digits):
    m = build(digits)
    before = snapshot(m)
    fit(m, digits, muon_lr=0.05)
    for name, p in m.named_parameters():
        assert not torch.equal(p, before[name]), name
        assert p.ndim < 4 or p.norm().item() == pytest.approx(len(p) ** 0.5, rel=1e-4)


def test_muon_takes_the_same_steps_in_either_layout():
    moved = []
    for layout in (torch.channels_last, torch.contiguous_format):
        kernels, grads = zip(*kernels_with_gradients(layout), strict=True)
        for kernel, kernel.grad in zip(kernels, grads, strict=True):
            muon.ConvMuon([kernel], lr=0.1, momentum=0.9).step()
        moved.append(kernels)
    for a, b in zip(*moved, strict=True):  # rounding differs
        assert torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.999


def test_muon_leaves_a_kernel_without_gradient_alone_and_resumes():
    (kernel, grad), (idle, _) = list(kernels_with_gradients(torch.channels_last))[:2]
    before, kernel.grad = idle.detach().clone(), grad
    first, again = (muon.ConvMuon([kernel, idle], lr=0.1, momentum=0.9) for _ in range(2))
    first.step()
    again.load_state_dict(first.state_dict())
    assert torch.equal(idle, before) and len(again.state) == 1
    assert torch.equal(again.state[kernel]["mean"], first.state[kernel]["mean"])


@pytest.mark.parametrize("bf16", [True, False])
def test_muon_multiplies_bf16_where_the_hardware_does_and_on_a_cpu(monkeypatch, bf16):
    monkeypatch.setattr(muon, "has_bf16", lambda on: bf16)
    assert muon.orthogonal(torch.randn(4, 9)).dtype == torch.bfloat16
    assert muon.orthogonal(torch.randn(4, 9, device="meta")).dtype == (torch.bfloat16 if bf16 else torch.float32)


# ---------------------------------------------------------------- losses that are not finite


@pytest.mark.parametrize("epoch, step", [(1, 1), (2, 2)])
def test_nonfinite_loss_stops_after_its_epoch(digits, monkeypatch, epoch, step):
    model, calls = build(digits), []

    def target(head, cos_y, y, norm):
        calls.append(1)
        return cos_y * (math.nan if len(calls) == 3 * (epoch - 1) + step else 1)

    monkeypatch.setattr(losses.ArcFace, "target", target)
    small = dataclasses.replace(digits, train=digits.train[:384])
    message = rf"became nan in epoch {epoch}: lower lr.* of Config\(lr=7.5\)$"
    with pytest.raises((FloatingPointError, ValueError), match=message) as error:
        fit(model, small, epochs=2, name="Config(lr=7.5)")
    assert error.type is FloatingPointError and len(calls) == 3 * epoch


def test_a_nonfinite_loss_names_invalid_inputs(digits, monkeypatch):
    model = build(digits)
    monkeypatch.setattr(losses.ArcFace, "target", lambda head, cos_y, y, norm: cos_y * math.nan)
    monkeypatch.setattr(losses.ArcFace, "problem", lambda head: "a label is 11")
    with pytest.raises(ValueError, match="epoch 1: a label is 11"):
        fit(model, few(digits, 2))


# ---------------------------------------------------------------- what the model, the head and the device are asked


@pytest.mark.parametrize("muon_lr", [0.0, 0.05])
def test_a_compiled_model_is_used(digits, muon_lr, monkeypatch):
    monkeypatch.setattr("lib.device.has_bf16", lambda _: False)  # its rounding differs between the two
    plain, small, graphs = build(digits), few(digits, 4), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model = torch.compile(build(digits), backend=backend)
    history, expected = (fit(m, small, batch_size=64, muon_lr=muon_lr, margin_warmup=0) for m in (model, plain))
    assert graphs and history["loss"] == pytest.approx(expected["loss"], rel=3e-4)
    assert train.predict(model, small, small.val).shape == (20, 10)


def test_hooks_of_the_model_are_called(digits):
    model, seen = build(digits), []
    model.register_forward_hook(lambda module, args, result: seen.append(len(args)))
    fit(model, few(digits, 3), batch_size=64)
    assert seen == [2, 2, 2]


@pytest.mark.parametrize("head", ["ArcFace", "AdaLoss", "Triplet"])
def test_distributed_data_parallel_on_one_rank(digits, tmp_path, head):
    plain, wrapped, small = build(digits, head), build(digits, head), few(digits, 4)
    expected = fit(plain, small, batch_size=64, epochs=2)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model, synchronised = DistributedDataParallel(wrapped.to(memory_format=torch.channels_last)), []
        model.register_comm_hook(None, lambda _, bucket: synchronised.append(1) or ready(bucket.buffer()))
        history = fit(model, small, batch_size=64, epochs=2)
    finally:
        distributed.destroy_process_group()
    assert len(synchronised) >= 8 and history["loss"] == expected["loss"]
    assert all(torch.equal(v, snapshot(plain)[k]) for k, v in snapshot(wrapped).items())


def ready(tensor):
    future = torch.futures.Future()
    future.set_result(tensor)
    return future


def test_the_head_says_what_is_logged_and_done_after_an_epoch(digits):
    class Watched(losses.ArcFace):
        def describe(self):
            return {"step": torch.full((10,), float(len(sizes)))}

        def epoch_end(self, embeddings):
            if not sizes:
                x, y = embeddings()
                assert torch.equal(y, small.train.labels)
            sizes.append(x.shape if not sizes else None)

    sizes, small, passes = [], few(digits, 2), []
    model = models.Classifier(build(digits).network, Watched(10, 16))
    model.network.register_forward_hook(lambda net, args, x: passes.append(len(x)) if not net.training else None)
    history = fit(model, small, epochs=2, batch_size=64)
    assert history["step"] == [[1.0] * 10, [2.0] * 10] and sizes == [(128, 16), None]
    assert passes == [128, 20, 20]  # nothing is embedded that nobody asks for


class Counting(TorchDispatchMode):
    """Counts operations, and where in lib a value is waited for."""

    def __enter__(self):
        self.operations, self.reads = 0, collections.Counter()
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        if func is torch.ops.aten._local_scalar_dense.default:
            places = [f for f in traceback.extract_stack() if "lib" in Path(f.filename).parts[-3:-1]]
            self.reads[f"{Path(places[-1].filename).name}:{places[-1].lineno}"] += 1
        return func(*args, **(kwargs or {}))


def counted(digits, head, steps, **changes):
    model = build(digits, head)
    with Counting() as counting:
        fit(model, few(digits, steps), batch_size=64, **changes)
    return counting


@pytest.fixture
def same_evaluation(monkeypatch):
    """No search for a temperature: its steps, on the CPU, differ from model to model."""
    monkeypatch.setattr(metrics, "least_cross_entropy", metrics.cross_entropy)


@pytest.mark.parametrize("head", [*heads.heads(), "ErrorAdaLoss", "RandomMargin"])
def test_a_training_step_never_waits_for_the_device(same_evaluation, digits, head):
    short, long = (counted(digits, head, steps) for steps in (2, 8))
    assert long.reads == short.reads and sum(long.reads.values()) <= 5
    assert 100 < (long.operations - short.operations) / 6 < 600


@pytest.mark.parametrize("changes", [{"muon_lr": 0.05}, {"progress": True}, {"low_res_epochs": 1}])
def test_nor_does_it_with(same_evaluation, digits, changes):
    assert counted(digits, "ArcFace", 2, **changes).reads == counted(digits, "ArcFace", 8, **changes).reads


def test_a_bar_reads_a_few_times_an_epoch_however_long_that_is(same_evaluation, digits, monkeypatch):
    shown = []
    monkeypatch.setattr(train, "hidden", lambda progress: False)  # as on a terminal
    monkeypatch.setattr(train, "update_bar", lambda bar, *values, **others: shown.append(others))
    for batches, times in ((2, 0), (10, 3), (20, 4)):  # of 64 images: 32, 160 and 320 steps
        shown.clear()
        fit(build(digits), few(digits, batches), batch_size=4, progress=True)
        assert sum("epoch" in others for others in shown) == times


# ---------------------------------------------------------------- half precision and the layout of images


@pytest.mark.parametrize(
    "kind, bf16, capability, expected",
    [
        ("cuda", True, (8, 0), torch.bfloat16),
        ("cuda", False, (7, 5), torch.float16),  # Colab's T4
        ("cuda", False, (6, 1), torch.float32),
        ("mps", False, None, torch.float32),
    ],
)
def test_precision_is_what_the_hardware_multiplies(monkeypatch, kind, bf16, capability, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda on=None: capability)
    assert device.precision(torch.device(kind)) == expected
    asked = []
    monkeypatch.setattr(torch, "autocast", lambda *args, enabled: asked.append((*args, enabled)))
    device.autocast(torch.device(kind))
    assert asked == [(kind, expected, expected != torch.float32)]


@pytest.mark.parametrize("avx512", [True, False])
def test_precision_of_a_cpu(monkeypatch, avx512):
    monkeypatch.setattr(device, "cpu", lambda: {"avx512_bf16": avx512})
    assert device.precision(CPU) == (torch.bfloat16 if avx512 else torch.float32)


def test_channels_last_only_where_it_is_safe(digits):
    layouts = {kind: device.memory_format(torch.device(kind)) for kind in ("cuda", "cpu", "mps")}
    assert layouts == {"cuda": torch.channels_last, "cpu": torch.channels_last, "mps": torch.contiguous_format}


def test_the_layout_of_the_weights_is_that_of_the_device(digits, monkeypatch):
    for layout in (torch.channels_last, torch.contiguous_format):
        monkeypatch.setattr(train, "memory_format", lambda on, layout=layout: layout)
        model = build(digits)
        fit(model, few(digits, 1))
        kernels = [p for p in model.parameters() if p.ndim == 4 and p.shape[1] > 1]
        assert kernels and all(p.is_contiguous(memory_format=layout) for p in kernels)


@pytest.mark.parametrize("muon_lr", [0.0, 0.05])
def test_fp16_trains_with_a_scaled_loss(digits, monkeypatch, muon_lr):
    monkeypatch.setattr(device, "precision", lambda on: torch.float16)
    dtypes, largest, model = set(), [], build(digits)
    model.register_forward_hook(lambda module, args, result: dtypes.add(result[1].dtype))
    model.head.W.register_hook(lambda grad: largest.append(grad.abs().max().item()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # schedules complain where the first step is left out
        history = fit(model, digits, epochs=3, batch_size=64, lr=0.05, muon_lr=muon_lr)
    assert dtypes == {torch.float16} and largest[0] > 100 and history["val_accuracy"][-1] > 0.9


# ---------------------------------------------------------------- the progress bar, evaluation


def test_progress_bar_shows_loss_and_accuracy(digits, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    fit(build(digits), digits, progress=True)
    shown = capsys.readouterr().out
    assert re.search(r"accuracy=[\d.]+%, loss=\d\.\d{3}, val=[\d.]+%", shown)


def test_a_notebook_has_a_bar_and_a_log_file_none(digits, monkeypatch, tmp_path):
    log = tmp_path / "log"
    with log.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        fit(build(digits), digits, progress=True, epochs=2)
    assert log.read_bytes() == b""
    kernels = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()  # it is no terminal either
    with contextlib.redirect_stdout(kernels):
        fit(build(digits), few(digits, 1), progress=True)
        assert not train.hidden(True) and train.hidden(False)
    assert "accuracy=" in kernels.getvalue()


def test_embed_is_the_network_in_evaluation_mode(digits):
    model = build(digits).train()
    x = train.embed(model, digits, digits.test)
    again = train.embed(model, digits, digits.test[100:], batch_size=7)
    assert x.dtype == torch.float32 and x.device.type == "cpu" and not x.requires_grad
    torch.testing.assert_close(x[100:], again, rtol=0, atol=0.05)  # bf16 rounding
    with device.autocast(CPU):
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


@pytest.mark.parametrize("head", heads.heads())
def test_predict_is_label_free(digits, head):
    model = build(digits, head)
    logits = train.predict(model, digits, digits.val)
    shuffled = data.Split(digits.val.images, digits.val.labels.roll(1))
    assert torch.equal(logits, train.predict(model, digits, shuffled))
    assert torch.equal(logits, model.head(train.embed(model, digits, digits.val)))


def test_one_seed_gives_every_head_the_same_network(digits):
    first = snapshot(build(digits, "Softmax").network)
    for head in heads.heads():
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
    loss, embeddings = model(images, y)
    assert torch.equal(model(images), model.head(x)) and torch.equal(embeddings, x)
    assert torch.equal(loss, model.head.loss(x, y)) and loss.ndim == 0


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
        models.network("resnet", digits.sample(), 8)


@pytest.mark.parametrize("head", ["Softmax", "ArcFace", "AdaFace"])
@pytest.mark.parametrize("network, size", [("SmallNet", 28), ("AirNet", 32)])
def test_a_classifier_is_exported_without_labels(tmp_path, network, size, head):
    torch.manual_seed(0)
    images = torch.randn(16, 3, size, size)
    model = models.Classifier(models.network(network, images, 8), heads.make(head, 10, 8)).eval()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (images[:4],), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "model.pt2")
    again = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(again(images), model(images), rtol=0, atol=1e-5)


# ---------------------------------------------------------------- the process


def output(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_networks_load_neither_data_sets_nor_tables():
    loaded = output("import sys, lib.models; print(*sys.modules)").split()
    assert "torch" in loaded and not {"sklearn", "pandas", "torchvision", "lib.data"} & {*loaded}


def test_an_import_changes_nothing_and_starts_nothing():
    program = """if True:
        import os, pkgutil, sys
        import matplotlib.pyplot as plt
        import pandas, seaborn, sklearn, torch, torchvision, tqdm
        import lib
        before, cwd = (dict(os.environ), dict(plt.rcParams), torch.get_num_threads()), os.getcwd()
        started = []
        sys.addaudithook(lambda event, args: started.append(args) if event == "subprocess.Popen" else None)
        modules = [m.name for m in pkgutil.walk_packages(lib.__path__, "lib.") if not m.name.endswith("__main__")]
        for module in modules:
            __import__(module)
        assert before == (dict(os.environ), dict(plt.rcParams), torch.get_num_threads()) and cwd == os.getcwd()
        print(len(modules), started)
    """
    count, started = output(program).split(maxsplit=1)
    assert int(count) >= 14 and started.strip() == "[]"


def test_a_training_leaves_the_memory_settings_alone(digits, monkeypatch):
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda *args: pytest.fail("asked the C library"))
    machine.reuse_memory.cache_clear()
    fit(build(digits), few(digits, 1))


def test_best_device_is_available():
    assert torch.ones(1, device=device.best_device()).item() == 1


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_freed_memory_is_kept():
    program = """if True:
        import re, torch
        from pathlib import Path
        from studies import machine

        def resident():
            return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

        def left():
            before = resident()
            torch.ones(50_000_000)
            return resident() - before

        print(left())
        machine.reuse_memory()
        print(left())
    """
    usual, kept = map(int, output(program).split())
    assert usual < 20e6 and kept > 180e6  # of 200e6 bytes
