"""Networks that map images to embeddings, and the module that joins one with a head."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lib.losses import Head


def conv(channels_in: int, channels_out: int, pool: nn.Module | None = None, smooth: bool = False) -> nn.Sequential:
    """3x3 convolution, batch normalisation, ReLU (smooth: GELU); pooling first, so that the rest has less to do."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        pool or nn.Identity(),
        nn.BatchNorm2d(channels_out),
        nn.GELU() if smooth else nn.ReLU(),
    )


def embedding(features: int, embedding_dim: int) -> nn.Sequential:
    """Linear layer and batch normalisation, no ReLU: that would press all embeddings into one orthant."""
    return nn.Sequential(nn.Linear(features, embedding_dim, bias=False), nn.BatchNorm1d(embedding_dim))


class SmallNet(nn.Module):
    """Three 3x3 convolutions with pooling, for MNIST and other small grey images (N, channels, H, W)."""

    def __init__(self, channels: int, embedding_dim: int):
        super().__init__()
        self.body = nn.Sequential(
            conv(channels, 32, nn.MaxPool2d(2)), conv(32, 64, nn.MaxPool2d(2)), conv(64, 128, nn.AdaptiveMaxPool2d(3))
        )
        self.embedding = embedding(128 * 9, embedding_dim)

    def forward(self, images: Tensor) -> Tensor:
        return self.embedding(self.body(images).flatten(1))


class AirNet(nn.Module):
    """The shape of cifar10-airbench94 (Jordan 2024, arXiv 2404.00498): a fixed 2x2 whitening
    convolution, then three blocks of two 3x3 convolutions, pooled 31 -> 15 -> 7 -> 3 -> 1.

    smooth: GELU in place of ReLU behind the 3x3 convolutions.
    """

    def __init__(self, channels: int, embedding_dim: int, widths: tuple = (64, 256, 256), smooth: bool = False):
        super().__init__()
        self.whiten = nn.Conv2d(channels, 8 * channels, 2)
        layers, width_in = [], 8 * channels
        for width in widths:
            layers += [conv(width_in, width, nn.MaxPool2d(2), smooth), conv(width, width, smooth=smooth)]
            width_in = width
        self.body = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1))
        for layer in self.body.modules():
            if isinstance(layer, nn.Conv2d):  # start by passing the input on, as airbench does
                nn.init.dirac_(layer.weight.data[: layer.in_channels])
        self.embedding = embedding(width_in, embedding_dim)

    @torch.no_grad()
    def prepare(self, images: Tensor, eps: float = 5e-4) -> None:
        """Set the first layer to the principal directions of 2x2 patches, scaled to unit variance.

        images: normalised (N, channels, H, W). The layer stays fixed: decorrelated inputs let the
        layers behind it learn from the first step.
        """
        patches = images.float().unfold(2, 2, 1).unfold(3, 2, 1)  # (N, channels, H-1, W-1, 2, 2)
        patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)  # (patches, channels * 4)
        variance, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (directions / (variance + eps).sqrt()).T.reshape(-1, *self.whiten.weight.shape[1:])
        self.whiten.weight.copy_(torch.cat([filters, -filters]))  # the sign is arbitrary, ReLU is not
        self.whiten.weight.requires_grad = False

    def forward(self, images: Tensor) -> Tensor:
        return self.embedding(self.body(self.whiten(images).relu()).flatten(1))


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "SmallNet": SmallNet,
    "AirNet": AirNet,
    "SmoothAirNet": functools.partial(AirNet, smooth=True),
    "NarrowAirNet": functools.partial(AirNet, widths=(32, 128, 128)),  # a third of the time
    "NarrowSmoothAirNet": functools.partial(AirNet, widths=(32, 128, 128), smooth=True),
    "TinyAirNet": functools.partial(AirNet, widths=(8, 16, 16)),  # for the smoke profile
}


class Classifier(nn.Module):
    """Network and head in one module, so that one optimizer and one checkpoint hold both."""

    def __init__(self, network: nn.Module, head: Head):
        super().__init__()
        self.network, self.head = network, head

    def forward(self, images: Tensor, y: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Images (B, channels, H, W) -> label-free logits (B, C); with labels y (B,) the training loss, with its
        margin, and the embeddings (B, d)."""
        x = self.network(images)
        return self.head(x) if y is None else (self.head.loss(x, y), x)


def network(name: str, images: Tensor, embedding_dim: int) -> nn.Module:
    """A network for images like these, normalised (N, channels, H, W): some thousand, from which AirNet takes its
    first layer. Raises ValueError for an unknown name."""
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}: choose one of {', '.join(NETWORKS)}")
    net = NETWORKS[name](images.shape[1], embedding_dim)
    if isinstance(net, AirNet):
        net.prepare(images)
    return net
