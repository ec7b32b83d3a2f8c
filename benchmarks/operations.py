"""What a training step asks of the device, by head: operations dispatched, and values that Python waits for.

    python -m benchmarks.operations

Counted in the second step of a training on the digits: network, loss, gradients, optimizer, and the accuracy that is
shown. A small network on a GPU is as fast as its operations can be started; a value waited for stops that.
In fp16 two of the values are the scaler's. It takes seconds.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import command, keep, scaled
from lib import data, heads, models, train
from lib.device import best_device, grad_scaler

BATCH = 64


class Counting(TorchDispatchMode):
    """Counts the operations within it, and those that read a value."""

    operations = reads = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations += 1
        self.reads += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def step(name: str) -> dict:
    """Operations and values waited for in a step of that head."""
    digits = data.load("digits", device=best_device())
    model = models.Classifier(models.network("SmallNet", digits.sample(), 16), heads.make(name, 10, 16))
    model.to(best_device()).train()
    optimizers = train.build_optimizers(model, lr=0.05, momentum=0.9, weight_decay=5e-4, muon_lr=0.0)
    scaler = grad_scaler(best_device())
    for images, y in list(digits.epoch(BATCH, torch.Generator().manual_seed(0)))[:2]:
        with Counting() as count:
            train.train_step(model, images, y, optimizers, scaler)
    return {"head": name, "operations": count.operations, "reads": count.reads}


def main() -> None:
    names = list(heads.heads())
    keep("operations", [step(name) for name in scaled(names, names[:2])], best_device())


if __name__ == "__main__":
    command(main, __doc__)
