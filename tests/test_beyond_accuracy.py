import dataclasses
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from test_tuning import record_trials, write
from torch.nn import functional as F

from lib import heads, models
from studies import beyond_accuracy as beyond
from studies import runs, tuning


def run(question="distortions", level=0, head="ArcFace", seed=0, **changes):
    """A run of a fraction of a second on digits."""
    config = runs.recipe("digits", head, seed, epochs=1, train_size=256)
    options = {"question": question, "level": level, "test_size": 50}
    return beyond.Run(**dataclasses.asdict(config) | options | changes)


def rows(split):
    """The images of a split as a set, to compare what is in two of them."""
    return {tuple(image) for image in split.images.flatten(1).tolist()}


# ---------------------------------------------------------------- the changed data


def test_two_seeds_see_every_class_once():
    for seed in (0, 2, 8):
        first, second = beyond.class_order(10, seed)[:5], beyond.class_order(10, seed + 1)[:5]
        assert sorted([*first.tolist(), *second.tolist()]) == list(range(10))
    assert not torch.equal(beyond.class_order(10, 0), beyond.class_order(10, 2))


def test_an_open_set_shares_no_class_with_training(project, digits):
    data, unseen = beyond.prepare(run("open set", 5))
    assert len(data.classes) == 5 and rows(data.train).isdisjoint(rows(unseen))
    for split in (data.train, data.val, data.test, unseen):
        assert split.labels.unique().tolist() == list(range(5))
    assert len(data.test) + len(unseen) == len(digits.test)
    for c, name in enumerate(data.classes):  # renumbered, and still the same images
        assert rows(data.test[data.test.labels == c]) == rows(digits.test[digits.test.labels == int(name)])


def test_other_questions_leave_no_class_out(project, digits):
    data, unseen = beyond.prepare(run())
    assert len(unseen) == 0 and torch.equal(data.test.labels, digits.test.labels)
    assert torch.equal(data.train.images, digits.train.images[:256])


@pytest.mark.parametrize("level", [1, 9])
def test_open_set_needs_classes_on_both_sides(project, level):
    with pytest.raises(ValueError, match="needs two seen and two unseen"):
        beyond.prepare(run("open set", level))


def test_long_tail_is_exponential():
    labels = torch.arange(10).repeat_interleave(1000)
    ranks = torch.arange(10).flip(0)
    n = beyond.long_tail(labels, ranks, 100, 10_000)
    assert n[9] == 1000 and n[0] == 10  # rank 0 is the largest
    ratios = n.double()[1:] / n.double()[:-1]
    assert ratios.numpy() == pytest.approx(np.full(9, 100 ** (1 / 9)), rel=0.05)
    same = [beyond.long_tail(labels, ranks, factor, 1000).sum().item() for factor in (10, 50, 100)]
    assert same == pytest.approx([1000] * 3, abs=5)  # the imbalance changes, the number of images does not


def test_long_tail_of_a_run_follows_the_order_of_its_seed(project):
    for seed in (0, 1):
        labels = beyond.prepare(run("long tail", 10, seed=seed, train_size=200))[0].train.labels
        counts = torch.bincount(labels)[beyond.class_order(10, seed)]
        assert counts[0] / counts[-1] == pytest.approx(10, rel=0.3)
        assert torch.equal(counts.sort(descending=True).values, counts)


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_that_share_of_labels_is_wrong(share):
    y = torch.arange(10).repeat(500)
    noisy = beyond.mislabelled(y, 10, share, 0)
    assert (noisy != y).double().mean().item() == pytest.approx(share)
    wrong = noisy != y
    shift = ((noisy - y)[wrong] % 10).bincount(minlength=10)
    assert shift[0] == 0 and shift[1:].min() > 0.6 * wrong.sum() / 9  # all other classes about equally


def test_more_noise_is_the_same_noise_and_more(project, digits):
    clean, *noisy = (beyond.prepare(run("label noise", level))[0] for level in (0, 0.1, 0.4))
    changed = [part.train.labels != clean.train.labels for part in noisy]
    assert (changed[0] & ~changed[1]).sum() == 0 and changed[1].sum() > changed[0].sum() > 0
    assert torch.equal(noisy[0].train.labels[changed[0]], noisy[1].train.labels[changed[0]])
    for split in ("val", "test"):
        assert torch.equal(getattr(noisy[1], split).labels, digits.splits()[split].labels)


def test_few_examples_are_repeated_to_the_same_length(project):
    data = beyond.prepare(run("few examples", 3))[0]
    assert len(data.train) == 256 and len(rows(data.train)) == 30
    each = [len(rows(data.train[data.train.labels == c])) for c in range(10)]
    assert each == [3] * 10
    assert rows(data.train) < rows(beyond.prepare(run("few examples", 10))[0].train)


@pytest.mark.parametrize("question", beyond.QUESTIONS)
def test_a_seed_fixes_the_data_for_every_head(project, question):
    level = {"few examples": 5}.get(question, beyond.QUESTIONS[question][0])
    first, again = (beyond.prepare(run(question, level, head))[0].train for head in ("Softmax", "AdaLoss"))
    assert torch.equal(first.images, again.images) and torch.equal(first.labels, again.labels)
    assert len(first) == 256
    other = beyond.prepare(run(question, level, seed=2))[0].train
    if question != "distortions":
        assert not (torch.equal(first.images, other.images) and torch.equal(first.labels, other.labels))


# ---------------------------------------------------------------- what is read


def test_verification_by_hand():
    """Four genuine pairs, at 11, 31, 35 and 42 degrees, and eleven others, of which two are closer than 43."""
    theta = torch.deg2rad(torch.tensor([0.0, 11.0, 42.0, 60.0, 95.0, 103.0]))
    x, y = torch.stack([theta.cos(), theta.sin()], 1), torch.tensor([0, 0, 0, 1, 1, 2])
    measured = beyond.verification(3 * x, y)
    assert measured["eer"] == pytest.approx(2 / 11)  # between 35 and 42 degrees: first 1/4 is refused, then none
    tar = np.array(measured["tar"])
    assert (tar[beyond.FAR < 1 / 11] == 0).all() and (tar[beyond.FAR > 2 / 11] == 1).all()
    between = tar[(beyond.FAR > 1 / 11) & (beyond.FAR < 2 / 11)]  # 11 degrees lies between 8 and 18
    assert ((between >= 0.25) & (between < 0.26)).all() and measured["tar_1e-2"] == 0


def test_verification_against_a_sweep_of_thresholds():
    torch.manual_seed(0)
    y = torch.arange(2).repeat(400)
    x = F.normalize(torch.randn(800, 64)) + 0.25 * F.normalize(torch.randn(2, 64))[y]
    far, tar = beyond.FAR, beyond.verification(x, y)
    cos = F.normalize(x) @ F.normalize(x).T
    i, j = torch.triu_indices(800, 800, 1)
    same, score = y[i] == y[j], cos[i, j]
    t = score.sort().values[:: len(score) // 2000].contiguous()
    frr, refused = (torch.searchsorted(score[pairs].sort().values, t) / pairs.sum() for pairs in (same, ~same))
    accepted = 1 - refused
    equal = (frr - accepted).abs().argmin()
    assert tar["eer"] == pytest.approx(frr[equal].item(), abs=2e-3)
    at = accepted <= 1e-2
    assert tar["tar_1e-2"] == pytest.approx((1 - frr[at]).max().item(), abs=2e-3)
    assert np.interp(1e-3, far, tar["tar"]) == pytest.approx(tar["tar_1e-3"], abs=1e-3)


def test_perfect_and_useless_embeddings():
    y = torch.arange(5).repeat(40)
    perfect = torch.eye(5)[y] + 1e-3 * torch.arange(200)[:, None]
    measured = beyond.verification(perfect, y) | beyond.retrieval(perfect, y)
    assert measured["eer"] == 0 and measured["tar_1e-3"] == 1
    assert measured["recall_at_1"] == measured["map_at_r"] == 1
    torch.manual_seed(0)
    useless = beyond.verification(torch.randn(400, 64), torch.arange(5).repeat(80))
    assert useless["eer"] == pytest.approx(0.5, abs=0.02)


def test_retrieval_by_hand():
    """Neighbours by cosine, without the query itself; MAP@R counts the precision at the hits up to R."""
    torch.manual_seed(1)
    x, y = torch.randn(40, 6), torch.arange(4).repeat(10)
    order = (F.normalize(x) @ F.normalize(x).T).fill_diagonal_(-9).argsort(1, descending=True)
    hits = (y[order] == y[:, None]).double()[:, :9]
    precision = hits.cumsum(1) / torch.arange(1, 10)
    measured = beyond.retrieval(5 * x, y)
    assert measured["recall_at_1"] == pytest.approx(hits[:, 0].mean().item())
    assert measured["map_at_r"] == pytest.approx((precision * hits).sum(1).div(9).mean().item())


@pytest.mark.parametrize("name", ["Softmax", "ArcFace"])
def test_rejection_reads_cosines_and_logits(name):
    torch.manual_seed(0)
    head = heads.make(name, 5, 8).eval()
    seen, unseen = 3 * F.normalize(head.W.detach()).repeat(10, 1) + torch.randn(50, 8), torch.randn(30, 8)
    x = torch.cat([seen, unseen])
    known = [1] * 50 + [0] * 30
    cos = F.cosine_similarity(x[:, None], head.W[None], dim=2).amax(1).detach()
    measured = beyond.rejection(head, seen, unseen)
    assert measured["auroc"] == pytest.approx(roc_auc_score(known, cos)) and measured["auroc"] > 0.6
    assert (measured["auroc"] == pytest.approx(measured["auroc_logit"])) == (name == "ArcFace")


# ---------------------------------------------------------------- distortions


@pytest.mark.parametrize("kind", beyond.DISTORTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_stronger_distortion_moves_the_pixels_further(kind, channels):
    blocks = torch.randint(0, 256, (20, channels, 8, 8), generator=torch.Generator().manual_seed(0))
    images = blocks.repeat_interleave(4, 2).repeat_interleave(4, 3).to(torch.uint8)
    before = images.clone()
    moved = [beyond.distort(images, kind, strength) for strength in beyond.DISTORTIONS[kind]]
    assert len(moved) == 5 and all(m.dtype == torch.uint8 and m.shape == images.shape for m in moved)
    far = [(m.float() - images.float()).abs().mean().item() for m in moved]
    assert far[0] > 0.5 and (far == sorted(far) or kind in ("rotation", "translation"))
    assert torch.equal(images, before)
    assert torch.equal(moved[0], beyond.distort(images, kind, beyond.DISTORTIONS[kind][0]))


def test_distortions_by_hand():
    images = torch.full((200, 1, 32, 32), 200, dtype=torch.uint8)
    hidden = (beyond.distort(images, "occlusion", 0.5) == 0).flatten(1).double().mean(1)
    assert hidden.tolist() == [0.25] * 200  # a square of half the side
    noise = beyond.distort(images[:50] // 2, "noise", 0.1).double()
    assert noise.std().item() == pytest.approx(25.5, rel=0.03) and noise.mean().item() == pytest.approx(100, abs=1)
    point = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    point[:, :, 16, 16] = 255
    right, left = beyond.distort(point, "translation", 0.25)
    assert right[0, 16, 24] == 255 == left[0, 16, 8]  # a quarter of the side, either way
    assert beyond.distort(point, "blur", 2.0)[0, 0, 16, 16] == pytest.approx(255 / (2 * np.pi * 4), abs=1.5)
    ramp = torch.arange(200, dtype=torch.uint8)[None, None, None].repeat(1, 1, 200, 1)
    assert beyond.distort(ramp, "contrast", 0.5).double().std().item() == pytest.approx(
        ramp.double().std().item() / 2, rel=0.02
    )


# ---------------------------------------------------------------- runs and records


@pytest.mark.parametrize("question", beyond.QUESTIONS)
def test_a_run_learns_and_records_what_its_question_asks(project, question):
    level = beyond.QUESTIONS[question][0]
    config = run(question, min(level, 100), train_size=1000, epochs=3)
    _, record = beyond.execute(config)
    measured = record["metrics"]
    assert measured["test_accuracy"] > 0.6 and 0 < measured["core_minutes"] < 5
    asked = {
        "open set": {"tar", "tar_1e-2", "tar_1e-3", "eer", "recall_at_1", "map_at_r", "auroc", "auroc_logit"},
        "long tail": {"head_accuracy", "medium_accuracy", "tail_accuracy"},
        "distortions": {"undistorted", "distorted", "distorted_accuracy"},
    }.get(question, set())
    assert set(measured) == asked | {"test_accuracy", "classes", "core_minutes"}
    assert not set(measured) & set(record["config"])  # a table has both as columns
    assert beyond.Run(**json.loads(json.dumps(record))["config"]) == config
    if question == "open set":
        assert measured["eer"] < 0.45 and measured["recall_at_1"] > 0.5 and measured["auroc"] > 0.6
    if question == "distortions":
        assert measured["distorted"]["noise"][0] > measured["distorted"]["noise"][-1]
        assert measured["distorted_accuracy"] == pytest.approx(np.mean(list(measured["distorted"].values())), abs=1e-5)
        assert measured["distorted_accuracy"] < measured["undistorted"]


def test_groups_of_a_long_tail_are_those_that_the_run_saw(project, digits):
    """A network that only knows the most frequent class has its recall in the head."""
    config = run("long tail", 10, seed=3)
    data, unseen = beyond.prepare(config)
    torch.manual_seed(0)
    head = heads.make("Softmax", 10, 64)
    head.b.data[beyond.class_order(10, 3)[0]] = 1e6
    model = models.Classifier(models.network("SmallNet", data.sample(), 64), head)
    measured = beyond.measure(config, model, data, unseen)
    assert [measured[f"{group}_accuracy"] for group in beyond.GROUPS] == [0.25, 0, 0]


def test_an_unknown_question_is_named():
    with pytest.raises(ValueError, match="unknown question 'x': choose"):
        run("x")


def test_a_study_has_every_head_in_every_block():
    studies = {question: beyond.BEYOND["mnist", question].planned() for question in beyond.QUESTIONS}
    for question, levels in beyond.QUESTIONS.items():
        plan = studies[question]
        assert [r.seed for r in plan] == sorted(r.seed for r in plan) and {r.question for r in plan} == {question}
        block = [r for r in plan if r.seed == 1]
        assert len(block) == len(levels) * len(beyond.losses_of(question)) == len(plan) / 4
        assert set(tuning.LOSSES) <= {r.head for r in block}
    assert {r.head for plan in studies.values() for r in plan} == set(heads.heads())
    full = beyond.BEYOND["cifar10", "open set"].planned(full=True)
    assert {r.train_size for r in full} == {0} and {r.epochs for r in full} == {runs.RECIPES["cifar10"]["epochs"]}


def test_tuned_constants_are_used_once_recorded(project):
    study = beyond.BEYOND["mnist", "open set"]
    assert {r.constants for r in study.planned()} == {()}
    record_trials("mnist", {("AdaLoss", 4): (0.9, 1.0)})
    chosen = beyond.constants("mnist")["AdaLoss"]
    assert chosen
    for r in study.planned():
        assert r.constants == (chosen if r.head == "AdaLoss" else ())


# ---------------------------------------------------------------- from records to tables


@pytest.fixture
def small(project, monkeypatch):
    """A plan of seconds: two heads and the questions without their extra losses, on MNIST's settings."""
    monkeypatch.setattr(beyond, "losses_of", lambda question: ("Softmax", "NormFace"))
    return project


def planned(question, full=False):
    return beyond.BEYOND["mnist", question].planned(full)


def finished(question, found):
    """The complete seeds of a question on MNIST, when these records, by run, are all."""
    write(beyond.BEYOND["mnist", question], *found.values())
    return beyond.finished("mnist", question)


def record(config, **measured):
    """A record with these metrics, as ``execute`` writes it; for functions that only read."""
    measured = {"core_minutes": 0.5, "classes": 10, **measured}
    history = {"val_accuracy": [0.1, measured.pop("val_accuracy", 0.9)]}
    written = {"config": dataclasses.asdict(config), "metrics": measured, "history": history}
    return written | {"seconds": 1.0, "device": "test", "commit": "", "date": ""}


def test_only_whole_seeds_count(small):
    plan = planned("long tail")
    records = {r: record(r, tail_accuracy=0.5) for r in plan if r.seed < 2}
    assert len(finished("long tail", {})) == 0
    assert set(finished("long tail", records)["seed"]) == {0, 1}
    del records[next(r for r in records if r.seed == 1 and r.level == 100 and r.head == "NormFace")]
    assert set(finished("long tail", records)["seed"]) == {0}


def test_full_runs_count_once_there_are_two_seeds(small):
    cpu, full = planned("open set"), planned("open set", True)
    records = {r: record(r) for r in [*cpu, *(r for r in full if r.seed < 1)]}
    assert set(finished("open set", records)["train_size"]) == {20_000}
    records |= {r: record(r) for r in full}
    assert set(finished("open set", records)["train_size"]) == {0}


def test_difference_is_averaged_over_levels_and_paired(small):
    records = {
        r: record(r, test_accuracy=0.1 * r.seed + 0.01 * r.level + (0.02 if r.head == "NormFace" else 0))
        for r in planned("label noise")
    }
    row = beyond.difference(finished("label noise", records), "test_accuracy").loc["NormFace"]
    assert row["mean"] == pytest.approx(2) and row["n"] == 4
    assert row["low"] == pytest.approx(2, abs=1e-6)  # what the seeds share is no noise


def test_a_loss_that_stalls_says_nothing_about_the_noise_of_the_others(small, monkeypatch):
    monkeypatch.setattr(beyond, "losses_of", lambda question: ("Softmax", "NormFace", "ArcFace"))

    def records(collapses):
        """Paired runs without noise, but that ArcFace collapses on one seed."""
        found = {}
        for r in planned("open set"):
            accuracy = 0.9 + 0.01 * r.seed - 0.02 * (r.head == "NormFace")
            fallen = accuracy - 0.6 * collapses * (r.head == "ArcFace") * (r.seed == 0)
            found[r] = record(r, test_accuracy=fallen, val_accuracy=fallen)
        return finished("open set", found)

    assert not records(0)["stalled"].any()
    rows = records(1)  # 30 %: nearer to the chance of 10 than to the best of 90
    assert rows.loc[rows["stalled"], ["head", "seed"]].to_numpy().tolist() == [["ArcFace", 0]]
    table = beyond.difference(rows, "test_accuracy")
    assert table.loc["NormFace", "low"] == pytest.approx(-2) and table.loc["NormFace", "high"] == pytest.approx(-2)
    assert table.loc["ArcFace", "low"] < -60 < 0 < table.loc["ArcFace", "high"]


def test_strengths_keep_every_number(small):
    five = {kind: [0.5, 0.4, 0.3, 0.2, 0.1] for kind in beyond.DISTORTIONS}
    plan = planned("distortions")
    records = {r: record(r, undistorted=0.9 + 0.01 * r.seed, distorted=five) for r in plan}
    rows = beyond.strengths(finished("distortions", records))
    assert len(rows) == len(plan) * len(five) * 6
    blurred = rows[(rows["kind"] == "blur") & (rows["head"] == "Softmax")]
    means = blurred.groupby("level")["accuracy"].mean().tolist()
    assert means == pytest.approx([0.915, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_summary_has_what_is_recorded(small):
    records = {r: record(r, test_accuracy=0.5, tail_accuracy=0.4) for r in planned("long tail")}
    records = {
        r: k | {"metrics": k["metrics"] | {"test_accuracy": 0.6}} if r.head == "NormFace" else k
        for r, k in records.items()
    }
    rows = {question: finished(question, records) for question in beyond.QUESTIONS}
    found = beyond.by_label(rows, "NormFace", ["Softmax"])
    assert list(found) == ["long tail"] and found["long tail"]["mean"].tolist() == pytest.approx([-10])


def test_runs_are_trained_once(project, capsys):
    tiny = [run("open set", 5, head, seed) for seed in (0, 1) for head in ("Softmax", "NormFace")]
    study = dataclasses.replace(beyond.BEYOND["mnist", "open set"], plan=lambda full: tiny)
    assert study.train(budget=-1) == {}
    first = study.train()
    again = study.recorded()
    assert list(first) == list(study.train()) == list(again) == tiny
    assert [r["metrics"] for r in again.values()] == [r["metrics"] for r in first.values()]
    assert "4 runs from beyond.jsonl, 0 trained now" in capsys.readouterr().out
    assert study.rows()["test_accuracy"].between(0, 1).all()
