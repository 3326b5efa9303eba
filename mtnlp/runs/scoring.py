"""From answers to scores: the metrics of a task with their intervals, baselines, slices, and what was odd."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mtnlp import metrics
from mtnlp.bench import axes, statistics
from mtnlp.bench.ask import Answers
from mtnlp.bench.evaluate import TaskScore
from mtnlp.bench.questions import Questions
from mtnlp.bench.samples import key_of
from mtnlp.bench.suites import Entry
from mtnlp.data.task_data import TaskData
from mtnlp.errors import MtnlpError
from mtnlp.metrics.baseline import baseline
from mtnlp.metrics.classification import per_label
from mtnlp.runs import session
from mtnlp.runs.asked import Rows, numbered
from mtnlp.runs.folder import spec_to_json
from mtnlp.tasks.spec import Example, TaskSpec

LABELLED = ("classify", "pair", "ordinal", "multilabel", "tag")
PARTS = ("logprob", "tokens", "words", "bytes")  # of a likelihood, as the metrics of texts read them


@dataclass(frozen=True)
class Judged:
    """One model on one task: its score, and what the score was made of, row by row.

    spec: the task as it was asked. stats: metric name -> (N, k) statistics; where the rows are, what they ask
    and want, what was answered. clusters: a number for each row, the same where rows are drawn together in a
    resample; None = each by itself.
    """

    spec: TaskSpec
    score: TaskScore
    stats: Mapping[str, np.ndarray]
    places: Sequence[str]
    examples: Sequence[Example]
    answers: Answers
    clusters: Sequence[int] | None = None


def judged(
    data: TaskData,
    entry: Entry,
    questions: Questions,
    rows: Rows,
    answers: Answers,
    model: str,
    resamples: int,
) -> Judged:
    spec, examples = data.spec, questions.examples
    truth = [example.target for example in examples]
    values = [_canonical(entry.kind, answer["value"]) for answer in answers]
    wanted = _metrics(entry, spec, answers)
    clusters = numbered(rows.columns[entry.cluster]) if entry.cluster else None
    main = wanted[0]
    stats = {
        metric.name: metric.stats(
            values if metric.reads == "value" else [answer["scores"] for answer in answers],
            truth,
            spec.labels,
        )
        for metric in wanted
    }
    measured = {metric.name: float(metric.reduce(stats[metric.name])) for metric in wanted}
    score = TaskScore(
        spec.name,
        entry.kind,
        entry.split,
        len(examples),
        measured,
        {} if entry.kind == "text" else _baseline(data, wanted, examples, truth),
        intervals(wanted, stats, resamples, clusters),
        model=model,
        template=str(questions.template or ""),
        shots=entry.shots if questions.drawn else len(questions.shots),
        hashes=_hashes(spec, questions, truth),
        faults=(*rows.faults, *_broken(answers, measured), *_half_scored(entry, answers)),
        notes=(*_cut(answers), *_drawn_together(entry.cluster, clusters)),
        slices=_slices(main, stats[main.name], rows, entry.slices),
        labels=_labels(entry.kind, spec, values, truth),
    )
    return Judged(spec, score, stats, rows.places, examples, answers, clusters)


def _metrics(entry: Entry, spec: TaskSpec, answers: Answers) -> list[metrics.Metric]:
    """The task's metrics, the suite's main one first; those that read scores only where there are scores."""
    names = dict.fromkeys([*([entry.metric] if entry.metric else []), *spec.metrics])
    found = [metrics.get(name, entry.kind) for name in names]
    if all(answer.get("scores") is not None for answer in answers):
        return found
    if left := [metric for metric in found if metric.reads == "value"]:
        return left
    raise MtnlpError(
        f"metric: {', '.join(names)} read the score of each label or option, and these answers have none. "
        "Use request: options, or another metric."
    )


def intervals(
    wanted: Sequence[metrics.Metric],
    stats: Mapping[str, np.ndarray],
    resamples: int,
    clusters: Sequence[int] | None = None,
) -> dict[str, dict[str, float]]:
    """Of each metric; none of a single cluster, whose resamples are all the same."""
    found: dict[str, dict[str, float]] = {}
    if not resamples or (clusters is not None and len(set(clusters)) == 1):
        return found
    for metric in wanted:
        own = statistics.interval(
            metric,
            stats[metric.name],
            resamples=min(resamples, 100) if metric.slow else resamples,
            clusters=clusters,
        )
        found[metric.name] = {"stderr": own.stderr, "low": own.low, "high": own.high}
    return found


def _baseline(
    data: TaskData, wanted: Sequence[metrics.Metric], examples: Sequence[Example], truth: Sequence[Any]
) -> dict[str, float]:
    """Scores of a guess without reading, from training rows; none where there are none that can be read."""
    with suppress(MtnlpError):
        targets = session.train_targets(data)
        plain = baseline(data.spec.kind, targets, examples, data.spec.labels)
        return {
            metric.name: float(metric(plain, truth, data.spec.labels))
            for metric in wanted
            if metric.reads == "value"
        }
    return {}


def _canonical(kind: str, value: Any) -> Any:
    """A value as metrics of this kind read it, and as it was before it was JSON."""
    if kind == "text":
        return tuple(value[name] for name in PARTS)
    return tuple(value) if kind in ("multilabel", "tag") else value


def _broken(answers: Answers, measured: Mapping[str, float]) -> list[str]:
    """Answers and scores that are no numbers."""
    broken = sum(not _finite(answer.get("scores")) or not _finite(answer["value"]) for answer in answers)
    faults = [f"{broken} of {len(answers):,} answers are not numbers (NaN or infinite)."] if broken else []
    odd = [name for name, value in measured.items() if not math.isfinite(value)]
    return faults + ([f"{', '.join(odd)} came out as no number."] if odd else [])


def _cut(answers: Answers) -> tuple[str, ...]:
    """How many inputs lost tokens, and which."""
    lost = [answer["cut"] for answer in answers if answer.get("cut")]
    if not lost:
        return ()
    told = f"{len(lost):,} of {len(answers):,} inputs were longer than the model reads and lost tokens"
    return (f"{told}: {'; '.join(dict.fromkeys(lost))}.",)


def _half_scored(entry: Entry, answers: Answers) -> list[str]:
    """That perplexities count words and bytes of targets whose ends were not scored."""
    if entry.request != "likelihood" or not any(answer.get("cut") for answer in answers):
        return []
    return ["Where a target was cut, its perplexities by word and byte are too low; request: text cuts none."]


def _drawn_together(column: str, clusters: Sequence[int] | None) -> tuple[str, ...]:
    """How the intervals came about, where not by single rows."""
    if clusters is None:
        return ()
    count = len(set(clusters))
    if count == 1:
        return (f"All rows have the same {column}, so there are no intervals by it.",)
    return (f"Intervals are over {count:,} values of {column}; the rows of each are drawn together.",)


def _finite(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    if isinstance(value, float):
        return math.isfinite(value)
    return all(map(_finite, value)) if isinstance(value, list | tuple) else True


def _hashes(spec: TaskSpec, questions: Questions, truth: Sequence[Any]) -> dict[str, str]:
    text = spec_to_json(spec)
    inputs = [dict(example.inputs) for example in questions.examples]
    return {
        "task": key_of({name: text[name] for name in text if name != "source"}),
        "template": key_of(text["templates"], questions.template, text["instruction"], text["shots"]),
        "data": key_of(inputs, list(truth)),
    }


def _slices(
    metric: metrics.Metric, stats: np.ndarray, rows: Rows, columns: Sequence[str]
) -> dict[str, list[Any]]:
    """The main metric by the number of words that a row holds, by its language where there are several, and
    by columns that the suite names; one of these goes before an axis of its name."""
    lengths = [len(_words(example.inputs)) for example in rows.examples]
    found = {"words": axes.by_length(stats, metric, lengths)}
    if len(set(rows.languages)) > 1:
        found["language"] = axes.by_value(stats, metric, rows.languages)
    found |= {name: axes.by_value(stats, metric, rows.columns[name]) for name in columns}
    return {axis: [asdict(part) for part in parts] for axis, parts in found.items()}


def _labels(
    kind: str, spec: TaskSpec, values: Sequence[Any], truth: Sequence[Any]
) -> dict[str, dict[str, float]]:
    """Precision, recall and F1 of each label, and how often it was true."""
    if kind not in LABELLED:
        return {}
    return per_label(metrics.get("macro_f1", kind).stats(values, truth, spec.labels), spec.labels)


def _words(inputs: Mapping[str, Any]) -> list[str]:
    return " ".join(
        part if isinstance(part, str) else " ".join(map(str, part)) for part in inputs.values()
    ).split()
