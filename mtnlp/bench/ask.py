"""Asking a model what it has not been asked before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mtnlp.bench import ranks
from mtnlp.bench.questions import Questions
from mtnlp.bench.samples import Samples, key_of
from mtnlp.bench.shots import document
from mtnlp.data.store import ENCODED
from mtnlp.tasks.spec import Example

if TYPE_CHECKING:
    from mtnlp.bench.predict import Predictor

Answers = list[dict[str, Any]]


@dataclass(frozen=True)
class Asked:
    """Questions to one model.

    Args:
        index: the task index by which the predictor knows the model's head, adapter or row.
        digest: of all that the model's answers depend on beside the question.
        questions: what it is asked.
    """

    index: int
    digest: str
    questions: Questions

    def keys(self) -> list[str]:
        """One per example: a hash of the model, the prompt with its choices, and how it is asked.

        The answer that was expected is no part of it.
        """
        part, spec = self.questions, self.questions.spec
        task = [self.digest, spec.name, [repr(getattr(spec, name)) for name in ENCODED if name != "fields"]]
        shots = [(dict(shot.inputs), shot.target) for shot in part.shots]
        same = key_of(task, part.template, shots, part.request, dict(part.generation))
        return [key_of(same, dict(example.inputs), self._drawn(example)) for example in part.examples]

    def _drawn(self, example: Example) -> list[Any]:
        if not self.questions.drawn:
            return []
        return [(dict(shot.inputs), shot.target) for shot in self.questions.drawn[document(example)]]


def ask(
    predictor: Callable[[], Predictor],
    samples: Samples,
    asked: Mapping[str, Asked],
    done: Callable[[int], None] = lambda answered: None,
) -> dict[str, Answers]:
    """The answers of several models, by name; each in the order of its examples.

    Args:
        predictor: gives what asks the models; called only if an answer is not in `samples`.
        samples: keeps every batch as soon as it is answered.
        asked: model -> questions. Models that differ in their index share batches.
        done: told after each batch how many examples it had.
    """
    keys = {name: one.keys() for name, one in asked.items()}
    missing = {
        name: [row for row, key in enumerate(own) if samples.get(key) is None] for name, own in keys.items()
    }
    # Another evaluation may have written while processes read; they agree, or they would wait for each other.
    missing = ranks.merged({name: _once(rows, keys[name]) for name, rows in missing.items() if rows})
    if missing:
        names = {asked[name].index: name for name in missing}
        questions = {asked[name].index: _part(asked[name].questions, rows) for name, rows in missing.items()}
        asks = predictor()
        for batch in ranks.together(asks.batches(questions, shared=True)):
            answers = [
                (keys[names[index]][missing[names[index]][row]], answer) for index, row, answer in batch
            ]
            samples.add(answers, write=ranks.rank() == 0)
            done(len(batch))
    return {name: [dict(samples.get(key)) for key in own] for name, own in keys.items()}


def _once(rows: list[int], keys: list[str]) -> list[int]:
    """The rows without those that ask what an earlier one asks."""
    return list({keys[row]: row for row in reversed(rows)}.values())[::-1]


def _part(questions: Questions, rows: list[int]) -> Questions:
    return replace(questions, examples=[questions.examples[row] for row in rows])
