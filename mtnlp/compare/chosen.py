"""What safe mode chose and what came of it, as tables and as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mtnlp.bench import tables
from mtnlp.compare import choice
from mtnlp.compare.choice import Choice, Evidence, Final

HEAD = (
    "task", "ships", "metric", "split", "rows", "candidate", "score", "single", "difference", "95 %",
    "p", "least found",
)  # fmt: skip
FINAL = ("task", "ships", "metric", "split", "rows", "single", "joint", "shipped", "shipped - single", "95 %")


@dataclass(frozen=True)
class Chosen:
    """All choices of a run.

    Args:
        choices: in the order of the tasks. made_from: "joint" and every task -> its run, below the run
        folder. gates: that there were to try. finals: what came of it; empty until it is scored.
    """

    choices: tuple[Choice, ...]
    made_from: Mapping[str, str]
    gates: tuple[float, ...]
    finals: tuple[Final, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "choices": [{"ships": one.way, **asdict(one)} for one in self.choices],
            "made_from": dict(self.made_from),
            "gates": list(self.gates),
            "level": choice.LEVEL,
            "final": [asdict(one) for one in self.finals],
        }

    def print(self, console: Any = None) -> None:
        """The evidence, and the reasons, on a rich console."""
        console = console or tables.console()
        console.print("\nHow each task ships, by its held-out rows")
        table = tables.table(HEAD, HEAD[4:5] + HEAD[6:])
        for one in self.choices:
            head = (one.task, choice.named(one.gate), one.metric, one.split, f"{one.n:,}")
            for i, evidence in enumerate(one.evidence):
                table.add_row(*(head if i == 0 else ("",) * 5), *_cells(evidence, one.single))
        console.print(table)
        for one in self.choices:
            console.print(f"{one.task}: {one.way}: {one.reason}.", markup=False, soft_wrap=True)

    def print_final(self, console: Any = None) -> None:
        """What came of it, on a rich console."""
        console = console or tables.console()
        console.print("\nThe shipped model beside the single-task runs and the joint run")
        table = tables.table(FINAL, FINAL[4:])
        ways = {one.task: choice.named(one.gate) for one in self.choices}
        for one in self.finals:
            scores = (f"{score:.3f}" for score in (one.single, one.joint, one.shipped))
            between = f"{one.low:+.3f} to {one.high:+.3f}"
            table.add_row(
                one.task, ways[one.task], one.metric, one.split, f"{one.n:,}", *scores,
                f"{one.difference:+.3f}", between,
            )  # fmt: skip
        console.print(table)
        for line in self.missed():
            console.print(line, markup=False, soft_wrap=True)

    def missed(self) -> list[str]:
        """A sentence for each task that ships below its baseline all the same. A private task is its baseline
        but for rounding, which may be on one side in every resample."""
        choices = {one.task: one for one in self.choices}
        return [
            f"{one.task}: what ships is below the single-task run on {one.split}, beyond noise; its "
            f"{choices[one.task].split} rows, by which it was chosen, did not show it."
            for one in self.finals
            if one.below and choices[one.task].way != choice.PRIVATE
        ]


def _cells(evidence: Evidence, single: float) -> tuple[str, ...]:
    return (
        evidence.candidate, f"{evidence.score:.3f}", f"{single:.3f}", f"{evidence.difference:+.3f}",
        f"{evidence.low:+.3f} to {evidence.high:+.3f}", f"{evidence.adjusted:.4f}",
        f"{evidence.least:.3f}" if evidence.least else "-",
    )  # fmt: skip
