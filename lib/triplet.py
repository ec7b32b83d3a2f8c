"""Triplet loss with batch-hard mining: the study's tenth arm, which has no margin on a logit."""

import torch
from torch.nn import functional as F

from lib.losses import NormFace


class Triplet(NormFace):
    """max(0, |a - p| - |a - n| + m) over unit embeddings a, p of one class and n of another (Schroff et
    al. 2015, arXiv 1503.03832), for the furthest p and the nearest n in the batch of every anchor a (Hermans
    et al. 2017, arXiv 1703.07737, eq. 5), averaged over the triplets that are not 0.

    Miner and loss are pytorch-metric-learning's. The embeddings are compared with each other and never
    with W, so W is no part of the loss: after every epoch ``renew`` sets it to the mean directions of
    training embeddings, and the nearest one classifies. Before the first epoch ends W is random, and with
    it the training accuracy. m is a difference of distances in [0, 2]; the logits s cos(theta) do not
    depend on it, and their temperature is fitted, so s changes no reading.
    """

    def __init__(self, num_classes, embedding_dim, *, s=16.0, m=0.2):
        super().__init__(num_classes, embedding_dim, s=s, m=m)

    def loss(self, x, y):
        from pytorch_metric_learning.losses import TripletMarginLoss  # takes a second, and no other head needs it
        from pytorch_metric_learning.miners import BatchHardMiner

        self._check(x, y)
        with torch.autocast(x.device.type, enabled=False):
            (x,) = self._precise(x)
            return TripletMarginLoss(margin=self.w * self.m)(x, y, BatchHardMiner()(x, y))

    @torch.no_grad()
    def renew(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Set W to the mean directions of embeddings x (N, d) by label y (N,); a class without any keeps its row."""
        x, y = F.normalize(x).to(self.W), y.to(self.W.device)
        total = torch.zeros_like(self.W).index_add_(0, y, x)
        self.W.copy_(torch.where((total != 0).any(1, keepdim=True), F.normalize(total), self.W))
