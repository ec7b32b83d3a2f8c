"""Tables and sentences about the controlled study."""

import pandas as pd

from studies import tables, tuning


def answer(frame: pd.DataFrame, others=("CurricularFace", "AdaFace")) -> str:
    """Does AdaLoss beat ArcFace? A paragraph on ``tuning.QUESTIONS``, from the comparison of all losses, with what
    these other adaptive losses show."""
    said, wins, found = [], [], {head: [] for head in others}
    for metric, (title, _, unit, decimals, lower_is_better) in tuning.QUESTIONS.items():
        better = "lower" if lower_is_better else "higher"
        table = tuning.compare(frame, metric)
        texts = {head: f"{tables.bracket(row, decimals)} {unit}".strip() for head, row in table.iterrows()}
        row = table.loc["AdaLoss"]
        verdict = {"higher": "worse", "lower": "worse", better: "better"}.get(row["verdict"], row["verdict"])
        wins += [title] * (verdict == "better")
        power = f" (one of {row['detectable']:.{decimals}f} would have been found with 80 % probability)"
        said.append(f"{title} {texts['AdaLoss']}, {verdict}{power * (verdict == 'no difference shown')}")
        for head in table.index.intersection(others):
            if (verdict := table.at[head, "verdict"]) in ("higher", "lower"):
                found[head].append(f"{'better' if verdict == better else 'worse'} in {title} ({texts[head]})")
    end = f"beats the fixed margin in {' and '.join(wins)}" if wins else "is not shown to beat the fixed margin"
    rest = "; ".join(f"{head} is {' and '.join(parts)}" for head, parts in found.items() if parts)
    return (
        f"AdaLoss minus ArcFace: {'; '.join(said)}. Over {frame['seed'].nunique()} seeds, AdaLoss {end}. Of the other "
        f"adaptive losses, {rest or 'none is shown to differ from ArcFace'}."
    )


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


def settings(frame: pd.DataFrame) -> pd.DataFrame:
    """Of ``tuning.results``: every trial with its setting and its validation accuracy."""
    columns = {
        "loss": frame["head"], "trial": frame["trial"], "factor on lr": frame["factor"],
        "constants": frame["constants"].map(written).where(frame["trial"] > 0, "defaults"),
        "validation accuracy (%)": (100 * frame["val_accuracy"]).map("{:.2f}".format),
    }  # fmt: skip
    return pd.DataFrame(columns).sort_values("loss", key=lambda loss: loss.map(tuning.LOSSES.index), kind="stable")
