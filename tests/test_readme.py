"""The README's numbers are those of the records."""

import re

import pytest

from lib import data, paths
from studies import __main__ as driver
from studies import controlled, omniglot, runs, tables, tuning, verdicts

README = " ".join((paths.PROJECT / "README.md").read_text(encoding="utf-8").split())


NAMES = {"mnist": "MNIST", "cifar10": "CIFAR-10"}


@pytest.mark.parametrize("name", tuning.SEEDS)
def test_adaptive_minus_fixed_with_ten_classes(name):
    frame, bound = tuning.finished(name), controlled.SETTINGS[name].bound
    found = verdicts.compare(
        frame.assign(stalled=verdicts.stalled(frame)), "AdaLoss", "ArcFace", "test_accuracy", bound, 100
    )
    assert f"| {NAMES[name]}, accuracy | {found['n']} | {tables.bracket(found)} | {found['verdict']} |" in README
    pair = frame[frame["head"].isin(["AdaLoss", "ArcFace"])]
    assert pair["lr"].nunique() == 1 and len({(dict(c)["s"], dict(c)["m"]) for c in pair["constants"]}) == 1


@pytest.mark.parametrize(("metric", "words"), [("map_at_r", "(MAP@R)"), ("one_shot_error", "error in one-shot tasks")])
def test_adaptive_minus_fixed_with_a_thousand(metric, words):
    found = verdicts.compare(omniglot.finished(), "AdaLoss", "ArcFace", metric, 1.0, 100, comparisons=2)
    points = f"{found['mean']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"
    assert f"{words} | {found['n']} | {points} | {found['verdict']} |" in README


def test_the_study_that_the_examples_train_is_one_under_the_protocol():
    known = {study.name for study in controlled.STUDIES} - {f"controlled_{name}" for name in controlled.SETTINGS}
    for text in (README, driver.__doc__):
        named = set(re.findall(r"python -m studies (\w+_\w+)", text))
        assert named and named <= known


def test_a_new_data_set_is_named_where_contributing_says():
    text = (paths.PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert "`lib.data.SETS`" in text and "`studies.runs.RECIPES`" in text
    assert runs.RECIPES.keys() == data.SETS.keys()


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links and [link for link in links if not (paths.PROJECT / link).exists()] == []
