"""Tables about the tuning, and about what it found."""

import pandas as pd

from studies import tuning


def written(constants) -> str:
    """Constants as text, for a table."""
    return ", ".join(f"{name} = {value:.3g}" for name, value in constants) or "none"


def space() -> pd.DataFrame:
    """``tuning.SPACE`` as a table."""
    rows = {
        head: ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in tuning.SPACE[head].items())
        for head in tuning.LOSSES
    }
    return pd.DataFrame({"constants drawn": rows}).rename_axis("loss").replace("", "none")


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Of ``tuning.results``: by loss the validation accuracies (%) of all trials, and what the chosen one has."""
    result = (100 * frame.pivot(index="head", columns="trial", values="val_accuracy")).map("{:.2f}".format)
    result.columns = ["defaults", *map(str, result.columns[1:])]
    chosen = frame[frame["chosen"]].set_index("head").loc[result.index]
    result["chosen"] = [str(trial or "defaults") for trial in chosen["trial"]]
    result["factor on lr"] = chosen["factor"].map("{:g}".format)
    result["constants"] = chosen["constants"].map(written).where(chosen["trial"] > 0, "defaults")
    return result.loc[frame["head"].unique()].rename_axis("loss")
