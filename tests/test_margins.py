import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lib import losses, margins, recommend, store, train

POINTS = [(0.0, 0.0, 16.0), (0.3, 0.0, 16.0), (0.0, 0.2, 4.0), (0.2, 0.1, 64.0)]


def tiny(p=(0.3, 0.0, 16.0), **changes):
    """A run of a fraction of a second on digits."""
    return margins.Run("digits", **margins.loss(*p), **{"epochs": 1, "batch_size": 32, "train_size": 96} | changes)


def fake(run, accuracy, **more):
    """A record as a training would leave it."""
    measured = {"val_accuracy": accuracy, "val_size": 5000, "auc": 1 - accuracy, "recall_at_1": accuracy} | more
    return store.record(run, measured, {"val_accuracy": [accuracy]}, torch.device("cpu"), 1.0)


def images(split):
    return {tuple(image) for image in split.images.flatten(1).tolist()}


# ---------------------------------------------------------------- points and plans


@pytest.mark.parametrize("p", POINTS)
def test_a_point_is_the_loss_it_names(p):
    m2, m3, s = p
    fields = margins.loss(*p)
    assert margins.point(fields["head"], fields["constants"]) == p
    head = losses.make(fields["head"], 4, 3, **fields["constants"]).double()
    x, y = torch.tensor([[1.0, 0.2, 0.0]], dtype=torch.float64), torch.tensor([0])
    head.W.data = torch.eye(4, 3, dtype=torch.float64)
    theta = torch.acos(F.normalize(x)[0, 0])
    assert head(x, y)[0, 0].item() == pytest.approx(s * (torch.cos(theta + m2) - m3).item())


def test_points_of_other_losses():
    assert margins.point("CosFace") == (0.0, 0.2, 16.0)  # the library's default
    assert margins.point("AdaLoss") is None and margins.point("CombinedMargin", (("m1", 1.2),)) is None


def test_the_plan_is_a_smaller_study_at_every_stop(project):
    runs = margins.plan()
    assert len(runs) == len(set(runs))
    rank = {"mnist": 3, "cifar10": 3}
    stages = []
    for run in runs:
        late = margins.point(run.head, run.constants) not in margins.REFERENCES or run.margin_warmup != 1
        stages.append(0 if run.known == 7 and not late else 1 + run.seed)
    assert stages == sorted(stages) and stages.count(0) == sum(rank.values()) * len(margins.REFERENCES)
    cells = {(run.head, run.constants, run.margin_warmup) for run in runs if run.data == "mnist" and run.known == 7}
    assert len(cells) == len(margins.grid())


def test_every_trial_of_a_small_set_is_a_point_of_the_maps():
    assert set(margins.TRIALS) <= {p for p, _ in margins.grid()}
    assert set(margins.DEFAULTS) == {
        margins.point(name) for name in ("NormFace", "ArcFace", "CosFace", "CombinedMargin")
    }


def test_unknown_plan():
    with pytest.raises(ValueError, match="unknown plan 'minst': choose from mnist"):
        margins.plan(["minst"])


# ---------------------------------------------------------------- one run


def test_known_classes_and_their_images(project, digits):
    data, unseen = margins.select(tiny(known=7, split=3))
    assert len(data.classes) == 7 and len(data.train) == 96 and len(data.test) == 0
    for split in (data.train, data.val):
        assert split.labels.unique().tolist() == list(range(7))
    left_out = {str(c) for c in unseen.labels.tolist()}
    assert len(left_out) == 3 and left_out.isdisjoint(data.classes)
    assert images(data.train).isdisjoint(images(data.val) | images(unseen))
    # validation gains the training images that the run leaves out, and no test image
    spare = sum(int(digits.classes[y] in data.classes) for y in digits.train.labels) - 96
    assert len(data.val) == spare + sum(int(digits.classes[y] in data.classes) for y in digits.val.labels)
    assert images(data.val).isdisjoint(images(digits.test))


def test_another_choice_of_classes_and_all_of_them(project):
    first, second = (margins.select(tiny(known=7, split=split))[0].classes for split in (0, 1))
    assert first != second
    data, unseen = margins.select(tiny())
    assert len(data.classes) == 10 and len(unseen) == 0


def test_a_run_measures_both_sets(project):
    record = margins.execute(tiny(known=7, epochs=8))[1]
    assert record["metrics"]["val_accuracy"] > 0.6 and record["metrics"]["val_size"] > 500
    assert record["metrics"]["auc"] > 0.7 and 0.5 < record["metrics"]["recall_at_1"] <= 1
    assert "auc" not in margins.execute(tiny())[1]["metrics"]  # no class is left out


def test_a_diverged_run_is_recorded_as_such(project, monkeypatch):
    def diverge(*args, **kwargs):
        raise FloatingPointError

    monkeypatch.setattr(train, "fit", diverge)
    assert margins.execute(tiny())[1]["metrics"] == {"diverged": True}


def test_open_set_by_hand():
    angle = torch.deg2rad(torch.tensor([0.0, 10.0, 50.0, 75.0]))
    x, y = torch.stack([angle.cos(), angle.sin()], 1) * torch.tensor([[1.0], [5.0], [2.0], [1.0]]), [0, 0, 1, 1]
    # pairs of one class: 10 and 25 degrees apart; of two: 50, 75, 40, 65
    assert margins.open_set(x, torch.tensor(y)) == {"auc": 1.0, "recall_at_1": 1.0}
    # of one class: 50 and 65 degrees apart; of two: 10, 75, 40, 25. 50 < 75 and 65 < 75: two of eight
    assert margins.open_set(x, torch.tensor([0, 1, 0, 1])) == {"auc": 0.25, "recall_at_1": 0.0}


# ---------------------------------------------------------------- maps


def surface_of(accuracy, seeds=2, drop=lambda run: False):
    """Maps of invented records: accuracy(point, seed)."""
    records = {}
    for run in margins.plan(["mnist"], seeds=seeds):
        if not drop(run):
            records[run] = fake(run, accuracy(margins.point(run.head, run.constants), run.seed))
    return margins.maps("mnist", records)


def noisy(p, seed):
    """Best at (0.5, 0, 8), by 4 points at its neighbours' cost; a deviation of 0.1 points; easy classes in seed 1."""
    generator = np.random.default_rng([*(int(100 * v) for v in p), seed])
    top = 0.95 if p == (0.5, 0.0, 8.0) else 0.949 if p == (0.8, 0.0, 8.0) else 0.91
    return (0.15 if p[0] >= 1.8 else top) + 0.02 * seed + 0.001 * generator.standard_normal()


def test_the_best_point_and_what_cannot_be_told_from_it(project):
    frame = surface_of(noisy)
    cells = margins.surface(frame, "val_accuracy")
    assert cells["best"].idxmax() in [(0.5, 0.0, 8.0), (0.8, 0.0, 8.0)]
    assert set(cells.index[cells["near"]]) == {(0.5, 0.0, 8.0), (0.8, 0.0, 8.0)}
    assert cells.loc[cells["stalled"]].index.get_level_values("m2").unique().tolist() == [1.8]
    assert not cells.loc[cells["stalled"], "near"].any()


def test_a_seed_with_few_points_shifts_none(project):
    def drop(run):
        return run.seed == 1 and margins.point(run.head, run.constants) not in margins.REFERENCES

    whole, part = (margins.surface(surface_of(noisy, drop=d), "val_accuracy") for d in (lambda run: False, drop))
    cell = (0.5, 0.0, 8.0)
    assert part.loc[cell, "n"] == 1 and whole.loc[cell, "n"] == 2
    assert part.loc[cell, "value"] == pytest.approx(whole.loc[cell, "value"], abs=0.3)  # not 1 point below


def test_a_point_that_stalls_on_one_seed_says_nothing_about_the_noise(project):
    fickle = (1.2, 0.0, 64.0)

    def accuracy(p, seed):
        return 0.15 if p == fickle and seed else noisy(p, seed)

    whole, part = (margins.surface(surface_of(f), "val_accuracy") for f in (noisy, accuracy))
    assert part.loc[fickle, "stalled"] and not part.loc[fickle, "near"] and not whole.loc[fickle, "stalled"]
    others = ~part["stalled"] & ~part["best"]
    width = [cells.loc[others, "high"] - cells.loc[others, "low"] for cells in (whole, part)]
    assert (width[1] / width[0]).to_numpy() == pytest.approx(1, abs=0.05)
    assert part.loc[fickle, "value"] == pytest.approx(
        (91 + 15 + 2 - 1) / 2, abs=0.5
    )  # beside the default, seed by seed
    values = [cells.loc[others, "value"] for cells in (whole, part)]
    assert values[0].to_numpy() == pytest.approx(values[1].to_numpy(), abs=0.05)


def test_a_surface_in_sentences(project):
    cells = margins.surface(surface_of(noisy), "val_accuracy")
    text = margins.reading(cells)
    best = margins.label(*cells["best"].idxmax())
    assert f"The best of {len(cells)} points is {best} with 9" in text and "2 cannot be told from it" in text
    assert "their scales go from 8 to 8" in text
    assert "The default, ArcFace (s = 16, m = 0.3), minus the best: -4." in text and "] points." in text
    winner = surface_of(lambda p, seed: noisy(p, seed) + (p == recommend.DEFAULT) / 20)
    assert margins.reading(margins.surface(winner, "val_accuracy")).endswith("The best is the default.")


def test_a_diverged_run_counts_as_one_that_guesses(project):
    records = {run: fake(run, 0.9) for run in margins.plan(["mnist"], seeds=1)}
    last = list(records)[-1]
    records[last] = store.record(last, {"diverged": True}, {}, torch.device("cpu"), 1.0)
    frame = margins.maps("mnist", records)
    lost = frame[frame["stalled"]]
    assert len(lost) == 1 and lost["val_accuracy"].item() == pytest.approx(1 / 7) and lost["auc"].item() == 0.5


def test_maps_need_their_references(project):
    runs = margins.plan(["mnist"], seeds=1)
    with pytest.raises(ValueError, match=r"lacks the maps of mnist: `python -m lib.margins mnist` trains them"):
        margins.maps("mnist", {run: fake(run, 0.9) for run in runs[: len(margins.REFERENCES) - 1]})
    with pytest.raises(ValueError, match=r"margins.jsonl holds no runs"):
        margins.recorded()


# ---------------------------------------------------------------- the recommender

SETS = [("digits", 10, 200), ("digits", 5, 100), ("mnist", 10, 500), ("mnist", 3, 300), ("cifar10", 10, 500)]


@pytest.fixture
def described(monkeypatch):
    """Descriptors without images: those of a set follow from its classes and size."""

    def describe(run):
        return {"log_classes": np.log(run.known), "log_images": np.log(run.train_size / run.known), "probe_error": 0.1}

    monkeypatch.setattr(recommend, "_described", describe)


def write(accuracy, sets=SETS):
    """Invented records of every trial on these sets, accuracy(data, point, seed)."""
    for (data, known, size), p, seed in [(s, p, seed) for s in sets for p in margins.TRIALS for seed in (0, 1)]:
        run = margins.Run(data, **margins.loss(*p), known=known, train_size=size, seed=seed)
        store.append(store.folder("results") / "margins.jsonl", fake(run, accuracy(data, p, seed)))


def peaked(data, p, seed):
    """Best at (0.8, 0, 16) everywhere; the level depends on the data."""
    level = {"digits": 2.0, "mnist": 2.5, "cifar10": -0.5}[data]
    return 1 / (1 + np.exp(-(level + (0.8 if p == (0.8, 0.0, 16.0) else 0.0))))


def test_gains_are_relative_to_the_defaults_of_a_set(project, described):
    write(peaked)
    observed = recommend.observations()
    assert observed["set"].nunique() == len(SETS) and len(observed) == len(SETS) * len(margins.TRIALS)
    assert (observed["n"] == 2).all()
    defaults = observed[[tuple(p) in margins.DEFAULTS for p in observed[recommend.POINT].to_numpy()]]
    assert defaults["gain"].to_numpy() == pytest.approx(0, abs=1e-3)
    best = observed[(observed["m2"] == 0.8)]
    assert best["gain"].to_numpy() == pytest.approx(0.8, abs=1e-2)  # at 95 % as at 38 %


def test_sets_without_the_defaults_and_other_losses_are_left_out(project, described):
    write(peaked, SETS[:2])
    path = store.folder("results") / "other.jsonl"
    for head in ("AdaLoss", "ArcFace"):
        run = margins.Run("mnist", head, known=10, train_size=400)
        store.append(path, fake(run, 0.9))
    (store.folder("results") / "benchmarks.jsonl").write_text('{"benchmark": "heads", "rows": []}\n')
    assert set(recommend.observations()["family"]) == {"digits"}


def test_the_same_images_trained_in_another_way_are_a_set_of_their_own(project, described):
    write(peaked, SETS[:1])
    for p in margins.TRIALS:
        run = margins.Run("digits", **margins.loss(*p), known=10, train_size=200, epochs=9)
        store.append(store.folder("results") / "margins.jsonl", fake(run, 0.5))
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
    fitted = recommend.fit(observed)
    fitted[1].kernel_.k1.k2.length_scale = np.ones(6)  # no descriptor is thought not to matter
    monkeypatch.setattr(recommend, "fit", lambda observed: fitted)
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
        recommend.fit(recommend.observations())


def test_a_seed_with_few_points_shifts_no_gain(project, described):
    """Seed 1 has easier classes, and of it only the defaults are recorded."""
    for p in margins.TRIALS:
        for seed in (0, 1) if p in margins.DEFAULTS else (0,):
            run = margins.Run("mnist", **margins.loss(*p), known=7, train_size=700, seed=seed, split=seed)
            accuracy = 0.8 + 0.15 * seed if p != (0.8, 0.0, 16.0) else 0.9
            store.append(store.folder("results") / "margins.jsonl", fake(run, accuracy))
    observed = recommend.observations().set_index(recommend.POINT)
    assert observed["set"].nunique() == 1 and observed["n"].max() == 2
    odds = [np.log(a / (1 - a)) for a in (0.8, 0.9)]
    assert observed.loc[(0.8, 0.0, 16.0), "gain"] == pytest.approx(odds[1] - odds[0], abs=1e-2)
    assert observed.drop((0.8, 0.0, 16.0))["gain"].to_numpy() == pytest.approx(0, abs=1e-9)
    assert observed["accuracy"].drop((0.8, 0.0, 16.0)).to_numpy() == pytest.approx(0.875)
    assert observed.loc[(0.8, 0.0, 16.0), "accuracy"] == pytest.approx(0.975)
