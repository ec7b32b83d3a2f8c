"""A head as a loss of pytorch-metric-learning, for its trainers."""

from pytorch_metric_learning.losses import BaseMetricLossFunction  # type: ignore[import-untyped]
from torch import Tensor

from lib.losses import Head


class HeadLoss(BaseMetricLossFunction):
    """head.loss as loss_fn(embeddings (B, d), labels (B,)); its parameters need an optimizer, as for any of its
    classification losses. Raises ValueError for mined pairs or triplets and for reference embeddings, of which a
    head has no use."""

    def __init__(self, head: Head):
        super().__init__()
        self.head = head

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: object, ref_emb: object, ref_labels: object
    ) -> dict:
        if indices_tuple is not None or ref_emb is not embeddings:
            raise ValueError("a head compares embeddings with its centres: leave miners and reference embeddings out")
        loss = self.head.loss(embeddings, labels)
        return {"loss": {"losses": loss, "indices": None, "reduction_type": "already_reduced"}}
