"""What a comparison found, as tables and as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mtnlp.bench import tables
from mtnlp.compare.verdicts import TaskVerdict, Verdicts

HEAD = (
    "task", "verdict", "metric", "split", "rows", "single", "joint", "difference", "95 %", "p (Holm)",
    "least found",
)  # fmt: skip
SWEEP = (
    "run", "mean score", "delta-m", "helped", "hurt", "unclear", "trained", "training s", "on disk",
    "ms per row",
)  # fmt: skip


@dataclass(frozen=True)
class Costs:
    """What runs of one seed take; of several baselines their sum, as they would all be needed.

    parameters: trained. seconds: of optimizer steps, mean over seeds. size: bytes of what was trained, beside
    the backbone. latency: seconds per row, asked in batches; None = not measured.
    """

    parameters: int
    seconds: float
    size: int
    latency: float | None = None


@dataclass(frozen=True)
class Variant:
    """One joint run with its baselines. name: the methods it was swept over, or "joint"."""

    name: str
    found: Verdicts
    costs: Costs
    alone: Costs


@dataclass(frozen=True)
class Outcome:
    """A whole comparison.

    Args:
        runs: one mapping per run: its name, label, seed, steps, examples_per_step and what was done with it
            ("reused", "resumed" or "trained").
        notes: what else to know.
    """

    name: str
    seeds: tuple[int, ...]
    variants: tuple[Variant, ...]
    runs: tuple[dict[str, Any], ...]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def print(self, console: Any = None) -> None:
        """The tables on a rich console."""
        console = console or tables.console()
        said = "; in brackets: standard deviations over seeds" if len(self.seeds) > 1 else ""
        for variant in self.variants:
            console.print(f"\n{title(variant)}{said}")
            table = tables.table(HEAD, HEAD[4:])
            for task in variant.found.tasks:
                table.add_row(*row(task))
            console.print(table)
            for line in remarks(variant):
                console.print(line, markup=False, soft_wrap=True)
        table = tables.table(SWEEP, SWEEP[1:])
        for line in sweep(self.variants):
            table.add_row(*line)
        console.print(table)
        for line in self.notes:
            console.print(line, markup=False, soft_wrap=True)


def title(variant: Variant) -> str:
    return f"{variant.name} against single-task baselines"


def row(task: TaskVerdict) -> tuple[str, ...]:
    """The cells of HEAD."""
    return (
        task.task, task.verdict, task.metric, task.split, f"{task.n:,}",
        _spread(task.baseline, task.baseline_sd), _spread(task.joint, task.joint_sd),
        f"{task.difference:+.3f}", f"{task.low:+.3f} to {task.high:+.3f}", f"{task.adjusted:.3f}",
        f"{task.least:.3f}" if task.least else "-",
    )  # fmt: skip


def remarks(variant: Variant) -> list[str]:
    """Sentences below a table."""
    found = variant.found
    lines = [f"{task.task}: {task.note}." for task in found.tasks if task.note]
    left = [task.task for task in found.tasks if task.relative is None]
    lines += [f"delta-m leaves out {', '.join(left)}: their single-task score is 0."] if left else []
    counts = ", ".join(f"{found.count(word)} {word}" for word in ("helped", "hurt", "unclear"))
    return [*lines, f"delta-m {_change(found)}; {counts}."]


def sweep(variants: Sequence[Variant]) -> list[tuple[str, ...]]:
    """The rows of SWEEP: every variant, and the baselines, once where several variants have the same."""
    lines, seen = [], []
    for variant in variants:
        found, alone = variant.found, (variant.found.baseline_mean, variant.alone)
        if alone not in seen:
            seen.append(alone)
            name = "single-task" if len(seen) == 1 else f"single-task for {variant.name}"
            lines.append((name, f"{found.baseline_mean:.3f}", "", "", "", "", *_costs(variant.alone)))
        counts = [str(found.count(word)) for word in ("helped", "hurt", "unclear")]
        lines.append((variant.name, f"{found.mean:.3f}", _change(found), *counts, *_costs(variant.costs)))
    return lines


def _change(found: Verdicts) -> str:
    if found.delta_m is None:
        return "-"
    spread = "" if found.delta_m_sd is None else f" (sd {100 * found.delta_m_sd:.2f})"
    return f"{100 * found.delta_m:+.2f} %{spread}"


def _costs(costs: Costs) -> tuple[str, ...]:
    latency = "" if costs.latency is None else f"{1000 * costs.latency:.2f}"
    return f"{costs.parameters:,}", f"{costs.seconds:.1f}", _size(costs.size), latency


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _spread(value: float, sd: float | None) -> str:
    return f"{value:.3f}" if sd is None else f"{value:.3f} ({sd:.3f})"
