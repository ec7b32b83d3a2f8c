"""A study: a question, the runs that answer it, and the file that records them."""

import contextlib
import itertools
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import joblib
import pandas as pd
import torch
from tqdm import tqdm

from lib import device, paths
from lib.train import hidden
from studies import again, machine, records, smoke


class Incomplete(ValueError):
    """A plan rests on runs that are not recorded."""


@dataclass(frozen=True)
class Study:
    """plan(full): the runs, instances of the dataclass kind, seeds in the outer loop, so that a part of it is a smaller
    study, or these runs with the names of their arms; full: as a GPU affords them. execute(run, progress) trains one
    run and returns (model, record). file: the runs are recorded in results/<file>.jsonl, several studies may share one
    (by default it is called like the study). needs: the study whose records the plan reads. paired: runs of one seed
    are compared, so a seed that was begun on another machine is trained again as a whole. extra(run, model, record):
    bytes to keep of a run, or None; keep(run, bytes) writes them.
    """

    name: str
    question: str
    kind: type
    plan: Callable[[bool], Iterable]
    execute: Callable
    file: str = ""
    needs: str = ""
    paired: bool = False
    extra: Callable | None = None
    keep: Callable | None = None
    folder: str = ""  # within results/

    @property
    def path(self) -> Path:
        return paths.folder("results") / self.folder / f"{self.file or self.name}.jsonl"

    def planned(self, full: bool = False) -> list:
        """The runs of the plan. Raises Incomplete if it rests on runs that are not recorded."""
        return smoke.thin(self.plan(full and not paths.smoke()))

    def arms(self, full: bool = False) -> dict:
        """The names that the plan, then a dict, gives to its runs, by planned run."""
        return {smoke.shrink(run): name for run, name in self.plan(full and not paths.smoke()).items()}

    def read(self, full: bool = False) -> dict:
        """All records of the file, by run; in the smoke profile the plan is trained first."""
        if paths.smoke():
            self.train(full)
        return records.read(self.path, self.kind)

    def recorded(self) -> dict:
        """As ``read``; with RETRAIN=1 what is recorded is trained again beside it first (``studies.again``)."""
        found = self.read()
        if paths.retrain():
            again.train(self, self.for_gpu())
        return found

    def for_gpu(self) -> bool:
        """Is a seed of the runs for a GPU complete?"""
        try:
            return not paths.smoke() and len(self.complete(full=True)) > 0
        except Incomplete:
            return False

    def complete(self, full: bool | None = None) -> dict:
        """The records, by run, of those seeds of which every planned run is recorded: a complete, smaller study. full:
        None for the runs for a GPU once a seed of them is complete. With RETRAIN=1 as ``recorded``. Raises Incomplete
        if there are none."""
        full = self.for_gpu() if full is None else full
        planned = self.planned(full)
        found = self.read(full)
        if paths.retrain():
            again.train(self, full)
        seeds = {run.seed for run in planned} - {run.seed for run in planned if run not in found}
        if not seeds:
            raise Incomplete(f"{self.path.name} holds no complete seed: `python -m studies {self.name}` trains them")
        return {run: found[run] for run in planned if run.seed in seeds}

    def finished(self, full: bool | None = None) -> pd.DataFrame:
        """``complete`` as rows (``records.frame``)."""
        return records.frame(self.complete(full).values())

    def rows(self) -> pd.DataFrame:
        """All runs of the plan as rows; what is missing is trained."""
        return records.frame(self.train().values())

    def train(self, full: bool = False, *, n_jobs: int = 1, budget: float | None = None) -> dict:
        """Train what is missing of the plan; returns the records of its runs.

        n_jobs at a time (-1: as many as there are workers); each finished run is written at once. Under
        joblib.parallel_config(backend="dask") the runs go to a cluster: give its workers one thread each, since the
        random numbers of runs in one process would mix. budget: seconds after which no further run is started; the
        records are then those that exist. Raises OSError before any training if records cannot be written.
        """
        planned, found = self.planned(full), records.read(self.path, self.kind)
        workers = joblib.effective_n_jobs(n_jobs)
        threads = max(1, (os.cpu_count() or 1) // workers) if workers > 1 else 0
        missing = [run for run in planned if run not in found]
        if self.paired:
            missing = self._unpaired(planned, missing, found, threads)
        if missing:
            records.check_writable(self.path)
        deadline = time.time() + budget if budget is not None else float("inf")
        failed: list[Exception] = []  # the first ends the study, when what has begun is finished
        unwritten: list[dict] = []
        parallel = joblib.Parallel(n_jobs=n_jobs, batch_size=1, pre_dispatch="n_jobs", return_as="generator_unordered")
        jobs = parallel(
            joblib.delayed(_train_one)(self.execute, self.extra, run, deadline, threads)
            for run in itertools.takewhile(lambda run: not failed and not unwritten, missing)
        )
        trained = 0
        # what trains writes nothing itself, for it may be on another machine
        bar = tqdm(jobs, total=len(missing), unit="run", disable=hidden(bool(missing)), file=sys.stdout)
        try:
            for run, record, extra in bar:
                if record:
                    record["jobs"] = workers  # that shared the machine: its seconds compare with their like only
                    unwritten = self._append([*unwritten, record])
                    found[run] = record
                    trained += 1
                try:
                    if isinstance(extra, Exception):
                        raise extra
                    if extra:
                        self.keep(run, extra)
                except Exception as error:
                    failed.append(error)
        finally:
            if unwritten and (lost := [error for record in unwritten if (error := self._written(record, show=True))]):
                raise lost[0]
        if failed:
            raise failed[0]
        done = [run for run in planned if run in found]
        report = f"{self.name}: {len(done) - trained} runs from {self.path.name}, {trained} trained now"
        if len(done) < len(planned):
            why = "time budget" if budget is not None else "no space for records"
            report += f", {len(planned) - len(done)} left for the next start ({why})"
        print(report)
        if log := os.environ.get("RUN_LOG"):
            # of a full disk other lines speak
            with contextlib.suppress(OSError), open(log, "a", encoding="utf-8") as file:
                file.write(report + "\n")
        return {run: found[run] for run in done}

    def _append(self, unwritten: list[dict]) -> list[dict]:
        """Write these records; returns those that cannot be written now, to be tried again."""
        for number, record in enumerate(unwritten):
            if self._written(record, show=False):
                return unwritten[number:]
            if error := record.get("error"):
                said = (
                    f"a run is recorded without all of its metrics ({error}): mend that, take its line away and train"
                )
                print(f"{self.path.name}: {said} it again; it is {record['config']}", file=sys.stderr)
        return []

    def _written(self, record: dict, show: bool) -> OSError | None:
        """Write a record; returns the error if that fails."""
        try:
            records.append(self.path, record, show)
        except OSError as error:
            return error
        return None

    def _unpaired(self, planned: list, missing: list, found: dict, threads: int) -> list:
        """What is missing, and of seeds with a gap or from several machines what was not trained on this one."""
        here = records.machine(device.best_device(), threads or torch.get_num_threads())
        where: dict = {}
        for run in planned:
            where.setdefault(run.seed, set()).add(found[run].get("machine", "") if run in found else None)
        open_seeds = {seed for seed, machines in where.items() if len(machines) > 1}
        return [
            run for run in planned
            if run in missing or (run.seed in open_seeds and found[run].get("machine") != here)
        ]  # fmt: skip


def recorded(studies: Iterable[Study]) -> dict:
    """``Study.recorded`` of several studies: all their records, by run. Raises Incomplete if there are none."""
    studies = list(studies)
    found = {}
    for study in studies:
        found |= study.recorded()
    if not found:
        raise Incomplete(f"{studies[0].path.name} holds no runs: `python -m studies {studies[0].name}` trains some")
    return found


def _train_one(execute, extra, run, deadline: float, threads: int) -> tuple:
    """run, its record and what else to keep, trained with so many threads (0: as many as there are); None and None
    after the deadline. An exception stands in the place of what else to keep, so that it ends no other training."""
    if time.time() >= deadline:
        return run, None, None
    records.commit()  # of the code as it is now
    if threads:
        torch.set_num_threads(threads)
    if device.best_device().type == "cpu":
        machine.reuse_memory()
    record = None
    try:
        model, record = execute(run, not threads)
        return run, record, extra(run, model, record) if extra else None
    except Exception as error:
        if threads and not machine.explained(error):  # what another process sends has no traceback
            traceback.print_exc()
        return run, record, error
