import dataclasses
import json
import multiprocessing
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from lib import losses, missing, store, study, train

LIB = Path(study.__file__).parent.parent


def tiny(head="ArcFace", seed=0, **changes):
    """A run of a fraction of a second."""
    options = {"epochs": 1, "train_size": 192, "batch_size": 64, "embedding_dim": 8}
    return study.recipe("digits", head, seed, **{**options, **changes})


def fake(config, **changes):
    """A record as execute makes it, without training."""
    record = {
        "config": dataclasses.asdict(config), "metrics": {"test_accuracy": 0.5}, "history": {"loss": [1.0]},
        "seconds": 1.0, "device": "none", "dtype": "fp32", "versions": {}, "commit": "0", "date": "now",
    }  # fmt: skip
    return json.loads(json.dumps({**record, **changes}))


@pytest.fixture
def trained(project, monkeypatch):
    """The configs that runs() has trained, with execute replaced by fake."""
    calls = []

    def execute(config, progress=True):
        calls.append(config)
        return None, None, fake(config, seconds=float(len(calls)))

    monkeypatch.setattr(study, "execute", execute)
    monkeypatch.setattr(study, "_packed", lambda *run: b"embeddings")
    monkeypatch.setattr(study, "_keep_embeddings", lambda *run: None)
    return calls


def lines(project, name="s"):
    return (project / "results" / f"{name}.jsonl").read_text().splitlines()


# ---------------------------------------------------------------- configurations


def test_equal_configs_are_the_same_run():
    a = study.Config("mnist", "CombinedMargin", {"m2": 0.3, "m1": 1.2})
    b = study.Config("mnist", "CombinedMargin", [["m1", 1.2], ["m2", 0.3]])  # as JSON gives it
    assert a == b and hash(a) == hash(b) and a.key == b.key
    for changed in ({"seed": 1}, {"lr": 0.2}, {"constants": {"m1": 1.2}}, {"head": "ArcFace"}):
        other = dataclasses.replace(a, **changed)
        assert other != a and other.key != a.key


@pytest.mark.parametrize("field", ["margin_warmup", "lr", "momentum"])
def test_whole_numbers_are_the_same_run(field):
    a, b = (study.Config("mnist", "ArcFace", **{field: one}) for one in (1, 1.0))
    assert a == b and a.key == b.key
    a, b = (study.Config("mnist", "ArcFace", {"m": one}) for one in (1, 1.0))
    assert a == b and a.key == b.key


def test_config_survives_json():
    config = tiny("AdaLoss", constants={"m": 0.3, "gamma": 0.5, "s": "auto"})
    assert study.Config(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_any_recorded_study_can_be_repeated(project):
    configs = [tiny(seed=seed) for seed in (2, 1)]
    study.runs(configs, "a_trial")
    assert missing.plan("a_trial") == configs
    with pytest.raises(ValueError, match=r"^unknown study 'ablation_mnist': choose one of mnist, cifar10, controlled_"):
        missing.plan("ablation_mnist")


def test_key_is_stable():
    assert study.Config("mnist", "ArcFace", {"m": 0.3}).key == "eadd868773ce"


def test_unknown_head():
    with pytest.raises(ValueError, match="unknown loss 'Arcface': choose one of Softmax, NormFace"):
        study.Config("mnist", "Arcface")


@pytest.mark.parametrize("name", study.MAIN)
def test_plan_holds_every_head_and_seed(name):
    heads, seeds = study.MAIN[name]
    configs = study.plan(name)
    assert [(c.head, c.seed) for c in configs] == [(h, s) for s in range(seeds) for h in heads]  # a part is smaller
    assert len({dataclasses.replace(c, head="ArcFace", seed=0) for c in configs}) == 1  # one protocol


# ---------------------------------------------------------------- one run


def test_execute_records_everything(project):
    config = tiny("AdaLoss", constants={"m": 0.2})
    model, data, record = study.execute(config, progress=False)
    assert len(data.train) == 192 and model.head.m == 0.2
    assert study.Config(**record["config"]) == config
    assert record["metrics"]["test_accuracy"] == pytest.approx(
        (train.predict(model, data, data.test).argmax(1) == data.test.labels).double().mean().item(), abs=1e-5
    )
    assert record["seconds"] == record["history"]["seconds"][-1] > 0
    assert record["versions"]["torch"] == torch.__version__ and record["date"].endswith("+00:00")
    assert {"metrics", "history", "device", "dtype", "commit"} <= set(record)
    store.append(project / "s.jsonl", record)
    assert list(store.read(project / "s.jsonl", study.Config)) == [config]
    (project / "s.jsonl").unlink(), (project / "s.jsonl.lock").unlink(missing_ok=True)
    assert not list(project.iterdir())  # nothing is written


def test_same_config_same_result(project):
    records = [study.execute(tiny(seed=seed), progress=False)[2] for seed in (3, 3, 4)]
    first, again, other = (r["metrics"] for r in records)
    assert first == again != other


def test_seed_gives_every_head_the_same_start(project, monkeypatch):
    starts = []
    monkeypatch.setattr(study.train, "fit", lambda model, *a, **k: starts.append(model.state_dict()) or 1 / 0)
    for head in losses.heads():
        with pytest.raises(ZeroDivisionError):
            study.execute(tiny(head))
    assert len(starts) == len(losses.heads())
    for state in starts:
        shared = [k for k in state if k.startswith("network.")] + ["head.W"]
        assert all(torch.equal(state[k], starts[0][k]) for k in shared)


def test_small_data_needs_no_recipe(project):
    folder = project / "photos"
    from PIL import Image

    for name, shade in (("a", 0), ("b", 200)):
        (folder / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (32, 32), (shade, 5 * i, 9 * i)).save(folder / name / f"{i}.png")
    config = study.Config(f"{folder}@16", "ArcFace", embedding_dim=8, batch_size=8)
    assert len(study.runs([config], "photos")["history"][0]["loss"]) == 4
    assert study.load(config.data).train.images.shape[1:] == (3, 16, 16)
    assert study.embeddings(config)["x"].shape == (4, 8)
    assert [p.name.split("_")[0] for p in (project / "results/embeddings").iterdir()] == ["photos@16"]


def test_validation_images_that_are_not_held_out_are_trained_on():
    usual, fuller = study.load("digits"), study.load_for(tiny(train_size=0, val_size=50))
    assert len(fuller.val) == 50 and set(fuller.val.labels.bincount().tolist()) == {5}  # stratified
    assert len(fuller.train) == len(usual.train) + len(usual.val) - 50
    assert torch.equal(fuller.test.images, usual.test.images)

    def images(*parts):
        return sorted(tuple(image.flatten().tolist()) for part in parts for image in part.images)

    assert images(fuller.train, fuller.val) == images(usual.train, usual.val)
    assert len(study.load("digits", val_size=10**6).val) == len(usual.val)


# ---------------------------------------------------------------- records


def test_record_round_trip(project):
    path, record = project / "s.jsonl", fake(tiny(constants={"m": 0.1}))
    store.append(path, record)
    assert path.read_text() == json.dumps(record) + "\n"
    assert store.read(path, study.Config) == {tiny(constants={"m": 0.1}): record}


def test_no_file_no_records(project):
    assert store.read(project / "none.jsonl", study.Config) == {}


def test_later_record_wins(project):
    path = project / "s.jsonl"
    for seconds in (1.0, 2.0):
        store.append(path, fake(tiny(), seconds=seconds))
    assert store.read(path, study.Config)[tiny()]["seconds"] == 2.0 and len(path.read_text().splitlines()) == 2


def test_old_records_without_new_fields_count(project):
    record = fake(tiny())
    for field in ("momentum", "low_res_epochs", "margin_warmup"):
        del record["config"][field]
    store.append(project / "s.jsonl", record)
    assert list(store.read(project / "s.jsonl", study.Config)) == [tiny()]


@pytest.mark.parametrize("keep", [1, 20, -5])
def test_torn_last_line(project, capsys, keep):
    path = project / "s.jsonl"
    store.append(path, fake(tiny(seed=0)))
    whole = path.read_bytes()
    path.write_bytes(whole + json.dumps(fake(tiny(seed=1))).encode()[:keep])
    assert list(store.read(path, study.Config)) == [tiny(seed=0)]
    assert "s.jsonl, line 2: torn by an interrupted write" in capsys.readouterr().err
    store.append(path, fake(tiny(seed=2)))
    assert path.read_bytes().startswith(whole)
    assert list(store.read(path, study.Config)) == [tiny(seed=0), tiny(seed=2)]
    assert capsys.readouterr().err == ""


def test_complete_last_line_without_newline_is_kept(project):
    path = project / "s.jsonl"
    path.write_text(json.dumps(fake(tiny(seed=1))))  # an editor or a kill took the newline only
    assert list(store.read(path, study.Config)) == [tiny(seed=1)]
    store.append(path, fake(tiny(seed=2)))
    assert list(store.read(path, study.Config)) == [tiny(seed=1), tiny(seed=2)]


FOREIGN = {
    "text": "hello",
    "a number": "7",
    "another JSON": '{"a": 1}',
    "an unknown field": json.dumps(fake(tiny()) | {"config": {"data": "mnist", "head": "ArcFace", "dropout": 1}}),
    "an unknown loss": json.dumps(fake(tiny()) | {"config": {"data": "mnist", "head": "Arc"}}),
    "no metrics": json.dumps({"config": dataclasses.asdict(tiny())}),
    "not utf-8": b"\xff\xfe",
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_line_is_named(trained, project, case):
    store.folder("results")
    path, line = project / "results" / "s.jsonl", FOREIGN[case]
    record = json.dumps(fake(tiny())).encode()
    path.write_bytes(b"\n".join([record, line if isinstance(line, bytes) else line.encode(), record, b""]))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"s\.jsonl, line 2 is not a run record.*: move that line") as error:
        study.runs([tiny()], "s")
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before and not trained


def test_a_directory_in_place_of_the_records(trained, project):
    path = store.folder("results") / "s.jsonl"
    path.mkdir()
    with pytest.raises(OSError, match=r"s\.jsonl"):
        study.runs([tiny()], "s")
    assert not trained


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(30, "Read-only file system")])
def test_unwritable_folder_stops_before_training(trained, project, monkeypatch, error):
    plain = Path.open

    def refuse(path, mode="r", *args, **kwargs):
        if path.suffix == ".jsonl" and mode != "r" and mode != "rb":
            raise error
        return plain(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OSError, match=rf"s\.jsonl cannot be written \({error.strerror}\): make the folder") as caught:
        study.runs([tiny()], "s")
    assert "\n" not in str(caught.value) and not trained


@pytest.fixture
def full_disk(project):
    """A records file that can grow by 20 bytes only, while smaller files can be written."""
    path = project / "s.jsonl"
    path.write_text("".join(json.dumps(fake(tiny(seed=seed))) + "\n" for seed in range(200)))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, old[1]))
    yield path
    resource.setrlimit(resource.RLIMIT_FSIZE, old)
    signal.signal(signal.SIGXFSZ, handler)


def test_full_disk_keeps_the_finished_run(full_disk, capfd):
    record = fake(tiny("CosFace"))
    with pytest.raises(OSError, match=r"s\.jsonl cannot be written \(.+\): free space.*kept in") as error:
        store.append(full_disk, record)
    assert "\n" not in str(error.value)
    copy = Path(str(error.value).split("kept in ")[1])
    assert json.loads(copy.read_text()) == record
    copy.unlink()
    assert len(store.read(full_disk, study.Config)) == 200  # the earlier ones


def test_full_disk_everywhere_still_shows_the_run(full_disk, monkeypatch, capfd):
    def refuse(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.tempfile, "NamedTemporaryFile", refuse)
    record = fake(tiny("CosFace"))
    with pytest.raises(OSError, match=r"s\.jsonl cannot be written") as error:
        store.append(full_disk, record)
    shown = "".join(capfd.readouterr()) + str(error.value)
    assert json.dumps(record) in shown


def append_together(barrier, path, seeds):
    barrier.wait(60)
    for seed in seeds:
        store.append(path, fake(tiny(seed=seed)))


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
    assert sorted(c.seed for c in store.read(path, study.Config)) == list(range(590))
    assert len(path.read_text().splitlines()) == 590


# ---------------------------------------------------------------- studies


def test_runs_trains_only_what_is_missing(trained, project, capsys):
    configs = [tiny(head, seed) for seed in range(2) for head in ("Softmax", "ArcFace")]
    study.runs(configs[:1], "s")
    frame = study.runs(configs[1::-1], "s")
    assert trained == configs[:2]
    assert list(frame["head"]) == ["ArcFace", "Softmax"] and list(frame["seconds"]) == [2, 1]  # in the order asked
    study.runs(configs, "s")
    assert trained == configs and len(lines(project)) == 4
    assert "s: 2 runs from s.jsonl, 2 trained now" in capsys.readouterr().out
    study.runs(configs, "s")
    assert trained == configs


def test_a_config_named_twice_is_one_run(trained):
    study.runs([tiny(), tiny()], "s")
    assert trained == [tiny()]


def test_frame_columns(trained):
    frame = study.runs([tiny(seed=7)], "s")
    row = frame.iloc[0]
    assert (row["head"], row["seed"], row["test_accuracy"], row["history"]) == ("ArcFace", 7, 0.5, {"loss": [1.0]})


def test_each_finished_run_is_written_at_once(trained, project, monkeypatch):
    def execute(config, progress=True):
        if config.seed == 1:
            raise FloatingPointError("the loss became nan")
        return None, None, fake(config)

    monkeypatch.setattr(study, "execute", execute)
    with pytest.raises(FloatingPointError):
        study.runs([tiny(seed=0), tiny(seed=1), tiny(seed=2)], "s")
    assert [json.loads(line)["config"]["seed"] for line in lines(project)] == [0]


def test_retrain(trained, project, monkeypatch):
    study.runs([tiny()], "s")
    monkeypatch.setenv("RETRAIN", "1")
    assert list(study.runs([tiny()], "s")["seconds"]) == [2.0]
    monkeypatch.delenv("RETRAIN")
    assert list(study.runs([tiny()], "s")["seconds"]) == [2.0]  # the newest counts
    assert len(trained) == len(lines(project)) == 2


def test_budget_stops_between_runs(trained, project, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(store.time, "time", lambda: now[0])
    execute = study.execute

    def slow(config, progress=True):
        now[0] += 10
        return execute(config)

    monkeypatch.setattr(study, "execute", slow)
    configs = [tiny(seed=seed) for seed in range(5)]
    frame = study.runs(configs, "s", budget=15)
    assert trained == configs[:2] and len(frame) == len(lines(project)) == 2
    assert "0 runs from s.jsonl, 2 trained now, 3 left for the next start" in capsys.readouterr().out
    assert len(study.runs(configs, "s")) == 5 and trained == configs


def test_no_budget_left_trains_nothing(trained):
    assert len(study.runs([tiny()], "s", budget=0)) == 0 and not trained


def test_run_log(trained, project, monkeypatch):
    monkeypatch.setenv("RUN_LOG", str(project / "log"))
    for _ in range(2):
        study.runs([tiny()], "s")
    assert (project / "log").read_text().splitlines() == [
        "s: 0 runs from s.jsonl, 1 trained now", "s: 1 runs from s.jsonl, 0 trained now",
    ]  # fmt: skip


def test_smoke_writes_only_to_its_scratch(project, monkeypatch):
    committed = store.folder("results") / "s.jsonl"
    store.append(committed, fake(tiny(seed=0)))
    before = committed.read_bytes()
    monkeypatch.setenv("PROFILE", "smoke")
    start = time.time()
    frame = study.runs([study.recipe("digits", "ArcFace", seed, epochs=500) for seed in range(2)], "s")
    assert time.time() - start < 20
    assert list(frame["seed"]) == [0, 1] and set(frame["epochs"]) == {1}
    study.embeddings(study.recipe("digits", "ArcFace"))
    assert committed.read_bytes() == before
    outside = [p.name for p in (project / "results").rglob("*")]
    assert set(outside) <= {"s.jsonl", "s.jsonl.lock"}
    assert len((project / ".smoke/results/s.jsonl").read_text().splitlines()) == 2
    assert store.folder("figures") == project / ".smoke/figures"


def test_smoke_plan_is_small(monkeypatch):
    monkeypatch.setenv("PROFILE", "smoke")
    assert {c.head for c in study.plan("mnist")} == set(losses.HEADS)
    assert len(study.plan("mnist")) == len(losses.HEADS)
    shrunk = {(s.epochs, s.train_size) for s in map(study.shrunk, study.plan("cifar10"))}
    assert shrunk == {(1, 512)}


def test_two_jobs(project):
    configs = [tiny(head, seed=1) for head in ("Softmax", "ArcFace", "CosFace")]
    frame = study.runs(configs, "s", n_jobs=2)
    assert list(frame["head"]) == ["Softmax", "ArcFace", "CosFace"]
    assert len(store.read(project / "results/s.jsonl", study.Config)) == 3
    alone = study.execute(configs[1], progress=False)[2]
    assert frame["history"][1]["loss"] == pytest.approx(alone["history"]["loss"], rel=0.05)


def many(count):
    return [tiny(seed=seed, epochs=3) for seed in range(1, count + 1)]


KILLED = """
import sys, torch
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
import test_study
from lib import store, study
torch.set_num_threads(1)
store.PROJECT = Path(sys.argv[3])
study.runs(test_study.many(500), "s")
"""


def test_a_killed_study_goes_on_where_it_stopped(project, capsys):
    command = [sys.executable, "-c", KILLED, str(LIB), str(Path(__file__).parent), str(project)]
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
    frame = study.runs(many(n + 2), "s")
    assert f"s: {n} runs from s.jsonl, 2 trained now" in capsys.readouterr().out
    assert path.read_bytes().startswith(finished)  # nothing lost
    seeds = [json.loads(line)["config"]["seed"] for line in path.read_text().splitlines()]
    assert seeds == list(frame["seed"]) == list(range(1, n + 3))  # nothing trained twice


# ---------------------------------------------------------------- embeddings


def test_first_seed_of_a_main_study_keeps_its_embeddings(project, monkeypatch):
    study.runs([tiny()], "a_trial")
    assert not (project / "results/embeddings").exists()
    monkeypatch.setitem(study.MAIN, "s", ((), 0))
    configs = [tiny(embedding_dim=3, seed=seed) for seed in range(2)]
    study.runs(configs, "s")
    assert len(list((project / "results/embeddings").iterdir())) == 1
    execute = study.execute
    monkeypatch.setattr(study, "execute", lambda config: 1 / 0)
    kept = study.embeddings(configs[0])
    with pytest.raises(ZeroDivisionError):
        study.embeddings(configs[1])
    model, data, _ = execute(configs[0], progress=False)
    np.testing.assert_allclose(kept["x"], train.embed(model, data, data.test), atol=0.01)  # stored in half precision
    assert kept["x"].dtype == np.float32
    assert np.array_equal(kept["y"], data.test.labels)
    assert np.array_equal(kept["W"], model.head.W.detach())


def test_missing_embeddings_are_trained(project, monkeypatch):
    first = study.embeddings(tiny(seed=1))
    monkeypatch.setattr(study, "execute", lambda config: 1 / 0)
    assert np.array_equal(first["x"], study.embeddings(tiny(seed=1))["x"])


def test_a_run_counts_even_if_its_embeddings_cannot_be_kept(trained, project, monkeypatch):
    def refuse(*run):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(study, "_keep_embeddings", refuse)
    monkeypatch.setitem(study.MAIN, "s", ((), 0))
    with pytest.raises(OSError):
        study.runs([tiny()], "s")
    assert len(lines(project)) == 1


def test_unknown_data_set(project):
    with pytest.raises(ValueError, match="unknown data set 'fashion': choose one of"):
        study.runs([study.Config("fashion", "ArcFace")], "s")
