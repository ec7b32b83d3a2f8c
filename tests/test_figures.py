import warnings

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from lib import plots
from studies import figures, statistics


@pytest.fixture
def ax():
    fig, ax = plt.subplots(figsize=(3, 2))
    yield ax
    fig.canvas.draw()  # what draws lazily may still fail
    plt.close(fig)


@pytest.fixture
def frame():
    rows = [
        {"head": head, "seed": seed, "f1": 0.9 + 0.01 * seed} for head in ("ArcFace", "Softmax") for seed in range(2)
    ]
    return pd.DataFrame(rows)


def test_intervals_show_every_seed(ax, frame):
    figures.intervals(ax, frame, "f1", scale=100)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["ArcFace", "Softmax"]
    assert list(ax.lines[2].get_xdata()) == pytest.approx([90, 91])
    pooled = statistics.means({"ArcFace": [90, 91], "Softmax": [90, 91]})
    assert list(ax.lines[0].get_xdata()) == pytest.approx(list(pooled["ArcFace"][1:]))


def test_difference_is_drawn_with_its_interval(ax):
    table = pd.DataFrame({"mean": [1.0, -2.0], "low": [0.5, -5.0], "high": [1.5, 1.0]}, index=["ArcFace", "AdaLoss"])
    figures.forest(ax, table)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["ArcFace", "AdaLoss"]
    assert [list(line.get_xdata()) for line in ax.lines] == [[0.5, 1.5], [1.0], [-5.0, 1.0], [-2.0], [0, 0]]


def test_a_name_that_is_new_has_a_style(ax):
    columns = {"mean": [1.0], "low": [0.5], "high": [1.5]}
    figures.forest(ax, pd.DataFrame(columns, index=["schedule: rising"]))
    colour, marker = plots.COLOURS["schedule: rising"], plots.MARKERS["schedule: rising"]
    assert to_hex(ax.lines[0].get_color()) == to_hex(colour) and ax.lines[1].get_marker() == marker


def test_a_row_far_from_the_others_is_written_at_the_edge():
    table = pd.DataFrame(
        {"mean": [0.1, -0.1, 0.2, -33.0], "low": [0, -0.3, 0, -35.0], "high": [0.2, 0.1, 0.4, -31.0]},
        index=["CosFace", "ArcFace", "AdaLoss", "Triplet"],
    )
    _, (zoomed, whole) = plt.subplots(1, 2)
    figures.forest(zoomed, table)
    assert -1 < zoomed.get_xlim()[0] < -0.3 and 0.4 < zoomed.get_xlim()[1] < 1
    assert [text.get_text() for text in zoomed.texts] == ["← -33"]
    figures.forest(whole, table[:3])
    assert not whole.texts
    plt.close()


def test_a_wide_interval_around_a_near_mean_ends_in_arrows(ax):
    rows = {
        "ArcFace": (0.1, 0, 0.2),
        "CosFace": (-0.1, -0.3, 0.1),
        "AdaLoss": (0.2, 0, 0.4),
        "Triplet": (0.1, -35, 35.2),
    }
    table = pd.DataFrame(rows, index=["mean", "low", "high"]).T
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.forest(ax, table.reindex([*table.index, "LDAM"]))  # without runs: an empty row
    left, right = ax.get_xlim()
    assert left > -1 and right < 1 and not ax.texts
    arrows = [(line.get_marker(), line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines]
    assert [arrow for arrow in arrows if arrow[0] in ("<", ">")] == [("<", left, 3), (">", right, 3)]
