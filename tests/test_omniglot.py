"""Omniglot: its files, the metrics of classes never seen, and the study. On a stand-in of random strokes."""

import dataclasses
import itertools
import json
import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from omniglot_stand_in import BACKGROUND, EVALUATION, ITEMS, RUNS, make, strokes
from PIL import Image
from torch.nn import functional as F

from lib import data, heads, paths
from lib.sets import omniglot
from studies import __main__ as studies_main
from studies import omniglot as study
from studies import records, runs, search, unseen

REAL = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("stand_in")
    return root, make(root)


@pytest.fixture
def stand_in(made, monkeypatch):
    """The folder of the data, which must not be changed."""
    for folder, known in made[1].items():
        monkeypatch.setitem(omniglot.FOLDERS, folder, known)
    return made[0]


@pytest.fixture
def small(stand_in, project):
    """A project with the stand-in as its data."""
    (project / "data").symlink_to(stand_in, target_is_directory=True)
    study.official.cache_clear()
    yield project
    study.official.cache_clear()


# ---------------------------------------------------------------- files


def test_a_box_is_the_mean_of_its_area():
    ink = np.random.default_rng(0).random((3, 105, 105)) < 0.3
    quarters = ink.repeat(4, axis=1).repeat(4, axis=2)  # a box has 15 of them in a row
    share = quarters.reshape(3, 28, 15, 28, 15).mean(axis=(2, 4))
    found = omniglot.downsample(ink)
    assert found.shape == (3, 1, 28, 28) and found.dtype == torch.uint8
    assert np.abs(found[:, 0].numpy() - 255 * share).max() <= 0.5 + 1e-9
    assert (omniglot.downsample(np.ones((1, 105, 105), dtype=bool)) == 255).all()


def test_drawers_make_the_splits_and_evaluation_characters_go_on_behind_the_others(stand_in):
    d = data.load("omniglot", stand_in)
    C, unseen_C = sum(BACKGROUND.values()), sum(EVALUATION.values())
    assert (len(d.classes), len(d.unseen)) == (C, unseen_C)
    assert d.classes[:6] == [f"Alpha/character0{c}" for c in range(1, 6)] + ["Beta/character01"]
    assert d.unseen[-1] == "Zeta/character03"
    assert d.train.labels.bincount().tolist() == [16] * C and d.val.labels.bincount().tolist() == [4] * C
    assert d.test.labels.unique().tolist() == list(range(C, C + unseen_C))
    for split, drawing, row in ((d.train, 1, 0), (d.train, 16, 15), (d.val, 17, 0), (d.val, 20, 3)):
        assert torch.equal(split[row].images, omniglot.downsample(~np.asarray(strokes(1, drawing))[None])[0])
    last = omniglot.downsample(~np.asarray(strokes(C + unseen_C, 20))[None])[0]
    assert torch.equal(d.test[-1].images, last) and last.float().mean() < 60  # white ink on black


def test_no_head_takes_an_evaluation_character_for_one_that_it_knows(stand_in, small):
    d = data.load("omniglot", stand_in)
    head = heads.make("ArcFace", len(d.classes), 4)
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 17\)"):
        head.loss(torch.randn(1, 4), d.test.labels[:1])
    with pytest.raises(ValueError, match=r"classes never seen: `studies\.omniglot` reads them"):
        runs.execute(runs.recipe("omniglot", "Softmax"))


def test_the_official_runs(stand_in):
    characters, tests, answers = omniglot.one_shot_runs(stand_in)
    assert characters.shape == tests.shape == (RUNS, ITEMS, 1, 28, 28)
    for run, item in itertools.product(range(RUNS), range(ITEMS)):
        shown = 100 * (run + 1) + int(answers[run, item]) + 1
        assert torch.equal(tests[run, item], omniglot.downsample(~np.asarray(strokes(shown, 50))[None])[0])
        own = 100 * (run + 1) + item + 1
        assert torch.equal(characters[run, item], omniglot.downsample(~np.asarray(strokes(own, 60))[None])[0])


def cut(file):
    file.write_bytes(file.read_bytes()[:-60])


def flipped(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def enlarged(file):
    strokes(7, 7).resize((106, 105)).save(file)


DAMAGES = {
    "missing": (Path.unlink, "holds 15 of 16 images"),
    "empty": (lambda file: file.write_bytes(b""), "item02.png in test/ is no whole PNG file"),
    "cut short": (cut, "item02.png in test/ is no whole PNG file|MD5"),
    "a flipped bit": (flipped, "item02.png in test/|MD5 of its pixels is wrong"),
    "another size": (enlarged, "item02.png in test/ has 106 x 105 pixels"),
    "another drawing": (lambda file: strokes(7, 7).save(file), "MD5 of its pixels is wrong"),
    "a second one": (lambda file: shutil.copy(file, file.with_name("item99.png")), "holds 17 of 16 images"),
    "text": (lambda file: file.write_text("not found"), "item02.png in test/ is no whole PNG file"),
}


@pytest.fixture
def offline(monkeypatch):
    def refuse(*arguments, **_):
        raise OSError("<urlopen error no network>")

    monkeypatch.setattr(omniglot, "download_and_extract_archive", refuse)


def one_line(error):
    assert "\n" not in str(error.value) and len(str(error.value)) < 400 and "copy it from another" in str(error.value)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_image(stand_in, offline, tmp_path, damage):
    home = tmp_path / "omniglot-py/one_shot_runs"
    shutil.copytree(stand_in / "omniglot-py/one_shot_runs", home)
    change, cause = DAMAGES[damage]
    change(home / "run01/test/item02.png")
    with pytest.raises(OSError, match=f"one_shot_runs/ could not be read.*({cause}).*delete that folder") as error:
        omniglot.one_shot_runs(tmp_path)
    one_line(error)


@pytest.mark.parametrize("content", [None, "", "run01/test/item01.png\n", "damaged", "second"])
def test_damaged_answers(stand_in, tmp_path, content):
    shutil.copytree(stand_in / "omniglot-py/one_shot_runs", tmp_path / "omniglot-py/one_shot_runs")
    file = tmp_path / "omniglot-py/one_shot_runs/run02/class_labels.txt"
    if content == "second":  # one character twice
        lines = file.read_text().splitlines()
        content = "\n".join([*lines[:-1], lines[-1].split()[0] + " " + lines[0].split()[1]])
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(OSError, match=r"class_labels\.txt is missing or damaged: delete .*one_shot_runs/ and") as error:
        omniglot.one_shot_runs(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("folder", omniglot.FOLDERS)
def test_a_missing_folder_without_network(stand_in, offline, tmp_path, folder):
    with pytest.raises(OSError, match=f"{folder}/ could not be read or downloaded .*no network.*connect to") as error:
        omniglot.read_images(tmp_path, folder)
    one_line(error)


@pytest.mark.parametrize("folder", omniglot.FOLDERS)
def test_a_missing_folder_is_downloaded(stand_in, tmp_path, monkeypatch, folder):
    def download(url, download_root, extract_root, filename, md5):
        assert url.startswith("https://") and url.endswith(omniglot.FOLDERS[folder][0]) and len(md5) == 32
        inner = "" if folder == "one_shot_runs" else folder  # its archive holds run01 and so on
        shutil.copytree(stand_in / "omniglot-py" / folder, Path(extract_root) / inner, dirs_exist_ok=True)

    monkeypatch.setattr(omniglot, "download_and_extract_archive", download)
    images, names = omniglot.read_images(tmp_path, folder)
    assert len(images) == len(names) == omniglot.FOLDERS[folder][1]
    assert torch.equal(images, omniglot.read_images(stand_in, folder)[0])


def test_data_that_are_there_are_read_without_a_lock_and_others_waited_for(stand_in, offline, tmp_path, monkeypatch):
    class Refused:
        def __init__(self, path):
            raise PermissionError("read-only")

    monkeypatch.setattr(omniglot, "FileLock", Refused)
    omniglot.one_shot_runs(stand_in)

    home = tmp_path / "omniglot-py/one_shot_runs"
    shutil.copytree(stand_in / "omniglot-py/one_shot_runs/run01", home / "run01")  # the other process is half through

    class Waits:
        def __init__(self, path):
            self.path = path

        def __enter__(self):
            shutil.copytree(stand_in / "omniglot-py/one_shot_runs/run02", home / "run02")

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(omniglot, "FileLock", Waits)
    assert omniglot.one_shot_runs(tmp_path)[2].shape == (RUNS, ITEMS)


# ---------------------------------------------------------------- metrics


def some_embeddings(seed=0, counts=(5, 3, 1, 4, 2, 1)):
    """Embeddings around a direction for each class, in a mixed order, and labels that leave numbers out."""
    torch.manual_seed(seed)
    y = torch.cat([torch.full((n,), 3 * c) for c, n in enumerate(counts)])
    y = y[torch.randperm(len(y))]
    return torch.randn(3 * len(counts), 8)[y] + 1.5 * torch.randn(len(y), 8), y


def cosine(a, b):
    return float((a * b).sum() / (a.norm() * b.norm()))


@pytest.mark.parametrize("seed", range(5))
def test_retrieval_like_a_naive_loop(seed):
    x, y = some_embeddings(seed)
    first, average = [], []
    for q in range(len(x)):
        others = [i for i in range(len(x)) if i != q]
        R = sum(int(y[i] == y[q]) for i in others)
        if not R:
            continue  # alone in its class
        others.sort(key=lambda i: -cosine(x[q], x[i]))
        first.append(float(y[others[0]] == y[q]))
        hits = [y[i] == y[q] for i in others[:R]]
        average.append(sum(sum(hits[: k + 1]) / (k + 1) for k in range(R) if hits[k]) / R)
    for chunk in (4, 500):
        measured = unseen.retrieval(3 * x, y, chunk)
        assert measured["recall_at_1"] == pytest.approx(np.mean(first))
        assert measured["map_at_r"] == pytest.approx(float(np.mean(average)), rel=1e-5)
    assert 0.1 < measured["map_at_r"] < 0.9


def test_retrieval_like_pytorch_metric_learning():
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    x, y = some_embeddings(9, counts=(30, 20, 10, 1))
    names = ("precision_at_1", "mean_average_precision_at_r")
    options = {"k": "max_bin_count", "knn_func": CustomKNN(CosineSimilarity()), "device": torch.device("cpu")}
    theirs = AccuracyCalculator(include=names, **options).get_accuracy(x, y)
    assert list(unseen.retrieval(x, y).values()) == pytest.approx([theirs[name] for name in names])


def test_retrieval_of_single_images_is_undefined():
    measured = unseen.retrieval(torch.randn(5, 3), torch.arange(5))
    assert all(math.isnan(value) for value in measured.values())


def test_tasks_are_what_they_say():
    y = torch.arange(40).repeat_interleave(6)[torch.randperm(240, generator=torch.Generator().manual_seed(0))]
    group = y // 14  # 14, 14 and 12 classes
    tasks = unseen.episodes(y, group, ways=13, shots=3, n=50)
    assert tasks.shape == (50, 13, 4) and torch.equal(tasks, unseen.episodes(y, group, 13, 3, 50))
    assert not torch.equal(tasks, unseen.episodes(y, group, 13, 3, 50, seed=1))
    for task in tasks:
        assert len(task.unique()) == 13 * 4  # no image twice
        assert (y[task] == y[task][:, :1]).all() and len(y[task][:, 0].unique()) == 13
        assert len(group[task].unique()) == 1
    assert group[tasks].unique().tolist() == [0, 1]  # the third group is too small
    assert len(y[tasks].unique()) == 28 and len(unseen.episodes(y, group, 15, 3, 50)) == 0
    across = unseen.episodes(y, torch.zeros_like(y), 20, 5, 50)
    assert (group[across].float().std(dim=(1, 2)) > 0).all() and len(y[across].unique()) == 40
    assert unseen.episodes(y, group, 5, 6, 50).shape == (0, 5, 7)  # each class has 6 images, 7 are asked for


@pytest.mark.parametrize("shots", [1, 5])
def test_task_error_like_a_naive_loop(shots):
    x, y = some_embeddings(2, counts=(9,) * 12)
    tasks = unseen.episodes(y, torch.zeros_like(y), 6, shots, 30)
    wrong = []
    for task in tasks.tolist():
        means = [sum(x[i] / x[i].norm() for i in known) / shots for _, *known in task]
        for c, (query, *_) in enumerate(task):
            wrong.append(max(range(6), key=lambda j: cosine(x[query], means[j])) != c)
    assert unseen.task_error(5 * x, tasks) == pytest.approx(np.mean(wrong))
    assert 0.02 < np.mean(wrong) < 0.9
    assert math.isnan(unseen.task_error(x, tasks[:0]))


def test_one_shot_error_like_a_naive_loop():
    torch.manual_seed(0)
    known, answers = torch.randn(3, 7, 5), torch.stack([torch.randperm(7) for _ in range(3)])
    queries = torch.stack([known[r][answers[r]] for r in range(3)]) + 0.7 * torch.randn(3, 7, 5)
    wrong = [
        max(range(7), key=lambda c: cosine(queries[r, q], known[r, c])) != answers[r, q]
        for r in range(3)
        for q in range(7)
    ]
    assert unseen.one_shot_error(2 * known, queries, answers) == pytest.approx(np.mean(wrong))
    assert 0 < np.mean(wrong) < 1 and unseen.one_shot_error(known, known, torch.arange(7).expand(3, 7)) == 0


# ---------------------------------------------------------------- the study


def tiny(head="ArcFace", **changes):
    return study.default(head, **{"epochs": 1, "batch_size": 32, "embedding_dim": 8, **changes})


def test_a_trial_is_judged_on_alphabets_that_it_does_not_train_on_and_reads_no_test_image(small):
    d, other = study.prepare(tiny(trial=True))
    seen = {study.alphabet(name) for name in d.classes}
    assert seen == {"Alpha", "Beta", "Delta"} and len(d.test) == 0
    assert {study.alphabet(name) for name in other.names} == {"Gamma"}
    assert len(d.train) == 12 * 16 and len(other.drawings) == 5 * 20
    everything = data.load("omniglot", small / "data")
    rows = torch.cat([everything.train.images, everything.val.images]).flatten(1).tolist()
    background = set(map(tuple, rows))
    assert background >= set(map(tuple, other.drawings.images.flatten(1).tolist()))
    _, record = study.execute(tiny(trial=True))
    assert record["metrics"].keys() == {"val_accuracy", "trained_on", "recall_at_1", "map_at_r", "core_minutes"}


def test_labels_stay_with_their_images(small):
    """Every training image is a drawing of the character that its label names."""
    everything = data.load("omniglot", small / "data")
    split = everything.train
    known = {i.numpy().tobytes(): everything.classes[c] for i, c in zip(split.images, split.labels, strict=True)}
    for run in (tiny(), tiny(trial=True), tiny(classes=6, seed=3), tiny(classes=9, drawings=2)):
        d, _ = study.prepare(run)
        assert [known[i.numpy().tobytes()] for i in d.train.images] == [d.classes[c] for c in d.train.labels]
        assert d.val.labels.bincount().tolist() == [4] * len(d.classes)


def test_fewer_characters_are_part_of_more_and_take_as_many_steps(small):
    def characters(classes, seed=0):
        return set(study.prepare(tiny(classes=classes, seed=seed))[0].classes)

    assert len(characters(3)) == 3 and characters(3) < characters(7) < characters(0)
    assert characters(7) != characters(7, seed=1)
    for classes, drawings in ((3, 16), (7, 4), (0, 16)):
        d, other = study.prepare(tiny(classes=classes, drawings=drawings))
        assert len(d.train) == 17 * 16 and len(other.names) == 23
        distinct = {i.numpy().tobytes() for i in d.train.images}
        assert len(distinct) == (classes or 17) * drawings
        shown = Counter(i.numpy().tobytes() for i in d.train.images).values()
        assert max(shown) - min(shown) <= 1  # every image about as often
    with pytest.raises(ValueError, match="18 of 17 characters are asked for"):
        study.prepare(tiny(classes=18))


def test_triplets_batches_hold_four_of_a_kind(small):
    d, _ = study.prepare(tiny("Triplet"))
    for _, y in d.epoch(32, torch.Generator().manual_seed(0)):
        assert all(len(four.unique()) == 1 for four in y.view(-1, 4))
    order = d.order(torch.Generator().manual_seed(0))
    assert len(order.unique()) == len(d.train) and not torch.equal(order, d.order(torch.Generator().manual_seed(1)))
    usual = study.prepare(tiny("ArcFace"))[0]
    assert type(usual) is data.Data and torch.equal(usual.train.images, d.train.images)


FINAL = {
    "val_accuracy", "trained_on", "recall_at_1", "map_at_r", "one_shot_error", "error_within_1", "error_within_5",
    "error_across_1", "error_across_5", "tar", "tar_1e-2", "tar_1e-3", "tar_1e-4", "eer", "core_minutes",
}  # fmt: skip


def test_a_final_run_reads_the_evaluation_alphabets(small, monkeypatch):
    monkeypatch.setattr(study, "TASKS", 20)
    monkeypatch.setattr("lib.device.has_bf16", lambda _: False)  # for what is computed by hand below
    run = tiny("AdaLoss", constants=search.FREE)
    model, record = study.execute(run)
    assert record["metrics"].keys() == FINAL | {"at_bound"} and record["metrics"]["at_bound"] == 0
    history = record["history"]
    assert "margins" not in history and len(history["margins_mean"]) == len(history["margins_spread"]) == 1
    margins = model.head.margins
    assert history["margins_mean"][0] == pytest.approx(margins.mean().item(), rel=1e-4)
    assert history["margins_spread"][0] == pytest.approx(margins.std(correction=0).item(), rel=1e-3)
    assert json.loads(json.dumps(record))
    again = study.execute(run)[1]["metrics"]
    assert {k: v for k, v in again.items() if k != "core_minutes"} == {
        k: v for k, v in record["metrics"].items() if k != "core_minutes"
    }
    # by hand, from the embeddings of the model
    d, other = study.prepare(run)
    x = F.normalize(model.eval().network(d.normalise(other.drawings.images)).detach())
    nearest = (x @ x.T).fill_diagonal_(-9).argmax(1)
    right = (other.drawings.labels[nearest] == other.drawings.labels).double().mean().item()
    assert record["metrics"]["recall_at_1"] == pytest.approx(right)

    plan = {run: run.head, dataclasses.replace(run, lr=0.25): "same mean"}
    monkeypatch.setattr(study, "FINAL", dataclasses.replace(study.FINAL, plan=lambda full: plan))
    assert study._pack(dataclasses.replace(run, lr=0.25), model, record) is None  # a control
    study._keep(run, study._pack(run, model, record))
    kept = study.kept(run)
    assert {name: array.shape for name, array in kept.items()} == {
        "characters": (RUNS, ITEMS, 8), "tests": (RUNS, ITEMS, 8), "alphabet": (400, 8), "first": (23, 8),
        "margins": (17,),
    }  # fmt: skip
    angel = F.cosine_similarity(torch.from_numpy(kept["alphabet"]).float(), x[:400])
    assert angel.min() > 0.999
    assert study._pack(dataclasses.replace(run, seed=1), model, record) is None
    with pytest.raises(OSError, match=r"is missing: restore it from git$"):
        study.kept(dataclasses.replace(run, lr=0.3))


def recorded(study_of, measure, failed=()):
    """Write records of a study's plan without any training; measure(run): the metrics."""
    for run in study_of.planned():
        history = {"margins_mean": [0.1, 0.4], "margins_spread": [0.0, 0.07]}
        line = records.record(run, measure(run), history, torch.device("cpu"), 1.0)
        study_of.path.parent.mkdir(exist_ok=True)
        with study_of.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def test_every_loss_has_the_same_trials(small):
    trials = study.TRIALS.planned()
    assert all(run.trial and run.seed == search.TRIAL_SEED for run in trials)
    assert Counter(run.head for run in trials) == dict.fromkeys(study.LOSSES, search.TRIALS)
    rates = {head: [run.lr for run in trials if run.head == head] for head in study.LOSSES}
    assert len(set(map(tuple, rates.values()))) == 1
    scales = {tuple(dict(run.constants).get("s") for run in trials if run.head == head) for head in study.LOSSES}
    assert len(scales) == 2  # of those that have one, and none for Softmax and Triplet
    for run in trials:
        heads.make(run.head, 5, 4, **dict(run.constants))
    assert [run.head for run in trials[: len(study.LOSSES)]] == list(study.LOSSES)


def test_the_plan_follows_the_protocol(small, capsys):
    with pytest.raises(study.search.Incomplete):
        study.final()
    rank = {run: i for i, run in enumerate(study.TRIALS.planned())}
    recorded(study.TRIALS, lambda run: {"map_at_r": rank[run] / 1000})
    finalists = study.FINALISTS.planned()
    assert Counter((run.head, run.seed) for run in finalists) == {
        (head, seed): search.BEST for head in study.LOSSES for seed in search.FINALIST_SEEDS
    }
    assert all(run.trial for run in finalists)
    recorded(study.FINALISTS, lambda run: {"map_at_r": 1 - run.lr})  # the slowest of the three wins
    best = study.chosen()
    for head, run in best.items():
        assert run.lr == min(r.lr for r in finalists if r.head == head) and not run.trial
    planned = study.final()
    arms = Counter(planned.values())
    assert {arms[name] for name in ("AdaLoss", "ArcFace", "same mean", "permuted", "random")} == {20}
    assert all(arms[head] == 10 for head in study.LOSSES[2:]) and sum(arms.values()) == 5 * 20 + 9 * 10
    assert [run.seed for run in planned] == sorted(run.seed for run in planned)
    for run, name in planned.items():
        constants = dict(run.constants)
        if name in ("same mean", "random"):
            s = dict(best["AdaLoss"].constants)["s"]
            assert (constants["m"], constants["s"], run.lr) == (0.4, s, best["AdaLoss"].lr)
        if name == "permuted":
            assert (run.head, run.constants) == ("PermutedAdaLoss", best["AdaLoss"].constants)
    fewer = study.CLASSES.planned()
    assert Counter((run.classes, run.drawings) for run in fewer) == dict.fromkeys(study.LEVELS, 5 * 4)
    assert {run for run in fewer if not run.classes} <= set(planned)  # trained once
    assert studies_main.named("omniglot") == [study.FINAL, study.CLASSES]
    assert studies_main._needed(study.FINAL) == [study.TRIALS, study.WIDER, study.FINALISTS]


def test_a_trial_that_diverges_has_lost(small, monkeypatch):
    def diverge(*_):
        raise FloatingPointError("the loss became nan")

    monkeypatch.setattr(study.runs, "fit", diverge)
    _, record = study.TRIALS.execute(tiny(trial=True), False)
    assert record["metrics"] == {"map_at_r": 0.0, "failed": "the loss became nan"}


def test_the_smoke_profile_is_small(small, monkeypatch):
    monkeypatch.setenv("PROFILE", "smoke")
    monkeypatch.setattr(study, "TASKS", 3)
    runs.load.cache_clear()
    for one in (study.TRIALS, study.FINALISTS, study.FINAL, study.CLASSES):
        one.train()
    rows = study.finished()
    assert {"AdaLoss", "ArcFace", "Softmax", "same mean", "permuted", "random"} <= set(rows["head"])
    assert not rows["stalled"].any() or rows["stalled"].dtype == bool
    counts = {one.name: len(one.planned()) for one in study.STUDIES}
    assert max(counts.values()) <= 10, counts
    assert set(study.by_classes()["classes"]) == {0, 10}


def test_the_map_reads_no_test_image_and_its_first_row_has_no_margin():
    planned = study.MAP.planned()
    assert all(run.trial and {run.lr} == {study.MAP_LR} for run in planned)
    assert [run.seed for run in planned] == sorted(run.seed for run in planned)
    constants = {head: [dict(run.constants) for run in planned if run.head == head] for head in ("NormFace", "AdaLoss")}
    assert all(c.keys() == {"s"} for c in constants["NormFace"]) and len(planned) == 3 * 5 * 6
    assert all(c["m_max"] == 1.5 and c["m"] == study.MAP_ADALOSS for c in constants["AdaLoss"])


def test_the_scale_is_varied_at_each_number_of_characters_in_as_many_steps():
    planned = study.SCALES.planned()
    assert len(planned) == len(set(planned)) == 180
    levels = {}
    for run in planned:
        constants = dict(run.constants)
        assert run.trial and run.lr == study.MAP_LR and run.drawings == 16
        assert run.train_size == (728 * 16 if run.classes else 0)  # 0: all that 728 characters have
        levels.setdefault((run.classes, run.seed), []).append((run.head, constants["s"], constants.get("m")))
    assert {classes for classes, _ in levels} == {10, 30, 100, 300, 0}
    assert all(sorted(part, key=str) == sorted(levels[0, 0], key=str) and len(part) == 12 for part in levels.values())
    assert [run.seed for run in planned] == sorted(run.seed for run in planned)


# ---------------------------------------------------------------- the real data

HERE = all((REAL / "omniglot-py" / folder).is_dir() for folder in omniglot.FOLDERS)


@pytest.mark.skipif(not HERE, reason="data/ does not hold omniglot")
def test_the_official_runs_are_hard_for_raw_pixels():
    characters, tests, answers = omniglot.one_shot_runs(REAL)
    assert characters.shape == tests.shape == (20, 20, 1, 28, 28)
    with Image.open(REAL / "omniglot-py/one_shot_runs/run01/test/item01.png") as image:
        assert torch.equal(tests[0, 0], omniglot.downsample(~np.asarray(image)[None])[0])
    x, z = (F.normalize(part.flatten(2).float(), dim=-1) for part in (characters, tests))
    assert 0.6 < unseen.one_shot_error(x, z, answers) < 0.85  # 1-nearest neighbour: 78.3 % (Koch et al. 2015)


@pytest.mark.skipif(not HERE, reason="data/ does not hold omniglot")
def test_the_real_data(monkeypatch):
    d = data.load("omniglot", REAL)  # every image is read and checked
    assert (len(d.classes), len(d.unseen)) == (964, 659)
    assert (len(d.train), len(d.val), len(d.test)) == (964 * 16, 964 * 4, 659 * 20)
    assert len({study.alphabet(name) for name in d.classes}) == 30
    assert len({study.alphabet(name) for name in d.unseen}) == 20
    x = d.normalise(d.train.images)
    assert x.mean().abs() < 0.01 and (x.std() - 1).abs() < 0.01
    monkeypatch.setattr(study.runs, "load", lambda name, **_: d)
    trial, other = study.prepare(study.default("ArcFace", trial=True))
    assert (len(trial.classes), len(other.names)) == (728, 236)
    assert paths.PROJECT.exists()
