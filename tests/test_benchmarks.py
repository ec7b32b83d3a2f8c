import dataclasses
import functools
import json
import os

import pandas as pd
import pytest
import torch
from torchvision import datasets, transforms

import benchmarks
from benchmarks import head_costs, recipes, throughput
from lib import data, paths
from studies import records, runs
from studies import smoke as smoke_profile

CPU = torch.device("cpu")


# ---------------------------------------------------------------- records


def test_spread_by_hand():
    assert benchmarks.spread([4, 1, 2, 3, 5]) == {"median": 3, "low": 2, "high": 4, "n": 5}


def test_newest_measurement_of_each_device(project, monkeypatch, capsys):
    for device, seconds in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        monkeypatch.setattr(records, "environment", lambda _, name=device: {
            "device": name, "versions": {"torch": "9"}, "commit": "0", "date": "now",
        })  # fmt: skip
        benchmarks.keep("heads", [{"classes": 10, "seconds": benchmarks.spread([seconds])}], CPU, other="1")
    benchmarks.keep("throughput", [{"ratio": 5.0}], CPU)
    frame = benchmarks.measured("heads")
    assert list(zip(frame["device"], frame["seconds.median"], strict=True)) == [("b", 2), ("a", 3)]
    assert list(benchmarks.measured("heads", "seconds.median")["seconds.median"]) == [1, 2, 3]
    assert set(frame["versions"]) == {"torch 9, other 1"}
    assert "seconds.median" in capsys.readouterr().out
    assert (project / "results/benchmarks.jsonl").read_text().count("\n") == 4


def test_no_measurement(project):
    with pytest.raises(ValueError, match=r"benchmarks.jsonl holds no measurement of heads: `make bench`"):
        benchmarks.measured("heads")


@pytest.mark.parametrize("line", ["7", "{}", "half a li", '{"benchmark": "heads"}'])
def test_foreign_line_is_named(project, line):
    paths.write(project / "results" / "benchmarks.jsonl", line + "\n")
    with pytest.raises(ValueError, match=r"benchmarks.jsonl, line 1 is not a measurement"):
        benchmarks.measured("heads")


# ---------------------------------------------------------------- costs of the heads


def test_in_miniature(smoke, monkeypatch):
    monkeypatch.setattr(head_costs, "memory", lambda method, classes: [1000 * C for C in classes])
    monkeypatch.setattr(head_costs, "limit_memory", lambda: None)
    head_costs.main()
    frame = benchmarks.measured("heads")
    frame = frame[frame["method"] != head_costs.PRODUCT]
    assert set(frame["method"]) == set(head_costs.METHODS) and set(frame["classes"]) == {10, 1000}
    assert (frame.loc[frame["method"] == head_costs.PEER, "time_ratio"] == 1).all() and (
        frame["memory_ratio"] == 1
    ).all()
    assert (frame["seconds.low"] <= frame["seconds.median"]).all() and (frame["seconds.n"] >= 3).all()
    versions = json.loads((smoke / ".smoke/results/benchmarks.jsonl").read_text())["versions"]
    assert head_costs.PEER in versions and "torch" in versions


def test_what_does_not_fit_has_no_numbers(smoke, monkeypatch):
    def full(criterion, x, y):
        if len(criterion.W.T) == 1000:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 2048000000 bytes")
        return criterion(x, y)

    monkeypatch.setitem(head_costs.METHODS, head_costs.PEER, full)
    monkeypatch.setattr(head_costs, "memory", lambda method, classes: [1, None if method == head_costs.PEER else 2])
    monkeypatch.setattr(head_costs, "limit_memory", lambda: None)
    head_costs.main()
    frame = benchmarks.measured("heads").set_index(["method", "classes"])
    columns = ["seconds.median", "time_ratio", "memory", "memory_ratio"]
    assert frame.loc[(head_costs.PEER, 1000), columns].isna().all()
    assert frame.loc[("by blocks", 1000), columns].isna().tolist() == [False, True, False, True]
    assert not frame.loc[("by blocks", 10), columns].isna().any()


def test_other_errors_are_no_lack_of_memory():
    with pytest.raises(RuntimeError, match="shapes"):
        head_costs.fits(lambda: torch.zeros(2) @ torch.zeros(3, 3))


def test_memory_in_a_process_of_its_own():
    few, many = head_costs.memory("by blocks", [10, 5000])
    assert 0 < few < many < 60e6


def in_turns_here(ways, rounds):
    """In place of processes of their own, which would not know a test's stand-ins."""
    functions = {name: make(*arguments) for name, (make, *arguments) in ways.items()}
    for function in functions.values():
        function()
    rows = [{name: function() for name, function in functions.items()} for _ in range(rounds)]
    return {name: [row[name] for row in rows] for name in ways}


def letters(text):
    """A function that returns the next letter."""
    return functools.partial(next, iter(text))


def test_each_way_has_a_process_of_its_own_and_a_first_call_that_does_not_count():
    ways = {"pid": (functools.partial, os.getpid), "letters": (letters, "abcd")}
    taken = benchmarks.in_turns(ways, 3)
    assert len({*taken["pid"], os.getpid()}) == 2 and taken["letters"] == ["b", "c", "d"]


# ---------------------------------------------------------------- throughput


@pytest.mark.parametrize("name", throughput.SHAPES)
def test_pooling_first_is_the_same_network(name):
    channels, side = throughput.SHAPES[name]
    usual, ours = (throughput.s1_network(channels, side, pool_first) for pool_first in (False, True))
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

    monkeypatch.setattr(throughput, "in_turns", in_turns_here)
    monkeypatch.setattr(runs, "load", load)
    monkeypatch.setattr(datasets, "CIFAR10", torchvision)
    monkeypatch.setattr(datasets, "MNIST", grey)
    throughput.main()
    frame = benchmarks.measured("throughput")
    assert list(frame["data"]) == ["MNIST"] * 2 + ["CIFAR-10"] * 2 and set(frame["batch"]) == {64}
    assert (frame["images_per_second.median"] > 0).all() and (frame.loc[frame["method"] == "usual", "ratio"] == 1).all()


# ---------------------------------------------------------------- recipes


@pytest.fixture
def small(smoke, monkeypatch):
    digits = runs.recipe("digits", "ArcFace", epochs=1)
    monkeypatch.setattr(recipes, "RECIPES", {"digits": digits, "MNIST 99 %": digits})  # the latter to warm up
    monkeypatch.setattr(recipes, "CHANGES", {"digits": {"no momentum": {"momentum": 0.0}, "slow": {"lr": 0.01}}})
    monkeypatch.setattr(recipes, "in_turns", in_turns_here)
    monkeypatch.setitem(runs.RECIPES, "mnist", runs.RECIPES["digits"])
    monkeypatch.setattr(runs, "recipe", lambda data, *args, recipe=runs.recipe, **kw: recipe("digits", *args, **kw))
    return smoke


def test_recipes_in_miniature(small, capsys):
    recipes.train_and_time(["digits"])
    frame = recipes.recorded()
    assert list(frame["change"]) == ["", "no momentum"] and set(frame["recipe"]) == {"digits"}
    lines = [json.loads(line) for line in (small / ".smoke/results/recipes.jsonl").read_text().splitlines()]
    assert [line["settings"]["momentum"] for line in lines] == [0.9, 0.0] and lines[1]["settings"]["data"] == "digits"
    cost = benchmarks.measured("cost").iloc[0]
    assert cost["flop"] > 0 and cost["flop_per_second"] > 1e6
    assert cost.filter(like="share.").sum() == pytest.approx(1, abs=1e-4) and cost["share.convolutions"] > 0
    turns = benchmarks.measured("turns").filter(["recipe", "change"])
    assert turns.values.tolist() == [["digits", "no momentum"]]
    recipes.train_and_time(["digits"])
    assert "2 runs from recipes.jsonl, 0 trained now" in capsys.readouterr().out


def test_a_slower_step_takes_longer(small, monkeypatch):
    monkeypatch.setattr(recipes, "CHANGES", {"digits": {"wider": {"embedding_dim": 4096}}})
    row = recipes.turns("digits")[0]
    assert row["recipe"] == "digits" and row["change"] == "wider" and row["ratio"]["n"] == 5
    assert 1.2 < row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]


def test_products_are_timed_in_the_dtype_of_training(monkeypatch):
    dtypes = set()
    monkeypatch.setattr(benchmarks.devices, "precision", lambda on: torch.float16)
    monkeypatch.setattr(benchmarks.F, "linear", lambda a, b: dtypes.add(a.dtype) or a)
    assert benchmarks.product_rate(torch.device("cpu")) > 0 and dtypes == {torch.float16}


def test_operations_by_hand(small):
    products = 9 * (1 * 32 * 64 + 32 * 64 * 16 + 64 * 128 * 4) + 9 * 128 * 64  # 8x8, 4x4 and 2x2 pixels, then linear
    images = smoke_profile.SMALL["train_size"]
    # forward, and backward to weights and to inputs, of which the first layer has no need
    by_hand = 2 * images * (3 * products - 9 * 1 * 32 * 64)
    assert recipes.cost("digits")["flop"] == pytest.approx(by_hand, rel=0.05)  # the head and 10 validation images


@pytest.mark.parametrize("recipe", recipes.CHANGES)
def test_a_change_changes_the_recipe(recipe):
    config = recipes.RECIPES[recipe]
    for change, fields in recipes.CHANGES[recipe].items():
        assert all(getattr(config, field) != value for field, value in fields.items())
        assert recipes.changed(recipe, change, seed=2) == dataclasses.replace(config, seed=2, **fields)
    assert recipes.changed(recipe, "") == config


def test_unknown_recipe():
    with pytest.raises(ValueError, match=r"^unknown recipe 'MNIST': choose from MNIST 99 %, "):
        recipes.planned(["MNIST"], 1)


def test_seconds_of_one_run_and_of_several():
    assert recipes.took(pd.Series([2.0])) == "2.0"
    assert recipes.took(pd.Series([1250.0, 385.46, 1241.0])) == "1241.0 (385.5 to 1250.0)"
