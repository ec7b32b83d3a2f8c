import dataclasses
import io
import json
import os
import sys
import unicodedata
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from studies import image_folder, records, runs


def load(name):
    return image_folder.load(*image_folder.locate(name))


def test_no_folder():
    assert image_folder.locate("no/such/folder") is None and image_folder.locate("no/such/folder@24") is None


def pictures(path, **classes):
    """path/<class>/<i>.png, that many of each class, grey and colour in turn, of unequal sizes."""
    for shade, (name, count) in enumerate(classes.items()):
        (path / name).mkdir(parents=True)
        for i in range(count):
            mode, colour = ("L", 60 * shade) if i % 2 else ("RGB", (60 * shade, i, 0))
            Image.new(mode, (20 + i, 30 - i), colour).save(path / name / f"{i:02}.png")
    return path


def test_image_folder(tmp_path):
    d = load(f"{pictures(tmp_path / 'pets', cat=20, dog=20, eel=10)}@16")
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
    d = load(f"{tmp_path}@8")
    assert d.normalise(d.train.images).isfinite().all()


@pytest.mark.parametrize(("each", "sizes"), [(4, [4, 2, 2]), (5, [6, 2, 2])])
def test_smallest_image_folder(tmp_path, each, sizes):
    d = load(f"{pictures(tmp_path, a=each, b=each)}@8")
    assert [len(s) for s in d.splits().values()] == sizes
    assert all(s.labels.unique().tolist() == [0, 1] for s in d.splits().values())


@pytest.mark.parametrize("counts", [(4, 300), (5, 500, 4), (4, 4, 7, 90, 5, 33), (6, *[4] * 30, 200), (40, 41)])
def test_every_split_holds_every_class(counts):
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    images = torch.arange(len(labels) * 3, dtype=torch.int32).view(-1, 3, 1, 1).to(torch.uint8)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    d = image_folder._split("x", image_folder.Split(images, labels)[order], [str(c) for c in range(len(counts))])
    shares = torch.stack([split.labels.bincount(minlength=len(counts)) for split in d.splits().values()])
    assert torch.equal(shares.sum(0), torch.tensor(counts)) and shares.min() >= 1 and shares[0].min() >= 2
    assert (shares[2] <= 1 + torch.tensor(counts) / 5).all()
    assert d.normalise(d.train.images).mean(dim=(0, 2, 3)).abs().max() < 1e-3


def test_the_receipt_is_kept_with_every_run(project, capsys):
    for i in range(20):
        noise(project / "pets" / ("cat", "dog")[i % 2] / f"{i}.png", i)
    noise(project / "pets" / "cat" / "again.png", 0)
    (project / "pets" / "dog" / "notes.txt").write_text("no image")
    config = runs.Config(f"{project / 'pets'}@12", "ArcFace", epochs=1, batch_size=8, embedding_dim=4)
    for n_jobs in (1, 2):  # also of a process of its own
        runs.listed("pets", [dataclasses.replace(config, seed=n_jobs)]).train(n_jobs=n_jobs)
    kept = [record["images"] for record in records.read(project / "results" / "pets.jsonl", runs.Config).values()]
    assert kept[0] == kept[1] == json.loads(json.dumps(kept[0])) and "pets: 20 images" in capsys.readouterr().out
    assert kept[0]["used"] == {"cat": 10, "dog": 10} and kept[0]["folder"] == "pets"
    assert kept[0]["left_out"] == [["no image", 1, "dog/notes.txt"], ["the same picture again", 1, "cat/again.png"]]
    noise(project / "pets" / "cat" / "0.png", 99)
    assert image_folder.read(project / "pets", 12)[1].content != kept[0]["content"]
    assert "images" not in runs.execute(dataclasses.replace(config, data="digits"))[1]


def test_folder_images_are_in_fixed_random_order(tmp_path):
    path = pictures(tmp_path, a=20, b=20)
    first, again = load(path), load(path)
    assert first.train[:10].labels.unique().tolist() == [0, 1]
    assert torch.equal(first.train.images, again.train.images) and torch.equal(first.test.labels, again.test.labels)


def test_size_of_folder_images(tmp_path):
    pictures(tmp_path / "pets", a=5, b=5)
    sides = {name: load(tmp_path / name).train.images.shape[2:] for name in ("pets", "pets@24")}
    assert sides == {"pets": (32, 32), "pets@24": (24, 24)}
    pictures(tmp_path / "pets@24", a=5, b=5)  # a folder of that very name comes first
    assert load(tmp_path / "pets@24").train.images.shape[2:] == (32, 32)


def test_other_files_are_left_out(tmp_path):
    path = pictures(tmp_path, a=9, b=9)
    for name in ("notes.txt", "a/notes.txt", "b/.DS_Store", "a/Thumbs.db"):
        (path / name).write_bytes(b"no image")
    assert sum(len(s) for s in load(path).splits().values()) == 18


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
        load(path)


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
    "too few": (lambda p: pictures(p, cat=9, dog=3), "at least 4 images.*the rarest has 3"),
    "no folders": (lambda p: p, "Expected one subfolder with images per class"),
    "an empty class": (lambda p: pictures(p, cat=9, dog=0), "dog.*Expected one subfolder with images per class"),
    "not an image": (lambda p: spoil(pictures(p, a=9, b=9), "a/00.png", b"hello"), "1 unreadable images.*a/00.png"),
    "empty file": (lambda p: spoil(pictures(p, a=9, b=9), "b/03.png", b""), "b/03.png: replace or delete them"),
    "torn header": (lambda p: spoil(pictures(p, a=9, b=9), "a/x.ppm", b"P6 20"), "1 unreadable.*a/x.ppm"),
    "no image in a class": (lambda p: spoil(pictures(p, a=9, b=0), "b/notes.txt", b"hi"), "class b holds no.*image: 1"),
    "a folder of splits": (lambda p: pictures(p, train=9, test=9), "is split into test, train, not into classes: name"),
    "broken chunk": (lambda p: spoil(pictures(p, a=9, b=9), "a/x.png", broken_png()), "1 unreadable images.*a/x.png"),
    "a bomb": (lambda p: spoil(pictures(p, a=9, b=9), "a/x.ppm", b"P6 99999 99999 255\n"), "1 unreadable.*a/x.ppm"),
    "too many pixels": (lambda p: f"{pictures(p, a=9, b=9)}@2000", "images of 2000 pixels are too large, choose 8 to"),
    "no pixels": (lambda p: f"{pictures(p, a=9, b=9)}@4", "images of 4 pixels are too small, choose 8 to 1024"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_image_folder(tmp_path, case):
    prepare, message = BAD_FOLDERS[case]
    with pytest.raises(ValueError, match=message) as error:
        load(prepare(tmp_path))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_truncated_image(tmp_path):
    path = pictures(tmp_path, a=9, b=9)
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    for suffix in ("png", "jpg"):
        file = path / "a" / f"x.{suffix}"
        Image.fromarray(noise).save(file)
        file.write_bytes(file.read_bytes()[:-600])
    with pytest.raises(ValueError, match="2 unreadable images"):
        load(path)


def noise(path, seed=0, mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 12, len(mode)), dtype=np.uint8).squeeze()
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    """Ten random pictures of a cat and of a dog, all different."""
    for i in range(20):
        noise(tmp_path / "pets" / ("cat", "dog")[i % 2] / f"{i}.png", i)
    return tmp_path / "pets"


ADDED = {
    "checkpoints at the root": (".ipynb_checkpoints/x.png", None),
    "a Mac's archive": ("__MACOSX/cat/._0.png", None),
    "a NAS's thumbnails": ("@eaDir/x.png", None),
    "checkpoints in a class": ("cat/.ipynb_checkpoints/0-checkpoint.png", "hidden or the system's: 1"),
    "thumbnails": ("cat/.thumbnails/0.png", "hidden or the system's: 1"),
    "AppleDouble": ("cat/._0.png", "hidden or the system's: 1"),
    "Thumbs.db": ("cat/Thumbs.db", "hidden or the system's: 1"),
    "HEIC": ("cat/IMG_1.HEIC", "HEIC, which cannot be read here: save them as JPEG: 1"),
    "AVIF": ("dog/1.avif", "AVIF, which cannot be read here: save them as JPEG: 1"),
    "text": ("dog/notes.txt", "no image: 1"),
    "a picture beside the classes": ("overview.jpg", "in no folder of a class: 1 (the first is overview.jpg)"),
    "a photograph beside them": ("IMG_1.HEIC", "in no folder of a class: 1"),
    "a table beside them": ("labels.csv", None),
    "a video": ("cat/film.mov", "no image: 1"),
    "a picture's notes": ("cat/0.png.xmp", "no image: 1"),
}


@pytest.mark.parametrize("case", ADDED)
def test_what_is_no_data_is_left_out_and_counted(folder, case, capsys):
    name, said = ADDED[case]
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"\0\5\26\7")
    data = load(folder)
    printed = capsys.readouterr().out
    assert data.classes == ["cat", "dog"] and sum(map(len, data.splits().values())) == 20
    assert "20 images of 2 classes, 12x12 to 12x12 pixels" in printed and "  cat: 10 images" in printed
    assert ("left out" in printed) == bool(said) and (not said or said in printed)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are text there")
def test_a_name_of_any_bytes_can_be_printed_and_recorded(folder, capsys):
    os.rename(os.fsencode(folder / "dog"), os.fsencode(folder) + b"/d\xf6g\nx")  # Latin-1, and a line break
    (folder / "cat").rename(folder / unicodedata.normalize("NFD", "Käse"))
    data, receipt = image_folder.read(folder, 12)
    print(receipt)
    assert (
        data.classes == ["Käse", "d\N{REPLACEMENT CHARACTER}g x"] and "  Käse: 10 images\n" in capsys.readouterr().out
    )
    assert json.dumps(receipt.record()).isascii()


def test_a_home_is_found(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert image_folder.locate("~/pets") == (folder, 32) and image_folder.locate("~/pets@16") == (
        folder,
        16,
    )
    assert image_folder.locate("~/pets@99999999999") is None


def test_no_picture_is_in_two_splits(folder):
    first = (folder / "cat" / "0.png").read_bytes()
    (folder / "cat" / "copy of 0.png").write_bytes(first)
    Image.open(folder / "cat" / "2.png").save(folder / "cat" / "again.bmp")
    (folder / "dog" / "link.png").symlink_to(folder / "dog" / "1.png")
    (folder / "dog" / "loop").symlink_to(folder / "dog", target_is_directory=True)
    data, receipt = image_folder.read(folder, 12)
    assert receipt.used == {"cat": 10, "dog": 10} and len(receipt.duplicates) >= 2
    pictures = [picture.numpy().tobytes() for split in data.splits().values() for picture in split.images]
    assert len(set(pictures)) == len(pictures) == 20


def test_the_same_picture_in_two_classes_is_refused(folder):
    (folder / "dog" / "wrong.png").write_bytes((folder / "cat" / "0.png").read_bytes())
    with pytest.raises(
        ValueError, match=r"the same picture is in two classes, cat/0.png and dog/wrong.png: delete one"
    ):
        load(folder)


def test_a_damaged_image_is_skipped_if_asked(folder):
    (folder / "cat" / "x.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(ValueError, match=r"1 unreadable images .*cat/x.png: .*skip_damaged=True"):
        load(folder)
    _, receipt = image_folder.read(folder, 12, skip_damaged=True)
    assert "left out, damaged: 1 (the first is cat/x.png)" in str(receipt)


def test_pictures_that_look_the_same_are_in_one_split(folder):
    for alpha in range(3):  # of different colours, which nobody sees
        Image.new("RGBA", (12, 12), (90 * alpha, 9, 9, 0)).save(folder / "cat" / f"nothing{alpha}.png")
    _, receipt = image_folder.read(folder, 12)
    assert receipt.used["cat"] == 11 and len(receipt.duplicates) == 2


def test_why_an_image_is_not_read(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("1", (100, 100)).save(folder / "cat" / "huge.png")
    Image.new("I;16", (9, 9)).save(folder / "dog" / "deep.png")
    with pytest.raises(ValueError, match=r"2 unreadable images \(more than 0 million pixels: 1; more than 8 bits per"):
        load(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes there")
def test_a_pipe_is_not_waited_for(folder):
    os.mkfifo(folder / "cat" / "pipe.png")
    (folder / "cat" / "gone.png").symlink_to("nowhere.png")
    _, receipt = image_folder.read(folder, 12)
    assert receipt.left_out == [("a link to nothing, a pipe or a device", 2, "cat/gone.png")]


def test_a_link_to_the_whole_folder_adds_nothing(folder):
    (folder / "cat" / "up").symlink_to(folder, target_is_directory=True)
    _, receipt = image_folder.read(folder, 12)
    assert receipt.used == {"cat": 10, "dog": 10}
    assert receipt.left_out == [("a link to what is read already", 1, "cat/up")]


def test_further_frames_are_counted(folder):
    frames = [Image.new("RGB", (12, 12), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "cat" / "moves.tif", save_all=True, append_images=frames[1:])
    assert "left out, the frames behind the first of a picture: 1 (the first is cat/moves.tif)" in str(
        image_folder.read(folder, 12)[1]
    )


def test_another_place_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere is no folder: name one with a subfolder of images per class"):
        image_folder.read(tmp_path / "nowhere", 12)
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    folder.rename(unpacked / "pets")  # as many programs unpack an archive
    (unpacked / "__MACOSX").mkdir()
    with pytest.raises(ValueError, match=r"one folder only: if .* name it, .*unpacked/pets"):
        load(unpacked)
    for i in range(3):
        noise(tmp_path / "flat" / f"cat.{i}.png", i)
    with pytest.raises(ValueError, match=r"no subfolder. Expected .* per class: sort its 3 images into them"):
        load(tmp_path / "flat")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "palette"])
def test_what_is_transparent_is_white(tmp_path, mode):
    picture = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (0, 0, 16, 8))  # black above nothing
    picture = picture.convert("P") if mode == "palette" else picture.convert(mode)
    picture.save(tmp_path / "x.png")
    shown = image_folder._picture(tmp_path / "x.png", 16)
    assert shown[:, :7].max() == 0 and shown[:, 9:].min() == 255


def test_the_first_frame_of_a_moving_picture_counts(tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert image_folder._picture(tmp_path / "x.gif", 8)[0].min() > 250


@pytest.mark.parametrize(
    "names", [("train", "test", "annotations"), ("images_train", "images_test"), ("dev", "eval"), ("train",)]
)
def test_folders_of_splits_are_refused(tmp_path, names):
    for name in names:
        noise(tmp_path / name / "0.png")
    with pytest.raises(ValueError, match=r"is split into .*, not into classes"):
        load(tmp_path)


def test_a_class_may_be_called_like_a_split(tmp_path):
    for i in range(20):
        noise(tmp_path / ("bus", "test")[i % 2] / f"{i}.png", i)
    assert load(tmp_path).classes == ["bus", "test"]


def test_what_is_no_folder_of_images_is_refused_at_once(tmp_path, monkeypatch):
    for path in ("/", image_folder.__file__.rsplit("/", 2)[0]):
        with pytest.raises(ValueError, match="is no folder of images: name one with a subfolder per class"):
            load(path)
    monkeypatch.setattr(image_folder, "FILES", 3)
    pictures(tmp_path, a=5, b=5)
    with pytest.raises(ValueError, match="holds more than 3 files"):
        load(tmp_path)


@pytest.mark.parametrize(
    "name", ["@home", "<b>", "![x](y)", "$1", "5$", "_background_", "a|b", "1. one", "# top", "`c`"]
)
def test_names_are_shown_as_they_are(name):
    import mistune  # nbconvert's own reader of Markdown

    html = mistune.html(image_folder.for_markdown(name)).strip()
    text = html.removeprefix("<p>").removesuffix("</p>").replace("&lt;", "<").replace("&gt;", ">")
    assert text == name
    label = image_folder.for_figure(name)
    assert not label.startswith("_") and "$" not in label.replace(r"\$", "")
    assert len(image_folder.for_figure(name * 50).replace("\\$", "$")) <= 25
