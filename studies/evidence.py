"""The runs behind the ledger of claims: where they are recorded, what is read of them, and which of them stalled."""

import contextlib
import itertools
import math

import numpy as np
import pandas as pd
from scipy import stats

from lib import heads
from studies import controlled, margin_maps, records, replicas, s1, s3, tuning, verdicts
from studies.study import Incomplete

DRIFT = 0.001  # of the test accuracy; see ``settled``

# ---------------------------------------------------------------- metrics of a record


def follows_difficulty(record: dict) -> float:
    """Rank correlation, over the classes, of the mean quality factor with the test error."""
    confusion = np.array(record["metrics"]["confusion"])
    error = 1 - confusion.diagonal() / confusion.sum(1).clip(1)
    return stats.spearmanr(record["metrics"]["factor_by_class"], error).statistic


def confused(record: dict, *groups) -> float:
    """Share of the images of these classes that are taken for one of another group."""
    confusion = np.array(record["metrics"]["confusion"])
    between = sum(confusion[np.ix_(a, b)].sum() for a, b in itertools.permutations(groups, 2))
    return between / confusion[np.concatenate(groups)].sum()


def margin(config: dict) -> float:
    """The margin of a run (radians), which may be its loss's default."""
    return dict(config["constants"]).get("m", heads.find(config["head"]).m)


METRICS = {  # beyond those of the record
    "training loss": lambda r: r["history"]["loss"][-1],
    "log seconds": lambda r: math.log(r["seconds"]),
    "log temperature": lambda r: math.log(r["metrics"]["temperature"]),
    "train minus test": lambda r: r["metrics"]["train_accuracy"] - r["metrics"]["test_accuracy"],
    "within over between": lambda r: r["metrics"]["intra_angle"] / r["metrics"]["inter_angle"],
    "beyond the margin": lambda r: r["metrics"]["smallest_angle"] - math.degrees(margin(r["config"])),
    "follows difficulty": follows_difficulty,
    "4 and 9": lambda r: confused(r, [4], [9]),
    "cat and dog": lambda r: confused(r, [3], [5]),
    "animal and vehicle": lambda r: confused(r, [2, 3, 4, 5, 6, 7], [0, 1, 8, 9]),
}


def metric_of(record: dict, metric: str) -> float:
    """A metric of a record, one of METRICS, or "test_accuracy @5" for its value after five epochs."""
    name, _, epoch = metric.partition(" @")
    if epoch:
        return record["history"][name][: int(epoch)][-1]
    return METRICS[name](record) if name in METRICS else record["metrics"][name]


# ---------------------------------------------------------------- runs, by plan, seed and name


def read() -> dict:
    """All records of the replicas and of S1's arms, by run."""
    return replicas.read() | records.read(s1.STUDIES[0].path, s1.Arm)


def answered(recorded: dict) -> dict[str, tuple[int, dict]]:
    """Epochs and records, by seed and name, of every plan with a seed that has all its runs.

    "plan/part" holds records of a plan in another order: "s5_grid/runs" has each run of the grid as a seed of its own,
    "s5_grid/means" the means of groups of margins, "margins_mnist/m" pairs of margins at all scales and seeds.
    """
    found = replicas.answered(recorded)
    for name in s1.PLANS:
        with contextlib.suppress(Incomplete):
            by_seed = s1.complete(name, recorded)
            found[name] = next(iter(by_seed[min(by_seed)].values()))["config"]["epochs"], by_seed
    for name in s3.NAMES:
        with contextlib.suppress(Incomplete):
            by_seed = s3.complete(name, recorded)
            found[f"s3_final_{name}"] = s3.EPOCHS, by_seed
    for name in s1.NAMES:
        with contextlib.suppress(ValueError):  # nothing is recorded
            found[f"controlled_{name}"] = of_frame(tuning.finished(name))
        with contextlib.suppress(ValueError):
            found[f"final_{name}"] = of_frame(controlled.finished(name))
    return found | of_grid(found) | of_maps()


def of_frame(frame: pd.DataFrame) -> tuple[int, dict]:
    """Epochs and records, by seed and head, of rows of a study."""
    by_seed = {}
    for row in frame.to_dict("records"):
        record = {"config": row, "metrics": row, "history": row["history"], "seconds": row["seconds"]}
        by_seed.setdefault(row["seed"], {})[row["head"]] = record
    return int(frame["epochs"].iloc[0]), by_seed


GROUPS = {  # of S5's grid, by (m2, m3)
    "alone": lambda m2, m3: m3 == 0,
    "combined": lambda m2, m3: m3 > 0,
    "0.40 to 0.49": lambda m2, m3: m3 == 0 and m2 < 0.495,
    "0.50 to 0.59": lambda m2, m3: m3 == 0 and m2 > 0.495,
    "0.50": lambda m2, m3: (m2, m3) == (0.5, 0),
    "without 0.50": lambda m2, m3: m3 == 0 and m2 != 0.5,
    "(0.40, 0.20)": lambda m2, m3: (m2, m3) == (0.4, 0.2),
    "without (0.40, 0.20)": lambda m2, m3: m3 > 0 and (m2, m3) != (0.4, 0.2),
}


def of_grid(found: dict) -> dict:
    """S5's grid run by run, and the mean curve of each of ``GROUPS`` by seed."""
    if "s5_grid" not in found:
        return {}
    epochs, by_seed = found["s5_grid"]
    runs = {
        (s, pair): {"combined" if pair[1] else "alone": r} for s, arms in by_seed.items() for pair, r in arms.items()
    }
    means = {
        seed: {group: mean_of([r for pair, r in arms.items() if inside(*pair)]) for group, inside in GROUPS.items()}
        for seed, arms in by_seed.items()
    }
    return {"s5_grid/runs": (epochs, runs), "s5_grid/means": (epochs, means)}


def s5_grid(found: dict) -> tuple[pd.DataFrame, str]:
    """Test accuracy (%) of S5's grid, one row per (m2, m3) and one column per seed; how long the runs are."""
    if "s5_grid" not in found:
        raise Incomplete("no runs of s5_grid are recorded")
    epochs, by_seed = found["s5_grid"]
    table = {s: {pair: 100 * r["metrics"]["test_accuracy"] for pair, r in arms.items()} for s, arms in by_seed.items()}
    return pd.DataFrame(table), f"{epochs} epochs"


def mean_of(runs: list[dict]) -> dict:
    """The record of the mean of some runs' accuracies."""
    curve = np.mean([r["history"]["test_accuracy"] for r in runs], axis=0)
    accuracy = float(np.mean([r["metrics"]["test_accuracy"] for r in runs]))
    return {"config": runs[0]["config"], "metrics": {"test_accuracy": accuracy}, "history": {"test_accuracy": curve}}


def of_maps() -> dict:
    """ArcFace in the maps of margin and scale (warm-up of one epoch): margins by (seed, scale), scales by (seed, m)."""
    found = {}
    for run, record in records.read(margin_maps.STUDIES[0].path, margin_maps.Run).items():
        at = margin_maps.point(run.head, run.constants)
        if run.known == 7 and run.margin_warmup == 1 and at and at[1] == 0:
            m, _, s = at
            of_m, of_s = (found.setdefault(f"margins_{run.data}/{part}", (run.epochs, {}))[1] for part in "ms")
            of_m.setdefault((run.seed, s), {})[f"m = {m}"] = record
            of_s.setdefault((run.seed, m), {})[f"s = {s:g}"] = record
    return found


def sample(found: dict, plan: str, name: str, metric: str) -> tuple[pd.Series, str, bool]:
    """A metric of the run of that name in a plan, by seed; its setting in words; ``Figure.reduced``.

    found: ``answered``. Raises Incomplete if none is recorded.
    """
    epochs, by_seed = found.get(plan, (0, {}))
    runs = {seed: arms[name] for seed, arms in by_seed.items() if name in arms}
    if not runs:
        raise Incomplete(f"no runs of {plan} are recorded")
    values = pd.Series({seed: metric_of(r, metric) for seed, r in runs.items()}, dtype=float)
    own, read = next(iter(runs.values()))["config"]["epochs"], int(metric.partition(" @")[2] or epochs)
    if own != epochs or read < epochs:  # of a length that does not depend on the plan's, or read before the end
        return values, f"{min(own, read)} epoch{'s' * (min(own, read) > 1)}", False
    study = plan.partition("/")[0]
    full = replicas.PLANS[study][2][0] if study in replicas.PLANS else epochs
    return values, *length(epochs, full, list(runs.values()))


def length(epochs: int, full: int, runs: list[dict]) -> tuple[str, bool]:
    """How long these runs are, in words, and ``Figure.reduced``."""
    if epochs >= full:
        return f"{epochs} epochs", False
    short = f"{epochs} epochs, not {full}"
    return (f"{short}: settled", False) if settled(runs) else (short, True)


def settled(runs: list[dict]) -> bool:
    """Did test accuracy change by less than DRIFT from the middle third of the epochs to the last?"""
    curves = np.array([r["history"]["test_accuracy"] for r in runs])  # (seeds, epochs)
    third = curves.shape[1] // 3
    return third > 1 and abs(curves[:, -third:].mean() - curves[:, -2 * third : -third].mean()) < DRIFT


def which_stalled(by_seed: dict) -> dict[tuple, bool]:
    """Which runs of a plan are stalled, by (seed, name): the protocol's rule, by test accuracy, read label-free.

    Runs named "…, long tail" are a setting of their own. In a setting without Softmax the median is that of all runs.
    """
    rows = []
    for (seed, arms), name in ((item, name) for item in by_seed.items() for name in item[1]):
        head, _, setting = str(name).partition(", ")
        metrics = arms[name]["metrics"]
        rows.append((seed, name, head, setting, float(metrics.get("test_accuracy", metrics.get("val_accuracy")))))
    frame = pd.DataFrame(rows, columns=["seed", "name", "head", "setting", "accuracy"])
    found = {}
    for _, part in frame.groupby("setting"):
        heads = part["head"] if "Softmax" in set(part["head"]) else "Softmax"
        marks = verdicts.stalled(part.assign(head=heads), "accuracy")
        found |= dict(zip(zip(part["seed"], part["name"], strict=True), marks, strict=True))
    return found
