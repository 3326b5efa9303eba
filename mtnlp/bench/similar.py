"""Answers of a plain encoder, which has no head: by the similarity of texts.

    regress, two texts   the cosine of their vectors, -1..1 (rank correlations do not mind the scale)
    choose               the choice whose vector is nearest to that of context and question

It is asked like `predict.Predictor`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mtnlp.bench.predict import Answered
from mtnlp.bench.questions import Questions
from mtnlp.errors import MtnlpError
from mtnlp.models.embedding import Embedder, similarity
from mtnlp.tasks.spec import Example

AT_ONCE = 256  # examples whose answers are kept together


class Similarity:
    """Compares the texts of an example.

    Args:
        embedder: makes vectors of texts.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder

    def batches(
        self, questions: Mapping[int, Questions], *, shared: bool = False
    ) -> Iterator[list[Answered]]:
        """See Predictor.batches; every process answers all, which takes little.

        Raises:
            MtnlpError: a kind of task that vectors cannot answer.
        """
        for task, part in questions.items():
            if part.spec.kind not in ("regress", "choose"):
                raise MtnlpError(
                    "a plain encoder answers regress tasks of two texts and choose tasks, by similarity; for "
                    f"{part.spec.kind} tasks train a head with `mtnlp finetune` and evaluate the run."
                )
            for start in range(0, len(part.examples), AT_ONCE):
                chunk = part.examples[start : start + AT_ONCE]
                answers = self._scores(chunk) if part.spec.kind == "regress" else self._choices(chunk)
                yield [(task, start + i, answer) for i, answer in enumerate(answers)]

    def _scores(self, examples: list[Example]) -> list[dict[str, Any]]:
        if any(example.inputs.get("text_pair") is None for example in examples):
            raise MtnlpError("a plain encoder can compare two texts, and this task has rows of one.")
        pairs = [(example.inputs["text"], example.inputs["text_pair"]) for example in examples]
        return [
            {"value": float(value), **_lost(cut)} for value, cut in zip(*similarity(self.embedder, pairs))
        ]

    def _choices(self, examples: list[Example]) -> list[dict[str, Any]]:
        pairs = [(_stem(example), choice) for example in examples for choice in example.inputs["choices"]]
        ends = np.cumsum([len(example.inputs["choices"]) for example in examples])[:-1]
        found, cut = (np.split(own, ends) for own in similarity(self.embedder, pairs))
        return [
            {"value": int(own.argmax()), "scores": own.tolist(), **_lost(lost.any())}
            for own, lost in zip(found, cut, strict=True)
        ]


def _lost(cut: bool) -> dict[str, str]:
    return {"cut": "the end of a text"} if cut else {}


def _stem(example: Example) -> str:
    return " ".join(filter(None, (example.inputs.get("context"), example.inputs["question"])))
