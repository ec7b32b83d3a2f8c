"""The study's runs: describe one by a Config, train it once, keep it in lib.store.

PROFILE=smoke in the environment shrinks every run to seconds.
"""

import dataclasses
import functools
import io
import json
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lib import data as datasets
from lib import losses, metrics, models, store, train

RECIPES = {
    "mnist": {"network": "SmallNet", "epochs": 4, "batch_size": 512, "lr": 0.1},
    "cifar10": {
        "network": "AirNet", "epochs": 4, "batch_size": 1024, "lr": 0.7, "muon_lr": 0.12, "momentum": 0.8,
        "crop_padding": 2,
    },
    "digits": {"network": "SmallNet", "epochs": 20, "batch_size": 64, "lr": 0.05},
}  # fmt: skip
# the main runs: which losses, how many seeds
MAIN = {
    "mnist": (tuple(losses.HEADS), 3),
    "cifar10": (tuple(losses.HEADS), 2),
}
# the fields of a Config that train.fit takes
TRAINING = (
    "epochs", "low_res_epochs", "batch_size", "lr", "muon_lr", "momentum", "weight_decay", "margin_warmup",
    "linear_warmup", "seed",
)  # fmt: skip


def _float(value):
    return float(value) if isinstance(value, int) else value


@dataclass(frozen=True)
class Config:
    """Everything that decides the result of a run; equal configs are the same run.

    constants: the head's own constants, a dict or (name, value) pairs; empty for its defaults.
    train_size: number of training images, 0 for all. val_size: number of validation images, 0 for all; the others
    are trained on. crop_padding, reflect, alternate, shifted_views: as in ``data.Data``, crop_padding None for the
    data set's own. The other fields are those of ``train.fit``.
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
        pairs = self.constants.items() if isinstance(self.constants, dict) else map(tuple, self.constants)
        object.__setattr__(self, "constants", tuple(sorted((k, _float(v)) for k, v in pairs)))
        for field in dataclasses.fields(self):
            if field.type in (float, "float"):  # 1 and 1.0 are the same run, so they need the same key
                object.__setattr__(self, field.name, _float(getattr(self, field.name)))
        losses.find(self.head)

    @property
    def key(self) -> str:
        """Of the fields that are not at their default, so that a field added later changes no key."""
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        changed = {k: v for k, v in dataclasses.asdict(self).items() if v != defaults[k]}
        return sha1(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:12]


def recipe(data: str, head: str, seed: int = 0, **changes) -> Config:
    """The data set's standard configuration (the digits' for an image folder) with this head, seed and changes."""
    return Config(data=data, head=head, seed=seed, **{**RECIPES.get(data, RECIPES["digits"]), **changes})


def plan(data: str) -> list[Config]:
    """The main runs of a data set, seeds in the outer loop, so that a part of it is a smaller study."""
    if data not in MAIN:
        raise ValueError(f"no main runs for {data!r}: choose one of {', '.join(MAIN)}")
    heads, seeds = MAIN[data]
    return [recipe(data, head, seed) for seed in range(1 if store.smoke() else seeds) for head in heads]


def shrunk(config: Config) -> Config:
    """A run of seconds in the smoke profile, the same run elsewhere."""
    if not store.smoke():
        return config
    network = "Narrow" + config.network if config.network in ("AirNet", "SmoothAirNet") else config.network
    return dataclasses.replace(config, network=network, epochs=1, low_res_epochs=0, train_size=512, batch_size=64)


@functools.lru_cache(maxsize=2)
def load(
    name: str, train_size: int = 0, crop_padding: int | None = None, val_size: int = 0, **augmentation: bool
) -> datasets.Data:
    """The data of a run on the best device: all but val_size validation images trained on, cut to train_size training
    images, shifted by up to crop_padding pixels in training, and augmented further as ``data.Data`` says."""
    data = datasets.load(name, store.PROJECT / "data", train.best_device())
    if crop_padding is not None:
        data = dataclasses.replace(data, crop_padding=crop_padding)
    data = dataclasses.replace(data, **augmentation)
    if 0 < val_size < len(data.val):
        more, val = datasets.holdout(data.val, val_size)
        images, labels = (torch.cat([getattr(part, k) for part in (data.train, more)]) for k in ("images", "labels"))
        data = dataclasses.replace(data, train=datasets.Split(images, labels), val=val)
    if train_size:
        size = min(train_size, len(data.train))
        data = dataclasses.replace(data, train=data.train[:size])
    if store.smoke():
        data = dataclasses.replace(data, val=data.val[:250], test=data.test[:250])
    return data


def load_for(config: Config) -> datasets.Data:
    """The data of a run, with its augmentation."""
    augmentation = {field: getattr(config, field) for field in ("reflect", "alternate", "shifted_views")}
    return load(config.data, config.train_size, config.crop_padding, config.val_size, **augmentation)


def fit(config: Config, data: datasets.Data, progress: bool = True) -> tuple[models.Classifier, dict]:
    """The model of a run, trained on data, and its history."""
    torch.manual_seed(config.seed)  # the network first, then W: equal for every head
    network = models.network(config.network, data, config.embedding_dim)
    head = losses.make(config.head, len(data.classes), config.embedding_dim, **dict(config.constants))
    model = models.Classifier(network, head)
    options = {field: getattr(config, field) for field in TRAINING}
    return model, train.fit(model, data, **options, progress=progress, name=config)


def execute(config: Config, progress: bool = True) -> tuple[models.Classifier, datasets.Data, dict]:
    """Train one run; returns (model, data, record). Nothing is written."""
    data = load_for(config)
    model, history = fit(config, data, progress)
    x = train.embed(model, data, data.test)
    with torch.no_grad():
        logits = model.head(x.to(model.head.W.device)).cpu()
    val_logits = train.predict(model, data, data.val)
    measured = metrics.evaluate(logits, data.test.labels.cpu(), x, val_logits, data.val.labels.cpu())
    device = data.train.labels.device
    return model, data, store.record(config, measured, history, device, history["seconds"][-1])


def live(config: Config) -> tuple[models.Classifier, datasets.Data, dict]:
    """Train one run now, with its progress bar, whatever is recorded: for a reader to see it happen."""
    return execute(shrunk(config))


def runs(configs: list[Config], study: str, *, n_jobs: int = 1, budget: float | None = None) -> pd.DataFrame:
    """One row per run: its Config fields, metrics, history, seconds, device and commit.

    Takes what results/<study>.jsonl records and trains what is missing, as ``store.collect`` does with n_jobs
    and budget, which raises OSError if records cannot be written.
    """
    train_one = functools.partial(_train_one, keep=study in MAIN)
    options = {"keep": _keep_embeddings, "n_jobs": n_jobs, "budget": budget}
    return store.frame(store.collect(map(shrunk, configs), study, Config, train_one, **options).values())


def finished(configs: list[Config], study: str) -> pd.DataFrame:
    """The recorded rows of those seeds of which every run is recorded: a complete, smaller study. In the smoke
    profile they are trained first. Raises ValueError if there are none."""
    configs = list(dict.fromkeys(map(shrunk, configs)))
    if store.smoke():
        return runs(configs, study)
    recorded = store.read(store.folder("results") / f"{study}.jsonl", Config)
    seeds = {c.seed for c in configs} - {c.seed for c in configs if c not in recorded}
    if not seeds:
        raise ValueError(f"{study}.jsonl holds no complete seed: `python -m lib.missing {study}` trains them")
    return store.frame(recorded[c] for c in configs if c.seed in seeds)


def _train_one(config: Config, progress: bool, keep: bool) -> dict:
    """keep: also the embeddings of seed 0."""
    model, data, record = execute(config, progress)
    return record | ({"embeddings": _packed(model, data, record)} if keep and config.seed == 0 else {})


def embeddings(config: Config) -> dict:
    """The first test embeddings of a trained run: x (N, d), labels y (N,), centres W (C, d), its record.

    The runs of ``MAIN`` with seed 0 leave them in results/embeddings/; a missing one is trained now.
    """
    config = shrunk(config)
    path = _embeddings_path(config)
    if not path.exists():
        _keep_embeddings(config, _packed(*execute(config)))
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


def _embeddings_path(config: Config) -> Path:
    name = f"{Path(config.data).name}_{config.head}_{config.embedding_dim}d_seed{config.seed}_{config.key}.npz"
    return store.folder("results") / "embeddings" / name


def _packed(model: models.Classifier, data: datasets.Data, record: dict) -> bytes:
    """What ``embeddings`` gives, as the content of a file."""
    part = data.test[:2000]  # half precision and 2,000 images keep a file near 250 kB
    file = io.BytesIO()
    np.savez_compressed(
        file, x=train.embed(model, data, part).half().numpy(), y=part.labels.cpu().numpy(),
        W=model.head.W.detach().cpu().numpy(), record=json.dumps({k: v for k, v in record.items() if k != "history"}),
    )  # fmt: skip
    return file.getvalue()


def _keep_embeddings(config: Config, packed: bytes) -> None:
    path = _embeddings_path(config)
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".part.npz")
    temporary.write_bytes(packed)
    temporary.replace(path)
