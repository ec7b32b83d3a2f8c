"""Figures: functions that draw on given axes; only ``save`` writes a file."""

import io
import zlib
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from lib import paths


def use_style() -> None:
    """One look for all figures of this process."""
    plt.style.use(Path(__file__).with_name("style.mplstyle"))


class Styles(dict):
    """One style per loss, the same in every figure; a name without one is given a free one when it is asked for."""

    def __init__(self, named: dict, others: list):
        super().__init__(named)
        self.others, self.free = others, others[:]

    def __missing__(self, name: str) -> object:
        self.free = self.free or self.others[:]  # all are given: from the start
        self[name] = self.free.pop(zlib.crc32(name.encode()) % len(self.free))
        return self[name]


# the study's nine losses, their relatives, triplet; one colour per class
LOSSES = ["Softmax", "NormFace", "SphereFace", "CosFace", "ArcFace", "CombinedMargin", "CurricularFace", "AdaFace"]
LOSSES += ["AdaLoss", "ElasticFace", "MagFace", "AdaCos", "KappaFace", "LDAM", "SubCenterArcFace", "Triplet"]
# ArcFace and AdaLoss, the pair in question, are the two strong ones; a test measures how well all are told apart
PALETTE = ["#714a3f", "#6395da", "#789b62", "#158b74", "#0a4fb3", "#2da2a8", "#12728b", "#1476a9", "#d1350f"]
PALETTE += ["#2997b8", "#066463", "#2c4462", "#5b1f06", "#2a333c", "#4f2923", "#1a2e67"]
SHAPES = [*"osv^DPX*h<>pd", (4, 1), (6, 1), (3, 1)]
COLOURS = Styles(dict(zip(LOSSES, PALETTE, strict=True)), [*sns.husl_palette(12, s=0.6, l=0.4)])
MARKERS = Styles(dict(zip(LOSSES, SHAPES, strict=True)), [*"H8", *((n, 2) for n in range(3, 13))])
CLASS_COLOURS = sns.color_palette("tab10", 10)
CLASS_MARKERS = "osv^DPX*h<"


def save(fig: Figure, name: str) -> None:
    """Write figures/<name>.png; the name starts with its notebook's number. In 256 colours it is a third as large
    and looks the same; no date is in it, so that the same figure is the same bytes. Raises OSError."""
    drawn, file = io.BytesIO(), io.BytesIO()
    fig.savefig(drawn)
    image = Image.open(drawn)
    small = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(file, "PNG", optimize=True, dpi=image.info["dpi"])
    paths.write(paths.folder("figures") / f"{name}.png", file.getvalue())


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
        look = {"color": CLASS_COLOURS[c], "marker": CLASS_MARKERS[c], "alpha": 0.6, "linewidths": 0}
        ax.scatter(points[y == c, 0], points[y == c, 1], s=s, label=name, **look)
