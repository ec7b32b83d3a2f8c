"""Tables of numbers: what ``statistics`` finds, as text."""

import numpy as np
import pandas as pd

from studies import statistics

DASH = "\N{EN DASH}"  # for what is not defined, or was not measured


def summary(
    frame: pd.DataFrame, columns: dict[str, tuple[str, float, int]], bootstrapped: bool = False
) -> pd.DataFrame:
    """A table by loss: n and, per column, the mean ± half the 95 % interval of ``statistics.means`` if there is one.

    columns: heading -> (metric, factor, decimals), for instance {"accuracy (%)": ("test_accuracy", 100, 2)}; a
    metric that the frame lacks is left out, and a loss with a run that lacks it has a dash. bootstrapped: mean
    [low, high] by ``statistics.bootstrap`` instead, where there are runs enough.
    """
    table = frame.groupby("head", sort=False).size().rename("n").to_frame().rename_axis("loss")
    for heading, (metric, factor, decimals) in columns.items():
        if metric not in frame:
            continue
        values = {head: factor * v for head, v in statistics.by_loss(frame, metric).items()}
        if bootstrapped and table["n"].min() >= statistics.ENOUGH:
            table[heading] = [
                _range(*statistics.bootstrap(v), decimals) if np.isfinite(v).all() else DASH for v in values.values()
            ]
            continue
        known = {head: v for head, v in values.items() if np.isfinite(v).all()}  # the noise is theirs
        cells = {
            head: f"{mean:.{decimals}f}" + (f" ± {high - mean:.{decimals}f}" if np.isfinite(high) else "")
            for head, (mean, _, high) in statistics.means(known, apart=statistics.apart(frame)).items()
        }
        table[heading] = [cells.get(head, DASH) for head in values]
    return table


def _number(value: float, form: str) -> str:
    return f"{value:{form}}" if np.isfinite(value) else DASH


def _range(mean: float, low: float, high: float, decimals: int) -> str:
    return _number(mean, f".{decimals}f") + (f" [{low:.{decimals}f}, {high:.{decimals}f}]" if np.isfinite(low) else "")


def convergence(frame: pd.DataFrame, accuracies) -> pd.DataFrame:
    """A table by loss: mean epochs and seconds to these validation accuracies, with bootstrap intervals.

    A mean over the runs that get there would flatter a loss whose slow runs do not: where some never do, the
    cell says how many did.
    """
    table = frame.groupby("head", sort=False).size().rename("n").to_frame().rename_axis("loss")
    for accuracy in accuracies:
        times = statistics.reached(frame, accuracy)
        for unit, decimals in (("epochs", 1), ("seconds", 0)):
            table[f"{unit} to {accuracy:.0%}"] = [
                _range(*statistics.bootstrap(v), decimals)
                if np.isfinite(v).all()
                else f"{np.isfinite(v).sum()} of {len(v)} runs"
                for v in statistics.by_loss(frame.assign(time=times[unit]), "time").values()
            ]
    return table


def as_text(table: pd.DataFrame, digits: int = 2) -> pd.DataFrame:
    """A ``statistics.compare`` table as text, one column per idea."""
    return pd.DataFrame(
        {
            "n": table["n"].astype(int),
            "difference": [bracket(row, digits) for _, row in table.iterrows()],
            "p": [_number(value, ".3f") for value in table["p"]],
            "p (Holm)": [_number(value, ".3f") for value in table["p_holm"]],
        }
    )


def bracket(row: pd.Series, digits: int = 2) -> str:
    """A row of ``statistics.differences`` as text: mean and, in brackets, its interval."""
    interval = f"[{row['low']:+.{digits}f}, {row['high']:+.{digits}f}]" if pd.notna(row["low"]) else "(no interval)"
    return f"{row['mean']:+.{digits}f} {interval}" if np.isfinite(row["mean"]) else DASH
