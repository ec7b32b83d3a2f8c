"""One training described by a Config, and carried out. The main runs of notebooks 03 and 04 are planned here."""

import dataclasses
import functools
import io
import json
import re
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import Tensor

from lib import data as datasets
from lib import device, heads, losses, metrics, models, paths, train
from studies import checked, image_folder, machine, records, smoke
from studies.study import Study

RECIPES = {
    "mnist": {"network": "SmallNet", "epochs": 4, "batch_size": 512, "lr": 0.1},
    "cifar10": {
        "network": "AirNet", "epochs": 4, "batch_size": 1024, "lr": 0.7, "muon_lr": 0.12, "momentum": 0.8,
        "crop_padding": 2,
    },
    "digits": {"network": "SmallNet", "epochs": 20, "batch_size": 64, "lr": 0.05},
    "omniglot": {
        "network": "SmallNet", "embedding_dim": 128, "epochs": 6, "batch_size": 128, "lr": 0.2, "margin_warmup": 1.5,
    },
}  # fmt: skip
# the fields of a Config that train.fit takes
TRAINING = (
    "epochs", "low_res_epochs", "batch_size", "lr", "muon_lr", "momentum", "weight_decay", "margin_warmup",
    "linear_warmup", "seed",
)  # fmt: skip


# the smallest and the largest value of a field
RANGES = {
    "embedding_dim": (1, 65536), "epochs": (1, 10**6), "low_res_epochs": (0, 10**6), "batch_size": (2, 10**7),
    "train_size": (0, 10**9), "val_size": (0, 10**9), "crop_padding": (0, 1024), "seed": (0, checked.LARGEST),
    "lr": (0, 10**9), "muon_lr": (0, 10**9), "momentum": (0, 1), "weight_decay": (0, 10**6),
    "margin_warmup": (0, 10**6), "linear_warmup": (0, 1),
}  # fmt: skip
IMAGES = {"mnist": (28, 10), "cifar10": (32, 10), "digits": (8, 10)}  # side in pixels, number of classes


@functools.cache
def _constants(head: str) -> dict:
    return heads.find(head).ranges()


@dataclass(frozen=True)
class Config:
    """Everything that decides the result of a run; equal configs are the same run.

    data: a name in lib.data.SETS, or an image folder. constants: the head's own constants, a dict or (name, value)
    pairs; empty for its defaults. train_size: number of training images, 0 for all. val_size: number of validation
    images, 0 for all; the others are trained on. crop_padding, reflect, alternate, shifted_views: as in ``data.Data``,
    crop_padding None for the data set's own. The other fields are those of ``train.fit``.
    """

    data: str
    head: str
    constants: tuple = ()
    network: str = "SmallNet"
    embedding_dim: int = 64
    epochs: int = 4
    low_res_epochs: int = 0
    muon_lr: float = 0.0
    batch_size: int = 512
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    margin_warmup: float = 1.0
    train_size: int = 0
    crop_padding: int | None = None
    reflect: bool = False
    alternate: bool = False
    shifted_views: bool = False
    linear_warmup: float = 0.0
    val_size: int = 0
    seed: int = 0

    def __post_init__(self):
        """Raises ValueError for what no run could be made with: better than after the runs before it."""
        checked.settle(self, self.limits, {"network": models.NETWORKS}, leave=("constants",))
        object.__setattr__(self, "constants", self._settled_constants())
        if self.closed and self.data == "omniglot":
            raise ValueError("the test images of omniglot are of classes never seen: `studies.omniglot` reads them")
        if self.train_size == 1:
            raise ValueError("train_size must be 2 or more, or 0 for all images, got 1")
        if self.data in IMAGES:
            self.check_images(*IMAGES[self.data])

    limits = RANGES
    closed = True  # are the classes of test images those that are trained on?

    def _settled_constants(self) -> tuple:
        head, given = heads.find(self.head), self.constants
        try:
            pairs = dict(given.items() if isinstance(given, dict) else map(tuple, given))
        except (TypeError, ValueError):
            raise ValueError(f"constants must be a dict or pairs of name and value, got {given!r:.60}") from None
        constants, allowed = {}, _constants(self.head)
        for name, value in pairs.items():
            if name not in allowed:
                raise ValueError(f"{self.head}: no constant {name!r}, only {', '.join(allowed) or 'none'}")
            value = checked.python_scalar(value)
            constants[name] = value if (name, value) == ("s", "auto") else head._checked(name, value, *allowed[name])
        # as they were recorded: a whole number is written as 1.0
        return tuple(sorted((k, float(v) if isinstance(v, int) else v) for k, v in constants.items()))

    def check_images(self, side: int, num_classes: int = 2) -> None:
        """Raises ValueError if no run could be made with images of that side in pixels, of so many classes."""
        least = 9 if "AirNet" in self.network else 4  # what is left for the last pooling
        seen = int(0.75 * side) if self.low_res_epochs else side
        if seen < least:
            small = f"{side}, or {seen} in the first epochs" if seen < side else side
            raise ValueError(f"{self.network} needs images of {least} pixels or more, {self.data} has {small}")
        if self.reflect and (self.crop_padding or 0) >= side:
            raise ValueError(f"crop_padding {self.crop_padding} mirrors more than an image of {side} pixels: lower it")
        if 0 < self.val_size < num_classes:
            raise ValueError(f"val_size {self.val_size} is less than one image of each of {num_classes} classes")

    @property
    def key(self) -> str:
        """Of the fields that are not at their default, so that a field added later changes no key."""
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        changed = {k: v for k, v in dataclasses.asdict(self).items() if v != defaults[k]}
        return sha1(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:12]


def recipe(data: str, head: str, seed: int = 0, **changes) -> Config:
    """The data set's standard configuration (the digits' for an image folder) with this head, seed and changes."""
    return Config(data=data, head=head, seed=seed, **{**RECIPES.get(data, RECIPES["digits"]), **changes})


# ---------------------------------------------------------------- one run


@functools.lru_cache(maxsize=2)
def load(name: str, **changes) -> datasets.Data:
    """The data set of that name, or the images in that folder, on the best device, changed as ``cut`` does."""
    folder = None if name in datasets.SETS else image_folder.locate(name)
    data = image_folder.load(*folder) if folder else datasets.load(name, paths.PROJECT / "data")
    return cut(data.to(device.best_device()), **changes)


def cut(
    data: datasets.Data, train_size: int = 0, crop_padding: int | None = None, val_size: int = 0, **augmentation: bool
) -> datasets.Data:
    """Data as a run takes them: all but val_size validation images trained on, cut to train_size training images,
    shifted by up to crop_padding pixels in training, and augmented further as ``data.Data`` says."""
    if crop_padding is not None:
        data = dataclasses.replace(data, crop_padding=crop_padding)
    data = dataclasses.replace(data, **augmentation)
    if 0 < val_size < len(data.val):
        more, val = datasets.holdout(data.val, val_size)
        images, labels = (torch.cat([getattr(part, k) for part in (data.train, more)]) for k in ("images", "labels"))
        data = dataclasses.replace(data, train=datasets.Split(images, labels), val=val)
    if train_size:
        data = dataclasses.replace(data, train=data.train[: min(train_size, len(data.train))])
    return smoke.shrink_data(data)


def load_for(config: Config, data: datasets.Data | None = None) -> datasets.Data:
    """The data of a run, with its augmentation; data: in place of the set of that name."""
    fields = ("train_size", "crop_padding", "val_size", "reflect", "alternate", "shifted_views")
    changes = {field: getattr(config, field) for field in fields}
    return load(config.data, **changes) if data is None else cut(data.to(device.best_device()), **changes)


def fit(config: Config, data: datasets.Data, progress: bool = True) -> tuple[models.Classifier, dict]:
    """The model of a run, trained on data, and its history."""
    torch.manual_seed(config.seed)  # the network first, then W: equal for every head
    network = models.network(config.network, data.sample(), config.embedding_dim)
    head = heads.make(config.head, len(data.classes), config.embedding_dim, **dict(config.constants))
    model = models.Classifier(network, head)
    options = {field: getattr(config, field) for field in TRAINING}
    return model, train.fit(model, data, **options, progress=progress, name=config)


def evaluate(logits: Tensor, y: Tensor, x: Tensor, val_logits: Tensor, val_y: Tensor) -> dict:
    """All test metrics of one run from its label-free test logits (N, C), labels and embeddings.

    The temperature behind test_loss and ece is fitted on validation logits. A metric whose computation fails is
    NaN, and error says why.
    """
    predicted = logits.argmax(1)

    def scores():
        return map(float, precision_recall_fscore_support(y, predicted, average="macro", zero_division=0)[:3])

    def softmax():
        t = metrics.temperature(val_logits, val_y)
        return metrics.cross_entropy(logits, y, t), metrics.calibration_error(logits / t, y), t

    return records.metrics_of({
        "test_accuracy": lambda: metrics.accuracy(logits, y),
        "val_accuracy": lambda: metrics.accuracy(val_logits, val_y),
        ("precision", "recall", "f1"): scores,
        ("test_loss", "ece", "temperature"): softmax,
        ("intra_angle", "inter_angle", "smallest_angle", "angle_ratio"): lambda: metrics.angles(x, y).values(),
        "recall_at_1": lambda: metrics.recall_at_1(x, y),
        "confusion": lambda: confusion_matrix(y, predicted, labels=range(logits.shape[1])).tolist(),
    })  # fmt: skip


def execute(
    config: Config, progress: bool = False, data: datasets.Data | None = None
) -> tuple[models.Classifier, dict]:
    """Train one run, on data if they are given; returns the model and its record. Nothing is written."""
    data = load_for(config, data)
    if data.unseen:
        raise ValueError(f"the test images of {data.name} are of classes never seen: `studies.{data.name}` reads them")
    config.check_images(data.train.images.shape[-1], len(data.classes))
    model, history = fit(config, data, progress)

    def measured():
        x = train.embed(model, data, data.test)
        with torch.no_grad():
            logits = model.head(x.to(model.head.W.device)).cpu()
        val_logits = train.predict(model, data, data.val)
        return evaluate(logits, data.test.labels.cpu(), x, val_logits, data.val.labels.cpu())

    record = records.record(config, measured, history, data.train.labels.device, history["seconds"][-1])
    if config.data not in datasets.SETS and (images := image_folder.receipt(config.data)):
        record["images"] = images
    return model, record


def live(config: Config) -> tuple[models.Classifier, datasets.Data, dict]:
    """Train one run now, with its progress bar, whatever is recorded: for a reader to see it happen.
    Returns model, data and record."""
    config = smoke.shrink(config)
    if device.best_device().type == "cpu":
        machine.reuse_memory()
    model, record = execute(config, progress=True)
    return model, load_for(config), record


# ---------------------------------------------------------------- the main runs


def embeddings(config: Config) -> dict:
    """The first test embeddings of a trained run: x (N, d), labels y (N,), centres W (C, d), its record.

    The main runs with seed 0 leave them in results/embeddings/; a missing one is trained now.
    """
    config = smoke.shrink(config)
    path = _embeddings_path(config)
    if not path.exists():
        model, record = execute(config, progress=True)
        _keep_embeddings(config, _pack(config, model, record))
    with np.load(path) as stored:
        return {**stored, "x": stored["x"].astype(np.float32), "record": json.loads(str(stored["record"]))}


def accuracy_with_margin(config: Config, m: float) -> float:
    """Test accuracy of a trained ArcFace run, read with the margin m (radians) left on the true class.

    From its kept embeddings; m = 0 is the label-free reading.
    """
    kept = embeddings(config)
    x, y = torch.from_numpy(kept["x"]), torch.from_numpy(kept["y"])
    head = losses.ArcFace(*kept["W"].shape, m=m).eval()
    head.W.data = torch.from_numpy(kept["W"])
    with torch.no_grad():
        return metrics.accuracy(head(x, y), y)


def halved(x: Tensor) -> Tensor:
    """x (..., d) in half precision; as it is where that would change a row by more than a thousandth of its length.

    Lengths mean nothing to most heads, so an embedding may be longer than the largest number of that precision.
    """
    half = x.half()
    exact = (half.to(x.dtype) - x).norm(dim=-1) <= 1e-3 * x.norm(dim=-1)
    return half if exact.all() else x


def _embeddings_path(config: Config) -> Path:
    name = f"{Path(config.data).name}_{config.head}_{config.embedding_dim}d_seed{config.seed}_{config.key}.npz"
    return paths.folder("results") / "embeddings" / name


def _pack(config: Config, model: models.Classifier, record: dict) -> bytes:
    """What ``embeddings`` gives, as the content of a file."""
    data = load_for(config)
    part = data.test[:2000]  # half precision and 2,000 images keep a file near 250 kB
    x = halved(train.embed(model, data, part))
    file = io.BytesIO()
    np.savez_compressed(
        file, x=x.numpy(), y=part.labels.cpu().numpy(),
        W=model.head.W.detach().cpu().numpy(), record=json.dumps({k: v for k, v in record.items() if k != "history"}),
    )  # fmt: skip
    return file.getvalue()


def _keep_embeddings(config: Config, packed: bytes) -> None:
    paths.write(_embeddings_path(config), packed)


def _first_seed(config: Config, model: models.Classifier, record: dict) -> bytes | None:
    return _pack(config, model, record) if config.seed == 0 else None


def main_runs(data: str, seeds: int) -> list[Config]:
    """All nine losses at their defaults, seeds in the outer loop."""
    return [recipe(data, head, seed) for seed in range(seeds) for head in heads.NINE]


def listed(name: str, configs: list[Config], data: datasets.Data | None = None) -> Study:
    """A study of one's own: these runs, recorded in results/<name>.jsonl. data: of one's own, by the name that the runs
    give; else a data set or an image folder has that name. Raises ValueError for runs on other data than these, and for
    a name that is no file's."""
    if not re.fullmatch(r'[^\\/:*?"<>|\0.][^\\/:*?"<>|\0]*', name):
        raise ValueError(f"a study cannot be called {name!r}: a file in results/ is named after it, as in 'mine'")
    if other := {config.data for config in configs} - {data.name} if data else ():
        raise ValueError(f"a run is on {min(other)!r}, and the data are called {data.name!r}: they need one name")
    for config in () if data else configs:
        if config.data not in datasets.SETS and not image_folder.locate(config.data):
            datasets.load(config.data)  # says which there are
    train_on = functools.partial(execute, data=data) if data else execute
    return Study(name, "What do these runs show?", Config, lambda full: configs, train_on)


MAIN = {
    name: Study(
        name, f"Nine losses at their defaults on {title}, the full network", Config,
        lambda full, name=name, seeds=seeds: main_runs(name, seeds), execute,
        extra=_first_seed, keep=_keep_embeddings,
    )
    for name, title, seeds in (("mnist", "MNIST", 3), ("cifar10", "CIFAR-10", 2))
}  # fmt: skip
STUDIES = list(MAIN.values())
