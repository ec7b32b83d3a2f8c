"""Training: one loop for every head and data set."""

import math
import sys
import time

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from lib import metrics
from lib.data import Data, Split
from lib.device import autocast, grad_scaler, memory_format
from lib.models import Classifier
from lib.muon import ConvMuon


def fit(
    model: nn.Module,
    data: Data,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    margin_warmup: float = 1.0,
    low_res_epochs: int = 0,
    muon_lr: float = 0.0,
    linear_warmup: float = 0.0,
    seed: int = 0,
    progress: bool = True,
    name: object = "",
) -> dict[str, list]:
    """Train in place with one-cycle Nesterov SGD; returns the history, one value per epoch.

    model: a Classifier, also compiled or in DistributedDataParallel: what is called is model itself.
    margin_warmup: epochs over which the margins grow from zero. low_res_epochs: first epochs on images of 3/4 the side,
    at about half the cost. muon_lr: above 0, Muon trains the convolutions with it. linear_warmup: above 0, the learning
    rates rise linearly over that share of the steps, then fall so; at 0 both are half cosines, and the peak is at a
    quarter. seed: order and augmentation. The history holds loss (mean training loss, with margin and regulariser),
    train_accuracy (label-free, running mean over the epoch), val_accuracy, val_loss (cross-entropy of the label-free
    logits at their best temperature, so comparable between heads), seconds (training, and the head's ``epoch_end``;
    cumulative) and what the head's ``describe`` gives. Values are read once an epoch, for the device waits meanwhile,
    with a bar up to four more times; in fp16 each step reads two of the gradient scaler's. A loss that is not finite
    raises FloatingPointError at the end of its epoch, or ValueError for invalid labels or embeddings.
    """
    device, head = data.train.labels.device, classifier(model).head
    model.to(device)
    if isinstance(model, Classifier):  # DistributedDataParallel's first gradients are wrong if weights change layout
        model.to(memory_format=memory_format(device))
    generator, known = torch.Generator().manual_seed(seed), data.train[:10_000]
    steps = max(1, len(data.train) // batch_size)
    optimizers = build_optimizers(model, lr, momentum, weight_decay, muon_lr)
    schedules = [one_cycle(optimizer, epochs * steps, linear_warmup) for optimizer in optimizers]
    scaler = grad_scaler(device)
    history: dict[str, list] = {}
    seconds = 0.0
    bar = tqdm(total=epochs * steps, disable=hidden(progress), unit="step", ncols=100, file=sys.stdout, mininterval=1)
    for epoch in range(epochs):
        start = time.perf_counter()
        model.train()
        total = torch.zeros(2, device=device)  # of loss and accuracy
        for step, (images, y) in enumerate(data.epoch(batch_size, generator, epoch)):
            head.margin_scale = min(1.0, (epoch + step / steps) / margin_warmup) if margin_warmup else 1.0
            if epoch < low_res_epochs:
                images = F.interpolate(images, scale_factor=0.75, mode="bilinear", antialias=True)
            total += train_step(model, images, y, optimizers, scaler)
            for schedule in schedules:
                schedule.step()
            bar.update()
            if not bar.disable and not (step + 1) % max(50, steps // 4):
                update_bar(bar, *(total / (step + 1)).tolist(), epoch=epoch + 1)
        total[1] /= steps
        total_loss, accuracy = total.tolist()
        if not math.isfinite(total_loss):
            raise invalid(total_loss, epoch, model, name)
        head.epoch_end(lambda: (embed(model, data, known), known.labels))
        seconds += time.perf_counter() - start
        row = {"loss": total_loss / steps, "train_accuracy": accuracy, **validate(model, data), "seconds": seconds}
        row |= {key: values.tolist() for key, values in head.describe().items()}
        for key, value in row.items():
            history.setdefault(key, []).append(value)
        update_bar(bar, row["loss"], accuracy, val=f"{row['val_accuracy']:.2%}")
    bar.close()
    return history


def train_step(model: nn.Module, images: Tensor, y: Tensor, optimizers: list[Optimizer], scaler: GradScaler) -> Tensor:
    """One step on images (B, channels, H, W) with labels y (B,); returns the loss before it and the label-free
    accuracy of the same embeddings after it, (2,), on the device."""
    with autocast(images.device):
        loss, x = model(images, y)
    model.zero_grad()
    scaler.scale(loss).backward()
    for optimizer in optimizers:
        scaler.step(optimizer)  # optimizer.step(), in fp16 only if all gradients are finite
    scaler.update()
    with torch.no_grad():
        correct = classifier(model).head(x).argmax(1) == y
        return torch.stack([loss, correct.float().mean()])


def classifier(model: nn.Module) -> Classifier:
    """The Classifier in a module that may wrap it."""
    return next(module for module in model.modules() if isinstance(module, Classifier))


def build_optimizers(
    model: nn.Module, lr: float, momentum: float, weight_decay: float, muon_lr: float
) -> list[Optimizer]:
    """SGD for network and centres, where biases and normalisation do not decay; with muon_lr, Muon for convolutions."""
    weights = [p for p in model.parameters() if p.requires_grad]
    kernels = [p for p in weights if p.ndim == 4 and muon_lr]
    groups = [
        {"params": [p for p in weights if p.ndim > 1 and not (p.ndim == 4 and muon_lr)], "weight_decay": weight_decay},
        {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
    ]
    sgd = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)
    return [sgd, ConvMuon(kernels, lr=muon_lr, momentum=momentum)] if kernels else [sgd]


def one_cycle(optimizer: Optimizer, steps: int, linear_warmup: float) -> OneCycleLR:
    """The learning rates over all steps: from a 25th up to the optimizer's own, and down to almost nothing."""
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=max(5, steps),  # its peak at a quarter needs that many
        pct_start=linear_warmup or 0.25,
        anneal_strategy="linear" if linear_warmup else "cos",
        cycle_momentum=False,
    )


def invalid(loss: float, epoch: int, model: nn.Module, name: object) -> Exception:
    """Why the loss of an epoch is not finite."""
    head = classifier(model).head
    if problem := head.problem():
        return ValueError(f"in epoch {epoch + 1}: {problem}")
    return FloatingPointError(f"the loss became {loss} in epoch {epoch + 1}: lower lr, s or margin of {name or head}")


def hidden(progress: bool) -> bool:  # a bar is for a terminal or a notebook: in a log file it would be lines and lines
    return not (progress and (sys.stdout.isatty() or "ipykernel" in type(sys.stdout).__module__))


def update_bar(bar: tqdm, loss: float, accuracy: float, **others: object) -> None:
    bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{accuracy:.2%}", **others, refresh=False)


def validate(model: nn.Module, data: Data) -> dict[str, float]:
    logits, y = predict(model, data, data.val), data.val.labels.cpu()
    return {"val_accuracy": metrics.accuracy(logits, y), "val_loss": metrics.least_cross_entropy(logits, y)}


@torch.no_grad()
def embed(model: nn.Module, data: Data, split: Split, batch_size: int = 1000) -> Tensor:
    """Embeddings (N, d) of a split, in evaluation mode, float32 on the CPU.

    An embedding is the mean over the views of ``Data.views``: where training mirrors images, over the
    image and its mirror image, as is usual in face recognition.
    """
    model.eval()
    network, parts = classifier(model).network, []
    with autocast(data.train.labels.device):
        for images in split.images.split(batch_size):
            views = data.views(images)
            parts.append(sum(network(view).float() for view in views) / len(views))
    return torch.cat(parts).cpu()


@torch.no_grad()
def predict(model: nn.Module, data: Data, split: Split) -> Tensor:
    """Label-free logits (N, C) of a split, on the CPU."""
    x, head = embed(model, data, split), classifier(model).head
    return head(x.to(head.W.device)).cpu()
