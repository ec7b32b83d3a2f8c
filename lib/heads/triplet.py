"""Triplet loss with batch-hard mining: the study's tenth arm, which has no margin on a logit."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.losses import Cosine, NormFace, per_class, readable


class Triplet(NormFace):
    """max(0, |a - p| - |a - n| + m) over unit embeddings a, p of one class and n of another (Schroff et
    al. 2015, arXiv 1503.03832), for the furthest p and the nearest n in the batch of every anchor a (Hermans
    et al. 2017, arXiv 1703.07737, eq. 5), averaged over the triplets that are not 0.

    The embeddings are compared with each other and never with W, which has no gradient: after every epoch ``renew``
    sets it to the mean directions of training embeddings, and the nearest one classifies. Before the first epoch
    ends W is random, and with it the training accuracy. On several ranks triplets are made within a rank's batch.
    m is a difference of distances in [0, 2]; the logits s cos(theta) do not depend on it, and their temperature is
    fitted, so s changes no reading.
    """

    m: Cosine = 0.2

    def __init__(self, num_classes: int, embedding_dim: int, **constants: Any):
        super().__init__(num_classes, embedding_dim, **constants)
        self.W.requires_grad_(False)  # DistributedDataParallel would wait for its gradient

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Loss of embeddings x (B, d) with labels y (B,): 0 without a triplet, NaN where B is 0."""
        self._check(x, y)
        y, wrong = self._labels(y)
        if not len(x):
            return x.sum() / 0
        with torch.autocast(x.device.type, enabled=False):
            (x,) = self._precise(x)
            # two directions, so that the gradients of both reach x one by one: the last bits depend on it
            distance, same = torch.cdist(self._direction(x)[0], self._direction(x)[0]), y[:, None] == y
            positive = same & ~torch.eye(len(x), dtype=torch.bool, device=x.device)
            furthest = distance.masked_fill(~positive, -math.inf).max(1).values
            nearest = distance.masked_fill(same, math.inf).min(1).values
            terms = (furthest - nearest + self.margin_scale * self.m).relu()  # 0 for an anchor without p or n
            terms = terms.masked_fill(wrong, math.nan)
            if readable(terms):
                terms = terms[terms != 0]  # changes only the order of the sum, on which its last bits depend
            return terms.sum() / (terms != 0).sum().clamp_min(1)

    def epoch_end(self, embeddings: Callable[[], tuple[Tensor, Tensor]]) -> None:
        self.renew(*embeddings())

    @torch.no_grad()
    def renew(self, x: Tensor, y: Tensor) -> None:
        """Set W to the mean directions of embeddings x (N, d) by label y (N,), of all ranks; a class without any keeps
        its row."""
        x, y = F.normalize(x).to(self.W), y.to(self.W.device)
        total = self._all_ranks(per_class(x, y, len(self.W))[None]).sum(0)
        self.W.copy_(torch.where((total != 0).any(1, keepdim=True), F.normalize(total), self.W))
