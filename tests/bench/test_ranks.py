"""Processes that have read different states of the kept answers; a stand-in tells what the other one says."""

from __future__ import annotations

import accelerate.utils
import pytest

from mtnlp.bench import ranks
from mtnlp.bench.ask import Asked, ask
from mtnlp.bench.questions import Questions
from mtnlp.bench.samples import Samples
from mtnlp.tasks.spec import Example, TaskSpec

SPEC = TaskSpec("t", "classify", None, labels=("a", "b"))


@pytest.fixture
def other(monkeypatch):
    """A second process that says these things, one after the other, and then that it has no more batches."""
    says = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(ranks, "settle", lambda: None)
    monkeypatch.setattr(accelerate.utils, "gather_object", lambda own: [*own, says.pop(0) if says else None])
    return says


def test_what_one_process_has_not_read_is_asked_by_all(tmp_path, other):
    asked = []

    class Model:
        def batches(self, questions, *, shared):
            for task, part in questions.items():
                asked.extend(example.inputs["text"] for example in part.examples)
                yield [(task, i, {"value": i}) for i in range(len(part.examples))]

    questions = Questions(SPEC, [Example("t", i, {"text": text}, None) for i, text in enumerate("abc")])
    one = Asked(0, "d", questions)
    kept = Samples(tmp_path / "m.jsonl")
    keys = one.keys()
    kept.add([(key, {"value": 9}) for key in keys])
    other += [{"m": [2, 0]}, None]

    answers = ask(Model, kept, {"m": one})["m"]

    assert asked == ["a", "c"] and [answer["value"] for answer in answers] == [0, 9, 1]


def test_one_process_by_itself_asks_nobody(monkeypatch):
    monkeypatch.setattr(ranks, "settle", lambda: pytest.fail("waited"))
    assert ranks.merged({"m": [1]}) == {"m": [1]}
