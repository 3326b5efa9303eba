"""Scores over predictions and references; numpy only.

`metrics.get("macro_f1", "tag")(predictions, references, labels)` is a float.
"""

from __future__ import annotations

from functools import cache

from mtnlp.errors import MtnlpError, did_you_mean, shown
from mtnlp.metrics.base import Metric
from mtnlp.metrics.baseline import baseline

__all__ = ["Metric", "baseline", "get", "names", "register"]

_added: list[Metric] = []


@cache
def _shipped() -> tuple[Metric, ...]:
    from mtnlp.metrics import (
        classification,
        confidence,
        perplexity,
        regression,
        retrieval,
        tagging,
        text,
    )

    rooms = classification, confidence, tagging, regression, text, retrieval, perplexity
    return tuple(metric for room in rooms for metric in room.METRICS)


def _made(name: str) -> Metric | None:
    """A metric that is made from its name: `evaluate:...`, or a score of any number of ranks."""
    from mtnlp.metrics import retrieval

    if name.startswith("evaluate:"):
        from mtnlp.metrics import foreign

        return foreign.load(name)
    return retrieval.at(name)


def names(kind: str | None = None) -> list[str]:
    """Names of all metrics, or of those that score one kind of task; sorted."""
    return sorted({m.name for m in (*_shipped(), *_added) if kind is None or kind in m.kinds})


def get(name: str, kind: str | None = None) -> Metric:
    """The metric called `name`, for one kind of task.

    Some names (macro_f1, micro_f1, weighted_f1, auroc) score single labels and label sets, or tag sequences
    too, and a tuple of ids may be either of the last two. So say the kind whenever it is known; without it
    they read single labels.

    ndcg_K, recall_K and mrr_K exist for every K. `evaluate:PATH_OR_ID` is a metric of the library `evaluate`;
    see `metrics.foreign`.

    Raises:
        MtnlpError: no such metric, with the nearest names, or one that does not score this kind.
    """
    found = [m for m in (*_shipped(), *_added) if m.name == name]
    if not found and (made := _made(name)):
        found = [made]
    if not found:
        raise MtnlpError(f"No metric is called {shown(name)}. {did_you_mean(name, names())}")
    for metric in found:
        if kind is None or kind in metric.kinds:
            return metric
    raise MtnlpError(
        f"The metric {name} does not score {kind} tasks. Metrics that do: {', '.join(names(kind))}."
    )


def register(metric: Metric) -> Metric:
    """Add a metric of your own, for instance from a module that the recipe's `imports` names.

    Raises:
        MtnlpError: the name already scores one of these kinds.
    """
    taken = [m for m in (*_shipped(), *_added) if m.name == metric.name and set(m.kinds) & set(metric.kinds)]
    if taken:
        raise MtnlpError(f"The metric {metric.name!r} is registered already for {', '.join(taken[0].kinds)}.")
    _added.append(metric)
    return metric
