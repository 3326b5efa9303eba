"""Any number of labels per text: every right label's score should lie above 0 and every wrong one's below.

    loss = log(1 + sum over wrong labels of e^s) + log(1 + sum over right labels of e^-s)

Binary cross-entropy, the usual choice, says "no label" to everything for a long time where a text has one
label in thirty; here the wrong labels of a text compete with 0 together, as they do in a softmax.

Source: Su et al. 2022, "ZLPR: A Novel Loss for Multi-label Classification", arXiv:2208.02955.
Shapes: S sequences = N examples, L length, D width, C labels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtnlp import heads
from mtnlp.data.batch import TaskSlice
from mtnlp.heads.base import Head, linear, pooled, project
from mtnlp.tasks.spec import TaskSpec


@heads.register("multilabel")
class Multilabel(Head):
    """Predictions: {"value": ids of the labels with a score above 0, sorted; may be empty, "scores": sigmoid
    of the C scores, so above one half for the labels in value}."""

    def __init__(self, width: int, spec: TaskSpec, *, pooling: str = "mean", dropout: float = 0.1) -> None:
        super().__init__(width, spec, pooling=pooling, dropout=dropout)
        self.out = linear(width, len(spec.labels))

    def loss(self, hidden_SLD: Tensor, mask_SL: Tensor, part: TaskSlice) -> Tensor:
        scores_NC, right_NC = self._scores(hidden_SLD, mask_SL), part.target.bool()
        zero_N1 = scores_NC.new_zeros(len(scores_NC), 1)  # e^0 = the 1 inside each logarithm
        wrong = torch.cat([zero_N1, scores_NC.masked_fill(right_NC, -torch.inf)], 1).logsumexp(1)
        right = torch.cat([zero_N1, (-scores_NC).masked_fill(~right_NC, -torch.inf)], 1).logsumexp(1)
        return wrong + right

    def predict(self, hidden_SLD: Tensor, mask_SL: Tensor, part: TaskSlice) -> list[dict[str, Any]]:
        scores = self._scores(hidden_SLD, mask_SL).sigmoid().tolist()
        return [{"value": tuple(c for c, p in enumerate(row) if p > 0.5), "scores": row} for row in scores]

    def _scores(self, hidden_SLD: Tensor, mask_SL: Tensor) -> Tensor:
        return project(self.out, self.dropout(pooled(hidden_SLD, mask_SL, self.pooling)))
