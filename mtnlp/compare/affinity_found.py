"""What `mtnlp affinity` found, as tables and as plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtnlp.bench import tables
from mtnlp.compare.affinity import Grouping, Matrix

COSINE = "Cosine of gradients"
AFFINITY = "Affinity of the task in the row onto the task in the column"
VECTORS = "Cosine of what finished runs have learned"


@dataclass(frozen=True)
class Affinities:
    """A whole measurement.

    Args:
        name: of the recipe. tasks: (T,) names. strategy: that was measured. steps: of the short run, rows: of
            each task in a measurement, measured: how many measurements.
        cosine, affinity: (T, T).
        grouping: of the tasks; commands: what verifies each of its groups.
        vectors: names and (V, V) similarities of finished runs; None = not asked for.
        notes: what else to know.
    """

    name: str
    tasks: tuple[str, ...]
    strategy: str
    steps: int
    measured: int
    rows: int
    cosine: Matrix
    affinity: Matrix
    grouping: Grouping
    commands: tuple[str, ...]
    vectors: tuple[tuple[str, ...], np.ndarray] | None = None
    notes: tuple[str, ...] = ()

    @property
    def groups(self) -> list[list[str]]:
        """The proposed groups, by name."""
        return [[self.tasks[i] for i in group] for group in self.grouping.groups]

    def as_dict(self) -> dict[str, Any]:
        """JSON values; what is not known is None."""
        groups = zip(self.groups, self.commands, strict=True)
        found = {
            "name": self.name,
            "tasks": list(self.tasks),
            "strategy": self.strategy,
            "steps": self.steps,
            "measured": self.measured,
            "rows": self.rows,
            "cosine": _plain(self.cosine),
            "affinity": _plain(self.affinity),
            "groups": [{"tasks": tasks, "verify": command} for tasks, command in groups],
            "score": self.grouping.score,
            "alone": [self.tasks[i] for i in self.grouping.alone],
            "exact": self.grouping.exact,
            "notes": list(self.notes),
        }
        if self.vectors is not None:
            names, matrix = self.vectors
            found["vectors"] = {"names": list(names), "cosine": _rows(matrix)}
        return found

    def print(self, console: Any = None) -> None:
        """The tables on a rich console."""
        console = console or tables.console()
        for title, names, matrix in self.shown():
            unit = unit_of(matrix.mean)
            console.print(f"\n{title}{remark(matrix, unit)}", markup=False, soft_wrap=True)
            numbers = [str(i) for i in range(1, len(names) + 1)]
            table = tables.table(["", *numbers], numbers)
            for i, name in enumerate(names):
                table.add_row(f"{numbers[i]} {name}", *(cell(value, unit) for value in matrix.mean[i]))
            console.print(table)
        for line in self.lines():
            console.print(line, markup=False, soft_wrap=True)

    def shown(self) -> list[tuple[str, Sequence[str], Matrix]]:
        """(title, names, matrix) of all that is drawn."""
        found = [(COSINE, self.tasks, self.cosine), (AFFINITY, self.tasks, self.affinity)]
        if self.vectors is not None:
            names, matrix = self.vectors
            found.append((VECTORS, names, Matrix(matrix, np.full_like(matrix, np.nan))))
        return found

    def lines(self) -> list[str]:
        """The groups with what verifies them, and the notes."""
        lines = [f"{said(self)}:"]
        for i, (tasks, command) in enumerate(zip(self.groups, self.commands, strict=True), start=1):
            lines += [f"  {i}. {', '.join(tasks)}", f"     {command}"]
        return [*lines, *self.notes]


def said(found: Affinities) -> str:
    """The sentence above the groups."""
    count, grouping = len(found.groups), found.grouping
    how = "" if grouping.exact else ", as far as joining and moving tasks finds it"
    alone = [found.tasks[i] for i in grouping.alone]
    apart = f"; nobody helps {', '.join(alone)}" if alone else ""
    word = "group" if count == 1 else "groups"
    return f"Proposed: {count} {word}, mean affinity {grouping.score:+.2g}{how}{apart}"


def remark(matrix: Matrix, unit: float) -> str:
    """The unit of the cells and the largest standard error, as what follows a title; may be empty."""
    notes = [f"in units of {unit:.0e}"] if unit != 1 else []
    known = matrix.error[~np.isnan(matrix.error)]
    notes += [f"standard errors up to {known.max() / unit:.2f}"] if known.size else []
    return f", {', '.join(notes)}" if notes else ""


def unit_of(values: np.ndarray) -> float:
    """The power of ten that cells are told in: 1 where the largest is 0.1 or more."""
    largest = np.abs(np.nan_to_num(values)).max(initial=0.0)
    return 1.0 if largest == 0 or largest >= 0.1 else 10.0 ** math.floor(math.log10(largest))


def cell(value: float, unit: float) -> str:
    return "-" if math.isnan(value) else f"{value / unit:+.2f}"


def _plain(matrix: Matrix) -> dict[str, Any]:
    return {"mean": _rows(matrix.mean), "error": _rows(matrix.error)}


def _rows(matrix: np.ndarray) -> list[list[float | None]]:
    return [[None if math.isnan(value) else value for value in row] for row in matrix.tolist()]
