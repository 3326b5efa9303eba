"""How sure a score is, and a difference of two: bootstrap, McNemar's test, Holm's correction.

Every metric is resampled from the statistics of single examples: a resample is how often each example was
drawn, and the draws depend on the seed and the number of examples only, so that all metrics of a task, and
two models on the same rows, meet the same ones.

Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap" (percentiles, tests by centring);
McNemar 1947; Holm 1979.
Shapes: N examples, k statistics of each, B resamples, G clusters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import comb, sqrt
from statistics import NormalDist

import numpy as np

from mtnlp.errors import MtnlpError
from mtnlp.metrics.base import Metric, ratio

RESAMPLES, LEVEL, ALPHA, POWER, SEED = 10_000, 0.95, 0.05, 0.8, 0
CELLS = 4_000_000  # counts that are in memory at once


@dataclass(frozen=True)
class Interval:
    """A score, its standard error, and the ends of its interval."""

    value: float
    stderr: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """Second minus first. p: two-sided, of a difference as large as this if there were none."""

    p: float


def interval(
    metric: Metric,
    stats: np.ndarray,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    clusters: Sequence[int] | None = None,
) -> Interval:
    """The percentile bootstrap interval of a metric.

    Args:
        stats: (N, k) statistics of the examples, as `metric.stats` gives them.
        clusters: (N,) cluster of each example; whole clusters are drawn, since their examples (questions on
            one text, say) are not independent.
    """
    values = resampled(metric, [stats], resamples=resamples, seed=seed, clusters=clusters)[0]
    return Interval(float(metric.reduce(stats)), *_spread(values, level))


def paired(
    metric: Metric,
    first: np.ndarray,
    second: np.ndarray,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    clusters: Sequence[int] | None = None,
) -> Difference:
    """The difference of two models on the same examples, each resample being of both.

    p = (1 + number of resamples with |d_b - d| >= |d|) / (1 + B): how often chance moves the difference by as
    much as it is.

    Args:
        first, second: (N, k) statistics of the same N examples.

    Raises:
        MtnlpError: unequal numbers of examples.
    """
    if len(first) != len(second):
        raise MtnlpError(f"{metric.name}: {len(first)} and {len(second)} examples cannot be paired.")
    one, other = resampled(metric, [first, second], resamples=resamples, seed=seed, clusters=clusters)
    differences = other - one
    value = float(metric.reduce(second)) - float(metric.reduce(first))
    far = np.abs(differences - value) >= abs(value) - 1e-12
    return Difference(value, *_spread(differences, level), p=float((1 + far.sum()) / (1 + len(far))))


def resampled(
    metric: Metric,
    tables: Sequence[np.ndarray],
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    clusters: Sequence[int] | None = None,
) -> list[np.ndarray]:
    """For each (N, k) table of statistics, (B,) values of the metric on the same B resamples."""
    found: list[list[np.ndarray]] = [[] for _ in tables]
    for counts in _drawn(len(tables[0]), resamples, seed, clusters):
        for values, stats in zip(found, tables, strict=True):
            values.append(_values(metric, stats, counts))
    return [np.concatenate(values) for values in found]


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Exact two-sided p of McNemar's test: are those that only one of two models gets right as many?

    first, second: (N,) whether each example was right.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n = only_first + only_second
    tail = sum(comb(n, i) for i in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**n)


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in their order: the chance of any false find stays below alpha."""
    adjusted, highest = [0.0] * len(values), 0.0
    for done, i in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - done) * values[i]))
        adjusted[i] = highest
    return adjusted


def minimum_detectable_effect(stderr: float, *, alpha: float = ALPHA, power: float = POWER) -> float:
    """The true difference that is found with this power, given the standard error of a measured one."""
    normal = NormalDist()
    return (normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)) * stderr


def effect_of(n: int, *, share: float = 0.5, alpha: float = ALPHA, power: float = POWER) -> float:
    """The same for shares of right answers of n examples each, where no difference was measured yet.

    share: what both lie near; models that err independently are assumed, the worst case for pairs.
    """
    return minimum_detectable_effect(sqrt(2 * share * (1 - share) / n), alpha=alpha, power=power)


def _drawn(n: int, resamples: int, seed: int, clusters: Sequence[int] | None) -> Iterator[np.ndarray]:
    """(b, N) counts, chunk by chunk: how often each example stands in each resample."""
    draw = np.random.Generator(np.random.Philox(key=seed))
    own = np.arange(n) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    units = int(own.max()) + 1
    chunk = max(1, CELLS // n)
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        chosen = draw.integers(0, units, (rows, units), dtype=np.int32) + (np.arange(rows) * units)[:, None]
        counts = np.bincount(chosen.ravel(), minlength=rows * units).reshape(rows, units)
        yield counts if clusters is None else counts[:, own]


def _values(metric: Metric, stats: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(b,) the metric of each resample."""
    if metric.resample is not None:
        return metric.resample(stats, counts)
    if metric.additive:
        sums = counts.astype(np.float64) @ stats
        if metric.reduce is ratio:  # the most common one, of all at once
            return np.divide(sums[:, 0], sums[:, 1], out=np.zeros(len(sums)), where=sums[:, 1] != 0)
        return np.array([metric.reduce(row[None]) for row in sums])
    order = np.arange(len(stats))
    return np.array([metric.reduce(stats[np.repeat(order, own)]) for own in counts])


def _spread(values: np.ndarray, level: float) -> tuple[float, float, float]:
    """Standard deviation and percentiles."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0, float(low), float(high)
