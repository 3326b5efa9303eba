"""One of several labels in order: a cumulative link (proportional odds) model.

    P(Y > k) = sigmoid(f(x) - b_k),   b_0 < b_1 < ... < b_{K-2},   b_k = b_{k-1} + softplus(g_k)

The loss is the negative log-likelihood of the label. P(Y > k) falls in k by construction, which K - 1
separate biases (CORAL) only reach in the optimum. Fresh thresholds make all labels equally likely at f = 0.

Source: McCullagh 1980, "Regression Models for Ordinal Data"; softplus steps as in Kennedy et al. 2020,
arXiv:2009.10277. Shapes: S sequences = N examples, L length, D width, K labels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtnlp import heads
from mtnlp.data.batch import TaskSlice
from mtnlp.errors import MtnlpError
from mtnlp.heads.base import Head, linear, pooled, project
from mtnlp.tasks.spec import TaskSpec


@heads.register("ordinal")
class Ordinal(Head):
    """Predictions: {"value": the median label id, "scores": K probabilities}."""

    def __init__(self, width: int, spec: TaskSpec, *, pooling: str = "mean", dropout: float = 0.1) -> None:
        super().__init__(width, spec, pooling=pooling, dropout=dropout)
        if len(spec.labels) < 2:
            raise MtnlpError(f"{spec.name}: ordinal tasks need two labels or more; got {spec.labels}.")
        # P(Y > k) = sigmoid(f - b_k): a bias on f would only repeat b_0.
        self.out = linear(width, 1, bias=False)
        even = torch.logit(torch.arange(1, len(spec.labels)) / len(spec.labels))
        self.first = nn.Parameter(even[:1].clone())
        self.gaps = nn.Parameter(even.diff().expm1().log())  # softplus(gaps) = even.diff()

    def thresholds(self) -> Tensor:
        """(K - 1,) strictly increasing b."""
        return torch.cat([self.first, self.first + F.softplus(self.gaps).cumsum(0)])

    def loss(self, hidden_SLD: Tensor, mask_SL: Tensor, part: TaskSlice) -> Tensor:
        scores_NK = self._log_probabilities(hidden_SLD, mask_SL)
        return -scores_NK.gather(1, part.target.unsqueeze(1)).squeeze(1)

    def predict(self, hidden_SLD: Tensor, mask_SL: Tensor, part: TaskSlice) -> list[dict[str, Any]]:
        probabilities_NK = self._log_probabilities(hidden_SLD, mask_SL).exp()
        # The median is the label with the least expected distance, which is what ordinal scores punish.
        values = (probabilities_NK[:, :-1].cumsum(-1) < 0.5).sum(-1).tolist()
        return [{"value": v, "scores": s} for v, s in zip(values, probabilities_NK.tolist())]

    def _log_probabilities(self, hidden_SLD: Tensor, mask_SL: Tensor) -> Tensor:
        score_N1 = project(self.out, self.dropout(pooled(hidden_SLD, mask_SL, self.pooling)))
        above = score_N1 - self.thresholds()  # (N, K - 1): logit of P(Y > k)
        # P(Y = k) = s(a) - s(b) with a > b; written as s(a) s(-b) (1 - e^(b - a)), its log keeps all digits.
        steps = (1 - (above[:, 1:] - above[:, :-1]).exp()).clamp(min=torch.finfo(above.dtype).tiny).log()
        below, over = F.logsigmoid(-above), F.logsigmoid(above)
        return torch.cat([below[:, :1], over[:, :-1] + below[:, 1:] + steps, over[:, -1:]], dim=1)
