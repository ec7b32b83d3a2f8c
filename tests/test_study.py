"""Records, and studies that train what these lack: resumed, killed, with a budget, in several processes."""

import contextlib
import dataclasses
import errno
import json
import multiprocessing
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError
from test_runs import fake, tiny

from lib import paths
from studies import __main__ as driver
from studies import again, margin_maps, one_shot, records, runs, study
from studies.__main__ import STUDIES
from studies.study import Study


def of(configs, execute=runs.execute, **options):
    """The study "s" of these runs."""
    return Study("s", "What?", runs.Config, lambda full: configs, execute, **options)


class Trained(list):
    """The runs that ``execute`` has trained: a stand-in that only makes records."""

    def execute(self, config, progress=False):
        self.append(config)
        return None, fake(config, seconds=float(len(self)))


@pytest.fixture
def trained(project):
    return Trained()


def lines(project, name="s"):
    return (project / "results" / f"{name}.jsonl").read_text().splitlines()


# ---------------------------------------------------------------- records


def test_record_round_trip(project):
    path, record = project / "s.jsonl", fake(tiny(constants={"m": 0.1}))
    records.append(path, record)
    assert path.read_text() == json.dumps(record) + "\n"
    assert records.read(path, runs.Config) == {tiny(constants={"m": 0.1}): record}
    assert records.read(project / "none.jsonl", runs.Config) == {}


def test_later_record_wins(project):
    path = project / "s.jsonl"
    for seconds in (1.0, 2.0):
        records.append(path, fake(tiny(), seconds=seconds))
    assert records.read(path, runs.Config)[tiny()]["seconds"] == 2.0 and len(path.read_text().splitlines()) == 2


def test_old_records_without_new_fields_count(project):
    record = fake(tiny())
    for field in ("momentum", "low_res_epochs", "margin_warmup"):
        del record["config"][field]
    records.append(project / "s.jsonl", record)
    assert list(records.read(project / "s.jsonl", runs.Config)) == [tiny()]


@pytest.mark.parametrize("keep", [1, 20, -5])
def test_torn_last_line(project, capsys, keep):
    path = project / "s.jsonl"
    records.append(path, fake(tiny(seed=0)))
    whole = path.read_bytes()
    path.write_bytes(whole + json.dumps(fake(tiny(seed=1))).encode()[:keep])
    assert list(records.read(path, runs.Config)) == [tiny(seed=0)]
    assert "s.jsonl, line 2: torn by an interrupted write" in capsys.readouterr().err
    records.append(path, fake(tiny(seed=2)))
    assert path.read_bytes().startswith(whole)
    assert list(records.read(path, runs.Config)) == [tiny(seed=0), tiny(seed=2)]
    assert capsys.readouterr().err == ""


def test_complete_last_line_without_newline_is_kept(project):
    path = project / "s.jsonl"
    path.write_text(json.dumps(fake(tiny(seed=1))))  # an editor or a kill took the newline only
    assert list(records.read(path, runs.Config)) == [tiny(seed=1)]
    records.append(path, fake(tiny(seed=2)))
    assert list(records.read(path, runs.Config)) == [tiny(seed=1), tiny(seed=2)]


FOREIGN = {
    "text": "hello",
    "a number": "7",
    "another JSON": '{"a": 1}',
    "an unknown field": json.dumps(fake(tiny()) | {"config": {"data": "mnist", "head": "ArcFace", "dropout": 1}}),
    "an unknown loss": json.dumps(fake(tiny()) | {"config": {"data": "mnist", "head": "Arc"}}),
    "no metrics": json.dumps({"config": dataclasses.asdict(tiny())}),
    "not utf-8": b"\xff\xfe",
    "metrics that are none": json.dumps({"config": dataclasses.asdict(tiny()), "metrics": 7, "history": {}}),
    "a history that is none": json.dumps({"config": dataclasses.asdict(tiny()), "metrics": {}, "history": []}),
    "a value out of range": json.dumps(fake(tiny()) | {"config": {"data": "mnist", "head": "ArcFace", "lr": "fast"}}),
    "brackets without end": "[" * 100_000,
    "a number without end": "9" * 5000,
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_line_is_named(trained, project, case):
    path, line = project / "results" / "s.jsonl", FOREIGN[case]
    record = json.dumps(fake(tiny())).encode()
    content = b"\n".join([record, line if isinstance(line, bytes) else line.encode(), record, b""])
    paths.write(path, content)
    with pytest.raises(ValueError, match=r"s\.jsonl, line 2 is not a run record.*: move that line") as error:
        of([tiny()], trained.execute).train()
    assert "\n" not in str(error.value)
    assert path.read_bytes() == content and not trained


def test_a_record_without_its_machine_counts(project):
    record = {key: value for key, value in fake(tiny()).items() if key in ("config", "metrics", "history")}
    records.append(project / "s.jsonl", record)
    found = records.read(project / "s.jsonl", runs.Config)
    assert records.frame(found.values())["test_accuracy"][0] == 0.5


def test_records_that_cannot_be_written_stop_before_training(trained, project):
    (project / "results").write_text("a file in place of the folder")
    with pytest.raises(OSError, match=r"s\.jsonl cannot be written \(.+\): make the folder writable") as error:
        of([tiny()], trained.execute).train()
    assert "\n" not in str(error.value) and not trained


def test_a_record_that_cannot_be_written_is_shown(project, capsys):
    (project / "s.jsonl").mkdir()
    with pytest.raises(OSError, match=r"s\.jsonl cannot be written \(.+\): free space") as error:
        records.append(project / "s.jsonl", fake(tiny()))
    assert "\n" not in str(error.value) and json.loads(capsys.readouterr().err) == fake(tiny())


def append_together(barrier, path, seeds):
    barrier.wait(60)
    for seed in seeds:
        records.append(path, fake(tiny(seed=seed)))


def test_concurrent_appends_lose_nothing(project):
    path = project / "s.jsonl"
    path.write_text("".join(json.dumps(fake(tiny(seed=seed))) + "\n" for seed in range(500)))
    fork = multiprocessing.get_context("fork")  # at once, where a fresh process loads torch for seconds
    barrier = fork.Barrier(3)
    parts = [range(start, 590, 3) for start in (500, 501, 502)]
    processes = [fork.Process(target=append_together, args=(barrier, path, part)) for part in parts]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert sorted(c.seed for c in records.read(path, runs.Config)) == list(range(590))
    assert len(path.read_text().splitlines()) == 590


def test_a_copy_in_another_repository_has_no_commit(project, monkeypatch):
    git = ["git", "-C", str(project), "-c", "user.name=test", "-c", "user.email=test"]
    for command in (["init", "--quiet"], ["commit", "--quiet", "--allow-empty", "-m", "course"]):
        subprocess.run([*git, *command], check=True)
    commit = records.commit.__wrapped__
    assert len(commit()) >= 7 and commit() != "unknown"
    monkeypatch.setattr(paths, "PROJECT", project / "margins")
    (project / "margins").mkdir()
    assert commit() == "unknown"


# ---------------------------------------------------------------- studies


def test_only_what_is_missing_is_trained(trained, project, capsys):
    configs = [tiny(head, seed) for seed in range(2) for head in ("Softmax", "ArcFace")]
    of(configs[:1], trained.execute).train()
    frame = of(configs[1::-1], trained.execute).rows()
    assert trained == configs[:2]
    assert list(frame["head"]) == ["ArcFace", "Softmax"] and list(frame["seconds"]) == [2, 1]  # in the order asked
    of(configs, trained.execute).train()
    assert trained == configs and len(lines(project)) == 4
    assert "s: 2 runs from s.jsonl, 2 trained now" in capsys.readouterr().out
    of(configs, trained.execute).train()
    assert trained == configs


def test_a_config_named_twice_is_one_run(trained):
    of([tiny(), tiny()], trained.execute).train()
    assert trained == [tiny()]


def test_rows_hold_config_metrics_and_history(trained):
    row = of([tiny(seed=7)], trained.execute).rows().iloc[0]
    assert (row["head"], row["seed"], row["test_accuracy"], row["history"]) == ("ArcFace", 7, 0.5, {"loss": [1.0]})


def test_studies_may_share_a_file(trained, project):
    a, b = ([tiny(seed=seed)] for seed in (1, 2))
    of(a, trained.execute, file="both").train(), of(b, trained.execute, file="both").train()
    assert len(lines(project, "both")) == 2 and list(of(a, trained.execute, file="both").train()) == a
    assert list(of(a, trained.execute, file="both").read()) == a + b


def test_complete_seeds_are_a_smaller_study(trained):
    configs = [tiny(head, seed) for seed in range(3) for head in ("Softmax", "ArcFace")]
    whole = of(configs, trained.execute)
    with pytest.raises(study.Incomplete, match=r"s.jsonl holds no complete seed: `python -m studies s` trains them"):
        whole.complete()
    of([*configs[:2], configs[3], *configs[4:]], trained.execute).train()
    assert list(whole.complete()) == configs[:2] + configs[4:] and list(whole.finished()["seed"]) == [0, 0, 2, 2]


def test_runs_for_a_gpu_count_once_a_seed_of_them_is_complete(trained):
    cpu, gpu = ([tiny(seed=seed, epochs=epochs) for seed in range(2)] for epochs in (1, 2))
    both = Study("s", "What?", runs.Config, lambda full: gpu if full else cpu, trained.execute)
    both.train()
    assert not both.for_gpu() and list(both.complete()) == cpu
    of(gpu[1:], trained.execute).train()
    assert both.for_gpu() and list(both.complete()) == gpu[1:] and list(both.complete(full=False)) == cpu


def test_each_finished_run_is_written_at_once(trained, project):
    def execute(config, progress):
        if config.seed == 1:
            assert [json.loads(line)["config"]["seed"] for line in lines(project)] == [0]
            raise FloatingPointError("the loss became nan")
        return trained.execute(config)

    with pytest.raises(FloatingPointError):
        of([tiny(seed=0), tiny(seed=1), tiny(seed=2)], execute).train()
    assert [json.loads(line)["config"]["seed"] for line in lines(project)] == [0]


def test_retrain_trains_beside_what_is_recorded_and_shows_both(trained, project, monkeypatch, capsys):
    two = of([tiny(), tiny(seed=1), tiny(seed=2)], trained.execute)
    of([tiny(), tiny(seed=1)], trained.execute).train()  # one of the plan is not recorded
    before = (project / "results" / "s.jsonl").read_bytes()
    monkeypatch.setenv("RETRAIN", "1")
    monkeypatch.setattr(again, "_shown", set())
    capsys.readouterr()
    assert [record["seconds"] for record in two.recorded().values()] == [1.0, 2.0]
    said = capsys.readouterr().out
    assert said.startswith(
        "RETRAIN=1: 2 runs of s are trained again into results/again/, one at a time in about 0.0 ho"
    )
    assert re.search(r"ArcFace +2 ", said) and (project / "results" / "s.jsonl").read_bytes() == before
    assert [run.seed for run in records.read(project / "results" / "again" / "s.jsonl", runs.Config)] == [0, 1]
    two.recorded()
    assert len(trained) == 4 and not capsys.readouterr().out  # done, and shown
    driver.train([two])
    assert len(trained) == 4


def test_retrained_runs_stand_beside_the_recorded_ones():
    runs_ = [tiny(seed=0), tiny(seed=1), tiny(head="CosFace"), tiny(head="CosFace", seed=1)]
    found = {run: {"metrics": {"val_accuracy": 0.5 + 0.1 * run.seed, "test_accuracy": 0.9}} for run in runs_}
    other = {run: {"metrics": {"val_accuracy": 0.6}} for run in runs_[:3]}  # the last is not trained yet
    table = again.side_by_side(found, other, {runs_[2]: "an arm"}).set_index("loss")
    assert list(table["runs"]) == [2, 1] and list(table["largest difference"]) == [0.1, 0.1]
    assert list(table["val_accuracy, recorded"]) == [0.55, 0.5] and list(table["again"]) == [0.6, 0.6]
    found[runs_[0]]["metrics"].pop("val_accuracy")  # a run that failed has no metric
    assert again.side_by_side(found, other, {})["again"].isna().all()


def test_budget_stops_between_runs(trained, project, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "time", lambda: now[0])

    def slow(config, progress):
        now[0] += 10
        return trained.execute(config)

    configs = [tiny(seed=seed) for seed in range(5)]
    found = of(configs, slow).train(budget=15)
    assert trained == configs[:2] and len(found) == len(lines(project)) == 2
    assert "0 runs from s.jsonl, 2 trained now, 3 left for the next start" in capsys.readouterr().out
    assert len(of(configs, trained.execute).train()) == 5 and trained == configs


def test_no_budget_left_trains_nothing(trained):
    assert of([tiny()], trained.execute).train(budget=0) == {} and not trained


def test_run_log(trained, project, monkeypatch):
    monkeypatch.setenv("RUN_LOG", str(project / "log"))
    for _ in range(2):
        of([tiny()], trained.execute).train()
    assert (project / "log").read_text().splitlines() == [
        "s: 0 runs from s.jsonl, 1 trained now", "s: 1 runs from s.jsonl, 0 trained now",
    ]  # fmt: skip


def test_two_jobs(project):
    configs = [tiny(head, seed=1) for head in ("Softmax", "ArcFace", "CosFace")]
    found = of(configs).train(n_jobs=2)
    assert list(found) == configs and {record["jobs"] for record in found.values()} == {2}
    assert len(records.read(project / "results/s.jsonl", runs.Config)) == 3
    alone = runs.execute(configs[1])[1]
    assert found[configs[1]]["history"]["loss"] == pytest.approx(alone["history"]["loss"], rel=0.05)


def many(count):
    return [tiny(seed=seed, epochs=3) for seed in range(1, count + 1)]


KILLED = """
import sys, torch
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
import test_study
from lib import paths
torch.set_num_threads(1)
paths.PROJECT = Path(sys.argv[3])
test_study.of(test_study.many(500)).train()
"""


def test_a_killed_study_goes_on_where_it_stopped(project, capsys):
    here = Path(__file__).parent
    command = [sys.executable, "-c", KILLED, str(here.parent), str(here), str(project)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    path = project / "results" / "s.jsonl"
    deadline = time.time() + 120
    while not (path.exists() and path.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    finished = path.read_bytes()
    finished = finished[: finished.rfind(b"\n") + 1]
    n = finished.count(b"\n")
    assert 2 <= n < 500
    found = of(many(n + 2)).train()
    assert f"s: {n} runs from s.jsonl, 2 trained now" in capsys.readouterr().out
    assert path.read_bytes().startswith(finished)  # nothing lost
    seeds = [json.loads(line)["config"]["seed"] for line in path.read_text().splitlines()]
    assert seeds == [config.seed for config in found] == list(range(1, n + 3))  # nothing trained twice


# ---------------------------------------------------------------- the smoke profile


def test_smoke_writes_only_to_its_scratch(project, monkeypatch):
    committed = project / "results" / "s.jsonl"
    of([tiny(seed=0)], Trained().execute).train()
    before = committed.read_bytes()
    monkeypatch.setenv("PROFILE", "smoke")
    frame = of([runs.recipe("digits", "ArcFace", seed, epochs=500) for seed in range(2)]).rows()
    assert list(frame["seed"]) == [0, 1] and set(frame["epochs"]) == {1}
    runs.embeddings(runs.recipe("digits", "ArcFace"))
    assert committed.read_bytes() == before
    assert {p.name for p in (project / "results").rglob("*")} <= {"s.jsonl", "s.jsonl.lock"}
    assert len((project / ".smoke/results/s.jsonl").read_text().splitlines()) == 2
    assert paths.folder("figures") == project / ".smoke/figures"


def test_smoke_trains_what_is_read(smoke, capsys):
    trained = Trained()
    one = of([tiny(seed=seed) for seed in range(3)], trained.execute)
    assert len(one.complete()) == len(one.read()) == len(trained) == 2 and not one.for_gpu()


def invented(planned):
    """A record for each of these runs, all alike."""
    metrics = dict.fromkeys(("val_accuracy", "test_accuracy", "map_at_r", one_shot.MEASURE), 0.5)
    history = {"val_loss": [1.0], "margins": [[0.3] * 10], "margins_mean": [0.3], "margins_spread": [0.1]}
    return {run: fake(run, metrics=metrics, history=history) for run in planned}


@pytest.fixture(scope="module")
def plans():
    """The plans of all studies, (whole, small) by name; what they rest on is invented."""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Study, "read", lambda self, full=False: invented(self.planned(full)))
        patch.delenv("PROFILE", raising=False)
        whole = {name: one.planned() for name, one in STUDIES.items()}
        patch.setenv("PROFILE", "smoke")
        yield {name: (whole[name], one.planned()) for name, one in STUDIES.items()}


def test_smoke_keeps_a_part_of_every_plan(plans):
    for name, (whole, small) in plans.items():
        # planned where a trial asks for them, or of nothing but losses that are left out
        if name.startswith(("wider", "omniglot_wider", "s3_wider", "omniglot_references")):
            continue
        seeds, kept = ({run.seed for run in plan} for plan in (whole, small))
        assert kept <= seeds and len(kept) == min(1 if hasattr(small[0], "trial") else 2, len(seeds)), name
        assert {run.epochs for run in small} == {1} and {run.train_size for run in small} == {128}
        assert {(run.data, type(run)) for run in small} == {(run.data, type(run)) for run in whole}, name
        if hasattr(small[0], "head"):
            heads = {run.head for run in whole}
            assert {"ArcFace", "AdaLoss"} & heads <= {run.head for run in small}, name
            others = "one_shot_trials", "one_shot_trials_2", "one_shot_scale", "omniglot_scales"  # without AdaLoss
            one_loss = isinstance(small[0], margin_maps.Run) or name in others
            assert "AdaLoss" in heads or one_loss, name
    assert sum(len(small) for _, small in plans.values()) < 0.5 * sum(len(whole) for whole, _ in plans.values())


def test_no_plan_asks_for_the_smoke_profile(monkeypatch):
    """Only what runs a plan makes it small. What plans rest on is invented."""

    def whole(self, full=False):
        return list(self.plan(full))

    monkeypatch.setattr(Study, "planned", whole)
    monkeypatch.setattr(Study, "arms", lambda self, full=False: dict(self.plan(full)))
    monkeypatch.setattr(Study, "read", lambda self, full=False: invented(whole(self, full)))
    plans = []
    for profile in ("", "smoke"):
        monkeypatch.setenv("PROFILE", profile)
        plans.append({name: whole(one) for name, one in STUDIES.items()})
    assert plans[0] == plans[1] and sum(map(len, plans[0].values())) > 1000


def test_smoke_keeps_what_the_maps_compare_with(plans):
    for one in margin_maps.STUDIES:
        needed = margin_maps.REFERENCES if one.name.startswith("margins") else margin_maps.DEFAULTS
        settings = {}
        for run in plans[one.name][1]:
            if run.margin_warmup == 1:
                settings.setdefault((run.known, run.seed), set()).add(margin_maps.point(run.head, run.constants))
        assert settings and all(set(needed) <= points for points in settings.values()), one.name


# ---------------------------------------------------------------- the machine


FULL_DISK = """
import json, resource, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from test_runs import fake, tiny
from studies import records
path, room = Path(sys.argv[3]), int(sys.argv[4])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, -1))
try:
    records.append(path, fake(tiny(seed=9)))
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit to set")
@pytest.mark.parametrize("ending", [b"\n", b"", b'\n{"torn'])
def test_a_full_disk_leaves_the_records_as_they_were(project, ending):
    path, here = project / "s.jsonl", Path(__file__).parent
    records.append(path, fake(tiny(seed=1)))
    whole = path.read_bytes().rstrip(b"\n")
    path.write_bytes(whole + ending)
    command = [sys.executable, "-c", FULL_DISK, str(here.parent), str(here), str(path), "40"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "s.jsonl cannot be written" in done.stdout and "free space or make it writable" in done.stdout
    assert json.loads(done.stderr)["config"]["seed"] == 9
    assert path.read_bytes() == whole + ending.replace(b'{"torn', b"")
    assert list(records.read(path, runs.Config)) == [tiny(seed=1)]


def test_a_study_logged_to_a_file_leaves_one_line(project):
    def execute(run, progress):
        return None, fake(run)

    log = project / "log"
    with log.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        of([tiny(seed=seed) for seed in range(30)], execute).train()
    assert len(re.split(r"[\r\n]+", log.read_text(encoding="utf-8").strip())) == 1  # what was trained


class Disk:
    """A disk that is full while the numbers of these attempts to write come up."""

    def __init__(self, monkeypatch, full):
        self.attempts, self.write = 0, records._write
        self.full = full
        monkeypatch.setattr(records, "_write", self)

    def __call__(self, file, line):
        self.attempts += 1
        if self.attempts in self.full:
            file.write(line[:30])
            raise OSError(errno.ENOSPC, "No space left on device")
        self.write(file, line)


def slow(run, progress):
    """Longer than it takes to notice that a record could not be written."""
    time.sleep(1)
    return None, fake(run)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_full_disk_ends_no_other_training_and_loses_no_run(project, monkeypatch, capsys, n_jobs):
    Disk(monkeypatch, full=range(1, 100))
    configs = [tiny(seed=seed) for seed in range(6)]
    with pytest.raises(OSError, match=r"s\.jsonl cannot be written \(No space left on device\): free space"):
        of(configs, slow).train(n_jobs=n_jobs)
    shown = [json.loads(line)["config"] for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert n_jobs <= len(shown) < 6 and lines(project) == []  # those that had begun, and no more


def test_a_run_is_written_when_there_is_space_again(project, monkeypatch, capsys):
    Disk(monkeypatch, full=[2, 3])
    configs = [tiny(seed=seed) for seed in range(6)]
    found = of(configs, slow).train(n_jobs=2)
    assert 2 < len(found) == len(lines(project)) and "left for the next start (no space" in capsys.readouterr().out
    assert len(of(configs, slow).train()) == 6


def test_a_run_that_fails_ends_no_other_training(project):
    def execute(run, progress):
        if run.seed == 1:
            raise FloatingPointError("the loss became nan")
        time.sleep(1)
        return None, fake(run)

    with pytest.raises(FloatingPointError, match="the loss became nan"):
        of([tiny(seed=seed) for seed in range(1, 9)], execute).train(n_jobs=2)
    assert 1 <= len(lines(project)) < 7


def test_a_full_disk_is_seen_before_the_first_training(trained, project, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"s\.jsonl cannot be written \(No space left on device\): free space$"):
        of([tiny()], trained.execute).train()
    assert not trained and {p.name for p in (project / "results").iterdir()} == {"s.jsonl"}


LESS, TENSOR = "no memory is left: lower --jobs", "[enforce] DefaultCPUAllocator: can't allocate memory: you tried to"
ENDS = {  # what ends a command, and what is said of it
    "memory": (MemoryError(), LESS),
    "an array": (MemoryError("Unable to allocate 9 GiB for an array"), LESS),
    "a device": (torch.OutOfMemoryError("CUDA out of memory. Tried\nto allocate"), LESS),
    "a tensor": (RuntimeError(TENSOR), LESS),
    "a fork": (OSError(errno.ENOMEM, "Cannot allocate memory"), LESS),
    "a worker": (
        TerminatedWorkerError("A worker process was\nterminated"),
        "was killed, most likely because no memory",
    ),
    "a disk": (
        OSError(errno.ENOSPC, "No space left on device", "x.npz"),
        "no space is left on the disk (.*x.npz.*): free",
    ),
    "a quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), "no space is left on the disk"),
    "read only": (OSError(errno.EROFS, "Read-only file system", "a.csv"), "a.csv cannot be written (Read-only"),
    "a message": (ValueError("two\nlines"), "two lines"),
}


@pytest.mark.parametrize("case", ENDS)
def test_what_ends_a_command_is_said_in_one_line(monkeypatch, case):
    error, said = ENDS[case]
    monkeypatch.setattr(driver, "train", lambda *args, **options: (_ for _ in ()).throw(error))
    monkeypatch.setattr(records, "check_committed", lambda: None)
    with pytest.raises(SystemExit, match=re.escape(said).replace(r"\.\*", ".*")) as end:
        driver.main(["mnist"])
    assert str(end.value).startswith("error: ") and "\n" not in str(end.value)


def test_a_defect_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(driver, "train", lambda *args, **options: 1 / 0)
    monkeypatch.setattr(records, "check_committed", lambda: None)
    with pytest.raises(ZeroDivisionError):
        driver.main(["mnist"])
