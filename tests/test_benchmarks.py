import functools
import json

import pytest
import torch
from torchvision import datasets, transforms

import benchmarks
from benchmarks import heads, throughput
from lib import data, study

CPU = torch.device("cpu")


@pytest.fixture
def smoke(project, monkeypatch):
    monkeypatch.setenv("PROFILE", "smoke")
    return project


# ---------------------------------------------------------------- records


def test_spread_by_hand():
    assert benchmarks.spread([4, 1, 2, 3, 5]) == {"median": 3, "low": 2, "high": 4, "n": 5}


def test_newest_measurement_of_each_device(project, monkeypatch, capsys):
    for device, seconds in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        monkeypatch.setattr(study, "environment", lambda _, name=device: {
            "device": name, "versions": {"torch": "9"}, "commit": "0", "date": "now",
        })  # fmt: skip
        benchmarks.keep("heads", [{"classes": 10, "seconds": benchmarks.spread([seconds])}], CPU, other="1")
    benchmarks.keep("throughput", [{"ratio": 5.0}], CPU)
    frame = benchmarks.recorded("heads")
    assert list(zip(frame["device"], frame["seconds.median"], strict=True)) == [("a", 3), ("b", 2)]
    assert set(frame["versions"]) == {"torch 9, other 1"}
    assert capsys.readouterr().out.count("| ") and (project / "results/benchmarks.jsonl").read_text().count("\n") == 4


def test_no_measurement(project):
    with pytest.raises(ValueError, match=r"benchmarks.jsonl holds no measurement of heads: `make bench`"):
        benchmarks.recorded("heads")


@pytest.mark.parametrize("line", ["7", "{}", "half a li", '{"benchmark": "heads"}'])
def test_foreign_line_is_named(project, line):
    (study.folder("results") / "benchmarks.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"benchmarks.jsonl, line 1 is not a measurement"):
        benchmarks.recorded("heads")


# ---------------------------------------------------------------- heads


def test_in_miniature(smoke, monkeypatch):
    monkeypatch.setattr(heads, "memory", lambda method, classes: [1000 * C for C in classes])
    monkeypatch.setattr(heads, "limit_memory", lambda: None)
    heads.main()
    frame = benchmarks.recorded("heads")
    frame = frame[frame["method"] != heads.PRODUCT]
    assert set(frame["method"]) == set(heads.METHODS) and set(frame["classes"]) == {10, 1000}
    assert (frame.loc[frame["method"] == heads.PEER, "time_ratio"] == 1).all() and (frame["memory_ratio"] == 1).all()
    assert (frame["seconds.low"] <= frame["seconds.median"]).all() and (frame["seconds.n"] >= 3).all()
    versions = json.loads((smoke / ".smoke/results/benchmarks.jsonl").read_text())["versions"]
    assert heads.PEER in versions and "torch" in versions


def test_what_does_not_fit_has_no_numbers(smoke, monkeypatch):
    def full(criterion, x, y):
        if len(criterion.W.T) == 1000:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 2048000000 bytes")
        return criterion(x, y)

    monkeypatch.setitem(heads.METHODS, heads.PEER, full)
    monkeypatch.setattr(heads, "memory", lambda method, classes: [1, None if method == heads.PEER else 2])
    monkeypatch.setattr(heads, "limit_memory", lambda: None)
    heads.main()
    frame = benchmarks.recorded("heads").set_index(["method", "classes"])
    columns = ["seconds.median", "time_ratio", "memory", "memory_ratio"]
    assert frame.loc[(heads.PEER, 1000), columns].isna().all()
    assert frame.loc[("by blocks", 1000), columns].isna().tolist() == [False, True, False, True]
    assert not frame.loc[("by blocks", 10), columns].isna().any()


def test_other_errors_are_no_lack_of_memory():
    with pytest.raises(RuntimeError, match="shapes"):
        heads.fits(lambda: torch.zeros(2) @ torch.zeros(3, 3))


def test_memory_in_a_process_of_its_own():
    few, many = heads.memory("by blocks", [10, 5000])
    assert 0 < few < many < 60e6
    with pytest.raises(RuntimeError, match=r"^by blocks: ValueError: invalid literal for int"):
        heads.memory("by blocks", ["many"])


# ---------------------------------------------------------------- throughput


@pytest.mark.parametrize("name", throughput.SHAPES)
def test_pooling_first_is_the_same_network(name):
    channels, side = throughput.SHAPES[name]
    usual, ours = (throughput.network(channels, side, pool_first) for pool_first in (False, True))
    for a, b in zip(usual.parameters(), ours.parameters(), strict=True):
        b.data = a.data
    images = torch.randn(3, channels[0], side, side)
    torch.testing.assert_close(ours(images), usual(images))


def test_throughput_in_miniature(smoke, monkeypatch):
    @functools.cache
    def load(name):
        channels, side = throughput.SHAPES[name]
        split = data.Split(
            torch.randint(256, (128, channels[0], side, side), dtype=torch.uint8), torch.arange(128) % 10
        )
        augmentation = {"crop_padding": 4, "flip": True} if name == "cifar10" else {}
        normal = (0.5,) * channels[0]
        return data.Data(name, split, split, split, list("0123456789"), mean=normal, std=normal, **augmentation)

    def torchvision(root, train, transform):
        return datasets.FakeData(128, (3, 32, 32), 10, transform)

    def grey(root, train, transform):
        return datasets.FakeData(128, (1, 28, 28), 10, transforms.Compose([transforms.Grayscale(), transform]))

    monkeypatch.setattr(study, "load", load)
    monkeypatch.setattr(datasets, "CIFAR10", torchvision)
    monkeypatch.setattr(datasets, "MNIST", grey)
    throughput.main()
    frame = benchmarks.recorded("throughput")
    assert list(frame["data"]) == ["MNIST"] * 2 + ["CIFAR-10"] * 2 and set(frame["batch"]) == {64}
    assert (frame["images_per_second.median"] > 0).all() and (frame.loc[frame["method"] == "usual", "ratio"] == 1).all()
