"""RETRAIN=1: recorded runs trained again, into a study of their own in results/again/, and both beside each other."""

import dataclasses
import math
from statistics import median

import pandas as pd

from lib import device
from studies import records

FOLDER = "again"  # within results/; nothing in it is committed
METRICS = ("test_accuracy", "map_at_r", "val_accuracy")  # the first that all runs of a study have is shown
_shown = set()  # studies of this process


def train(study, full: bool = False, **options) -> None:
    """Train the recorded runs of a study's plan again, but for those that results/again/ holds, and print both.

    Says first how long it may take. The recorded runs stay what every figure and sentence rests on.
    """
    recorded = records.read(study.path, study.kind)
    recorded = {run: recorded[run] for run in study.planned(full) if run in recorded}
    own = dataclasses.replace(
        study, plan=lambda full: list(recorded), folder=FOLDER, paired=False, extra=None, keep=None
    )
    again = records.read(own.path, study.kind)
    missing = [run for run in recorded if run not in again]
    if missing:
        print(
            f"RETRAIN=1: {len(missing)} runs of {study.name} are trained again into results/{FOLDER}/, one at a time "
            f"in about {hours(missing, recorded)} hours; interrupted, it goes on where it stopped"
        )
        again = own.train(full, **options)
    if missing or (study.name, full) not in _shown:
        _shown.add((study.name, full))
        names = study.arms(full) if isinstance(study.plan(full), dict) else {}
        print(side_by_side(recorded, again, names).to_string(index=False))


def side_by_side(recorded: dict, again: dict, names: dict) -> pd.DataFrame:
    """A row per loss, or per arm where names holds it: how many runs were trained again, the mean of a metric as
    recorded and again, and the largest difference of a run."""
    pairs = {run: (recorded[run].get("metrics", {}), again[run].get("metrics", {})) for run in recorded if run in again}
    metric = next((key for key in METRICS if all(key in one for pair in pairs.values() for one in pair)), METRICS[0])
    rows = pd.DataFrame(
        {
            "loss": [names.get(run, getattr(run, "head", getattr(run, "loss", ""))) for run in pairs],
            "recorded": [one.get(metric, math.nan) for one, _ in pairs.values()],
            "again": [two.get(metric, math.nan) for _, two in pairs.values()],
        }
    )
    rows["largest difference"] = (rows["again"] - rows["recorded"]).abs()
    by_loss = rows.groupby("loss", sort=False)
    found = by_loss.mean().assign(**{"largest difference": by_loss["largest difference"].max()}).round(4)
    found.insert(0, "runs", by_loss.size())
    return found.reset_index().rename(columns={"recorded": f"{metric}, recorded"})


def hours(missing: list, *recorded: dict) -> str:
    """About how long these runs take, one at a time: by the median seconds of recorded runs of the same data set, for
    as many epochs. Of several dicts of records the first that has such runs counts, and of its runs those from this
    machine, if there are any. "unknown" if there is none."""
    here = records.environment(device.best_device())["device"]
    total = 0.0
    for name in {_data(run) for run in missing}:
        known = next((timed for found in recorded if (timed := _timed(found, name))), [])
        if not known:
            return "unknown"
        per_epoch = [seconds for seconds, where in known if where == here] or [seconds for seconds, _ in known]
        total += median(per_epoch) * sum(_epochs(run) for run in missing if _data(run) == name)
    return f"{total / 3600:.1f}"


def _timed(found: dict, name: str) -> list[tuple[float, str]]:
    """Seconds of an epoch, and the device, of the recorded runs of that data set."""
    return [
        (record["seconds"] / _epochs(run), record.get("device", ""))
        for run, record in found.items() if _data(run) == name and "seconds" in record
    ]  # fmt: skip


def _data(run) -> str:
    return getattr(run, "data", "")


def _epochs(run) -> int:
    return getattr(run, "epochs", 1)
