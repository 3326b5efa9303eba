"""How sure a score is, and a difference of two: bootstrap, McNemar's test, Holm's correction.

Every metric is resampled from the statistics of single examples: a resample is how often each example was
drawn. What is drawn depends on the seed and on these statistics alone, not on what was asked before, nor by
how many processes; two models on the same rows meet the same draws.

Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap" (percentiles: 13.3; tests by centring:
16.4); McNemar 1947; Holm 1979; least effects: Cohen 1988, "Statistical Power Analysis", 2.
Shapes: N examples, k statistics of each, G clusters, U units that are drawn, B resamples, b of them at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np

from mtnlp.errors import MtnlpError
from mtnlp.metrics.base import Metric, ratio

RESAMPLES, LEVEL, ALPHA, POWER, SEED = 10_000, 0.95, 0.05, 0.8, 0
CELLS = 300_000  # counts that are made at once: 2.4 MB, so that they stay in the cache
EQUAL = 10  # units to a kind from which on counting kinds is faster than drawing units


@dataclass(frozen=True)
class Interval:
    """A score, its standard error, and the ends of its interval, all in the unit of the metric."""

    value: float
    stderr: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Second minus first. p: two-sided, of a difference as large as this if there were none."""

    value: float
    stderr: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class SeedDifference(Difference):
    """A difference of means over seeds. rows, seeds: the parts of the standard error that are due to which
    rows and which seeds there happened to be (0 with one seed); freedom: degrees of freedom of their sum."""

    rows: float
    seeds: float
    freedom: float


def interval(
    metric: Metric,
    stats: np.ndarray,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    clusters: Sequence[int] | None = None,
) -> Interval:
    """The percentile bootstrap interval of a metric. Statistics that are NaN make it NaN.

    Args:
        stats: (N, k) statistics of the examples, as `metric.stats` gives them.
        level: share of data sets whose interval holds the true score.
        clusters: (N,) cluster of each example; whole clusters are drawn, since their examples (questions on
            one text, say) are not independent.

    Raises:
        MtnlpError: no examples, not one cluster for each, or a useless level or number of resamples.
    """
    (values,) = resampled(metric, [stats], resamples=resamples, seed=seed, clusters=clusters)
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
    much as it is. It is never 0, and 1 for a difference that is NaN.

    Args:
        first, second: (N, k) statistics of the same N examples.

    Raises:
        MtnlpError: as `interval`, or unequal numbers of examples.
    """
    if len(first) != len(second):
        raise MtnlpError(
            f"{metric.name}: {len(first)} and {len(second)} examples cannot be paired; "
            "give both models the same rows."
        )
    one, other = resampled(metric, [first, second], resamples=resamples, seed=seed, clusters=clusters)
    value = float(metric.reduce(second)) - float(metric.reduce(first))
    nearer = np.abs(other - one - value) < abs(value) - 1e-12  # equal up to rounding is not nearer
    p = float((1 + (~nearer).sum()) / (1 + len(nearer)))
    return Difference(value, *_spread(other - one, level), p=p)


def paired_over_seeds(
    metric: Metric,
    firsts: Sequence[np.ndarray],
    seconds: Sequence[np.ndarray],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    clusters: Sequence[int] | None = None,
) -> SeedDifference:
    """The difference of two models that were trained with S seeds each, on the same examples.

    The value is the difference of their means over seeds. Its variance is the sum of that over resamples of
    the rows, each resample being of all 2 S models, and of each model's own over seeds, by S: what other
    seeds would have given. It is taken as that of a Student's t with the degrees of freedom of Satterthwaite
    1946: about N - 1 where rows decide, 2 (S - 1) where seeds do. Equal seeds are not taken as pairs, which
    would halve these. What seeds and rows do together is in both parts, so that intervals are rather too wide
    than too narrow (Owen 2007, "The pigeonhole bootstrap"). Why seeds must count: Bouthillier et al. 2021,
    arXiv:2103.03098.

    Args:
        firsts, seconds: S tables each, (N, k) statistics of the same N examples,

    Raises:
        MtnlpError: as `interval`, or unequal numbers of seeds or examples.
    """
    S, sizes = len(firsts), {len(stats) for stats in (*firsts, *seconds)}
    if not S or len(seconds) != S or len(sizes) != 1:
        raise MtnlpError(f"{metric.name}: two models are compared over the same seeds and the same examples.")
    values = resampled(metric, [*firsts, *seconds], resamples=resamples, seed=seed, clusters=clusters)
    means = np.mean(values[S:], axis=0) - np.mean(values[:S], axis=0)
    one, other = (np.array([metric.reduce(stats) for stats in tables]) for tables in (firsts, seconds))
    value, rows = float(other.mean() - one.mean()), float(means.var(ddof=1))
    seeds = [float(own.var(ddof=1)) / S if S > 1 else 0.0 for own in (one, other)]
    drawn = len(set(clusters)) if clusters is not None else sizes.pop()
    freedom = _freedom((rows, drawn - 1), *((own, S - 1) for own in seeds))
    stderr = sqrt(rows + sum(seeds))
    half, p = student(freedom, level) * stderr, 1.0
    if abs(value) > 1e-12:  # else equal up to rounding
        p = max(1 / (1 + resamples), student_p(value / stderr, freedom) if stderr else 0.0)
    return SeedDifference(value, stderr, value - half, value + half, p, sqrt(rows), sqrt(sum(seeds)), freedom)


def _freedom(*parts: tuple[float, int]) -> float:
    """Of a sum of variances, each with its degrees of freedom: Satterthwaite 1946; 1 where none varies."""
    below = sum(variance**2 / max(1, freedom) for variance, freedom in parts)
    return max(1.0, sum(variance for variance, _ in parts) ** 2 / below) if below else 1.0


def student(freedom: float, level: float) -> float:
    """t such that a Student's t lies between -t and t in this share of cases."""
    angles, within = _student(freedom)
    return sqrt(freedom) * float(np.tan(np.interp(level, within, angles)))


def student_p(t: float, freedom: float) -> float:
    """Two-sided p of a Student's t."""
    angles, within = _student(freedom)
    return float(1 - np.interp(np.arctan(abs(t) / sqrt(freedom)), angles, within))


def _student(freedom: float) -> tuple[np.ndarray, np.ndarray]:
    """Angles a from 0 to a right one, and P(|T| < sqrt(freedom) tan a), the share of cos^(freedom - 1) up to
    a; with it there is no need of scipy. The grid is finest at 0, where much freedom puts all of it."""
    angles = np.linspace(0, 1, 20_001) ** 2 * (np.pi / 2)
    heights = np.cos(angles[:-1]) ** (freedom - 1)
    heights = np.append(heights, 1.0 if freedom == 1 else 0.0)  # cos is 0 there, but for rounding
    areas = np.diff(angles) * (heights[1:] + heights[:-1]) / 2
    within = np.append(0.0, np.cumsum(areas))
    return angles, within / within[-1]


def resampled(
    metric: Metric,
    tables: Sequence[np.ndarray],
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    clusters: Sequence[int] | None = None,
) -> list[np.ndarray]:
    """For each (N, k) table of statistics, (B,) values of the metric on the same B resamples."""
    _check(metric, len(tables[0]), resamples, clusters)
    own: np.ndarray | slice = slice(None)  # unit of each example
    if clusters is not None:
        own = np.unique(np.asarray(clusters), return_inverse=True)[1]
        equal = np.ones(own.max() + 1, dtype=np.int64)
    if clusters is not None and metric.additive:  # a cluster is as good as one example with its sum
        tables, own = [_summed(stats, own) for stats in tables], slice(None)
    if isinstance(own, slice):
        tables, equal = _kinds(tables)
    found: list[list[np.ndarray]] = [[] for _ in tables]
    for counts in _drawn(equal, resamples, seed):
        for values, stats in zip(found, tables, strict=True):
            values.append(_values(metric, stats, counts[:, own]))
    return [np.concatenate(values) for values in found]


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Exact two-sided p of McNemar's test: are those that only one of two models gets right as many?

    Binomial: under no difference each of the n examples on which they differ is a fair coin.

    Args:
        first, second: (N,) whether each example was right.

    Raises:
        MtnlpError: unequal numbers of examples.
    """
    one, other = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if one.shape != other.shape:
        raise MtnlpError(f"McNemar's test pairs the same rows; found {one.size} and {other.size}.")
    n, fewer = int((one ^ other).sum()), int(min((one & ~other).sum(), (other & ~one).sum()))
    ways, tail = 1, 0  # n over i, exact: floats would lose what large numbers of them are about
    for i in range(fewer + 1):
        tail += ways
        ways = ways * (n - i) // (i + 1)
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
    """The same for shares of right answers among n examples, before any difference was measured.

    share: what both models lie near; their errors are taken as independent. Models that fail on the same
    examples find smaller differences than this.
    """
    return minimum_detectable_effect(sqrt(2 * share * (1 - share) / n), alpha=alpha, power=power)


def verdict(
    difference: Difference,
    adjusted: float,
    *,
    greater_is_better: bool = True,
    matters: float | None = None,
    alpha: float = ALPHA,
) -> str:
    """What can be said of the second model: "better", "worse", "unclear" or "too few rows".

    Better and worse need both the corrected p below alpha and an interval on one side of zero. Of the rest,
    "too few rows" are those whose least detectable effect is larger than a difference that matters.

    Args:
        adjusted: p after Holm's correction.
        matters: least difference that the reader cares about, in the unit of the metric; None = not known.
    """
    if adjusted < alpha and (difference.low > 0 or difference.high < 0):
        return "better" if (difference.value > 0) == greater_is_better else "worse"
    least = minimum_detectable_effect(difference.stderr, alpha=alpha)
    return "too few rows" if matters is not None and least > matters else "unclear"


def mean_stderr(stderrs: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """Standard error of a weighted mean over tasks, whose rows are independent of each other's.

    sqrt(sum (w s)^2) / sum(w), with w = 1 where none are given.
    """
    errors = np.asarray(stderrs, dtype=np.float64)
    parts = np.ones_like(errors) if weights is None else np.asarray(weights, dtype=np.float64)
    return float(np.sqrt(np.sum((parts * errors) ** 2)) / parts.sum())


def _check(metric: Metric, n: int, resamples: int, clusters: Sequence[int] | None) -> None:
    if not n:
        raise MtnlpError(f"{metric.name}: there are no examples to draw from; give at least one.")
    if resamples < 2:
        raise MtnlpError(f"{metric.name}: {resamples} resamples have no spread; give at least 2.")
    if clusters is not None and len(clusters) != n:
        raise MtnlpError(f"{metric.name}: {len(clusters)} clusters for {n} examples; give one to each.")


def _summed(stats: np.ndarray, own: np.ndarray) -> np.ndarray:
    """(N, k) statistics and clusters (N,) -> (G, k) sums of each cluster."""
    sums = np.zeros((own.max() + 1, stats.shape[1]))
    np.add.at(sums, own, stats)
    return sums


def _kinds(tables: Sequence[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Units that are equal in all tables, once each, and how many there are of each (U,).

    Answers that are right or wrong are of two kinds, so that a resample of any number of them is two counts.
    Where the kinds are too many for that to pay, every unit stays its own.
    """
    joint = np.ascontiguousarray(np.hstack(tables))
    places: dict[bytes, int] = {}
    own = [places.setdefault(row.tobytes(), len(places)) for row in joint]
    if len(places) * EQUAL > len(own):
        return list(tables), np.ones(len(own), dtype=np.int64)
    _, first, equal = np.unique(own, return_index=True, return_counts=True)
    return [np.asarray(stats)[first] for stats in tables], equal


def _drawn(equal: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """(b, U) counts, chunk by chunk: how often each unit stands in each resample.

    equal: (U,) how many units each stands for; a resample draws as many as they all are, with return.
    """
    draw = np.random.Generator(np.random.Philox(key=seed))
    n, chunk = int(equal.sum()), max(1, CELLS // len(equal))
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        if len(equal) < n:
            yield draw.multinomial(n, equal / n, size=rows)
        else:
            chosen = draw.integers(0, n, (rows, n), dtype=np.int32)
            yield np.stack([np.bincount(row, minlength=n) for row in chosen])


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
    return np.array([metric.reduce(stats[np.repeat(order, often)]) for often in counts])


def _spread(values: np.ndarray, level: float) -> tuple[float, float, float]:
    """Standard deviation and percentiles."""
    if not 0 < level < 1:
        raise MtnlpError(f"An interval's level is between 0 and 1, 0.95 say; got {level}.")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(values.std(ddof=1)), float(low), float(high)
