"""One score along an axis: by the length of rows, by their language or any other field, and by prompt.

Slices are made of the statistics of single examples (mtnlp.metrics.base): a model is asked once for all axes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtnlp.errors import MtnlpError
from mtnlp.metrics.base import Metric
from mtnlp.tasks.spec import TaskSpec

SMALL = 30  # rows below which the value of a slice says little
LANGUAGES = ("language", "lang")  # columns that hold the language of a row


@dataclass(frozen=True)
class Slice:
    """The score of some rows. `small`: there are fewer than SMALL, read the value with care."""

    name: str
    n: int
    value: float
    small: bool


@dataclass(frozen=True)
class Spread:
    """The scores of several prompts; sd with n - 1, 0.0 for one prompt; whose the worst and best ones are."""

    mean: float
    sd: float
    worst: float
    best: float
    worst_template: str
    best_template: str


def by_length(
    stats: np.ndarray, metric: Metric, lengths: Sequence[int], edges: Sequence[int] | None = None
) -> list[Slice]:
    """The score of rows of like length, short ones first; a slice without rows is left out.

    Args:
        stats: (N, k) statistics of `metric`.
        lengths: (N,) in any unit (words, tokens), 0 or more.
        edges: where slices begin, apart from the first, which begins at 0; rising. None = `quartiles`, so
            that runs on like data have like slices.

    Raises:
        MtnlpError: not one length for each row, or edges that do not rise.
    """
    _check(stats, lengths, "lengths")
    edges = quartiles(lengths) if edges is None else [int(edge) for edge in edges]
    if any(high <= low for low, high in zip([0, *edges], edges)):
        raise MtnlpError(f"by_length: edges {edges} must be above 0 and rise.")
    place = np.searchsorted(edges, np.asarray(lengths), side="right")
    names = [_between(low, high) for low, high in zip([0, *edges], [*edges, None])]
    return [_slice(name, stats[place == i], metric) for i, name in enumerate(names) if (place == i).any()]


def by_value(stats: np.ndarray, metric: Metric, values: Sequence[Any]) -> list[Slice]:
    """The score of rows that have the same value (language, source ...), most rows first, then by name.

    Args:
        stats: (N, k) statistics of `metric`.
        values: (N,) compared as text.

    Raises:
        MtnlpError: not one value for each row.
    """
    _check(stats, values, "values")
    rows: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        rows.setdefault(str(value), []).append(row)
    names = sorted(rows, key=lambda name: (-len(rows[name]), name))
    return [_slice(name, stats[rows[name]], metric) for name in names]


def languages(spec: TaskSpec, rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The language of each raw row: what its column `language` or `lang` says, else the task's."""
    return [next((str(row[name]) for name in LANGUAGES if row.get(name)), spec.language) for row in rows]


def spread(values: Mapping[str, float], *, greater_is_better: bool = True) -> Spread:
    """How much the score depends on the prompt.

    Args:
        values: template -> score; of equal ones the first is named. One that is no number is the worst, and
            the mean shows it.
        greater_is_better: False for errors.

    Raises:
        MtnlpError: no values.
    """
    if not values:
        raise MtnlpError("spread: no template has a score; give at least one.")
    sign = 1.0 if greater_is_better else -1.0
    goodness = {name: -math.inf if math.isnan(value) else sign * value for name, value in values.items()}
    worst, best = min(goodness, key=goodness.__getitem__), max(goodness, key=goodness.__getitem__)
    mean = sum(values.values()) / len(values)  # the module statistics fails at NaN
    sd = math.sqrt(sum((value - mean) ** 2 for value in values.values()) / max(len(values) - 1, 1))
    return Spread(float(mean), sd, float(values[worst]), float(values[best]), worst, best)


def quartiles(lengths: Sequence[int]) -> list[int]:
    """The quartiles of lengths, each as the power of two that is nearest on a log scale; without repeats."""
    found = np.maximum(np.quantile(np.asarray(lengths), (0.25, 0.5, 0.75)), 1) if len(lengths) else []
    return sorted({2 ** round(math.log2(value)) for value in found})


def _check(stats: np.ndarray, values: Sequence[Any], what: str) -> None:
    if len(stats) != len(values):
        raise MtnlpError(f"{len(values)} {what} for {len(stats)} rows of statistics; give one for each.")


def _between(low: int, high: int | None) -> str:
    if high is None:
        return f"{low} and more"
    return f"{low} to {high - 1}" if high - low > 1 else str(low)


def _slice(name: str, stats: np.ndarray, metric: Metric) -> Slice:
    return Slice(name, len(stats), float(metric.reduce(stats)), len(stats) < SMALL)
