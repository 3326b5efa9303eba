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


def _pearsons(stats: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(B,) `pearson` of rows that are taken (B, N) `counts` times: from their weighted moments."""
    centred = stats - stats.mean(0)
    span = np.abs(centred).max(0)
    p, t = (centred / np.where(span > 0, span, 1)).T
    moments = np.stack([np.ones_like(p), p, t, p * p, t * t, p * t], axis=1)
    n, sp, st, pp, tt, pt = (counts.astype(np.float64) @ moments).T
    vp, vt = n * pp - sp * sp, n * tt - st * st
    there = (vp > 1e-12 * n * pp) & (vt > 1e-12 * n * tt)  # what rounding leaves of a constant is none
    spread = np.sqrt(np.abs(vp * vt))
    return np.clip(np.divide(n * pt - sp * st, spread, out=np.zeros(len(n)), where=there), -1, 1)


def _spearmans(stats: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(B,) `spearman` of rows that are taken (B, N) `counts` times.

    Ranks come from running sums of the counts, and their variance from the sizes of ties: with c rows of one
    value among n, it is (n^3 - sum of c^3) / 12.
    """
    taken = np.ascontiguousarray(counts.T, dtype=np.float64)
    (p, p3), (t, t3) = (_middled(column, taken) for column in stats.T)
    n3 = taken.sum(0) ** 3
    p *= taken
    p *= t
    spread = np.sqrt((n3 - p3) * (n3 - t3))
    return np.divide(3 * p.sum(0), spread, out=np.zeros(len(spread)), where=spread > 0)


def _middled(column: np.ndarray, taken: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, B) twice the rank less n + 1, and (B,) the sum of cubes of how many rows share a value."""
    values, place = np.unique(column, return_inverse=True)
    order = np.argsort(place, kind="stable")
    together = taken[order]
    if len(values) < len(column):
        starts = np.searchsorted(place[order], np.arange(len(values)))
        together = np.add.reduceat(together, starts, axis=0)
    up = np.cumsum(together, axis=0)
    n = up[-1].copy()
    up *= 2
    up -= together
    up -= n
    return up[place], np.einsum("nb,nb,nb->b", together, together, together)


def _squared(
    predictions: Sequence[float], references: Sequence[float], labels: Sequence[str] | None = None
) -> np.ndarray:
    return scored(np.subtract(*_columns(predictions, references).T) ** 2)


def _absolute(
    predictions: Sequence[float], references: Sequence[float], labels: Sequence[str] | None = None
) -> np.ndarray:
    return scored(np.abs(np.subtract(*_columns(predictions, references).T)))


METRICS = [
    Metric("pearson", _columns, pearson, KINDS, additive=False, resample=_pearsons),
    Metric("spearman", _columns, spearman, KINDS, additive=False, resample=_spearmans),
    Metric("mse", _squared, ratio, KINDS, greater_is_better=False),
    Metric("mae", _absolute, ratio, KINDS, greater_is_better=False),
]
