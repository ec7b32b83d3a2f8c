"""Accuracy against seconds: short recipes, what each ingredient buys, and where the time goes.

    python -m benchmarks.recipes ["MNIST 99 %" ...] [--seeds 3]

The runs have the machine to themselves, one after the other, and are recorded in results/recipes.jsonl:
a killed call goes on where it stopped. ``CHANGES`` exchange one ingredient and leave the rest. What a
training step costs, and how much longer or shorter it is after each change, goes to results/benchmarks.jsonl.
All of it takes hours on two CPU cores; one recipe takes minutes.
"""

import argparse
import dataclasses
import sys
from dataclasses import dataclass

import pandas as pd

from benchmarks import in_turns, keep, product_rate, profile, scaled, spread
from lib import heads, models, paths, train
from lib.device import best_device
from studies import machine, records, runs, smoke
from studies.study import Study

# ingredients of cifar10-airbench (Jordan 2024, arXiv 2404.00498)
AIRBENCH = {
    "network": "SmoothAirNet", "reflect": True, "alternate": True, "linear_warmup": 0.05, "shifted_views": True,
}  # fmt: skip
RECIPES = {
    "MNIST 99 %": runs.recipe("mnist", "ArcFace", epochs=1, train_size=35_000, batch_size=256, margin_warmup=0.5),
    "CIFAR-10 90 %": runs.recipe("cifar10", "ArcFace", epochs=5),
    "CIFAR-10 94 %": runs.recipe("cifar10", "ArcFace", epochs=15, val_size=1000, **AIRBENCH),
    "CIFAR-10 in fifteen epochs": runs.recipe("cifar10", "ArcFace", epochs=15, **AIRBENCH),
    "CIFAR-10 in twelve epochs": runs.recipe("cifar10", "ArcFace", epochs=12),
    "CIFAR-10 at half width": runs.recipe(
        "cifar10", "ArcFace", epochs=4, **AIRBENCH | {"network": "NarrowSmoothAirNet"}
    ),
    "CIFAR-10 in two epochs": runs.recipe("cifar10", "ArcFace", epochs=2),
}
LIMITS = {"MNIST 99 %": 5, "CIFAR-10 90 %": 180, "CIFAR-10 94 %": 480}  # seconds that they were to take on four cores
# by recipe: a name and the fields of Config that change. The records hold further changes, of parts of the code that
# no field describes; the commit that each of them names repeats it.
CHANGES = {
    "MNIST 99 %": {
        "margin from the start": {"margin_warmup": 0.0},
        "no momentum": {"momentum": 0.0},
        "Muon in place of SGD": {"muon_lr": 0.1},
    },
    "CIFAR-10 in two epochs": {
        "SGD in place of Muon": {"muon_lr": 0.0},
        "margin from the start": {"margin_warmup": 0.0},
        "shift of 4 pixels": {"crop_padding": 4},
        "GELU in place of ReLU": {"network": "SmoothAirNet"},
        "mirrored in every other epoch": {"alternate": True},
    },
    "CIFAR-10 at half width": {
        "none of these": {field: getattr(runs.Config, field) for field in AIRBENCH} | {"network": "NarrowAirNet"},
        "ReLU in place of GELU": {"network": "NarrowAirNet"},
        "black border": {"reflect": False},
        "mirrored at random": {"alternate": False},
        "cosine schedule": {"linear_warmup": 0.0},
        "two views in evaluation": {"shifted_views": False},
        "Muon half as fast again": {"muon_lr": 0.18},
    },
}


@dataclass(frozen=True)
class Run:
    """recipe: a name in RECIPES; change: "" or a name in its CHANGES; machine: seconds differ between machines."""

    machine: str
    recipe: str
    change: str = ""
    seed: int = 0


def planned(names, seeds: int) -> list[Run]:
    """The recipes, then their changes, seeds in the outer loop."""
    unknown = set(names) - set(RECIPES)
    if unknown:
        raise ValueError(f"unknown recipe {sorted(unknown)[0]!r}: choose from {', '.join(RECIPES)}")
    machine = records.environment(best_device())["device"]
    arms = [(name, change) for name in names for change in ("", *CHANGES.get(name, ()))]
    return [Run(machine, *arm, seed) for seed in range(seeds) for arm in scaled(arms, arms[:2])]


def changed(recipe: str, change: str, seed: int = 0) -> runs.Config:
    """The configuration of a recipe with a change."""
    return dataclasses.replace(RECIPES[recipe], seed=seed, **(CHANGES[recipe][change] if change else {}))


def execute(run: Run, progress: bool = False) -> tuple:
    """Train one run; returns the model and its record."""
    runs.execute(smoke.shrink(runs.recipe("mnist", "ArcFace", epochs=1, train_size=512)))  # libraries start untimed
    model, record = runs.execute(smoke.shrink(changed(run.recipe, run.change, run.seed)))
    return model, record | {"config": dataclasses.asdict(run), "settings": record["config"]}


def train_and_time(names=tuple(RECIPES), seeds: int = 3) -> None:
    """Make the runs that are missing, and measure the cost of a step and what the changes make of it."""
    plan = planned(names, scaled(seeds, 1))
    Study("recipes", "How fast can a training be?", Run, lambda full: plan, execute).train()
    keep("cost", [cost(name) for name in names], best_device())
    if rows := [row for name in scaled(names, names[:1]) for row in turns(name)]:
        keep("turns", rows, best_device())


def recorded() -> pd.DataFrame:
    """One row per run. Raises ValueError if there is none."""
    found = records.read(paths.folder("results") / "recipes.jsonl", Run)
    if not found:
        raise ValueError("recipes.jsonl holds no runs: `python -m benchmarks.recipes` makes them")
    return records.frame(found.values())


def took(seconds: pd.Series) -> str:
    """The median, and from the fastest to the slowest run: on a shared machine a mean of few says little."""
    return f"{seconds.median():.1f}" + f" ({seconds.min():.1f} to {seconds.max():.1f})" * (len(seconds) > 1)


# ---------------------------------------------------------------- where the time goes


def few_steps(config: runs.Config, steps: int):
    """A function that trains a model so many steps further, in the setting of a run, and returns their seconds."""
    data = runs.load_for(config)
    part = dataclasses.replace(data, train=data.train[: steps * config.batch_size], val=data.val[:10])
    network = models.network(config.network, data.sample(), config.embedding_dim)
    model = models.Classifier(network, heads.make(config.head, len(data.classes), config.embedding_dim))
    options = {field: getattr(config, field) for field in runs.TRAINING} | {"epochs": 1, "progress": False}
    return lambda: train.fit(model, part, **options)["seconds"][0]


def cost(name: str) -> dict:
    """Operations of a recipe, the rate at which this machine multiplies matrices, and the share of a
    step's time by kind of operation."""
    config, steps, device = smoke.shrink(RECIPES[name]), 4, best_device()
    flop, share = profile(few_steps(config, steps), device)
    images = len(runs.load_for(config).train)
    parts = config.epochs * images / min(images, steps * config.batch_size)
    return {"recipe": name, "flop": flop * parts, "flop_per_second": product_rate(device), "share": share}


def some_steps(config: runs.Config):
    """``few_steps`` on about 2,048 images, in a process that keeps its memory as a study's does."""
    if best_device().type == "cpu":
        machine.reuse_memory()
    return few_steps(config, max(1, 2048 // config.batch_size))


def turns(name: str, rounds: int = 5) -> list[dict]:
    """The time of a step after each change over that of the recipe, the two in turns."""
    rows, changes = [], [*CHANGES.get(name, ())]
    for change in scaled(changes, changes[:1]):
        taken = in_turns({arm: (some_steps, smoke.shrink(changed(name, arm))) for arm in (change, "")}, rounds)
        ratios = [a / b for a, b in zip(taken[change], taken[""], strict=True)]
        rows.append({"recipe": name, "change": change, "ratio": spread(ratios)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(RECIPES), help=", ".join(RECIPES).replace("%", "%%"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    try:
        paths.smoke(), paths.retrain()
        train_and_time(options.names, options.seeds)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    from benchmarks.recipes import main  # under its own name, as the records' dataclass

    main()
