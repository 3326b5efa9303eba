"""Scores of chosen labels: classify, pair, ordinal, choose, multilabel, and the tags of sequences one by one.

All F1 scores, balanced accuracy and Matthews' coefficient are functions of three counts per label, which add
up over examples: how often it was right (tp), predicted, and true. Averages leave out labels that were
neither predicted nor true, as scikit-learn does: a small sample is not punished for labels it does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain

import numpy as np

from mtnlp.errors import MtnlpError, shown
from mtnlp.metrics.base import Metric, Stats, ratio, scored

OfSums = Callable[[np.ndarray], np.ndarray]

ONE = ("classify", "pair", "ordinal", "choose")  # kinds whose answer is one id


def ids(values: Sequence[int], name: str) -> np.ndarray:
    """(N,) int64. MtnlpError for anything that is not one whole number per example."""
    array = np.asarray(values) if not any(isinstance(v, (tuple, list)) for v in values) else None
    if array is None or array.ndim != 1 or array.dtype.kind not in "iub":
        raise MtnlpError(
            f"{name} reads one label id per example here; got {shown(values[0])} first. "
            f"Say what tuples are: metrics.get({name!r}, 'tag') or metrics.get({name!r}, 'multilabel')."
        )
    return array.astype(np.int64)


def size(labels: Sequence[str] | None, *columns: np.ndarray, name: str) -> int:
    """Number of labels C; MtnlpError when an id stands outside the list."""
    low = min((int(c.min()) for c in columns if c.size), default=0)
    high = max((int(c.max()) for c in columns if c.size), default=0)
    total = len(labels) if labels is not None else high + 1
    if low < 0 or high >= total:
        raise MtnlpError(f"{name}: label id {low if low < 0 else high} is outside 0..{total - 1}.")
    return total


def check_lengths(
    predictions: Sequence[Sequence[int]], references: Sequence[Sequence[int]], name: str
) -> None:
    """MtnlpError naming the first example whose two sequences differ in length."""
    for row, (predicted, true) in enumerate(zip(predictions, references, strict=True)):
        if len(predicted) != len(true):
            raise MtnlpError(
                f"{name}: example {row} has {len(true)} tags but {len(predicted)} were predicted."
            )


def count(rows: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(N, C) float64: how often label `values[j]` stands in row `rows[j]`."""
    return (
        np.bincount(rows * shape[1] + values, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)
    )


def counts(rows: np.ndarray, predicted: np.ndarray, true: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(N, 3C): tp, predicted, true of every label, from aligned answers that stand in rows `rows`."""
    hit = predicted == true
    parts = (rows[hit], true[hit]), (rows, predicted), (rows, true)
    return np.hstack([count(*part, shape) for part in parts])


def one_counts(
    predictions: Sequence[int], references: Sequence[int], labels: Sequence[str] | None, *, name: str
) -> np.ndarray:
    """(N, 3C): tp, predicted, true of every label; one answer per example."""
    predicted, true = ids(predictions, name), ids(references, name)
    shape = len(true), size(labels, predicted, true, name=name)
    return counts(np.arange(len(true)), predicted, true, shape)


def flat(values: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Row of every value, and all values, each (total,) int64."""
    rows = np.repeat(np.arange(len(values)), [len(v) for v in values])
    return rows, np.fromiter(chain.from_iterable(values), dtype=np.int64, count=len(rows))


def tag_counts(
    predictions: Sequence[Sequence[int]],
    references: Sequence[Sequence[int]],
    labels: Sequence[str] | None,
    *,
    name: str,
) -> np.ndarray:
    """(N, 3C): tp, predicted, true of every tag, position by position."""
    check_lengths(predictions, references, name)
    (rows, predicted), (_, true) = flat(predictions), flat(references)
    shape = len(references), size(labels, predicted, true, name=name)
    return counts(rows, predicted, true, shape)


def set_counts(
    predictions: Sequence[Sequence[int]],
    references: Sequence[Sequence[int]],
    labels: Sequence[str] | None,
    *,
    name: str,
) -> np.ndarray:
    """(N, 3C): tp, predicted, true of every label; any number of labels per example."""
    predicted, true = flat([sorted(set(p)) for p in predictions]), flat([sorted(set(r)) for r in references])
    shape = len(references), size(labels, predicted[1], true[1], name=name)
    predicted_NC, true_NC = count(*predicted, shape), count(*true, shape)
    return np.hstack([predicted_NC * true_NC, predicted_NC, true_NC])


# Scores of B sums of statistics at once, (B, k) -> (B,); resamples are thousands of sums.


def _f1_per_label(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(B, C) F1, 0 for labels that were neither predicted nor true, and (B, C) how often each was true."""
    tp, predicted, true = _per_label(sums)
    return _over(2 * tp, predicted + true), true


def _macro_f1(sums: np.ndarray) -> np.ndarray:
    _, predicted, true = _per_label(sums)
    return _over(_f1_per_label(sums)[0].sum(1), (predicted + true > 0).sum(1))


def _weighted_f1(sums: np.ndarray) -> np.ndarray:
    f1, true = _f1_per_label(sums)
    return _over((f1 * true).sum(1), true.sum(1))


def _micro_f1(sums: np.ndarray) -> np.ndarray:
    tp, predicted, true = (own.sum(1) for own in _per_label(sums))
    return _over(2 * tp, predicted + true)


def _balanced_accuracy(sums: np.ndarray) -> np.ndarray:
    tp, _, true = _per_label(sums)
    return _over(_over(tp, true).sum(1), (true > 0).sum(1))


def _matthews(sums: np.ndarray) -> np.ndarray:
    """Gorodkin's R_K, which is Matthews' coefficient for two labels; 0.0 when either side is constant."""
    tp, predicted, true = _per_label(sums)
    n = true.sum(1)
    spread = (n * n - (predicted * predicted).sum(1)) * (n * n - (true * true).sum(1))
    return _over(tp.sum(1) * n - (predicted * true).sum(1), np.sqrt(np.maximum(spread, 0)))


def _quadratic_kappa(sums: np.ndarray) -> np.ndarray:
    """Cohen's kappa with squared distances (1968): 1 - observed / expected by chance; 0.0 without any chance.

    The chance term pairs every prediction with every truth, so its sum needs only the moments.
    """
    n, p, t, pp, tt, pt = sums.T
    chance = n * (pp + tt) - 2 * p * t
    return np.where(chance != 0, 1 - _over(n * (pp + tt - 2 * pt), chance), 0.0)


def _per_label(sums: np.ndarray) -> np.ndarray:
    """(3, B, C): tp, predicted, true."""
    return sums.reshape(len(sums), 3, -1).transpose(1, 0, 2)


def _over(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """top / bottom, 0 where bottom is 0."""
    return np.divide(top, bottom, out=np.zeros(np.shape(top)), where=bottom != 0)


def per_label(stats: np.ndarray, labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """Precision, recall and F1 of every label, and how often it was true ("count").

    What a label that was never predicted or never true leaves undefined is 0.0, as in scikit-learn.

    Args:
        stats: (N, 3C) statistics of macro_f1, micro_f1 or weighted_f1, of any kind of task.
        labels: (C,) names in the order of their ids.

    Raises:
        MtnlpError: statistics of another metric, or of another number of labels.
    """
    if stats.shape[1] != 3 * len(labels):
        raise MtnlpError(
            f"{len(labels)} labels have {3 * len(labels)} statistics per example, but there are "
            f"{stats.shape[1]}; give those of macro_f1 and the labels they were made with."
        )
    found = {}
    for label, tp, predicted, true in zip(labels, *stats.sum(0).reshape(3, -1), strict=True):
        shares = {"precision": (tp, predicted), "recall": (tp, true), "f1": (2 * tp, predicted + true)}
        values = {name: float(top / bottom) if bottom else 0.0 for name, (top, bottom) in shares.items()}
        found[label] = {**values, "count": float(true)}
    return found


def _binary(
    predictions: Sequence[int], references: Sequence[int], labels: Sequence[str] | None
) -> np.ndarray:
    """(N, 2): 2 tp and predicted + true of the last of two labels."""
    counts = one_counts(predictions, references, labels if labels is not None else ("0", "1"), name="f1")
    if counts.shape[1] != 6:
        raise MtnlpError(
            f"f1 is the score of label 1 of two, but there are {counts.shape[1] // 3} labels. "
            "Use macro_f1, micro_f1 or weighted_f1."
        )
    return np.stack([2 * counts[:, 1], counts[:, 3] + counts[:, 5]], axis=1)


def _accuracy(
    predictions: Sequence[int], references: Sequence[int], labels: Sequence[str] | None
) -> np.ndarray:
    return scored(ids(predictions, "accuracy") == ids(references, "accuracy"))


def _subset_accuracy(
    predictions: Sequence[Sequence[int]], references: Sequence[Sequence[int]], labels: Sequence[str] | None
) -> np.ndarray:
    return scored([set(p) == set(r) for p, r in zip(predictions, references, strict=True)])


def _kappa_stats(
    predictions: Sequence[int], references: Sequence[int], labels: Sequence[str] | None
) -> np.ndarray:
    """(N, 6): 1 and the moments p, t, p^2, t^2, p t of predicted and true rank."""
    p, t = (ids(v, "quadratic_kappa").astype(np.float64) for v in (predictions, references))
    return np.stack([np.ones_like(p), p, t, p * p, t * t, p * t], axis=1)


def _metric(name: str, stats: Stats, of_sums: OfSums, kinds: tuple[str, ...]) -> Metric:
    return Metric(name, stats, partial(_whole, of_sums), kinds, resample=partial(_resampled, of_sums))


def _whole(of_sums: OfSums, stats: np.ndarray) -> float:
    return float(of_sums(stats.sum(0, keepdims=True))[0])


def _resampled(of_sums: OfSums, stats: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return of_sums(counts.astype(np.float64) @ stats)


def _three_ways(name: str, of_sums: OfSums) -> list[Metric]:
    ways: list[tuple[Stats, tuple[str, ...]]] = [
        (partial(one_counts, name=name), ONE),
        (partial(tag_counts, name=name), ("tag",)),
        (partial(set_counts, name=name), ("multilabel",)),
    ]
    return [_metric(name, stats, of_sums, kinds) for stats, kinds in ways]


METRICS = [
    Metric("accuracy", _accuracy, ratio, ONE),
    _metric("balanced_accuracy", partial(one_counts, name="balanced_accuracy"), _balanced_accuracy, ONE),
    Metric("f1", _binary, ratio, ONE),
    *_three_ways("macro_f1", _macro_f1),
    *_three_ways("micro_f1", _micro_f1),
    *_three_ways("weighted_f1", _weighted_f1),
    _metric("matthews", partial(one_counts, name="matthews"), _matthews, ONE),
    _metric("quadratic_kappa", _kappa_stats, _quadratic_kappa, ("ordinal",)),
    Metric("subset_accuracy", _subset_accuracy, ratio, ("multilabel",)),
]
