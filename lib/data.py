"""Data sets as uint8 tensors that live on the device, with batch augmentation there."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F
from torchvision import datasets

from lib.device import memory_format
from lib.sets import omniglot
from lib.sets.files import fetch

VAL_SIZE = 5000


@dataclass(frozen=True)
class Split:
    """images uint8 (N, channels, H, W) and labels int64 (N,) on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index) -> "Split":
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Data:
    """Three splits with their normalisation and augmentation.

    mean, std: per channel, of pixels in [0, 1]. crop_padding: augmentation shifts an image by up to that many pixels
    and, with flip, mirrors half of them; 0 and False for none. reflect: what a shift uncovers is the mirrored border,
    not black. alternate: mirror each image in every other epoch (Jordan 2024, arXiv 2404.00498), so that two epochs
    show it both ways; ``epoch`` does, ``augment`` alone does not. shifted_views: see ``views``. unseen: if the test
    images are of classes that training never sees, the names of these; their labels go on behind those of ``classes``,
    so that no head takes them for its own.
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int = 0
    flip: bool = False
    reflect: bool = False
    alternate: bool = False
    shifted_views: bool = False
    unseen: tuple[str, ...] = ()

    @functools.cached_property
    def _mean_std(self) -> Tensor:  # (2, 1, channels, 1, 1), copied to the device once
        return torch.tensor([self.mean, self.std], device=self.train.images.device)[:, None, :, None, None]

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (B, channels, H, W) -> float32 with about zero mean and unit deviation, in the device's layout."""
        mean, std = self._mean_std.to(images.device)
        return ((images / 255 - mean) / std).contiguous(memory_format=memory_format(images.device))

    def draw(self, B: int, generator: torch.Generator) -> Tensor:
        """(3, B), drawn on the CPU for every device: how far B images move down and right, and if each is mirrored."""
        drawn = torch.zeros(3, B, dtype=torch.int64)
        if self.crop_padding:
            drawn[:2] = torch.randint(0, 2 * self.crop_padding + 1, (2, B), generator=generator)
        if self.flip and not self.alternate:
            drawn[2] = torch.rand(B, generator=generator) < 0.5
        return drawn

    def augment(self, images: Tensor, drawn: Tensor | torch.Generator) -> Tensor:
        """uint8 images (B, channels, H, W), moved and mirrored by the numbers (3, B) of ``draw`` or its generator."""
        B, _, H, W = images.shape
        dy, dx, mirror = drawn if isinstance(drawn, Tensor) else self.draw(B, drawn).to(images.device)
        if p := self.crop_padding:
            padded = F.pad(images, (p, p, p, p), "reflect" if self.reflect else "constant")
            windows = padded.unfold(2, H, 1).unfold(3, W, 1)  # (B, channels, 2p+1, 2p+1, H, W)
            images = windows[torch.arange(B, device=images.device), :, dy, dx]
        if self.flip:
            images = torch.where(mirror.bool()[:, None, None, None], images.flip(-1), images)
        return images

    def views(self, images: Tensor) -> list[Tensor]:
        """What evaluation looks at, normalised: uint8 images (B, channels, H, W), with shifted_views also one pixel
        to the lower right and the upper left of them, and where training mirrors, the mirror image of each."""
        views = [images]
        if self.shifted_views:
            padded = F.pad(images, (1, 1, 1, 1), "reflect")
            views += [padded[:, :, :-2, :-2], padded[:, :, 2:, 2:]]
        views = [self.normalise(view) for view in views]
        return views + [view.flip(-1) for view in views if self.flip]

    def order(self, generator: torch.Generator) -> Tensor:
        """Indices, on the CPU, of the training images as a pass over them takes them."""
        return torch.randperm(len(self.train), generator=generator)

    def epoch(self, batch_size: int, generator: torch.Generator, number: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Pass of that number over the training images, shuffled, augmented; an incomplete last batch is left out.
        All random numbers go to the device at once, for each copy makes Python wait."""
        batch_size, device = min(batch_size, len(self.train)), self.train.labels.device
        order = self.order(generator)
        batches = order[: len(order) // batch_size * batch_size].view(-1, batch_size)
        drawn = torch.stack([self.draw(batch_size, generator) for _ in batches])  # (batches, 3, B)
        if self.alternate:
            drawn[:, 2] = (batches + number) % 2 == 0
        for index, numbers in zip(batches.to(device), drawn.to(device), strict=True):
            batch = self.train[index]
            yield self.normalise(self.augment(batch.images, numbers)), batch.labels

    def sample(self, size: int = 5000) -> Tensor:
        """The first training images, normalised, on the CPU: (size, channels, H, W)."""
        return self.normalise(self.train.images[:size].cpu())

    def to(self, device: str | torch.device) -> "Data":
        train, val, test = (Split(s.images.to(device), s.labels.to(device)) for s in self.splits().values())
        return replace(self, train=train, val=val, test=test)

    def splits(self) -> dict[str, Split]:
        return {"train": self.train, "val": self.val, "test": self.test}


def load(name: str, root: str | Path = "data", device: str | torch.device = "cpu") -> Data:
    """The set of that name in ``SETS``: MNIST, CIFAR-10, scikit-learn's digits, Omniglot.

    The validation split is fixed and stratified: 5,000 training images of MNIST and CIFAR-10, a tenth of a smaller
    set, four of the twenty drawers of each of Omniglot's characters. Missing files are downloaded to root. Raises, with
    the cure, ValueError for an unknown name, OSError for damaged files and for a download that fails.
    """
    if name not in SETS:
        raise ValueError(f"unknown data set {name!r}: choose one of {', '.join(SETS)}, or an existing image folder")
    return SETS[name](Path(root)).to(device)


def _mnist(root: Path) -> Data:
    rest, test = (Split(s.data[:, None], s.targets) for s in fetch(datasets.MNIST, root))
    train, val = holdout(rest, VAL_SIZE)
    return Data("mnist", train, val, test, list("0123456789"), mean=(0.1307,), std=(0.3081,))


def _cifar10(root: Path) -> Data:
    sets = fetch(datasets.CIFAR10, root)
    rest, test = (Split(torch.from_numpy(s.data).movedim(3, 1).contiguous(), torch.tensor(s.targets)) for s in sets)
    train, val = holdout(rest, VAL_SIZE)
    # customary, and the recorded runs have them: means over images; over all pixels (0.2469, 0.2434, 0.2616)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    return Data("cifar10", train, val, test, sets[0].classes, mean, std, crop_padding=4, flip=True)


def _digits(root: Path) -> Data:
    images, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(images * (255 / 16)).to(torch.uint8).view(-1, 1, 8, 8)
    return split_all("digits", Split(pixels, torch.from_numpy(labels)), list("0123456789"))


def _omniglot(root: Path) -> Data:
    parts, classes, unseen = omniglot.splits(root)
    train, val, test = (Split(*part) for part in parts)
    return Data("omniglot", train, val, test, classes, (0.0784,), (0.2309,), crop_padding=2, unseen=unseen)


# the sets that have a name: each loader takes the folder of the data and returns Data on the CPU
SETS = {"mnist": _mnist, "cifar10": _cifar10, "digits": _digits, "omniglot": _omniglot}


def split_all(name: str, everything: Split, classes: list[str], **augmentation) -> Data:
    """Data of all images of a set: a fifth for test, a tenth for validation, mean and std from the rest."""
    N, C = len(everything), len(classes)
    rest, test = holdout(everything, max(N // 5, C))
    train, val = holdout(rest, max(N // 10, C))
    pixels = train.images.double() / 255
    mean, std = pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(0, 2, 3)).clamp_min(1 / 255)
    return Data(name, train, val, test, classes, tuple(mean.tolist()), tuple(std.tolist()), **augmentation)


def holdout(split: Split, size: int) -> tuple[Split, Split]:
    """(rest, held out): a stratified part of that size, the same on every machine and in every run."""
    rest, held = train_test_split(range(len(split)), test_size=size, stratify=split.labels.cpu(), random_state=0)
    return split[sorted(rest)], split[sorted(held)]
