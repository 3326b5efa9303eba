"""One label per text or pair of texts: linear scores over the pooled sequence, cross-entropy.

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


@heads.register("classify")
class Classify(Head):
    """Kinds classify and pair. Predictions: {"value": label id, "scores": C probabilities}."""

    def __init__(self, width: int, spec: TaskSpec, *, pooling: str = "mean", dropout: float = 0.1) -> None:
        super().__init__(width, spec, pooling=pooling, dropout=dropout)
        self.out = linear(width, len(spec.labels))

    def loss(self, hidden_SLD: Tensor, mask_SL: Tensor, part: TaskSlice) -> Tensor:
        return F.cross_entropy(self._scores(hidden_SLD, mask_SL), part.target, reduction="none")

    def predict(self, hidden_SLD: Tensor, mask_SL: Tensor, part: TaskSlice) -> list[dict[str, Any]]:
        probabilities_NC = self._scores(hidden_SLD, mask_SL).softmax(-1)
        values = probabilities_NC.argmax(-1).tolist()
        return [{"value": v, "scores": s} for v, s in zip(values, probabilities_NC.tolist())]

    def _scores(self, hidden_SLD: Tensor, mask_SL: Tensor) -> Tensor:
        return project(self.out, self.dropout(pooled(hidden_SLD, mask_SL, self.pooling)))
