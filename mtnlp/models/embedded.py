"""What texts became; apart from what embeds them, because it needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Embedded:
    """Vectors of N texts, in their order.

    Args:
        vectors: (N, D) float32.
        cut: indices of the texts that lost tokens, ascending.
    """

    vectors: np.ndarray
    cut: tuple[int, ...]
