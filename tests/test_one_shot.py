"""The recipe for the official one-shot runs, on a stand-in of random strokes."""

import dataclasses

import pytest
import torch
from omniglot_stand_in import BACKGROUND, make
from test_runs import fake

from lib import data
from lib.sets import omniglot as files
from studies import omniglot, one_shot, runs

TINY = {"network": "TinyAirNet", "embedding_dim": 8, "epochs": 1, "batch_size": 16}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("stand_in")
    return root, make(root)


@pytest.fixture
def small(made, project, monkeypatch):
    """A project with the stand-in as its data."""
    for folder, known in made[1].items():
        monkeypatch.setitem(files.FOLDERS, folder, known)
    (project / "data").symlink_to(made[0], target_is_directory=True)
    monkeypatch.setattr(omniglot, "TASKS", 5)
    caches = runs.load, omniglot.official
    for cached in caches:
        cached.cache_clear()
    yield project
    for cached in caches:
        cached.cache_clear()


def affine(images, **changes):
    split = data.Split(images, torch.zeros(len(images), dtype=torch.int64))
    return one_shot.Affine("x", split, split, split, ["a"], (0.0,), (1.0,), **changes)


def test_no_strength_changes_no_image():
    images = torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8)
    drawn = affine(images, affine=0.0).draw(5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(affine(images).augment(images, drawn), images.float(), atol=1e-3, rtol=0)


ORDER_AND_NUMBERS = [  # image, then 1000 times turn, two stretches, shear, two moves
    [4, 201, -33, 134, 9, -6, -91], [34, 2, -41, 68, -45, -17, -116], [61, 120, -129, -4, -25, 108, -42],
    [45, -37, -40, -160, 70, -26, 37], [52, 73, -71, 38, 169, 24, -82], [63, 178, 74, 108, -27, -12, 27],
]  # fmt: skip


def test_order_and_numbers_are_those_of_the_recorded_runs(monkeypatch):
    """Of the first image of the first, second and last batch of two epochs: which it is, and how it is changed."""
    images, found = torch.arange(70, dtype=torch.uint8).view(70, 1, 1, 1).expand(70, 1, 4, 4), []
    monkeypatch.setattr(one_shot.Affine, "augment", lambda data, images, drawn: found.append(drawn[:, 0]) or images)
    generator, numbers = torch.Generator().manual_seed(0), []
    for number in range(2):
        batches = list(dataclasses.replace(affine(images), images=60).epoch(16, generator, number))
        numbers += [[int(batches[i][0][0, 0, 0, 0] * 255 + 0.5), *(1000 * found[i]).int().tolist()] for i in (0, 1, -1)]
        found.clear()
    assert numbers == ORDER_AND_NUMBERS


@pytest.mark.parametrize(("number", "moves"), [(0, "turned"), (1, "narrower"), (2, "lower"), (4, "left"), (5, "up")])
def test_each_number_does_what_it_is_called(number, moves):
    image = torch.zeros(1, 1, 28, 28)
    image[..., 9:19, 12:16] = 255  # an upright bar in the middle
    drawn = torch.zeros(6, 1)
    drawn[number] = 0.3
    found = affine(image.byte()).augment(image, drawn)[0, 0]
    down, across = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    weight = found / found.sum()
    middle = (weight * down).sum() - 13.5, (weight * across).sum() - 13.5
    spread = [(weight * (axis - 13.5) ** 2).sum().sqrt().item() for axis in (down, across)]
    was = [2.87, 1.12]  # of the bar
    if moves in ("left", "up"):
        assert middle[("up", "left").index(moves)].item() == pytest.approx(-0.3 * 14, abs=0.1)
    else:
        assert all(abs(m) < 0.1 for m in middle)
    if moves == "turned":
        assert spread[1] > 1.2 * was[1] and abs((weight * (down - 13.5) * (across - 13.5)).sum()) > 1
    if moves == "narrower":
        assert spread[1] < 0.85 * was[1] and spread[0] == pytest.approx(was[0], rel=0.05)
    if moves == "lower":
        assert spread[0] < 0.85 * was[0] and spread[1] == pytest.approx(was[1], rel=0.05)


def test_quarter_turns_are_characters_and_an_epoch_stays_as_long(small):
    plain, _ = one_shot.prepare(one_shot.arm(one_shot.ARMS["affine maps"], 0, **TINY))
    turned, _ = one_shot.prepare(one_shot.arm(one_shot.ARMS["quarter turns"], 0, **TINY))
    C = sum(BACKGROUND.values())
    assert len(plain.classes) == C and len(turned.classes) == len(set(turned.classes)) == 4 * C
    assert len(turned.train) == 4 * len(plain.train) and turned.train.labels.unique().tolist() == list(range(4 * C))
    n = len(plain.train)
    for k in range(4):
        assert torch.equal(turned.train.images[k * n : (k + 1) * n].rot90(-k, (2, 3)), plain.train.images)
        assert torch.equal(turned.train.labels[k * n : (k + 1) * n], plain.train.labels + k * C)
    orders = [turned.order(torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    assert len(orders[0]) == n and len(set(orders[0].tolist())) == n and orders[0].tolist() != orders[1].tolist()


def test_a_trial_reads_no_evaluation_alphabet(small, monkeypatch):
    monkeypatch.setattr(omniglot, "official", lambda: pytest.fail("a trial reads the official runs"))
    monkeypatch.setattr(omniglot, "final_metrics", lambda *_: pytest.fail("a trial reads the evaluation alphabets"))
    run = one_shot.arm(one_shot.ARMS["quarter turns"], 1000, trial=True, **TINY)
    model, record = one_shot.execute(run)
    assert set(record["metrics"]) == {
        "val_accuracy", "parameters", "recall_at_1", "map_at_r", one_shot.MEASURE, "core_minutes",
    }  # fmt: skip
    known = {name.split("/")[0] for name in one_shot.prepare(run)[0].classes}
    assert known < set(BACKGROUND) and len(model.head.W) == len(one_shot.prepare(run)[0].classes)


def test_a_final_run_reads_the_official_runs(small):
    _, record = one_shot.execute(one_shot.arm(one_shot.ARMS["affine maps"], 0, **TINY))
    assert 0 <= record["metrics"]["one_shot_error"] <= 1 and one_shot.MEASURE not in record["metrics"]


# of each round: an arm with one good run, one with one very good run, and the best on average
ROUNDS = {
    "first": (one_shot.TRIALS, one_shot.ARMS, "a larger network", "quarter turns", "twice as long"),
    "second": (one_shot.SECOND_TRIALS, one_shot.SECOND, "new statistics", "a larger margin", "twice as long"),
}


@pytest.mark.parametrize("which", ROUNDS)
def test_the_best_arm_on_average_is_run_ten_times_with_its_margin(project, monkeypatch, which):
    study, arms, *names = ROUNDS[which]
    right = dict(zip(names, ((0.8, 0.9), (0.99, 0.7), (0.86, 0.86)), strict=True))
    found = {}
    for run, name in study.arms().items():
        value = right.get(name, (0.5, 0.5))[one_shot.TRIAL_SEEDS.index(run.seed)]
        found[run] = fake(run, metrics={one_shot.MEASURE: value})
    monkeypatch.setattr(type(study), "read", lambda self, full=False: found)
    assert one_shot.best_arm(study) == names[2]
    final = one_shot.final(study, arms)
    counts = {head: sum(name == head for name in final.values()) for head in set(final.values())}
    assert counts == {"ArcFace": 10, "NormFace": 3, "Softmax": 3, "AdaLoss": 3}
    assert {run.epochs for run in final} == {40} and not any(run.trial for run in final)
    assert {run.renewed for run in final} == {which == "second"}
    assert not {run.seed for run in final} & set(one_shot.TRIAL_SEEDS)
    assert all(dataclasses.replace(run, seed=0) in final for run in final)


def test_no_arm_is_named_twice():
    arms = [one_shot.arm(changes, 0) for table in (one_shot.ARMS, one_shot.SECOND) for changes in table.values()]
    assert len(set(arms)) == len(arms) == 18


def test_new_statistics_are_those_of_all_training_images_and_no_weight_moves(small):
    run = one_shot.arm(one_shot.SECOND["new statistics"], 1000, trial=True, **TINY)
    data, _ = one_shot.prepare(run)
    model, _ = runs.fit(dataclasses.replace(run, epochs=1), data, progress=False)
    weights = [p.clone() for p in model.parameters()]
    seen = []
    norm = next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float()))
    momentum, old = norm.momentum, norm.running_mean.clone()
    one_shot.renew(model.network, data)
    batches = torch.stack([x.mean((0, 2, 3)) for x in seen])
    torch.testing.assert_close(norm.running_mean, batches.mean(0), atol=1e-3, rtol=1e-3)
    assert not torch.equal(norm.running_mean, old) and sum(map(len, seen)) == len(data.train)
    assert norm.momentum == momentum and all(map(torch.equal, model.parameters(), weights))
