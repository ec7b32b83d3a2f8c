"""Train what the studies lack.

    python -m studies                     all studies
    python -m studies --list              what there is, what is recorded, and about how long the rest takes
    python -m studies trials_mnist        one study, and before it the study that its plan rests on
    python -m studies data                fetch the data sets that are not there, and say what data/ holds
    python -m studies claims [7 ...]      write the ledger of the documents' claims, or train and print some of them

Training takes minutes to hours a study on a CPU, as --list estimates within seconds; --budget ends it earlier. Every
finished run is recorded at once in results/, so an interrupted call goes on where it stopped.
RETRAIN=1 trains again what is recorded, into results/again/, and shows both.
"""

import argparse
import sys
import time

from lib import data, device, paths
from studies import (
    ablation,
    again,
    beyond_accuracy,
    claims,
    controlled,
    evidence,
    margin_maps,
    omniglot,
    one_shot,
    records,
    replicas,
    runs,
    s1,
    s3,
)
from studies import machine as own_machine
from studies import tuning as earlier_tuning
from studies.study import Incomplete, Study

MODULES = (
    runs, earlier_tuning, controlled, omniglot, one_shot, ablation, beyond_accuracy, margin_maps, replicas, s1, s3,
)  # fmt: skip
STUDIES = {study.name: study for module in MODULES for study in module.STUDIES}


def named(name: str) -> list[Study]:
    """The study of that name, those that share the file of that name, or the runs that results/<name>.jsonl records.
    Raises ValueError if there is none of these."""
    if found := [study for study in STUDIES.values() if name in (study.name, study.file)]:
        return found
    recorded = records.read(paths.folder("results") / f"{name}.jsonl", runs.Config)
    if not recorded:
        raise ValueError(f"unknown study {name!r}: `python -m studies --list` names them")
    return [runs.listed(name, list(recorded))]


def train(studies: list[Study], full: bool = False, *, n_jobs: int = 1, budget: float | None = None) -> None:
    """Train what these studies lack, and before each the study whose records its plan needs."""
    start = time.time()
    for study in dict.fromkeys(part for one in studies for part in (*_needed(one) * (not paths.retrain()), one)):
        left = None if budget is None else budget - (time.time() - start)
        try:
            if paths.retrain():
                again.train(study, full, n_jobs=n_jobs, budget=left)
            else:
                study.train(full, n_jobs=n_jobs, budget=left)
        except Incomplete as error:  # the budget ended before the study that it needs was complete
            print(f"{study.name} waits: {error}")


def _needed(study: Study) -> list[Study]:
    """The study whose records its plan needs, behind those that this one needs."""
    needed = STUDIES.get(study.needs)
    return [*_needed(needed), needed] if needed else []


def listing(full: bool = False) -> str:
    """A line per study: its name, runs recorded of planned, the estimated hours for the rest, its question."""
    lines = [f"{'study':25}  {'recorded':>11}  {'hours left':>10}  question"]
    here = records.environment(device.best_device())["device"]
    for study in STUDIES.values():
        try:
            planned, found = study.planned(full or study.for_gpu()), study.read()
        except Incomplete as error:
            why = f"waits for {study.needs}: {error}"
            lines.append(f"{study.name:25}  {'waits':>11}  {'unknown':>10}  {study.question} ({why})")
            continue
        done = {run: found[run] for run in planned if run in found}
        missing = [run for run in planned if run not in found]
        hours = again.hours(missing, done, found)
        recorded = f"{len(done)} of {len(planned)}"
        lines.append(f"{study.name:25}  {recorded:>11}  {hours if missing else '-':>10}  {study.question}")
    return "\n".join(
        [
            *lines,
            "\nHours: one run at a time, from the median of recorded runs of the same data set and for as many epochs, "
            f"where there are any on {here}.\nwaits: its plan is made from records that are not complete.",
        ]
    )


def fetch_all() -> None:
    """Fetch the data sets that are not there, and say what data/ holds."""
    for name in data.SETS:
        print(f"data/ holds {name}: {len(data.load(name, paths.PROJECT / 'data').test)} test images")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m studies", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = lambda message: sys.exit(f"error: {message}")  # in one line
    parser.add_argument("names", nargs="*", metavar="NAME", help="studies, or files of them; none for all of them")
    parser.add_argument("--list", action="store_true", help="list the studies and train nothing")
    parser.add_argument("--full", action="store_true", help="the runs as a GPU affords them")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="after these no further run is started")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs trained at the same time")
    parser.add_argument("--fetch", action="store_true", help="fetch all data sets that are not there before training")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: give the number of runs at the same time, 1 or more")
    if options.budget is not None and not options.budget > 0:
        parser.error(f"--budget {options.budget:g}: give seconds, more than 0")
    settings = {"full": options.full, "n_jobs": options.jobs, "budget": options.budget}
    try:
        paths.smoke(), paths.retrain()  # a wrong setting stops before any training, and so does a wrong name
        if options.list:
            print(listing(options.full))
        elif options.names == ["data"]:
            fetch_all()
        elif options.names[:1] == ["claims"]:
            numbers = claims.numbers(options.names[1:])
            if options.fetch:
                fetch_all()
            train(claims.needed(numbers), **settings)
            print(claims.printed(numbers)) if numbers else claims.write_ledger(
                claims.ledger(evidence.read() | replicas.recorded())
            )
        else:
            chosen = [study for name in options.names or STUDIES for study in named(name)]
            records.check_committed()
            if options.fetch:
                fetch_all()
            train(chosen, **settings)
    except KeyboardInterrupt:
        sys.exit("interrupted: what had finished is recorded")
    except Exception as error:
        if said := own_machine.explained(error):
            sys.exit(f"error: {said}")
        raise


if __name__ == "__main__":
    main()
