"""Does an adaptive margin beat a fixed one with ten classes? MNIST and CIFAR-10 under ``studies/PROTOCOL.md``.

Per data set: trials, the best of them again (finalists), final runs at what was chosen; on CIFAR-10 also a longer
schedule. ``python -m studies final_mnist`` trains the first two and then the third.
"""

import dataclasses
import functools
from dataclasses import dataclass

import numpy as np
import pandas as pd

from studies import answers, records, runs, search, verdicts
from studies.study import Study

MEASURE = "val_accuracy"  # chooses
PRIMARY = ("AdaLoss", "ArcFace")
CORE = ("ArcFace", "AdaLoss", "Softmax", "NormFace")
SEEDS, SECONDARY_SEEDS, LONG_SEEDS = 20, 10, 5


@dataclass(frozen=True)
class Setting:
    """What is the same for all losses of a data set, and which these are; bound: of equivalence, in points of test
    accuracy."""

    title: str
    bound: float
    losses: tuple[str, ...]
    changes: dict


SETTINGS = {
    "mnist": Setting("MNIST", 0.1, (*CORE, "CosFace", "AdaFace"), {}),
    "cifar10": Setting("CIFAR-10", 0.2, CORE, {"network": "NarrowAirNet"}),
}
LONG_EPOCHS = 16


def default(data: str, head: str) -> runs.Config:
    """The first trial of a loss, but for its seed."""
    return runs.recipe(data, head, **SETTINGS[data].changes)


def trials(data: str, full: bool = False) -> list[runs.Config]:
    """All trials, the first ones of all losses first."""
    by_loss = [search.trials(default(data, head)) for head in SETTINGS[data].losses]
    return [trial for same in zip(*by_loss, strict=True) for trial in same]


def wider(data: str, full: bool = False) -> list[runs.Config]:
    """Further trials of the losses whose best one lies at an end of a range. Raises Incomplete."""
    planned, found = TRIALS[data].planned(), TRIALS[data].read()
    more = [
        search.wider(default(data, head), planned, found, MEASURE) for head in dict.fromkeys(r.head for r in planned)
    ]
    return [trial for trials in more for trial in trials]


def finalists(data: str, full: bool = False) -> list[runs.Config]:
    studies = TRIALS[data], WIDER[data]
    planned = [run for study in studies for run in study.planned()]
    return search.finalists(planned, studies[0].read() | studies[1].read(), MEASURE)


def chosen(data: str) -> dict[str, runs.Config]:
    """By loss what the final runs are made with. Raises Incomplete."""
    return search.chosen(FINALISTS[data].planned(), FINALISTS[data].read(), MEASURE)


def controls(data: str) -> dict[str, runs.Config]:
    """``search.controls`` at AdaLoss's scale and learning rate, with the mean and the spread of its margins at the end
    of the training of the chosen finalist (its first seed)."""
    adaloss = chosen(data)["AdaLoss"]
    margins = np.array(FINALISTS[data].read()[adaloss]["history"]["margins"][-1])
    return search.controls(adaloss, margins.mean(), margins.std())


def final(data: str, full: bool = False) -> dict[runs.Config, str]:
    """The final runs and the name of their arm, seeds in the outer loop. Raises Incomplete."""
    arms, losses = chosen(data) | controls(data), SETTINGS[data].losses
    return {
        dataclasses.replace(run, seed=seed): name
        for seed in range(SEEDS)
        for name, run in arms.items()
        if seed < SECONDARY_SEEDS or name in PRIMARY or name not in losses
    }


def long(data: str, full: bool = False) -> list[runs.Config]:
    """Four losses at what was chosen for the short schedule, four times as long."""
    best = chosen(data)
    return [
        dataclasses.replace(best[head], seed=seed, epochs=LONG_EPOCHS) for seed in range(LONG_SEEDS) for head in CORE
    ]


_final_run = search.count_failures(answers.with_answers(runs.execute), MEASURE)
TRIALS = {
    data: Study(
        f"trials_{data}", f"Which constants suit each loss on {setting.title}? Twelve trials each", runs.Config,
        functools.partial(trials, data), search.hide_test(runs.execute, MEASURE),
    )
    for data, setting in SETTINGS.items()
}  # fmt: skip
WIDER = {
    data: Study(
        f"wider_{data}", f"Six trials more where the best one on {setting.title} lies at an end of a range",
        runs.Config, functools.partial(wider, data), search.hide_test(runs.execute, MEASURE), file=f"trials_{data}",
        needs=f"trials_{data}",
    )
    for data, setting in SETTINGS.items()
}  # fmt: skip
FINALISTS = {
    data: Study(
        f"finalists_{data}", f"The three best trials of each loss on {setting.title} again", runs.Config,
        functools.partial(finalists, data), search.hide_test(runs.execute, MEASURE), file=f"trials_{data}",
        needs=f"wider_{data}",
    )
    for data, setting in SETTINGS.items()
}  # fmt: skip
FINAL = {
    data: Study(
        f"final_{data}", f"Does an adaptive margin beat a fixed one, and does a margin pay, on {setting.title}?",
        runs.Config, functools.partial(final, data), _final_run,
        needs=f"finalists_{data}", paired=True,
    )
    for data, setting in SETTINGS.items()
}  # fmt: skip
LONG = Study(
    "long_cifar10", "The same with a schedule four times as long, on CIFAR-10", runs.Config,
    functools.partial(long, "cifar10"), _final_run, needs="finalists_cifar10",
    paired=True,
)  # fmt: skip
STUDIES = [*TRIALS.values(), *WIDER.values(), *FINALISTS.values(), *FINAL.values(), LONG]


def finished(data: str) -> pd.DataFrame:
    """The rows of the final runs of complete seeds, with arm in place of head, stalled, and curve: the mean of the
    validation accuracies after every epoch, higher for a run that gets there sooner. Raises Incomplete."""
    names = FINAL[data].arms()
    found = FINAL[data].complete()
    frame = records.frame(found.values()).assign(head=[names[run] for run in found])
    frame["curve"] = [np.mean(history.get("val_accuracy", np.nan)) for history in frame["history"]]
    return frame.assign(stalled=verdicts.stalled(frame))


def tried(data: str) -> pd.DataFrame:
    """The rows of all trials (stage "trial", then "wider") and finalists, with factor: on the recipe's learning rates,
    and chosen: at the constants and rates of the final runs. Raises Incomplete."""
    best, parts = chosen(data), []
    for stage, study in (("trial", TRIALS[data]), ("wider", WIDER[data]), ("finalist", FINALISTS[data])):
        planned, found = study.planned(), study.read()
        part = records.frame(found[run] for run in planned)
        settled = [(run.constants, run.lr) == (best[run.head].constants, best[run.head].lr) for run in planned]
        factor = [float(f"{run.lr / default(data, run.head).lr:.3g}") for run in planned]
        parts.append(part.assign(stage=stage, factor=factor, chosen=settled))
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


def right(data: str) -> dict[str, dict[int, np.ndarray]]:
    """By arm and seed which test images (N,) a final run has right; runs that failed have none. Raises Incomplete."""
    names, found = FINAL[data].arms(), {}
    for run, record in FINAL[data].complete().items():
        if "wrong" in record:
            found.setdefault(names[run], {})[run.seed] = ~answers.unpack(record["wrong"])
    return found
