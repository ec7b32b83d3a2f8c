"""A head as a loss of pytorch-metric-learning."""

import pytest
import torch
from pytorch_metric_learning.trainers import MetricLossOnly
from torch.utils.data import TensorDataset

from lib import heads
from lib.heads.metric_learning import HeadLoss


@pytest.mark.parametrize("name", ["Softmax", "ArcFace", "AdaLoss", "MagFace", "Triplet"])
def test_its_trainer_trains_a_head(name):
    torch.manual_seed(0)
    y = torch.arange(96) % 4
    x = torch.nn.functional.one_hot(y, 6) + 0.1 * torch.randn(96, 6)
    trunk, loss = torch.nn.Linear(6, 5), HeadLoss(heads.make(name, 4, 5)).eval()
    before = loss(trunk(x), y).item()
    assert before == pytest.approx(loss.head.loss(trunk(x), y).item())
    trainer = MetricLossOnly(
        models={"trunk": trunk},
        optimizers={
            "trunk_optimizer": torch.optim.SGD(trunk.parameters(), 0.1),
            "metric_loss_optimizer": torch.optim.SGD(loss.parameters(), 0.1),
        },
        batch_size=32,
        loss_funcs={"metric_loss": loss},
        dataset=TensorDataset(x, y),
        data_device="cpu",
        iterations_per_epoch=20,
        dataloader_num_workers=0,
    )
    trainer.train()
    assert loss.training and loss.eval()(trunk(x), y).item() < before


def test_mined_triplets_are_refused():
    x, y = torch.randn(4, 5), torch.tensor([0, 0, 1, 1])
    loss = HeadLoss(heads.make("ArcFace", 4, 5))
    for bad in ({"indices_tuple": (y, y, y)}, {"ref_emb": x.clone(), "ref_labels": y}):
        with pytest.raises(ValueError, match="leave miners and reference embeddings out"):
            loss(x, y, **bad)
