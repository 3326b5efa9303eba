"""A comparison as one HTML page that needs nothing else: no network, no script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from mtnlp.bench import page as bench_page
from mtnlp.bench.page import LEFT, RIGHT, ROW, STYLE, WIDTH
from mtnlp.compare import outcome
from mtnlp.compare.outcome import Outcome
from mtnlp.compare.verdicts import TaskVerdict

COLOURS = ".helped { fill: #1a7f37; stroke: #1a7f37; } .hurt { fill: #cf222e; stroke: #cf222e; }"
CLASSES = {"helped": "helped", "hurt": "hurt", "unclear": "mark"}
LOOK = 'name="viewport" content="width=device-width, initial-scale=1"'


def page(found: Outcome) -> str:
    """The page."""
    title = f"{found.name}: joint training against single-task baselines"
    seeds = ", ".join(map(str, found.seeds))
    tasks = len(found.variants[0].found.tasks)
    numbers = frozenset(range(1, len(outcome.SWEEP)))
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{tasks} tasks, seeds {seeds}, {len(found.runs)} runs</p>',
        *([bench_page._list(found.notes)] if found.notes else []),
        "<h2>All runs</h2>",
        bench_page._table(outcome.SWEEP, outcome.sweep(found.variants), numbers),
    ]
    for variant in found.variants:
        rows = [outcome.row(task) for task in variant.found.tasks]
        parts += [
            f"<h2>{escape(outcome.title(variant))}</h2>",
            '<p class="soft">Joint minus single-task, with the 95 % interval over rows and seeds. '
            "In brackets: standard deviations over seeds.</p>",
            _chart(variant.found.tasks),
            bench_page._table(outcome.HEAD, rows, frozenset(range(4, 11))),
            bench_page._list(outcome.remarks(variant)),
        ]
    head = ("run", "steps", "rows per step", "")
    runs = [
        (run["name"], f"{run['steps']:,}", str(run["examples_per_step"]), run["done"]) for run in found.runs
    ]
    parts += ["<h2>Runs</h2>", bench_page._table(head, runs, frozenset((1, 2)))]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta {LOOK}>'
        f"<title>{escape(title)}</title><style>{STYLE}{COLOURS}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _chart(tasks: Sequence[TaskVerdict]) -> str:
    """A row per task on a common axis around no difference."""
    far = max([abs(end) for task in tasks for end in (task.low, task.high, task.difference)]) or 1.0

    def x(value: float) -> float:
        return LEFT + (value / far + 1) / 2 * (WIDTH - LEFT - RIGHT)

    height = ROW * (len(tasks) + 1)
    parts = [f'<line class="base" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="0" y2="{height - ROW}"/>']
    for value in (-far, 0.0, far):
        parts.append(
            f'<text class="soft" x="{x(value):.1f}" y="{height - 8}" text-anchor="middle">{value:+.2f}</text>'
        )
    for i, task in enumerate(tasks):
        y, kind = ROW * i + ROW / 2, CLASSES[task.verdict]
        label = task.task if len(task.task) <= 34 else f"{task.task[:33]}…"
        parts += [
            f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end">{escape(label)}</text>',
            f'<line class="{kind}" x1="{x(task.low):.1f}" x2="{x(task.high):.1f}" y1="{y}" y2="{y}" '
            'stroke-width="2"/>',
            f'<circle class="{kind}" cx="{x(task.difference):.1f}" cy="{y}" r="4"/>',
            f'<text x="{WIDTH - RIGHT + 12}" y="{y + 4}">{task.difference:+.3f}</text>',
        ]
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
        f'aria-label="Difference of every task with its interval">{"".join(parts)}</svg>'
    )
