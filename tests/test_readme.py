"""The README's numbers are those of the records."""

import re

import pytest

from lib import paths
from studies import controlled, omniglot, tables, tuning, verdicts

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


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links and [link for link in links if not (paths.PROJECT / link).exists()] == []
