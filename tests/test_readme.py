"""The README's numbers are those of the records."""

import math
import re

import pandas as pd
import pytest

from lib import data, paths
from studies import __main__ as driver
from studies import controlled, omniglot, one_shot, records, runs, s1, tables, tuning, verdicts

README = " ".join((paths.PROJECT / "README.md").read_text(encoding="utf-8").split())


NAMES = {"mnist": "MNIST", "cifar10": "CIFAR-10"}


def finished(name):
    """The final runs behind the README: of the protocol on MNIST, of the earlier study on CIFAR-10."""
    if name == "mnist":
        return controlled.finished(name)
    frame = tuning.finished(name)
    return frame.assign(stalled=verdicts.stalled(frame))


@pytest.mark.parametrize("name", NAMES)
def test_adaptive_minus_fixed_with_ten_classes(name):
    bound = controlled.SETTINGS[name].bound
    found = verdicts.compare(finished(name), "AdaLoss", "ArcFace", "test_accuracy", bound, 100)
    assert f"| {NAMES[name]}, accuracy | {found['n']} | {tables.bracket(found)} | {found['verdict']} |" in README


def test_the_pair_has_the_same_constants_on_cifar10():
    frame = finished("cifar10")
    pair = frame[frame["head"].isin(["AdaLoss", "ArcFace"])]
    assert pair["lr"].nunique() == 1 and len({(dict(c)["s"], dict(c)["m"]) for c in pair["constants"]}) == 1


def test_arcface_against_no_margin_on_mnist():
    frame, bound = controlled.finished("mnist"), controlled.SETTINGS["mnist"].bound
    losses = frame[frame["head"].isin(controlled.SETTINGS["mnist"].losses)]
    family = verdicts.family(losses, "ArcFace", "test_accuracy", bound, -100)  # minus: ArcFace is the first
    of = {head: "{mean:.2f} [{low:.2f}, {high:.2f}]".format(**family.loc[head]) for head in ("Softmax", "NormFace")}
    assert f"of plain softmax by {of['Softmax']} points, of NormFace by {of['NormFace']}." in README


def test_the_controls_on_mnist_are_level_with_adaloss():
    frame, bound = controlled.finished("mnist"), controlled.SETTINGS["mnist"].bound
    for control in ("same mean", "permuted", "random"):
        found = verdicts.compare(frame, "AdaLoss", control, "test_accuracy", bound, 100, comparisons=3)
        assert found["verdict"] == "equivalent", control


@pytest.mark.parametrize(("metric", "words"), [("map_at_r", "(MAP@R)"), ("one_shot_error", "error in one-shot tasks")])
def test_adaptive_minus_fixed_with_a_thousand(metric, words):
    found = verdicts.compare(omniglot.finished(), "AdaLoss", "ArcFace", metric, 1.0, 100, comparisons=2)
    points = f"{found['mean']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"
    assert f"{words} | {found['n']} | {points} | {found['verdict']} |" in README


def test_how_far_one_embedding_gets():
    runs_of = pd.concat([one_shot.finished(one_shot.SECOND_FINAL), one_shot.finished(one_shot.OWN_SCALE)])
    errors = runs_of.pivot(index="seed", columns="arm", values="one_shot_error")
    found = verdicts.decide(100 * errors["ArcFace"].to_numpy(), math.inf)
    interval = f"{found['mean']:.2f} % [{found['low']:.2f}, {found['high']:.2f}]"
    assert f"ArcFace errs in {interval} of Omniglot's" in README and found["n"] == 10
    retrieved = runs_of.pivot(index="seed", columns="arm", values="map_at_r")
    lead, equal = (
        verdicts.decide(100 * (wide["ArcFace"] - wide["NormFace, s = 8"]).dropna().to_numpy(), 1.0)
        for wide in (retrieved, errors)
    )
    text = f"retrieves {lead['mean']:.1f} [{lead['low']:.1f}, {lead['high']:.1f}] points of MAP@R better"
    assert text in README and f"a larger network ({lead['mean']:.1f} points of retrieval)" in README
    assert lead["n"] == 4 and "at its own scale, four seeds" in README and equal["verdict"] == "equivalent"


def test_the_study_that_the_examples_train_is_one_under_the_protocol():
    known = {study.name for study in controlled.STUDIES} - {f"controlled_{name}" for name in controlled.SETTINGS}
    for text in (README, driver.__doc__):
        named = set(re.findall(r"python -m studies (\w+_\w+)", text))
        assert named and named <= known


def test_a_new_data_set_is_named_where_contributing_says():
    text = (paths.PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert "`lib.data.SETS`" in text and "`studies.runs.RECIPES`" in text
    assert {"mnist", "digits"} <= runs.RECIPES.keys() <= data.SETS.keys()


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links and [link for link in links if not (paths.PROJECT / link).exists()] == []


def test_what_s1s_own_program_ends_with():
    found = records.read(s1.STUDIES[0].path, s1.Arm)
    pairs = list(s1.complete("s1_published_mnist", found).values())
    learnt = [pair for pair in pairs if not pair["ArcFace"]["metrics"]["dead"]]
    assert (len(pairs), len(learnt)) == (5, 3) and "Two of five ArcFace runs never learn" in README
    for key, words in (("leaked_accuracy", "AdaLoss is {} points ahead"), ("test_accuracy", "read alike, {} are left")):
        gaps = [100 * (p["AdaLoss"]["metrics"]["test_accuracy"] - p["ArcFace"]["metrics"][key]) for p in learnt]
        first, second, third = (f"{gap:.2f}" for gap in gaps)
        assert words.format(f"{first}, {second} and {third}") in README
    alone = s1.gaps(s1.complete("s1_same_network_mnist", found)).loc["same margin, normalised", "gap"]
    judged = verdicts.decide(alone.to_numpy(), controlled.SETTINGS["mnist"].bound)
    assert f"it is worth {tables.bracket(judged).removeprefix('+')} points: {judged['verdict']}" in README
    coded = (
        s1.gaps(s1.complete("s1_same_network_mnist", found)).loc["same network and rate"].query("ArcFace > 15")["gap"]
    )
    assert (
        len(coded) == 3 and f"AdaLoss is {coded.min():.2f} to {coded.max():.2f} ahead of the three that learn" in README
    )
