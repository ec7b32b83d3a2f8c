"""Losses compared on somebody's own images: trained until they have learnt, judged by the test images, and kept.

``images_in`` reads a folder and chooses the network, ``train`` trains one loss, ``accuracies`` and ``differences`` say
what the test images show, ``unknown`` asks the same of classes that were left out, ``save_model``, ``load_model`` and
``classify`` are for use. Nothing enters the study's records.
"""

import dataclasses
import math
import re
import socket
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy import stats
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, resnet18

from lib import device, heads, metrics, models, paths
from lib import train as training
from lib.data import Data, Split
from lib.losses import Head
from studies import image_folder, unseen

STEPS, MOST = 300, 4 * 300  # gradient steps of a training, and of the longest
LEARNT = 0.99  # the share of training images that are right when a training has converged
BATCH, LR, DIM = 32, 0.05, 64
FEW = 100  # test images; with fewer the interval of an accuracy is some 20 points wide
PHOTOGRAPH = 64  # pixels; on smaller images a backbone for photographs sees nothing
BACKBONE, FEATURES = "ResNet-18", 512
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # all that Pillow raises
IMAGENET = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, None, :, None, None]  # mean, std


@dataclass
class Images:
    """What the losses are trained on: data, whose images are pictures or, with a backbone, what it sees of them,
    (N, 512, 1, 1); pictures, the data as they were read; size, their side in pixels."""

    data: Data
    pictures: Data
    size: int
    receipt: image_folder.Receipt
    backbone: nn.Module | None = None

    @property
    def network(self) -> str:
        return BACKBONE if self.backbone else "SmallNet"


@dataclass
class Trained:
    """A model, its steps, whether it has converged, its accuracy on training images, and which test images (N,) are
    right. probabilities (N, C) of the test images."""

    head: str
    seed: int
    model: models.Classifier
    steps: int
    converged: bool
    train_accuracy: float
    correct: np.ndarray
    probabilities: np.ndarray


# ---------------------------------------------------------------- the images and the network


def images_in(folder: str | Path, size: int) -> Images:
    """The images under folder, one subfolder per class; damaged ones are left out, and the receipt says so.

    From ``PHOTOGRAPH`` pixels on a backbone that was pretrained on photographs is taken, if torchvision has its weights
    or can fetch them; else a small network learns from scratch. Raises ValueError as ``image_folder.read`` does.
    """
    pictures, receipt = image_folder.read(Path(folder), size, skip_damaged=True)
    pictures = pictures.to(device.best_device())
    backbone = pretrained() if size >= PHOTOGRAPH else None
    data = embedded(pictures, backbone) if backbone else pictures
    return Images(data, pictures, size, receipt, backbone)


def pretrained() -> nn.Module | None:
    """torchvision's ResNet-18 for photographs without its last layer, frozen; None if its weights are not to be had."""
    waits = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)
    try:
        net = resnet18(weights=ResNet18_Weights.DEFAULT)
    except (OSError, RuntimeError):  # no network; a damaged download
        return None
    finally:
        socket.setdefaulttimeout(waits)
    net.fc = nn.Identity()
    return net.eval().requires_grad_(False)


@torch.no_grad()
def seen(backbone: nn.Module, images: Tensor, batch_size: int = 100) -> Tensor:
    """What a backbone sees of uint8 images (N, 3, H, W): (N, 512, 1, 1)."""
    backbone, (mean, std) = backbone.to(images.device), IMAGENET.to(images.device)
    parts = [backbone((part / 255 - mean) / std) for part in images.split(batch_size)]
    return torch.cat(parts)[:, :, None, None]


def embedded(data: Data, backbone: nn.Module) -> Data:
    """Data with what the backbone sees in place of the images: computed once, for the backbone does not learn."""
    splits = {name: Split(seen(backbone, split.images), split.labels) for name, split in data.splits().items()}
    x = splits["train"].images
    # ``Data.normalise`` divides by 255, which is for pixels
    mean, std = (x.mean() / 255).item(), (x.std() / 255).clamp_min(1e-9).item()
    return dataclasses.replace(data, **splits, mean=(mean,), std=(std,), crop_padding=0, flip=False)


def built(data: Data, head: str, dim: int = DIM, features: bool = False, **constants: float) -> models.Classifier:
    """An untrained model for these data: a small network, or one layer on a backbone's features."""
    if features:
        network: nn.Module = nn.Sequential(nn.Flatten(), *models.embedding(FEATURES, dim))
    else:
        network = models.network("SmallNet", data.sample(), dim)
    return models.Classifier(network, heads.make(head, len(data.classes), dim, **constants))


# ---------------------------------------------------------------- one training


def train(
    images: Images, head: str, seed: int = 0, steps: int = STEPS, most: int = MOST, **constants: float
) -> Trained:
    """Train one loss, in steps and not in epochs, for a small folder has few steps in an epoch. What has not learnt its
    training images starts anew with twice the steps, up to most. Raises ValueError for an unknown loss or constant."""
    data, features = images.data, images.backbone is not None
    while True:
        torch.manual_seed(seed)
        model = built(data, head, features=features, **constants)
        epochs = math.ceil(steps / max(1, len(data.train) // BATCH))
        # validation after every epoch would cost more than the training: nothing is chosen by it here
        watched = dataclasses.replace(data, val=data.val[:1])
        training.fit(
            model, watched, epochs=epochs, batch_size=BATCH, lr=LR, margin_warmup=epochs / 4, seed=seed, progress=False,
            name=head,
        )  # fmt: skip
        known = data.train[:2000]
        accuracy = metrics.accuracy(training.predict(model, data, known), known.labels.cpu())
        if accuracy >= LEARNT or 2 * steps > most:
            break
        steps *= 2
    logits = training.predict(model, data, data.test)
    correct = (logits.argmax(1) == data.test.labels.cpu()).numpy()
    found = accuracy >= LEARNT
    return Trained(head, seed, model, steps, found, accuracy, correct, logits.softmax(1).numpy())


# ---------------------------------------------------------------- what it shows


def majority(data: Data) -> tuple[str, float]:
    """The class that most training images have, and the accuracy of always answering it."""
    label = int(data.train.labels.bincount().argmax())
    return data.classes[label], (data.test.labels == label).double().mean().item()


def warnings(images: Images, runs: list[Trained]) -> list[str]:
    """What keeps the result from meaning much, a sentence each; none where nothing does."""
    found, n = [], len(images.data.test)
    if n < FEW:
        low, high = wilson(n / 2, n)
        found.append(
            f"There are {n} test images. An accuracy near 50 % would be known to lie between {100 * low:.0f} % and "
            f"{100 * high:.0f} % only: differences between losses are far smaller. From {5 * FEW} images in all on a "
            "difference of ten points begins to show; one of a single point takes thousands of test images."
        )
    late = sorted({run.head for run in runs if not run.converged})
    if late:
        found.append(
            f"Not converged after {max(run.steps for run in runs)} steps: {', '.join(late)}. Their training images are "
            "not learnt, so the comparison says who is faster, not who is better: raise MOST."
        )
    _, baseline = majority(images.data)
    if any(run.correct.mean() <= baseline for run in runs):
        found.append("A loss is no better than always answering the largest class: it has learnt nothing of use.")
    return found


def wilson(right: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """The interval of a share of which right of n were seen (Wilson 1927): within [0, 1], also for none or all."""
    z = stats.norm.ppf((1 + level) / 2)
    middle = (right + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(right * (n - right) / n + z * z / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def accuracies(runs: list[Trained]) -> pd.DataFrame:
    """By loss: n (seeds), training and test accuracy, and the interval (low, high) that so many test images allow, in
    percent. The seeds share the test images, so they do not make it narrower."""
    rows = {}
    for head in dict.fromkeys(run.head for run in runs):
        own = [run for run in runs if run.head == head]
        accuracy, n = float(np.mean([run.correct.mean() for run in own])), len(own[0].correct)
        low, high = wilson(accuracy * n, n)
        trained = float(np.mean([run.train_accuracy for run in own]))
        rows[head] = {"n": len(own), "training": 100 * trained, "accuracy": 100 * accuracy}
        rows[head] |= {"low": 100 * low, "high": 100 * high}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("loss")


def differences(runs: list[Trained], reference: str, draws: int = 4000) -> pd.DataFrame:
    """Each loss minus the reference, in points: mean, low, high, and what can be said.

    Both the seeds and the test images are drawn again and again (a bootstrap of rows and columns), the same for both
    losses; the intervals hold for all losses at once. verdict: higher, lower, no difference shown, or cannot be told
    where no test image tells the losses apart.
    """
    table = {
        head: np.stack([r.correct for r in runs if r.head == head]) for head in dict.fromkeys(r.head for r in runs)
    }
    others = [head for head in table if head != reference]
    rows, draw = {}, np.random.default_rng(0)
    seeds, n = table[reference].shape
    chosen = draw.integers(seeds, size=(draws, seeds)), draw.integers(n, size=(draws, n))
    for head in others:
        d = 100.0 * (table[head].astype(float) - table[reference])  # (seeds, images)
        row = {"mean": d.mean(), "low": np.nan, "high": np.nan, "verdict": "cannot be told"}
        if d.any():
            drawn = [d[a][:, b].mean() for a, b in zip(*chosen, strict=True)]
            tail = 0.025 / len(others)
            low, high = np.quantile(drawn, [tail, 1 - tail])
            verdict = "higher" if low > 0 else "lower" if high < 0 else "no difference shown"
            row |= {"low": low, "high": high, "verdict": verdict}
        rows[head] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("loss")


# ---------------------------------------------------------------- classes that were left out


def hold_out_classes(images: Images, seed: int) -> tuple[Images, Split]:
    """Images without a third of the classes, at least two, drawn with the seed; and all images of these. Raises
    ValueError for fewer than four classes."""
    C = len(images.data.classes)
    if C < 4:
        raise ValueError(f"there are {C} classes: four or more are needed to leave two of them out")
    order = torch.randperm(C, generator=torch.Generator().manual_seed(seed))
    out, kept = order[: max(2, C // 3)], order[max(2, C // 3) :].sort().values

    def part(split: Split) -> Split:
        labels = split.labels.cpu()
        rows = torch.isin(labels, kept)
        position = torch.searchsorted(kept, labels[rows]).to(split.labels.device)
        return Split(split.images[rows.to(split.images.device)], position)

    splits = images.data.splits()
    everything = Split(*(torch.cat([getattr(s, k) for s in splits.values()]) for k in ("images", "labels")))
    new = everything[torch.isin(everything.labels.cpu(), out).to(everything.labels.device)]
    classes = [images.data.classes[c] for c in kept]
    data = dataclasses.replace(images.data, **{k: part(s) for k, s in splits.items()}, classes=classes)
    return dataclasses.replace(images, data=data), new


def unknown(images: Images, head: str, seed: int = 0, **options) -> dict[str, float]:
    """Train a loss without a third of the classes, and measure on these: recall_at_1, how often the nearest other image
    is of the same class; map_at_r; eer, the error of "are these two of one class?" (``studies.unseen``)."""
    some, new = hold_out_classes(images, seed)
    model = train(some, head, seed, **options).model
    x, y = training.embed(model, some.data, new), new.labels.cpu()
    return {**unseen.retrieval(x, y), "eer": unseen.verification(x, y)["eer"]}


# ---------------------------------------------------------------- use


def folder_of(images: Images) -> Path:
    """The folder of what is kept of these images: neither committed nor submitted."""
    return paths.folder("your_data") / (re.sub(r"[^\w-]+", "_", images.data.name) or "images")


def save_model(path: Path, images: Images, run: Trained) -> None:
    """Write a trained model with all that is needed to use it, in torch's format."""
    data, head = images.data, run.model.head
    constants = {name: getattr(head, name) for name in type(head).ranges()}
    content = {
        "head": run.head, "constants": constants, "classes": list(data.classes), "size": images.size, "dim": DIM,
        "network": images.network, "mean": list(data.mean), "std": list(data.std), "steps": run.steps,
        "seed": run.seed, "state": run.model.state_dict(),
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def load_model(path: Path) -> tuple[models.Classifier, Images]:
    """A saved model, ready to ``classify``; its data hold no image. Raises ValueError if the file is no such model, or
    needs a backbone that is not to be had."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        channels = FEATURES if saved["network"] == BACKBONE else 3
        side = 1 if channels == FEATURES else saved["size"]
        nothing = Split(torch.zeros(0, channels, side, side, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
        data = Data(path.stem, nothing, nothing, nothing, saved["classes"], tuple(saved["mean"]), tuple(saved["std"]))
        model = built(data, saved["head"], saved["dim"], saved["network"] == BACKBONE, **saved["constants"])
        model.load_state_dict(saved["state"])
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: save a model there first") from None
    except Exception as error:
        raise ValueError(f"{path} is no model saved here ({str(error).splitlines()[0]}): save it again") from None
    backbone = pretrained() if saved["network"] == BACKBONE else None
    if backbone is None and saved["network"] == BACKBONE:
        raise ValueError(
            f"{path} needs the weights of {BACKBONE}, which cannot be fetched: connect to the network once"
        )
    return model.eval(), Images(data, data, saved["size"], image_folder.Receipt(path.stem), backbone)


def held_out_picture(images: Images, folder: str | Path) -> Path:
    """The first file under folder, by name, that is among the test images: the network was not trained on it. Raises
    ValueError if there is none."""
    shown = images.pictures.test.images
    for file in sorted(Path(folder).rglob("*")):
        try:
            picture = image_folder._picture(file, images.size).to(shown.device)
        except UNREADABLE:  # no image, or left out
            continue
        if (shown == picture).flatten(1).all(1).any():
            return file
    raise ValueError(f"{folder} holds none of the test images: name the folder that the images were read from")


@torch.no_grad()
def classify(model: models.Classifier, images: Images, picture: str | Path) -> list[tuple[str, float]]:
    """The classes and their probabilities of one image file, the likeliest first. Raises ValueError if it cannot be
    read."""
    try:
        pixels = image_folder._picture(picture, images.size)[None]
    except UNREADABLE as error:
        raise ValueError(f"{picture} cannot be read as an image ({error}): name another file") from None
    where = model.head.W.device
    shown = seen(images.backbone, pixels.to(where)) if images.backbone else pixels.to(where)
    data = images.data
    views = [view for view in dataclasses.replace(data, shifted_views=False).views(shown)]
    p = model.head(torch.stack([model.eval().network(view) for view in views]).mean(0)).softmax(1)[0]
    return sorted(zip(data.classes, p.tolist(), strict=True), key=lambda pair: -pair[1])


def known_heads(names: list[str]) -> list[type[Head]]:
    """The classes of two or more different losses. Raises ValueError for fewer, and for an unknown name."""
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise ValueError("HEADS needs two or more different losses: the others are compared with the first")
    return [heads.find(name) for name in names]
