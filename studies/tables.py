"""Tables and sentences of numbers: what ``statistics`` finds, as text."""

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
            "bootstrap 95 %": [
                f"[{a:+.{digits}f}, {b:+.{digits}f}]" if np.isfinite(a) else ""
                for a, b in table[["boot_low", "boot_high"]].values
            ],
            "p": [_number(value, ".3f") for value in table["p"]],
            "p (Holm)": [_number(value, ".3f") for value in table["p_holm"]],
            "d": [_number(value, "+.1f") for value in table["d"]],
            "P(better)": [_range(*row, 2) for row in table.filter(like="improvement").values],
            "detectable": [_number(value, f".{digits}f") for value in table["detectable"]],
            "verdict": table["verdict"],
        }
    )


def power_note(table: pd.DataFrame, unit: str, digits: int = 2) -> str:
    """A sentence on what a ``statistics.compare`` table could have shown."""
    n, k = int(table["n"].min()), len(table)
    if n < 2:
        return "One seed: nothing can be tested."
    smallest = 2.0 ** (1 - n)
    corrected = f"{min(1, k * smallest):.2g} after correction for {k} comparison{'s' * (k > 1)}"
    verdict = "" if statistics.reaches(table) else ": it cannot reach 5 %, and the verdicts rest on the intervals alone"
    found = table.loc[~table["apart"], "detectable"].max()
    apart = table.index[table["apart"]]
    aside = f" ({' and '.join(apart)} aside, whose noise is {'their' if len(apart) > 1 else 'its'} own)"
    return (
        f"With {n} seeds the exact test cannot give a p below {smallest:.2g}, {corrected}{verdict}. A true difference "
        f"of {found:.{digits}f}{unit and ' '}{unit} would have been found with 80 % probability"
        f"{aside * (len(apart) > 0)}."
    )


def bracket(row: pd.Series, digits: int = 2) -> str:
    """A row of ``statistics.differences`` as text: mean and, in brackets, its interval."""
    interval = f"[{row['low']:+.{digits}f}, {row['high']:+.{digits}f}]" if pd.notna(row["low"]) else "(no interval)"
    return f"{row['mean']:+.{digits}f} {interval}" if np.isfinite(row["mean"]) else DASH
