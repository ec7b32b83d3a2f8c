"""Names beside lines, where a legend would have too many."""

import numpy as np
from matplotlib.axes import Axes


def beside(ax: Axes, size: float = 8) -> None:
    """Write the label of every line right of the panel, at the height of its last point and in its colour; labels
    that would overlap are moved apart. To be called when all lines are drawn."""
    named = [
        (str(line.get_label()), float(np.asarray(line.get_ydata())[-1]), line.get_color()) for line in ax.get_lines()
    ]
    named = sorted((one for one in named if not one[0].startswith("_")), key=lambda one: one[1])
    ax.figure.canvas.draw()  # only then is the height of the panel settled
    points = 72 / ax.figure.dpi
    ends = [points * float(ax.transData.transform((ax.get_xlim()[1], end))[1]) for _, end, _ in named]
    for (text, end, colour), now, place in zip(named, ends, pushed_apart(ends, 1.25 * size), strict=True):
        ax.annotate(
            text, (1, end), (5, place - now), xycoords=("axes fraction", "data"), textcoords="offset points",
            va="center", fontsize=size, color=colour, annotation_clip=False,
        )  # fmt: skip


def pushed_apart(ends: list[float], gap: float) -> list[float]:
    """Rising numbers, moved as little as is needed for neighbours to be a gap apart: each cluster stays centred."""
    clusters: list[list[float]] = []  # each the numbers that it holds
    for end in ends:
        clusters.append([end])
        while len(clusters) > 1 and _first(clusters[-1], gap) - _last(clusters[-2], gap) < gap:
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    return [_first(cluster, gap) + k * gap for cluster in clusters for k in range(len(cluster))]


def _first(cluster: list[float], gap: float) -> float:
    return sum(cluster) / len(cluster) - gap * (len(cluster) - 1) / 2


def _last(cluster: list[float], gap: float) -> float:
    return _first(cluster, gap) + gap * (len(cluster) - 1)
