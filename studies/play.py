"""A playground: train one loss for some seconds and look at it beside the recorded runs of the same setting.

    from studies.play import train
    run = train("ArcFace", "mnist", m=0.5)
    run

The setting is that of the small sets of ``margin_maps``: few images, many epochs. Nothing is written, and a run of
one's own enters no mean of a study.
"""

import base64
import html
import io
from dataclasses import dataclass, field, replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from lib import heads, metrics, models, plots
from lib import train as training
from lib.losses import Head
from studies import margin_maps, records, runs, smoke

SIZES = {"digits": 500, "mnist": 2000, "cifar10": 2000}  # training images; each has recorded runs


class Refused(ValueError):
    """What cannot be trained, in one line, also in a notebook."""

    def _render_traceback_(self) -> list[str]:
        return [f"Refused: {self}"]


@dataclass
class Played:
    """A run of one's own; as the last expression of a cell it shows itself.

    given, defaults: what the caller chose, and what was taken in its absence. history: as of ``lib.train.fit``.
    accuracy, angles: of all validation images, as ``lib.metrics`` has them; the history has the first, ``watched``.
    theta: angles (degrees) of their embeddings to the mean direction of the own class (N,) and to the nearest other one
    (N,). recorded: the runs of this setting in results/, by row, with head, constants and val_accuracy; may be none.
    model: what was trained.
    """

    loss: str
    data: str
    given: dict
    defaults: dict
    history: dict
    accuracy: float
    images: int
    angles: dict
    theta: tuple[np.ndarray, np.ndarray]
    recorded: pd.DataFrame
    model: models.Classifier = field(repr=False)

    @property
    def watched(self) -> int:
        """How many validation images the history is of."""
        return min(margin_maps.WATCHED, self.images)

    def lines(self) -> list[str]:
        """What is to be said, a sentence each."""
        where = f"{self.loss} on {margin_maps.NAMES[self.data]}"
        chosen = f"{where} with {_listed(self.given)}" if self.given else where
        found = [
            f"Yours: {chosen}. Taken by default: {_listed(self.defaults) or 'nothing'}.",
            f"{100 * self.accuracy:.1f} % of {self.images:,} validation images are right; angles: "
            f"{self.angles['intra_angle']:.1f}° within a class, {self.angles['inter_angle']:.1f}° between neighbours.",
        ]
        if not len(self.recorded):
            return [*found, "No run is recorded in this setting (leave out size and epochs for one that has some)."]
        better = int((self.recorded["val_accuracy"] > self.accuracy).sum())
        return [
            *found,
            f"Recorded in this setting are {len(self.recorded)} runs, at several constants and seeds; {better} of them "
            "are better. Yours is not among them, and nothing was written.",
        ]

    def draw(self) -> Figure:
        """Accuracy by epoch, angles, and the place among the recorded runs."""
        fig, axes = plt.subplots(1, 3, figsize=(8.4, 2.8), layout="constrained")
        epochs = np.arange(1, len(self.history["loss"]) + 1)
        watched = "validation" if self.watched == self.images else f"first {self.watched} of validation"
        for key, style, label in (("train_accuracy", "--", "training"), ("val_accuracy", "-", watched)):
            axes[0].plot(epochs, 100 * np.array(self.history[key]), style, color="black", label=label)
        axes[0].set(xlabel="epoch", ylabel="accuracy (%)", title="(a) accuracy")
        axes[0].legend(fontsize=8)
        bins = np.arange(0, 181, 4)
        for theta, look in zip(self.theta, ({"color": "0.3"}, {"histtype": "step", "color": "C0"}), strict=True):
            axes[1].hist(theta, bins, density=True, **look)
        axes[1].set(xlabel="angle (degrees)", yticks=[], title="(b) own class, nearest other")
        self._draw_place(axes[2])
        return fig

    def _draw_place(self, ax) -> None:
        names = list(self.recorded["head"].unique()) if len(self.recorded) else []
        for row, name in enumerate(names, 1):
            values = 100 * self.recorded.loc[self.recorded["head"] == name, "val_accuracy"]
            ax.plot(values, np.full(len(values), row), ".", color="0.6")
        ax.plot(100 * self.accuracy, 0, "*", color=plots.COLOURS["AdaLoss"], markersize=12)
        ax.set_yticks(range(len(names) + 1), ["yours", *names], fontsize=8)
        ax.set(xlabel="validation accuracy (%)", ylim=(len(names) + 0.5, -0.5), title="(c) recorded runs")

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        fig, file = self.draw(), io.BytesIO()
        fig.savefig(file)
        plt.close(fig)
        png, lines = base64.b64encode(file.getvalue()).decode(), self.lines()
        alt = (
            f"Accuracy of {self.loss} by epoch, on the training images and on {self.watched} validation images, there "
            f"ending at {100 * self.history['val_accuracy'][-1]:.1f} %; angles to the own class and to the nearest "
            f"other one; a star for this run, at {100 * self.accuracy:.1f} %, beside {len(self.recorded)} recorded."
        )
        text = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
        image = f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{png}" style="width:840px;max-width:100%">'
        return {"text/html": text + image, "image/png": png, "text/plain": "\n".join([*lines, alt])}


def train(
    loss: str | type[Head], data: str = "mnist", *, seed: int | None = None, size: int | None = None,
    epochs: int | None = None, progress: bool = False, **constants: float,
) -> Played:  # fmt: skip
    """Train a loss, by its name or as a subclass of ``lib.losses.Head``, on some images of digits, mnist or cifar10.

    constants: the loss's own, margins in radians; those left out have the loss's defaults. size: training images;
    epochs: passes over them, by default as many as the recorded runs of that size. Takes about 5 s for digits, half a
    minute at most for the others on two cores. Raises Refused, in one line, for what cannot be trained.
    """
    if data not in SIZES:
        raise Refused(f"unknown data set {data!r}: choose one of {', '.join(SIZES)}")
    head_class = _head_class(loss)
    options = {"seed": 0 if seed is None else seed, "train_size": SIZES[data] if size is None else size}
    try:
        setting = _setting(data, epochs, **options)
        chosen, _ = margin_maps.select(setting)
        if len(chosen.train) < setting.train_size:
            raise ValueError(f"{data} has {len(chosen.train):,} training images: lower size")
        torch.manual_seed(setting.seed)  # the network first, then W: as in ``runs.fit``
        network = models.network(setting.network, chosen.sample(), setting.embedding_dim)
        model = models.Classifier(network, _made(head_class, len(chosen.classes), setting, constants))
        if not isinstance(loss, str):
            _try_out(model.head)
        model.head.margin_scale = 1.0
        fields = {name: getattr(setting, name) for name in runs.TRAINING}
        watched = replace(chosen, val=chosen.val[: margin_maps.WATCHED])
        history = training.fit(model, watched, **fields, progress=progress, name=head_class.__name__)
    except (ValueError, FloatingPointError, OSError) as error:
        raise Refused(str(error)) from None
    x, y = training.embed(model, chosen, chosen.val), chosen.val.labels.cpu()
    with torch.no_grad():
        accuracy = metrics.accuracy(model.head(x.to(model.head.W.device)).cpu(), y)
    given = dict(constants) | {
        name: value for name, value in (("seed", seed), ("images", size), ("epochs", epochs)) if value is not None
    }
    own = {name: getattr(model.head, name) for name in head_class.ranges()}
    taken = {**own, "seed": setting.seed, "images": setting.train_size, "epochs": setting.epochs}
    defaults = {name: value for name, value in taken.items() if name not in given}
    return Played(
        head_class.__name__, data, given, defaults, history, accuracy, len(y), metrics.angles(x, y), _theta(x, y),
        comparable(setting), model,
    )  # fmt: skip


def comparable(setting: margin_maps.Run) -> pd.DataFrame:
    """The recorded runs, by row of ``records.frame``, that differ from the setting in loss, constants and seed only."""
    path = margin_maps.SMALL_SETS["mnist"].path
    alike = {"head": setting.head, "constants": setting.constants, "seed": setting.seed}
    found = records.read(path, margin_maps.Run)
    return records.frame(record for run, record in found.items() if replace(run, **alike) == setting)


def _setting(data: str, epochs: int | None, train_size: int, seed: int) -> margin_maps.Run:
    """All but the loss, which a run of the small sets has been given a name for."""
    if isinstance(train_size, bool) or not isinstance(train_size, int) or train_size < 20:
        raise ValueError(f"size must be a whole number of 20 or more images, got {train_size!r}")
    epochs = max(15, 6000 // train_size) if epochs is None else epochs
    small = {"epochs": epochs, "batch_size": 32, "lr": 0.05, "known": 10}
    return smoke.shrink(margin_maps.Run(data, "NormFace", train_size=train_size, seed=seed, **small))


def _head_class(loss) -> type[Head]:
    if isinstance(loss, Head):
        raise Refused(f"give the class {type(loss).__name__} itself, without brackets, and its constants to train")
    if isinstance(loss, type) and issubclass(loss, Head) and loss is not Head:
        return loss
    if not isinstance(loss, str):
        raise Refused(f"a loss is a name or a subclass of lib.losses.Head, got {loss!r}")
    try:
        return heads.find(loss)
    except ValueError as error:
        raise Refused(str(error)) from None


def _made(head_class: type[Head], classes: int, setting: margin_maps.Run, constants: dict) -> Head:
    try:
        return head_class(classes, setting.embedding_dim, **constants)
    except TypeError as error:
        raise ValueError(f"{head_class.__name__}: {error}") from None


def _try_out(head: Head) -> None:
    """Raises ValueError for a loss of one's own that gives no number to train with."""
    name, (C, d) = type(head).__name__, head.W.shape
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(16, d, generator=generator), torch.arange(16) % C
    if type(head).target is not Head.target:
        cos = torch.linspace(-0.9, 0.9, 16)
        t = head.target(cos, y, x.norm(dim=1))
        if not isinstance(t, Tensor) or t.shape != cos.shape:
            got = tuple(t.shape) if isinstance(t, Tensor) else t
            raise ValueError(f"{name}.target must return a tensor of the shape of cos_y, {tuple(cos.shape)}, got {got}")
    try:
        value = head.loss(x, y)
    except NotImplementedError:
        raise ValueError(f"{name} has no method target(self, cos_y, y, norm): write one") from None
    if value.ndim or not value.isfinite():
        raise ValueError(f"{name}: the loss of random embeddings is {value.tolist()}, not a finite number")


def _theta(x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Angles (degrees) of embeddings x (N, d) to the mean direction of their class y (N,) and to the nearest other."""
    x = F.normalize(x.double())
    centres = F.normalize(torch.zeros(int(y.max()) + 1, x.shape[1], dtype=x.dtype).index_add_(0, y, x))
    theta = torch.rad2deg((x @ centres.T).clamp(-1, 1).acos())  # (N, C)
    own = theta.gather(1, y[:, None])[:, 0]
    return own.numpy(), theta.scatter(1, y[:, None], torch.inf).min(1).values.numpy()


def _listed(values: dict) -> str:
    """As "m = 0.3, seed 0, 1 epoch, 2,000 images"."""
    return ", ".join(
        f"{value:,} {name.removesuffix('s') if value == 1 else name}" if name in ("images", "epochs")
        else f"seed {value}" if name == "seed" else f"{name} = {value:g}"
        for name, value in values.items()
    )  # fmt: skip
