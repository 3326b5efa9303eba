"""A retrieval task of a suite: what a target's vectors rank first for each query."""

from __future__ import annotations

from collections.abc import Callable

from mtnlp import metrics
from mtnlp.bench import retrieval
from mtnlp.bench.evaluate import TaskScore
from mtnlp.bench.samples import Samples, key_of
from mtnlp.bench.suites.entries import Search
from mtnlp.data.kept import cache_dir
from mtnlp.runs.scoring import Judged, intervals
from mtnlp.runs.targets import Target
from mtnlp.tasks.spec import Example, TaskSpec


def judged(target: Target, search: Search, progress: Callable[[str], None], resamples: int) -> Judged:
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
        intervals(wanted, stats, resamples),
        hashes={"task": task.digest, "data": task.digest},
        notes=notes,
    )
    spec = TaskSpec(search.name, "generate", None)
    examples = [
        Example(search.name, i, {"query": text}, truth[i]) for i, text in enumerate(task.queries.values())
    ]
    shown = [{"value": answer["value"][:10]} for answer in answers]
    return Judged(spec, score, stats, list(task.queries), examples, shown)
