"""A recommendation for a new data set, learned from records."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_margin_maps import fake

from lib import paths
from studies import margin_maps, omniglot, recommend, records

SETS = [("digits", 10, 200), ("digits", 5, 100), ("mnist", 10, 500), ("mnist", 3, 300), ("cifar10", 10, 500)]


@pytest.fixture
def described(monkeypatch):
    """Descriptors without images: those of a set follow from its classes and size."""

    def describe(run):
        return {"log_classes": np.log(run.known), "log_images": np.log(run.train_size / run.known), "probe_error": 0.1}

    monkeypatch.setattr(recommend, "_described", describe)


def append(*found, name="margins"):
    """Add records to results/<name>.jsonl, many at once."""
    path = paths.folder("results") / f"{name}.jsonl"
    earlier = path.read_text() if path.exists() else ""
    paths.write(path, earlier + "".join(json.dumps(record) + "\n" for record in found))


def write(accuracy, sets=SETS):
    """Invented records of every trial on these sets, accuracy(data, point, seed)."""
    found = []
    for (data, known, size), p, seed in [(s, p, seed) for s in sets for p in margin_maps.TRIALS for seed in (0, 1)]:
        run = margin_maps.Run(data, **margin_maps.head_of(*p), known=known, train_size=size, seed=seed)
        found.append(fake(run, accuracy(data, p, seed)))
    append(*found)


def peaked(data, p, seed):
    """Best at (0.8, 0, 16) everywhere; the level depends on the data."""
    level = {"digits": 2.0, "mnist": 2.5, "cifar10": -0.5}[data]
    return 1 / (1 + np.exp(-(level + (0.8 if p == (0.8, 0.0, 16.0) else 0.0))))


def test_gains_are_relative_to_the_defaults_of_a_set(project, described):
    write(peaked)
    observed = recommend.observations()
    assert observed["set"].nunique() == len(SETS) and len(observed) == len(SETS) * len(margin_maps.TRIALS)
    assert (observed["n"] == 2).all()
    defaults = observed[[tuple(p) in margin_maps.DEFAULTS for p in observed[recommend.POINT].to_numpy()]]
    assert defaults["gain"].to_numpy() == pytest.approx(0, abs=1e-3)
    best = observed[(observed["m2"] == 0.8)]
    assert best["gain"].to_numpy() == pytest.approx(0.8, abs=1e-2)  # at 95 % as at 38 %


def test_sets_without_the_defaults_and_other_losses_are_left_out(project, described):
    write(peaked, SETS[:2])
    append(*(fake(margin_maps.Run("mnist", head, known=10, train_size=400), 0.9) for head in ("AdaLoss", "ArcFace")))
    assert set(recommend.observations()["family"]) == {"digits"}


def test_the_same_images_trained_in_another_way_are_a_set_of_their_own(project, described):
    write(peaked, SETS[:1])
    for p in margin_maps.TRIALS:
        run = margin_maps.Run("digits", **margin_maps.head_of(*p), known=10, train_size=200, epochs=9)
        append(fake(run, 0.5))
    assert recommend.observations()["set"].nunique() == 2


def test_it_finds_a_point_that_is_best_everywhere(project, described):
    write(peaked)
    observed = recommend.observations()
    for column in ("set", "family"):
        check = recommend.leave_out(observed, column)
        assert len(check) == len(SETS)
        assert set(check["chosen"]) == {(0.8, 0.0, 16.0)}
        assert (check["best"] - check["recommended"]).to_numpy() == pytest.approx(0)
        assert (check["gain"] > 0.5).all() and (check["better"] > 0.9).all()


def test_it_does_not_look_at_what_is_left_out(project, described):
    write(peaked)
    observed = recommend.observations()
    inverted = observed["gain"].where(observed["family"] != "CIFAR-10", -observed["gain"])
    before, after = (recommend.leave_out(o, "family") for o in (observed, observed.assign(gain=inverted)))
    cifar10 = before["family"] == "CIFAR-10"
    assert before.loc[cifar10, "chosen"].tolist() == after.loc[cifar10, "chosen"].tolist()
    assert before.loc[cifar10, "gain"].tolist() == pytest.approx(after.loc[cifar10, "gain"].tolist())
    assert after.loc[cifar10, "log_odds"].item() == pytest.approx(-before.loc[cifar10, "log_odds"].item())


def test_it_promises_nothing_where_nothing_differs(project, described):
    noise = np.random.default_rng(0)
    write(lambda *_: 0.9 + 0.002 * noise.standard_normal())
    check = recommend.leave_out(recommend.observations(), "family")
    assert (check["gain"].abs() < 0.1).all() and (check["better"] < 0.95).all()


def test_a_recommendation_for_new_data(project, described, digits):
    write(peaked)
    table = recommend.recommend(digits, recommend.observations())
    assert table.index[0] == "ArcFace" and table.loc["ArcFace", "constants"] == "s = 16, m = 0.8"
    assert sorted(table.index) == ["ArcFace", "CombinedMargin", "CosFace", "NormFace"]
    assert (table["gain"].diff().dropna() <= 0).all() and table["better"].between(0, 1).all()


def test_where_it_knows_nothing_it_keeps_the_default(project, described, digits, monkeypatch):
    write(peaked)
    observed = recommend.observations()
    far = {"log_classes": 99.0, "log_images": 99.0, "probe_error": 99.0}
    monkeypatch.setattr(recommend, "describe", lambda data: far)
    fitted = recommend.learn(observed)
    fitted[1].kernel_.k1.k2.length_scale = np.ones(6)  # no descriptor is thought not to matter
    monkeypatch.setattr(recommend, "learn", lambda observed: fitted)
    table = recommend.recommend(digits, observed)
    assert table.index[0] == "ArcFace" and table.loc["ArcFace", "constants"] == "s = 16, m = 0.3"
    assert table["gain"].to_numpy() == pytest.approx(0, abs=1e-6)


def test_descriptors_of_digits(digits):
    found = recommend.describe(digits)
    assert found["log_classes"] == pytest.approx(np.log(10))
    assert found["log_images"] == pytest.approx(np.log(len(digits.train) / 10))
    assert 0 < found["probe_error"] < 0.15
    shuffled = dataclasses.replace(digits, train=dataclasses.replace(digits.train, labels=digits.train.labels.roll(1)))
    assert recommend.describe(shuffled)["probe_error"] > 0.7


def test_it_needs_two_sets(project, described):
    write(peaked, SETS[:1])
    with pytest.raises(ValueError, match="too few records to learn from"):
        recommend.learn(recommend.observations())


def test_a_seed_with_few_points_shifts_no_gain(project, described):
    """Seed 1 has easier classes, and of it only the defaults are recorded."""
    for p in margin_maps.TRIALS:
        for seed in (0, 1) if p in margin_maps.DEFAULTS else (0,):
            run = margin_maps.Run("mnist", **margin_maps.head_of(*p), known=7, train_size=700, seed=seed, split=seed)
            accuracy = 0.8 + 0.15 * seed if p != (0.8, 0.0, 16.0) else 0.9
            append(fake(run, accuracy))
    observed = recommend.observations().set_index(recommend.POINT)
    assert observed["set"].nunique() == 1 and observed["n"].max() == 2
    odds = [np.log(a / (1 - a)) for a in (0.8, 0.9)]
    assert observed.loc[(0.8, 0.0, 16.0), "gain"] == pytest.approx(odds[1] - odds[0], abs=1e-2)
    assert observed.drop((0.8, 0.0, 16.0))["gain"].to_numpy() == pytest.approx(0, abs=1e-9)
    assert observed["accuracy"].drop((0.8, 0.0, 16.0)).to_numpy() == pytest.approx(0.875)
    assert observed.loc[(0.8, 0.0, 16.0), "accuracy"] == pytest.approx(0.975)


def test_it_learns_from_characters_too(project, monkeypatch):
    descriptors = dict.fromkeys(recommend.DESCRIPTORS, 1.0)
    monkeypatch.setattr(recommend, "_described", lambda setting: descriptors)
    monkeypatch.setattr(recommend, "_characters", lambda setting: (setting.classes or 728, 2912))
    planned = [*omniglot.margin_map(), *omniglot.references()]
    better = [run for run in planned if dict(run.constants) == {"m": 0.5, "s": 8.0} and run.head == "ArcFace"]
    measured = {run: {"val_accuracy": 0.95 if run in better else 0.9} for run in planned}
    found = [records.record(run, measured[run], {}, torch.device("cpu"), 1.0) for run in planned]
    append(*found[: len(omniglot.margin_map())], name="omniglot_map")
    assert recommend.observations().empty  # two of the losses that it compares with are missing
    append(*found[len(omniglot.margin_map()) :], name="omniglot_map")
    observed = recommend.observations()
    assert set(observed["set"]) == {"Omniglot, 728 classes, all images"}
    # 25 points of the map, AdaLoss is none, and two references
    assert len(observed) == 27 and set(observed["n"]) == {omniglot.MAP_SEEDS}
    assert observed.set_index(recommend.POINT)["gain"].idxmax() == (0.5, 0.0, 8.0)


def test_it_learns_from_the_files_of_the_project_alone(project, described):
    write(peaked, SETS[:2])
    before = recommend.observations()
    points = [margin_maps.head_of(*p) for p in margin_maps.TRIALS]
    entries = [fake(margin_maps.Run("mnist", **fields, known=9, train_size=300), 0.9) for fields in points]
    append(*entries, name="my")
    assert recommend.observations().equals(before)
    append(*entries, name=next(iter(recommend.SOURCES)))
    assert recommend.observations()["set"].nunique() == before["set"].nunique() + 1
    results = Path(recommend.__file__).parent.parent / "results"
    assert [name for name in recommend.SOURCES if not (results / f"{name}.jsonl").exists()] == []
