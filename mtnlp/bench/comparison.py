"""Two models on the same rows: which is better on which task, as far as the rows can tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mtnlp import metrics
from mtnlp.bench import statistics, tables


@dataclass(frozen=True)
class Side:
    """What one model did on one task. stats: (N, k) statistics of the main metric, row by row.

    data: a hash of the rows; only equal rows are compared. clusters: a number for each row, the same where
    rows are resampled together; None = each by itself.
    """

    task: str
    kind: str
    metric: str
    stats: np.ndarray
    data: str
    clusters: Sequence[int] | None = None


@dataclass(frozen=True)
class TaskDifference:
    """Second minus first on the main metric of a task of n rows, with its 95 % interval.

    p: two-sided, by paired bootstrap; mcnemar: exact, where a row is right or wrong, else None. adjusted: p
    after Holm's correction over the tasks. least: the difference that n such rows find in 4 of 5 cases.
    verdict: "better", "worse" (of the second), or "unclear".
    """

    task: str
    metric: str
    n: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float
    adjusted: float
    mcnemar: float | None
    least: float
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """All tasks that two models have in common; `apart` says why others were not compared."""

    first: str
    second: str
    tasks: tuple[TaskDifference, ...]
    apart: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def print(self, console: Any = None) -> None:
        """The table on a rich console."""
        console = console or tables.console()
        console.print(f"\n{self.second} against {self.first}")
        numbers = ("rows", "first", "second", "difference", "95 %", "p (Holm)", "McNemar", "least found")
        table = tables.table(("task", "metric", *numbers, "verdict"), numbers)
        for one in self.tasks:
            between = f"{one.low:+.3f} to {one.high:+.3f}"
            mcnemar = "" if one.mcnemar is None else f"{one.mcnemar:.3f}"
            table.add_row(
                one.task, one.metric, f"{one.n:,}", f"{one.first:.3f}", f"{one.second:.3f}",
                f"{one.difference:+.3f}", between, f"{one.adjusted:.3f}", mcnemar,
                f"{one.least:.3f}", one.verdict,
            )  # fmt: skip
        console.print(table)
        for line in self.apart:
            console.print(line)


def compare(first: str, ones: Sequence[Side], second: str, others: Sequence[Side]) -> Comparison:
    """Compare two models task by task, on their main metrics.

    Args:
        first, second: what to call them; ones, others: what they did.
    """
    known, found, apart = {side.task: side for side in ones}, [], []
    for other in others:
        one = known.pop(other.task, None)
        if one is None or (one.data, one.metric) != (other.data, other.metric):
            why = "only the second was scored" if one is None else "not the same rows or metric"
            apart.append(f"{other.task}: not compared: {why}.")
            continue
        if one.clusters is not None and len(set(one.clusters)) == 1:
            apart.append(f"{other.task}: not compared: all rows are of one cluster.")
            continue
        found.append((one, other, _difference(one, other)))
    apart += [f"{task}: not compared: only the first was scored." for task in known]
    adjusted = statistics.holm([difference.p for _, _, difference in found])
    rows = [_row(*pair, p) for pair, p in zip(found, adjusted, strict=True)]
    return Comparison(first, second, tuple(rows), tuple(apart))


def _difference(one: Side, other: Side) -> statistics.Difference:
    metric = metrics.get(one.metric, one.kind)
    return statistics.paired(metric, one.stats, other.stats, clusters=one.clusters)


def _row(one: Side, other: Side, found: statistics.Difference, adjusted: float) -> TaskDifference:
    metric = metrics.get(one.metric, one.kind)
    return TaskDifference(
        task=one.task,
        metric=one.metric,
        n=len(one.stats),
        first=float(metric.reduce(one.stats)),
        second=float(metric.reduce(other.stats)),
        difference=found.value,
        low=found.low,
        high=found.high,
        p=found.p,
        adjusted=float(adjusted),
        mcnemar=_mcnemar(one.stats, other.stats),
        least=statistics.minimum_detectable_effect(found.stderr),
        verdict=statistics.verdict(found, adjusted, greater_is_better=metric.greater_is_better),
    )


def _mcnemar(one: np.ndarray, other: np.ndarray) -> float | None:
    """Exact, if every row is right or wrong."""
    if one.shape[1] != 2 or not all(_is_right_or_wrong(stats) for stats in (one, other)):
        return None
    return statistics.mcnemar(one[:, 0] == 1, other[:, 0] == 1)


def _is_right_or_wrong(stats: np.ndarray) -> bool:
    return bool((stats[:, 1] == 1).all() and np.isin(stats[:, 0], (0, 1)).all())


def sides(judged: Sequence[Any], model: str) -> list[Side]:
    """What one model of an evaluation did; a task with several templates counts by its first."""
    found: dict[str, Side] = {}
    for item in judged:
        score = item.score
        if score.model == model and score.task not in found:
            data = score.hashes["data"]
            stats = item.stats[score.main]
            found[score.task] = Side(score.task, score.kind, score.main, stats, data, item.clusters)
    return list(found.values())
