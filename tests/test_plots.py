import warnings

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image

from lib import losses, plots, statistics


@pytest.fixture
def ax():
    fig, ax = plt.subplots(figsize=(3, 2))
    yield ax
    fig.canvas.draw()  # what draws lazily may still fail
    plt.close(fig)


@pytest.fixture
def frame():
    rows = [
        {"head": head, "seed": seed, "f1": 0.9 + 0.01 * seed, "history": {"loss": [3.0 - seed, 1.0, 2.0]}}
        for head in ("ArcFace", "Softmax")
        for seed in range(2)
    ]
    return pd.DataFrame(rows)


def test_one_colour_and_marker_per_loss():
    assert list(plots.COLOURS) == list(plots.MARKERS) == list(losses.heads())
    assert len({to_hex(c) for c in plots.COLOURS.values()}) == len(set(plots.MARKERS.values())) == len(losses.heads())
    assert len({to_hex(c) for c in plots.CLASS_COLOURS}) == len(set(plots.CLASS_MARKERS)) == 10


def test_save_writes_the_same_bytes(project):
    for name in ("00_a", "00_b"):
        fig, ax = plt.subplots()
        ax.plot([1, 2], label="line")
        ax.legend()
        plots.save(fig, name)
        plt.close(fig)
    first, second = (project / "figures" / f"{name}.png" for name in ("00_a", "00_b"))
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().startswith(b"\x89PNG") and b"Software" not in first.read_bytes()


def test_save_keeps_the_look_and_the_size_on_paper(project):
    fig, ax = plt.subplots()
    ax.scatter(*np.random.default_rng(0).normal(size=(2, 2000)), c=np.arange(2000) % 10, cmap="tab10", s=9, alpha=0.5)
    ax.plot([0, 1], [0, 1], color="red", linewidth=0.5)
    plots.save(fig, "00_a")
    fig.savefig(project / "full.png")
    plt.close(fig)
    small, full = (Image.open(project / path) for path in ("figures/00_a.png", "full.png"))
    assert small.info["dpi"] == full.info["dpi"] and small.size == full.size
    assert np.abs(np.array(small.convert("RGB"), int) - np.array(full.convert("RGB"), int)).max() < 32
    assert (project / "figures/00_a.png").stat().st_size < 0.5 * (project / "full.png").stat().st_size


def test_smoke_leaves_figures_alone(project, monkeypatch):
    monkeypatch.setenv("PROFILE", "smoke")
    fig = plt.figure()
    plots.save(fig, "00_a")
    plt.close(fig)
    assert [p.relative_to(project).as_posix() for p in project.rglob("*.png")] == [".smoke/figures/00_a.png"]


def test_curves_show_mean_and_interval(ax, frame):
    plots.curves(ax, frame, "loss", scale=10)
    assert [line.get_label() for line in ax.lines] == ["ArcFace", "Softmax"]
    for line in ax.lines:
        assert to_hex(line.get_color()) == to_hex(plots.COLOURS[line.get_label()])
        np.testing.assert_allclose(line.get_xydata(), [[1, 25], [2, 10], [3, 20]])
    band = ax.collections[0].get_paths()[0].vertices
    pooled = statistics.means({"ArcFace": [30, 20], "Softmax": [30, 20]})
    assert band[:, 1].max() == pytest.approx(pooled["ArcFace"][2])


def test_curves_of_chosen_losses(ax, frame):
    plots.curves(ax, frame, "loss", heads=["Softmax"])
    assert [line.get_label() for line in ax.lines] == ["Softmax"]


def test_extremes_are_marked(ax, frame):
    plots.curves(ax, frame, "loss")
    plots.mark_extremes(ax, frame, "loss", ["ArcFace"])
    assert [(t.get_text(), t.xy) for t in ax.texts] == [("1.000", (2, 1.0)), ("2.500", (1, 2.5))]


def test_intervals_show_every_seed(ax, frame):
    plots.intervals(ax, frame, "f1", scale=100)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["ArcFace", "Softmax"]
    assert list(ax.lines[2].get_xdata()) == pytest.approx([90, 91])
    pooled = statistics.means({"ArcFace": [90, 91], "Softmax": [90, 91]})
    assert list(ax.lines[0].get_xdata()) == pytest.approx(list(pooled["ArcFace"][1:]))


def test_difference_is_drawn_with_its_interval(ax):
    table = pd.DataFrame({"mean": [1.0, -2.0], "low": [0.5, -5.0], "high": [1.5, 1.0]}, index=["ArcFace", "AdaLoss"])
    plots.difference(ax, table)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["ArcFace", "AdaLoss"]
    assert [list(line.get_xdata()) for line in ax.lines] == [[0.5, 1.5], [1.0], [-5.0, 1.0], [-2.0], [0, 0]]


def test_difference_with_bootstrap_intervals_and_an_arm_without_colour(ax):
    columns = {"mean": [1.0], "low": [0.5], "high": [1.5], "boot_low": [0.7], "boot_high": [1.2]}
    plots.difference(ax, pd.DataFrame(columns, index=["schedule: rising"]))
    assert [list(line.get_xdata()) for line in ax.lines] == [[0.5, 1.5], [1.0], [0.7, 1.2], [0, 0]]
    assert to_hex(ax.lines[0].get_color()) == to_hex("0.2")


def test_confusion_shows_every_count(ax):
    plots.confusion(ax, [[5, 1], [2, 7]], ["cat", "dog"])
    assert {(t.get_text(), t.get_position()) for t in ax.texts} == {
        ("5", (0.5, 0.5)), ("1", (1.5, 0.5)), ("2", (0.5, 1.5)), ("7", (1.5, 1.5)),
    }  # fmt: skip
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted", "true")


def test_confusion_without_errors(ax):
    plots.confusion(ax, np.diag([5, 7]), ["cat", "dog"])
    assert len(ax.texts) == 2


@pytest.mark.parametrize("channels", [1, 3])
def test_images(channels):
    fig, axes = plt.subplots(2, 2)
    pictures = torch.arange(3 * channels * 4, dtype=torch.uint8).view(3, channels, 2, 2)
    plots.images(axes, pictures, ["a", "b", "c"])
    for ax, picture, title in zip(axes.flat, pictures, "abc", strict=False):
        shown = np.asarray(ax.images[0].get_array()).reshape(2, 2, channels)
        assert np.array_equal(shown, picture.permute(1, 2, 0)) and ax.get_title() == title
    assert not axes[1, 1].images
    plt.close(fig)


def test_a_row_far_from_the_others_is_written_at_the_edge():
    table = pd.DataFrame(
        {"mean": [0.1, -0.1, 0.2, -33.0], "low": [0, -0.3, 0, -35.0], "high": [0.2, 0.1, 0.4, -31.0]},
        index=["CosFace", "ArcFace", "AdaLoss", "Triplet"],
    )
    _, (zoomed, whole) = plt.subplots(1, 2)
    plots.difference(zoomed, table)
    assert -1 < zoomed.get_xlim()[0] < -0.3 and 0.4 < zoomed.get_xlim()[1] < 1
    assert [text.get_text() for text in zoomed.texts] == ["← -33"]
    plots.difference(whole, table[:3])
    assert not whole.texts
    plt.close()


def test_a_wide_interval_around_a_near_mean_is_cut_off_without_a_word(ax):
    rows = {
        "ArcFace": (0.1, 0, 0.2),
        "CosFace": (-0.1, -0.3, 0.1),
        "AdaLoss": (0.2, 0, 0.4),
        "Triplet": (0.1, -35, 35.2),
    }
    table = pd.DataFrame(rows, index=["mean", "low", "high"]).T
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.difference(ax, table.reindex([*table.index, "LDAM"]))  # without runs: an empty row
    assert ax.get_xlim()[0] > -1 and ax.get_xlim()[1] < 1 and not ax.texts
