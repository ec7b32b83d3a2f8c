"""The README's numbers are those of the records."""

import re

import pytest

from lib import paths
from studies import tables, tuning

README = " ".join((paths.PROJECT / "README.md").read_text(encoding="utf-8").split())


@pytest.mark.parametrize("name", tuning.SEEDS)
def test_adaptive_minus_fixed(name):
    row = tuning.compare(tuning.finished(name), "test_accuracy").loc["AdaLoss"]
    assert tables.bracket(row) in README


def test_seeds():
    seeds = [tuning.finished(name)["seed"].nunique() for name in tuning.SEEDS]
    assert f"controlled study, {seeds[0]} and {seeds[1]} seeds" in README


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links and [link for link in links if not (paths.PROJECT / link).exists()] == []
