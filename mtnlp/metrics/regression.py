"""Scores of numbers: correlations and errors. Ranks of an ordinal task count as numbers too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtnlp.errors import MtnlpError
from mtnlp.metrics.base import Metric, ratio, scored

KINDS = ("regress", "ordinal")


def _columns(
    predictions: Sequence[float], references: Sequence[float], labels: Sequence[str] | None = None
) -> np.ndarray:
    """(N, 2): prediction and reference."""
    stats = np.array([predictions, references], dtype=np.float64).T
    bad = np.flatnonzero(~np.isfinite(stats).all(1))
    if bad.size:
        raise MtnlpError(
            f"Example {bad[0]}: predicted {stats[bad[0], 0]}, true {stats[bad[0], 1]}; "
            "scores of numbers need finite values."
        )
    return stats


def pearson(stats: np.ndarray) -> float:
    """Correlation of the two columns; 0.0 when one of them is constant."""
    if (np.ptp(stats, axis=0) == 0).any():  # asked of the values: their rounded mean need not equal them
        return 0.0
    # Scaled before squaring, so that neither tiny nor huge values leave the range of floats.
    centred = stats - stats.mean(0)
    centred /= np.abs(centred).max(0)
    p, t = centred.T
    return float(np.clip(p @ t / np.sqrt((p @ p) * (t @ t)), -1.0, 1.0))


def ranks(values: np.ndarray) -> np.ndarray:
    """(N,) ranks from 1; equal values share the mean of their places."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def spearman(stats: np.ndarray) -> float:
    """Pearson's correlation of the ranks."""
    return pearson(np.stack([ranks(column) for column in stats.T], axis=1))


def _squared(
    predictions: Sequence[float], references: Sequence[float], labels: Sequence[str] | None = None
) -> np.ndarray:
    return scored(np.subtract(*_columns(predictions, references).T) ** 2)


def _absolute(
    predictions: Sequence[float], references: Sequence[float], labels: Sequence[str] | None = None
) -> np.ndarray:
    return scored(np.abs(np.subtract(*_columns(predictions, references).T)))


METRICS = [
    Metric("pearson", _columns, pearson, KINDS, additive=False),
    Metric("spearman", _columns, spearman, KINDS, additive=False),
    Metric("mse", _squared, ratio, KINDS, greater_is_better=False),
    Metric("mae", _absolute, ratio, KINDS, greater_is_better=False),
]
