"""Accuracy against seconds: short recipes, what each ingredient buys, and where the time goes.

    python -m benchmarks.recipes ["MNIST 99 %" ...] [--seeds 3]

The runs have the machine to themselves, one after the other, and are recorded in results/recipes.jsonl:
a killed call goes on where it stopped. ``CHANGES`` exchange one ingredient and leave the rest. What a
training step costs, and how much longer or shorter it is after each change, goes to results/benchmarks.jsonl.
"""

import argparse
import contextlib
import dataclasses
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from unittest import mock

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import in_turns, keep, product_rate, profile, spread
from lib import losses, models, store, study, train

# ingredients of cifar10-airbench (Jordan 2024, arXiv 2404.00498)
AIRBENCH = {
    "network": "SmoothAirNet", "reflect": True, "alternate": True, "linear_warmup": 0.05, "shifted_views": True,
}  # fmt: skip
RECIPES = {
    "MNIST 99 %": study.recipe("mnist", "ArcFace", epochs=1, train_size=35_000, batch_size=256, margin_warmup=0.5),
    "CIFAR-10 90 %": study.recipe("cifar10", "ArcFace", epochs=5),
    "CIFAR-10 94 %": study.recipe("cifar10", "ArcFace", epochs=15, val_size=1000, **AIRBENCH),
    "CIFAR-10 in fifteen epochs": study.recipe("cifar10", "ArcFace", epochs=15, **AIRBENCH),
    "CIFAR-10 in twelve epochs": study.recipe("cifar10", "ArcFace", epochs=12),
    "CIFAR-10 at half width": study.recipe(
        "cifar10", "ArcFace", epochs=4, **AIRBENCH | {"network": "NarrowSmoothAirNet"}
    ),
    "CIFAR-10 in two epochs": study.recipe("cifar10", "ArcFace", epochs=2),
}
LIMITS = {"MNIST 99 %": 5, "CIFAR-10 90 %": 180, "CIFAR-10 94 %": 480}  # seconds that they were to take on four cores
# by recipe: a name and the fields of Config that change, or the part of the code that is exchanged or left out
CHANGES = {
    "MNIST 99 %": {
        "margin from the start": {"margin_warmup": 0.0},
        "no momentum": {"momentum": 0.0},
        "Muon in place of SGD": {"muon_lr": 0.1},
        "fp32": "bf16",
        "channels first": "channels last",
    },
    "CIFAR-10 in two epochs": {
        "SGD in place of Muon": {"muon_lr": 0.0},
        "margin from the start": {"margin_warmup": 0.0},
        "shift of 4 pixels": {"crop_padding": 4},
        "not mirrored, nor in evaluation": "mirror",
        "first layer learned": "whitening",
        "random start of the kernels": "identity",
        "GELU in place of ReLU": {"network": "SmoothAirNet"},
        "label smoothing of 0.2": "sharp labels",
        "mirrored in every other epoch": {"alternate": True},
        "fp32": "bf16",
        "channels first": "channels last",
        "freed memory given back": "memory",
    },
    "CIFAR-10 at half width": {
        "none of these": {field: getattr(study.Config, field) for field in AIRBENCH} | {"network": "NarrowAirNet"},
        "ReLU in place of GELU": {"network": "NarrowAirNet"},
        "black border": {"reflect": False},
        "mirrored at random": {"alternate": False},
        "cosine schedule": {"linear_warmup": 0.0},
        "two views in evaluation": {"shifted_views": False},
        "label smoothing of 0.2": "sharp labels",
        "biases four times as fast": "slow biases",
        "Muon half as fast again": {"muon_lr": 0.18},
    },
}
_load, _optimizers = study.load, train._optimizers


def _unmirrored(*args, **options):
    return dataclasses.replace(_load(*args, **options), flip=False)


def _smoothed(head, x, y):
    return F.cross_entropy(head(x, y), y, label_smoothing=0.2)


def _fast_biases(*args):
    optimizers, kernels = _optimizers(*args)
    optimizers[0].param_groups[1]["lr"] *= 4  # what has one dimension: biases, and the scales of normalisation
    return optimizers, kernels


@contextlib.contextmanager
def _fp32():
    """Neither bf16 nor, on a GPU, the shortened mantissa that PyTorch's convolutions have by default."""
    with mock.patch.object(train, "has_bf16", return_value=False), torch.backends.cudnn.flags(allow_tf32=False):
        yield


PARTS = {
    "bf16": _fp32,
    "channels last": lambda: mock.patch.object(torch, "channels_last", torch.contiguous_format),
    "mirror": lambda: mock.patch.object(study, "load", _unmirrored),
    "whitening": lambda: mock.patch.object(models.AirNet, "prepare"),
    "identity": lambda: mock.patch.object(nn.init, "dirac_"),
    "sharp labels": lambda: mock.patch.object(losses.ArcFace, "loss", _smoothed),
    "slow biases": lambda: mock.patch.object(train, "_optimizers", _fast_biases),
    "memory": lambda: mock.patch.object(train, "reuse_memory"),
}


@dataclass(frozen=True)
class Run:
    """recipe: a name in RECIPES; change: "" or a name in its CHANGES; machine: seconds differ between machines."""

    machine: str
    recipe: str
    change: str = ""
    seed: int = 0


def plan(names, seeds: int) -> list[Run]:
    """The recipes, then their changes, seeds in the outer loop."""
    unknown = set(names) - set(RECIPES)
    if unknown:
        raise ValueError(f"unknown recipe {sorted(unknown)[0]!r}: choose from {', '.join(RECIPES)}")
    machine = store.environment(train.best_device())["device"]
    arms = [(name, change) for name in names for change in ("", *CHANGES.get(name, ()))]
    return [Run(machine, *arm, seed) for seed in range(seeds) for arm in (arms[:2] if store.smoke() else arms)]


def changed(recipe: str, change: str, seed: int = 0) -> tuple[study.Config, str]:
    """The configuration of a recipe with a change, and the part of the code that is exchanged or "" for none."""
    config, change = dataclasses.replace(RECIPES[recipe], seed=seed), CHANGES[recipe][change] if change else {}
    return (config, change) if isinstance(change, str) else (dataclasses.replace(config, **change), "")


def exchange(part: str):
    return PARTS[part]() if part else contextlib.nullcontext()


def train_one(run: Run, _progress: bool) -> dict:
    if changed(run.recipe, run.change)[1] == "memory":  # a process that keeps memory cannot unlearn it
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(_train_one, run).result()
    return _train_one(run)


def _train_one(run: Run) -> dict:
    config, part = changed(run.recipe, run.change, run.seed)
    with exchange(part):
        warm_up = study.recipe("mnist", "ArcFace", epochs=1, train_size=512)
        study.execute(study.shrunk(warm_up), progress=False)  # libraries start outside the clock
        record = study.execute(study.shrunk(config), progress=False)[2]
    return record | {"config": dataclasses.asdict(run), "settings": record["config"]}


def measure(names=tuple(RECIPES), seeds: int = 3) -> None:
    """Make the runs that are missing, and measure the cost of a step and what the changes make of it."""
    runs = plan(names, 1 if store.smoke() else seeds)
    store.collect(runs, "recipes", Run, train_one)
    keep("cost", [cost(name) for name in names], train.best_device())
    if rows := [row for name in names[: 1 if store.smoke() else None] for row in turns(name)]:
        keep("turns", rows, train.best_device())


def recorded() -> pd.DataFrame:
    """One row per run. Raises ValueError if there is none."""
    records = store.read(store.folder("results") / "recipes.jsonl", Run)
    if not records:
        raise ValueError("recipes.jsonl holds no runs: `python -m benchmarks.recipes` makes them")
    return store.frame(records.values())


def took(seconds: pd.Series) -> str:
    """The median, and from the fastest to the slowest run: on a shared machine a mean of few says little."""
    return f"{seconds.median():.1f}" + f" ({seconds.min():.1f} to {seconds.max():.1f})" * (len(seconds) > 1)


# ---------------------------------------------------------------- where the time goes


def few_steps(config: study.Config, steps: int):
    """A function that trains a model so many steps further, in the setting of a run, and returns their seconds."""
    data = study.load_for(config)
    part = dataclasses.replace(data, train=data.train[: steps * config.batch_size], val=data.val[:10])
    network = models.network(config.network, data, config.embedding_dim)
    model = models.Classifier(network, losses.make(config.head, len(data.classes), config.embedding_dim))
    options = {field: getattr(config, field) for field in study.TRAINING} | {"epochs": 1, "progress": False}
    return lambda: train.fit(model, part, **options)["seconds"][0]


def cost(name: str) -> dict:
    """Operations of a recipe, the rate at which this machine multiplies matrices, and the share of a
    step's time by kind of operation."""
    config, steps, device = study.shrunk(RECIPES[name]), 4, train.best_device()
    flop, share = profile(few_steps(config, steps), device)
    images = len(study.load_for(config).train)
    parts = config.epochs * images / min(images, steps * config.batch_size)
    return {"recipe": name, "flop": flop * parts, "flop_per_second": product_rate(device), "share": share}


def changed_steps(config: study.Config, part: str):
    """``few_steps`` on about 2,048 images, with a part of the code exchanged."""
    with exchange(part):
        steps = few_steps(config, max(1, 2048 // config.batch_size))

    def seconds() -> float:
        with exchange(part):
            return steps()

    return seconds


def turns(name: str, rounds: int = 5) -> list[dict]:
    """The time of a step after each change over that of the recipe, the two in turns."""
    rows, changes = [], [*CHANGES.get(name, ())]
    for change in changes[: 1 if store.smoke() else None]:
        arms = {arm: changed(name, arm) for arm in (change, "")}
        ways = {arm: (changed_steps, study.shrunk(config), part) for arm, (config, part) in arms.items()}
        taken = in_turns(ways, rounds)
        ratios = [a / b for a, b in zip(taken[change], taken[""], strict=True)]
        rows.append({"recipe": name, "change": change, "ratio": spread(ratios)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy against seconds.")
    parser.add_argument("names", nargs="*", default=list(RECIPES), help=", ".join(RECIPES))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    try:
        measure(options.names, options.seeds)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    from benchmarks.recipes import main  # under its own name, as the records' dataclass

    main()
