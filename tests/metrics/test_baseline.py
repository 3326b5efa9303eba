from __future__ import annotations

import pytest

from mtnlp.errors import MtnlpError
from mtnlp.metrics import baseline
from mtnlp.tasks.spec import KINDS, Example


def example(**inputs) -> Example:
    return Example("t", 0, inputs, None)


@pytest.mark.parametrize(
    ("kind", "targets", "inputs", "expected"),
    [
        ("classify", [2, 1, 1, None], {"text": "x"}, 1),
        ("pair", [1, 0], {"text": "x", "text_pair": "y"}, 0),
        ("ordinal", [3, 3, 0], {"text": "x"}, 3),
        ("regress", [1.0, 2.0, 6.0], {"text": "x"}, 3.0),
        ("multilabel", [(0, 2), (2,), (0, 1), ()], {"text": "x"}, (0, 2)),
        ("multilabel", [(0,), (1,), (1,), (), ()], {"text": "x"}, (1,)),
        ("choose", [3, 3, 1, 1, 3], {"question": "q", "choices": ["a", "b", "c", "d"]}, 3),
        ("choose", [3, 3, 1, 1, 3], {"question": "q", "choices": ["a", "b"]}, 1),
        ("choose", [3], {"question": "q", "choices": ["a", "b"]}, 0),
        ("tag", [(0, 1, 0), (0,)], {"tokens": ["a", "b"]}, (0, 0)),
        ("span", [(("Paris", 4),), ()], {"question": "q", "context": "It is Paris now"}, "It is Paris"),
        ("span", [(("Paris", 4),), (), ()], {"question": "q", "context": "It is Paris now"}, ""),
        ("generate", [("yes", "no"), ("no",), ("yes",)], {"text": "x"}, "yes"),
    ],
)
def test_the_guess_of_each_kind(kind, targets, inputs, expected):
    assert baseline(kind, targets, [example(**inputs)] * 2) == [expected, expected]


def test_every_kind_has_a_baseline():
    from mtnlp.metrics.baseline import BASELINES

    assert set(BASELINES) == set(KINDS)


def test_a_baseline_needs_answers():
    with pytest.raises(MtnlpError, match="there are none"):
        baseline("classify", [None], [example(text="x")])
    with pytest.raises(MtnlpError, match="Did you mean 'regress'"):
        baseline("regres", [1.0], [])
