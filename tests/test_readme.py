"""The README's numbers are those of the records."""

import re

import pytest

from lib import replicas, statistics, store, tuning

README = " ".join((store.PROJECT / "README.md").read_text(encoding="utf-8").split())


@pytest.mark.parametrize("name", tuning.SEEDS)
def test_accuracies(name):
    frame = tuning.finished(name)
    means = frame.assign(percent=100 * frame["test_accuracy"]).groupby("head")["percent"].mean()
    others = means.drop("Triplet")
    assert f"{others.min():.2f} % and {others.max():.2f} % (triplet: {means['Triplet']:.2f} %)" in README


@pytest.mark.parametrize("name", tuning.SEEDS)
def test_adaptive_minus_fixed(name):
    row = tuning.compare(tuning.finished(name), "test_accuracy").loc["AdaLoss"]
    assert statistics.bracket(row) in README


def test_beside_softmax():
    tables = [
        tuning.compare(tuning.finished(name), "test_accuracy", "Softmax").drop("Triplet") for name in tuning.SEEDS
    ]
    mnist, cifar10 = tables
    ((head, row),) = mnist[mnist["verdict"] != "no difference shown"].iterrows()
    assert f"one of them, {head}, by {row['mean']:.2f} ({row['low']:.2f} to {row['high']:.2f})." in README
    assert set(cifar10["verdict"]) == {"lower"} and len(cifar10) == 8
    assert f"by {-cifar10['mean'].max():.2f} to {-cifar10['mean'].min():.2f} points" in README
    assert f"(intervals from {-cifar10['high'].max():.2f} to {-cifar10['low'].min():.2f})" in README


def test_seeds():
    seeds = [tuning.finished(name)["seed"].nunique() for name in tuning.SEEDS]
    assert f"controlled study, {seeds[0]} and {seeds[1]} seeds" in README


@pytest.mark.parametrize("name", tuning.SEEDS)
def test_published_gap(name):
    _, by_seed = replicas.complete(f"s1_{name}", replicas.read())
    gaps = replicas.gaps(by_seed)["gap"]
    for step in ("as published", "label-free evaluation"):
        mean, low, high = statistics.interval(gaps[step])
        assert f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]" in README


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links and [link for link in links if not (store.PROJECT / link).exists()] == []
