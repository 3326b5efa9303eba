"""One number for several tasks, with its standard error.

    micro        sum(n v) / sum(n)     every row counts the same
    macro        mean of v             every task counts the same
    glue         mean of the means of each task's metrics (GLUE, Wang et al. 2019, arXiv:1804.07461)
    normalised   mean of 100 (v - chance) / (reference - chance): 0 is a guess, 100 the reference

Rows of different tasks are independent, so variances add: stderr^2 = sum (w s)^2 for weights w that sum to 1.
Metrics of one task are of the same rows and anything but independent; the standard error of their mean is
taken as the mean of theirs, which it cannot exceed (it is that if they rise and fall together).

Errors (mse, mae: lower is better) enter the first three means as 1 / (1 + e), as in `evaluate.goodness`; the
normalised one needs no such turn, since their chance is above their reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mtnlp.bench.statistics import mean_stderr
from mtnlp.errors import MtnlpError, did_you_mean, shown

MEANS = ("micro", "macro", "glue", "normalised")


@dataclass(frozen=True)
class Group:
    """Tasks that get one number together. mean: one of MEANS."""

    name: str
    tasks: tuple[str, ...]
    mean: str = "macro"


@dataclass(frozen=True)
class Value:
    """The main score of a task, and what a mean needs to know of it.

    Args:
        value, stderr: the score and its standard error; NaN passes through to the mean.
        n: rows that it is of.
        chance, reference: scores of a guess without reading and of people (or of another known model), in the
            unit of `value`; None = not known.
        also: the task's other metrics, which a `glue` mean takes in.
        greater_is_better: False for errors.
    """

    value: float
    stderr: float
    n: int
    chance: float | None = None
    reference: float | None = None
    also: tuple[Value, ...] = ()
    greater_is_better: bool = True


def aggregate(group: Group, scores: Mapping[str, Value]) -> tuple[float, float]:
    """The mean of a group, and its standard error.

    Args:
        scores: task -> its score. Tasks of the group that are not in it are left out of the mean, and the
            caller says so; tasks of other groups do not matter.

    Raises:
        MtnlpError: no task of the group has a score; no such mean; what the mean needs is not known.
    """
    if group.mean not in MEANS:
        raise MtnlpError(
            f"{group.name}: no mean is called {shown(group.mean)}. {did_you_mean(group.mean, MEANS)}"
        )
    known = {task: scores[task] for task in group.tasks if task in scores}
    if not known:
        raise MtnlpError(
            f"{group.name}: none of its tasks has a score ({', '.join(group.tasks) or 'it has no tasks'}); "
            "a mean over nothing is not given."
        )
    parts = [_part(group, task, value) for task, value in known.items()]
    values, errors = np.array(parts, dtype=np.float64).T  # (T,) each
    weights = np.array(
        [_rows(group, task, value) if group.mean == "micro" else 1 for task, value in known.items()]
    )
    return float(np.average(values, weights=weights)), mean_stderr(errors, weights)


def normalised(value: Value) -> tuple[float, float]:
    """Score and standard error on the scale where chance is 0 and the reference 100.

    Without a reference the best value of the metric stands in for it: 1, or 0 for errors.

    Raises:
        MtnlpError: chance is not known, or is the reference.
    """
    if value.chance is None:
        raise MtnlpError("a normalised mean needs its chance level; give `chance:` in the suite.")
    best = 1.0 if value.greater_is_better else 0.0
    span = (best if value.reference is None else value.reference) - value.chance
    if span == 0:
        raise MtnlpError(
            f"chance and reference are both {value.chance:g}; between them must be room for scores."
        )
    return 100 * (value.value - value.chance) / span, 100 * value.stderr / abs(span)


def _part(group: Group, task: str, value: Value) -> tuple[float, float]:
    """What one task gives to the mean: value and standard error."""
    if group.mean == "normalised":
        try:
            return normalised(value)
        except MtnlpError as error:
            raise MtnlpError(f"{group.name}: {task}: {error}") from None
    if group.mean == "glue":
        found = [_turned(one) for one in (value, *value.also)]
        return sum(v for v, _ in found) / len(found), sum(s for _, s in found) / len(found)
    return _turned(value)


def _turned(value: Value) -> tuple[float, float]:
    """More is better: an error e as 1 / (1 + e), whose slope is -1 / (1 + e)^2."""
    if value.greater_is_better:
        return value.value, value.stderr
    return 1 / (1 + value.value), value.stderr / (1 + value.value) ** 2


def _rows(group: Group, task: str, value: Value) -> int:
    if value.n < 1:
        raise MtnlpError(f"{group.name}: {task}: a micro mean needs the number of its rows, found {value.n}.")
    return value.n
