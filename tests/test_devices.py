"""The code on a GPU, checked without one: on the stand-in of pretend_device it mixes no devices and rarely waits."""

import contextlib
import copy
import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from omniglot_stand_in import make as make_omniglot
from PIL import Image
from pretend_device import PretendDevice
from sklearn.metrics import confusion_matrix
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.testing import assert_close

from lib import data, heads, metrics, models, train
from lib.device import best_device, memory_format, precision
from lib.heads import many_classes, variants
from lib.sets import omniglot as omniglot_files
from studies import (
    beyond_accuracy,
    forming,
    margin_maps,
    omniglot,
    one_shot,
    own_images,
    play,
    replicas,
    runs,
    s1,
    search,
)  # fmt: skip

HEADS = heads.heads() | variants.HEADS
KINDS = ("cuda", "mps")


@pytest.fixture(params=KINDS)
def device(request):
    with PretendDevice(request.param) as device, register_module_forward_pre_hook(refuse_channels_last):
        yield device


def refuse_channels_last(module, inputs):
    """Batch normalisation has had wrong gradients for that layout on MPS (pytorch/pytorch#175189)."""
    if isinstance(module, nn.BatchNorm2d) and inputs[0].is_mps:
        assert inputs[0].is_contiguous(), "channels last on mps"


@functools.cache
def digits(train=256, **changes):
    """A part of the digits, on the CPU."""
    everything = data.load("digits")
    parts = {"train": everything.train[:train], "val": everything.val[:20], "test": everything.test[:40]}
    return dataclasses.replace(everything, **parts, **changes)


def classifier(head="ArcFace", network="SmallNet"):
    torch.manual_seed(0)
    return models.Classifier(models.network(network, digits().sample(), 16), heads.make(head, 10, 16))


def fit(model, everything, **changes):
    return train.fit(model, everything, **{"epochs": 1, "batch_size": 64, "lr": 0.05, "progress": False, **changes})


def on(kind, values):
    """The device of every tensor is of that kind."""
    return all(value.device.type == kind for value in values)


def state(model):
    """All that a model consists of."""
    return [*model.parameters(), *model.buffers()]


# ---------------------------------------------------------------- the stand-in itself

REFUSED = {
    "sum": lambda x, y: x + y,
    "product of matrices": lambda x, y: F.linear(x, y),
    "concatenation": lambda x, y: torch.cat([x, y]),
    "sum in place": lambda x, y: x.add_(y),
    "sum in place on the CPU": lambda x, y: y.add_(x),
    "result on the CPU": lambda x, y: torch.mm(x, x, out=y),
    "scalar on the CPU takes the result": lambda x, y: y[0, 0].add_(x[0, 0]),
    "index into the CPU": lambda x, y: y[x.long()],
    "assignment of a CPU tensor by index": lambda x, y: x.index_put_((torch.tensor([0, 1]),), y),
    "gradient": lambda x, y: x.requires_grad_().square().sum(0).backward(y[0]),
}


@pytest.mark.parametrize("mix", REFUSED.values(), ids=REFUSED)
def test_devices_do_not_mix(device, mix):
    x, y = torch.zeros(2, 2, device=device.kind), torch.zeros(2, 2)
    with pytest.raises(RuntimeError, match="same device"):
        mix(x, y)


def test_a_scalar_and_an_index_may_come_from_the_cpu(device):
    x = torch.arange(4.0, device=device.kind)
    assert on(device.kind, [x + torch.tensor(1.0), torch.where(x > 1, x, torch.tensor(0.0))])
    assert not device.copies
    assert on(device.kind, [x[torch.tensor([2, 0])]])
    assert device.copies.total() == 1 and not device.reads


def test_numpy_is_refused(device):
    x = torch.zeros(3, dtype=torch.int64, device=device.kind)
    for read in (x.numpy, lambda: np.asarray(x), lambda: confusion_matrix(x, x)):
        with pytest.raises(TypeError, match="to numpy"):
            read()
    assert x.cpu().numpy().tolist() == [0, 0, 0]


def test_a_generator_of_the_cpu_is_refused(device):
    generator, x = torch.Generator(), torch.zeros(3, device=device.kind)
    for draw in (
        lambda: torch.rand(3, generator=generator, device=device.kind),
        lambda: torch.randperm(3, generator=generator, device=device.kind),
        lambda: x.uniform_(generator=generator),
        lambda: torch.bernoulli(x, generator=generator),
    ):
        with pytest.raises(RuntimeError, match="generator"):
            draw()
    assert on(device.kind, [torch.rand(3, generator=generator).to(device.kind), torch.rand(3, device=device.kind)])


def test_double_precision_is_refused_on_mps_alone(device):
    x, y = torch.zeros(3, device=device.kind), torch.zeros(3, dtype=torch.float64)
    for convert in (
        lambda: x.double(),
        lambda: x.to(torch.float64),
        lambda: y.to(device.kind),
        lambda: torch.zeros(3, dtype=torch.float64, device=device.kind),
        lambda: x.sum(dtype=torch.float64),
    ):
        refused = pytest.raises(TypeError, match="float64") if device.kind == "mps" else contextlib.nullcontext()
        with refused:
            convert()
    assert on(device.kind, [y.to(device.kind, torch.float32)])
    assert x.to("cpu", torch.float64).dtype == torch.float64


READS = {
    "item": lambda x: x[0].item(),
    "bool": lambda x: bool(x[0]),
    "comparison": lambda x: 1 if x[0] > 0 else 2,
    "float": lambda x: float(x[0]),
    "int": lambda x: int(x[0]),
    "tolist": lambda x: x.tolist(),
    "tolist of a scalar": lambda x: x[0].tolist(),
    "format": lambda x: f"{x[0]:.2f}",
    "equal": lambda x: torch.equal(x, x),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "assignment by mask": lambda x: x.clone().index_put_((x > 0,), x[1:]),
    "bincount": lambda x: torch.bincount(x.long()),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_read_is_counted_once(device, read):
    x = torch.arange(3.0, device=device.kind)
    x.exp().sum()
    assert not device.reads
    read(x)
    assert device.reads == {"outside lib": 1}
    read(x.cpu())
    assert device.reads == {"outside lib": 1}


def test_a_read_has_its_place_in_lib(device):
    logits, y = torch.zeros(4, 3, device=device.kind), torch.zeros(4, dtype=torch.int64, device=device.kind)
    metrics.recall_at_1(logits, y)
    source = Path(metrics.__file__).read_text().splitlines()
    lines = {place: source[int(place.split(":")[1]) - 1] for place in device.reads}
    assert {place.split(":")[0] for place in lines} == {"metrics.py"}
    assert any("sum().item()" in line for line in lines.values()) and len(lines) >= 2


def test_operations_and_copies_are_counted(device):
    x = torch.zeros(3)
    x + x
    assert (device.operations, device.copies.total()) == (0, 0)
    y = x.to(device.kind)
    before = device.operations
    y + y
    assert device.operations == before + 1 and device.copies.total() == 1
    x.copy_(y), y.cpu(), torch.tensor([1.0], device=device.kind), y.to(device.kind)
    assert device.copies.total() == 4


def test_gradients_return_through_a_transfer(device):
    x = torch.ones(3, requires_grad=True)
    (2 * x.to(device.kind)).sum().backward()
    assert on("cpu", [x.grad]) and x.grad.tolist() == [2, 2, 2]


def test_a_module_moves_with_all_it_has(device):
    model = classifier("AdaFace").to(device.kind)
    twin = copy.deepcopy(model)
    assert on(device.kind, state(model) + state(twin))
    assert twin.head.W.is_cuda == (device.kind == "cuda") and twin.head.W.is_mps == (device.kind == "mps")
    model(torch.rand(2, 1, 8, 8, device=device.kind)).sum().backward()
    assert on(device.kind, [p.grad for p in model.parameters()])
    assert on("cpu", state(model.to("cpu")))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_of_it(kind):
    before = best_device()
    with PretendDevice(kind):
        assert best_device() == torch.device(kind)
        x = torch.ones(3, device=kind)
    assert best_device() == before
    assert on("cpu", [x, x.to("cpu")]) and (x + torch.ones(3)).numpy().tolist() == [2, 2, 2]


# ---------------------------------------------------------------- heads, networks, augmentation


def batches(kind, C=10, d=16):
    """Two batches of embeddings (2, 12, d) and labels (2, 12)."""
    x, y = 3 * torch.randn(2, 12, d, generator=torch.Generator().manual_seed(1)), torch.arange(24).view(2, 12) % C
    return x.to(kind).requires_grad_(), y.to(kind)


def step(head, x, y, margin_scale):
    head.margin_scale = margin_scale
    torch.manual_seed(2)  # ElasticFace draws its margins
    loss = head.loss(x, y)
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HEADS)
def test_heads(name, kind):
    torch.manual_seed(0)
    head = heads.make(name, 10, 16)
    found = []
    for twin, where, mode in (
        (copy.deepcopy(head), "cpu", contextlib.nullcontext()),
        (head, kind, PretendDevice(kind)),
    ):
        with mode:
            x, y = batches(where)
            twin.to(where).train()
            values = {f"loss {i}": step(twin, x[i], y[i], margin_scale) for i, margin_scale in enumerate((0.5, 1.0))}
            values |= {name: p.grad for name, p in [("x", x), *twin.named_parameters()] if p.grad is not None}
            values |= twin.describe()
            twin.epoch_end(lambda x=x, y=y: (x.detach().flatten(0, 1), y.flatten()))
            values |= {"logits": twin.eval()(x[0]), "with margin": twin(x[0], y[0]), **dict(twin.named_buffers())}
            assert on(where, values.values())
        found.append(values)
    assert_close(found[1], found[0])


@pytest.mark.parametrize("name", HEADS)
def test_a_step_of_a_head_waits_for_nothing(name, device):
    head = heads.make(name, 10, 16).to(device.kind)
    x, y = batches(device.kind)
    step(head, x[0], y[0], 1.0)
    assert not device.reads


@pytest.mark.parametrize("name", HEADS)
def test_what_is_invalid_makes_the_loss_nan_and_is_told_when_asked(name, device):
    head = heads.make(name, 10, 16).to(device.kind)
    x, y = batches(device.kind)
    for labels, message in ((torch.full_like(y[0], 10), "labels must lie in"), (y[0], None)):
        assert head.loss(x[0], labels).isnan().item() == bool(message)
        assert (head.problem() or "").startswith(message or "")
    if name != "Softmax":  # it needs no length
        assert head.loss(0 * x[0], y[0]).isnan()
        device.reads.clear()
        assert "length zero" in head.problem() and device.reads.total() == 1
    assert head.problem() is None


@pytest.mark.parametrize("name", models.NETWORKS)
def test_networks(name, device):
    torch.manual_seed(0)
    images, y = torch.rand(4, 3, 32, 32), torch.arange(4)
    model = models.Classifier(models.network(name, images, 16), heads.make("NormFace", 10, 16))
    gradients = []
    for net, kind in ((copy.deepcopy(model), "cpu"), (model, device.kind)):
        net.to(kind).to(memory_format=memory_format(torch.device(device.kind)))
        net(images.to(kind), y.to(kind))[0].backward()
        gradients.append([p.grad for p in net.parameters() if p.requires_grad])
        assert on(kind, gradients[-1])
    assert_close(gradients[1], gradients[0], check_device=False)


AUGMENTATIONS = {
    "shift": {"crop_padding": 2},
    "reflect": {"crop_padding": 2, "reflect": True},
    "flip": {"flip": True},
    "alternate": {"flip": True, "alternate": True},
    "all": {"crop_padding": 2, "reflect": True, "flip": True, "alternate": True, "shifted_views": True},
}


@pytest.mark.parametrize("changes", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_augmentation(changes, device):
    ours, theirs = (
        list(everything.epoch(64, torch.Generator().manual_seed(0), number=1))
        for everything in (digits(**changes).to(device.kind), digits(**changes))
    )
    assert len(ours) == 4 and all(on(device.kind, batch) for batch in ours)
    assert_close(ours, theirs, check_device=False, rtol=0, atol=0)


@pytest.mark.parametrize("changes", [{}, {"flip": True, "shifted_views": True}], ids=["plain", "views"])
def test_evaluation(changes, device):
    everything, model = digits(**changes), classifier()
    twin = copy.deepcopy(model)
    measured = []
    for net, on_device in ((twin, everything), (model.to(device.kind), everything.to(device.kind))):
        x = train.embed(net, on_device, on_device.test)
        logits, val_logits = (train.predict(net, on_device, part) for part in (on_device.test, on_device.val))
        assert on("cpu", [x, logits, val_logits])
        test_y, val_y = (part.labels.cpu() for part in (on_device.test, on_device.val))
        measured.append(runs.evaluate(logits, test_y, x, val_logits, val_y))
    assert measured[1].pop("confusion") == measured[0].pop("confusion")
    assert measured[1] == pytest.approx(measured[0], rel=0.05, abs=0.01)  # half precision on cuda


# ---------------------------------------------------------------- many classes


@pytest.mark.parametrize("name", ["ArcFace", "CurricularFace", "AdaFace", "AdaLoss", "ElasticFace"])
def test_blocks_of_classes(name, device):
    torch.manual_seed(0)
    head = heads.make(name, 23, 5)
    x, y = torch.randn(8, 5), torch.randint(23, (8,))
    found = []
    for twin, kind in ((copy.deepcopy(head), "cpu"), (head.to(device.kind), device.kind)):
        torch.manual_seed(0)  # ElasticFace draws its margins
        x_there = x.to(kind).requires_grad_()
        loss = many_classes.cross_entropy(twin, x_there, y.to(kind), block=4)
        found.append([loss, *torch.autograd.grad(loss, [x_there, twin.W]), *twin.buffers()])
        assert on(kind, found[-1])
    assert_close(found[1], found[0], check_device=False)


# ---------------------------------------------------------------- training


@pytest.mark.parametrize(("name", "muon_lr"), [("ArcFace", 0.0), ("AdaFace", 0.0), ("Triplet", 0.0), ("AdaLoss", 0.1)])
def test_training(name, muon_lr, device, monkeypatch):
    monkeypatch.setattr("lib.device.has_bf16", lambda _: device.kind == "cuda")  # the same on the CPU
    model = classifier(name)
    options = {"epochs": 2, "low_res_epochs": 1, "muon_lr": muon_lr}
    right = fit(copy.deepcopy(model), digits(64, crop_padding=1), **options)
    history = fit(model, digits(64, crop_padding=1).to(best_device()), **options)
    assert on(device.kind, state(model))
    assert history.keys() == right.keys()
    for key in {"loss", "val_loss", "margins", "quality"} & history.keys():
        assert np.allclose(history[key], right[key], rtol=0.02, atol=0.002), key  # Muon has bf16 on the CPU, not on mps


def of_a_step(name, kind, muon_lr=0.0, **options):
    """Blocking reads and copies of a step of a training, and the number of its operations."""
    counted = []
    for steps in (1, 2):
        with PretendDevice(kind, **options) as device:
            fit(classifier(name), digits(64 * steps, crop_padding=1, flip=True).to(kind), muon_lr=muon_lr)
        counted.append(device)
    one, two = counted
    return two.reads - one.reads, two.copies - one.copies, two.operations - one.operations


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "muon_lr"), [("Softmax", 0.1), ("AdaFace", 0.0), ("AdaLoss", 0.0), ("Triplet", 0.0)])
def test_a_step_of_the_training_waits_for_nothing_and_copies_nothing(name, muon_lr, kind):
    reads, copies, operations = of_a_step(name, kind, muon_lr)
    assert (reads, copies) == ({}, {})
    assert operations > 100


def test_a_gpu_without_bf16_trains_in_fp16():
    model, dtypes = classifier("Softmax"), set()
    right = fit(copy.deepcopy(model), digits(128))
    model.network.embedding[0].register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    with PretendDevice("cuda", bf16=False) as device:
        assert precision(best_device()) == torch.float16
        history = fit(model, digits(128).to(device.kind))
    assert dtypes == {torch.float16}
    assert history["loss"] == pytest.approx(right["loss"], rel=0.02)
    reads, copies, _ = of_a_step("Softmax", "cuda", 0.1, bf16=False)
    assert reads.total() == 2 and not copies  # each of the two optimizers asks whether the gradients are finite


# ---------------------------------------------------------------- the studies


@pytest.fixture
def small(monkeypatch):
    """Noise, in 16 x 16 pixels, under the names of the data sets."""

    def load(name, root="data", device="cpu"):
        shape = {"mnist": (1, 16, 16), "cifar10": (3, 16, 16)}[name]
        generator, C, parts = torch.Generator().manual_seed(0), 10, []
        for size in (64, 20, 30):
            images = torch.randint(256, (size, *shape), generator=generator, dtype=torch.uint8)
            parts.append(data.Split(images, torch.arange(size) % C))
        augmentation = {"crop_padding": 4, "flip": True} if name == "cifar10" else {}
        moments = [(0.5,) * len(images[0])] * 2
        return data.Data(name, *parts, list(map(str, range(C))), *moments, **augmentation).to(device)

    monkeypatch.setattr(data, "load", load)
    runs.load.cache_clear()
    yield
    runs.load.cache_clear()


TINY = {"epochs": 1, "batch_size": 64}
LEVELS = {"open set": 5, "long tail": 4, "label noise": 0.2, "few examples": 3, "distortions": 0}
AIRBENCH = {
    "network": "NarrowSmoothAirNet", "low_res_epochs": 1, "muon_lr": 0.1, "linear_warmup": 0.4, "val_size": 10,
    "reflect": True, "alternate": True, "shifted_views": True,
}  # fmt: skip
STUDIES = {
    "main runs, MNIST": lambda: (runs, runs.recipe("mnist", "AdaFace", **TINY)),
    "main runs, CIFAR-10": lambda: (runs, runs.recipe("cifar10", "ArcFace", **TINY, **AIRBENCH)),
    **{
        f"beyond accuracy, {question}": lambda question=question: (
            beyond_accuracy,
            beyond_accuracy.Run("mnist", "Softmax", **TINY, question=question, level=LEVELS[question], test_size=4),
        )
        for question in beyond_accuracy.QUESTIONS
    },
    "beyond accuracy, colour": lambda: (
        beyond_accuracy,
        beyond_accuracy.Run("cifar10", "MagFace", **TINY, test_size=4),
    ),
    "margin maps, all classes": lambda: (margin_maps, margin_maps.Run("mnist", "CombinedMargin", **TINY)),
    "margin maps, seven classes": lambda: (margin_maps, margin_maps.Run("mnist", "CosFace", **TINY, known=7)),
    **{
        f"S1, {data} {loss}": lambda data=data, loss=loss: (s1, s1.published(data, loss, epochs=1))
        for data in s1.NAMES
        for loss in s1.LOSSES
    },
    "replicas, S3, Softmax": lambda: (replicas, replicas.s3("cifar10", "Softmax", 1, 0, 0.01)),
    "replicas, S3, ArcFace": lambda: (replicas, replicas.s3("mnist", "ArcFace", 1, 0, 0.01, imbalance=5.0)),
    "replicas, S3, Triplet": lambda: (replicas, replicas.s3("mnist", "Triplet", 1, 0, 0.01, evaluated="val")),
    "replicas, S5": lambda: (replicas, replicas.s5("ArcFace", 1, 0, m3=0.2, embedding_dim=3)),
}


@pytest.mark.parametrize("name", STUDIES)
def test_a_run_of_every_study(name, device, small):
    study, run = STUDIES[name]()
    model, record = study.execute(run, progress=False)
    assert on(device.kind, state(model))
    assert device.kind == "mps" or record["device"] == "a pretended GPU"


def test_the_playground_and_embeddings_that_form(device, small):
    assert 0 <= play.train("ArcFace", "mnist", size=20, epochs=1).accuracy <= 1
    course = forming.course(runs.load("mnist"), "AdaLoss", 2, [0, 2], images=4)
    assert course.x.shape == (2, 4, 2)
    assert {part.device.type for part in (course.x, course.W, course.y, course.accuracy)} == {"cpu"}


@pytest.mark.parametrize("head", ["ArcFace", "AdaLoss"])
def test_somebodys_own_images(device, head, tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    for name in ("dark", "light"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for i in range(12):
            pixels = draw.integers(0, 128, (12, 12, 3), dtype=np.uint8) + np.uint8(127 * (name == "light"))
            Image.fromarray(pixels).save(tmp_path / "mine" / name / f"{i}.png")
    monkeypatch.setattr(own_images, "pretrained", lambda: None)
    images = own_images.images_in(tmp_path / "mine", 12)
    trained = own_images.train(images, head, steps=2, most=2)
    assert on(device.kind, state(trained.model))


@pytest.fixture(scope="module")
def characters(tmp_path_factory):
    root = tmp_path_factory.mktemp("characters")
    return root, make_omniglot(root / "data")


@pytest.mark.parametrize("run", [
    omniglot.default("Triplet", trial=True), omniglot.default("AdaLoss", constants=search.FREE),
    omniglot.default("Softmax", classes=6, drawings=4),
    one_shot.arm(one_shot.ARMS["quarter turns"], 0, network="TinyAirNet"),
], ids=["trial", "final", "fewer characters", "one-shot recipe"])  # fmt: skip
def test_a_run_on_characters_never_seen(run, device, characters, monkeypatch):
    root, known = characters
    for folder, entry in known.items():
        monkeypatch.setitem(omniglot_files.FOLDERS, folder, entry)
    monkeypatch.setattr("lib.paths.PROJECT", root)
    monkeypatch.setattr(omniglot, "TASKS", 5)
    for cached in (runs.load, omniglot.official):
        cached.cache_clear()
    run = dataclasses.replace(run, epochs=1, batch_size=64, embedding_dim=8)
    try:
        model, record = (one_shot if isinstance(run, one_shot.Run) else omniglot).execute(run)
        assert on(device.kind, state(model))
        assert 0 <= record["metrics"]["map_at_r"] <= 1 and ("one_shot_error" in record["metrics"]) != run.trial
        plan = dataclasses.replace(omniglot.FINAL, plan=lambda full: {} if run.trial else {run: run.head})
        monkeypatch.setattr(omniglot, "FINAL", plan)
        packed = omniglot._pack(run, model, record)
        assert (packed is None) == (run.head == "Triplet" or run.classes > 0)
    finally:
        for cached in (runs.load, omniglot.official):
            cached.cache_clear()
