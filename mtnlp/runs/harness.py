"""One evaluation: targets asked the tasks of a suite, answers kept, scores with their intervals.

What one task or one row does wrong stays with it: it is told and counted, and the others are scored.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any

import numpy as np

from mtnlp import metrics
from mtnlp.bench import axes, groups, retrieval, statistics
from mtnlp.bench.ask import Answers, Asked, ask
from mtnlp.bench.evaluate import GroupScore, Report, TaskScore
from mtnlp.bench.normalise import preferred
from mtnlp.bench.overlap import Overlap
from mtnlp.bench.questions import Questions
from mtnlp.bench.samples import Samples, key_of
from mtnlp.bench.shots import Pool, document
from mtnlp.bench.suites import Entry, Suite
from mtnlp.bench.suites.entries import Search
from mtnlp.data.kept import cache_dir
from mtnlp.data.task_data import TaskData
from mtnlp.errors import DataError, MtnlpError
from mtnlp.metrics.baseline import baseline
from mtnlp.runs import saved, session
from mtnlp.runs.folder import spec_to_json
from mtnlp.runs.targets import RunTarget, Target
from mtnlp.tasks.answers import options
from mtnlp.tasks.spec import Example, TaskSpec, Template

SHOWN = 3  # bad rows that a note quotes
PERPLEXITIES = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")
POOL = 10_000  # rows that solved examples are drawn from, at most


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


@dataclass
class Evaluation:
    """All that one target was asked."""

    report: Report
    judged: list[Judged] = field(default_factory=list)
    overlap: Overlap | None = None


def evaluate(
    target: Target,
    suite: Suite,
    *,
    opened: Mapping[str, TaskData] | None = None,
    progress: Callable[[str], None] = lambda line: None,
    resamples: int = statistics.RESAMPLES,
) -> Evaluation:
    """Ask a target every task of a suite, and score what it answers.

    Args:
        opened: tasks that are open already, by name.
        progress: told what is being asked.
        resamples: of the bootstrap; 0 = no intervals.
    """
    started = time.perf_counter()
    judged, skipped = [], []
    for entry in suite.entries:
        try:
            data = (opened or {}).get(entry.spec.name) or _opened(target, entry)
            judged += _entry(target, entry, data, progress, resamples)
        except MtnlpError as error:
            skipped.append({"task": entry.spec.name, "reason": str(error)})
    for search in suite.searches:
        try:
            judged.append(_search(target, search, progress, resamples))
        except MtnlpError as error:
            skipped.append({"task": search.name, "reason": str(error)})
    about = {
        "target": target.name,
        "suite": suite.name,
        "suite_version": suite.version,
        **target.about,
        "seconds": round(time.perf_counter() - started, 1),
    }
    scores = tuple(item.score for item in judged)
    report = Report(scores, about, _groups(suite, scores), tuple(skipped))
    return Evaluation(replace(report, spreads=_spreads(scores)), judged)


def evaluate_own(
    target: RunTarget, tasks: str | Sequence[str] | None, split: str, limit: int | None, **more: Any
) -> Evaluation:
    """Ask a run its own tasks. What is wrong with any row of any of them is told before anything is asked.

    Raises:
        MtnlpError: unknown task; no such split; rows that lived in memory, or cannot be used.
    """
    opened = {data.spec.name: data for data in saved.open_tasks(target, tasks, split, limit)}
    entries = tuple(Entry(data.spec, split, data.spec.metrics[0], limit=limit) for data in opened.values())
    return evaluate(target, Suite("own tasks", 1, "", entries, (), target.folder.path), opened=opened, **more)


def _opened(target: Target, entry: Entry) -> TaskData:
    spec = target.spec(entry.spec)
    return TaskData.open(spec if entry.shots is None else spec.replace(shots=0))


def _entry(
    target: Target, entry: Entry, data: TaskData, progress: Callable[[str], None], resamples: int
) -> list[Judged]:
    """One task with each of its templates, for all models of a target."""
    target.check(data.spec)
    places, examples, faults = _readable(data, entry.split, entry.limit)
    samples = Samples(cache_dir() / "answers" / f"{target.digest(target.models[0])}.jsonl")
    found, drawn = [], _drawn(data, entry, examples)
    for template in entry.templates or (None,):
        questions = Questions(
            data.spec, examples, template, session.shots_of(data.spec), entry.request, drawn, entry.generation
        )
        asked = {
            model: Asked(target.index(model, data.spec), target.digest(model), questions)
            for model in target.models
        }
        progress(" ".join(filter(None, (data.spec.name, template))) + f": {len(examples):,} rows")
        answers = ask(lambda: target.predictor, samples, asked)
        if entry.normalise != "auto":
            answers = _normalised(target, entry, samples, asked, answers)
        for model, own in answers.items():
            found.append(_judged(data, entry, questions, places, own, model, faults, resamples))
    return found


def _search(target: Target, search: Search, progress: Callable[[str], None], resamples: int) -> Judged:
    """One retrieval task: the documents that a target's vectors rank first for each query."""
    task = retrieval.read(search.path, search.split, name=search.name)
    progress(f"{search.name}: {len(task.queries):,} queries, {len(task.corpus):,} documents")
    digest = target.digest(target.models[0])
    samples = Samples(cache_dir() / "answers" / f"{digest}.jsonl")
    keys = {query: key_of(digest, task.digest, retrieval.DEPTH, query) for query in task.queries}
    notes: tuple[str, ...] = task.notes
    if any(samples.get(key) is None for key in keys.values()):
        ranked = retrieval.retrieve(task, target.embedder)
        notes = ranked.notes
        samples.add(
            (keys[query], {"value": list(ids)}) for query, ids in zip(task.queries, ranked.predictions)
        )
    answers = [dict(samples.get(key)) for key in keys.values()]
    truth = [dict(task.qrels[query]) for query in task.queries]
    wanted = [metrics.get(name, "retrieve") for name in search.metrics]
    values = [tuple(answer["value"]) for answer in answers]
    stats = {metric.name: metric.stats(values, truth, None) for metric in wanted}
    score = TaskScore(
        search.name,
        "retrieve",
        search.split,
        len(truth),
        {metric.name: float(metric.reduce(stats[metric.name])) for metric in wanted},
        {},
        _intervals(wanted, stats, resamples),
        hashes={"task": task.digest, "data": task.digest},
        notes=notes,
    )
    spec = TaskSpec(search.name, "generate", None)
    examples = [
        Example(search.name, i, {"query": text}, truth[i]) for i, text in enumerate(task.queries.values())
    ]
    shown = [{"value": answer["value"][:10]} for answer in answers]
    return Judged(spec, score, stats, list(task.queries), examples, shown)


def _intervals(
    wanted: Sequence[metrics.Metric], stats: Mapping[str, np.ndarray], resamples: int
) -> dict[str, dict[str, float]]:
    found = {}
    for metric in wanted if resamples else ():
        own = statistics.interval(metric, stats[metric.name], resamples=resamples)
        found[metric.name] = {"stderr": own.stderr, "low": own.low, "high": own.high}
    return found


def _drawn(data: TaskData, entry: Entry, examples: Sequence[Example]) -> dict[str, tuple[Example, ...]]:
    """Solved examples for each document, where the suite wants some: from train, else from the rows asked."""
    if not entry.shots:
        return {}
    split = "train" if "train" in data.splits else entry.split
    pool = Pool(session.questions_of(data, split, most=POOL).examples)
    return {key: pool.draw(key, entry.shots, seed=0) for key in map(document, examples)}


def _normalised(
    target: Target, entry: Entry, samples: Samples, asked: Mapping[str, Asked], answers: dict[str, Answers]
) -> dict[str, Answers]:
    """The answers by the entry's way of comparing options; those of a head have no likelihoods to compare."""
    alone: dict[str, Answers] = {}
    if entry.normalise == "pmi":
        bare = {model: replace(one, questions=_without_prompt(one.questions)) for model, one in asked.items()}
        alone = ask(lambda: target.predictor, samples, bare)
    found = {}
    for model, own in answers.items():
        spec, examples = asked[model].questions.spec, asked[model].questions.examples
        found[model] = [
            preferred(answer, entry.normalise, options(spec, example), bare)
            if "logprobs" in answer
            else answer
            for answer, example, bare in zip(own, examples, alone.get(model, [None] * len(own)), strict=True)
        ]
    return found


def _without_prompt(questions: Questions) -> Questions:
    templates = questions.spec.templates
    target = next(iter(templates.values())).target if templates else Template("").target
    return replace(questions, template=Template("", target), shots=(), drawn={})


def _readable(data: TaskData, split: str, limit: int | None) -> tuple[list[str], list[Example], list[str]]:
    """Where the rows of a split are, the rows, and a note on those that cannot be used."""
    rows = session._chosen(data, split, limit)
    places, examples, bad = [], [], []
    for i, row in session._each(rows):
        try:
            if isinstance(row, DataError):
                raise row
            found = session.read_example(data.spec, rows, i, row)
            if not all(text.strip() for text in found.inputs.get("choices", ())):
                raise DataError("choices: one of them is empty.")
            examples.append(found)
            places.append(rows.where(i))
        except DataError as error:
            place, text = rows.where(i), str(error)
            bad.append(text if text.startswith(place) else f"{place}: {text}")
    if not examples:
        first = f" {bad[0]}" if bad else ""
        raise MtnlpError(f"none of the {len(rows):,} rows of {split} can be used.{first}")
    more = f" (and {len(bad) - SHOWN} more)" if len(bad) > SHOWN else ""
    notes = [f"{len(bad)} of {len(rows):,} rows left out: {' '.join(bad[:SHOWN])}{more}"] if bad else []
    return places, examples, notes


def _judged(
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
        _intervals(wanted, stats, resamples),
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


def _groups(suite: Suite, scores: Sequence[TaskScore]) -> tuple[GroupScore, ...]:
    """The suite's means for each model; a task with several templates counts with their mean."""
    entries = {entry.spec.name: entry for entry in suite.entries}
    found = []
    for model in dict.fromkeys(score.model for score in scores):
        values: dict[str, list[TaskScore]] = {}
        for score in scores:
            if score.model == model:
                values.setdefault(score.task, []).append(score)
        for group in suite.groups:
            there = {name: _value(entries[name], values[name]) for name in group.tasks if name in values}
            if there:
                value, stderr = groups.aggregate(group, there)
                found.append(GroupScore(group.name, group.mean, value, stderr, tuple(there), model))
    return tuple(found)


def _spreads(scores: Sequence[TaskScore]) -> tuple[dict[str, Any], ...]:
    """How much the main score of a task depends on its template."""
    values: dict[tuple[str, str], dict[str, float]] = {}
    for score in scores:
        values.setdefault((score.task, score.model), {})[score.template] = score.values[score.main]
    kinds = {score.task: (score.main, score.kind) for score in scores}
    return tuple(
        {
            "task": task,
            "model": model,
            "templates": len(own),
            **asdict(axes.spread(own, greater_is_better=metrics.get(*kinds[task]).greater_is_better)),
        }
        for (task, model), own in values.items()
        if len(own) > 1
    )


def _value(entry: Entry, scores: Sequence[TaskScore]) -> groups.Value:
    """A task's scores, each the mean over its templates, as its groups count them."""
    main, *others = (
        groups.Value(
            fmean(score.values[name] for score in scores),
            fmean(score.intervals.get(name, {}).get("stderr", 0.0) for score in scores),
            scores[0].n,
            greater_is_better=metrics.get(name, scores[0].kind).greater_is_better,
        )
        for name in scores[0].values
    )
    return replace(main, chance=entry.chance, reference=entry.reference, also=tuple(others))
