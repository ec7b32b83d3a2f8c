import functools
import hashlib
import io
import shutil
import socket
import warnings
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from lib import data
from lib import folder as image_folder

ROOT = Path(__file__).parent.parent / "data"
RAW, BATCHES = "MNIST/raw", "cifar-10-batches-py"
MNIST_FILE, CIFAR_FILE = f"{RAW}/t10k-images-idx3-ubyte", f"{BATCHES}/test_batch"
HERE = {
    "mnist": all((ROOT / RAW / file).exists() for file in data.MNIST_MD5),
    "cifar10": len(list((ROOT / BATCHES).glob("*_batch*"))) == 6,
    "digits": True,
}


def need(name):
    return pytest.mark.skipif(not HERE[name], reason=f"data/ does not hold {name}")


SETS = [pytest.param(name, marks=need(name)) for name in data.NAMES]


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


# ---------------------------------------------------------------- the three sets

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


# ---------------------------------------------------------------- image folders


def pictures(path, **classes):
    """path/<class>/<i>.png, that many of each class, grey and colour in turn, of unequal sizes."""
    for shade, (name, count) in enumerate(classes.items()):
        (path / name).mkdir(parents=True)
        for i in range(count):
            mode, colour = ("L", 60 * shade) if i % 2 else ("RGB", (60 * shade, i, 0))
            Image.new(mode, (20 + i, 30 - i), colour).save(path / name / f"{i:02}.png")
    return path


def test_image_folder(tmp_path):
    d = data.load(f"{pictures(tmp_path / 'pets', cat=20, dog=20, eel=10)}@16")
    assert (d.name, d.classes, d.flip) == ("pets", ["cat", "dog", "eel"], False)
    assert [len(s) for s in d.splits().values()] == [35, 5, 10]
    assert torch.bincount(d.test.labels).tolist() == [4, 4, 2]
    assert torch.bincount(d.val.labels).tolist() == [2, 2, 1]
    for split in d.splits().values():
        assert split.images.shape[1:] == (3, 16, 16) and split.images.dtype == torch.uint8
        assert ((split.images[:, 0] - 60 * split.labels[:, None, None]) == 0).all()  # red is the class's shade
    x = d.normalise(d.train.images)
    assert x.mean(dim=(0, 2, 3)).abs().max() < 1e-3


def test_a_constant_channel_stays_finite(tmp_path):
    for i in range(12):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (20 * i, 5 * i, 0)).save(tmp_path / "ab"[i % 2] / f"{i}.png")
    d = data.load(f"{tmp_path}@8")
    assert d.normalise(d.train.images).isfinite().all()


def test_smallest_image_folder(tmp_path):
    d = data.load(f"{pictures(tmp_path, a=5, b=5)}@8")
    assert [len(s) for s in d.splits().values()] == [6, 2, 2]
    assert all(s.labels.unique().tolist() == [0, 1] for s in d.splits().values())


def test_folder_images_are_in_fixed_random_order(tmp_path):
    path = pictures(tmp_path, a=20, b=20)
    first, again = data.load(path), data.load(path)
    assert first.train[:10].labels.unique().tolist() == [0, 1]
    assert torch.equal(first.train.images, again.train.images) and torch.equal(first.test.labels, again.test.labels)


def test_size_of_folder_images(tmp_path):
    pictures(tmp_path / "pets", a=5, b=5)
    sides = {name: data.load(tmp_path / name).train.images.shape[2:] for name in ("pets", "pets@24")}
    assert sides == {"pets": (32, 32), "pets@24": (24, 24)}
    pictures(tmp_path / "pets@24", a=5, b=5)  # a folder of that very name comes first
    assert data.load(tmp_path / "pets@24").train.images.shape[2:] == (32, 32)


def test_other_files_are_left_out(tmp_path):
    path = pictures(tmp_path, a=9, b=9)
    for name in ("notes.txt", "a/notes.txt", "b/.DS_Store", "a/Thumbs.db"):
        (path / name).write_bytes(b"no image")
    assert sum(len(s) for s in data.load(path).splits().values()) == 18


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "palette with transparency"])
def test_every_kind_of_picture_becomes_colour(tmp_path, mode):
    file = tmp_path / ("x.jpg" if mode in ("CMYK", "YCbCr") else "x.png")
    white = Image.new("RGB", (20, 20), "white")
    if mode == "palette with transparency":
        white.convert("P").save(file, transparency=bytes(range(256)))
    else:
        white.convert("RGBA" if mode in ("LA", "RGBA") else mode).convert(mode).save(file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = image_folder._picture(file, 8)
    assert picture.shape == (3, 8, 8) and picture.dtype == torch.uint8 and picture.min() > 250


def test_photos_are_turned_as_the_camera_notes(tmp_path):
    upper = Image.new("L", (16, 16))
    upper.paste(255, (0, 0, 16, 8))  # white above black
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise: white on the right
    upper.save(tmp_path / "x.png", exif=exif)
    picture = image_folder._picture(tmp_path / "x.png", 16)
    assert picture[:, :, :8].max() == 0 and picture[:, :, 8:].min() == 255


def test_sixteen_bits_are_refused(tmp_path):
    path = pictures(tmp_path, a=9, b=9)
    Image.fromarray(np.full((20, 20), 40000, dtype=np.uint16)).save(path / "a" / "deep.png")
    with pytest.raises(ValueError, match=r"1 unreadable images .*more than 8 bits.*a/deep.png: replace"):
        data.load(path)


def spoil(path, name, content):
    (path / name).write_bytes(content)
    return path


def broken_png():
    """A PNG whose second block of pixels has an impossible name, for which Pillow raises a SyntaxError."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)).save(buffer, "png")
    start, first, second = buffer.getvalue().split(b"IDAT")
    return start + b"IDAT" + first + b"\0\1\2\3" + second


BAD_FOLDERS = {
    "one class": (lambda p: pictures(p, cat=9), r"one class only \(cat\): add a subfolder per class"),
    "too few": (lambda p: pictures(p, cat=9, dog=4), "at least 5 images.*the rarest has 4"),
    "no folders": (lambda p: p, "Expected one subfolder with images per class"),
    "an empty class": (lambda p: pictures(p, cat=9, dog=0), "dog.*Expected one subfolder with images per class"),
    "not an image": (lambda p: spoil(pictures(p, a=9, b=9), "a/00.png", b"hello"), "1 unreadable images.*a/00.png"),
    "empty file": (lambda p: spoil(pictures(p, a=9, b=9), "b/03.png", b""), "b/03.png: replace or delete them"),
    "torn header": (lambda p: spoil(pictures(p, a=9, b=9), "a/x.ppm", b"P6 20"), "1 unreadable.*a/x.ppm"),
    "no image in a class": (lambda p: spoil(pictures(p, a=9, b=0), "b/notes.txt", b"hi"), "classes b.*Expected one"),
    "a folder of splits": (lambda p: pictures(p, train=9, test=9), "is split into test, train, not into classes: name"),
    "broken chunk": (lambda p: spoil(pictures(p, a=9, b=9), "a/x.png", broken_png()), "1 unreadable images.*a/x.png"),
    "a bomb": (lambda p: spoil(pictures(p, a=9, b=9), "a/x.ppm", b"P6 99999 99999 255\n"), "1 unreadable.*a/x.ppm"),
    "no pixels": (lambda p: f"{pictures(p, a=9, b=9)}@4", "images of 4 pixels are too small, choose 8 or more"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_image_folder(tmp_path, case):
    prepare, message = BAD_FOLDERS[case]
    with pytest.raises(ValueError, match=message) as error:
        data.load(prepare(tmp_path))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_truncated_image(tmp_path):
    path = pictures(tmp_path, a=9, b=9)
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    for suffix in ("png", "jpg"):
        file = path / "a" / f"x.{suffix}"
        Image.fromarray(noise).save(file)
        file.write_bytes(file.read_bytes()[:-600])
    with pytest.raises(ValueError, match="2 unreadable images"):
        data.load(path)


@pytest.mark.parametrize("name", ["imagenet", "MNIST", "no/such/folder"])
def test_unknown_name(name):
    with pytest.raises(ValueError, match=f"unknown data set '{name}': choose one of mnist, cifar10, digits, or an ex"):
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
