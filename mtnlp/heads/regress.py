"""A number per text: squared error, in units of the task's own scale (TaskSpec.score_scale).

Centre and spread are mapped to 0 and 1, so that a fresh head starts in the middle and every regression loss
has a size like that of the other kinds, whatever the unit of the scores.

Shapes: S sequences = N examples, L length, D width.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from mtnlp import heads
from mtnlp.data.batch import TaskSlice
from mtnlp.heads.base import Head, linear, pooled, project
from mtnlp.tasks.spec import TaskSpec


@heads.register("regress")
class Regress(Head):
    """Predictions: {"value": float in the task's own unit}, not clipped to the range."""

    def __init__(self, width: int, spec: TaskSpec, *, pooling: str = "mean", dropout: float = 0.1) -> None:
        super().__init__(width, spec, pooling=pooling, dropout=dropout)
        self.centre, self.scale = spec.score_scale or (0.0, 1.0)
        self.out = linear(width, 1)

    def loss(self, hidden_SLD: Tensor, mask_SL: Tensor, part: TaskSlice) -> Tensor:
        wanted_N = (part.target.float() - self.centre) / self.scale
        return F.mse_loss(self._score(hidden_SLD, mask_SL), wanted_N, reduction="none")

    def predict(self, hidden_SLD: Tensor, mask_SL: Tensor, part: TaskSlice) -> list[dict[str, Any]]:
        values = (self._score(hidden_SLD, mask_SL) * self.scale + self.centre).tolist()
        return [{"value": value} for value in values]

    def _score(self, hidden_SLD: Tensor, mask_SL: Tensor) -> Tensor:
        return project(self.out, self.dropout(pooled(hidden_SLD, mask_SL, self.pooling))).squeeze(-1)
