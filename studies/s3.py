"""S3's comparison: as many trials for every loss, judged on validation images, and final runs at what these found.

S3 says that it tuned scale and margin above all, and the learning rate, on validation sets; it names neither values nor
numbers (its sections on the losses and on the optimizer). Open there, and fixed here before the first run:

    network    3x3 kernels with stride 2, where ``replicas`` pools: a third of the time
    epochs     ``EPOCHS``, for all losses and both data sets, in trials as in final runs; by the time that they take
    rate       constant, from a hundredfold range around 0.01 (``RATES``)
    s and m    from the ranges of ``search.SPACE``, the margin of the triplet loss too
    trials     ``search.TRIALS`` per loss, the first at the defaults of ``replicas.s3``, the others at Sobol's points

Where the best trial of a loss lies at an end of a range, every loss gets ``search.MORE`` trials more: this one behind
that end, the others within their ranges. The best trial on validation images is the choice. A trial that diverges or
stalls is an outcome like any other. No trial reads a test image.
"""

import dataclasses
import functools
import math

from studies import replicas, runs, search
from studies.replicas import LOSSES, Replica
from studies.study import Incomplete, Study

NAMES = {"mnist": "MNIST", "cifar10": "CIFAR-10"}
EPOCHS, SEEDS = 5, 5  # SEEDS: of the final runs
RATE, RATES = 0.01, (0.1, 10.0)  # RATES: the range of the factor on RATE
MEASURE = "val_accuracy"
IMBALANCE = 100.0  # of the long tail


def default(data: str, loss: str) -> Replica:
    """The first trial of a loss."""
    changes = {"network": "S3, stride 2", "evaluated": "val"}
    return replicas.s3(data, loss, EPOCHS, search.TRIAL_SEED, RATE, **changes)


def ranges(loss: str) -> dict[str, tuple[float, float]]:
    """Of the factor on the rate (lr), and of the constants of a loss."""
    return {"lr": RATES} | search.SPACE[loss]


def drawn(first: Replica, limits: dict, n: int, seed: int) -> list[Replica]:
    """n - 1 trials like the first, at Sobol's points of these ranges."""
    constants = {name: ends for name, ends in limits.items() if name != "lr"}
    point = runs.recipe(first.data, first.loss, first.seed, lr=first.lr)  # what ``search`` draws has other names
    points = search.drawn_from(point, constants, limits["lr"], n, seed=seed)
    return [dataclasses.replace(first, lr=p.lr, **dict(p.constants)) for p in points]


def trials(data: str, full: bool = False) -> list[Replica]:
    """The trials of a data set, the first ones of all losses first."""
    firsts = [default(data, loss) for loss in LOSSES]
    by_loss = [[first, *drawn(first, ranges(first.loss), search.TRIALS, seed=0)] for first in firsts]
    return [trial for same in zip(*by_loss, strict=True) for trial in same]


def best(tried: list[Replica], found: dict) -> dict[str, Replica]:
    """By loss the trial with the highest accuracy on validation images, of equal ones the earlier. Raises Incomplete
    if one is not recorded."""
    if missing := sum(run not in found for run in tried):
        raise Incomplete(f"{missing} of {len(tried)} trials of S3 on {NAMES[tried[0].data]} are not recorded")
    of = {loss: [run for run in tried if run.loss == loss] for loss in LOSSES}
    return {loss: max(part, key=lambda run: found[run]["metrics"][MEASURE]) for loss, part in of.items()}


def past_ends(run: Replica) -> dict[str, tuple[float, float]]:
    """What lies within ``search.EDGE`` of an end of its range in a trial, or beyond it, with as wide a range behind
    that end. No margin is a choice of its own: it has no lower end."""
    found = {}
    for name, (low, high) in ranges(run.loss).items():
        value, log = (run.lr / RATE if name == "lr" else getattr(run, name)), name != "m"
        u = math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)
        if u > 1 - search.EDGE:
            found[name] = (high, 2 * high if log else 2 * high - low)
        elif u < search.EDGE and log:
            found[name] = (low / 2, low)
    return found


def all_trials(data: str, found: dict) -> list[Replica]:
    """All trials of a data set, as many for every loss; found: records. Raises Incomplete."""
    planned = TRIALS[data].planned()
    ends = {loss: past_ends(run) for loss, run in best(planned, found).items()}
    if not any(ends.values()):
        return planned
    firsts = {run.loss: run for run in reversed(planned)}
    more = [drawn(firsts[loss], ranges(loss) | ends[loss], search.MORE + 1, seed=1) for loss in LOSSES]
    return planned + [trial for same in zip(*more, strict=True) for trial in same]


def wider(data: str, full: bool = False) -> list[Replica]:
    """The trials that ``all_trials`` adds. Raises Incomplete."""
    return all_trials(data, TRIALS[data].read())[len(TRIALS[data].planned()) :]


def of_seed(data: str, seed: int, found: dict) -> dict[str, Replica]:
    """The final runs of a seed: the three losses, and two of them on a long tail. Raises Incomplete."""
    chosen = best(all_trials(data, found), found)
    alike = {loss: dataclasses.replace(run, seed=seed, evaluated="test") for loss, run in chosen.items()}
    tail = {f"{loss}, long tail": dataclasses.replace(alike[loss], imbalance=IMBALANCE) for loss in LOSSES[:2]}
    return alike | tail


def final(data: str, full: bool = False) -> dict[Replica, str]:
    """The final runs and the name of their arm, seeds in the outer loop. Raises Incomplete."""
    found = TRIALS[data].read() | WIDER[data].read()
    return {run: name for seed in range(SEEDS) for name, run in of_seed(data, seed, found).items()}


TRIALS = {
    data: Study(
        f"s3_trials_{data}", f"S3's losses on {title}: twelve trials each, on validation images", Replica,
        functools.partial(trials, data), replicas.execute, file="replicas",
    )
    for data, title in NAMES.items()
}  # fmt: skip
WIDER = {
    data: Study(
        f"s3_wider_{data}", f"Six trials more of each where a best one of S3's on {title} lies at an end of a range",
        Replica, functools.partial(wider, data), replicas.execute, file="replicas", needs=f"s3_trials_{data}",
    )
    for data, title in NAMES.items()
}  # fmt: skip
FINAL = {
    data: Study(
        f"s3_final_{data}", f"S3's three losses on {title}, each at what its trials found", Replica,
        functools.partial(final, data), replicas.execute, file="replicas", needs=f"s3_wider_{data}", paired=True,
    )
    for data, title in NAMES.items()
}  # fmt: skip
STUDIES = [*TRIALS.values(), *WIDER.values(), *FINAL.values()]


def complete(data: str, found: dict) -> dict[int, dict[str, dict]]:
    """By seed, the records of the final runs by name, of those seeds that are whole; found: all records. Raises
    Incomplete if there is none."""
    by_seed = {seed: of_seed(data, seed, found) for seed in range(SEEDS)}
    whole = {
        seed: {name: found[run] for name, run in of.items()}
        for seed, of in by_seed.items()
        if all(run in found for run in of.values())
    }
    if not whole:
        raise Incomplete(f"replicas.jsonl lacks final runs of S3: `python -m studies s3_final_{data}` trains them")
    return whole
