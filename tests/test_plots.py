import itertools

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex, to_rgb
from PIL import Image

from lib import heads, plots


@pytest.fixture
def ax():
    fig, ax = plt.subplots(figsize=(3, 2))
    yield ax
    fig.canvas.draw()  # what draws lazily may still fail
    plt.close(fig)


def style(name):
    return {"color": plots.COLOURS[name], "marker": plots.MARKERS[name]}


def test_one_colour_and_marker_per_loss():
    assert set(plots.LOSSES) <= set(heads.heads())
    styles = [style(name) for name in heads.heads()]
    assert len({to_hex(s["color"]) for s in styles}) == len({s["marker"] for s in styles}) == len(styles)
    assert plots.COLOURS["ArcFace"] == "#0a4fb3" and plots.MARKERS["ArcFace"] == "D"
    assert len({to_hex(c) for c in plots.CLASS_COLOURS}) == len(set(plots.CLASS_MARKERS)) == 10


XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
SEEN = {  # Machado, Oliveira, Fernandes 2009, severity 1
    "normal": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(name):
    rgb = np.array(to_rgb(plots.COLOURS[name]))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIELAB of linear RGB."""
    scaled = XYZ @ np.clip(rgb, 0, 1) / XYZ.sum(1)
    x, y, z = np.where(scaled > 0.008856, np.cbrt(scaled), scaled / 0.128419 + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_colours_stand_out_from_white():
    contrast = {name: 1.05 / (XYZ[1] @ linear(name) + 0.05) for name in plots.LOSSES}
    assert min(contrast.values()) >= 3, contrast  # what WCAG 2 asks of graphics


@pytest.mark.parametrize("kind", SEEN)
def test_colours_are_told_apart(kind):
    at = {name: lab(np.array(SEEN[kind]) @ linear(name)) for name in plots.LOSSES}
    gaps = {frozenset(pair): np.linalg.norm(at[pair[0]] - at[pair[1]]) for pair in itertools.combinations(at, 2)}
    subjects = {"ArcFace", "AdaLoss"}
    assert gaps[frozenset(subjects)] > 60
    assert min(gap for pair, gap in gaps.items() if len(pair & subjects) == 1) > (20 if kind != "tritanopia" else 12)
    assert min(gaps.values()) > (13 if kind != "tritanopia" else 3)  # the rarest; markers help there


def test_the_pair_in_question_is_told_apart_without_colour():
    light = {name: lab(linear(name))[0] for name in ("ArcFace", "AdaLoss")}
    assert light["AdaLoss"] - light["ArcFace"] > 10


@pytest.fixture
def fresh(monkeypatch):
    """Tables from which no unknown name has taken a style yet."""
    for name in ("COLOURS", "MARKERS"):
        table = getattr(plots, name)
        known = {loss: table[loss] for loss in plots.LOSSES}
        monkeypatch.setattr(plots, name, plots.Styles(known, table.others))


def test_unknown_losses_get_free_styles_and_keep_them(fresh, ax):
    names = [f"Mine{i}" for i in range(12)]
    styles = {name: style(name) for name in (*plots.LOSSES, *names)}
    assert len({to_hex(s["color"]) for s in styles.values()}) == len({s["marker"] for s in styles.values()}) == 28
    assert styles == {name: style(name) for name in styles} and list(plots.COLOURS) == list(styles)
    for name, look in styles.items():
        ax.plot([0, 1], [0, 1], label=name, **look)
        ax.scatter([0], [0], **look)
    assert style("one more than there are")["marker"] in plots.MARKERS.others


def test_an_unknown_loss_looks_the_same_whoever_comes_after(fresh):
    first = style("Mine")
    known = {loss: plots.COLOURS[loss] for loss in plots.LOSSES}
    again = plots.Styles(known, plots.COLOURS.others)
    assert again["Mine"] == first["color"] and again["Yours"] != again["Mine"]


def test_the_style_is_used_when_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(plt.style, "use", asked.append)
    plots.use_style()
    assert asked[0].exists() and len(asked) == 1


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
