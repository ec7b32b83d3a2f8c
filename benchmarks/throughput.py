"""Training images per second: what one would otherwise write, against this project's way.

    python -m benchmarks.throughput

Both train the network of S1's ArcFace arm with SGD, on as many images in batches of one size: S1's of 64,
and that of the study's recipe. The usual way: torchvision data set and transforms, DataLoader with
workers, pytorch-metric-learning's ArcFaceLoss, fp32. This project's: ``train.fit`` with its statistics,
so images as tensors, augmented in batch, ``losses.ArcFace``, bf16, channels last; and pooling before
ReLU, which gives the same values from fewer operations. The two take turns, epoch by epoch, each in a
process of its own, for ours changes how a process handles its memory. What a step of this
project's costs is recorded beside it. All of it takes minutes.
"""

import dataclasses
import itertools
import os
import time
import warnings
from importlib.metadata import version

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from benchmarks import command, in_turns, keep, product_rate, profile, scaled, spread
from lib import losses, models, paths, train
from lib.device import best_device
from studies import machine, runs

PEER = "pytorch-metric-learning"
USUAL, OURS = "usual", "this project"
D, LR = 128, 0.01
NAMES = {"mnist": "MNIST", "cifar10": "CIFAR-10"}
SHAPES = {"mnist": ([1, 32, 64], 28), "cifar10": ([3, 64, 128, 256], 32)}  # channels, side of an image
SIZES = {"mnist": 10240, "cifar10": 4096}  # images per epoch
ROUNDS = 5


def s1_network(channels: list[int], side: int, pool_first: bool = False) -> nn.Sequential:
    """S1's: 3x3 convolutions, each with ReLU and 2x2 pooling, then a linear layer with ReLU."""
    layers = []
    for width_in, width in itertools.pairwise(channels):
        steps = [nn.MaxPool2d(2), nn.ReLU()] if pool_first else [nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(width_in, width, 3, padding=1), *steps]
        side //= 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * side**2, D), nn.ReLU())


def dataset(name: str, data) -> torch.utils.data.Dataset:
    """torchvision's training images with the augmentation and normalisation of data."""
    crop = [transforms.RandomCrop(32, padding=data.crop_padding)] if data.crop_padding else []
    flip = [transforms.RandomHorizontalFlip()] if data.flip else []
    steps = [*crop, *flip, transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
    kind = {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10}[name]
    return kind(paths.PROJECT / "data", train=True, transform=transforms.Compose(steps))


def usual(name: str, data, batch: int, size: int, device: torch.device):
    """A function that trains one epoch of size images the usual way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        from pytorch_metric_learning.losses import ArcFaceLoss
    model, criterion = s1_network(*SHAPES[name]).to(device), ArcFaceLoss(len(data.classes), D).to(device)
    weights = [*model.parameters(), *criterion.parameters()]
    optimizer = torch.optim.SGD(weights, lr=LR, momentum=0.9, nesterov=True, weight_decay=5e-4)
    loader = DataLoader(
        Subset(dataset(name, data), range(size)), batch_size=batch, shuffle=True, drop_last=True,
        num_workers=min(4, os.cpu_count() or 1), persistent_workers=True, pin_memory=device.type == "cuda",
    )  # fmt: skip

    def epoch() -> float:
        start = time.perf_counter()
        for images, y in loader:
            optimizer.zero_grad()
            loss = criterion(model(images.to(device)), y.to(device))
            loss.backward()
            optimizer.step()
        loss.item()  # waits for the device
        return time.perf_counter() - start

    return epoch


def ours(name: str, data, batch: int, size: int, device: torch.device):
    """The same with this project's code."""
    if device.type == "cpu":
        machine.reuse_memory()
    model = models.Classifier(s1_network(*SHAPES[name], pool_first=True), losses.ArcFace(len(data.classes), D))
    part = dataclasses.replace(data, train=data.train[:size], val=data.val[:batch])

    def epoch() -> float:
        return train.fit(model, part, epochs=1, batch_size=batch, lr=LR, progress=False)["seconds"][0]

    return epoch


WAYS = {USUAL: usual, OURS: ours}


def one_epoch(way: str, name: str, batch: int, size: int):
    """A function that trains one epoch in this way and returns its seconds."""
    return WAYS[way](name, runs.load(name), batch, size, best_device())


def both_ways(name: str, batch: int, size: int, rounds: int) -> list[dict]:
    """Both ways on one data set with one batch size, epoch by epoch in turns: a row each."""
    trained = size // batch * batch  # without an incomplete last batch
    taken = in_turns({way: (one_epoch, way, name, batch, size) for way in WAYS}, rounds)
    rates = {way: trained / np.array(seconds) for way, seconds in taken.items()}
    flop, share = profile(one_epoch(OURS, name, batch, size), best_device())
    rows = [
        {
            "data": NAMES[name], "batch": batch, "method": way, "images_per_second": spread(rates[way]),
            "ratio": float(np.median(np.divide(rates[way], rates[USUAL]))),
        }
        for way in WAYS
    ]  # fmt: skip
    rows[-1] |= {"flop_per_image": flop / trained, "flop_per_second": product_rate(best_device()), "share": share}
    return rows


def main() -> None:
    rows = []
    cases = [(name, batch) for name in SHAPES for batch in (64, runs.RECIPES[name]["batch_size"])]
    for name, batch in scaled(cases, cases[::2]):
        rows += both_ways(name, batch, scaled(SIZES[name], batch), scaled(ROUNDS, 2))
    keep("throughput", rows, best_device(), **{PEER: version(PEER)})


if __name__ == "__main__":
    from benchmarks.throughput import main  # under its own name, so that other processes can unpickle its functions

    command(main, __doc__)
