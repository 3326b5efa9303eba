"""Scores of ranked documents, of the kind "retrieve", as trec_eval computes them (mean over queries).

A prediction is a tuple of document ids, best first; a reference a mapping of document id to gain, above 0 =
relevant; documents without one are not. A query without a relevant document scores 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import log2

import numpy as np

from mtnlp.errors import MtnlpError, shown
from mtnlp.metrics.base import Metric, ratio, scored

Ranking = Sequence[str]
Gains = Mapping[str, float]


def ndcg(ranking: Ranking, gains: Gains, k: int) -> float:
    """Gains of the first k, each over log2(1 + rank), as a share of the best order's (Jarvelin and Kekalainen
    2002; gains enter as they are, not as 2^gain - 1)."""
    ideal = sorted((gain for gain in gains.values() if gain > 0), reverse=True)
    best = _discounted(ideal[:k])
    return _discounted([max(gains.get(name, 0), 0) for name in ranking[:k]]) / best if best else 0.0


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain / log2(rank + 1) for rank, gain in enumerate(gains, 1))


def _hits(ranking: Ranking, gains: Gains) -> list[int]:
    """Ranks, from 1, of the relevant documents."""
    return [rank for rank, name in enumerate(ranking, 1) if gains.get(name, 0) > 0]


def _relevant(gains: Gains) -> int:
    return sum(gain > 0 for gain in gains.values())


def recall(ranking: Ranking, gains: Gains, k: int) -> float:
    """Share of the relevant documents that are among the first k."""
    there = _relevant(gains)
    return len(_hits(ranking[:k], gains)) / there if there else 0.0


def reciprocal_rank(ranking: Ranking, gains: Gains, k: int) -> float:
    """1 / rank of the first relevant document, 0 if it is not among the first k."""
    hits = _hits(ranking[:k], gains)
    return 1 / hits[0] if hits else 0.0


def r_precision(ranking: Ranking, gains: Gains) -> float:
    """Share of relevant documents among as many of the first as there are."""
    there = _relevant(gains)
    return len(_hits(ranking[:there], gains)) / there if there else 0.0


def average_precision(ranking: Ranking, gains: Gains) -> float:
    """Mean over all relevant documents of the precision at their rank, 0 where they are not found."""
    there = _relevant(gains)
    return sum(n / rank for n, rank in enumerate(_hits(ranking, gains), 1)) / there if there else 0.0


def _stats(
    score: Callable[[Ranking, Gains], float],
    predictions: Sequence[Ranking],
    references: Sequence[Gains],
    labels: Sequence[str] | None,
) -> np.ndarray:
    for row, (ranking, gains) in enumerate(zip(predictions, references, strict=True)):
        if isinstance(ranking, str) or not isinstance(gains, Mapping):
            raise MtnlpError(
                f"Query {row}: expected ranked document ids and a mapping of document id to gain; got "
                f"{shown(ranking)} and {shown(gains)}."
            )
        if len(set(ranking)) < len(ranking):
            twice = next(name for n, name in enumerate(ranking) if name in ranking[:n])
            raise MtnlpError(f"Query {row}: the document {shown(twice)} is ranked twice; rank it once.")
    return scored([score(ranking, gains) for ranking, gains in zip(predictions, references, strict=True)])


def _metric(name: str, score: Callable[[Ranking, Gains], float]) -> Metric:
    return Metric(name, partial(_stats, score), ratio, ("retrieve",))


CUT = {"ndcg": ndcg, "recall": recall, "mrr": reciprocal_rank}  # those of the first k documents


def at(name: str) -> Metric | None:
    """The metric of a name such as "ndcg_5", for any number of documents; None = it is no such name."""
    found = re.fullmatch(r"(\w+)_([1-9]\d*)", name, re.ASCII)
    if not found or found[1] not in CUT:
        return None
    return _metric(name, partial(CUT[found[1]], k=int(found[2])))


METRICS = [
    *map(at, ("ndcg_10", "recall_10", "recall_100", "mrr_10")),
    _metric("r_precision", r_precision),
    _metric("map", average_precision),
]
