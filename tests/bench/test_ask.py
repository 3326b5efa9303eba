"""Asking with kept answers, against a model that answers from the text and counts what it is asked."""

import pytest

from mtnlp.bench.ask import Asked, ask
from mtnlp.bench.questions import Questions
from mtnlp.bench.samples import Samples
from mtnlp.tasks.spec import Example, TaskSpec

SPEC = TaskSpec("t", "classify", None, labels=("a", "b"))


class Model:
    """Answers in batches of three; stops before batch `stop`."""

    def __init__(self, stop=None):
        self.stop, self.seen = stop, []

    def batches(self, questions, *, shared):
        rows = [(task, row) for task, part in questions.items() for row in range(len(part.examples))]
        for start in range(0, len(rows), 3):
            if start // 3 == self.stop:
                raise KeyboardInterrupt
            batch = rows[start : start + 3]
            self.seen += [(task, questions[task].examples[row].inputs["text"]) for task, row in batch]
            yield [
                (task, row, {"value": len(questions[task].examples[row].inputs["text"]) + task})
                for task, row in batch
            ]


def asked(texts, digest="d", index=0, **more):
    examples = [Example("t", i, {"text": text}, None) for i, text in enumerate(texts)]
    return Asked(index, digest, Questions(SPEC, examples, **more))


TEXTS = ["x" * n for n in (3, 1, 4, 1, 5, 9, 2, 6)]


def test_every_question_is_asked_once_whatever_happens_in_between(tmp_path):
    path = tmp_path / "m.jsonl"
    first, second, third = Model(stop=1), Model(), Model()
    with pytest.raises(KeyboardInterrupt):
        ask(lambda: first, Samples(path), {"m": asked(TEXTS)})
    answers = ask(lambda: second, Samples(path), {"m": asked(TEXTS)})["m"]
    edited = [*TEXTS[:2], "new", *TEXTS[3:]]
    again = ask(lambda: third, Samples(path), {"m": asked(edited)})["m"]

    assert [answer["value"] for answer in answers] == [len(text) for text in TEXTS]
    assert len(first.seen) == 3 and {text for _, text in first.seen + second.seen} == set(TEXTS)
    assert len(first.seen + second.seen) == len(set(TEXTS))
    assert third.seen == [(0, "new")] and [a["value"] for a in again] == [len(text) for text in edited]


def test_nothing_is_loaded_where_all_is_known(tmp_path):
    samples = Samples(tmp_path / "m.jsonl")
    ask(Model, samples, {"m": asked(TEXTS)})

    def never():
        raise AssertionError("loaded")

    assert ask(never, Samples(tmp_path / "m.jsonl"), {"m": asked(TEXTS[::-1])})["m"][0]["value"] == 6


def test_another_model_template_shot_or_way_of_asking_has_answers_of_its_own(tmp_path):
    samples, model = Samples(tmp_path / "m.jsonl"), Model()
    shot = Example("t", 9, {"text": "s"}, 1)
    variants = [
        asked(["x"]), asked(["x"], digest="e"), asked(["x"], template="other"), asked(["x"], shots=(shot,)),
        asked(["x"], request="generate"),
    ]  # fmt: skip
    for one in variants * 2:
        ask(lambda: model, samples, {"m": one})

    assert len(model.seen) == len(variants)


def test_models_share_a_pass_and_keep_their_answers_apart(tmp_path):
    samples, model = Samples(tmp_path / "m.jsonl"), Model()
    both = {"a": asked(["x", "yy"], digest="a", index=0), "b": asked(["x", "yy"], digest="b", index=1)}

    found = ask(lambda: model, samples, both)

    assert {name: [a["value"] for a in own] for name, own in found.items()} == {"a": [1, 2], "b": [2, 3]}
    assert ask(lambda: model, samples, both) == found and len(model.seen) == 4
