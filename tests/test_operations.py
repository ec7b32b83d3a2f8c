import torch

from benchmarks import operations


def test_counting_sees_a_value_that_is_waited_for():
    with operations.Counting() as count:
        torch.ones(3).sum().item()
    assert count.reads == 1 and count.operations >= 3


def test_a_step_waits_for_nothing():
    softmax, adaloss = (operations.step(name) for name in ("Softmax", "AdaLoss"))
    assert softmax["reads"] == adaloss["reads"] == 0
    assert 50 < softmax["operations"] < adaloss["operations"]
