"""One of the row's own choices: every choice is a sequence with one score; softmax over the choices of a row.

Shapes: S sequences, N examples with `counts` sequences each, M the most choices of a row, L length, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mtnlp import heads
from mtnlp.data.batch import TaskSlice
from mtnlp.heads.base import Head, linear, pooled, project
from mtnlp.tasks.spec import TaskSpec


@heads.register("choose")
class Choose(Head):
    """Predictions: {"value": index of the choice, "scores": one probability per choice of the row}."""

    def __init__(self, width: int, spec: TaskSpec, *, pooling: str = "mean", dropout: float = 0.1) -> None:
        super().__init__(width, spec, pooling=pooling, dropout=dropout)
        self.out = linear(width, 1, bias=False)  # it would cancel in the softmax over choices

    def loss(self, hidden_SLD: Tensor, mask_SL: Tensor, part: TaskSlice) -> Tensor:
        return F.cross_entropy(self._scores(hidden_SLD, mask_SL, part), part.target, reduction="none")

    def predict(self, hidden_SLD: Tensor, mask_SL: Tensor, part: TaskSlice) -> list[dict[str, Any]]:
        probabilities_NM = self._scores(hidden_SLD, mask_SL, part).softmax(-1)
        values = probabilities_NM.argmax(-1).tolist()
        rows = zip(values, probabilities_NM.tolist(), part.counts.tolist())
        return [{"value": value, "scores": row[:count]} for value, row, count in rows]

    def _scores(self, hidden_SLD: Tensor, mask_SL: Tensor, part: TaskSlice) -> Tensor:
        score_S = project(self.out, self.dropout(pooled(hidden_SLD, mask_SL, self.pooling))).squeeze(-1)
        choices = torch.arange(int(part.counts.max()), device=score_S.device)
        there_NM = choices < part.counts.unsqueeze(1)
        # Sequences of a row stand together, so the table's cells fill in reading order.
        return score_S.new_full(there_NM.shape, -torch.inf).masked_scatter(there_NM, score_S)
