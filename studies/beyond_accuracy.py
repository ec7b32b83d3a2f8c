"""Beyond closed-set accuracy: unseen classes, rare classes, wrong labels, few images, distorted images.

Every run trains one head as ``runs`` does, on training data changed by its question:

    open set      level = number of classes seen in training; read on the others' test images
    long tail     level = images of the largest class over those of the smallest
    label noise   level = share of training labels replaced by another class
    few examples  level = training images per class
    distortions   level 0: unchanged data; read on distorted test images

For one seed the changed data, the initial weights and the order of the images are the same for every
head, so runs are paired. All runs of a data set take the same number of steps: of a larger set an
epoch takes the first ``train_size`` images, and a smaller set is repeated to that size. The ten losses
of the controlled study have the constants that its tuning chose, the others their defaults.
"""

import dataclasses
import functools
import itertools
import math
import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

from lib import data as datasets
from lib import losses, metrics, models, train
from studies import checked, records, runs, statistics, tuning
from studies.study import Incomplete, Study
from studies.unseen import FAR as FAR  # the false accept rates of verification
from studies.unseen import retrieval, verification

QUESTIONS = {
    "open set": (5,),
    "long tail": (10, 50, 100),
    "label noise": (0.1, 0.2, 0.4),
    "few examples": (1000, 100, 10),
    "distortions": (0,),
}
# the smallest and the largest level of a question
LEVELS = {
    "open set": (2, 10**6), "long tail": (1, 10**6), "label noise": (0, 1), "few examples": (1, 10**9),
    "distortions": (0, 0),
}  # fmt: skip
QUESTION_TEXTS = {
    "open set": "Classes never seen: verification, retrieval, rejection",
    "long tail": "Rare classes",
    "label noise": "Wrong labels",
    "few examples": "Few images per class",
    "distortions": "Distorted test images",
}
# besides the study's ten, those of lib.heads.relatives that were made for the question
EXTRA = {
    "open set": ("ElasticFace", "MagFace", "AdaCos"),
    "long tail": ("KappaFace", "LDAM"),
    "label noise": ("SubCenterArcFace",),
}
# changes to the data set's recipe, and the number of seeds; an even one, see class_order
SETTINGS = {
    "full": {"mnist": ({}, 10), "cifar10": ({}, 6)},
    "cpu": {
        "mnist": ({"train_size": 20_000, "batch_size": 256, "test_size": 2000}, 4),
        # over one epoch of these 20 steps the margin comes too fast: ArcFace stays at chance
        "cifar10": (
            {
                "network": "NarrowAirNet",
                "train_size": 10_000,
                "batch_size": 512,
                "lr": 0.5,
                "epochs": 6,
                "margin_warmup": 3.0,
                "test_size": 2000,
            },
            4,
        ),
    },
}
GROUPS = ("head", "medium", "tail")  # thirds of the classes of a long tail, by the number of their images
# what a summary shows of each question; larger is better
SUMMARY = {
    "verification": ("open set", "tar_1e-2"),
    "retrieval": ("open set", "map_at_r"),
    "rejection": ("open set", "auroc"),
    "long tail": ("long tail", "test_accuracy"),
    "label noise": ("label noise", "test_accuracy"),
    "few examples": ("few examples", "test_accuracy"),
    "distortions": ("distortions", "distorted_accuracy"),
}
# five strengths of each distortion, in units of the pixels' range, the image's side or as named
DISTORTIONS = {
    "noise": (0.05, 0.1, 0.2, 0.3, 0.4),  # deviation, of the range
    "blur": (0.4, 0.6, 0.8, 1.2, 2.0),  # deviation, pixels
    "rotation": (10, 20, 30, 45, 60),  # degrees
    "translation": (0.05, 0.1, 0.15, 0.2, 0.25),  # of the side
    "occlusion": (0.2, 0.3, 0.4, 0.5, 0.6),  # side of a black square, of the side
    "contrast": (0.9, 0.75, 0.5, 0.3, 0.15),  # what is left of it
}


@dataclass(frozen=True)
class Run(runs.Config):
    """Everything that decides the result of a run: a runs.Config, its question and level.

    train_size: images of an epoch, 0 for as many as the data set has. test_size: test images that
    are distorted, 0 for all.
    """

    question: str = "distortions"
    level: float = 0.0
    test_size: int = 0

    def __post_init__(self):
        super().__post_init__()
        checked.choose("question", self.question, QUESTIONS)
        if self.data in runs.IMAGES:
            self.check_classes(runs.IMAGES[self.data][1])
        low, high = LEVELS[self.question]
        whole = self.question == "label noise" or self.level == int(self.level)
        if not whole or not low <= self.level <= high:
            raise ValueError(f"{self.question}: level must lie from {low:,} to {high:,}, got {self.level:g}")

    def check_classes(self, C: int) -> None:
        """Raises ValueError if C classes are too few for the run's question."""
        if self.question == "open set" and not 2 <= self.level <= C - 2:
            raise ValueError(f"{self.level:g} of {C} classes are seen: an open set needs two seen and two unseen ones")


# ---------------------------------------------------------------- the changed data


def class_order(C: int, seed: int) -> Tensor:
    """A random order (C,) of the classes; that of an odd seed is its predecessor's reversed, so that over
    two seeds each of an even number of classes is once in the first half and once in the second."""
    order = torch.randperm(C, generator=torch.Generator().manual_seed(seed // 2))
    return order.flip(0) if seed % 2 else order


def only(split: datasets.Split, classes: Tensor) -> datasets.Split:
    """The images of these classes, renumbered from 0 in ascending order."""
    classes = classes.sort().values.to(split.labels.device)
    part = split[torch.isin(split.labels, classes)]
    return datasets.Split(part.images, torch.searchsorted(classes, part.labels))


def subset(labels: Tensor, counts: Tensor, seed: int) -> Tensor:
    """Ascending indices of counts[c] random images of each class c, or all it has; a smaller count takes
    a subset of what a larger one takes."""
    labels = labels.cpu()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return torch.cat([order[labels[order] == c][:n] for c, n in enumerate(counts.tolist())]).sort().values


def long_tail(labels: Tensor, ranks: Tensor, factor: float, size: int) -> Tensor:
    """Images (C,) per class of an exponential long tail (Cui et al. 2019, arXiv 1901.05555, section 5.1):
    n_max factor^(-r / (C - 1)) for the class of rank r. In all size images, or fewer where a class has too few."""
    share = factor ** (-ranks.double() / (len(ranks) - 1))
    n_max = min(size / share.sum().item(), torch.bincount(labels).min().item())
    return (n_max * share).round().long().clamp_min(1)


def mislabelled(labels: Tensor, C: int, share: float, seed: int) -> Tensor:
    """Labels (N,) of which this share is replaced by another class, all others equally likely; a smaller
    share changes a subset of what a larger one changes, to the same classes."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    shift = torch.randint(1, C, (len(labels),), generator=generator)[chosen].to(labels.device)
    labels = labels.clone()
    labels[chosen] = (labels[chosen] + shift) % C
    return labels


def prepare(run: Run) -> tuple[datasets.Data, datasets.Split]:
    """The data of a run, and the test images of the classes that it does not see (labels from 0; may be
    none). Test and validation labels stay right, and their classes balanced."""
    data = runs.load(run.data, crop_padding=run.crop_padding)
    data = dataclasses.replace(data, val=data.val[:1000])  # enough to watch a training
    size = run.train_size or len(data.train)
    C = len(data.classes)
    run.check_classes(C)
    order = class_order(C, run.seed)
    seen = order[: int(run.level)] if run.question == "open set" else order
    unseen = only(data.test, order[len(seen) :])
    parts = {name: only(split, seen) for name, split in data.splits().items()}
    data = dataclasses.replace(data, **parts, classes=[data.classes[c] for c in seen.sort().values])
    part = data.train
    if run.question == "long tail":
        part = part[subset(part.labels, long_tail(part.labels, order.argsort(), run.level, size), run.seed)]
    if run.question == "few examples":
        part = part[subset(part.labels, torch.full((C,), int(run.level)), run.seed)]
    part = part[torch.arange(size) % len(part)]
    if run.question == "label noise":
        part = datasets.Split(part.images, mislabelled(part.labels, C, run.level, run.seed))
    return dataclasses.replace(data, train=part), unseen


# ---------------------------------------------------------------- what is read


@torch.no_grad()
def rejection(head: losses.Head, seen: Tensor, unseen: Tensor) -> dict[str, float]:
    """AUROC of telling embeddings (N, d) of seen classes from those of unseen ones: auroc by the largest
    cosine to a class centre, auroc_logit by the largest logit. Only for Softmax do the two differ."""
    x = torch.cat([seen, unseen]).to(head.W.device)
    known = np.arange(len(x)) < len(seen)
    cos_theta = head.cosines(F.normalize(x), head.W)
    return {
        "auroc": float(roc_auc_score(known, cos_theta.amax(1).cpu())),
        "auroc_logit": float(roc_auc_score(known, head(x).amax(1).cpu())),
    }


def distort(images: Tensor, kind: str, strength: float) -> Tensor:
    """uint8 images (N, channels, H, W), distorted: the same way in every run and on every device. Every
    other image is turned or shifted the other way; what comes in from outside is black."""
    generator = torch.Generator().manual_seed(0)
    N, _, H, W = images.shape
    if kind == "noise":
        noise = torch.randn(images.shape, generator=generator).to(images.device)
        return (images + 255 * strength * noise).round().clamp(0, 255).to(torch.uint8)
    if kind == "blur":
        return TF.gaussian_blur(images, 2 * math.ceil(3 * strength) + 1, strength)
    if kind == "contrast":
        return TF.adjust_contrast(images, strength)
    if kind == "occlusion":
        rows, columns = (_band(N, n, round(strength * H), generator) for n in (H, W))
        return images.masked_fill((rows[:, None, :, None] & columns[:, None, None, :]).to(images.device), 0)
    angle, shift = (strength, 0) if kind == "rotation" else (0.0, round(strength * W))
    moved = images.clone()
    for first, sign in ((0, 1), (1, -1)):
        options = {"scale": 1.0, "shear": [0.0, 0.0], "interpolation": TF.InterpolationMode.BILINEAR}
        moved[first::2] = TF.affine(images[first::2], sign * angle, [sign * shift, 0], **options)
    return moved


def _band(N: int, n: int, width: int, generator: torch.Generator) -> Tensor:
    """N masks (N, n), each true on a random stretch of this width."""
    start = torch.randint(0, n - width + 1, (N, 1), generator=generator)
    return (torch.arange(n) >= start) & (torch.arange(n) < start + width)


# ---------------------------------------------------------------- one run


def execute(run: Run, progress: bool = False) -> tuple[models.Classifier, dict]:
    """Train one run; returns the model and its record. Nothing is written.

    The metrics are test_accuracy, the number of classes, what the question reads and core_minutes, the
    processor's time for it all.
    """
    start = time.process_time()
    data, unseen = prepare(run)
    model, history = runs.fit(run, data, progress)

    def measured():
        return measure(run, model, data, unseen) | {"core_minutes": (time.process_time() - start) / 60}

    return model, records.record(run, measured, history, data.train.labels.device, history["seconds"][-1])


@torch.no_grad()
def measure(run: Run, model: models.Classifier, data: datasets.Data, unseen: datasets.Split) -> dict:
    """What the run's question reads. Pairs and queries are among the first 2,000 unseen test images."""
    y, x = data.test.labels.cpu(), train.embed(model, data, data.test)
    predicted = model.head(x.to(model.head.W.device)).argmax(1).cpu()
    measured = {"test_accuracy": (predicted == y).double().mean().item(), "classes": len(data.classes)}
    if run.question == "open set":
        z, labels = train.embed(model, data, unseen), unseen.labels.cpu()
        measured |= verification(z[:2000], labels[:2000]) | retrieval(z[:2000], labels[:2000])
        measured |= rejection(model.head, x, z)
    if run.question == "long tail":
        recall = torch.stack([(predicted[y == c] == c).double().mean() for c in range(len(data.classes))])
        groups = class_order(len(recall), run.seed).tensor_split(3)
        measured |= {f"{name}_accuracy": recall[c].mean().item() for name, c in zip(GROUPS, groups, strict=True)}
    if run.question == "distortions":
        part = data.test[: run.test_size or None]

        def accuracy(images):
            return metrics.accuracy(train.predict(model, data, datasets.Split(images, part.labels)), part.labels.cpu())

        read = {kind: [accuracy(distort(part.images, kind, s)) for s in five] for kind, five in DISTORTIONS.items()}
        measured |= {"undistorted": accuracy(part.images), "distorted": read}
        measured["distorted_accuracy"] = float(np.mean(list(read.values())))
    return measured


# ---------------------------------------------------------------- all runs


def losses_of(question: str) -> tuple[str, ...]:
    """The losses that a question compares."""
    return tuning.LOSSES + EXTRA.get(question, ())


def constants(name: str) -> dict[str, tuple]:
    """The tuned constants of the controlled study's losses; none before its trials exist."""
    try:
        trials = tuning.results(name)
    except Incomplete:
        return {}
    return {run["head"]: tuple(map(tuple, run["constants"])) for _, run in trials.iterrows() if run["chosen"]}


def question_runs(name: str, question: str, full: bool = False) -> list[Run]:
    """The runs of a question on a data set, seeds in the outer loop; full: the settings for a GPU."""
    changes, seeds = SETTINGS["full" if full else "cpu"][name]
    tuned, planned = constants(name), []
    for seed, level, head in itertools.product(range(seeds), QUESTIONS[question], losses_of(question)):
        config = dataclasses.asdict(runs.recipe(name, head, seed, constants=tuned.get(head, ())))
        planned.append(Run(**config | changes | {"question": question, "level": level}))
    return planned


BEYOND = {
    (name, question): Study(
        f"{question.replace(' ', '_')}_{name}", f"{QUESTION_TEXTS[question]}, on {tuning.TITLES[name]}", Run,
        functools.partial(question_runs, name, question), execute, file="beyond",
    )
    for name, question in itertools.product(SETTINGS["cpu"], QUESTIONS)
}  # fmt: skip
STUDIES = list(BEYOND.values())


def finished(name: str, question: str) -> pd.DataFrame:
    """One row per run of those seeds of which every head at every level is recorded; none if there is no such
    seed. The full runs where they have two seeds, else the CPU's. stalled, as in ``margin_maps``: is the validation
    accuracy nearer to chance than to the best of the seed and level? Such a loss, and triplet, is
    ``statistics.apart``."""
    study, found = BEYOND[name, question], []
    for full in (True, False):
        try:
            found.append(study.finished(full))
        except Incomplete:
            found.append(pd.DataFrame())
    rows = max(found, key=lambda rows: min(2, rows["seed"].nunique()) if len(rows) else 0)
    if rows.empty:
        return rows
    final = rows["history"].map(lambda history: history["val_accuracy"][-1])
    best = final.groupby([rows["seed"], rows["level"]]).transform("max")
    return rows.assign(stalled=final < (1 / rows["classes"] + best) / 2, apart=rows["head"] == "Triplet")


def difference(rows: pd.DataFrame, metric: str, reference: str = "Softmax", only=None) -> pd.DataFrame:
    """``statistics.differences`` to the reference, in points, of a metric averaged over the levels in rows."""
    averaged = (
        rows.groupby(["head", "seed"], sort=False).agg({metric: "mean", "stalled": "any", "apart": "any"}).reset_index()
    )
    return statistics.differences(averaged, metric, reference, only, 100)


def by_label(rows: dict[str, pd.DataFrame], reference: str = "Softmax", only=None) -> dict[str, pd.DataFrame]:
    """``difference`` in what ``SUMMARY`` shows, by its labels; rows: by question, of one data set."""
    return {
        label: difference(rows[question], metric, reference, only)
        for label, (question, metric) in SUMMARY.items()
        if len(rows.get(question, ()))
    }


def strengths(rows: pd.DataFrame) -> pd.DataFrame:
    """The accuracies under distortion, one row each: head, seed, kind, level (0, undistorted, to 5), accuracy."""
    return pd.DataFrame(
        [
            {**row[["head", "seed", "stalled", "apart"]], "kind": kind, "level": level, "accuracy": accuracy}
            for _, row in rows.iterrows()
            for kind, five in row["distorted"].items()
            for level, accuracy in enumerate([row["undistorted"], *five])
        ]
    )
