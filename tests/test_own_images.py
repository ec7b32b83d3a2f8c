"""Somebody's own images: training until learnt, what the test images can say, unknown classes, keeping a model."""

import math
import urllib.error

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lib import paths
from report import submission
from studies import image_folder, own_images
from studies.own_images import Trained

FAST = {"steps": 12, "most": 12}


class Seeing(nn.Module):
    """A stand-in for a pretrained backbone: the mean colour, 512 times with noise of its own."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.mix = nn.Parameter(torch.randn(3, 512, generator=generator))
        self.fc = nn.Linear(512, 1000)

    def forward(self, images):
        return self.fc(images.mean((2, 3)) @ self.mix)


@pytest.fixture
def folder(tmp_path):
    """Five classes of a dozen images, each of one colour with noise."""
    draw = np.random.default_rng(0)
    colours = {
        "red": (200, 30, 30),
        "green": (30, 200, 30),
        "blue": (30, 30, 200),
        "white": (230,) * 3,
        "dark": (20,) * 3,
    }
    for name, colour in colours.items():
        (tmp_path / "mine" / name).mkdir(parents=True)
        for i in range(12):
            pixels = np.clip(draw.normal(colour, 25, (20, 20, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "mine" / name / f"{i}.png")
    return tmp_path / "mine"


@pytest.fixture
def no_weights(monkeypatch):
    def fails(weights):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(own_images, "resnet18", fails)


@pytest.fixture
def weights(monkeypatch):
    monkeypatch.setattr(own_images, "resnet18", lambda weights: Seeing())


def fake(head, correct, seed=0, accuracy=1.0, converged=True):
    correct = np.asarray(correct, dtype=bool)
    return Trained(head, seed, None, 300, converged, accuracy, correct, np.ones((len(correct), 2)) / 2)


# ---------------------------------------------------------------- the network


def test_without_weights_a_small_network_learns(folder, no_weights):
    images = own_images.images_in(folder, 64)
    assert images.network == "SmallNet" and images.data.train.images.shape[1:] == (3, 64, 64)


def test_small_images_ask_for_no_weights(folder, monkeypatch):
    monkeypatch.setattr(own_images, "pretrained", lambda: pytest.fail("asked"))
    assert own_images.images_in(folder, 16).network == "SmallNet"


def test_with_weights_the_backbone_is_asked_once_and_does_not_learn(folder, weights):
    images = own_images.images_in(folder, 64)
    assert images.network == "ResNet-18" and images.data.train.images.shape[1:] == (512, 1, 1)
    mix = images.backbone.mix.detach().clone()
    run = own_images.train(images, "ArcFace", steps=60, most=60)
    assert torch.equal(images.backbone.mix, mix) and run.correct.mean() > 0.9
    normalised = images.data.normalise(images.data.train.images)
    assert abs(normalised.mean()) < 0.1 and abs(normalised.std() - 1) < 0.1


def test_the_wait_for_a_download_leaves_other_sockets_alone(no_weights):
    import socket

    before = socket.getdefaulttimeout()
    assert own_images.pretrained() is None and socket.getdefaulttimeout() == before


# ---------------------------------------------------------------- training


def test_a_training_that_has_not_learnt_starts_anew_with_twice_the_steps(folder, monkeypatch):
    images = own_images.images_in(folder, 8)
    monkeypatch.setattr(own_images, "LEARNT", 2.0)  # never
    run = own_images.train(images, "Softmax", steps=5, most=20)
    assert run.steps == 20 and not run.converged
    monkeypatch.setattr(own_images, "LEARNT", 0.0)  # at once
    run = own_images.train(images, "Softmax", steps=5, most=20)
    assert run.steps == 5 and run.converged


def test_a_training_is_repeated_exactly(folder):
    images = own_images.images_in(folder, 8)
    one, two = (own_images.train(images, "CosFace", seed=1, m=0.1, **FAST) for _ in range(2))
    assert np.array_equal(one.probabilities, two.probabilities) and len(one.correct) == len(images.data.test)


@pytest.mark.parametrize(
    ("heads", "said"),
    [
        (["ArcFace"], "two or more"), (["ArcFace"] * 2, "two or more different"),
        (["ArcFace", "Arc"], "unknown loss 'Arc'"),
    ],
)  # fmt: skip
def test_losses_that_cannot_be_compared_are_refused(heads, said):
    with pytest.raises(ValueError, match=said):
        own_images.known_heads(heads)


# ---------------------------------------------------------------- what it shows


@pytest.mark.parametrize(("right", "n"), [(0, 5), (5, 5), (2.5, 5), (0, 1), (99, 100), (50, 100)])
def test_an_interval_of_accuracy_lies_within_0_and_1_and_is_never_a_point(right, n):
    low, high = own_images.wilson(right, n)
    assert 0 <= low <= right / n <= high <= 1 and high - low > 0.01


def test_wilsons_interval_is_the_published_one():
    low, high = own_images.wilson(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)


def test_accuracies_are_in_percent_and_within_0_and_100():
    table = own_images.accuracies(
        [fake("A", [1] * 8), fake("A", [1] * 8, 1), fake("B", [0] * 8), fake("B", [1] * 8, 1)]
    )
    assert table.loc["A", "accuracy"] == 100 and table.loc["A", "high"] <= 100 and table.loc["A", "low"] < 80
    assert table.loc["B", "accuracy"] == 50 and list(table["n"]) == [2, 2]


def test_no_verdict_where_no_image_tells_the_losses_apart():
    runs = [fake(head, [1, 1, 0, 1], seed) for head in "AB" for seed in range(3)]
    row = own_images.differences(runs, "A").loc["B"]
    assert row["verdict"] == "cannot be told" and math.isnan(row["low"]) and row["mean"] == 0


@pytest.mark.parametrize("share, verdict", [(0.0, "higher"), (1.0, "lower"), (0.5, "no difference shown")])
def test_a_difference_has_an_interval_within_the_possible(share, verdict):
    n = 60
    half = [1] * int(n * share) + [0] * (n - int(n * share))
    other = [1 - value for value in half] if share == 0.5 else ([1] * n if share == 0.0 else [0] * n)
    runs = [fake("A", half, s) for s in range(3)] + [fake("B", other, s) for s in range(3)]
    row = own_images.differences(runs, "A").loc["B"]
    assert row["verdict"] == verdict and -100 <= row["low"] <= row["mean"] <= row["high"] <= 100


def test_more_losses_make_wider_intervals():
    draw = np.random.default_rng(0)
    runs = [fake(head, draw.random(50) < 0.7, s) for head in "ABCD" for s in range(2)]
    one = own_images.differences([run for run in runs if run.head in "AB"], "A").loc["B"]
    all_ = own_images.differences(runs, "A").loc["B"]
    assert all_["low"] < one["low"] and all_["high"] > one["high"] and all_["mean"] == one["mean"]


def test_warnings_name_what_is_too_small_too_short_or_useless(folder):
    images = own_images.images_in(folder, 8)
    n = len(images.data.test)
    assert own_images.majority(images.data)[1] == pytest.approx(0.2, abs=0.05)
    good = own_images.warnings(images, [fake("A", [1] * n)])
    assert len(good) == 1 and f"There are {n} test images" in good[0]
    assert "From 500 images in all on a difference of ten points" in good[0]
    bad = own_images.warnings(images, [fake("A", [0] * n), fake("B", [1] * n, converged=False)])
    assert len(bad) == 3 and "Not converged after 300 steps: B." in bad[1] and "learnt nothing of use" in bad[2]


def test_a_large_set_that_is_learnt_has_no_warning(folder, monkeypatch):
    images = own_images.images_in(folder, 8)
    monkeypatch.setattr(own_images, "FEW", 2)
    assert own_images.warnings(images, [fake("A", [1] * len(images.data.test))]) == []


# ---------------------------------------------------------------- classes that were left out


@pytest.mark.parametrize("features", [False, True])
def test_classes_that_are_left_out_are_in_no_split(folder, features, weights):
    images = own_images.images_in(folder, 64 if features else 8)
    some, new = own_images.hold_out_classes(images, 0)
    assert len(some.data.classes) == 3 and new.labels.unique().numel() == 2
    assert set(some.data.classes).isdisjoint(images.data.classes[c] for c in new.labels.unique())
    total = sum(len(split) for split in images.data.splits().values())
    assert sum(len(split) for split in some.data.splits().values()) + len(new) == total
    assert all(split.labels.unique().tolist() == [0, 1, 2] for split in some.data.splits().values())
    row = images.data.train.labels[0].item()
    name = images.data.classes[row]
    if name in some.data.classes:
        label = some.data.classes.index(name)
        assert any(
            torch.equal(x, images.data.train.images[0]) for x in some.data.train[some.data.train.labels == label].images
        )


def test_other_seeds_leave_other_classes_out(folder):
    images = own_images.images_in(folder, 8)
    assert len({tuple(own_images.hold_out_classes(images, seed)[0].data.classes) for seed in range(6)}) > 1


def test_unknown_classes_are_measured(folder):
    found = own_images.unknown(own_images.images_in(folder, 8), "ArcFace", steps=40, most=40)
    assert set(found) == {"recall_at_1", "map_at_r", "eer"} and all(0 <= value <= 1 for value in found.values())
    assert found["recall_at_1"] > 0.8  # colours are easily told apart


def test_three_classes_are_too_few_to_leave_two_out(folder):
    for name in ("white", "dark"):
        for file in (folder / name).iterdir():
            file.unlink()
        (folder / name).rmdir()
    with pytest.raises(ValueError, match="there are 3 classes: four or more"):
        own_images.hold_out_classes(own_images.images_in(folder, 8), 0)


# ---------------------------------------------------------------- use


@pytest.mark.parametrize("size", [8, 64])
def test_the_picture_to_try_is_a_test_image(folder, weights, size):
    (folder / "blue" / "._0.png").write_text("the system's")
    images = own_images.images_in(folder, size)
    file = own_images.held_out_picture(images, folder)
    picture = image_folder._picture(file, size)
    held = {name: (split.images == picture).flatten(1).all(1).any() for name, split in images.pictures.splits().items()}
    assert held["test"] and not held["train"] and not held["val"]
    (folder.parent / "other").mkdir()
    with pytest.raises(ValueError, match=r"other holds none of the test images: name the folder"):
        own_images.held_out_picture(images, folder.parent / "other")


@pytest.mark.parametrize("size", [8, 64])
def test_a_saved_model_gives_the_same_answer(folder, tmp_path, weights, size):
    images = own_images.images_in(folder, size)
    run = own_images.train(images, "ArcFace", steps=60, most=60, m=0.2, s=10)
    own_images.save_model(tmp_path / "kept" / "model.pt", images, run)
    model, loaded = own_images.load_model(tmp_path / "kept" / "model.pt")
    assert (model.head.m, model.head.s, loaded.network) == (0.2, 10, images.network)
    for name in ("red", "dark"):
        picture = folder / name / "3.png"
        answer = own_images.classify(model, loaded, picture)
        before = own_images.classify(run.model, images, picture)
        assert [c for c, _ in answer] == [c for c, _ in before]
        assert [p for _, p in answer] == pytest.approx([p for _, p in before], abs=1e-3)
        assert answer[0][0] == name and sum(p for _, p in answer) == pytest.approx(1)
        assert [p for _, p in answer] == sorted((p for _, p in answer), reverse=True)


def test_what_cannot_be_loaded_or_read_is_said_in_one_line(folder, tmp_path, weights, monkeypatch):
    with pytest.raises(ValueError, match="is missing: save a model there first"):
        own_images.load_model(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match="is no model saved here"):
        own_images.load_model(tmp_path / "text.pt")
    images = own_images.images_in(folder, 64)
    run = own_images.train(images, "Softmax", **FAST)
    own_images.save_model(tmp_path / "model.pt", images, run)
    with pytest.raises(ValueError, match=r"text.pt cannot be read as an image"):
        own_images.classify(run.model, images, tmp_path / "text.pt")
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # as of a picture that is too large for Pillow
        with pytest.raises(ValueError, match=r"3.png cannot be read as an image"):
            own_images.classify(run.model, images, folder / "red" / "3.png")
    monkeypatch.setattr(own_images, "pretrained", lambda: None)
    with pytest.raises(ValueError, match="needs the weights of ResNet-18"):
        own_images.load_model(tmp_path / "model.pt")


def test_what_is_kept_has_a_folder_of_its_own_that_git_and_the_submission_leave_out(folder):
    (folder.parent / "mine").rename(folder.parent / "my $ 1. pictures")
    home = own_images.folder_of(own_images.images_in(folder.parent / "my $ 1. pictures", 8))
    assert home == paths.PROJECT / "your_data" / "my_1_pictures"
    assert "your_data/" in (paths.PROJECT / ".gitignore").read_text().splitlines()
    assert not any(pattern.startswith("your_data") for pattern in (*submission.CODE, *submission.OTHERS))
