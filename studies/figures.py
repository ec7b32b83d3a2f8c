"""Figures of many runs: functions that draw on given axes."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from lib import plots
from studies import statistics


def intervals(ax: Axes, frame: pd.DataFrame, metric: str, scale: float = 1.0) -> None:
    """One row per loss: every seed as a dot, the mean and its 95 % interval over them."""
    values = statistics.by_loss(frame, metric)
    means = statistics.means(values, apart=statistics.apart(frame))
    for row, (head, (mean, low, high)) in enumerate(means.items()):
        _interval(ax, row, head, scale * mean, scale * low, scale * high)
        ax.plot(scale * values[head], np.full(len(values[head]), row + 0.3), ".", color="0.45", markersize=4)
    ax.set_yticks(range(len(values)), values)
    ax.invert_yaxis()
    rows = scale * np.array(list(means.values()))
    _zoom(ax, rows, np.median(rows[:, 0]))


def forest(ax: Axes, table: pd.DataFrame) -> None:
    """Forest plot of ``statistics.differences``: mean and interval of each loss minus the reference."""
    for row, (head, difference) in enumerate(table.iterrows()):
        _interval(ax, row, head, *difference[["mean", "low", "high"]])
    ax.axvline(0, color="0.3", linewidth=1, linestyle="--")
    ax.set_yticks(range(len(table)), table.index)
    if not ax.yaxis_inverted():  # as it may be, on axes that share it
        ax.invert_yaxis()
    _zoom(ax, table[["mean", "low", "high"]].to_numpy(dtype=float), 0)


def _zoom(ax: Axes, rows: np.ndarray, centre: float) -> None:
    """Limit the axis to the rows (mean, low, high) that lie near the others; of one far away, more than six times as
    far from the centre as the median row, the mean is written at the edge, and an interval that goes on beyond an edge
    ends there in an arrow."""
    reach = pd.DataFrame(np.abs(rows - centre)).max(axis=1).to_numpy()  # NaN for a row without runs
    far = reach > 6 * np.nanmedian(reach)
    if not far.any() or far.sum() > len(rows) / 3:
        return
    low, high = np.nanmin(rows[~far]), np.nanmax(rows[~far])
    ax.set_xlim(min(low, centre) - 0.3 * (high - low), max(high, centre) + 0.3 * (high - low))
    left, right = ax.get_xlim()
    for row, (mean, *ends) in enumerate(rows):
        if far[row] and left < mean < right:
            for beyond, edge, arrow in ((ends[0] < left, left, "<"), (ends[1] > right, right, ">")):
                if beyond:
                    ax.plot(edge, row, arrow, color="0.3", markersize=6, clip_on=False)
        elif far[row]:
            text, x, side = (f"{mean:.3g} →", 0.98, "right") if mean > centre else (f"← {mean:.3g}", 0.02, "left")
            style = {"fontsize": 8, "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1.5}}
            ax.text(x, row, text, transform=ax.get_yaxis_transform(), ha=side, va="center", **style)


def _interval(ax: Axes, row: int, head: str, mean: float, low: float, high: float) -> None:
    colour = plots.COLOURS[head]
    ax.plot([low, high], [row, row], color=colour, linewidth=2)
    ax.plot(mean, row, marker=plots.MARKERS[head], markersize=8, color=colour)
    if row == 0 and not np.isfinite(low):
        note = ax.text(1, 1.02, "one seed: no intervals", transform=ax.transAxes, ha="right", fontsize=8, color="0.4")
        note.set_in_layout(False)
