import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lib import heads, train
from studies import margin_maps, records

POINTS = [(0.0, 0.0, 16.0), (0.3, 0.0, 16.0), (0.0, 0.2, 4.0), (0.2, 0.1, 64.0)]


def tiny(p=(0.3, 0.0, 16.0), **changes):
    """A run of a fraction of a second on digits."""
    return margin_maps.Run(
        "digits", **margin_maps.head_of(*p), **{"epochs": 1, "batch_size": 32, "train_size": 96} | changes
    )


def fake(run, accuracy, **more):
    """A record as a training would leave it."""
    measured = {"val_accuracy": accuracy, "val_size": 5000, "auc": 1 - accuracy, "recall_at_1": accuracy} | more
    return records.record(run, measured, {"val_accuracy": [accuracy]}, torch.device("cpu"), 1.0)


def images(split):
    return {tuple(image) for image in split.images.flatten(1).tolist()}


# ---------------------------------------------------------------- points and plans


@pytest.mark.parametrize("p", POINTS)
def test_a_point_is_the_loss_it_names(p):
    m2, m3, s = p
    fields = margin_maps.head_of(*p)
    assert margin_maps.point(fields["head"], fields["constants"]) == p
    head = heads.make(fields["head"], 4, 3, **fields["constants"]).double()
    x, y = torch.tensor([[1.0, 0.2, 0.0]], dtype=torch.float64), torch.tensor([0])
    head.W.data = torch.eye(4, 3, dtype=torch.float64)
    theta = torch.acos(F.normalize(x)[0, 0])
    assert head(x, y)[0, 0].item() == pytest.approx(s * (torch.cos(theta + m2) - m3).item())


def test_points_of_other_losses():
    assert margin_maps.point("CosFace") == (0.0, 0.2, 16.0)  # the library's default
    assert margin_maps.point("AdaLoss") is None and margin_maps.point("CombinedMargin", (("m1", 1.2),)) is None


@pytest.mark.parametrize("study", margin_maps.STUDIES, ids=lambda study: study.name)
def test_a_part_of_a_plan_is_a_smaller_study(study):
    planned, stages = study.planned(), []
    for run in planned:
        early = margin_maps.point(run.head, run.constants) in margin_maps.REFERENCES and run.margin_warmup == 1
        stages.append(0 if run.known == 7 and early else 1 + run.seed)
    assert stages == sorted(stages)
    if run.known == 7:  # a map, of three seeds
        assert stages.count(0) == 3 * len(margin_maps.REFERENCES)
        assert len({(run.head, run.constants, run.margin_warmup) for run in planned}) == len(margin_maps.grid())


def test_every_trial_of_a_small_set_is_a_point_of_the_maps():
    assert set(margin_maps.TRIALS) <= {p for p, _ in margin_maps.grid()}
    assert set(margin_maps.DEFAULTS) == {
        margin_maps.point(name) for name in ("NormFace", "ArcFace", "CosFace", "CombinedMargin")
    }


# ---------------------------------------------------------------- one run


def test_known_classes_and_their_images(project, digits):
    data, unseen = margin_maps.select(tiny(known=7, split=3))
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
    first, second = (margin_maps.select(tiny(known=7, split=split))[0].classes for split in (0, 1))
    assert first != second
    data, unseen = margin_maps.select(tiny())
    assert len(data.classes) == 10 and len(unseen) == 0


def test_a_run_measures_both_sets(project):
    record = margin_maps.execute(tiny(known=7, epochs=8))[1]
    assert record["metrics"]["val_accuracy"] > 0.6 and record["metrics"]["val_size"] > 500
    assert record["metrics"]["auc"] > 0.7 and 0.5 < record["metrics"]["recall_at_1"] <= 1
    assert "auc" not in margin_maps.execute(tiny())[1]["metrics"]  # no class is left out


def test_a_diverged_run_is_recorded_as_such(project, monkeypatch):
    def diverge(*args, **kwargs):
        raise FloatingPointError

    monkeypatch.setattr(train, "fit", diverge)
    assert margin_maps.execute(tiny())[1]["metrics"] == {"diverged": True}


def test_open_set_by_hand():
    angle = torch.deg2rad(torch.tensor([0.0, 10.0, 50.0, 75.0]))
    x, y = torch.stack([angle.cos(), angle.sin()], 1) * torch.tensor([[1.0], [5.0], [2.0], [1.0]]), [0, 0, 1, 1]
    # pairs of one class: 10 and 25 degrees apart; of two: 50, 75, 40, 65
    assert margin_maps.open_set(x, torch.tensor(y)) == {"auc": 1.0, "recall_at_1": 1.0}
    # of one class: 50 and 65 degrees apart; of two: 10, 75, 40, 25. 50 < 75 and 65 < 75: two of eight
    assert margin_maps.open_set(x, torch.tensor([0, 1, 0, 1])) == {"auc": 0.25, "recall_at_1": 0.0}


# ---------------------------------------------------------------- maps


def surface_of(accuracy, seeds=2, drop=lambda run: False):
    """Maps of invented records: accuracy(point, seed)."""
    kept = [run for run in margin_maps.map_runs("mnist", seeds=seeds) if not drop(run)]
    found = {run: fake(run, accuracy(margin_maps.point(run.head, run.constants), run.seed)) for run in kept}
    return margin_maps.maps("mnist", found)


def noisy(p, seed):
    """Best at (0.5, 0, 8), by 4 points at its neighbours' cost; a deviation of 0.1 points; easy classes in seed 1."""
    generator = np.random.default_rng([*(int(100 * v) for v in p), seed])
    top = 0.95 if p == (0.5, 0.0, 8.0) else 0.949 if p == (0.8, 0.0, 8.0) else 0.91
    return (0.15 if p[0] >= 1.8 else top) + 0.02 * seed + 0.001 * generator.standard_normal()


def test_the_best_point_and_what_cannot_be_told_from_it(project):
    frame = surface_of(noisy)
    cells = margin_maps.surface(frame, "val_accuracy")
    assert cells["best"].idxmax() in [(0.5, 0.0, 8.0), (0.8, 0.0, 8.0)]
    assert set(cells.index[cells["near"]]) == {(0.5, 0.0, 8.0), (0.8, 0.0, 8.0)}
    assert cells.loc[cells["stalled"]].index.get_level_values("m2").unique().tolist() == [1.8]
    assert not cells.loc[cells["stalled"], "near"].any()


@pytest.mark.parametrize("noise", [1e-11, -1e-11])
def test_of_equal_points_the_first_is_the_best_whatever_the_rounding(project, noise):
    equal = [(0.2, 0.35, 16.0), (0.3, 0.2, 16.0)]
    frame = surface_of(lambda p, seed: 0.95 if p in equal else 0.9)
    frame.loc[frame["point"] == "0.3 0.2 16", "val_accuracy"] += noise
    cells = margin_maps.surface(frame, "val_accuracy")
    assert margin_maps.best_point(cells)["best"] == (0.2, 0.35, 16.0)


def test_a_seed_with_few_points_shifts_none(project):
    def drop(run):
        return run.seed == 1 and margin_maps.point(run.head, run.constants) not in margin_maps.REFERENCES

    whole, part = (margin_maps.surface(surface_of(noisy, drop=d), "val_accuracy") for d in (lambda run: False, drop))
    cell = (0.5, 0.0, 8.0)
    assert part.loc[cell, "n"] == 1 and whole.loc[cell, "n"] == 2
    assert part.loc[cell, "value"] == pytest.approx(whole.loc[cell, "value"], abs=0.3)  # not 1 point below


def test_a_point_that_stalls_on_one_seed_says_nothing_about_the_noise(project):
    fickle = (1.2, 0.0, 64.0)

    def accuracy(p, seed):
        return 0.15 if p == fickle and seed else noisy(p, seed)

    whole, part = (margin_maps.surface(surface_of(f), "val_accuracy") for f in (noisy, accuracy))
    assert part.loc[fickle, "stalled"] and not part.loc[fickle, "near"] and not whole.loc[fickle, "stalled"]
    others = ~part["stalled"] & ~part["best"]
    width = [cells.loc[others, "high"] - cells.loc[others, "low"] for cells in (whole, part)]
    assert (width[1] / width[0]).to_numpy() == pytest.approx(1, abs=0.05)
    assert part.loc[fickle, "value"] == pytest.approx(
        (91 + 15 + 2 - 1) / 2, abs=0.5
    )  # beside the default, seed by seed
    values = [cells.loc[others, "value"] for cells in (whole, part)]
    assert values[0].to_numpy() == pytest.approx(values[1].to_numpy(), abs=0.05)


def test_summary_of_a_surface(project):
    cells = margin_maps.surface(surface_of(noisy), "val_accuracy")
    found = margin_maps.best_point(cells)
    assert cells.loc[found["best"], "value"] == cells["value"].max() and found["default"] == (0.3, 0.0, 16.0)
    assert (
        found["near"] == 2 and found["scales"] == (8, 8) and found["trained"] == (~cells["stalled"]).sum() < len(cells)
    )
    assert found["gap"]["low"] < found["gap"]["mean"] < found["gap"]["high"] and -5 < found["gap"]["mean"] < -4
    winner = surface_of(lambda p, seed: noisy(p, seed) + (p == (0.3, 0.0, 16.0)) / 20)
    found = margin_maps.best_point(margin_maps.surface(winner, "val_accuracy"))
    assert found["best"] == found["default"] and found["gap"]["mean"] == 0


def test_a_diverged_run_counts_as_one_that_guesses(project):
    found = {run: fake(run, 0.9) for run in margin_maps.map_runs("mnist", seeds=1)}
    last = list(found)[-1]
    found[last] = records.record(last, {"diverged": True}, {}, torch.device("cpu"), 1.0)
    frame = margin_maps.maps("mnist", found)
    lost = frame[frame["stalled"]]
    assert len(lost) == 1 and lost["val_accuracy"].item() == pytest.approx(1 / 7) and lost["auc"].item() == 0.5


def test_maps_need_their_references(project):
    few = margin_maps.map_runs("mnist", seeds=1)[: len(margin_maps.REFERENCES) - 1]
    with pytest.raises(ValueError, match=r"lacks the maps of mnist: `python -m studies margins_mnist` trains them"):
        margin_maps.maps("mnist", {run: fake(run, 0.9) for run in few})


def test_maps_take_the_recipe_where_it_has_more(project):
    short, full = (margin_maps.map_runs("mnist", full, seeds=1) for full in (False, True))
    for part, size in ((full[:10], 7000), (full, 0)):
        frame = margin_maps.maps("mnist", {run: fake(run, 0.9) for run in [*short[:20], *part]})
        assert set(frame["train_size"]) == {size}
