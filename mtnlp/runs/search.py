"""A retrieval task of a suite: what a target's vectors rank first for each query."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mtnlp import metrics
from mtnlp.bench import retrieval
from mtnlp.bench.evaluate import TaskScore
from mtnlp.bench.samples import Samples, key_of
from mtnlp.bench.suites.entries import Search
from mtnlp.bench.vectors import Vectors
from mtnlp.data.kept import cache_dir
from mtnlp.errors import MtnlpError
from mtnlp.runs.scoring import Judged, intervals
from mtnlp.runs.targets import RunTarget, Target
from mtnlp.tasks.spec import Example, TaskSpec

if TYPE_CHECKING:
    from mtnlp.models.embedding import Embedder

ALIKE = ("full", "heads", "lora", "mixlora")  # strategies whose vectors are the same for every task
SHOWN = 10  # documents of a query in the samples


def judged(target: Target, search: Search, progress: Callable[[str], None], resamples: int) -> Judged:
    """One retrieval task: the documents that a target's vectors rank first for each query.

    Vectors are kept, so a second time no model is loaded, and after a change only new texts are embedded; the
    ranks are made again each time.

    Raises:
        MtnlpError: files with faults, or a target without vectors, or with several kinds of them.
    """
    task = retrieval.read(search.path, search.split, name=search.name)
    progress(f"{search.name}: {len(task.queries):,} queries, {len(task.corpus):,} documents")
    ranked = retrieval.retrieve(task, _vectors(target, search.name))
    truth = [dict(gains) for gains in ranked.references]
    wanted = [metrics.get(name, "retrieve") for name in search.metrics]
    stats = {metric.name: metric.stats(ranked.predictions, truth, None) for metric in wanted}
    score = TaskScore(
        search.name,
        "retrieve",
        search.split,
        len(truth),
        {metric.name: float(metric.reduce(stats[metric.name])) for metric in wanted},
        {},
        intervals(wanted, stats, resamples),
        hashes={"task": task.digest, "data": task.digest},
        notes=ranked.notes,
    )
    spec = TaskSpec(search.name, "generate", None)
    examples = [
        Example(search.name, i, {"query": text}, truth[i]) for i, text in enumerate(task.queries.values())
    ]
    shown = [{"value": list(ids[:SHOWN])} for ids in ranked.predictions]
    return Judged(spec, score, stats, list(task.queries), examples, shown)


def _vectors(target: Target, name: str) -> Vectors:
    """What embeds the texts of the retrieval task of this name."""
    own = _whose(target, name)
    digest = target.digest(own if own in target.models else target.models[0])
    samples = Samples(cache_dir() / "answers" / f"{digest}.vectors.jsonl")
    return Vectors(lambda: _embedder(target, own), samples, key_of(digest, own))


def _whose(target: Target, name: str) -> str:
    """The task, or the adapter, whose vectors are taken; "" = any, where they are the same for all.

    Raises:
        MtnlpError: they differ, and the retrieval task has the name of none.
    """
    if not isinstance(target, RunTarget):
        what, choices = "adapters", list(target.models)
    elif target.about["strategy"] in ALIKE:
        return ""
    else:
        what, choices = "tasks", list(target.tasks)
    if len(choices) == 1 or name in choices:
        return name if name in choices else choices[0]
    raise MtnlpError(
        f"{target.name} has vectors of its own for each of its {what}. Give the retrieval task the name of "
        f"the one that is to embed: {', '.join(choices)}."
    )


def _embedder(target: Target, own: str) -> Embedder:
    from mtnlp.bench.similar import Similarity
    from mtnlp.models.embedding import Embedder

    found = target.predictor
    if isinstance(found, Similarity):
        return found.embedder
    model = getattr(found, "model", None)
    if model is None:
        raise MtnlpError(f"{target.name} answers by a classification head and has no vectors of texts.")
    return Embedder(model, task=own if own in model.tasks else model.tasks[0])
