"""The README's numbers are those of the records."""

import re

import pytest
import torch

from lib import losses, metrics, study

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
    row = metrics.differences(frame, "test_accuracy", "ArcFace", heads, 100).loc["AdaLoss"]
    assert metrics.bracket(row).replace(" (no interval)", "") in README


def test_leak():
    for name in study.MAIN:
        stored = study.embeddings(study.recipe(name, "ArcFace", seed=0))
        x, y = torch.from_numpy(stored["x"]), torch.from_numpy(stored["y"])
        head = losses.ArcFace(10, x.shape[1], m=0.5).eval()
        head.W.data = torch.from_numpy(stored["W"])
        with torch.no_grad():
            fall = 100 * (metrics.accuracy(head(x), y) - metrics.accuracy(head(x, y), y))
        assert f"{fall:.1f} points" in README


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links and [link for link in links if not (study.PROJECT / link).exists()] == []
