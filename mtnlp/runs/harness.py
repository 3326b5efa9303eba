"""One evaluation: targets asked the tasks of a suite, answers kept, scores with their intervals.

What one task or one row does wrong stays with it: it is told and counted, and the others are scored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mtnlp import metrics
from mtnlp.bench import axes, groups, statistics
from mtnlp.bench.ask import Answers, Asked, ask
from mtnlp.bench.evaluate import GroupScore, Report, TaskScore
from mtnlp.bench.normalise import preferred
from mtnlp.bench.overlap import Overlap
from mtnlp.bench.questions import Questions
from mtnlp.bench.samples import Samples
from mtnlp.bench.shots import Pool, document
from mtnlp.bench.suites import Entry, Suite
from mtnlp.data.kept import cache_dir
from mtnlp.data.task_data import TaskData
from mtnlp.errors import MtnlpError
from mtnlp.runs import asked, saved, scoring, search, session
from mtnlp.runs.scoring import Judged
from mtnlp.runs.targets import RunTarget, Target
from mtnlp.tasks.answers import options
from mtnlp.tasks.spec import Example, TaskSpec, Template

if TYPE_CHECKING:
    from mtnlp.bench.predict import Predictor
    from mtnlp.bench.similar import Similarity

POOL = 10_000  # rows that solved examples are drawn from, at most
WRITES = ("a model that writes text", ("encoder-decoder", "decoder"))
NEEDS = {  # request -> what it needs, and the forms of networks that have it
    "head": ("an encoder with a head", ("encoder",)),
    "options": WRITES,
    "generate": WRITES,
    "likelihood": WRITES,
    "text": ("a decoder", ("decoder",)),
}


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
            models, unable = _able(target, data.spec)
            skipped += unable
            judged += _entry(target, entry, data, models, progress, resamples) if models else []
        except MtnlpError as error:
            skipped.append({"task": entry.spec.name, "reason": str(error)})
    for one in suite.searches:
        try:
            judged.append(search.judged(target, one, progress, resamples))
        except MtnlpError as error:
            skipped.append({"task": one.name, "reason": str(error)})
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
    return evaluate(target, Suite("own tasks", 1, "", entries, (), target.found.where), opened=opened, **more)


def _opened(target: Target, entry: Entry) -> TaskData:
    spec = target.spec(entry.spec)
    if entry.request == "text" and spec.kind == "generate":  # the target is not read, and need not be there
        spec = spec.replace(fields={**spec.fields, "target": spec.fields.get("text", "text")})
    return TaskData.open(spec if entry.shots is None else spec.replace(shots=0))


def _able(target: Target, spec: TaskSpec) -> tuple[list[str], list[dict[str, str]]]:
    """The models of a target that can answer a task, and why the others cannot."""
    able, unable = [], []
    for model in target.models:
        try:
            target.check(model, spec)
            able.append(model)
        except MtnlpError as error:
            unable.append({"task": spec.name, "reason": f"{model}: {error}" if model else str(error)})
    return able, unable


def _entry(
    target: Target,
    entry: Entry,
    data: TaskData,
    models: Sequence[str],
    progress: Callable[[str], None],
    resamples: int,
) -> list[Judged]:
    """One task with each of its templates, for those models of a target that can answer it."""
    rows = asked.read(data, entry)
    samples = Samples(cache_dir() / "answers" / f"{target.digest(target.models[0])}.jsonl")
    found, drawn = [], _drawn(data, entry, rows.examples)
    for template in entry.templates or (None,):
        questions = Questions(
            data.spec,
            rows.examples,
            template,
            session.shots_of(data.spec),
            entry.request,
            drawn,
            entry.generation,
        )
        questioned = {
            model: Asked(target.index(model, data.spec), target.digest(model), questions) for model in models
        }
        progress(" ".join(filter(None, (data.spec.name, template))) + f": {len(rows.examples):,} rows")
        answers = _answers(target, entry, samples, questioned)
        if entry.normalise != "auto":
            answers = _normalised(target, entry, samples, questioned, answers)
        for model, own in answers.items():
            found.append(scoring.judged(data, entry, questions, rows, own, model, resamples))
    return found


def _answers(
    target: Target, entry: Entry, samples: Samples, questioned: Mapping[str, Asked]
) -> dict[str, Answers]:
    if entry.request != "embed":
        return ask(lambda: _predictor(target, entry.request), samples, questioned)
    found: dict[str, Answers] = {}
    for model, one in questioned.items():  # one by one: each has vectors of its own
        found |= ask(partial(_similarity, target, one.index), samples, {model: one})
    return found


def _predictor(target: Target, request: str) -> Predictor:
    """What a target answers by. MtnlpError if it cannot be asked so."""
    found = target.predictor
    needed, forms = NEEDS.get(request, ("", ()))
    form = "encoder without a head" if hasattr(found, "embedder") else found.encoder.form
    if needed and form not in forms:
        raise MtnlpError(f"request: {request} needs {needed}, and {target.name} is an {form}; use auto.")
    return found


def _similarity(target: Target, index: int) -> Similarity:
    """What compares texts by the vectors of a target, those of one of its adapters where it has several."""
    from mtnlp.bench.similar import Similarity
    from mtnlp.models.embedding import Embedder

    found = target.predictor
    if isinstance(found, Similarity):
        return found
    model = getattr(found, "model", None)
    if model is None:
        raise MtnlpError(f"request: embed: {target.name} answers by a classification head; use auto.")
    return Similarity(Embedder(model, task=model.tasks[index]))


def _drawn(data: TaskData, entry: Entry, examples: Sequence[Example]) -> dict[str, tuple[Example, ...]]:
    """Solved examples for each document, where the suite wants some: from train, else from the rows asked."""
    if not entry.shots:
        return {}
    split = "train" if "train" in data.splits else entry.split
    pool = Pool(session.questions_of(data, split, most=POOL).examples)
    return {key: pool.draw(key, entry.shots, seed=0) for key in map(document, examples)}


def _normalised(
    target: Target,
    entry: Entry,
    samples: Samples,
    questioned: Mapping[str, Asked],
    answers: dict[str, Answers],
) -> dict[str, Answers]:
    """The answers by the entry's way of comparing options; those of a head have no likelihoods to compare."""
    alone: dict[str, Answers] = {}
    if entry.normalise == "pmi":
        bare = {
            model: replace(one, questions=_without_prompt(one.questions)) for model, one in questioned.items()
        }
        alone = _answers(target, entry, samples, bare)
    found = {}
    for model, own in answers.items():
        spec, examples = questioned[model].questions.spec, questioned[model].questions.examples
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
