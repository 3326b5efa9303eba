"""Vectors of texts, kept like answers: a text is embedded once, in whatever corpus or list of queries it is.

So after a change to one document only that one is embedded, after a kill the batches that are left, and equal
texts have equal vectors, to the last bit. Several processes share the batches, as they do those of questions;
see `bench.ranks`. Kept is base64 of the float32 numbers, 4/3 of their size. Needs no torch itself.

Shapes: N texts, D width.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mtnlp.bench import ranks
from mtnlp.bench.ask import Asked, ask
from mtnlp.bench.questions import Questions
from mtnlp.bench.samples import Samples
from mtnlp.models.embedded import Embedded
from mtnlp.tasks.spec import Example, TaskSpec

if TYPE_CHECKING:
    from mtnlp.bench.predict import Answered
    from mtnlp.models.embedding import Embedder

AT_ONCE = 20_000  # texts whose answers are held as text; batches are cut within them, wherever a kill falls


@dataclass(frozen=True)
class Vectors:
    """An embedder that is asked only for what is not kept.

    Args:
        embedder: gives it; called only if a vector is missing.
        samples: keeps every batch as soon as it is embedded.
        digest: of all that vectors depend on beside the text: the model, and how the embedder is set.
    """

    embedder: Callable[[], Embedder]
    samples: Samples
    digest: str

    def queries(self, texts: Sequence[str]) -> Embedded:
        """Vectors of texts that search."""
        return self._embed("query", texts)

    def documents(self, texts: Sequence[str]) -> Embedded:
        """Vectors of texts that are searched."""
        return self._embed("document", texts)

    def _embed(self, role: str, texts: Sequence[str]) -> Embedded:
        spec, vectors, cut = TaskSpec(role, "classify", None), [], []
        for start in range(0, len(texts), AT_ONCE):
            examples = [
                Example(role, i, {"text": text}, None) for i, text in enumerate(texts[start:][:AT_ONCE])
            ]
            questions = Questions(spec, examples, request="embed")
            asked = {role: Asked(0, self.digest, questions)}
            answers = ask(lambda: _Asking(self.embedder()), self.samples, asked)[role]
            vectors.append(np.stack([_numbers(answer["value"]) for answer in answers]))
            cut += [start + i for i, answer in enumerate(answers) if answer["cut"]]
        return Embedded(np.concatenate(vectors), tuple(cut))


@dataclass(frozen=True)
class _Asking:
    """Texts as questions whose answers are vectors; asked like `predict.Predictor`."""

    embedder: Embedder

    def batches(
        self, questions: Mapping[int, Questions], *, shared: bool = False
    ) -> Iterator[list[Answered]]:
        for task, part in questions.items():
            before = getattr(self.embedder, part.spec.name)  # what is put before texts of this role
            texts = [before + example.inputs["text"] for example in part.examples]
            for rows, vectors, cut in self.embedder.batches(texts, ranks.share if shared else iter):
                yield [
                    (task, int(row), {"value": _text(vector), "cut": bool(lost)})
                    for row, vector, lost in zip(rows, vectors, cut, strict=True)
                ]


def _text(vector: np.ndarray) -> str:
    return b64encode(vector.astype("<f4").tobytes()).decode("ascii")


def _numbers(text: str) -> np.ndarray:
    return np.frombuffer(b64decode(text), "<f4")
