"""A comparison as one HTML page that needs nothing else: no network, no script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from mtnlp.bench import charts
from mtnlp.bench import page as bench_page
from mtnlp.bench.charts import Rank
from mtnlp.compare import outcome
from mtnlp.compare.outcome import Outcome
from mtnlp.compare.verdicts import TaskVerdict

READING = (  # of one seed, of several
    "Joint minus single-task, with the 95 % interval over rows.",
    "Joint minus single-task, with the 95 % interval over rows and seeds. In brackets: standard deviations "
    "over seeds.",
)


def page(found: Outcome) -> str:
    """The page."""
    title = f"{found.name}: joint training against single-task baselines"
    seeds = ", ".join(map(str, found.seeds))
    tasks = len(found.variants[0].found.tasks)
    numbers = frozenset(range(1, len(outcome.SWEEP)))
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{tasks} tasks, seeds {seeds}, {len(found.runs)} runs</p>',
        *([bench_page.bullets(found.notes)] if found.notes else []),
        "<h2>All runs</h2>",
        bench_page.table(outcome.SWEEP, outcome.sweep(found.variants), numbers),
    ]
    for variant in found.variants:
        rows = [outcome.row(task) for task in variant.found.tasks]
        parts += [
            f"<h2>{escape(outcome.title(variant))}</h2>",
            f'<p class="soft">{READING[len(found.seeds) > 1]}</p>',
            chart(variant.found.tasks),
            bench_page.table(outcome.HEAD, rows, frozenset(range(4, 11))),
            bench_page.bullets(outcome.remarks(variant)),
        ]
    head = ("run", "steps", "rows per step", "")
    runs = [
        (run["name"], f"{run['steps']:,}", str(run["examples_per_step"]), run["done"]) for run in found.runs
    ]
    parts += ["<h2>Runs</h2>", bench_page.table(head, runs, frozenset((1, 2)))]
    return bench_page.document(title, parts)


def chart(tasks: Sequence[TaskVerdict]) -> str:
    """A row per task on a common axis around no difference."""
    far = max([abs(end) for task in tasks for end in (task.low, task.high, task.difference)]) or 1.0
    rows = [
        Rank(task.task, task.difference, (task.low, task.high), 0.0, f"{task.difference:+.3f} {task.verdict}")
        for task in tasks
    ]
    return charts.ranks(rows, "Difference of every task with its interval", span=(-far, far))
