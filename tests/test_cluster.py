"""A study on a dask cluster of two workers on this machine."""

import functools
import os
import signal
import threading
import time
from collections import Counter

import distributed
import joblib
import pytest
from test_runs import tiny
from test_study import lines, of

from studies import records, runs

STUCK = 12  # the first attempt at this seed never ends


def logged(log, config, progress=False):
    """``runs.execute``, in the worker: it first writes its pid and the seed of the run that it begins."""
    again = f" {config.seed}\n" in log.read_text()
    with log.open("a") as file:
        file.write(f"{os.getpid()} {config.seed}\n")
    if config.seed == STUCK and not again:
        time.sleep(3600)
    return runs.execute(config, progress)


@pytest.fixture(scope="module")
def cluster():
    options = {"processes": True, "threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": None}
    with distributed.LocalCluster(n_workers=2, **options) as workers, distributed.Client(workers) as client:
        yield client


@pytest.fixture
def log(project, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)  # for two workers, so one thread each
    (project / "starts").touch()
    return project / "starts"


def starts(log):
    """The starts so far, (pid, seed)."""
    return [tuple(map(int, line.split())) for line in log.read_text().splitlines()]


def train(configs, log):
    with joblib.parallel_config(backend="dask"):
        return of(configs, functools.partial(logged, log)).train(n_jobs=-1)


def test_runs_go_to_the_workers(cluster, log, project, capsys):
    configs = [tiny(head, seed) for seed in (1, 2) for head in ("Softmax", "ArcFace")]
    found = train(configs, log)
    assert list(found) == configs and len(lines(project)) == 4
    assert set(records.read(project / "results/s.jsonl", runs.Config)) == set(configs)
    assert len(starts(log)) == 4 and os.getpid() not in dict(starts(log))
    alone = runs.execute(configs[1])[1]
    assert found[configs[1]]["history"]["loss"] == pytest.approx(alone["history"]["loss"], rel=0.05)
    train(configs, log)
    assert len(starts(log)) == 4 and "s: 4 runs from s.jsonl, 0 trained now" in capsys.readouterr().out


def test_a_dead_worker_costs_its_one_run(cluster, log, project):
    killed = []

    def kill():
        while STUCK not in dict(map(reversed, starts(log))):
            time.sleep(0.02)
        killed.append(dict(map(reversed, starts(log)))[STUCK])
        os.kill(killed[0], signal.SIGKILL)

    seeds = [11, STUCK, 13, 14]
    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    found = train([tiny(seed=seed) for seed in seeds], log)
    killer.join()
    assert [config.seed for config in found] == seeds and len(lines(project)) == 4
    assert Counter(seed for _, seed in starts(log)) == Counter([*seeds, STUCK])  # only that one began twice
    assert killed[0] not in cluster.run(os.getpid).values()


def test_an_error_in_a_worker_reaches_the_caller(cluster, log):
    with pytest.raises(ValueError, match="unknown data set 'fashion'"):
        train([runs.Config("fashion", "ArcFace", seed=1)], log)
