"""An evaluation as one HTML page that needs nothing else: no network, no script.

A table of scores, a chart of them with their intervals beside the baselines, the score by length, wrong
answers, comparisons, and what was evaluated how.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from mtnlp.bench.comparison import Comparison
from mtnlp.bench.evaluate import Report, TaskScore

WIDTH, LEFT, RIGHT, ROW = 760, 230, 60, 26  # of the chart, in pixels
LONGEST = 280  # characters of an input that is shown

STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #667085; --line: #d9dee7; --back: #fff;
  --mark: #1f6feb; --base: #b54708; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #353b47;
  --back: #14171c; --mark: #6ea8fe; --base: #f7a35c; } }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 60rem; background: var(--back);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p.soft, .soft { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; width: 100%; }
th, td { text-align: left; padding: .3rem .5rem; border-bottom: 1px solid var(--line);
  vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
svg { max-width: 100%; height: auto; } svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
svg .soft { fill: var(--soft); } .rule { stroke: var(--line); }
.mark { fill: var(--mark); stroke: var(--mark); } .base { stroke: var(--base); stroke-width: 2; }
details { margin: .4rem 0; } summary { cursor: pointer; } td.text { overflow-wrap: break-word; }
@media print { details { break-inside: avoid; } body { max-width: none; } }
"""


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
    title = f"{about.get('target', about.get('run', 'evaluation'))} on {about.get('suite', 'its tasks')}"
    parts = [
        f"<h1>{escape(str(title))}</h1>",
        f'<p class="soft">{escape(_line(report))}</p>',
        *_problems(report),
        "<h2>Scores</h2>",
        _scores(report),
        "<h2>Main scores and baselines</h2>",
        '<p class="soft">Dot: score, with its 95 % interval. Bar: a guess that reads nothing.</p>',
        _chart(report.scores),
        *(_comparison(one) for one in comparisons),
        *_overlap(report),
        *_slices(report.scores),
        *_wrong(wrong),
        "<h2>How</h2>",
        _settings(report),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(str(title))}</title><style>{STYLE}</style></head>\n<body>\n"
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
    return ["<h2>What to know</h2>", _list(lines)] if lines else []


def _list(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: frozenset[int]) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        kinds = ["number" if i in numbers else "text" for i in range(len(row))]
        return "".join(
            f'<{tag} class="{kind}">{escape(cell)}</{tag}>' for kind, cell in zip(kinds, row, strict=True)
        )

    top = f"<thead><tr>{cells('th', head)}</tr></thead>"
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="wide"><table>{top}<tbody>{body}</tbody></table></div>'


def _scores(report: Report) -> str:
    rows = []
    for score in report.scores:
        for i, (metric, value) in enumerate(score.values.items()):
            head = (_name(score), score.kind, f"{score.n:,}") if i == 0 else ("", "", "")
            plain = f"{score.baseline[metric]:.3f}" if metric in score.baseline else ""
            rows.append((*head, metric, plain, f"{value:.3f}", _between(score, metric)))
    for group in report.groups:
        name = " ".join(part for part in (group.name, group.model) if part)
        between = f"{group.value - 1.96 * group.stderr:.3f} to {group.value + 1.96 * group.stderr:.3f}"
        rows.append((name, "mean", f"{len(group.of)} tasks", group.mean, "", f"{group.value:.3f}", between))
    head = ("task", "kind", "rows", "metric", "baseline", "score", "95 %")
    return _table(head, rows, frozenset((2, 4, 5, 6)))


def _between(score: TaskScore, metric: str) -> str:
    found = score.intervals.get(metric)
    return f"{found['low']:.3f} to {found['high']:.3f}" if found else ""


def _chart(scores: Sequence[TaskScore]) -> str:
    """A row per score on a common axis; scores that may leave 0..1 widen it."""
    if not scores:
        return "<p>Nothing was scored.</p>"
    shown = [(score, score.values[score.main], score.intervals.get(score.main, {})) for score in scores]
    ends = [
        end for _, value, found in shown for end in (value, found.get("low", value), found.get("high", value))
    ]
    ends += [score.baseline[score.main] for score in scores if score.main in score.baseline]
    low, high = min(0.0, *ends), max(1.0, *ends)

    def x(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    height, parts = ROW * (len(shown) + 1), []
    for tick in range(5):
        value = low + (high - low) * tick / 4
        parts.append(
            f'<line class="rule" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="0" y2="{height - ROW}"/>'
        )
        parts.append(
            f'<text class="soft" x="{x(value):.1f}" y="{height - 8}" text-anchor="middle">{value:.2f}</text>'
        )
    for i, (score, value, found) in enumerate(shown):
        y = ROW * i + ROW / 2
        name = _name(score)
        label = name if len(name) <= 34 else f"{name[:33]}…"
        parts.append(f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end">{escape(label)}</text>')
        if found:
            ends = f'x1="{x(found["low"]):.1f}" x2="{x(found["high"]):.1f}"'
            parts.append(f'<line class="mark" {ends} y1="{y}" y2="{y}" stroke-width="2"/>')
        if score.main in score.baseline:
            at = x(score.baseline[score.main])
            parts.append(f'<line class="base" x1="{at:.1f}" x2="{at:.1f}" y1="{y - 7}" y2="{y + 7}"/>')
        parts.append(f'<circle class="mark" cx="{x(value):.1f}" cy="{y}" r="4"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 12}" y="{y + 4}">{value:.3f}</text>')
    label = "Main score of every task with its interval, and its baseline"
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg>'
    )


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
    return title + _table(head, rows, frozenset(range(2, 9))) + (_list(one.apart) if one.apart else "")


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
    return ["<h2>Rows that stand in the training data</h2>", _table(head, rows, frozenset((1, 2, 3, 4)))]


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
        table = _table(("task", "metric", axis, "rows", "score"), rows, frozenset((3, 4)))
        parts += [
            f"<h2>By {escape(axis)}</h2>",
            f"<details><summary>Scores by {escape(axis)}</summary>{table}</details>",
        ]
    return parts


def _wrong(wrong: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    parts = []
    for name, rows in wrong.items():
        if rows:
            shown = [
                (row["row"], _short(row["inputs"]), _short(row["target"]), _short(row["value"]))
                for row in rows
            ]
            table = _table(("row", "input", "wanted", "answered"), shown, frozenset())
            parts.append(f"<details><summary>{escape(name)}</summary>{table}</details>")
    return ["<h2>Wrong answers</h2>", *parts] if parts else []


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        value = " · ".join(f"{key}: {_short(part)}" for key, part in value.items())
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _settings(report: Report) -> str:
    rows = [(str(key), _short(value)) for key, value in report.about.items()]
    rows += [
        (f"{_name(score)}: hashes", ", ".join(f"{name} {value[:12]}" for name, value in score.hashes.items()))
        for score in report.scores
        if score.hashes
    ]
    return f"<details><summary>Settings and versions</summary>{_table(('', ''), rows, frozenset())}</details>"


def _name(score: TaskScore) -> str:
    return " ".join(part for part in (score.task, score.model, score.template) if part)
