"""Training: one loop for every head and data set."""

import contextlib
import ctypes
import functools
import sys
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from lib import metrics
from lib.data import Data, Split
from lib.models import Classifier


def best_device() -> torch.device:
    """CUDA, else Apple's MPS, else the CPU."""
    for name in ("cuda", "mps"):
        if getattr(torch, name).is_available():
            return torch.device(name)
    return torch.device("cpu")


def has_bf16(device: torch.device) -> bool:
    """Does the hardware multiply bf16 matrices? Elsewhere emulation is slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and cpu().get("avx512_bf16", False)


def cpu() -> dict:
    """What PyTorch knows of the processor; older versions know nothing."""
    return getattr(torch.cpu, "get_capabilities", dict)()


def autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bf16(device))


@functools.cache
def reuse_memory() -> None:
    """Keep freed memory for the next tensors: to hand a large one back to the system and to ask for fresh pages
    costs a step on a CPU up to a third of its time. Does nothing where the C library is not glibc."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # macOS lacks mallopt, Windows the library None
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no tensor in a mapping of its own
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: nothing goes back
        mallopt(-2, 2**26)  # M_TOP_PAD: the heap grows by 64 MiB at a time


def fit(
    model: Classifier,
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

    margin_warmup: epochs over which the margins grow from zero. low_res_epochs: first epochs on
    images of 3/4 the side, at about half the cost. muon_lr: above 0, Muon trains the convolutions
    with it. linear_warmup: above 0, the learning rates rise linearly over that share of the steps and then
    fall linearly; at 0 both are half cosines, and the peak is at a quarter. seed: order and augmentation.
    The history holds loss (mean training loss, with margin and regulariser), train_accuracy (label-free, running
    mean over the epoch), val_accuracy, val_loss (cross-entropy of the label-free logits at their
    best temperature, so comparable between heads), seconds (training, and Triplet's ``renew``; cumulative)
    and, for a head that has them, margins (C,) at the end of the epoch, or AdaFace's quality (C,), the mean k of each
    class's samples in the epoch. Raises FloatingPointError at a non-finite loss.
    """
    device = data.train.labels.device
    if device.type == "cpu":
        reuse_memory()
    model.to(device, memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(seed)
    steps = max(1, len(data.train) // batch_size)
    optimizers, kernels = _optimizers(model, lr, momentum, weight_decay, muon_lr)
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=max(5, epochs * steps),  # its peak at a quarter needs that many
            pct_start=linear_warmup or 0.25,
            anneal_strategy="linear" if linear_warmup else "cos",
            cycle_momentum=False,
        )
        for optimizer in optimizers
    ]
    history: dict[str, list] = {}
    seconds = 0.0
    bar = tqdm(total=epochs * steps, disable=not progress, unit="step", ncols=100, file=sys.stdout, mininterval=0.5)
    for epoch in range(epochs):
        model.train()
        start = time.perf_counter()
        total_loss, correct = torch.zeros(2, device=device)
        quality, count = torch.zeros(2, len(data.classes), device=device)
        for step, (images, y) in enumerate(data.epoch(batch_size, generator, epoch)):
            model.head.w = min(1.0, (epoch + step / steps) / margin_warmup) if margin_warmup else 1.0
            if epoch < low_res_epochs:
                images = F.interpolate(images, scale_factor=0.75, mode="bilinear", antialias=True)
            with autocast(device):
                x = model.network(images)
                loss = model.head.loss(x, y)
            if not loss.isfinite():
                raise FloatingPointError(
                    f"the loss became {loss.item()} in epoch {epoch + 1}, step {step + 1}: "
                    f"lower lr, s or the margin of {name or model.head}"
                )
            model.zero_grad()
            loss.backward()
            for kernel, matrix in kernels.items():
                matrix.grad = _matrix(kernel.grad, kernel)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
            for matrix in kernels.values():
                matrix.data *= len(matrix) ** 0.5 / matrix.norm()
            with torch.no_grad():
                total_loss += loss
                correct += (model.head(x).argmax(1) == y).float().mean()
                if hasattr(model.head, "quality"):
                    quality.index_add_(0, y, model.head.quality(x.float().norm(dim=1)))
                    count += torch.bincount(y, minlength=len(count))
            bar.update()
            if bar.n % 10 == 0:
                bar.set_postfix(
                    epoch=epoch + 1,
                    loss=f"{total_loss / (step + 1):.3f}",
                    accuracy=f"{correct / (step + 1):.2%}",
                    refresh=False,
                )
        if hasattr(model.head, "renew"):
            known = data.train[:10_000]
            model.head.renew(embed(model, data, known), known.labels)
        loss = total_loss.item() / steps  # waits for the device
        seconds += time.perf_counter() - start
        logits = predict(model, data, data.val)
        val_labels = data.val.labels.cpu()
        row = {
            "loss": loss,
            "train_accuracy": (correct / steps).item(),
            "val_accuracy": metrics.accuracy(logits, val_labels),
            "val_loss": metrics.cross_entropy(logits, val_labels, metrics.temperature(logits, val_labels)),
            "seconds": seconds,
        }
        if hasattr(model.head, "margins"):
            row["margins"] = model.head.margins.tolist()
        if hasattr(model.head, "quality"):
            row["quality"] = (quality / count.clamp_min(1)).tolist()
        for key, value in row.items():
            history.setdefault(key, []).append(value)
        bar.set_postfix(
            loss=f"{row['loss']:.3f}", accuracy=f"{row['train_accuracy']:.2%}", val=f"{row['val_accuracy']:.2%}"
        )
    bar.close()
    return history


def _optimizers(model: Classifier, lr: float, momentum: float, weight_decay: float, muon_lr: float):
    """SGD for network and centres, where biases and normalisation do not decay; with muon_lr, Muon
    for the convolutions. Returns the optimizers and the matrices through which Muon sees the kernels.

    Muon (Jordan et al. 2024) makes each step of a matrix orthogonal, so that no direction dominates.
    Batch normalisation makes the length of a kernel irrelevant: it is held fixed, and muon_lr is
    the relative length of a step.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    kernels = {p: nn.Parameter(_matrix(p.data, p)) for p in weights if p.ndim == 4 and muon_lr}
    assert all(p.data_ptr() == matrix.data_ptr() for p, matrix in kernels.items())  # what Muon moves is the kernel
    groups = [
        {"params": [p for p in weights if p.ndim > 1 and p not in kernels], "weight_decay": weight_decay},
        {"params": [p for p in weights if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizers = [torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)]
    if kernels:
        optimizers.append(torch.optim.Muon(kernels.values(), lr=muon_lr, momentum=momentum, weight_decay=0.0))
    return optimizers, kernels


def _matrix(tensor: Tensor, kernel: Tensor) -> Tensor:
    """A kernel or its gradient (out, in, 3, 3) as a matrix (out, 9 in), its columns in the kernel's memory order."""
    order = (0, 1, 2, 3) if kernel.is_contiguous() else (0, 2, 3, 1)
    return tensor.permute(order).reshape(len(tensor), -1)


@torch.no_grad()
def embed(model: Classifier, data: Data, split: Split, batch_size: int = 1000) -> Tensor:
    """Embeddings (N, d) of a split, in evaluation mode, float32 on the CPU.

    An embedding is the mean over the views of ``Data.views``: where training mirrors images, over the
    image and its mirror image, as is usual in face recognition.
    """
    model.eval()
    parts = []
    with autocast(data.train.labels.device):
        for images in split.images.split(batch_size):
            views = data.views(images)
            parts.append(sum(model.network(view).float() for view in views) / len(views))
    return torch.cat(parts).cpu()


@torch.no_grad()
def predict(model: Classifier, data: Data, split: Split) -> Tensor:
    """Label-free logits (N, C) of a split, on the CPU."""
    x = embed(model, data, split)
    return model.head(x.to(model.head.W.device)).cpu()
