"""Predictions and references gathered bit by bit, with the interface of Hugging Face's `evaluate.Metric`.

    scores = combine(["accuracy", "macro_f1"])
    scores.add_batch(predictions=[0, 1], references=[0, 0])
    scores.compute()  # {"accuracy": 0.5, "macro_f1": 0.33...}

Code that was written for `evaluate` runs with this, without a network, files or locks. Every value is that of
`metrics.get(name)`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mtnlp import metrics
from mtnlp.errors import MtnlpError
from mtnlp.metrics.base import Metric
from mtnlp.metrics.text import BOTH

TEXTS = set(BOTH)


class Scores:
    """One metric and what it has been told since it was last computed.

    Args:
        metric: a name, as in `metrics.get`, or a metric. One that reads "scores" takes them as predictions.
        kind: the kind of task, for names that score several.
        labels: names in the order of their ids, where the metric needs them.

    Raises:
        MtnlpError: no such metric.
    """

    def __init__(
        self, metric: str | Metric, *, kind: str | None = None, labels: Sequence[str] | None = None
    ) -> None:
        self.metric = metrics.get(metric, kind) if isinstance(metric, str) else metric
        self.name, self.labels = self.metric.name, labels
        self._predictions: list[Any] = []
        self._references: list[Any] = []

    def add(self, *, prediction: Any = None, reference: Any = None) -> None:
        """Keep one example; see `add_batch`."""
        self.add_batch(predictions=[prediction], references=None if reference is None else [reference])

    def add_batch(self, *, predictions: Sequence[Any] = (), references: Sequence[Any] | None = None) -> None:
        """Keep several examples.

        Args:
            predictions: (n,) canonical values, or scores.
            references: (n,) targets; a text that is to be matched may stand for a tuple of one. None only for
                metrics that read no references, such as perplexity.

        Raises:
            MtnlpError: unequal numbers; nothing of the batch is kept then.
        """
        said = list(predictions)
        if references is None and "text" in self.metric.kinds:
            references = [None] * len(said)
        if references is None or len(references) != len(said):
            count = "no" if references is None else len(references)
            raise MtnlpError(
                f"{self.name}: {len(said)} predictions for {count} references; give one per example."
            )
        self._predictions += said
        self._references.extend(references)

    def compute(
        self, *, predictions: Sequence[Any] | None = None, references: Sequence[Any] | None = None
    ) -> dict[str, float]:
        """{name: value} over all that was kept and what is given here; nothing is kept afterwards.

        Raises:
            MtnlpError: no examples, or values the metric cannot read.
        """
        if predictions is not None or references is not None:
            self.add_batch(predictions=() if predictions is None else predictions, references=references)
        said, wanted = self._predictions, self._references
        self._predictions, self._references = [], []
        if TEXTS & set(self.metric.kinds):
            wanted = [(one,) if isinstance(one, str) else one for one in wanted]
        return {self.name: self.metric(said, wanted, self.labels)}


class Combined:
    """Several metrics that are told the same; made by `combine`."""

    def __init__(self, scores: Sequence[Scores], names: Sequence[str], *, force_prefix: bool) -> None:
        self._scores, self._names, self._force_prefix = scores, names, force_prefix

    def add(self, *, prediction: Any = None, reference: Any = None) -> None:
        """Keep one example for each."""
        for one in self._scores:
            one.add(prediction=prediction, reference=reference)

    def add_batch(self, *, predictions: Sequence[Any] = (), references: Sequence[Any] | None = None) -> None:
        """Keep several examples for each."""
        for one in self._scores:
            one.add_batch(predictions=predictions, references=references)

    def compute(
        self, *, predictions: Sequence[Any] | None = None, references: Sequence[Any] | None = None
    ) -> dict[str, float]:
        """The values of all. See `combine` for their names."""
        found = [one.compute(predictions=predictions, references=references) for one in self._scores]
        often = Counter(key for values in found for key in values)
        merged: dict[str, float] = {}
        for head, values in zip(_numbered(self._names), found, strict=True):
            for key, value in values.items():
                merged[f"{head}_{key}" if often[key] > 1 or self._force_prefix else key] = value
        return merged


def combine(
    evaluations: Sequence[str | Scores] | Mapping[str, str | Scores], force_prefix: bool = False
) -> Combined:
    """Several metrics as one.

    Where two of them give a value of one name, or with `force_prefix`, its key is PREFIX_NAME: the prefix is
    the key in `evaluations`, or else the metric's name, numbered (m_0, m_1) where several are of one name.

    Args:
        evaluations: names of metrics, or `Scores` where a kind or labels are to be said.

    Raises:
        MtnlpError: no such metric.
    """
    named = isinstance(evaluations, Mapping)
    given = list(evaluations.values()) if named else list(evaluations)
    scores = [Scores(one) if isinstance(one, str) else one for one in given]
    names = list(evaluations) if named else [one.name for one in scores]
    return Combined(scores, names, force_prefix=force_prefix)


def _numbered(names: Sequence[str]) -> list[str]:
    """Names that occur several times with _0, _1 ... at their end."""
    often, seen, found = Counter(names), Counter[str](), []
    for name in names:
        found.append(f"{name}_{seen[name]}" if often[name] > 1 else name)
        seen[name] += 1
    return found
