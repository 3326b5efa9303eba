"""Scores of tag sequences: the share of right tags, and entities found whole (micro F1).

Source: entities as in the CoNLL-2003 scorer (Tjong Kim Sang and De Meulder 2003), read leniently: an I- tag
that continues nothing opens an entity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mtnlp.errors import MtnlpError
from mtnlp.metrics.base import Metric, ratio
from mtnlp.metrics.classification import check_lengths, flat, size


def entities(tags: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """(type, first token, last token) of every entity in BIO tags; a bare "B" or "I" has the type "_"."""
    start, kind = None, ""
    for position, tag in enumerate([*tags, "O"]):
        head, _, new = tag.partition("-")
        new = new or "_"
        if start is not None and (head != "I" or new != kind):
            yield kind, start, position - 1
            start = None
        if head != "O" and start is None:
            start, kind = position, new


def _token_stats(
    predictions: Sequence[Sequence[int]], references: Sequence[Sequence[int]], labels: Sequence[str] | None
) -> np.ndarray:
    """(N, 2): right tags and all tags."""
    check_lengths(predictions, references, "token_accuracy")
    (rows, predicted), (_, true) = flat(predictions), flat(references)
    size(labels, predicted, true, name="token_accuracy")
    right = np.bincount(rows, weights=predicted == true, minlength=len(references))
    return np.stack([right, np.bincount(rows, minlength=len(references))], axis=1).astype(np.float64)


def _span_stats(
    predictions: Sequence[Sequence[int]], references: Sequence[Sequence[int]], labels: Sequence[str] | None
) -> np.ndarray:
    """(N, 2): twice the entities found, and entities predicted plus entities there."""
    odd = [label for label in labels or ("none",) if label.partition("-")[0] not in ("B", "I", "O")]
    if odd:
        raise MtnlpError(
            f"span_micro_f1 reads the names of BIO labels (O, B-x, I-x); got {odd[0]}. "
            "Use token_accuracy or macro_f1 for plain tags."
        )
    check_lengths(predictions, references, "span_micro_f1")
    size(labels, flat(predictions)[1], flat(references)[1], name="span_micro_f1")
    stats = np.zeros((len(references), 2))
    for row, pair in enumerate(zip(predictions, references, strict=True)):
        found, there = (set(entities([labels[tag] for tag in tags])) for tags in pair)
        stats[row] = 2 * len(found & there), len(found) + len(there)
    return stats


METRICS = [
    Metric("token_accuracy", _token_stats, ratio, ("tag",)),
    Metric("span_micro_f1", _span_stats, ratio, ("tag",)),
]
