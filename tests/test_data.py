import dataclasses
import functools
import hashlib
import shutil
import socket
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lib import data
from lib.sets import files

ROOT = Path(__file__).parent.parent / "data"
RAW, BATCHES = "MNIST/raw", "cifar-10-batches-py"
MNIST_FILE, CIFAR_FILE = f"{RAW}/t10k-images-idx3-ubyte", f"{BATCHES}/test_batch"
HERE = {
    "mnist": all((ROOT / RAW / file).exists() for file in files.MNIST_MD5),
    "cifar10": len(list((ROOT / BATCHES).glob("*_batch*"))) == 6,
    "digits": True,
}


def need(name):
    return pytest.mark.skipif(not HERE[name], reason=f"data/ does not hold {name}")


SETS = [pytest.param(name, marks=need(name)) for name in HERE]  # Omniglot has tests of its own


@pytest.fixture(scope="module")
def loaded():
    """load by name, each set read once."""
    return functools.cache(lambda name: data.load(name, ROOT))


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


def digest(split):
    return hashlib.sha1(split.images.numpy().tobytes() + split.labels.numpy().tobytes()).hexdigest()[:12]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- sets of ten classes

SHAPES = {
    "mnist": ((55000, 5000, 10000), (1, 28, 28)),
    "cifar10": ((45000, 5000, 10000), (3, 32, 32)),
    "digits": ((1259, 179, 359), (1, 8, 8)),
}
VALIDATION = {"mnist": "20663dc42d85", "cifar10": "9c057193eb51", "digits": "7de454b38d14"}


@pytest.mark.parametrize("name", SETS)
def test_sizes_and_types(loaded, name):
    d = loaded(name)
    sizes, shape = SHAPES[name]
    assert d.name == name and len(d.classes) == 10
    assert tuple(len(s) for s in d.splits().values()) == sizes
    for split in d.splits().values():
        assert split.images.shape == (len(split), *shape)
        assert (split.images.dtype, split.labels.dtype) == (torch.uint8, torch.int64)
        assert split.labels.unique().tolist() == list(range(10))
        assert (split.images.min(), split.images.max()) == (0, 255)


@pytest.mark.parametrize("name", SETS)
def test_validation_is_fixed(loaded, name):
    assert digest(loaded(name).val) == VALIDATION[name]


@pytest.mark.parametrize("name", SETS)
def test_validation_is_stratified(loaded, name):
    d = loaded(name)
    train, val = (torch.bincount(s.labels, minlength=10) for s in (d.train, d.val))
    expected = (train + val) * len(d.val) / (len(d.val) + len(d.train))
    assert (val - expected).abs().max() <= 1
    if name == "cifar10":
        assert train.tolist() == [4500] * 10 and val.tolist() == [500] * 10


@pytest.mark.parametrize("name", SETS)
def test_splits_are_disjoint(loaded, name):
    train, val, test = (
        {hashlib.md5(i.tobytes()).digest() for i in s.images.numpy()} for s in loaded(name).splits().values()
    )
    assert not train & val and not train & test and not val & test


@pytest.mark.parametrize("name", SETS)
def test_normalised_training_images(loaded, name):
    d = loaded(name)
    x = d.normalise(d.train.images)
    assert x.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last)
    mean, std = x.mean(dim=(0, 2, 3)), x.std(dim=(0, 2, 3))
    # CIFAR-10's customary deviations are means over images, so they are smaller than that of all pixels
    assert mean.abs().max() < 0.01 and ((std - 1).abs() < (0.35 if name == "cifar10" else 0.01)).all()


def test_a_new_set_is_a_loader_with_a_name(tmp_path, monkeypatch):
    loaded = toy()
    monkeypatch.setitem(data.SETS, "toy", lambda root: loaded if root == tmp_path else None)
    assert torch.equal(data.load("toy", tmp_path).train.images, loaded.train.images)
    assert data.load("toy", tmp_path, "meta").train.labels.device.type == "meta"
    with pytest.raises(ValueError, match=r"choose one of mnist, cifar10, .*, toy, or"):
        data.load("other", tmp_path)


def test_the_layout_is_that_of_the_device(digits, monkeypatch):
    asked = []
    monkeypatch.setattr(data, "memory_format", lambda on: asked.append(on.type) or torch.contiguous_format)
    rgb = dataclasses.replace(toy(), mean=(0.0,) * 3)
    assert rgb.normalise(rgb.train.images).is_contiguous() and asked == ["cpu"]
    monkeypatch.undo()
    assert rgb.normalise(rgb.train.images).is_contiguous(memory_format=torch.channels_last)


def test_normalise_by_hand(digits):
    d = data.Data("two channels", *[digits.train] * 3, [], mean=(0.5, 0.25), std=(0.5, 0.125))
    images = torch.tensor([0, 255], dtype=torch.uint8).view(1, 2, 1, 1)
    assert d.normalise(images).flatten().tolist() == [-1, 6]


def test_labels_belong_to_their_images(digits):
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    known = {(i * 255 / 16).astype(np.uint8).tobytes(): label for i, label in zip(images, labels, strict=True)}
    for split in digits.splits().values():
        assert [known[i.tobytes()] for i in split.images.numpy()] == split.labels.tolist()


def test_data_lives_on_the_device(digits):
    moved = digits.to("meta")
    assert {s.images.device.type for s in moved.splits().values()} == {"meta"}
    assert (moved.name, moved.mean, moved.classes) == (digits.name, digits.mean, digits.classes)


# ---------------------------------------------------------------- augmentation and batches


def toy(N=40, channels=3, size=6, **augmentation):
    """Images of random pixels, each different, with its number as label."""
    images = torch.randint(1, 256, (N, channels, size, size), generator=generator(), dtype=torch.uint8)
    split = data.Split(images, torch.arange(N))
    return data.Data("toy", split, split[:5], split[:5], [], (0.0,) * channels, (1 / 255,) * channels, **augmentation)


@pytest.mark.parametrize("crop_padding", [0, 1, 4])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("reflect", [False, True])
def test_augment_like_a_naive_loop(crop_padding, flip, reflect):
    d = toy(crop_padding=crop_padding, flip=flip, reflect=reflect)
    B, p, size = 40, crop_padding, 6
    draws = generator(3)
    shifts = torch.randint(0, 2 * p + 1, (2, B), generator=draws) if p else torch.zeros(2, B, dtype=torch.int64)
    mirrored = torch.rand(B, generator=draws) < 0.5 if flip else torch.zeros(B)
    expected = []
    for image, dy, dx, mirror in zip(d.train.images, *shifts, mirrored, strict=True):
        padded = torch.from_numpy(np.pad(image, ((0, 0), (p, p), (p, p)), "reflect" if reflect else "constant"))
        crop = padded[:, dy : dy + size, dx : dx + size]
        expected.append(crop.flip(-1) if mirror else crop)
    augmented = d.augment(d.train.images, generator(3))
    assert torch.equal(augmented, torch.stack(expected))
    assert torch.equal(augmented, d.augment(d.train.images, generator(3)))
    if p or flip:
        assert not torch.equal(augmented, d.augment(d.train.images, generator(4)))


def test_augment_draws_every_shift_evenly():
    d = toy(N=4500, channels=1, size=4, crop_padding=1, flip=True)
    single = torch.zeros(4500, 1, 4, 4, dtype=torch.uint8)
    single[:, 0, 1, 1] = 255  # one white pixel, at (1, 1) or, mirrored, at (1, 2)
    counts = d.augment(single, generator()).sum(0)[0] / 255 / 4500
    expected = torch.tensor([[1, 2, 2, 1]]).repeat(3, 1) / 18
    assert (counts[:3] - expected).abs().max() < 0.02 and counts[3].sum() == 0


@pytest.mark.parametrize("batch_size, batches", [(8, 5), (16, 2), (40, 1), (100, 1)])
def test_epoch_covers_each_image_at_most_once(batch_size, batches):
    d = toy()
    epoch = list(d.epoch(batch_size, generator()))
    labels = torch.cat([y for _, y in epoch])
    assert [len(y) for _, y in epoch] == [min(batch_size, 40)] * batches
    assert len(labels.unique()) == len(labels)
    for x, y in epoch:
        torch.testing.assert_close(x, d.train.images[y].float())


# SHA-1 of the first, second and last batch of two epochs, as the code drew them that made the first records
BATCHES_OF = {
    "none": ({}, "d49c9325 0942b850 53aceb29 8b965e98 79847b32 32f160b7"),
    "zero border": ({"crop_padding": 2, "flip": True}, "e62f81cd d0449317 d010157f 99108152 5a38d3d9 fd56ee41"),
    "Omniglot": ({"crop_padding": 2}, "fcddf039 dea44777 602e053b cccbd716 9bb97ff9 3b60fa94"),
    "reflect": (
        {"crop_padding": 2, "flip": True, "reflect": True},
        "a304db1f f0fa26d9 00db298f 5c98c95a e6173b4d abfc306d",
    ),
    "alternate": (
        {"crop_padding": 2, "flip": True, "reflect": True, "alternate": True},
        "abd2835e d61a198e af6f947a 47965e3d 5f9a0765 cb4254fd",
    ),
    "digits": (None, "76f36c34 5f407b92 129fde2c f4ef886f f25aca63 85d264e5"),
}


@pytest.mark.parametrize("name", BATCHES_OF)
def test_batches_are_those_of_the_recorded_runs(digits, name):
    augmentation, expected = BATCHES_OF[name]
    images = torch.randint(0, 256, (70, 3, 8, 8), generator=generator(), dtype=torch.uint8)
    split = data.Split(images, torch.arange(70))
    d, draws, found = digits, generator(), []
    if augmentation is not None:
        d = data.Data("", split, split[:5], split[:5], [], (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), **augmentation)
    for number in range(2):
        batches = list(d.epoch(16, draws, number))
        for x, y in (batches[0], batches[1], batches[-1]):
            found.append(hashlib.sha1(x.numpy().tobytes() + y.numpy().tobytes()).hexdigest()[:8])
    assert found == expected.split()


class Copies(TorchDispatchMode):
    """Counts tensors that go from the CPU to another device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].is_cpu and not result.is_cpu:
            self.count += 1
        return result


@pytest.mark.parametrize("alternate", [False, True])
def test_random_numbers_go_to_the_device_once_an_epoch(alternate):
    d = toy(crop_padding=2, flip=True, alternate=alternate).to("meta")
    next(d.epoch(5, generator()))  # mean and deviation, once
    counts = []
    for batch_size in (20, 5):
        with Copies() as copies:
            assert len(list(d.epoch(batch_size, generator()))) == 40 // batch_size
        counts.append(copies.count)
    assert counts == [2, 2]


def test_alternating_shows_every_image_both_ways():
    d, draws = toy(flip=True, alternate=True), generator()

    def mirrored(number):
        x, y = next(d.epoch(40, draws, number))
        flipped = d.train.images[y].flip(-1).float()
        return {label.item(): a.equal(b) for label, a, b in zip(y, x.round(), flipped, strict=True)}

    first, second, third = map(mirrored, range(3))
    assert first == {label: not second[label] for label in second} == third and sum(first.values()) == 20


def test_epochs_differ_and_a_seed_repeats_them():
    d, g = toy(flip=True, crop_padding=2), generator()
    first, second, again = (next(d.epoch(40, source)) for source in (g, g, generator()))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], second[1])


@pytest.mark.parametrize("name", ["imagenet", "MNIST", "no/such/folder"])
def test_unknown_name(name):
    with pytest.raises(ValueError, match=f"unknown data set '{name}': choose one of mnist, cifar10, digits, omniglot"):
        data.load(name)


# ---------------------------------------------------------------- damaged or absent files


def one_line(error):
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("name, files", [("mnist", RAW), ("cifar10", BATCHES)])
def test_no_network_and_no_data(tmp_path, offline, name, files):
    with pytest.raises(OSError, match=f"could not be read from or downloaded.*network.*copy {files}/ there") as error:
        data.load(name, tmp_path)
    one_line(error)


def copied(path, files):
    (path / files).mkdir(parents=True)
    for file in (ROOT / files).iterdir():
        if file.is_file():
            shutil.copyfile(file, path / files / file.name)
    return path


def flip_a_byte(content):
    return content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]


DAMAGES = {"a flipped byte": flip_a_byte, "cut short": lambda c: c[:-100], "empty": lambda c: b""}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "files, file, name",
    [
        pytest.param(RAW, MNIST_FILE, "mnist", marks=need("mnist")),
        pytest.param(BATCHES, CIFAR_FILE, "cifar10", marks=need("cifar10")),
    ],
)
def test_damaged_file(tmp_path, offline, files, file, name, damage):
    path = copied(tmp_path, files) / file
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(OSError, match="delete") as error:
        data.load(name, tmp_path)
    one_line(error)


@pytest.mark.parametrize("name", SETS[:2])
def test_data_that_is_there_needs_no_network(offline, name):
    assert data.load(name, ROOT).name == name
