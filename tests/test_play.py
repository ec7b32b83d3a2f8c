"""The playground: what it trains, what it says, and that it leaves the study alone."""

import dataclasses
import re

import matplotlib.pyplot as plt
import pytest
import torch

from lib import losses, paths
from studies import margin_maps, play, records
from studies.play import Refused, train

TINY = {"size": 60, "epochs": 1}


class Mine(losses.Head):
    m: losses.Angle = 0.3

    def target(self, cos_y, y, norm):
        return cos_y - self.margin_scale * self.m


class Shapeless(losses.Head):
    def target(self, cos_y, y, norm):
        return cos_y.sum()


class Infinite(losses.Head):
    def target(self, cos_y, y, norm):
        return cos_y / 0


class NoTarget(losses.Head):
    pass


@pytest.fixture
def recorded(project):
    """A project with runs recorded: two of the tiny setting, one of another, one on other data."""
    run = play._setting("digits", 1, 60, 0)
    others = [
        dataclasses.replace(run, head="CosFace", constants={"m": 0.1}, seed=3), run,
        dataclasses.replace(run, epochs=2), dataclasses.replace(run, data="mnist"),
    ]  # fmt: skip
    path = margin_maps.SMALL_SETS["mnist"].path
    path.parent.mkdir()
    for accuracy, other in zip((1.1, -0.1, 0.5, 0.5), others, strict=True):
        measured = {"val_accuracy": accuracy, "val_size": 100}
        records.append(path, records.record(other, measured, {"val_accuracy": [accuracy]}, torch.device("cpu"), 1.0))
    return path


def test_a_run_has_its_place_among_the_recorded_ones_of_its_setting_and_writes_nothing(recorded, project):
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    run = train("ArcFace", "digits", m=0.5, **TINY)
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before
    assert sorted(run.recorded["head"]) == ["CosFace", "NormFace"]
    first, second, third = run.lines()
    assert first == ("Yours: ArcFace on digits with m = 0.5, 60 images, 1 epoch. Taken by default: s = 16, seed 0.")
    assert re.match(r"\d+\.\d % of [\d,]+ validation images are right", second)
    assert "are 2 runs" in third and "1 of them are better" in third and "Yours is not among them" in third


def test_it_shows_itself_with_an_alternative_text(project):
    bundle = train("Softmax", "digits", **TINY)._repr_mimebundle_()
    assert re.search(r'<img alt="Accuracy of Softmax [^"]+"', bundle["text/html"]) and bundle["image/png"]
    assert "No run is recorded in this setting" in bundle["text/plain"]


def test_the_curve_by_epoch_says_which_images_it_is_of(project, monkeypatch):
    run = train("Softmax", "digits", **TINY)
    few, last = margin_maps.WATCHED, 100 * run.history["val_accuracy"][-1]
    assert few < run.images

    def said():
        fig = run.draw()
        plt.close(fig)
        return run._repr_mimebundle_()["text/plain"], fig.axes[0].get_legend().get_texts()[1].get_text()

    alt, label = said()
    assert f"on {few} validation images, there ending at {last:.1f} %" in alt and label == f"first {few} of validation"
    monkeypatch.setattr(margin_maps, "WATCHED", run.images)
    assert said()[1] == "validation"


def test_the_default_settings_have_recorded_runs():
    planned = {run for study in margin_maps.SMALL_SETS.values() for run in study.planned()}
    for data, size in play.SIZES.items():
        setting = play._setting(data, None, size, 0)
        assert sum(dataclasses.replace(run, head="NormFace", constants=(), seed=0) == setting for run in planned) == 32


def test_the_same_call_gives_the_same_run_and_another_seed_another(project):
    one, two, three = (train("ArcFace", "digits", seed=seed, **TINY) for seed in (1, 1, 2))
    assert one.history["loss"] == two.history["loss"] != three.history["loss"]


def test_the_loss_written_above_is_trained_like_the_one_it_is(project):
    own, named = train(Mine, "digits", m=0.2, **TINY), train("CosFace", "digits", m=0.2, **TINY)
    assert own.loss == "Mine" and own.history["loss"] == named.history["loss"]
    assert train(Mine, "digits", **TINY).defaults["m"] == 0.3


@pytest.mark.parametrize(
    ("loss", "options", "said"),
    [
        ("ArcFace", {"m": 28.6}, r"28.6 degrees are 0.499"),
        ("ArcFace", {"m": -0.1}, r"ArcFace: m must be a number in \[0, 3.14159\]"),
        ("ArcFace", {"margin": 0.5}, r"no constant 'margin', only s, m"),
        ("ArcFace", {"s": 0}, r"ArcFace: s must be a number >= 0.001"),
        ("Arcface", {}, r"unknown loss 'Arcface': choose one of Softmax"),
        ("ArcFace", {"size": 5}, r"size must be a whole number of 20 or more"),
        ("ArcFace", {"size": 10**6}, r"digits has [\d,]+ training images: lower size"),
        ("ArcFace", {"epochs": 0}, r"epochs must be a whole number from 1"),
        ("ArcFace", {"seed": -1}, r"seed must be a whole number from 0"),
        (Mine, {"margin": 1}, r"Mine: no constant 'margin', only s, m"),
        (Mine(10, 2), {}, r"give the class Mine itself"),
        (losses.Head, {}, r"a loss is a name or a subclass"),
        (torch.nn.Linear, {}, r"a loss is a name or a subclass"),
        (Shapeless, {}, r"Shapeless.target must return a tensor of the shape of cos_y, \(16,\), got \(\)"),
        (Infinite, {}, r"Infinite: the loss of random embeddings is (nan|inf), not a finite number"),
        (NoTarget, {}, r"NoTarget has no method target"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_in_one_line(project, loss, options, said):
    with pytest.raises(Refused, match=said) as caught:
        train(loss, "digits", **TINY | options)
    assert "\n" not in str(caught.value)
    assert caught.value._render_traceback_() == [f"Refused: {caught.value}"]


def test_unknown_data_are_refused():
    with pytest.raises(Refused, match="unknown data set 'omniglot': choose one of digits, mnist, cifar10"):
        train("ArcFace", "omniglot")


def test_it_runs_in_miniature(smoke):
    assert train("ArcFace", "digits").defaults["images"] == 128
    assert not (paths.folder("results")).exists()
