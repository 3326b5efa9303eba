"""How likely a model finds texts, of the kind "text": the lower, the less it is surprised.

A prediction is (log-likelihood of the whole text in nats, its tokens, words and bytes); references are not
read. Numbers of tokens depend on the tokenizer: compare models by words or bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import log

import numpy as np

from mtnlp.errors import MtnlpError, shown
from mtnlp.metrics.base import Metric

PARTS = ("log-likelihood", "tokens", "words", "bytes")
TOKENS, WORDS, BYTES = 1, 2, 3


def _stats(
    unit: int,
    predictions: Sequence[Sequence[float]],
    references: Sequence[None],
    labels: Sequence[str] | None,
) -> np.ndarray:
    """(N, 2): surprise in nats, and units."""
    for row, said in enumerate(predictions):
        if len(said) != len(PARTS):
            raise MtnlpError(f"Text {row}: expected ({', '.join(PARTS)}); got {shown(said)}.")
    table = np.array(predictions, dtype=np.float64)
    return np.stack([-table[:, 0], table[:, unit]], axis=1)


def _per_unit(stats: np.ndarray) -> float:
    """Nats per unit, of all texts together; NaN if they have none."""
    surprise, units = stats.sum(0)
    return float(surprise / units) if units else float("nan")


def perplexity(stats: np.ndarray) -> float:
    """e^(nats per unit): among how many equally likely units the model in effect has to choose."""
    with np.errstate(over="ignore"):
        return float(np.exp(_per_unit(stats)))


def bits(stats: np.ndarray) -> float:
    """Bits per unit: what the texts would take, compressed by the model."""
    return _per_unit(stats) / log(2)


def _metric(name: str, unit: int, *, reduce: Callable[[np.ndarray], float] = perplexity) -> Metric:
    return Metric(name, partial(_stats, unit), reduce, ("text",), greater_is_better=False)


METRICS = [
    _metric("perplexity", TOKENS),
    _metric("word_perplexity", WORDS),
    _metric("byte_perplexity", BYTES),
    _metric("bits_per_byte", BYTES, reduce=bits),
]
