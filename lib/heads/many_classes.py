"""The loss of a margin head over very many classes, a block of classes at a time.

    cross_entropy(head, x, y)    the value and gradient of head.loss(x, y)

The margin is on the target's logit z_y alone. So the loss of an embedding is

    log(1 + exp(L - z_y)),    L the logsumexp of the other classes' logits,

and L can be summed up block by block. The backward pass computes each block's cosines again and
writes that block's rows of W's gradient at once. What is needed beyond W and its gradient is the
memory of one block (and a head's own statistics of shape (C,)), however many classes there are.

``shard`` spreads the classes over the ranks of a torchrun. Each rank then works on its own, and
vectors of length B and the gradient of x are all that the ranks exchange.
"""

import copy
import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DeviceMesh, DTensor, Partial, Shard, distribute_tensor
from torch.nn import functional as F

from lib.losses import Head

# elements of a block of cosines: on a CPU as many as its cores' caches hold, elsewhere enough to fill the device
BLOCK = {"cpu": 2**20, "cuda": 2**24}


def cross_entropy(head: Head, x: Tensor, y: Tensor, block: int | None = None) -> Tensor:
    """Mean loss (nats) of embeddings x (B, d) with labels y (B,), block classes at a time.

    Moves the head's statistics in training mode, as head(x, y) does. With sharded classes all ranks
    pass the same x and y (and, for ElasticFace, have the same random numbers); they get the same loss
    and the same gradient of x. Raises ValueError where the head does, for heads with a forward pass, loss, cosines
    or parameters of their own (Softmax) or a target that trains the lengths of embeddings (MagFace), and for a
    block below 1; RuntimeError where a second derivative is asked for (create_graph).
    """
    own = [getattr(type(head), name) is not getattr(Head, name) for name in ("forward", "loss", "cosines")]
    if any(own) or len(list(head.parameters())) > 1:
        # nor does torch's linear_cross_entropy help: it has no margin, and its blocks are rows (b, C) of the batch
        raise ValueError(
            f"{type(head).__name__} has a forward pass, loss, cosines or parameters of its own: use head.loss(x, y)"
        )
    if block is None and len(head.W) <= head.W.shape[1] and not isinstance(head.W, DTensor):
        return head.loss(x, y)  # the logits are no larger than the embeddings
    head._check(x, y)
    y, wrong = head._labels(y)
    block = max(1, BLOCK.get(x.device.type, 2**24) // max(x.shape)) if block is None else block
    if block < 1:
        raise ValueError(f"a block must hold at least one class, got {block}: leave it out for the default")
    W, mesh, first = _local(head.W)
    extra = head.regulariser(x)
    with torch.autocast(x.device.type, enabled=False):
        x, norm = head._direction(head._precise(x, W.detach()[:0])[0])
        length = norm.detach().requires_grad_()
        parts = _Parts(x.detach(), W.detach(), y - first, block, mesh)
        others = functools.cache(parts.others)
        with torch.no_grad():
            cos_y = parts.target_cosine().masked_fill(wrong, torch.nan)
            if head.training and len(x) and type(head).observe is not Head.observe:
                everyone = functools.partial(head.observe, others=lambda: head._all_ranks(others(float(head.s), None)))
                head._learn(everyone, cos_y, length, y)
            with torch.enable_grad():
                target = head.target(cos_y.requires_grad_(), y, length)
                slope, stretch = torch.autograd.grad(target.sum(), [cos_y, length], allow_unused=True)
            if stretch is not None:
                raise ValueError(f"{type(head).__name__} trains the lengths of embeddings: use head.loss(x, y)")
            target = target.detach()
            if type(head).negatives is not Head.negatives:
                frozen = copy.deepcopy(head, {id(head.W): None})  # its statistics may move before the backward pass
                parts.negatives = functools.partial(frozen.negatives, target=target)
            parts.s = float(head.s)
            gap = others(parts.s, parts.negatives) - parts.s * target
            loss = torch.logaddexp(gap, torch.zeros_like(gap))  # (B,)
            parts.total = parts.s * target + loss
            parts.pull = -gap.sigmoid() * slope
        return _Mean.apply(loss, parts, x, W) + extra


def shard(head: Head, mesh: DeviceMesh) -> Head:
    """Leave each rank of a one-dimensional mesh its own part of the classes, as a DTensor; returns the
    head. Every rank must hold the same W; the optimizer comes afterwards."""
    head.W = nn.Parameter(distribute_tensor(head.W.detach(), mesh, [Shard(0)]))
    return head


def _local(W: Tensor) -> tuple[Tensor, DeviceMesh | None, int]:
    """This rank's classes, the mesh and the index of the first of them; all classes if W is no DTensor."""
    if not isinstance(W, DTensor):
        return W, None, 0
    if W.placements != (Shard(0),):
        raise ValueError(f"W must be sharded by class over a mesh of one dimension, got {W.placements}: use shard")
    mesh = W.device_mesh
    return W.to_local(), mesh, Shard.local_shard_size_and_offset(len(W), mesh.size(), mesh.get_local_rank())[1]


class _Parts:
    """The classes of this rank, block by block, for one batch of unit embeddings x (B, d).

    y (B,): labels, counted from this rank's first class. Set before the gradient is asked for: the
    scale s; negatives, the head's hook if it changes anything; total (B,), the logsumexp of all
    training logits; pull (B,), the derivatives of the losses by cos_y, over s.
    """

    s: float
    total: Tensor
    pull: Tensor
    memory: Tensor | None = None
    last: tuple | None = None
    negatives: Callable[[Tensor], Tensor] | None = None

    def __init__(self, x: Tensor, W: Tensor, y: Tensor, block: int, mesh: DeviceMesh | None):
        self.x, self.W, self.y, self.block, self.mesh = x, W, y, block, mesh
        self.starts = range(0, len(W), block)
        self.order = y.argsort()
        edges = torch.tensor([*self.starts, len(W)], device=y.device)
        self.edges = torch.searchsorted(y[self.order], edges).tolist()  # of the blocks, among the sorted labels

    def blocks(self, count: int) -> Iterator[tuple]:
        """Of the first blocks: slice, unit centres (c, d), their lengths (c, 1), cosines (B, c), indices of the
        targets. A block's cosines overwrite those of the block before."""
        B = len(self.x)
        if self.memory is None:
            self.memory = self.x.new_empty(B * min(self.block, len(self.W)))
        for k, start in enumerate(self.starts[:count]):
            centres = self.W[start : start + self.block].to(self.x.dtype)
            length = centres.norm(dim=1, keepdim=True).clamp_min(1e-12)  # as in F.normalize
            centres = centres / length
            cos = torch.mm(self.x, centres.T, out=self.memory[: B * len(centres)].view(B, len(centres)))
            rows = self.order[self.edges[k] : self.edges[k + 1]]
            yield slice(start, start + self.block), centres, length, cos, (rows, self.y[rows] - start)

    def target_cosine(self) -> Tensor:
        """cos_y (B,)."""
        rows = self.order[self.edges[0] : self.edges[-1]]
        cos = self.x.new_zeros(len(self.x))
        cos[rows] = (self.x[rows] * F.normalize(self.W[self.y[rows]].to(self.x.dtype))).sum(1)
        return self.sum(cos)

    def others(self, s: float, negatives: Callable[[Tensor], Tensor] | None) -> Tensor:
        """logsumexp (B,) of the logits of all classes but the target's."""
        total = self.x.new_full((len(self.x),), -torch.inf)
        for *place, cos, targets in self.blocks(len(self.starts)):
            cos = negatives(cos) if negatives else cos
            cos[targets] = -torch.inf
            peak = s * cos.amax(1, keepdim=True).clamp_min(-1)
            exp = torch.add(-peak, cos, alpha=s, out=cos).exp_()
            total = torch.logaddexp(total, exp.sum(1).log() + peak.squeeze(1))
            self.last = None if negatives else (*place, exp, targets, peak)
        if self.mesh is None:
            return total
        return DTensor.from_local(total[None], self.mesh, [Shard(0)]).full_tensor().logsumexp(0)

    def slopes(self) -> Iterator[tuple]:
        """Slice, unit centres, their lengths, derivatives (B, c) of the losses by the cosines, over s."""
        if self.last:  # the forward pass has left its exponentials in memory
            *place, exp, targets, peak = self.last
            g = exp.mul_((peak - self.total[:, None]).exp_())
            g[targets] = self.pull[targets[0]]
            yield *place, g
        for *place, cos, targets in self.blocks(len(self.starts) - bool(self.last)):
            with torch.enable_grad():
                others = self.negatives(cos.requires_grad_()) if self.negatives else cos
            logits = others.detach()
            g = torch.add(-self.total[:, None], logits, alpha=self.s, out=logits).exp_()  # probabilities
            if self.negatives:
                (g,) = torch.autograd.grad(others, cos, g)
            g[targets] = self.pull[targets[0]]
            yield *place, g
        self.memory = self.last = None

    def gradient(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of grad times the mean loss, to x and to W."""
        step = grad * self.s / len(self.x)
        weighted = step * self.x
        grad_x, grad_W = torch.zeros_like(self.x), torch.empty_like(self.W)
        for classes, centres, length, g in self.slopes():
            grad_x.addmm_(g, centres)
            turn = g.T @ weighted  # (c, d)
            turn.addcmul_(centres, (turn * centres).sum(1, keepdim=True), value=-1)  # a centre's length is free
            grad_W[classes] = turn.div_(length)
        return self.sum(grad_x.mul_(step)), grad_W

    def sum(self, part: Tensor) -> Tensor:
        """Sum over the ranks."""
        return part if self.mesh is None else DTensor.from_local(part, self.mesh, [Partial()]).full_tensor()


class _Mean(torch.autograd.Function):
    """The mean of the losses (B,), whose gradient the parts know."""

    @staticmethod
    def forward(ctx, loss, parts, x, W):
        ctx.parts = parts
        ctx.save_for_backward(W)
        return loss.mean()

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():
            raise RuntimeError("a loss by blocks of classes has no second derivative: leave create_graph out")
        _ = ctx.saved_tensors  # raises if W was changed in place in between
        with torch.autocast(grad.device.type, enabled=False):
            return None, None, *ctx.parts.gradient(grad)
