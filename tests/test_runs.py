"""Configurations, one run of them, and studies of one's own."""

import dataclasses
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from lib import data as datasets
from lib import heads, metrics, paths, train
from studies import beyond_accuracy, claims, margin_maps, omniglot, recommend, records, runs, search, tuning
from studies.__main__ import named


def tiny(head="ArcFace", seed=0, **changes):
    """A run of a fraction of a second."""
    options = {"epochs": 1, "train_size": 192, "batch_size": 64, "embedding_dim": 8}
    return runs.recipe("digits", head, seed, **{**options, **changes})


def fake(config, **changes):
    """A record as execute makes it, without training."""
    record = {
        "config": dataclasses.asdict(config), "metrics": {"test_accuracy": 0.5}, "history": {"loss": [1.0]},
        "seconds": 1.0, "device": "none", "dtype": "fp32", "versions": {}, "commit": "0", "date": "now",
    }  # fmt: skip
    return json.loads(json.dumps({**record, **changes}))


# ---------------------------------------------------------------- configurations


def test_equal_configs_are_the_same_run():
    a = runs.Config("mnist", "CombinedMargin", {"m2": 0.3, "m1": 1.2})
    b = runs.Config("mnist", "CombinedMargin", [["m1", 1.2], ["m2", 0.3]])  # as JSON gives it
    assert a == b and hash(a) == hash(b) and a.key == b.key
    for changed in ({"seed": 1}, {"lr": 0.2}, {"constants": {"m1": 1.2}}, {"head": "ArcFace", "constants": ()}):
        other = dataclasses.replace(a, **changed)
        assert other != a and other.key != a.key


@pytest.mark.parametrize("field", ["margin_warmup", "lr", "momentum"])
def test_whole_numbers_are_the_same_run(field):
    a, b = (runs.Config("mnist", "ArcFace", **{field: one}) for one in (1, 1.0))
    assert a == b and a.key == b.key
    a, b = (runs.Config("mnist", "ArcFace", {"m": one}) for one in (1, 1.0))
    assert a == b and a.key == b.key


def test_config_survives_json():
    config = tiny("AdaLoss", constants={"m": 0.3, "gamma": 0.5, "s": "auto"})
    assert runs.Config(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_key_is_stable():
    assert runs.Config("mnist", "ArcFace", {"m": 0.3}).key == "eadd868773ce"


def test_scalars_of_numpy_and_torch_are_pythons():
    a = runs.Config("mnist", "ArcFace", {"m": 0.5, "s": 16}, lr=0.5, seed=1, epochs=2)
    m, s, lr = torch.tensor(0.5, dtype=torch.float64), np.int64(16), np.float64(0.5)
    b = runs.Config("mnist", "ArcFace", {"m": m, "s": s}, lr=lr, seed=np.int32(1), epochs=np.float32(2))
    assert a == b and a.key == b.key
    assert json.loads(json.dumps(dataclasses.asdict(b)))
    for tenth in (torch.tensor(0.1), np.float32(0.1)):  # of half the digits, the same decimal
        assert runs.Config("mnist", "ArcFace", {"m": tenth}, lr=tenth) == runs.Config("mnist", "ArcFace", {"m": 0.1})


@pytest.mark.parametrize("made", [lambda v: v, np.float64, np.float32, torch.tensor, Fraction])
def test_any_number_is_taken_for_what_it_is(made):
    run = runs.Config(Path("mnist"), np.str_("ArcFace"), lr=made(0.5), reflect=np.bool_(True), epochs=made(2.0))
    assert run == runs.Config("mnist", "ArcFace", lr=0.5, reflect=True, epochs=2)
    assert {type(value) for value in dataclasses.asdict(run).values()} == {str, int, float, bool, tuple, type(None)}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"constants": {"m": 28.6}}, "in radians: 28.6 degrees are 0.499"),
        ({"constants": {"margin": 0.5}}, "ArcFace: no constant 'margin', only s, m"),
        ({"constants": {"m": np.nan}}, "m must be"),
        ({"epochs": 0}, "epochs must be a whole number from 1"),
        ({"epochs": 2.5}, "epochs must be a whole number"),
        ({"batch_size": "64"}, "batch_size must be a whole number"),
        ({"lr": -0.1}, "lr must be a number from 0"),
        ({"lr": float("inf")}, "lr must be a number"),
        ({"seed": -1}, "seed must be"),
        ({"seed": True}, "seed must be"),
        ({"train_size": None}, "train_size must be"),
        ({"network": "ResNet"}, "unknown network 'ResNet': choose one of SmallNet"),
        ({"reflect": "yes"}, "reflect must be of type bool"),
        ({"lr": np.ones((40, 40))}, "lr must be a number"),
        ({"lr": torch.ones(1)}, "lr must be a number"),
        ({"seed": 1j}, "seed must be"),
        ({"constants": 0.5}, "constants must be a dict or pairs of name and value, got 0.5"),
        ({"constants": "m"}, "constants must be a dict or pairs"),
        ({"batch_size": 1}, "batch_size must be a whole number from 2"),
        ({"train_size": 1}, "train_size must be 2 or more, or 0 for all images"),
        ({"val_size": 9}, "val_size 9 is less than one image of each of 10 classes"),
        ({"crop_padding": 28, "reflect": True}, "crop_padding 28 mirrors more than an image of 28 pixels"),
        ({"data": "digits", "network": "AirNet"}, "AirNet needs images of 9 pixels or more, digits has 8"),
        ({"data": "digits", "network": "SmallNet", "head": 3}, "head must be of type str, got 3"),
        ({"data": None}, "data must be of type str"),
        ({"data": "omniglot"}, "omniglot are of classes never seen: `studies.omniglot` reads them"),
    ],
)
def test_what_cannot_run_is_refused_when_it_is_planned(wrong, message):
    with pytest.raises(ValueError, match=message) as error:
        runs.Config(**{"data": "mnist", "head": "ArcFace", **wrong})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (beyond_accuracy.Run, {"question": "open sets"}, "unknown question 'open sets': choose one of open set"),
        (beyond_accuracy.Run, {"question": "label noise", "level": 10}, "label noise: level must lie from 0 to 1"),
        (beyond_accuracy.Run, {"question": "few examples", "level": 0.5}, "few examples: level must lie"),
        (margin_maps.Run, {"known": 1}, "known must be 2 or more"),
        (omniglot.Run, {}, "unknown data set 'mnist': choose one of omniglot"),
        (omniglot.Run, {"data": "omniglot", "drawings": 17}, "drawings must be a whole number from 1 to 16"),
        (omniglot.Run, {"data": "omniglot", "classes": 1}, "classes must be 2 or more"),
    ],
)
def test_so_is_what_a_question_cannot_ask(kind, changes, message):
    with pytest.raises(ValueError, match=message):
        kind(**{"data": "mnist", "head": "ArcFace", **changes})
    assert kind(**{"data": "mnist" if kind is not omniglot.Run else "omniglot", "head": "ArcFace"}).epochs == 4


def test_a_plan_with_unknown_data_is_refused_before_its_first_run(project, monkeypatch):
    monkeypatch.setattr(runs, "execute", lambda *args, **options: 1 / 0)
    with pytest.raises(ValueError, match="unknown data set 'fashion'"):
        runs.listed("s", [tiny(), runs.Config("fashion", "ArcFace")])


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", "", ".", "..", ".hidden", "what?", "c:x"])
def test_a_study_is_named_like_a_file(project, name):
    with pytest.raises(ValueError, match="a file in results/ is named after it"):
        runs.listed(name, [tiny()])
    assert runs.listed("my first study, m = 0.5", [tiny()]).path.parent == project / "results"


def test_a_run_is_recorded_whatever_its_record_holds(project):
    def execute(run, progress):
        odd = {"array": np.ones(2), "tensor": torch.ones(2, requires_grad=True), ("a", 1): np.float32(0.5), "set": {1}}
        return None, {**fake(run), "odd": {**odd, "object": paths, "nan": np.nan, "bool": np.bool_(True)}}

    study = dataclasses.replace(runs.listed("s", [tiny()]), execute=execute)
    study.train()
    (record,) = records.read(project / "results" / "s.jsonl", runs.Config).values()
    assert record["odd"]["array"] == record["odd"]["tensor"] == [1, 1] and record["odd"]["bool"] is True
    assert record["odd"]["('a', 1)"] == 0.5


def fail(*args, **options):
    raise RuntimeError("out of\nmemory")


FAILURES = {  # what fails behind a training, and a metric that is there all the same
    "embeddings": (train, "embed", None), "a metric": (metrics, "angles", "test_accuracy"),
    "the temperature": (metrics, "calibration_error", "recall_at_1"), "everything": (runs, "evaluate", None),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILURES)
def test_a_run_whose_evaluation_fails_is_recorded_and_reported(project, monkeypatch, capsys, case):
    module, name, measured = FAILURES[case]
    monkeypatch.setattr(module, name, fail) if name != "embed" else monkeypatch.setattr(
        train, "embed", lambda model, data, split: fail() if split is data.test else embed(model, data, split)
    )
    study = runs.listed("s", [tiny(), tiny(seed=1)])
    study.train()
    said = capsys.readouterr()
    assert "2 trained now" in said.out
    assert said.err.count("s.jsonl: a run is recorded without all of its metrics (RuntimeError: out of memory)") == 2
    for record in records.read(project / "results" / "s.jsonl", runs.Config).values():
        assert record["error"] == "RuntimeError: out of memory" and record["history"]["loss"]
        assert "error" not in record["metrics"] and bool(measured) == (record["metrics"].get(measured) is not None)
    frame = study.finished()
    assert len(frame) == 2 and (not measured or frame[measured].notna().all())


embed = train.embed


def test_a_run_without_its_measure_is_not_chosen(project, monkeypatch):
    monkeypatch.setattr(runs, "evaluate", fail)
    hidden = search.hide_test(runs.execute, "val_accuracy")
    _, record = hidden(tiny())
    assert np.isnan(record["metrics"]["val_accuracy"]) and record["error"]
    found = {tiny(): record}
    for choose in (search.finalists, search.chosen):
        with pytest.raises(
            ValueError, match=r"a run has no val_accuracy \(RuntimeError: out of memory\): take its line"
        ):
            choose([tiny()], found, "val_accuracy")
    _, record = tuning.execute_trial(tiny())
    assert np.isnan(record["metrics"]["val_accuracy"])


def test_a_run_counts_even_if_what_else_to_keep_of_it_fails(project):
    study = dataclasses.replace(kept([tiny()]), extra=lambda *run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        study.train()
    assert list(records.read(project / "results" / "s.jsonl", runs.Config)) == [tiny()]


def test_unknown_head():
    with pytest.raises(ValueError, match="unknown loss 'Arcface': choose one of Softmax, NormFace"):
        runs.Config("mnist", "Arcface")


@pytest.mark.parametrize("name", runs.MAIN)
def test_main_runs_hold_every_head_and_seed(name):
    configs = runs.MAIN[name].planned()
    seeds = range({"mnist": 3, "cifar10": 2}[name])
    assert [(c.head, c.seed) for c in configs] == [(h, s) for s in seeds for h in heads.NINE]  # a part is smaller
    assert len({dataclasses.replace(c, head="ArcFace", seed=0) for c in configs}) == 1  # one protocol


# ---------------------------------------------------------------- one run


def test_execute_records_everything(project):
    config = tiny("AdaLoss", constants={"m": 0.2})
    model, record = runs.execute(config)
    data = runs.load_for(config)
    assert len(data.train) == 192 and model.head.m == 0.2
    assert runs.Config(**record["config"]) == config
    assert record["metrics"]["test_accuracy"] == pytest.approx(
        (train.predict(model, data, data.test).argmax(1) == data.test.labels).double().mean().item(), abs=1e-5
    )
    assert record["seconds"] == record["history"]["seconds"][-1] > 0
    assert record["versions"]["torch"] == torch.__version__ and record["date"].endswith("+00:00")
    assert {"metrics", "history", "device", "dtype", "commit"} <= set(record)
    assert not list(project.iterdir())  # nothing is written
    records.append(project / "s.jsonl", record)
    assert list(records.read(project / "s.jsonl", runs.Config)) == [config]


def test_same_config_same_result(project):
    first, again, other = (runs.execute(tiny(seed=seed))[1]["metrics"] for seed in (3, 3, 4))
    assert first == again != other


def test_live_gives_model_data_and_record(project, capsys, monkeypatch):
    monkeypatch.setattr(train, "hidden", lambda progress: not progress)  # as on a terminal
    model, data, record = runs.live(tiny())
    assert len(data.train) == 192 and record["history"]["loss"]
    assert torch.isfinite(train.embed(model, data, data.val)).all()
    assert "step" in capsys.readouterr().out and not list(project.iterdir())  # a bar, and no file


def test_seed_gives_every_head_the_same_start(project, monkeypatch):
    starts = []
    monkeypatch.setattr(train, "fit", lambda model, *a, **k: starts.append(model.state_dict()) or 1 / 0)
    for head in heads.heads():
        with pytest.raises(ZeroDivisionError):
            runs.execute(tiny(head))
    assert len(starts) == len(heads.heads())
    for state in starts:
        shared = [k for k in state if k.startswith("network.")] + ["head.W"]
        assert all(torch.equal(state[k], starts[0][k]) for k in shared)


def test_validation_images_that_are_not_held_out_are_trained_on():
    usual, fuller = runs.load("digits"), runs.load_for(tiny(train_size=0, val_size=50))
    assert len(fuller.val) == 50 and set(fuller.val.labels.bincount().tolist()) == {5}  # stratified
    assert len(fuller.train) == len(usual.train) + len(usual.val) - 50
    assert torch.equal(fuller.test.images, usual.test.images)

    def images(*parts):
        return sorted(tuple(image.flatten().tolist()) for part in parts for image in part.images)

    assert images(fuller.train, fuller.val) == images(usual.train, usual.val)
    assert len(runs.load("digits", val_size=10**6).val) == len(usual.val)


def test_unknown_data_set(project):
    with pytest.raises(ValueError, match="unknown data set 'fashion': choose one of"):
        runs.listed("s", [runs.Config("fashion", "ArcFace")]).train()


# ---------------------------------------------------------------- studies of one's own


def test_an_image_folder_needs_no_recipe(project):
    folder = project / "photos"
    for name, shade in (("a", 0), ("b", 200)):
        (folder / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (32, 32), (shade, 5 * i, 9 * i)).save(folder / name / f"{i}.png")
    config = runs.Config(f"{folder}@16", "ArcFace", embedding_dim=8, batch_size=8)
    assert len(runs.listed("photos", [config]).rows()["history"][0]["loss"]) == 4
    assert runs.load(config.data).train.images.shape[1:] == (3, 16, 16)
    assert runs.embeddings(config)["x"].shape == (4, 8)
    assert [p.name.split("_")[0] for p in (project / "results/embeddings").iterdir()] == ["photos@16"]


@pytest.fixture
def mine(digits):
    """Data of one's own, in memory: three of the digits."""
    few = {name: part[part.labels < 3] for name, part in digits.splits().items()}
    return dataclasses.replace(digits, name="mine", classes=["0", "1", "2"], **few)


def test_data_in_memory_are_trained_recorded_and_resumed(project, mine, capsys):
    configs = [runs.recipe("mine", head, epochs=2, train_size=150) for head in ("Softmax", "ArcFace")]
    first = runs.listed("my", configs[:1], data=mine).rows()
    rows = runs.listed("my", configs, data=mine).rows()
    assert "my: 1 runs from my.jsonl, 1 trained now" in capsys.readouterr().out
    assert list(rows["head"]) == ["Softmax", "ArcFace"] and (rows["test_accuracy"] > 0.6).all()
    assert rows["history"][0] == first["history"][0] and np.shape(rows["confusion"][1]) == (3, 3)
    again = runs.listed("my", configs, data=dataclasses.replace(mine, test=mine.test[:0])).rows()  # nothing is trained
    assert list(again["seconds"]) == list(rows["seconds"])
    assert runs.execute(configs[0], data=mine)[1]["history"]["loss"] == rows["history"][0]["loss"]
    assert len(runs.load_for(configs[0], mine).train) == 150 < len(mine.train)


@pytest.mark.skipif(not hasattr(datasets, "SETS"), reason="data sets cannot be registered")
def test_a_registered_data_set_is_trained_recorded_and_resumed(project, mine, monkeypatch, capsys):
    monkeypatch.setitem(datasets.SETS, "mine", lambda root: mine)
    configs = [runs.recipe("mine", head, epochs=2, train_size=150) for head in ("Softmax", "ArcFace")]
    runs.listed("my", configs[:1]).train()
    rows = runs.listed("my", configs).rows()
    assert "my: 1 runs from my.jsonl, 1 trained now" in capsys.readouterr().out
    assert (rows["test_accuracy"] > 0.6).all() and np.shape(rows["confusion"][1]) == (3, 3)
    assert runs.execute(configs[0], data=mine)[1]["history"]["loss"] == rows["history"][0]["loss"]
    (again,) = named("my")  # as `python -m studies my` does
    assert again.planned() == configs and list(again.train()) == configs


def test_data_in_memory_are_those_that_the_runs_name(mine):
    with pytest.raises(ValueError, match="a run is on 'digits', and the data are called 'mine'"):
        runs.listed("my", [tiny()], data=mine)


def test_own_records_move_no_claim_and_no_recommendation(project, monkeypatch):
    monkeypatch.setattr(recommend, "_described", lambda run: dict.fromkeys(recommend.DESCRIPTORS, 1.0))

    def record(name, **changes):
        for p in margin_maps.TRIALS:
            run = margin_maps.Run("mnist", **margin_maps.head_of(*p), **{"known": 10, "train_size": 500} | changes)
            entry = fake(run, metrics={"val_accuracy": 0.9, "val_size": 5000, "test_accuracy": 0.9})
            records.append(project / "results" / f"{name}.jsonl", entry)

    (project / "results").mkdir()
    record("margins")
    asked = [row.Index for row in claims.claims().itertuples() if row.kind != "noise"]
    before = recommend.observations(), claims.ledger({}, asked)
    record("my", train_size=200)
    pd.testing.assert_frame_equal(before[0], recommend.observations())
    pd.testing.assert_frame_equal(before[1], claims.ledger({}, asked))
    record("tuning_mnist", train_size=200)  # one of the project's own files
    assert len(recommend.observations()) == 2 * len(before[0])


def test_any_recorded_study_can_be_repeated(project):
    configs = [tiny(seed=seed) for seed in (2, 1)]
    runs.listed("a_trial", configs).train()
    assert [one.planned() for one in named("a_trial")] == [configs]
    with pytest.raises(ValueError, match=r"^unknown study 'ablation_mnist': `python -m studies --list` names them"):
        named("ablation_mnist")


# ---------------------------------------------------------------- embeddings


def kept(configs):
    """A study that keeps the embeddings of its first seed, as the main ones do."""
    return dataclasses.replace(runs.MAIN["mnist"], name="s", plan=lambda full: configs)


def test_first_seed_of_a_main_study_keeps_its_embeddings(project, monkeypatch):
    runs.listed("a_trial", [tiny()]).train()
    assert not (project / "results/embeddings").exists()
    configs = [tiny(embedding_dim=3, seed=seed) for seed in range(2)]
    kept(configs).train()
    assert len(list((project / "results/embeddings").iterdir())) == 1
    model, _ = runs.execute(configs[0])
    monkeypatch.setattr(runs, "execute", lambda *args, **options: 1 / 0)
    found, data = runs.embeddings(configs[0]), runs.load_for(configs[0])
    with pytest.raises(ZeroDivisionError):
        runs.embeddings(configs[1])
    np.testing.assert_allclose(found["x"], train.embed(model, data, data.test), rtol=5e-4)  # half precision
    assert found["x"].dtype == np.float32
    assert np.array_equal(found["y"], data.test.labels)
    assert np.array_equal(found["W"], model.head.W.detach())


@pytest.mark.parametrize("length", [1e-9, 1e9])
def test_embeddings_of_any_length_are_kept(length, project, monkeypatch):
    model, record = runs.execute(tiny())
    embed = train.embed
    monkeypatch.setattr(train, "embed", lambda *args: length * embed(*args))
    monkeypatch.setattr(runs, "execute", lambda *args, **options: (model, record))
    data = runs.load_for(tiny())
    np.testing.assert_allclose(runs.embeddings(tiny())["x"], length * embed(model, data, data.test), rtol=1e-3)


def test_missing_embeddings_are_trained(project, monkeypatch):
    first = runs.embeddings(tiny(seed=1))
    monkeypatch.setattr(runs, "execute", lambda *args, **options: 1 / 0)
    assert np.array_equal(first["x"], runs.embeddings(tiny(seed=1))["x"])


def test_a_margin_left_on_the_true_class_costs_accuracy(project):
    config = tiny(epochs=3)
    free, leaking = (runs.accuracy_with_margin(config, m) for m in (0.0, 1.0))
    assert leaking < free == pytest.approx(runs.embeddings(config)["record"]["metrics"]["test_accuracy"], abs=0.01)


def test_a_run_counts_even_if_its_embeddings_cannot_be_kept(project):
    def refuse(*run):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError):
        dataclasses.replace(kept([tiny()]), keep=refuse).train()
    assert list(records.read(project / "results" / "s.jsonl", runs.Config)) == [tiny()]


def test_data_of_a_run_are_cut_in_the_smoke_profile(smoke):
    part = runs.load("digits")
    assert len(part.val) <= 250 and len(part.test) == 250
    assert isinstance(part, datasets.Data)
