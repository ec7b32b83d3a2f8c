"""The README's numbers are those of the records."""

import re

import pytest

from lib import replicas, statistics, study

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


@pytest.mark.parametrize("name", study.MAIN)
def test_published_gap(name):
    _, by_seed = replicas.complete(f"s1_{name}", replicas.read())
    gaps = replicas.gaps(by_seed)["gap"]
    for step in ("as published", "label-free evaluation"):
        mean, low, high = statistics.interval(gaps[step])
        assert f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]" in README


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links and [link for link in links if not (study.PROJECT / link).exists()] == []
