"""An evaluation as one HTML page that needs nothing else: no network, no script.

A table of scores, a chart of them with their intervals beside the baselines, comparisons, the score by
length, language and other columns and by label, wrong answers, and what was evaluated how.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from mtnlp.bench import charts
from mtnlp.bench.charts import Rank
from mtnlp.bench.comparison import Comparison
from mtnlp.bench.evaluate import Report, TaskScore

LONGEST = 280  # characters of an input that is shown

STYLE = (
    """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #5d6778; --line: #d9dee7; --back: #fff;
  --mark: #1f6feb; --base: #b54708; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #353b47;
  --back: #14171c; --mark: #6ea8fe; --base: #f7a35c; } }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 60rem; background: var(--back);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .2rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p.soft, .soft { color: var(--soft); } a { color: var(--mark); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; width: 100%; }
th, td { text-align: left; padding: .3rem .5rem; border-bottom: 1px solid var(--line);
  vertical-align: top; }
tbody th { font-weight: inherit; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
details { margin: .4rem 0; } summary { cursor: pointer; }
pre { overflow-x: auto; font-size: .85rem; white-space: pre-wrap; overflow-wrap: anywhere; }
"""
    + charts.STYLE
    + """
@media (max-width: 30rem) { table { font-size: .82rem; } th, td { padding: .3rem .25rem; }
  tbody th { overflow-wrap: anywhere; min-width: 7rem; } td.text:last-child { min-width: 8rem; }
  ul { padding-left: 1.2rem; } }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --line: #bbb; --back: #fff;
  --mark: #1f6feb; --base: #b54708; }
  html { font-size: 11px; } body { max-width: none; padding: 0; font-size: 1rem; }
  .wide { overflow: visible; } nav { display: none; }
  h1, h2, h3, summary, p.soft { break-after: avoid; } tr, figure, svg { break-inside: avoid; }
  details::details-content { content-visibility: visible; height: auto; } }
"""
)


def page(
    report: Report,
    wrong: Mapping[str, Sequence[Mapping[str, Any]]],
    comparisons: Sequence[Comparison] = (),
) -> str:
    """The page.

    Args:
        wrong: name of a score (task, model, template) -> rows that were answered wrongly, each with "row",
            "inputs", "target" and "value".
        comparisons: shown below the scores.
    """
    about = report.about
    texts = {_name(score) for score in report.scores if score.kind == "text"}  # no answer of theirs is wrong
    title = f"{about.get('target', about.get('run', 'evaluation'))} on {about.get('suite', 'its tasks')}"
    parts = [
        f"<h1>{escape(str(title))}</h1>",
        f'<p class="soft">{escape(_line(report))}</p>',
        *_problems(report),
        "<h2>Scores</h2>",
        scores_table(report),
        "<h2>Main scores and baselines</h2>",
        '<p class="soft">Dot: score, with its 95 % interval. Bar: a guess that reads nothing.</p>',
        chart([score for score in report.scores if score.kind != "text"] or report.scores),
        *(_comparison(one) for one in comparisons),
        *_overlap(report),
        *_slices(report.scores),
        *_labels(report.scores),
        *wrong_answers({name: rows for name, rows in wrong.items() if name not in texts}),
        "<h2>How</h2>",
        _settings(report),
    ]
    return document(str(title), parts)


def document(title: str, parts: Iterable[str], style: str = "") -> str:
    """A page that needs nothing else, from the HTML of its parts; with more style than it has anyway."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _line(report: Report) -> str:
    rows = sum(score.n for score in report.scores)
    known = [f"{len({score.task for score in report.scores})} tasks", f"{rows:,} answers"]
    known += [str(report.about[name]) for name in ("backbone", "strategy") if name in report.about]
    return ", ".join(known)


def _problems(report: Report) -> list[str]:
    lines = [f"{item['task']}: not scored: {item['reason']}" for item in report.skipped]
    lines += [f"{_name(score)}: {note}" for score in report.scores for note in (*score.faults, *score.notes)]
    return ["<h2>What to know</h2>", bullets(lines)] if lines else []


def bullets(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def folded(summary: str, inside: str) -> str:
    """HTML that is shown when its summary is clicked, and in print."""
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: frozenset[int]) -> str:
    """Rows by the name in their first cell; where it is empty, a row goes on with the one above."""

    def cells(row: Sequence[str], scope: str = "") -> str:
        parts = []
        for i, cell in enumerate(row):
            named = scope or ("row" if i == 0 and cell else "")
            tag, about = ("th", f' scope="{named}"') if named else ("td", "")
            kind = "number" if i in numbers else "text"
            parts.append(f'<{tag}{about} class="{kind}">{escape(cell)}</{tag}>')
        return "".join(parts)

    top = f"<thead><tr>{cells(head, 'col')}</tr></thead>"
    body = "".join(f"<tr>{cells(row)}</tr>" for row in rows)
    return f'<div class="wide" tabindex="0"><table>{top}<tbody>{body}</tbody></table></div>'


def scores_table(report: Report) -> str:
    """What is asked for first stands on the left, where a narrow screen shows it."""
    rows = []
    for score in report.scores:
        for i, (metric, value) in enumerate(score.values.items()):
            name, *about = (_name(score), f"{score.n:,}", score.kind) if i == 0 else ("", "", "")
            plain = f"{score.baseline[metric]:.3f}" if metric in score.baseline else ""
            rows.append((name, metric, f"{value:.3f}", _between(score, metric), plain, *about))
    for group in report.groups:
        name = " ".join(part for part in (group.name, group.model) if part)
        between = f"{group.value - 1.96 * group.stderr:.3f} to {group.value + 1.96 * group.stderr:.3f}"
        rows.append((name, group.mean, f"{group.value:.3f}", between, "", f"{len(group.of)} tasks", "mean"))
    head = ("task", "metric", "score", "95 %", "baseline", "rows", "kind")
    return table(head, rows, frozenset((2, 3, 4, 5)))


def _between(score: TaskScore, metric: str) -> str:
    found = score.intervals.get(metric)
    return f"{found['low']:.3f} to {found['high']:.3f}" if found else ""


def chart(scores: Sequence[TaskScore]) -> str:
    """A row per score on a common axis; scores that may leave 0..1 widen it."""
    if not scores:
        return "<p>Nothing was scored.</p>"
    rows = []
    for score in scores:
        found = score.intervals.get(score.main)
        ends = (found["low"], found["high"]) if found else None
        rows.append(Rank(_name(score), score.values[score.main], ends, score.baseline.get(score.main)))
    return charts.ranks(rows, "Main score of every task with its interval, and its baseline")


def _comparison(one: Comparison) -> str:
    rows = [
        (
            task.task, task.metric, f"{task.n:,}", f"{task.first:.3f}", f"{task.second:.3f}",
            f"{task.difference:+.3f}", f"{task.low:+.3f} to {task.high:+.3f}", f"{task.adjusted:.3f}",
            f"{task.least:.3f}", task.verdict,
        )
        for task in one.tasks
    ]  # fmt: skip
    head = (
        "task",
        "metric",
        "rows",
        "first",
        "second",
        "difference",
        "95 %",
        "p (Holm)",
        "least found",
        "verdict",
    )
    title = f"<h2>{escape(one.second)} against {escape(one.first)}</h2>"
    return title + table(head, rows, frozenset(range(2, 9))) + (bullets(one.apart) if one.apart else "")


def _overlap(report: Report) -> list[str]:
    """Rows that stand in what the model was trained on."""
    if not report.overlap:
        return []
    rows = [
        (
            task["task"],
            f"{task['rows']:,}",
            f"{task['exact']:,}",
            f"{task['near']:,}",
            f"{task['fraction']:.1%}",
        )
        for task in report.overlap["tasks"]
    ]
    head = ("task", "rows", "exact", "near", "overlap")
    return ["<h2>Rows that stand in the training data</h2>", table(head, rows, frozenset((1, 2, 3, 4)))]


def _slices(scores: Sequence[TaskScore]) -> list[str]:
    parts = []
    for axis in dict.fromkeys(axis for score in scores for axis in score.slices):
        rows = [
            (
                _name(score) if i == 0 else "",
                score.main,
                str(part["name"]),
                f"{part['n']:,}",
                f"{part['value']:.3f}",
            )
            for score in scores
            for i, part in enumerate(score.slices.get(axis, ()))
        ]
        found = table(("task", "metric", axis, "rows", "score"), rows, frozenset((3, 4)))
        parts += [f"<h2>By {escape(axis)}</h2>", folded(f"Scores by {axis}", found)]
    return parts


def _labels(scores: Sequence[TaskScore]) -> list[str]:
    rows = [
        (
            _name(score) if i == 0 else "",
            label,
            f"{found['count']:,.0f}",
            *(f"{found[name]:.3f}" for name in ("precision", "recall", "f1")),
        )
        for score in scores
        for i, (label, found) in enumerate(score.labels.items())
    ]
    whole = table(("task", "label", "count", "precision", "recall", "F1"), rows, frozenset((2, 3, 4, 5)))
    return ["<h2>By label</h2>", folded("Scores by label", whole)] if rows else []


def wrong_answers(wrong: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    parts = []
    for name, rows in wrong.items():
        if rows:
            shown = [
                (row["row"], shortened(row["inputs"]), shortened(row["target"]), shortened(row["value"]))
                for row in rows
            ]
            found = table(("row", "input", "wanted", "answered"), shown, frozenset())
            parts.append(folded(name, found))
    return ["<h2>Wrong answers</h2>", *parts] if parts else []


def shortened(value: Any) -> str:
    if isinstance(value, Mapping):
        value = " · ".join(f"{key}: {shortened(part)}" for key, part in value.items())
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _settings(report: Report) -> str:
    rows = [(str(key), shortened(value)) for key, value in report.about.items()]
    rows += [
        (f"{_name(score)}: hashes", ", ".join(f"{name} {value[:12]}" for name, value in score.hashes.items()))
        for score in report.scores
        if score.hashes
    ]
    return folded("Settings and versions", table(("setting", "value"), rows, frozenset()))


def _name(score: TaskScore) -> str:
    return " ".join(part for part in (score.task, score.model, score.template) if part)
