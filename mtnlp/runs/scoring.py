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
from mtnlp.runs import session
from mtnlp.runs.folder import spec_to_json
from mtnlp.tasks.spec import Example, TaskSpec

PERPLEXITIES = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")


@dataclass(frozen=True)
class Judged:
    """One model on one task: its score, and what the score was made of, row by row.

    spec: the task as it was asked. stats: metric name -> (N, k) statistics; where the rows are, what they ask
    and want, what was answered.
    """

    spec: TaskSpec
    score: TaskScore
    stats: Mapping[str, np.ndarray]
    places: Sequence[str]
    examples: Sequence[Example]
    answers: Answers


def judged(
    data: TaskData,
    entry: Entry,
    questions: Questions,
    places: list[str],
    answers: Answers,
    model: str,
    faults: list[str],
    resamples: int,
) -> Judged:
    spec, examples = data.spec, questions.examples
    truth = [example.target for example in examples]
    values = [_canonical(spec, answer["value"]) for answer in answers]
    if entry.request == "likelihood":
        values = [tuple(value[name] for name in ("logprob", "tokens", "words", "bytes")) for value in values]
    wanted = _metrics(entry, spec, answers)
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
        spec.kind,
        entry.split,
        len(examples),
        measured,
        {} if entry.request == "likelihood" else _baseline(data, wanted, examples, truth),
        intervals(wanted, stats, resamples),
        model=model,
        template=str(questions.template or ""),
        shots=entry.shots if questions.drawn else len(questions.shots),
        hashes=_hashes(spec, questions, truth),
        faults=(*faults, *_broken(answers, measured)),
        notes=_cut(answers),
        slices=_slices(wanted[0], stats[wanted[0].name], examples),
    )
    return Judged(spec, score, stats, places, examples, answers)


def _metrics(entry: Entry, spec: TaskSpec, answers: Answers) -> list[metrics.Metric]:
    """The task's metrics, the suite's main one first; those that read scores only where there are scores."""
    if entry.request == "likelihood":
        return [metrics.get(name, "text") for name in PERPLEXITIES]
    names = dict.fromkeys([*([entry.metric] if entry.metric else []), *spec.metrics])
    found = [metrics.get(name, spec.kind) for name in names]
    there = all(answer.get("scores") is not None for answer in answers)
    return [metric for metric in found if there or metric.reads == "value"]


def intervals(
    wanted: Sequence[metrics.Metric], stats: Mapping[str, np.ndarray], resamples: int
) -> dict[str, dict[str, float]]:
    found = {}
    for metric in wanted if resamples else ():
        slow = metric.resample is None and not metric.additive  # a foreign one: a call for each resample
        own = statistics.interval(
            metric, stats[metric.name], resamples=min(resamples, 100) if slow else resamples
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


def _canonical(spec: TaskSpec, value: Any) -> Any:
    """A value as it was before it was JSON."""
    return tuple(value) if spec.kind in ("multilabel", "tag") else value


def _broken(answers: Answers, measured: Mapping[str, float]) -> list[str]:
    """Answers and scores that are no numbers."""
    broken = sum(not _finite(answer.get("scores")) or not _finite(answer["value"]) for answer in answers)
    faults = [f"{broken} of {len(answers):,} answers are not numbers (NaN or infinite)."] if broken else []
    odd = [name for name, value in measured.items() if not math.isfinite(value)]
    return faults + ([f"{', '.join(odd)} came out as no number."] if odd else [])


def _cut(answers: Answers) -> tuple[str, ...]:
    """How many inputs lost tokens."""
    cut = sum(bool(answer.get("cut")) for answer in answers)
    return (
        (f"{cut} of {len(answers):,} inputs were longer than the model reads, and were cut.",) if cut else ()
    )


def _finite(value: Any) -> bool:
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


def _slices(metric: metrics.Metric, stats: np.ndarray, examples: Sequence[Example]) -> dict[str, list[Any]]:
    """The main metric by the number of words that a row holds."""
    lengths = [len(_words(example.inputs)) for example in examples]
    return {"words": [asdict(part) for part in axes.by_length(stats, metric, lengths)]}


def _words(inputs: Mapping[str, Any]) -> list[str]:
    return " ".join(
        part if isinstance(part, str) else " ".join(map(str, part)) for part in inputs.values()
    ).split()
