"""The plan of the ablation; what holds for the variants of AdaLoss is in test_variants."""

import dataclasses

import numpy as np
import pytest
import torch
from test_runs import fake

from studies import ablation, records, runs


def test_plan_is_paired_and_seeds_come_last():
    for full in (False, True):
        configs = list(ablation.arm_runs(full=full))
        arms = list(ablation.arms(516 if full else 54).values())
        assert [(c.head, dict(c.constants)) for c in configs] == arms * 3 and len(set(configs)) == len(configs)
        assert [c.seed for c in configs] == [s for s in range(3) for _ in arms]
        assert len({dataclasses.replace(c, head="ArcFace", constants=(), seed=0) for c in configs}) == 1
    assert configs[0] == runs.recipe("cifar10", "ArcFace", epochs=12)


def test_steps_are_those_of_the_training():
    data = runs.load("digits")
    assert len(list(data.epoch(64, torch.Generator()))) == len(data.train) // 64  # as the plan counts them
    assert ablation.TRAIN_SIZE == 50_000 - 5_000 and 12 * (45_000 // 1024) == 516 and 6 * (10_000 // 1024) == 54


def test_margins_of_the_controls_are_those_of_the_recorded_adaloss():
    found = [record for run, record in runs.MAIN["cifar10"].complete().items() if run.head == "AdaLoss"]
    margins = np.array([record["history"]["margins"] for record in found])  # (seeds, epochs, C)
    assert margins[:, -1].std(-1).mean() == pytest.approx(ablation.arms(1)["random margins"][1]["spread"], abs=0.005)
    assert np.abs(margins.mean(-1) - 0.3).max() < 0.01  # their mean hardly moves


def test_finished_names_the_arms_and_prefers_those_for_a_gpu(project):
    with pytest.raises(
        ValueError, match=r"ablation_cifar10.jsonl holds no complete seed: `python -m studies ablation_cifar10"
    ):
        ablation.finished()
    names = list(ablation.arms(1))
    for full, epochs in ((False, 6), (True, 12)):
        for config in list(ablation.arm_runs(full=full))[: len(names) + 3]:  # a seed, and a part of the next
            records.append(ablation.ABLATION.path, fake(config))
        frame = ablation.finished()
        assert list(frame["head"]) == names and set(frame["epochs"]) == {epochs} and set(frame["seed"]) == {0}
    assert frame.loc[frame["head"] == "gamma = 2", "constants"].iloc[0] == [["gamma", 2.0]]
    assert set(frame.loc[frame["apart"], "head"]) == {"absolute rule", "absolute rule, global"}
