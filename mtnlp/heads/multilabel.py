"""Any number of labels per text: one yes-or-no score per label, mean binary cross-entropy.

Shapes: S sequences = N examples, L length, D width, C labels.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from mtnlp import heads
from mtnlp.data.batch import TaskSlice
from mtnlp.heads.base import Head, linear, pooled, project
from mtnlp.tasks.spec import TaskSpec


@heads.register("multilabel")
class Multilabel(Head):
    """Predictions: {"value": ids of the labels above one half, sorted; may be empty, "scores": C
    probabilities}."""

    def __init__(self, width: int, spec: TaskSpec, *, pooling: str = "mean", dropout: float = 0.1) -> None:
        super().__init__(width, spec, pooling=pooling, dropout=dropout)
        self.out = linear(width, len(spec.labels))

    def loss(self, hidden_SLD: Tensor, mask_SL: Tensor, part: TaskSlice) -> Tensor:
        scores_NC = self._scores(hidden_SLD, mask_SL)
        return F.binary_cross_entropy_with_logits(scores_NC, part.target, reduction="none").mean(-1)

    def predict(self, hidden_SLD: Tensor, mask_SL: Tensor, part: TaskSlice) -> list[dict[str, Any]]:
        scores = self._scores(hidden_SLD, mask_SL).sigmoid().tolist()
        return [{"value": tuple(c for c, p in enumerate(row) if p > 0.5), "scores": row} for row in scores]

    def _scores(self, hidden_SLD: Tensor, mask_SL: Tensor) -> Tensor:
        return project(self.out, self.dropout(pooled(hidden_SLD, mask_SL, self.pooling)))
