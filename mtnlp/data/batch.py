"""What travels from the mixture to the model: one micro-batch of rows of several tasks, sorted by task.

Shapes: S sequences (an example is one sequence, or several: the choices of a `choose` row, the windows of a
long `span` context), L padded length, Lt padded target length, N examples of one slice.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtnlp.data.pieces import IGNORED
from mtnlp.data.stream import Layout

__all__ = ["IGNORED", "Batch", "TaskSlice"]


@dataclass(frozen=True)
class TaskSlice:
    """The part of a batch that belongs to one task.

    Args:
        task: index into the mixture's tasks.
        start, stop: its sequences are rows start..stop-1 of the batch.
        rows: (N,) row numbers in the task's split, in batch order.
        counts: (N,) int64 sequences per example; all ones except for choose and span.
        target: what the task's head learns, None for unlabelled rows:
            classify, pair, ordinal, choose (N,) int64 - regress (N,) float32 - multilabel (N, C) float32 -
            tag (stop-start, L) int64 with -100 where nothing is scored - span (stop-start, 2) int64 first and
            last token of the answer in each window, (0, 0) = not in this window; None for text (see
            Batch.labels).
        spans_allowed: span only, (stop-start, L) bool, True on tokens of the context (an answer lies there);
            None = every real token but the first.
    """

    task: int
    start: int
    stop: int
    rows: np.ndarray
    counts: Tensor
    target: Tensor | None
    spans_allowed: Tensor | None = None

    @property
    def examples(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Args:
        input_ids: (S, L) int64, padded on the right (on the left when it is made for generation by a
            decoder).
        attention_mask: (S, L) int64, 1 on real tokens.
        token_type_ids: (S, L) int64 for backbones that use segments, else None.
        labels: text targets, -100 where nothing is scored, else None. Encoder-decoder: (S, Lt). Decoder: (S,
            L), aligned with input_ids (not shifted).
        task_ids: (S,) int64, index into the mixture's tasks; sorted ascending.
        slices: one per task in the batch, in the order of task_ids.
        targets_apart: labels are sequences of their own, as those of an encoder-decoder.
        layout: how to run it as flat streams of tokens, None = padded.
    """

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor | None
    labels: Tensor | None
    task_ids: Tensor
    slices: tuple[TaskSlice, ...]
    targets_apart: bool = False
    layout: Layout | None = None

    @property
    def useful_tokens(self) -> int:
        """Real tokens, those of separate targets among them."""
        targets = int((self.labels != IGNORED).sum()) if self.targets_apart else 0
        return int(self.attention_mask.sum()) + targets

    @property
    def padded_tokens(self) -> int:
        """Tokens that the network runs."""
        if self.layout is not None:
            return self.layout.tokens
        return self.input_ids.numel() + (self.labels.numel() if self.targets_apart else 0)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on `device`."""
        return _moved(self, device)


def _moved(item: Any, device: torch.device | str) -> Any:
    """`item` with every tensor in it, and in its parts, on `device`."""
    if isinstance(item, Tensor):
        return item.to(device, non_blocking=True)
    if isinstance(item, tuple):
        return tuple(_moved(part, device) for part in item)
    if dataclasses.is_dataclass(item):
        parts = {field.name: _moved(getattr(item, field.name), device) for field in dataclasses.fields(item)}
        return dataclasses.replace(item, **parts)
    return item
