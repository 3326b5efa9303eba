"""Scores of probabilities: AUROC, calibration error, Brier score. They read "scores", not chosen labels.

A row of scores that is not finite makes the score NaN: it is a fault of the model, and is to be seen.
Shapes: N examples, C labels or options, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtnlp.errors import MtnlpError, shown
from mtnlp.metrics.base import Metric, ratio, scored
from mtnlp.metrics.classification import ONE

BINS = 15
LABELLED = ("classify", "pair", "ordinal")  # kinds with the same labels in every example
BLOCK = 500  # resamples at a time: of 2,000 rows they fit a cache, which halves the time
NEAR = 1e-3  # how far from 1 a sum of probabilities may be, of bfloat16 too


def probabilities(scores: Sequence[float]) -> np.ndarray:
    """(C,) float64 probabilities, from probabilities or from log-likelihoods up to a constant.

    What is nowhere below 0 and sums to 1 is probabilities, and stays as it is: to divide by a sum that is 1
    up to rounding would part scores that are equal. Anything else is log-likelihoods: softmax.

    Raises:
        MtnlpError: no scores, or not a row of numbers.
    """
    row = np.asarray(scores)
    if row.ndim != 1 or not row.size or row.dtype.kind not in "iuf":
        raise MtnlpError(f"Expected one score per label or option of an example; got {shown(scores)}.")
    row = row.astype(np.float64)
    if row.min() >= 0 and abs(row.sum() - 1) <= NEAR:
        return row
    if not row.max() < np.inf or row.max() == -np.inf:  # NaN too
        return np.full(len(row), np.nan)
    likely = np.exp(row - row.max())
    return likely / likely.sum()


def _rows(scores: Sequence[Sequence[float]], references: Sequence[int], name: str) -> list[np.ndarray]:
    """(N,) probabilities of each example, whose true label or option is among them."""
    rows = [probabilities(row) for row in scores]
    for i, (row, true) in enumerate(zip(rows, references, strict=True)):
        if not 0 <= true < len(row):
            raise MtnlpError(f"{name}: example {i} has {len(row)} scores, but its answer is number {true}.")
    return rows


def _brier(
    scores: Sequence[Sequence[float]], references: Sequence[int], labels: Sequence[str] | None
) -> np.ndarray:
    """Brier 1950: sum over all labels of (probability - truth)^2, 0..2. Of two labels it is twice what some
    call by this name, who count label 1 only."""
    rows = _rows(scores, references, "brier")
    return scored([row @ row - 2 * row[true] + 1 for row, true in zip(rows, references, strict=True)])


def _ece_stats(
    scores: Sequence[Sequence[float]], references: Sequence[int], labels: Sequence[str] | None
) -> np.ndarray:
    """(N, 1 + BINS): 1, then in the bin (low, high] of the top probability: that, less 1 if it is right."""
    rows = _rows(scores, references, "ece")
    top = np.array([row.max() for row in rows])
    right = np.array([row.argmax() == true for row, true in zip(rows, references, strict=True)])
    own = np.searchsorted(np.linspace(0, 1, BINS + 1), top).clip(1, BINS)
    stats = np.zeros((len(rows), 1 + BINS))
    stats[:, 0] = 1
    stats[np.arange(len(rows)), own] = top - right
    return stats


def ece(stats: np.ndarray) -> float:
    """Expected calibration error (Naeini et al. 2015; Guo et al. 2017, eq. 3): the mean over examples of how
    far confidence and accuracy of their bin are apart."""
    n, *gaps = stats.sum(0)
    return float(np.abs(gaps).sum() / n)


def _auroc_stats(
    scores: Sequence[Sequence[float]], references: Sequence[int], labels: Sequence[str] | None
) -> np.ndarray:
    """(N, 2C) probabilities and truths of every label; of two labels (N, 2) those of label 1."""
    rows = _rows(scores, references, "auroc")
    table = _table(rows, labels)
    truth = np.arange(table.shape[1]) == np.asarray(references)[:, None]
    both = np.stack([table, truth], axis=1)
    return (both[:, :, 1:] if table.shape[1] == 2 else both).reshape(len(rows), -1)


def _set_auroc_stats(
    scores: Sequence[Sequence[float]], references: Sequence[Sequence[int]], labels: Sequence[str] | None
) -> np.ndarray:
    """(N, 2C) scores, as they are, and truths of every label."""
    table = _table([np.asarray(row, dtype=np.float64) for row in scores], labels)
    truth = np.zeros_like(table)
    for row, true in zip(truth, references, strict=True):
        if any(not 0 <= label < len(row) for label in true):
            raise MtnlpError(f"auroc: labels {tuple(true)} are not all within 0..{len(row) - 1}.")
        row[list(true)] = 1
    return np.hstack([table, truth])


def _table(rows: Sequence[np.ndarray], labels: Sequence[str] | None) -> np.ndarray:
    """(N, C), all rows being of one length, that of `labels` if there are some."""
    width = len(rows[0]) if labels is None else len(labels)
    for i, row in enumerate(rows):
        if len(row) != width:
            raise MtnlpError(
                f"auroc: example {i} has {len(row)} scores for {width} labels; give one for each."
            )
    return np.stack(rows)


def auroc(stats: np.ndarray) -> float:
    """How often a true example scores above a false one, ties counting half (Hanley and McNeil 1982).

    Mean over labels, each against the rest, that some examples have and some have not; 0.5 if there are none.
    """
    return float(_aurocs(stats, np.ones((1, len(stats)), dtype=np.int64))[0])


def _aurocs(stats: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(B,) `auroc` of rows that are taken (B, N) `counts` times."""
    if np.isnan(stats).any():
        return np.full(len(counts), np.nan)
    if len(counts) > BLOCK:
        parts = [_aurocs(stats, counts[i : i + BLOCK]) for i in range(0, len(counts), BLOCK)]
        return np.concatenate(parts)
    taken = np.ascontiguousarray(counts.T, dtype=np.float32)  # half the memory; exact up to 16 M rows
    total, there = np.zeros(len(counts)), np.zeros(len(counts))
    scores, truths = np.split(stats, 2, axis=1)
    for score, true in zip(scores.T, truths.T, strict=True):
        above, pairs = _pairs(score, true > 0, taken)
        total += np.divide(above, pairs, out=np.zeros_like(above), where=pairs > 0)
        there += pairs > 0
    return np.divide(total, there, out=np.full_like(total, 0.5), where=there > 0)


def _pairs(score: np.ndarray, true: np.ndarray, taken: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(B,) pairs of a true and a false row in which the true one scores above, ties counting half, and (B,)
    all pairs, of rows that are taken (N, B) times."""
    false = np.flatnonzero(~true)
    false = false[np.argsort(score[false])]
    first, last = (np.searchsorted(score[false], score[true], side) for side in ("left", "right"))
    # Of the false rows, what lies between two true ones is summed first: of many labels most rows are false.
    cuts, place = np.unique(np.concatenate([[0], first, last, [len(false)]]), return_inverse=True)
    below = np.zeros((len(cuts), taken.shape[1]))  # row i: how often the false rows before cut i are taken
    if len(false):
        np.cumsum(np.add.reduceat(taken[false], cuts[:-1], axis=0), axis=0, out=below[1:])
    first, last = place[1:-1].reshape(2, -1)
    ours, lower = taken[true].astype(np.float64), below[first]
    if (first != last).any():
        lower = (lower + below[last]) / 2
    return np.einsum("nb,nb->b", ours, lower), ours.sum(0) * below[-1]


METRICS = [
    Metric("auroc", _auroc_stats, auroc, LABELLED, additive=False, resample=_aurocs, reads="scores"),
    Metric(
        "auroc", _set_auroc_stats, auroc, ("multilabel",), additive=False, resample=_aurocs, reads="scores"
    ),
    Metric("brier", _brier, ratio, ONE, greater_is_better=False, reads="scores"),
    Metric("ece", _ece_stats, ece, ONE, greater_is_better=False, reads="scores"),
]
