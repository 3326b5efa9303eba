"""Draws of solved examples: what they may depend on, and that they are fair."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from mtnlp.bench.shots import Pool, document, draw_shots
from mtnlp.errors import MtnlpError
from mtnlp.tasks.spec import Example

POOL = [Example("t", i, {"text": f"text {i}"}, i % 3) for i in range(40)]
KEYS = [document(example) for example in POOL]


def shuffled(examples, seed):
    return random.Random(seed).sample(examples, len(examples))


def test_a_draw_depends_on_seed_and_document_and_not_on_order_or_place():
    drawn = {key: draw_shots(POOL, key, 5, seed=1) for key in KEYS}

    moved = [Example("other", 99 - e.index, e.inputs, e.target) for e in shuffled(POOL, 3)]
    for key, shots in drawn.items():
        again = draw_shots(moved, key, 5, seed=1)
        assert [shot.inputs for shot in again] == [shot.inputs for shot in shots]
    assert len({tuple(shot.index for shot in shots) for shots in drawn.values()}) == len(KEYS)
    assert sum(draw_shots(POOL, key, 5, seed=2) == drawn[key] for key in KEYS) == 0


def test_a_draw_is_the_same_in_every_process_and_release():
    assert [shot.index for shot in draw_shots(POOL, KEYS[0], 4, seed=0)] == [24, 23, 31, 37]


def test_a_document_is_never_shown_itself_and_no_document_twice():
    pool = Pool([*POOL, *POOL])

    for key in KEYS:
        shots = pool.draw(key, len(POOL) - 1, seed=0)
        assert sorted(document(shot) for shot in shots) == sorted(set(KEYS) - {key})
    assert len(pool.draw("of another task", len(POOL), seed=0)) == len(POOL)


def test_more_shots_begin_with_the_fewer():
    for k in range(10):
        assert draw_shots(POOL, "x", k, seed=4) == draw_shots(POOL, "x", 10, seed=4)[:k]


def test_one_example_more_changes_at_most_one_shot():
    for key in KEYS:
        before, after = (set(s.index for s in draw_shots(own, key, 5, 0)) for own in (POOL[:-1], POOL))
        assert len(before - after) == len(after - before) <= 1
        assert after - before <= {39}


def test_every_example_is_drawn_equally_often_at_every_place():
    pool, draws = Pool(POOL[:10]), 6000

    drawn = [pool.draw(f"document {i}", 3, seed=0) for i in range(draws)]

    for place in range(3):
        counts = Counter(shots[place].index for shots in drawn)
        chi = sum((counts[i] - draws / 10) ** 2 / (draws / 10) for i in range(10))
        assert chi < 27.9  # 99.9 % of chi squared with 9 degrees of freedom
    pairs = Counter(frozenset(shot.index for shot in shots[:2]) for shots in drawn)
    assert sum((pairs[p] - draws / 45) ** 2 / (draws / 45) for p in pairs) < 78.7 and len(pairs) == 45


def test_rows_without_an_answer_are_not_shown_and_of_two_answers_one_is():
    hidden = [Example("t", i, {"text": f"hidden {i}"}, None) for i in range(5)]
    twice = [Example("t", 90, {"text": "twice"}, 2), Example("t", 91, {"text": "twice"}, 1)]

    for examples in ([*hidden, *twice], [*twice[::-1], *hidden]):
        assert draw_shots(examples, "x", 1, 0) == (twice[1],)


def test_too_few_examples_are_refused():
    with pytest.raises(MtnlpError, match="3 examples are to be shown, and there are 2 others"):
        draw_shots(POOL[:3], KEYS[0], 3, 0)
    with pytest.raises(MtnlpError, match="1 examples are to be shown, and there are 0 others"):
        draw_shots([], "x", 1, 0)
    assert draw_shots([], "x", 0, 0) == ()
