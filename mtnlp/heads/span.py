"""The part of a context that answers a question: scores for its first and last token, or no answer at all.

A long context is several windows of one example. Position 0 stands for "no answer here", so a window without
the answer learns (0, 0). The loss of a window is the mean of the two cross-entropies, that of an example the
mean over its windows. An example is answered by its best span of at most MAX_TOKENS tokens, unless the null
score, the least over its windows, is higher.

Source: Devlin et al. 2019, section 4.3, arXiv:1810.04805. Shapes: S windows, N examples, L length, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mtnlp import heads
from mtnlp.data.batch import TaskSlice
from mtnlp.heads.base import Head, linear, project
from mtnlp.tasks.spec import TaskSpec

MAX_TOKENS = 30


@heads.register("span")
class Span(Head):
    """Predictions: {"value": (window, first, last) or None = unanswerable, "score": best span minus null}."""

    reads_tokens = True

    def __init__(self, width: int, spec: TaskSpec, *, pooling: str = "mean", dropout: float = 0.1) -> None:
        super().__init__(width, spec, pooling=pooling, dropout=dropout)
        self.out = linear(width, 2, bias=False)  # it would cancel in the softmax over tokens

    def loss(self, hidden_SLD: Tensor, mask_SL: Tensor, part: TaskSlice) -> Tensor:
        scores_S2L = self._scores(hidden_SLD, mask_SL, part)
        losses = F.cross_entropy(scores_S2L.flatten(0, 1), part.target.flatten(), reduction="none")
        losses_S = losses.view(-1, 2).mean(1)
        example_S = torch.repeat_interleave(part.counts, output_size=len(losses_S))
        return losses_S.new_zeros(len(part.counts)).index_add(0, example_S, losses_S) / part.counts

    def predict(self, hidden_SLD: Tensor, mask_SL: Tensor, part: TaskSlice) -> list[dict[str, Any]]:
        first_SL, last_SL = self._scores(hidden_SLD, mask_SL, part).unbind(1)
        null_S = first_SL[:, 0] + last_SL[:, 0]
        length = first_SL.shape[1]
        band_LL = torch.ones(length, length, dtype=torch.bool, device=null_S.device)
        band_LL = band_LL.triu().tril(MAX_TOKENS - 1)
        band_LL[0] = False
        spans_SLL = (first_SL.unsqueeze(2) + last_SL.unsqueeze(1)).masked_fill(~band_LL, -torch.inf)
        best_S, place_S = spans_SLL.flatten(1).max(1)
        counts = part.counts.tolist()
        windows = zip(*([own.tolist() for own in all_S.split(counts)] for all_S in (null_S, best_S, place_S)))
        return [_answer(null, best, place, length) for null, best, place in windows]

    def _scores(self, hidden_SLD: Tensor, mask_SL: Tensor, part: TaskSlice) -> Tensor:
        allowed_SL = (mask_SL if part.spans_allowed is None else part.spans_allowed) != 0
        allowed_SL[:, 0] = True  # the place of "no answer"
        scores_S2L = project(self.out, self.dropout(hidden_SLD)).transpose(1, 2)
        return scores_S2L.masked_fill(~allowed_SL.unsqueeze(1), -torch.inf)


def _answer(null: list[float], best: list[float], place: list[int], length: int) -> dict[str, Any]:
    """One example's prediction from its windows' null scores, best spans' scores and places (first * L +
    last)."""
    window = best.index(max(best))
    score = best[window] - min(null)
    return {"value": (window, *divmod(place[window], length)) if score > 0 else None, "score": score}
