"""Figures: functions that draw on given axes; only ``save`` writes a file."""

import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
from PIL import Image

from lib import losses, statistics, store

plt.style.use(Path(__file__).with_name("style.mplstyle"))

# one colour and one marker per loss, in every figure (the study's nine, lib.family, triplet); one colour per class
PALETTE = [*np.array(sns.color_palette("colorblind"))[[7, 5, 2, 9, 0, 4, 6, 1, 3]]]
PALETTE += [*np.array(sns.color_palette("dark"))[[0, 3, 2, 4, 8, 9, 1]]]
COLOURS = dict(zip(losses.heads(), PALETTE, strict=True))
MARKERS = dict(zip(losses.heads(), [*"osv^DPX*h<>pd", (4, 1), (6, 1), (3, 1)], strict=True))
CLASS_COLOURS = sns.color_palette("tab10", 10)
CLASS_MARKERS = "osv^DPX*h<"


def save(fig: Figure, name: str) -> None:
    """Write figures/<name>.png; the name starts with its notebook's number. In 256 colours it is a third as large
    and looks the same; no date is in it, so that the same figure is the same bytes."""
    file = io.BytesIO()
    fig.savefig(file)
    image = Image.open(file)
    small = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(store.folder("figures") / f"{name}.png", optimize=True, dpi=image.info["dpi"])


def curves(
    ax: Axes, frame: pd.DataFrame, key: str, heads: list[str] | None = None, scale: float = 1.0, log: bool = False
) -> None:
    """history[key] per epoch for each loss (or those in heads): mean over seeds and 95 % band."""
    values = {
        head: scale * np.array([h[key] for h in group["history"]])  # (seeds, epochs)
        for head, group in frame.groupby("head", sort=False)
    }
    for head, (mean, low, high) in statistics.means(values).items():
        if heads and head not in heads:
            continue
        epochs = np.arange(1, len(mean) + 1)
        ax.plot(epochs, mean, color=COLOURS[head], marker=MARKERS[head], label=head)
        ax.fill_between(epochs, low, high, color=COLOURS[head], alpha=0.15, lw=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("epoch")
    if log:
        ax.set_yscale("log")
        ax.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("{x:g}")


def mark_extremes(ax: Axes, frame: pd.DataFrame, key: str, heads: list[str]) -> None:
    """Write minimum and maximum of each loss's mean history[key] beside their points, the lower curve's
    below and the others' above."""
    means = {head: np.mean([h[key] for h in frame.loc[frame["head"] == head, "history"]], axis=0) for head in heads}
    for head, mean in means.items():
        for epoch in (mean.argmin(), mean.argmax()):
            lowest = mean[epoch] == min(other[epoch] for other in means.values())
            ax.annotate(
                f"{mean[epoch]:.3f}", (epoch + 1, mean[epoch]), (0, -14 if lowest else 7), textcoords="offset points",
                ha="center", fontsize=8, color=COLOURS[head],
            )  # fmt: skip


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


def difference(ax: Axes, table: pd.DataFrame) -> None:
    """Forest plot of ``statistics.differences``: mean and interval of each loss minus the reference; of
    ``statistics.compare``, the bootstrap interval as a broad bar behind them."""
    for row, (head, difference) in enumerate(table.iterrows()):
        _interval(ax, row, head, *difference[["mean", "low", "high"]])
        if "boot_low" in table:
            ax.plot(difference[["boot_low", "boot_high"]], [row, row], color="0.8", linewidth=7, zorder=1)
    ax.axvline(0, color="0.3", linewidth=1, linestyle="--")
    ax.set_yticks(range(len(table)), table.index)
    if not ax.yaxis_inverted():  # as it may be, on axes that share it
        ax.invert_yaxis()
    _zoom(ax, table[["mean", "low", "high"]].to_numpy(dtype=float), 0)


def _zoom(ax: Axes, rows: np.ndarray, centre: float) -> None:
    """Limit the axis to the rows (mean, low, high) that lie near the others; of one far away, more than six times as
    far from the centre as the median row, the mean is written at the edge."""
    reach = pd.DataFrame(np.abs(rows - centre)).max(axis=1).to_numpy()  # NaN for a row without runs
    far = reach > 6 * np.nanmedian(reach)
    if not far.any() or far.sum() > len(rows) / 3:
        return
    low, high = np.nanmin(rows[~far]), np.nanmax(rows[~far])
    ax.set_xlim(min(low, centre) - 0.3 * (high - low), max(high, centre) + 0.3 * (high - low))
    for row, (mean, *_) in enumerate(rows):
        if far[row] and not ax.get_xlim()[0] < mean < ax.get_xlim()[1]:
            text, x, side = (f"{mean:.3g} →", 0.98, "right") if mean > centre else (f"← {mean:.3g}", 0.02, "left")
            style = {"fontsize": 8, "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1.5}}
            ax.text(x, row, text, transform=ax.get_yaxis_transform(), ha=side, va="center", **style)


def _interval(ax: Axes, row: int, head: str, mean: float, low: float, high: float) -> None:
    colour = COLOURS.get(head, "0.2")  # an arm of the ablation has none of its own
    ax.plot([low, high], [row, row], color=colour, linewidth=2)
    ax.plot(mean, row, marker=MARKERS.get(head, "o"), markersize=8, color=colour)
    if row == 0 and not np.isfinite(low):
        note = ax.text(1, 1.02, "one seed: no intervals", transform=ax.transAxes, ha="right", fontsize=8, color="0.4")
        note.set_in_layout(False)


def confusion(ax: Axes, matrix: np.ndarray, classes: list[str]) -> None:
    """Counts (C, C), rows true, columns predicted; the diagonal is left uncoloured to show the errors."""
    matrix = np.asarray(matrix)
    errors = np.where(np.eye(len(classes), dtype=bool), np.nan, matrix)
    sns.heatmap(errors, ax=ax, cmap="Blues", cbar=False, linewidths=0.5, xticklabels=classes, yticklabels=classes)
    for i, j in np.argwhere(matrix > 0):
        dark = i != j and matrix[i, j] > 0.6 * np.nanmax(errors)
        ax.text(j + 0.5, i + 0.5, matrix[i, j], ha="center", va="center", fontsize=7, color="white" if dark else "0.15")
    ax.set(xlabel="predicted", ylabel="true", aspect="equal")
    ax.grid(False)


def images(axes: np.ndarray, pictures: torch.Tensor, titles: list[str]) -> None:
    """uint8 images (N, channels, H, W), one on each axes of the grid, with their titles."""
    for ax in axes.flat:
        ax.axis("off")
    for ax, picture, title in zip(axes.flat, pictures.cpu(), titles, strict=False):
        ax.imshow(picture.permute(1, 2, 0).squeeze().numpy(), cmap="gray_r" if len(picture) == 1 else None)
        ax.set_title(title, fontsize=8, loc="center")


def scatter_classes(ax: Axes, points: np.ndarray, y: np.ndarray, classes: list[str], s: float = 5) -> None:
    """Points (N, 2) of size s with one colour and marker per class."""
    for c, name in enumerate(classes):
        ax.scatter(
            *points[y == c].T, s=s, color=CLASS_COLOURS[c], marker=CLASS_MARKERS[c], alpha=0.6, linewidths=0, label=name
        )
