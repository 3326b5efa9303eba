"""From how many tokens of one task on its products are made as groups of one launch, not one per sequence.

A grouped product (`torch.nn.functional.grouped_mm`) reads the factors of a task once for all its neighbouring
tokens, a batched one (bmm) again for every sequence. Which is faster is the device's matter: a run on a GPU
measures it at its start (`mtnlp.train.timings.grouped_gains`) and sets it here. A CPU is never asked: torch
has only a loop for it, which is there so that values can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

MOST = 1023  # groups of one launch
BYTES = 16  # rows of a matrix begin at multiples of these

faster_from: int | None = None  # tokens of one task that lie side by side, on average; None = never


@contextmanager
def using(tokens: int | None) -> Iterator[None]:
    """Inside, grouped products are used from `tokens` on; 0 = wherever they can be, None = never."""
    global faster_from
    before, faster_from = faster_from, tokens
    try:
        yield
    finally:
        faster_from = before


def applies(x: Tensor, runs: int, widths: Sequence[int]) -> bool:
    """Whether the tokens of x (..., I), in that many runs of one task each, are multiplied as groups.

    Args:
        widths: of all matrices that take part, in columns. torch's kernels want bfloat16 and rows that begin
            at multiples of BYTES; the loop for CPUs takes float32 too.
    """
    if faster_from is None or runs > MOST or not hasattr(F, "grouped_mm"):  # torch before 2.10
        return False
    kinds = {torch.bfloat16, torch.float32} if x.device.type == "cpu" else {torch.bfloat16}
    return (
        x.numel() // x.shape[-1] >= faster_from * runs
        and x.dtype in kinds
        and all(width * x.element_size() % BYTES == 0 for width in widths)
    )
