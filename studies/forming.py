"""How embeddings form: the same images, embedded again and again while a network of two or three dimensions learns."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from lib import heads, models, train
from lib.data import Data, Split
from lib.device import grad_scaler


@dataclass
class Course:
    """Embeddings x (moments, N, d) of images with labels y (N,) after these steps, centres W (moments, C, d), and the
    label-free accuracy (moments,) on these images; of the loss head."""

    head: str
    steps: list[int]
    x: Tensor
    W: Tensor
    y: Tensor
    accuracy: Tensor


def smaller(data: Data) -> Data:
    """Data with images of half the side, which cost a quarter."""

    def halved(split: Split) -> Split:
        return Split(F.avg_pool2d(split.images.float(), 2).round().to(torch.uint8), split.labels)

    return replace(data, **{name: halved(split) for name, split in data.splits().items()})


def course(
    data: Data, head: str, dim: int, moments: list[int], images: int = 300, seed: int = 0, **constants: float
) -> Course:
    """Train a small network with embeddings of dim dimensions, and embed the first validation images after each of
    these numbers of steps, of which the last is the length of the training; 0 is the network as it starts.

    One batch has 128 images; the margin grows over the first quarter. Equal seeds start all heads with equal weights.
    """
    steps, batch = moments[-1], 128
    torch.manual_seed(seed)
    network = models.network("SmallNet", data.sample(), dim)
    device = data.train.labels.device
    model = models.Classifier(network, heads.make(head, len(data.classes), dim, **constants)).to(device)
    optimizers = train.build_optimizers(model, lr=0.1, momentum=0.9, weight_decay=5e-4, muon_lr=0.0)
    schedules = [train.one_cycle(optimizer, steps, linear_warmup=0.0) for optimizer in optimizers]
    scaler = grad_scaler(device)
    generator = torch.Generator().manual_seed(seed)
    watched, seen = data.val[:images], []
    batches: list = []
    for step in range(steps + 1):
        if step in moments:
            x, W = train.embed(model, data, watched), model.head.W.detach().cpu().clone()
            correct = train.predict(model, data, watched).argmax(1) == watched.labels.cpu()
            seen.append((x, W, correct.float().mean()))
            model.train()
        if step == steps:
            break
        batches = batches or list(data.epoch(batch, generator))
        model.head.margin_scale = min(1.0, 4 * step / steps)
        train.train_step(model, *batches.pop(), optimizers, scaler)
        for schedule in schedules:
            schedule.step()
    x, W, accuracy = (torch.stack(values) for values in zip(*seen, strict=True))
    return Course(head, list(moments), x, W, watched.labels.cpu(), accuracy)
