"""Muon for convolution kernels, as an ordinary optimizer."""

import math

import torch
from torch import Tensor, nn

from lib.device import has_bf16


class ConvMuon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) for kernels (out, in, height, width).

    The momentum of a kernel, as a matrix (out, in * height * width), is made orthogonal, so that no direction
    dominates a step. Batch normalisation makes the length of a kernel irrelevant: it is held at sqrt(out), and lr is
    the relative length of a step. The arithmetic is that of torch.optim.Muon, which takes matrices only.
    """

    def __init__(self, kernels: list[nn.Parameter], lr: float, momentum: float):
        super().__init__(kernels, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for kernel in (p for p in group["params"] if p.grad is not None):
                order = (0, 1, 2, 3) if kernel.is_contiguous() else (0, 2, 3, 1)  # in memory
                matrix = kernel.permute(order).view(len(kernel), -1)
                grad = kernel.grad.permute(order).reshape(len(kernel), -1)
                state = self.state[kernel]
                state["mean"] = state["mean"] if state else torch.zeros_like(grad)
                state["mean"].lerp_(grad, 1 - group["momentum"])
                step = orthogonal(grad.lerp(state["mean"], group["momentum"]))
                matrix.add_(step, alpha=-group["lr"] * math.sqrt(max(1, matrix.shape[0] / matrix.shape[1])))
                matrix.mul_(len(matrix) ** 0.5 / matrix.norm())


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix with its singular values near 1, by Newton and Schulz: in bf16, in fp32 on a device without it."""
    bf16 = has_bf16(matrix.device) or matrix.device.type == "cpu"  # where the study's runs emulate it
    x = (matrix.T if len(matrix) > matrix.shape[1] else matrix).to(torch.bfloat16 if bf16 else torch.float32, copy=True)
    x.div_(x.norm().clamp(min=1e-7))
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x if x.shape == matrix.shape else x.T
