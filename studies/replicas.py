"""Replicas: the protocols of S1, S3 and S5 rebuilt from their facts, defects included.

These are records of what was done, not examples to follow: for those see lib.losses and lib.train. A comment
"S1, defect n" marks each defect where it stands. What a source leaves open is chosen in ``s1``, ``s3`` and ``s5``,
which say so. Two things differ from the originals in speed only: the images lie on the device and are taken by index,
and the convolutions run in bf16 where the hardware has it; everything behind them is fp32, as published.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import sys
import time
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm

from lib import data as datasets
from lib import device, metrics
from lib.train import hidden
from studies import checked, records, runs, smoke, study
from studies import s1 as s1_study
from studies.study import Incomplete, Study

# widths of the 3x3 convolutions; which of them a 2x2 max-pooling follows; and what else is not the default
NETWORKS = {
    "S1 ArcFace MNIST": {"widths": (32, 64), "pooled": (0, 1), "relu": True},
    "S1 ArcFace CIFAR-10": {"widths": (64, 128, 256), "pooled": (0, 1, 2), "relu": True},
    "S1 AdaLoss": {"widths": (32, 64), "pooled": (1,), "hidden": 256},
    "S3": {"widths": (64, 256, 64), "pooled": (0, 1, 2), "batch_norm": True},
    "S5": {"widths": (16, 32, 64, 64), "stride": 2},
}


LOSSES = ("Softmax", "ArcFace", "AdaLoss", "Triplet")


@dataclass(frozen=True)
class Replica:
    """Everything that decides the result of a run; dot_product to unit_norms are S1's defects, present where True.

    loss: Softmax, ArcFace (m in radians, and m3 for S5's combined loss: cos(theta + m) - m3), AdaLoss
    (S1's) or Triplet. w_std: deviation of the initial class centres. train_size: 0 for all images.
    imbalance: class c of C keeps imbalance^(-c/(C-1)) of them. evaluated: the split that is read.
    """

    source: str
    data: str
    loss: str
    network: str
    s: float = 1.0
    m: float = 0.0
    m3: float = 0.0
    embedding_dim: int = 128
    optimizer: str = "Adam"
    lr: float = 1e-3
    batch_size: int = 64
    epochs: int = 10
    w_std: float = 0.1
    train_size: int = 0
    imbalance: float = 1.0
    evaluated: str = "test"
    fp32: bool = False
    seed: int = 0
    dot_product: bool = False  # defect 1: a clamped dot product in place of the cosine
    cosine_margin: bool = False  # defect 2: CosFace's margin under ArcFace's name
    frozen_centres: bool = False  # defect 3: class centres outside the optimizer
    unit_norms: bool = False  # defect 5: norms taken after normalising
    margin_warmup: float = 0.0  # epochs in which the margin grows from 0 to m; no source has it

    def __post_init__(self):
        """Raises ValueError for what no run could be made with."""
        limits = {"s": s1_study.SCALES, "w_std": (1e-9, 1000), "imbalance": (1, 10**6), "batch_size": (2, 10**7)}
        known = {
            "source": ("S1", "S3", "S5"), "data": runs.IMAGES, "loss": LOSSES, "network": NETWORKS,
            "optimizer": ("Adam", "SGD"), "evaluated": ("val", "test"),
        }  # fmt: skip
        checked.settle(self, runs.RANGES | limits, known)
        s1_study.check_margin("m", self.m, self.loss == "Triplet" or self.cosine_margin)
        s1_study.check_margin("m3", self.m3, True)


def s1(data: str, loss: str, epochs: int, seed: int, **changes) -> Replica:
    """An arm of S1 as published, ArcFace or AdaLoss.

    Open in the source, chosen here: the class centres start normal with deviation 0.01 (see ``centres``).
    """
    if loss == "ArcFace":  # S1, defect 6: the arms differ in network, scale and, on CIFAR-10, learning rate
        name, s, lr = ("CIFAR-10", 10.0, 1e-4) if data == "cifar10" else ("MNIST", 30.0, 1e-3)
        run = Replica("S1", data, loss, f"S1 ArcFace {name}", s, 0.5, lr=lr, dot_product=True, cosine_margin=True)
    else:  # S1, defect 7: its report describes another algorithm, a margin that follows the difficulty of a class
        run = Replica("S1", data, loss, "S1 AdaLoss", 64.0, 0.4, unit_norms=True)
    changes = {"frozen_centres": True, "w_std": 0.01, "epochs": epochs, "seed": seed} | changes
    return dataclasses.replace(run, **changes)


def waterfall(data: str, epochs: int, seed: int) -> dict[str, Replica]:
    """S1's arms with one defect after the other taken away, cumulatively: "ArcFace: as published" and so on.

    The second step, a label-free evaluation, is another reading of the runs of the first. A change that
    an arm does not need leaves it as it was. The growing margin is no defect of S1's, whose margin is on
    the cosine: a training that starts with the full margin on the angle can stay at chance (notebook 02).
    """
    arms = {loss: s1(data, loss, epochs, seed) for loss in ("ArcFace", "AdaLoss")}
    changes = {
        "as published": {},
        "centres trained": {"frozen_centres": False},
        "normalised": {"dot_product": False},
        "angular margin": {"cosine_margin": False},
        "margin grows from 0": {"margin_warmup": 1.0},
        "same network and rate": {"network": arms["ArcFace"].network, "lr": arms["ArcFace"].lr},
        "norms before normalising": {"unit_norms": False},
        "scale 16": {"s": 16.0},
    }
    steps = {}
    for step, change in changes.items():
        arms = {loss: dataclasses.replace(arm, **change) for loss, arm in arms.items()}
        steps |= {f"{loss}: {step}": arm for loss, arm in arms.items()}
    return steps


def published(data: str, epochs: int, seed: int) -> dict[str, Replica]:
    """The first step of ``waterfall``."""
    return {name: run for name, run in waterfall(data, epochs, seed).items() if name.endswith("as published")}


def centres(epochs: int, seed: int) -> dict[float, Replica]:
    """S1's ArcFace arm on MNIST by the deviation of its initial class centres."""
    return {w: s1("mnist", "ArcFace", epochs, seed, w_std=w) for w in (0.001, 0.01, 0.1)}


def cosface(data: str, epochs: int, seed: int) -> dict[str, Replica]:
    """S1's AdaLoss arm, and the same with its quality factor set to 0: CosFace at m = 0.4, frozen centres."""
    adaloss = s1(data, "AdaLoss", epochs, seed)
    fixed = dataclasses.replace(adaloss, loss="ArcFace", cosine_margin=True, unit_norms=False)
    return {"AdaLoss": adaloss, "CosFace": fixed}


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
    for loss in ("Softmax", "ArcFace", "Triplet"):
        trials = [smoke.shrink(run) for run in search().values() if (run.data, run.loss) == (data, loss)]
        if not all(run in found for run in trials):
            raise Incomplete("replicas.jsonl lacks S3's search: run `python -m studies s3_search`")
        best = max(trials, key=lambda run: found[run]["metrics"]["test_accuracy"])
        arms[loss] = s3(data, loss, epochs, seed, best.lr, m=best.m)
    tail = {f"{loss}, long tail": dataclasses.replace(arms[loss], imbalance=100.0) for loss in ("Softmax", "ArcFace")}
    return arms | tail


def s5(loss: str, epochs: int, seed: int, m: float = 0.5, m3: float = 0.0, embedding_dim: int = 64) -> Replica:
    """S5's four-layer CNN on MNIST with Softmax or ArcFace.

    Open in the source, chosen here: widths, stride 2, S1's pixels, Adam at 1e-3, batches of 128, s = 64
    as in the paper that S5 follows, 64 dimensions for its "larger embeddings".
    """
    s, m = (1.0, 0.0) if loss == "Softmax" else (64.0, m)
    return Replica("S5", "mnist", loss, "S5", s, m, m3, embedding_dim, batch_size=128, epochs=epochs, seed=seed)


def s5_group(epochs: int, seed: int) -> dict[str, Replica]:
    """Softmax and ArcFace in 64 and, for ten epochs, in 3 dimensions."""
    losses = "Softmax", "ArcFace"
    flat = {f"{loss}, 3-D": s5(loss, 10, seed, embedding_dim=3) for loss in losses}
    return {loss: s5(loss, epochs, seed) for loss in losses} | flat


def s5_grid(epochs: int, seed: int) -> dict[tuple[float, float], Replica]:
    """S5's twenty values of m and twenty pairs (m2, m3), by (m2, m3)."""
    margins = [(i / 100, 0.0) for i in range(40, 60)]
    margins += [(i / 100, j / 100) for i in range(40, 45) for j in (20, 25, 30, 35)]
    return {pair: s5("ArcFace", epochs, seed, *pair) for pair in margins}


# ---------------------------------------------------------------- network and loss


class Model(nn.Module):
    """Convolutions, embedding layer, class centres W (C, d) and the bias b (C,) that only Softmax uses."""

    def __init__(self, run: Replica, shape, num_classes: int):
        super().__init__()
        self.fp32 = run.fp32
        self.body, self.embedding = network(shape, run.embedding_dim, **NETWORKS[run.network])
        self.W = nn.Parameter(run.w_std * torch.randn(num_classes, run.embedding_dim))
        self.b = nn.Parameter(torch.zeros(num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, channels, H, W) -> embeddings (B, d); only the convolutions run in bf16."""
        bf16 = device.has_bf16(images.device) and not self.fp32
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            features = self.body(images)
        return self.embedding(features.float().flatten(1))


def network(shape, d: int, widths, pooled=(), stride=1, hidden=0, batch_norm=False, relu=False):
    """Convolutions and embedding layers of ``NETWORKS`` for images of this shape (channels, H, W)."""
    layers, width_in = [], shape[0]
    for i, width in enumerate(widths):
        layers += [nn.Conv2d(width_in, width, 3, stride=stride, padding=1)] + [nn.BatchNorm2d(width)] * batch_norm
        layers += [nn.MaxPool2d(2)] * (i in pooled) + [nn.ReLU()]
        width_in = width
    body = nn.Sequential(*layers).eval()
    features = body(torch.zeros(1, *shape)).numel()
    if not hidden:
        return body, nn.Sequential(nn.Linear(features, d), *[nn.ReLU()] * relu)
    embedding = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, d))
    for linear in embedding[::2]:
        nn.init.kaiming_normal_(linear.weight)
    return body, embedding


def logits(run: Replica, model: Model, x: Tensor, y: Tensor | None = None, w: float = 1.0) -> Tensor:
    """Logits (B, C) of embeddings x (B, d); with labels y (B,) w times the margin is on the target's."""
    if run.loss == "Softmax":
        return F.linear(x, model.W, model.b)
    e, W = (x, model.W) if run.dot_product else (F.normalize(x), F.normalize(model.W))
    cos = F.linear(e, W).clamp(-1, 1)  # S1, defect 1: with x and W of any length this is no cosine
    if y is not None and run.loss != "Triplet":
        cos = cos.scatter(1, y[:, None], target(run, cos.gather(1, y[:, None]), x, w))
    return run.s * cos


def target(run: Replica, cos_y: Tensor, x: Tensor, w: float = 1.0) -> Tensor:
    """The target's cosine (B, 1) with w times its margin, by the plain formulas, which rise again beyond pi."""
    m = w * run.m
    if run.cosine_margin:
        return cos_y - m  # S1, defect 2: this is CosFace; ArcFace adds its margin to the angle
    theta = cos_y.clamp(-1 + 1e-7, 1 - 1e-7).acos()
    if run.loss == "AdaLoss":
        k = quality(run, x)[:, None]
        return (theta - m * k).clamp(1e-3, torch.pi - 1e-3).cos() - (m + m * k)
    return (theta + m).cos() - w * run.m3


def quality(run: Replica, x: Tensor, h: float = 0.33) -> Tensor:
    """S1's quality factor k (B,) in [-1, 1]: AdaFace's, with the statistics of the batch; no gradient."""
    x = F.normalize(x.detach()) if run.unit_norms else x.detach()  # S1, defect 5: now all norms are 1
    norm = x.norm(dim=1).clamp(1e-3, 100)
    return (h * (norm - norm.mean()) / (norm.std() + 1e-7)).clamp(-1, 1)


def criterion(run: Replica, model: Model):
    """The training loss as a function of embeddings x (B, d), labels y (B,) and the share w of the margin."""
    if run.loss != "Triplet":
        return lambda x, y, w: F.cross_entropy(logits(run, model, x, y, w), y)
    from pytorch_metric_learning.losses import TripletMarginLoss  # takes a second, and nothing else needs it
    from pytorch_metric_learning.miners import BatchHardMiner

    loss, miner = TripletMarginLoss(margin=run.m), BatchHardMiner()
    return lambda x, y, w: loss(x, y, miner(x, y))


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
    """uint8 images as S3 prepares them, by mean and deviation, or as S1 does, to [-1, 1]."""
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
def accuracy(run: Replica, model: Model, x: Tensor, y: Tensor, leak: bool = False) -> float:
    """Share of embeddings x (N, d) put into their class y (N,), label-free or with the margin left on y."""
    batches = zip(x.split(64), y.split(64), strict=True)  # S1's test batches: its quality factor depends on them
    read = [logits(run, model, x, y if leak else None) for x, y in batches]
    return metrics.accuracy(torch.cat(read).cpu(), y.cpu())


def execute(run: Replica, progress: bool = False) -> tuple[Model, dict]:
    """Train one run; returns the model and its record. Nothing is written.

    The history holds, per epoch, loss, test_accuracy (label-free), leaked_accuracy (S1's reading, with
    the margin on the true class) and seconds (training only). A run that diverges is recorded as it
    is. The metrics are those of ``runs.evaluate``, with the temperature fitted on the test images.
    """
    data, part, evaluated = splits(run)
    on, y = part.labels.device, evaluated.labels
    torch.manual_seed(run.seed)
    torch.backends.cudnn.allow_tf32 = not run.fp32  # PyTorch's default shortens the mantissa on a GPU
    model = Model(run, part.images.shape[1:], len(data.classes)).to(on, memory_format=device.memory_format(on))
    loss_of, generator = criterion(run, model), torch.Generator().manual_seed(run.seed)
    weights = [p for name, p in model.named_parameters() if name != "W" or not run.frozen_centres]  # S1, defect 3
    sgd = functools.partial(torch.optim.SGD, momentum=0.9)
    optimizer = {"Adam": torch.optim.Adam, "SGD": sgd}[run.optimizer](weights, lr=run.lr, fused=True)
    history = {"loss": [], "test_accuracy": [], "leaked_accuracy": [], "seconds": []}
    seconds, factors, warmup = 0.0, [], run.margin_warmup * len(part) / run.batch_size  # in steps
    for epoch in tqdm(range(run.epochs), disable=hidden(progress), unit="epoch", ncols=100, file=sys.stdout):
        start, total = time.perf_counter(), torch.zeros((), device=on)
        model.train()
        order = torch.randperm(len(part), generator=generator).to(on)
        for step, index in enumerate(order.split(run.batch_size), epoch * math.ceil(len(part) / run.batch_size)):
            batch = part[index]
            images = data.augment(batch.images, generator) if run.source == "S3" else batch.images
            x = model(pixels(run, data, images))
            loss = loss_of(x, batch.labels, min(1.0, step / warmup) if warmup else 1.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(index)
            if run.loss == "AdaLoss":
                factors.append((quality(run, x), batch.labels))
        history["loss"].append(total.item() / len(part))  # .item() waits for the device, so it comes first
        history["seconds"].append(seconds := seconds + time.perf_counter() - start)
        if run.loss == "Triplet":  # it has no class centres: the nearest mean of training embeddings decides
            known, labels = F.normalize(embed(run, model, data, part.images[:10_000])), part.labels[:10_000]
            model.W.data = torch.zeros_like(model.W).index_add_(0, labels, known)
        x = embed(run, model, data, evaluated.images)
        history["test_accuracy"].append(accuracy(run, model, x, y))
        history["leaked_accuracy"].append(accuracy(run, model, x, y, leak=True))  # S1, defect 4: y moves a logit
    measured = records.attempt(lambda: measure(run, model, data, part, evaluated, x))
    measured = {"test_accuracy": history["test_accuracy"][-1], **measured}
    measured["leaked_accuracy"] = history["leaked_accuracy"][-1]
    if factors:
        measured |= records.attempt(lambda: quality_statistics(factors, run.epochs))
    record = records.record(run, measured, history, on, seconds)
    record["dtype"] = "fp32" if run.fp32 or record["dtype"] == "fp32" else "bf16 convolutions, fp32 behind them"
    return model, record


@torch.no_grad()
def measure(run: Replica, model: Model, data: datasets.Data, part, evaluated, x: Tensor) -> dict:
    """Metrics of a trained model from its test embeddings x; accuracies are label-free. beyond_one: share
    of dot products that a clamp to [-1, 1] would change; they were cosines if it were 0."""
    y, free = evaluated.labels.cpu(), logits(run, model, x).nan_to_num().cpu()
    known = embed(run, model, data, part.images[:10_000])
    measured = runs.evaluate(free, y, x.cpu(), free, y)
    measured["train_accuracy"] = accuracy(run, model, known, part.labels[:10_000])
    measured["beyond_one"] = (F.linear(x, model.W).abs() > 1).float().mean().item()
    if run.source == "S3":
        moved = embed(run, model, data, distorted(evaluated.images))
        measured["distorted_accuracy"] = accuracy(run, model, moved, evaluated.labels)
    return measured


def quality_statistics(factors: list[tuple[Tensor, Tensor]], epochs: int) -> dict:
    """The quality factors (k, y) of all steps: a histogram of 201 bins on [-1, 1], the shares of samples and
    of steps where they are exactly 0, and their mean by class in the last epoch."""
    factors = [(k.cpu(), y.cpu()) for k, y in factors]
    k = torch.cat([k for k, _ in factors])
    last, y = map(torch.cat, zip(*factors[-(len(factors) // epochs) :], strict=True))
    return {
        "factor_counts": torch.histc(k, 201, -1, 1).int().tolist(),
        "factor_zero": (k == 0).double().mean().item(),
        "factor_zero_steps": sum((k == 0).all().item() for k, _ in factors) / len(factors),
        "factor_by_class": [last[y == c].mean().item() for c in range(int(y.max()) + 1)],
    }


# ---------------------------------------------------------------- all runs


# per plan: its question; the runs of one seed, by name, from (epochs, seed); the epochs as published, or chosen where
# the source leaves them open, then fewer for a CPU, then what shorter runs may be recorded; the number of seeds
PLANS = {
    "s1_mnist": ("S1's two arms on MNIST, as published", functools.partial(published, "mnist"), (10,), 3),
    "s1_centres": ("S1's ArcFace by the start of its centres", centres, (1,), 5),
    "waterfall_mnist": (
        "S1 on MNIST, one defect after the other removed",
        functools.partial(waterfall, "mnist"),
        (10,),
        3,
    ),
    "cosface_mnist": ("S1's AdaLoss against CosFace, on MNIST", functools.partial(cosface, "mnist"), (10,), 3),
    "s5": ("S5's softmax and ArcFace", s5_group, (100, 30), 5),
    "s5_grid": ("S5's table of margins", s5_grid, (20, 10, 6), 3),
    "waterfall_cifar10": (
        "S1 on CIFAR-10, one defect after the other removed",
        functools.partial(waterfall, "cifar10"),
        (20, 10, 3),
        3,
    ),
    "s1_cifar10": ("S1's two arms on CIFAR-10, as published", functools.partial(published, "cifar10"), (20,), 3),
    "s3_search": ("S3's learning rates and margins, on validation images", lambda epochs, seed: search(), (2,), 1),
    "s3_mnist": (
        "S3's three losses on MNIST",
        functools.partial(s3_group, "mnist"),
        (5,),
        3,
    ),  # five pass its accuracies
    "s3_cifar10": ("S3's three losses on CIFAR-10", functools.partial(s3_group, "cifar10"), (30, 10), 3),
    "fp32": (
        "S1's ArcFace on MNIST in fp32",
        lambda epochs, seed: {"fp32": s1("mnist", "ArcFace", epochs, seed, fp32=True)},
        (10,),
        3,
    ),
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
    return records.read(REPLICAS["fp32"].path, Replica)


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


def gaps(by_seed: dict[int, dict]) -> pd.DataFrame:
    """Accuracies along the ``waterfall`` in percent: one row per (step, seed), columns ArcFace, AdaLoss and
    gap, their difference in points. The first step reads ArcFace with the margin on the true class, as S1 did."""
    rows = []
    for seed, arms in by_seed.items():
        for step in dict.fromkeys(name.split(": ")[1] for name in arms):
            measured = [arms[f"{loss}: {step}"]["metrics"] for loss in ("ArcFace", "AdaLoss")]
            free = [100 * metrics["test_accuracy"] for metrics in measured]
            if step == "as published":
                rows.append((step, seed, 100 * measured[0]["leaked_accuracy"], free[1]))
                step = "label-free evaluation"
            rows.append((step, seed, *free))
    table = pd.DataFrame(rows, columns=["step", "seed", "ArcFace", "AdaLoss"]).set_index(["step", "seed"])
    return table.assign(gap=table["AdaLoss"] - table["ArcFace"])
