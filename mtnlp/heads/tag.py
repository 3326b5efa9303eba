"""One label per token: scores at every token, mean cross-entropy of a sequence's scored tokens.

Shapes: S sequences = N examples, L length, D width, C labels.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from mtnlp import heads
from mtnlp.data.batch import IGNORED, TaskSlice
from mtnlp.heads.base import Head, linear, project
from mtnlp.tasks.spec import TaskSpec


@heads.register("tag")
class Tag(Head):
    """Predictions: {"value": one label id per real token, special tokens among them}."""

    reads_tokens = True

    def __init__(self, width: int, spec: TaskSpec, *, pooling: str = "mean", dropout: float = 0.1) -> None:
        super().__init__(width, spec, pooling=pooling, dropout=dropout)
        self.out = linear(width, len(spec.labels))

    def loss(self, hidden_SLD: Tensor, mask_SL: Tensor, part: TaskSlice) -> Tensor:
        scores_SCL = project(self.out, self.dropout(hidden_SLD)).transpose(1, 2)
        losses_SL = F.cross_entropy(scores_SCL, part.target, reduction="none", ignore_index=IGNORED)
        return losses_SL.sum(1) / (part.target != IGNORED).sum(1).clamp(min=1)

    def predict(self, hidden_SLD: Tensor, mask_SL: Tensor, part: TaskSlice) -> list[dict[str, Any]]:
        values_SL = project(self.out, hidden_SLD).argmax(-1).tolist()
        return [{"value": row[:length]} for row, length in zip(values_SL, mask_SL.sum(1).tolist())]
