"""study.runs on a dask cluster of two workers on this machine."""

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import distributed
import joblib
import pytest
from test_study import lines, tiny

from lib import store, study

STUCK = 12  # the first attempt at this seed never ends


class LogStarts(distributed.WorkerPlugin):
    """Every worker, also one started later, writes its pid and the seed of each run that it begins."""

    def __init__(self, path):
        self.path = path

    def setup(self, worker):
        execute = study.execute

        def logged(config, progress=True):
            again = f" {config.seed}\n" in Path(self.path).read_text()
            with open(self.path, "a") as file:
                file.write(f"{os.getpid()} {config.seed}\n")
            if config.seed == STUCK and not again:
                time.sleep(3600)
            return execute(config, progress)

        study.execute = logged


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A client, and a function that reads the starts so far as (pid, seed)."""
    log = tmp_path_factory.mktemp("cluster") / "starts"
    log.touch()
    options = {"processes": True, "threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": None}
    with distributed.LocalCluster(n_workers=2, **options) as workers, distributed.Client(workers) as client:
        client.register_plugin(LogStarts(str(log)))
        yield client, lambda: [tuple(map(int, line.split())) for line in log.read_text().splitlines()]


@pytest.fixture(autouse=True)
def one_thread(project, monkeypatch):
    monkeypatch.setattr(store.os, "cpu_count", lambda: 2)  # for two workers


def test_runs_go_to_the_workers(cluster, project, capsys):
    configs = [tiny(head, seed) for seed in (1, 2) for head in ("Softmax", "ArcFace")]
    with joblib.parallel_config(backend="dask"):
        frame = study.runs(configs, "s", n_jobs=-1)
    assert list(frame["head"]) == ["Softmax", "ArcFace", "Softmax", "ArcFace"]
    assert set(store.read(project / "results/s.jsonl", study.Config)) == set(configs) and len(lines(project)) == 4
    _, starts = cluster
    assert len(starts()) == 4 and os.getpid() not in dict(starts())
    alone = study.execute(configs[1], progress=False)[2]
    assert frame["history"][1]["loss"] == pytest.approx(alone["history"]["loss"], rel=0.05)
    with joblib.parallel_config(backend="dask"):
        study.runs(configs, "s", n_jobs=-1)
    assert len(starts()) == 4 and "s: 4 runs from s.jsonl, 0 trained now" in capsys.readouterr().out


def test_a_dead_worker_costs_its_one_run(cluster, project):
    client, starts = cluster
    before = len(starts())
    killed = []

    def kill():
        while STUCK not in dict(map(reversed, starts())):
            time.sleep(0.02)
        killed.append(dict(map(reversed, starts()))[STUCK])
        os.kill(killed[0], signal.SIGKILL)

    seeds = [11, STUCK, 13, 14]
    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with joblib.parallel_config(backend="dask"):
        frame = study.runs([tiny(seed=seed) for seed in seeds], "s", n_jobs=-1)
    killer.join()
    assert list(frame["seed"]) == seeds and len(lines(project)) == 4
    assert Counter(seed for _, seed in starts()[before:]) == Counter([*seeds, STUCK])  # only that one began twice
    assert killed[0] not in client.run(os.getpid).values()


def test_an_error_in_a_worker_reaches_the_caller(cluster, project):
    with joblib.parallel_config(backend="dask"), pytest.raises(ValueError, match="unknown data set 'fashion'"):
        study.runs([study.Config("fashion", "ArcFace", seed=1)], "s", n_jobs=-1)
