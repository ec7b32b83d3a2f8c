"""Replicas: the protocols of S3 and S5 rebuilt from their facts; that of S1 has a module of its own, ``studies.s1``.

These are records of what was done, not examples to follow: for those see lib.losses and lib.train. What a source leaves
open is chosen in ``s3`` and ``s5``, which say so. Two things differ from the originals in speed only: the images lie on
the device and are taken by index, and the convolutions run in bf16 where the hardware has it; everything behind them is
fp32, as published.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import sys
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm

from lib import data as datasets
from lib import device, metrics
from lib.train import hidden
from studies import checked, records, runs, smoke, study
from studies.study import Incomplete, Study

# widths of the 3x3 convolutions; which of them a 2x2 max-pooling follows; and what else is not the default
NETWORKS = {
    "S3": {"widths": (64, 256, 64), "pooled": (0, 1, 2), "batch_norm": True},
    "S3, stride 2": {"widths": (64, 256, 64), "stride": 2, "batch_norm": True},
    "S5": {"widths": (16, 32, 64, 64), "stride": 2},
}
LOSSES = ("Softmax", "ArcFace", "Triplet")


@dataclass(frozen=True)
class Replica:
    """Everything that decides the result of a run.

    loss: Softmax, ArcFace (m in radians, and m3 for S5's combined loss: cos(theta + m) - m3) or Triplet. w_std:
    deviation of the initial class centres. train_size: 0 for all images. imbalance: class c of C keeps
    imbalance^(-c/(C-1)) of them. evaluated: the split that is read. one_cycle: the schedule of ``as_fastai``, whose
    highest rate is lr, in place of the optimizer at a constant rate.
    """

    source: str
    data: str
    loss: str
    network: str
    s: float = 1.0
    m: float = 0.0
    m3: float = 0.0
    embedding_dim: int = 64
    optimizer: str = "Adam"
    lr: float = 1e-3
    batch_size: int = 128
    epochs: int = 10
    w_std: float = 0.1
    train_size: int = 0
    imbalance: float = 1.0
    evaluated: str = "test"
    seed: int = 0
    one_cycle: bool = False  # a field with a default: records made before it are those of the same runs

    def __post_init__(self):
        """Raises ValueError for what no run could be made with."""
        limits = {
            "s": (1e-3, 10**6), "m": (0, 2 if self.loss == "Triplet" else math.pi), "m3": (0, 2),
            "w_std": (1e-9, 1000), "imbalance": (1, 10**6), "batch_size": (2, 10**7),
        }  # fmt: skip
        known = {
            "source": ("S3", "S5"), "data": runs.IMAGES, "loss": LOSSES, "network": NETWORKS,
            "optimizer": ("Adam", "SGD"), "evaluated": ("val", "test"),
        }  # fmt: skip
        checked.settle(self, runs.RANGES | limits, known)


def s3(data: str, loss: str, epochs: int, seed: int, lr: float, **changes) -> Replica:
    """S3's network under SGD with momentum, batches of 100, with Softmax, ArcFace or Triplet.

    Open in the source, chosen here: 3x3 kernels, 2x2 max-pooling behind each convolution, latent
    dimension 64, momentum 0.9, the s = 16 of ``losses.ArcFace``, a triplet margin of 0.2 with
    batch-hard mining, the number of epochs; a constant learning rate and ArcFace's m from ``search``.
    """
    defaults = {"Softmax": (1.0, 0.0), "ArcFace": (16.0, 0.3), "Triplet": (1.0, 0.2)}
    checked.choose("loss", loss, defaults)
    s, m = defaults[loss]
    run = Replica("S3", data, loss, "S3", s, m, 0.0, 64, "SGD", lr, 100, epochs, seed=seed)
    return dataclasses.replace(run, **changes)


def search() -> dict[str, Replica]:
    """S3's learning rates, three values, and ArcFace's margins, two: two epochs on 10,000 images, read on the
    validation split, for that is where S3 chose what it does not name."""
    margins = {"Softmax": (0.0,), "ArcFace": (0.1, 0.3), "Triplet": (0.2,)}
    return {
        f"{data} {loss} {lr} {m}": s3(data, loss, 2, 0, lr, m=m, train_size=10_000, evaluated="val")
        for data in ("mnist", "cifar10")
        for loss in margins
        for lr, m in itertools.product((0.01, 0.03, 0.1), margins[loss])
    }


def s3_group(data: str, epochs: int, seed: int, found: dict | None = None) -> dict[str, Replica]:
    """S3's three losses, and two of them on a long tail, at what ``search`` found best; found: its records, by default
    those of the file. Raises Incomplete without them."""
    arms, found = {}, REPLICAS["s3_search"].read() if found is None else found
    for loss in LOSSES:
        trials = [run for run in REPLICAS["s3_search"].planned() if (run.data, run.loss) == (data, loss)]
        if not all(run in found for run in trials):
            raise Incomplete("replicas.jsonl lacks S3's search: run `python -m studies s3_search`")
        best = max(trials, key=lambda run: found[run]["metrics"]["val_accuracy"])
        arms[loss] = s3(data, loss, epochs, seed, best.lr, m=best.m)
    tail = {f"{loss}, long tail": dataclasses.replace(arms[loss], imbalance=100.0) for loss in ("Softmax", "ArcFace")}
    return arms | tail


def s5(loss: str, epochs: int, seed: int, m: float = 0.5, m3: float = 0.0, embedding_dim: int = 64) -> Replica:
    """S5's four-layer CNN on MNIST with Softmax or ArcFace.

    Open in the source, chosen here: widths, stride 2, pixels in [-1, 1], Adam at 1e-3, batches of 128, s = 64
    as in the paper that S5 follows, 64 dimensions for its "larger embeddings".
    """
    s, m = (1.0, 0.0) if loss == "Softmax" else (64.0, m)
    return Replica("S5", "mnist", loss, "S5", s, m, m3, embedding_dim, batch_size=128, epochs=epochs, seed=seed)


def s5_group(epochs: int, seed: int) -> dict[str, Replica]:
    """Softmax and ArcFace in 64 and, for ten epochs, in 3 dimensions."""
    losses = "Softmax", "ArcFace"
    flat = {f"{loss}, 3-D": s5(loss, 10, seed, embedding_dim=3) for loss in losses}
    return {loss: s5(loss, epochs, seed) for loss in losses} | flat


def s5_trainers(epochs: int, seed: int) -> dict[str, Replica]:
    """Softmax and ArcFace by hand, as in ``s5_group``, and both under ``as_fastai``, at the same highest rate.

    S5 compared "Softmax, one-cycle" with "ArcFace": its softmax was trained by fastai, its ArcFace by hand.
    """
    hand = {loss: s5(loss, epochs, seed) for loss in ("Softmax", "ArcFace")}
    return hand | {f"{loss}, one-cycle": dataclasses.replace(run, one_cycle=True) for loss, run in hand.items()}


def s5_margins(epochs: int, seed: int) -> dict[tuple[float, float], Replica]:
    """S5's twenty values of m and twenty pairs (m2, m3), by (m2, m3)."""
    margins = [(i / 100, 0.0) for i in range(40, 60)]
    margins += [(i / 100, j / 100) for i in range(40, 45) for j in (20, 25, 30, 35)]
    return {pair: s5("ArcFace", epochs, seed, *pair) for pair in margins}


# ---------------------------------------------------------------- network and loss


class Model(nn.Module):
    """Convolutions, embedding layer, class centres W (C, d) and the bias b (C,) that only Softmax uses."""

    def __init__(self, run: Replica, shape, num_classes: int):
        super().__init__()
        self.body, self.embedding = network(shape, run.embedding_dim, **NETWORKS[run.network])
        self.W = nn.Parameter(run.w_std * torch.randn(num_classes, run.embedding_dim))
        self.b = nn.Parameter(torch.zeros(num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, channels, H, W) -> embeddings (B, d); only the convolutions run in bf16."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=device.has_bf16(images.device)):
            features = self.body(images)
        return self.embedding(features.float().flatten(1))


def network(shape, d: int, widths, pooled=(), stride=1, batch_norm=False):
    """Convolutions and embedding layer of ``NETWORKS`` for images of this shape (channels, H, W)."""
    layers, width_in = [], shape[0]
    for i, width in enumerate(widths):
        layers += [nn.Conv2d(width_in, width, 3, stride=stride, padding=1)] + [nn.BatchNorm2d(width)] * batch_norm
        layers += [nn.MaxPool2d(2)] * (i in pooled) + [nn.ReLU()]
        width_in = width
    body = nn.Sequential(*layers).eval()
    return body, nn.Linear(body(torch.zeros(1, *shape)).numel(), d)


def logits(run: Replica, model: Model, x: Tensor, y: Tensor | None = None) -> Tensor:
    """Logits (B, C) of embeddings x (B, d); with labels y (B,) ArcFace's margin is on the target's."""
    if run.loss == "Softmax":
        return F.linear(x, model.W, model.b)
    cos = F.linear(F.normalize(x), F.normalize(model.W)).clamp(-1, 1)
    if y is not None:
        cos = cos.scatter(1, y[:, None], target(run, cos.gather(1, y[:, None])))
    return run.s * cos


def target(run: Replica, cos_y: Tensor) -> Tensor:
    """The target's cosine (B, 1) with its margin, by the plain formula, which rises again beyond pi."""
    return (cos_y.clamp(-1 + 1e-7, 1 - 1e-7).acos() + run.m).cos() - run.m3


def criterion(run: Replica, model: Model):
    """The training loss as a function of embeddings x (B, d) and labels y (B,)."""
    if run.loss != "Triplet":
        return lambda x, y: F.cross_entropy(logits(run, model, x, y), y)
    from pytorch_metric_learning.losses import TripletMarginLoss  # takes a second, and nothing else needs it
    from pytorch_metric_learning.miners import BatchHardMiner

    loss, miner = TripletMarginLoss(margin=run.m), BatchHardMiner()
    return lambda x, y: loss(x, y, miner(x, y))


# ---------------------------------------------------------------- one run


def splits(run: Replica) -> tuple[datasets.Data, datasets.Split, datasets.Split]:
    """Data, training and test images. The sources have no validation split, so ours joins the training."""
    data = runs.load(run.data)
    part, evaluated = data.train, data.splits()[run.evaluated]
    if run.train_size:
        part = part[: run.train_size]
    elif run.evaluated == "test":
        part = datasets.Split(torch.cat([part.images, data.val.images]), torch.cat([part.labels, data.val.labels]))
    if run.imbalance > 1:
        C, kept = len(data.classes), []
        for c in range(C):
            rows = (part.labels == c).nonzero()[:, 0]
            kept.append(rows[: max(1, int(len(rows) * run.imbalance ** (-c / (C - 1))))])
        part = part[torch.cat(kept)]
    return data, part, evaluated


def pixels(run: Replica, data: datasets.Data, images: Tensor) -> Tensor:
    """uint8 images as numbers: for S3 by mean and deviation, as it says, for S5 in [-1, 1]."""
    if run.source == "S3":
        return data.normalise(images)
    return (images / 127.5 - 1).contiguous(memory_format=device.memory_format(images.device))


def distorted(images: Tensor) -> Tensor:
    """uint8 images turned by 15 degrees and under normal noise of a tenth of the range, equal in all runs."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images.device)
    return (TF.rotate(images, 15) + 25.5 * noise).round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def embed(run: Replica, model: Model, data: datasets.Data, images: Tensor) -> Tensor:
    """Embeddings (N, d) of uint8 images in evaluation mode, zeros where a run has diverged."""
    model.eval()
    return torch.cat([model(pixels(run, data, batch)) for batch in images.split(1000)]).nan_to_num()


@torch.no_grad()
def accuracy(run: Replica, model: Model, x: Tensor, y: Tensor) -> float:
    """Share of embeddings x (N, d) put into their class y (N,), label-free."""
    return metrics.accuracy(logits(run, model, x).cpu(), y.cpu())


def trainer(run: Replica, model: Model, steps: int) -> tuple:
    """Optimizer of a run of so many steps, and its schedule, None for a constant rate."""
    if run.one_cycle:
        return as_fastai(model, run.lr, steps)
    sgd = functools.partial(torch.optim.SGD, momentum=0.9)
    return {"Adam": torch.optim.Adam, "SGD": sgd}[run.optimizer](model.parameters(), lr=run.lr, fused=True), None


def as_fastai(model: nn.Module, highest: float, steps: int) -> tuple:
    """Optimizer and schedule as fastai trains by default (``Learner`` and ``fit_one_cycle`` of its version 2).

    The rate goes up for a quarter of the steps, from highest / 25, then down to highest / 100,000; Adam's first beta
    goes the opposite way, 0.95 to 0.85 and back; both along half cosines (Smith 2018, arXiv:1803.09820). Adam's second
    beta is 0.99, its epsilon 1e-5; weights, but no biases, decay by 0.01 times the rate. Source: fit_one_cycle in
    fastai/callback/schedule.py, Adam in fastai/optimizer.py, moms and wd_bn_bias in fastai/learner.py
    (https://docs.fast.ai/callback.schedule.html).
    """
    weights, biases = ([p for p in model.parameters() if (p.ndim > 1) is large] for large in (True, False))
    groups = [{"params": weights, "weight_decay": 0.01}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=highest, betas=(0.95, 0.99), eps=1e-5, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, highest, total_steps=steps, pct_start=0.25, div_factor=25, final_div_factor=100_000 / 25,
        base_momentum=0.85, max_momentum=0.95,
    )  # fmt: skip
    return optimizer, schedule


def execute(run: Replica, progress: bool = False) -> tuple[Model, dict]:
    """Train one run; returns the model and its record. Nothing is written.

    The history holds, per epoch, loss, test_accuracy (label-free) and seconds (training only). A run that diverges is
    recorded as it is. The metrics are those of ``measure``. Of a run that is read on validation images, a trial,
    nothing is recorded but val_accuracy.
    """
    data, part, evaluated = splits(run)
    on, y = part.labels.device, evaluated.labels
    torch.manual_seed(run.seed)
    model = Model(run, part.images.shape[1:], len(data.classes)).to(on, memory_format=device.memory_format(on))
    loss_of, generator = criterion(run, model), torch.Generator().manual_seed(run.seed)
    optimizer, schedule = trainer(run, model, run.epochs * math.ceil(len(part) / run.batch_size))
    read = f"{run.evaluated}_accuracy"
    history = {"loss": [], read: [], "seconds": []}
    seconds = 0.0
    for _ in tqdm(range(run.epochs), disable=hidden(progress), unit="epoch", ncols=100, file=sys.stdout):
        start, total = time.perf_counter(), torch.zeros((), device=on)
        model.train()
        order = torch.randperm(len(part), generator=generator).to(on)
        for index in order.split(run.batch_size):
            batch = part[index]
            images = data.augment(batch.images, generator) if run.source == "S3" else batch.images
            loss = loss_of(model(pixels(run, data, images)), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if schedule:
                schedule.step()
            total += loss.detach() * len(index)
        history["loss"].append(total.item() / len(part))  # .item() waits for the device, so it comes first
        history["seconds"].append(seconds := seconds + time.perf_counter() - start)
        if run.loss == "Triplet":  # it has no class centres: the nearest mean of training embeddings decides
            known, labels = F.normalize(embed(run, model, data, part.images[:10_000])), part.labels[:10_000]
            model.W.data = torch.zeros_like(model.W).index_add_(0, labels, known)
        x = embed(run, model, data, evaluated.images)
        history[read].append(accuracy(run, model, x, y))
    measured = {read: history[read][-1]}
    if run.evaluated == "test":
        measured |= records.attempt(lambda: measure(run, model, data, part, evaluated, x))
    record = records.record(run, measured, history, on, seconds)
    record["dtype"] = "bf16 convolutions, fp32 behind them" if device.has_bf16(on) else "fp32"
    return model, record


@torch.no_grad()
def measure(run: Replica, model: Model, data: datasets.Data, part, evaluated, x: Tensor) -> dict:
    """Metrics of a trained model from its test embeddings x, those of ``runs.evaluate`` but for what takes validation
    images, of which a final run has none; accuracies are label-free."""
    y, free = evaluated.labels.cpu(), logits(run, model, x).nan_to_num().cpu()
    known = embed(run, model, data, part.images[:10_000])
    measured = runs.evaluate(free, y, x.cpu(), free, y)
    for name in ("val_accuracy", "temperature", "test_loss", "ece"):  # a temperature fitted on test images is none
        del measured[name]
    measured["train_accuracy"] = accuracy(run, model, known, part.labels[:10_000])
    if run.source == "S3":
        moved = embed(run, model, data, distorted(evaluated.images))
        measured["distorted_accuracy"] = accuracy(run, model, moved, evaluated.labels)
    return measured


# ---------------------------------------------------------------- all runs


# per plan: its question; the runs of one seed, by name, from (epochs, seed); the epochs as published, or chosen where
# the source leaves them open, then fewer for a CPU, then what shorter runs may be recorded; the number of seeds
PLANS = {
    "s5": ("S5's softmax and ArcFace", s5_group, (100, 30), 5),
    "s5_one_cycle": ("S5's softmax and ArcFace, each by hand and as fastai trains", s5_trainers, (100, 30), 5),
    "s5_grid": ("S5's table of margins", s5_margins, (20, 10), 3),
    "s3_search": ("S3's learning rates and margins, on validation images", lambda epochs, seed: search(), (2,), 1),
    # five epochs pass its accuracies
    "s3_mnist": ("S3's three losses on MNIST", functools.partial(s3_group, "mnist"), (5,), 3),
    "s3_cifar10": ("S3's three losses on CIFAR-10", functools.partial(s3_group, "cifar10"), (30, 10), 3),
}
SEARCHED = ("s3_mnist", "s3_cifar10")  # plans that rest on the records of s3_search


def named_runs(name: str, epochs: int, seed: int, found: dict | None = None) -> dict:
    """The runs of a plan with one seed, by name; found: as in ``s3_group``."""
    make = PLANS[name][1]
    return make(epochs, seed, found) if name in SEARCHED else make(epochs, seed)


def replica_runs(name: str, full: bool = False) -> list[Replica]:
    """The runs of a plan, seeds in the outer loop; full: with the published numbers of epochs."""
    *_, lengths, seeds = PLANS[name]
    return [run for seed in range(seeds) for run in named_runs(name, lengths[:2][0 if full else -1], seed).values()]


REPLICAS = {
    name: Study(
        name, question, Replica, functools.partial(replica_runs, name), execute, file="replicas",
        needs="s3_search" if name in SEARCHED else "",
    )
    for name, (question, *_) in PLANS.items()
}  # fmt: skip
STUDIES = list(REPLICAS.values())


def read() -> dict[Replica, dict]:
    """All records."""
    return records.read(STUDIES[0].path, Replica)


def recorded() -> dict[Replica, dict]:
    """All records; in the smoke profile and with RETRAIN=1 the plans are trained first. Raises Incomplete if there
    are none."""
    return study.recorded(STUDIES)


def complete(name: str, found: dict) -> tuple[int, dict[int, dict]]:
    """The number of epochs with which a plan is recorded and, by seed, its records by name.

    Only seeds with all runs count; of several numbers of epochs, the largest with two seeds at least.
    Raises Incomplete if there is no seed.
    """
    lengths = PLANS[name][2]
    whole = {epochs: {} for epochs in lengths}
    for epochs, seed in itertools.product(lengths, range(10)):
        arms = {key: smoke.shrink(run) for key, run in named_runs(name, epochs, seed, found).items()}
        if all(run in found and run.seed == seed for run in arms.values()):
            whole[epochs][seed] = {key: found[run] for key, run in arms.items()}
    epochs = max(lengths, key=lambda epochs: (min(len(whole[epochs]), 2), epochs))
    if not whole[epochs]:
        raise Incomplete(f"replicas.jsonl lacks runs of {name}: `python -m studies {name}` trains them")
    return epochs, whole[epochs]


def answered(found: dict) -> dict[str, tuple[int, dict[int, dict]]]:
    """``complete`` of every plan that has a seed with all its runs, by plan."""
    plans = {}
    for name in PLANS:
        with contextlib.suppress(Incomplete):
            plans[name] = complete(name, found)
    return plans
