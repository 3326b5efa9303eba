"""The sections of a run's page, in their order; what a run has not recorded has no section."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from mtnlp.bench import charts
from mtnlp.bench import page as bench_page
from mtnlp.bench.charts import Rank, figure
from mtnlp.bench.evaluate import Report
from mtnlp.runs import beside, conflicts, leaks, versions
from mtnlp.runs.folder import RunFolder
from mtnlp.runs.judge import SHOWN, wrong_answers
from mtnlp.runs.ledger import MANY, STEPS
from mtnlp.tasks.spec import MEMORY

if TYPE_CHECKING:
    from mtnlp.runs.report import Found

FIGURES = 12  # small charts, and things to know, that are shown without a click


def page(found: Found) -> str:
    """The whole page."""
    title = str(found.about.get("run", found.run.recipe.name))
    made = [
        ("What to know", _notes(found)),
        ("Scores", _scores(found)),
        ("Loss of each task", _losses(found)),
        ("Scores during training", _evals(found)),
        ("Learning rate, gradient and speed", _pace(found)),
        ("What each task was given", _ledger(found)),
        ("Joint against single-task training", found.compare),
        ("Gradient conflicts", conflicts.section(found)),
        ("Which tasks go together", found.affinity),
        ("Rows that stand in train", _leaks(found)),
        ("Wrong answers", _wrong_answers(found)),
        ("How to make this run again", _again(found)),
        ("Settings and versions", _settings(found)),
    ]
    shown = [(heading, parts) for heading, parts in made if parts]
    links = " · ".join(f'<a href="#{_anchor(heading)}">{heading}</a>' for heading, _ in shown)
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(_line(found))}</p>',
        f"<nav>{links}</nav>",
    ]
    for heading, own in shown:
        parts += [f'<h2 id="{_anchor(heading)}">{heading}</h2>', *own]
    return bench_page.document(title, parts, beside.STYLE if found.affinity or found.conflicts else "")


def _anchor(heading: str) -> str:
    return "-".join(heading.lower().replace(",", "").split())


def _line(found: Found) -> str:
    about, model = found.about, found.run.recipe.model
    parts = [f"{_counted(len(found.run.specs), 'task')} on {model.backbone} with {model.strategy.name}"]
    if "steps" in about:
        parts.append(f"{about['steps']:,} steps in {about['seconds']:,.0f} s")
    if about.get("step", about.get("steps")) != about.get("steps"):
        parts.append(f"the weights are those of step {about['step']:,}")
    return ", ".join(parts)


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _soft(text: str) -> str:
    return f'<p class="soft">{escape(text)}</p>'


def _notes(found: Found) -> list[str]:
    lines = list(found.notes)
    often = [f"{one.task} ({one.epochs:.1f})" for one in found.drawn if one.epochs > MANY]
    if often:
        seldom = f"More than {MANY:g} epochs over the same rows, which seldom teach more"
        lines.append(f"{seldom}: {', '.join(often)}.")
    lines += [f"{score.task}: {note}" for score in found.scores for note in (*score.faults, *score.notes)]
    first, rest = lines[:FIGURES], lines[FIGURES:]
    more = f"<details><summary>{len(rest)} more</summary>{bench_page.bullets(rest)}</details>"
    return [bench_page.bullets(first), *([more] if rest else [])] if lines else []


def _scores(found: Found) -> list[str]:
    if not found.scores:
        return ["<p>No task has validation or test rows: nothing was scored.</p>"]
    splits: dict[str, list[str]] = {}
    for score in found.scores:
        splits.setdefault(score.split, []).append(score.task)
    if len(splits) == 1:
        where = f"On the {next(iter(splits))} rows."
    else:
        where = " ".join(f"On {split} rows: {', '.join(names)}." for split, names in splits.items())
    key = "Dot: the main score, with its 95 % interval. Bar: a guess that reads nothing."
    report = Report(found.scores, found.about)
    return [_soft(where), bench_page.scores_table(report), _soft(key), bench_page.chart(found.scores)]


# Over steps.


def _span(found: Found) -> tuple[int, int]:
    return 1, max(line["step"] for line in (*found.steps, *found.evals))


def _over_steps(
    lines: Sequence[Mapping[str, Any]], values: Mapping[int, float], name: str, found: Found, **more: Any
) -> str:
    """A chart of the values at some of the lines, by their place among them."""
    steps = [lines[i]["step"] for i in values]
    title = f"{name} over steps"
    return figure(name, charts.lines(steps, list(values.values()), title, span=_span(found), **more))


def _losses(found: Found) -> list[str]:
    if not found.steps:
        return []
    window = charts.window_of(_span(found)[1])
    charted = []
    for spec in found.run.specs:
        values = {
            i: line["losses"][spec.name] for i, line in enumerate(found.steps) if spec.name in line["losses"]
        }
        if values:
            charted.append(_over_steps(found.steps, values, spec.name, found, window=window))
    rule = (
        f"Line: mean of {window} steps, a tenth of the run, {window // 2} on either side; its end is written "
        "beside it. Points: single steps. "
        if window > 1
        else "Line: every step; its end is written beside it. "
    )
    return [_soft(f"{rule}Every task has an axis of its own."), *_grid(charted)]


def _evals(found: Found) -> list[str]:
    """Of at least two evaluations."""
    if len(found.evals) < 2:
        return []
    mean = {i: line["aggregate"] for i, line in enumerate(found.evals)}
    parts = [_over_steps(found.evals, mean, "Mean of all tasks", found)]
    for spec in found.run.specs:
        own = {
            i: line["scores"][spec.name] for i, line in enumerate(found.evals) if spec.name in line["scores"]
        }
        if own:
            parts.append(_over_steps(found.evals, own, spec.name, found))
    split = found.run.recipe.eval.split
    return [_soft(f"Main scores on {split} rows; an error e counts as 1 / (1 + e)."), *_grid(parts)]


def _pace(found: Found) -> list[str]:
    if not found.steps:
        return []
    window = charts.window_of(_span(found)[1])
    lines = list(enumerate(found.steps))
    rate = {i: line["lr"] for i, line in lines}
    norm = {i: line["grad_norm"] for i, line in lines}
    speed = {i: line["tokens"] / line["seconds"] for i, line in lines if line["seconds"]}
    tokens, seconds = (sum(line[key] for _, line in lines) for key in ("tokens", "seconds"))
    whole = (
        f"{tokens:,} tokens in {seconds:,.1f} s of steps: {tokens / seconds:,.0f} per second."
        if seconds
        else ""
    )
    return [
        _soft(f"{whole} The gradient's norm is that before clipping."),
        *_grid(
            [
                _over_steps(found.steps, rate, "Learning rate", found, low=0.0),
                _over_steps(found.steps, norm, "Norm of the gradient", found, low=0.0, window=window),
                _over_steps(found.steps, speed, "Tokens per second", found, low=0.0, window=window),
            ]
        ),
    ]


def _grid(figures: Sequence[str]) -> list[str]:
    """Side by side as many as fit; beyond FIGURES the others wait for a click."""
    first, rest = figures[:FIGURES], figures[FIGURES:]
    parts = [f'<div class="many">{"".join(first)}</div>']
    if rest:
        more = f'<div class="many">{"".join(rest)}</div>'
        parts.append(f"<details><summary>{len(rest)} more</summary>{more}</details>")
    return parts


# Tasks.


def _ledger(found: Found) -> list[str]:
    if not found.drawn:
        return [_soft("This run has kept no ledger.")]
    rows = [
        Rank(one.task, one.achieved, base=one.asked, shown=f"{one.achieved:.1%} of {one.asked:.1%}")
        for one in found.drawn
    ]
    steps = [name for name in STEPS if any(getattr(one, name) is not None for one in found.drawn)]
    known = ("epochs", "share", "asked", "rows", "drawn", "repeats", "tokens")
    head = ("task", *known, *(STEPS[name] for name in steps))
    cells = [
        (
            one.task,
            f"{one.epochs:.2f}",
            f"{one.achieved:.1%}",
            f"{one.asked:.1%}",
            *(f"{count:,}" for count in (one.rows, one.drawn, one.repeats, one.tokens)),
            *("" if (step := getattr(one, name)) is None else f"{step:,}" for name in steps),
        )
        for one in found.drawn
    ]
    return [
        _soft("Long bar: share of all drawn rows. Short bar across it: the share that was asked for."),
        charts.ranks(rows, "Share of each task, achieved and asked", span=(0.0, 0.0), bars=True),
        bench_page.table(head, cells, frozenset(range(1, len(head)))),
    ]


def _leaks(found: Found) -> list[str]:
    if found.leaks is None:
        return []
    parts = [f"<p>{escape(leaks.told(found.leaks))}</p>"]
    if cells := leaks.cells(found.leaks):
        pairs = [
            (
                one.task,
                "word for word" if pair.hit.exact else f"{pair.hit.share:.0%}",
                pair.text,
                pair.train_text,
            )
            for one in found.leaks.tasks
            for pair in one.pairs[:1]
        ]
        table = bench_page.table(("rows of", "alike", "row", "row of train"), pairs, frozenset())
        parts += [
            bench_page.table(leaks.HEAD, cells, frozenset(range(1, 5))),
            f"<details><summary>One of each</summary>{table}</details>",
        ]
    return parts


def _wrong_answers(found: Found) -> list[str]:
    shown = {}
    for item in found.judged:
        rows = wrong_answers(item)
        count = f"{len(rows):,} of {item.score.n:,}" if item.spec.kind != "regress" else "farthest off"
        shown[f"{item.score.task}: {count}"] = rows[:SHOWN]
    return bench_page.wrong_answers(shown)[1:]


# The run itself.


def _again(found: Found) -> list[str]:
    folder = RunFolder(found.run.where)
    lost = [name for name, source in _sources(found.run.recipe.tasks) if _in_memory(source)]
    if lost:
        told = f"The rows of {', '.join(lost)} were given in memory: run what gave them."
        return [f"<p>{escape(told)}</p>"]
    command = ["mtnlp", "finetune", str(folder.recipe), "--out", f"{found.run.name}-again"]
    return [f"<pre>{escape(shlex.join(command))}</pre>"]


def _sources(tasks: Iterable[Any]) -> list[tuple[str, Any]]:
    return [(str(task.get("name")), task.get("source")) for task in tasks if isinstance(task, Mapping)]


def _in_memory(source: Any) -> bool:
    return isinstance(source, Mapping) and any(str(part).startswith(MEMORY) for part in source.values())


def _settings(found: Found) -> list[str]:
    rows = [(key, bench_page.shortened(value)) for key, value in found.about.items()]
    rows += versions.told(found.versions).items() or [("versions", "this run has kept none")]
    recipe = RunFolder(found.run.where).recipe.read_text("utf-8")
    return [
        bench_page.table(("setting", "value"), rows, frozenset()),
        f"<details><summary>The recipe, with every default</summary><pre>{escape(recipe)}</pre></details>",
    ]
