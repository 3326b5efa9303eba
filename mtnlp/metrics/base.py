"""The face of a metric: statistics of every example, then one number from their sum.

Keeping the statistics of single examples means that one pass over the predictions serves the score, its
confidence interval and the comparison of two runs. Shapes: N examples, C labels, k statistics per example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtnlp.errors import MtnlpError

Stats = Callable[[Sequence[Any], Sequence[Any], "Sequence[str] | None"], np.ndarray]


@dataclass(frozen=True)
class Metric:
    """One score. `metric(predictions, references, labels)` is its value.

    Args:
        name: the name a task or recipe gives.
        stats: (predictions, references, labels) -> (N, k) float64, row i from example i alone.
        reduce: (N, k) -> float; rows may be drawn again or left out, as a bootstrap does.
        kinds: the kinds of task it scores.
        greater_is_better: False for errors.
        additive: `reduce` depends on the column sums only, so reduce(s) == reduce(s.sum(0, keepdims=True)).
        resample: ((N, k), counts (B, N)) -> (B,) what `reduce` gives with row i taken counts[b, i] times, for
            all b at once; None = `reduce` is called for each b.
        reads: what a prediction is. "value": the canonical value; "scores": the numbers behind it, one for
            each label or option (probabilities, or log-likelihoods up to a constant).
    """

    name: str
    stats: Stats
    reduce: Callable[[np.ndarray], float]
    kinds: tuple[str, ...]
    greater_is_better: bool = True
    additive: bool = True
    resample: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    reads: str = "value"

    @property
    def slow(self) -> bool:
        """Whether every resample takes a call over all rows, as of a foreign metric: draw fewer of them."""
        return self.resample is None and not self.additive

    def __call__(
        self, predictions: Sequence[Any], references: Sequence[Any], labels: Sequence[str] | None = None
    ) -> float:
        """The score.

        Args:
            predictions: (N,) canonical values: int | float | tuple of int | str.
            references: (N,) targets of Examples, as the table in mtnlp.tasks.spec says.
            labels: label names in the order of their ids; None = ids up to the largest one seen.

        Raises:
            MtnlpError: no examples, unequal numbers, or values this metric cannot read.
        """
        if len(predictions) != len(references) or not len(references):
            raise MtnlpError(
                f"{self.name}: {len(predictions)} predictions for {len(references)} references; "
                "give one per example and at least one example."
            )
        return float(self.reduce(self.stats(predictions, references, labels)))


def ratio(stats: np.ndarray) -> float:
    """(N, 2) numerators and denominators -> sum over sum; 0.0 when the denominators are all zero."""
    top, bottom = stats[:, :2].sum(0)
    return float(top / bottom) if bottom else 0.0


def scored(values: Sequence[float]) -> np.ndarray:
    """(N,) scores of examples -> (N, 2) statistics whose `ratio` is their mean."""
    column = np.asarray(values, dtype=np.float64)
    return np.stack([column, np.ones_like(column)], axis=1)
