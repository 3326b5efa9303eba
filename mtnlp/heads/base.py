"""The face of a head: one task's slice of hidden states -> losses and predictions.

Shapes: S sequences of the slice, L length, D width, N examples, C labels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from mtnlp.data.batch import TaskSlice
from mtnlp.tasks.spec import TaskSpec


class Head(nn.Module, ABC):
    """Made per task from (width, spec, pooling, dropout). `spec.labels` is resolved by then.

    Every head's weights are drawn from N(0, 0.02^2) with zero biases (the caller seeds by (seed, task name),
    so a task's head does not depend on which other tasks are in the run).

    Attributes:
        reads_tokens: whether it needs states of single tokens. If not, `hidden_SLD` may also be (S, D): what
            `pooled` has made of all slices of a batch at once, which is faster.
    """

    reads_tokens = False

    def __init__(self, width: int, spec: TaskSpec, *, pooling: str = "mean", dropout: float = 0.1) -> None:
        super().__init__()
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)

    @abstractmethod
    def loss(self, hidden_SLD: Tensor, mask_SL: Tensor, part: TaskSlice) -> Tensor:
        """(N,) loss of every example, float32. `part.target` is set."""

    @abstractmethod
    def predict(self, hidden_SLD: Tensor, mask_SL: Tensor, part: TaskSlice) -> list[dict[str, Any]]:
        """N raw predictions, plain Python: {"value": ..., "scores": ...} as each head says; see
        data.encode.decode for how token-level values become words, spans and texts."""


def linear(width: int, out: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer with the house initialisation: weights N(0, 0.02^2), zero bias.

    Leave out a bias that cancels in the loss: AdamW would scale what rounding leaves of its gradient up to
    full steps.
    """
    layer = nn.Linear(width, out, bias=bias)
    nn.init.normal_(layer.weight, std=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def project(layer: nn.Linear, hidden: Tensor) -> Tensor:
    """`layer(hidden)` in float32, also under autocast: bfloat16 has 8 bits, too few to rank or regress."""
    with torch.autocast(hidden.device.type, enabled=False):
        return layer(hidden.float())


def pooled(hidden_SLD: Tensor, mask_SL: Tensor, how: str) -> Tensor:
    """(S, D) float32 summary of each sequence: masked mean, first token, or last real token. States of that
    shape are one already."""
    if hidden_SLD.ndim == 2:
        return hidden_SLD
    hidden_SLD = hidden_SLD.float()
    if how == "first":
        return hidden_SLD[:, 0]
    if how == "last":
        last_S = mask_SL.shape[1] - 1 - mask_SL.flip(1).argmax(1)
        return hidden_SLD[torch.arange(len(hidden_SLD), device=hidden_SLD.device), last_S]
    mask_SL1 = mask_SL.unsqueeze(-1).to(hidden_SLD.dtype)
    return (hidden_SLD * mask_SL1).sum(1) / mask_SL1.sum(1).clamp(min=1)
