"""S1's study rebuilt: two losses, ArcFace and AdaLoss, on MNIST and CIFAR-10, as its code trains and reads them.

A record of what was done, not an example to follow: for that see lib.losses and lib.train. Every number is that of
S1's code, defects included; a comment "S1, defect n" marks each where it stands. S1 sets no seed and trains every arm
once. What differs from it is speed alone: the images lie on the device, pooling comes before the ReLU, which gives the
same values, and the convolutions run channels last.
"""

import dataclasses
import functools
import math
import sys
import time
from dataclasses import dataclass

import pandas as pd
import torch
from sklearn.metrics import confusion_matrix
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from lib import data as datasets
from lib import device, losses, metrics
from lib.train import hidden
from studies import checked, records, runs, smoke
from studies.study import Incomplete, Study

DIM = 128  # of the embeddings
H = 0.33  # AdaLoss's constant h
LOSSES = ("ArcFace", "AdaLoss")
SCALES = (1e-3, 10**6)  # the smallest and the largest s
# widths of the 3x3 convolutions and which of them a 2x2 max-pooling follows. With a hidden linear layer the embedding
# is scaled to unit length, without one a ReLU follows it
NETWORKS = {
    "ArcFace MNIST": {"widths": (32, 64), "pooled": (0, 1)},
    "ArcFace CIFAR-10": {"widths": (64, 128, 256), "pooled": (0, 1, 2)},
    "AdaLoss": {"widths": (32, 64), "pooled": (1,), "hidden": 256},
}
NAMES = {"mnist": "MNIST", "cifar10": "CIFAR-10"}
PUBLISHED = {
    ("mnist", "ArcFace"): 97.86, ("mnist", "AdaLoss"): 99.11,
    ("cifar10", "ArcFace"): 62.35, ("cifar10", "AdaLoss"): 68.13,
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """Everything that decides the result of a run; dot_product to unit_norms are defects, True as published.

    loss: ArcFace or AdaLoss. m: radians on the angle, a plain number on the cosine. train_size: the first training
    images only, 0 for all. dot_product and cosine_margin are ArcFace's alone, unit_norms is AdaLoss's. margin_warmup:
    epochs in which the margin grows from 0 to m; S1 has none. The two defects of the reading need no field, for every
    run is read in all ways (``readings``).
    """

    data: str
    loss: str
    network: str
    s: float
    m: float
    lr: float = 1e-3
    epochs: int = 10
    batch_size: int = 64
    train_size: int = 0
    seed: int = 0
    dot_product: bool = False  # defect 1: clamped dot products in place of cosines
    cosine_margin: bool = False  # defect 2: CosFace's margin under ArcFace's name
    frozen_centres: bool = False  # defect 3: class centres outside the optimizer
    unit_norms: bool = False  # defect 5: norms taken after normalising
    margin_warmup: float = 0.0

    def __post_init__(self):
        """Raises ValueError for what no run could be made with."""
        known = {"loss": LOSSES, "network": NETWORKS, "data": runs.IMAGES}
        # norms of one image have no spread
        checked.settle(self, runs.RANGES | {"s": SCALES, "batch_size": (2, 10**7)}, known)
        check_margin("m", self.m, self.loss == "ArcFace" and self.cosine_margin)


def check_margin(name: str, value: float, cosine: bool) -> None:
    """Raises ValueError for a margin that is no angle in radians, or no difference of cosines."""
    head = losses.CosFace if cosine else losses.ArcFace
    head._checked(name, value, *head.ranges()["m"])


def published(data: str, loss: str, seed: int = 0, **changes) -> Arm:
    """An arm as S1's code has it, on "mnist" or "cifar10", and what is changed in it."""
    checked.choose("data", data, NAMES)
    checked.choose("loss", loss, LOSSES)
    epochs = {"mnist": 10, "cifar10": 20}[data]
    if loss == "ArcFace":  # S1, defect 6: the arms differ in network, scale, margin and, on CIFAR-10, rate
        name, s, lr = {"mnist": ("MNIST", 30.0, 1e-3), "cifar10": ("CIFAR-10", 10.0, 1e-4)}[data]
        arm = Arm(data, loss, f"ArcFace {name}", s, 0.5, lr, epochs, dot_product=True, cosine_margin=True)
    else:  # S1, defect 7: its text describes another algorithm, a margin that follows the difficulty of a class
        arm = Arm(data, loss, "AdaLoss", 64.0, 0.4, 1e-3, epochs, unit_norms=True)
    return dataclasses.replace(arm, **{"frozen_centres": True, "seed": seed} | changes)


# ---------------------------------------------------------------- network and loss


class Model(nn.Module):
    """Convolutions, embedding layers and class centres W (C, 128); made in the order of S1's code, network first."""

    def __init__(self, run: Arm, shape, num_classes: int):
        super().__init__()
        self.body, self.embedding = network(shape, **NETWORKS[run.network])
        self.unit = "hidden" in NETWORKS[run.network] and (run.unit_norms or run.loss == "ArcFace")
        self.W = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_classes, DIM)))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, channels, H, W) -> embeddings (B, 128), of unit length where the network has that."""
        x = self.embedding(self.body(images).flatten(1))
        return F.normalize(x) if self.unit else x


def network(shape, widths, pooled, hidden=0):
    """Convolutions and embedding layers of ``NETWORKS`` for images of this shape (channels, H, W)."""
    layers, (width_in, *side) = [], shape
    for i, width in enumerate(widths):
        layers += [nn.Conv2d(width_in, width, 3, padding=1)]
        layers += [nn.MaxPool2d(2)] * (i in pooled) + [nn.ReLU()]
        width_in = width
    features = width_in * math.prod(length // 2 ** len(pooled) for length in side)
    if not hidden:
        return nn.Sequential(*layers), nn.Sequential(nn.Linear(features, DIM), nn.ReLU())
    embedding = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, DIM))
    for linear in embedding[::2]:
        nn.init.kaiming_normal_(linear.weight)
    return nn.Sequential(*layers), embedding


def optimizer(run: Arm, model: Model) -> torch.optim.Adam:
    weights = [p for name, p in model.named_parameters() if name != "W" or not run.frozen_centres]  # S1, defect 3
    return torch.optim.Adam(weights, lr=run.lr, fused=True)


def logits(run: Arm, model: Model, x: Tensor, y: Tensor | None = None, w: float = 1.0) -> Tensor:
    """Logits (B, C) of embeddings x (B, 128); with labels y (B,) w times the margin is on the target's."""
    if run.loss == "ArcFace" and run.dot_product:
        cos = F.linear(x, model.W).clamp(-1, 1)  # S1, defect 1: of any length, and no gradient beyond 1
    else:
        cos = F.linear(F.normalize(x), F.normalize(model.W))
    if y is not None:
        cos = cos.scatter(1, y[:, None], target(run, cos.gather(1, y[:, None]), x, w))
    return run.s * cos


def target(run: Arm, cos_y: Tensor, x: Tensor, w: float = 1.0) -> Tensor:
    """The target's cosine (B, 1) with w times its margin. No angle is clamped behind its margin, as in S1."""
    m = w * run.m
    if run.loss == "ArcFace" and run.cosine_margin:
        return cos_y - m  # S1, defect 2: this is CosFace; ArcFace adds its margin to the angle
    theta = cos_y.clamp(-0.9999, 0.9999).acos()
    if run.loss == "ArcFace":
        return (theta + m).cos()
    k = quality(run, x)
    return (theta - m * k).cos() - (m * k + m)


def quality(run: Arm, x: Tensor) -> Tensor:
    """AdaLoss's quality factor k (B, 1) in [-1, 1]: AdaFace's, with the statistics of the batch; no gradient."""
    x = x.detach()
    norm = (F.normalize(x) if run.unit_norms else x).norm(dim=1, keepdim=True)  # S1, defect 5: all norms are 1
    return ((norm - norm.mean()) / ((norm.std() + 1e-7) / H)).clamp(-1, 1)


# ---------------------------------------------------------------- one run


def splits(run: Arm) -> tuple[datasets.Data, datasets.Split]:
    """Data and training images. S1 has no validation split, so ours joins the training."""
    data = runs.load(run.data)
    images, labels = (
        torch.cat([getattr(part, key) for part in (data.train, data.val)]) for key in ("images", "labels")
    )
    part = datasets.Split(images, labels)
    return data, part[: run.train_size] if run.train_size else part


def pixels(images: Tensor) -> Tensor:
    """uint8 images (B, channels, H, W) as numbers in [-1, 1], channels last."""
    return ((images / 255 - 0.5) / 0.5).contiguous(memory_format=device.memory_format(images.device))


@torch.no_grad()
def embed(model: Model, images: Tensor) -> Tensor:
    """Embeddings (N, 128) of uint8 images, zeros where a run has diverged."""
    return torch.cat([model(pixels(batch)) for batch in images.split(500)]).nan_to_num()


@torch.no_grad()
def readings(run: Arm, model: Model, x: Tensor, y: Tensor) -> dict[str, float]:
    """The accuracies of one network from embeddings x (N, 128) and labels y (N,), all but the last label-free.

    test_accuracy: ArcFace by its logits, AdaLoss by x W^T, with W of any length as S1 reads it (S1, defect 8).
    test_accuracy_unclamped: the same without the clamp to [-1, 1], whose ties go to the first class.
    cosine_accuracy: by the cosine. leaked_accuracy: with the margin on the true class, as S1 reads ArcFace.
    """
    raw, cos = F.linear(x, model.W), F.linear(F.normalize(x), F.normalize(model.W))
    batches = zip(x.split(64), y.split(64), strict=True)  # S1's: the quality factor depends on them
    read = {
        "test_accuracy": raw if run.loss == "AdaLoss" else logits(run, model, x),
        "test_accuracy_unclamped": raw if run.loss == "AdaLoss" or run.dot_product else cos,
        "cosine_accuracy": cos,
        "leaked_accuracy": torch.cat(
            [logits(run, model, *batch) for batch in batches]
        ),  # S1, defect 4: y moves a logit
    }
    return {key: metrics.accuracy(values.cpu(), y.cpu()) for key, values in read.items()}


def execute(run: Arm, progress: bool = False) -> tuple[Model, dict]:
    """Train one run; returns the model and its record. Nothing is written.

    The history holds, per epoch, loss (mean of the batch means, with margin and scale), the four ``readings`` of the
    test images, no_gradient and seconds (training only). no_gradient: share of the epoch's steps in which the gradient
    of the embedding layer's bias is exactly 0 and nothing behind it learns either, as when all products are clamped.
    The metric dead is True where that share is 1 in the last epoch: every training image was seen and none moved the
    network, so none ever will. This needs no test image and no threshold. A run that diverges is recorded as it is.
    """
    data, part = splits(run)
    on, test = part.labels.device, data.test
    torch.manual_seed(run.seed)
    model = Model(run, part.images.shape[1:], len(data.classes)).to(on, memory_format=device.memory_format(on))
    bias = [layer for layer in model.embedding if isinstance(layer, nn.Linear)][-1].bias
    adam, generator = optimizer(run, model), torch.Generator().manual_seed(run.seed)
    steps = math.ceil(len(part) / run.batch_size)
    history, factors, seconds = {}, [], 0.0
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # by default a GPU shortens fp32
        for epoch in tqdm(range(run.epochs), disable=hidden(progress), unit="epoch", ncols=100, file=sys.stdout):
            start, (total, still) = time.perf_counter(), torch.zeros(2, device=on)
            order = torch.randperm(len(part), generator=generator).to(on)
            for step, index in enumerate(order.split(run.batch_size), epoch * steps):
                batch = part[index]
                x = model(pixels(batch.images))
                w = min(1.0, step / steps / run.margin_warmup) if run.margin_warmup else 1.0
                loss = F.cross_entropy(logits(run, model, x, batch.labels, w), batch.labels)
                model.zero_grad()
                loss.backward()
                adam.step()
                total += loss.detach()
                still += (bias.grad == 0).all()
                if run.loss == "AdaLoss":
                    factors.append((quality(run, x)[:, 0], batch.labels))
            row = {"loss": total.item() / steps, "no_gradient": still.item() / steps}  # .item() waits for the device
            row["seconds"] = seconds = seconds + time.perf_counter() - start
            x = embed(model, test.images)
            for key, value in {**row, **readings(run, model, x, test.labels)}.items():
                history.setdefault(key, []).append(value)
        measured = records.attempt(lambda: measure(run, model, part[:10_000], x, test.labels))
    measured |= {key: history[key][-1] for key in history if key.endswith("accuracy") or key.endswith("unclamped")}
    measured["dead"] = history["no_gradient"][-1] == 1
    if factors:
        measured |= records.attempt(lambda: quality_statistics(factors, run.epochs))
    record = records.record(run, measured, history, on, seconds)
    record["dtype"] = "fp32"
    return model, record


@torch.no_grad()
def measure(run: Arm, model: Model, known: datasets.Split, x: Tensor, y: Tensor) -> dict:
    """Further metrics, label-free and with nothing fitted, from test embeddings x (N, 128), labels y (N,) and training
    images. beyond_one: share of dot products that a clamp to [-1, 1] would change. ece and confusion: of the trained
    softmax, without the margin."""
    free = logits(run, model, x).nan_to_num().cpu()
    train = readings(run, model, embed(model, known.images), known.labels)
    beyond = (F.linear(x, model.W).abs() > 1).float().mean().item()
    x, y = x.cpu(), y.cpu()
    return {
        "train_accuracy": train["test_accuracy"],
        "beyond_one": beyond,
        "ece": metrics.calibration_error(free, y),
        **metrics.angles(x, y),
        "recall_at_1": metrics.recall_at_1(x, y),
        "confusion": confusion_matrix(y, free.argmax(1), labels=range(free.shape[1])).tolist(),
    }


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

# The order is meant to keep every step trainable: cosines come first, since they end the dead starts of the clamp, and
# the margin on the angle grows from 0, since with all of it from the first step on a network may never leave chance.
STEPS = {
    "as published": "ArcFace read with the margin on the true class, AdaLoss without a label, by centres of any length",
    "label-free": "the same networks: no label for either, and AdaLoss by the cosine, with which it was trained",
    "normalised": "ArcFace's clamped dot products become cosines, as AdaLoss has them",
    "same network and rate": "AdaLoss gets ArcFace's network, and ArcFace AdaLoss's rate, 1e-3 (equal on MNIST)",
    "same scale and margin": "s = 16, which suits ten classes, and AdaLoss's m = 0.4: only the quality factor differs",
    "centres trained": "the class centres join the optimizer in both arms",
    "angular margin": "ArcFace's margin moves from the cosine to the angle; both margins grow in the first epoch",
    "norms before normalising": "AdaLoss's quality factor sees real lengths: AdaFace, with statistics of the batch",
}


def waterfall(data: str, seed: int) -> dict[str, Arm]:
    """S1's arms with one defect after the other taken away, cumulatively, by ``STEPS``: "ArcFace: as published" and so
    on. A change that an arm does not need leaves it as it was; "label-free" is another reading of the first runs."""
    changes = {
        "as published": {},
        "label-free": {},
        "normalised": {"dot_product": False},
        "same network and rate": {"network": published(data, "ArcFace").network, "lr": 1e-3},
        "same scale and margin": {"s": 16.0, "m": 0.4},
        "centres trained": {"frozen_centres": False},
        "angular margin": {"cosine_margin": False, "margin_warmup": 1.0},
        "norms before normalising": {"unit_norms": False},
    }
    steps, arms = {}, {loss: published(data, loss, seed) for loss in LOSSES}
    for step in STEPS:
        arms = {loss: dataclasses.replace(arm, **changes[step]) for loss, arm in arms.items()}
        steps |= {f"{loss}: {step}": arm for loss, arm in arms.items()}
    return steps


# S1's text says that both losses shared the ArcFace networks (its section 3.2); its code has another for AdaLoss.
# The second pair is the fair test of the claim that S1's AdaLoss beats S1's ArcFace; the third tests its reason.
PAIRS = {
    "same network and rate": "both losses as coded, each with its own s and m, on one network at one rate",
    "same scale": "and with one scale: the loss differs by its normalisation, its rule and its m (0.5 and 0.4)",
    "same margin, normalised": "cosines and m = 0.4 in both: only the quality factor differs, which adapts the margin",
}


def same_network(data: str, seed: int) -> dict[str, Arm]:
    """The pairs of ``PAIRS`` on S1's ArcFace network at the rate 1e-3: "ArcFace: same scale" and so on. The scale is
    the 16 of ``waterfall``, which has all these runs but ArcFace's of the first two pairs."""
    steps = waterfall(data, seed)
    arcface = published(data, "ArcFace", seed, lr=1e-3)
    adaloss = {
        s: steps[f"AdaLoss: {step}"] for s, step in ((64, "same network and rate"), (16, "same scale and margin"))
    }
    pairs = {
        "same network and rate": (arcface, adaloss[64]),
        "same scale": (dataclasses.replace(arcface, s=16.0), adaloss[16]),
        "same margin, normalised": (steps["ArcFace: same scale and margin"], adaloss[16]),
    }
    return {f"{loss}: {pair}": arm for pair, arms in pairs.items() for loss, arm in zip(LOSSES, arms, strict=True)}


def both(data: str, seed: int) -> dict[str, Arm]:
    """The two arms as published, by their loss."""
    return {loss: published(data, loss, seed) for loss in LOSSES}


# per study: its question, the runs of a seed by name, the number of seeds
PLANS = {}
for _data, _title in NAMES.items():
    PLANS |= {
        f"s1_published_{_data}": (f"S1's two arms on {_title}, as published", functools.partial(both, _data), 5),
        f"s1_same_network_{_data}": (
            f"S1's two losses on one network, {_title}", functools.partial(same_network, _data), 5,
        ),
        f"s1_waterfall_{_data}": (
            f"S1 on {_title}, one defect after the other removed", functools.partial(waterfall, _data), 3,
        ),
    }  # fmt: skip


def plan(name: str, full: bool = False) -> list[Arm]:
    """The runs of a study, seeds in the outer loop, on a CPU and on a GPU: S1's length is part of what it did."""
    _, make, seeds = PLANS[name]
    return [run for seed in range(seeds) for run in make(seed).values()]


STUDIES = [
    Study(name, question, Arm, functools.partial(plan, name), execute, file="s1")
    for name, (question, *_) in PLANS.items()
]


def complete(name: str, found: dict[Arm, dict]) -> dict[int, dict[str, dict]]:
    """By seed, the records of a study by name, of those seeds that are whole. Raises Incomplete if there is none."""
    _, make, seeds = PLANS[name]
    whole = {}
    for seed in range(seeds):
        arms = {key: smoke.shrink(run) for key, run in make(seed).items()}
        if all(run in found for run in arms.values()):
            whole[seed] = {key: found[run] for key, run in arms.items()}
    if not whole:
        raise Incomplete(f"s1.jsonl holds no complete seed of {name}: `python -m studies {name}` trains them")
    return whole


def gaps(by_seed: dict[int, dict[str, dict]]) -> pd.DataFrame:
    """Accuracies of a ``complete`` waterfall or of the pairs on one network, in percent: one row per (step, seed),
    columns ArcFace, AdaLoss and gap, their difference in points. All label-free, AdaLoss by the cosine, but for the
    step "as published", read as S1 did."""
    rows = []
    for seed, arms in by_seed.items():
        for step in dict.fromkeys(name.split(": ")[1] for name in arms):
            keys = (
                ("leaked_accuracy", "test_accuracy") if step == "as published" else ("test_accuracy", "cosine_accuracy")
            )
            read = [100 * arms[f"{loss}: {step}"]["metrics"][key] for loss, key in zip(LOSSES, keys, strict=True)]
            rows.append((step, seed, *read))
    table = pd.DataFrame(rows, columns=["step", "seed", *LOSSES]).set_index(["step", "seed"])
    return table.assign(gap=table["AdaLoss"] - table["ArcFace"])
