"""The README's numbers are those of the records."""

import re

import pytest

from lib import statistics, study

README = (study.PROJECT / "README.md").read_text(encoding="utf-8")
ADAPTIVE = ["CurricularFace", "AdaFace", "AdaLoss"]


@pytest.mark.parametrize("name", study.MAIN)
def test_accuracies(name):
    means = 100 * study.recorded(name).groupby("head")["test_accuracy"].mean()
    assert f"{means.min():.2f} % and {means.max():.2f} %" in README


@pytest.mark.parametrize("name", study.MAIN)
def test_adaptive_minus_fixed(name):
    frame = study.recorded(name)
    heads = [head for head in ADAPTIVE if head in set(frame["head"])]
    row = statistics.differences(frame, "test_accuracy", "ArcFace", heads, 100).loc["AdaLoss"]
    assert statistics.bracket(row).replace(" (no interval)", "") in README


def test_leak():
    for name in study.MAIN:
        arcface = study.recipe(name, "ArcFace", seed=0)
        fall = 100 * (study.accuracy_with_margin(arcface, 0.0) - study.accuracy_with_margin(arcface, 0.5))
        assert f"{fall:.1f} points" in README


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links and [link for link in links if not (study.PROJECT / link).exists()] == []
