"""Means over tasks: by hand, and their standard errors by drawing the rows of all tasks again and again."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mtnlp.bench.evaluate import goodness
from mtnlp.bench.groups import MEANS, Group, Value, aggregate
from mtnlp.errors import MtnlpError

DRAWS = 10_000
TASKS = {  # name: (share of right rows, rows, chance, reference)
    "a": (0.9, 50, 0.5, 0.95),
    "b": (0.6, 400, 0.25, None),
    "c": (0.3, 150, 0.1, 0.4),
}


def group(mean, *tasks):
    return Group("g", tasks, mean)


def by_hand(mean):
    return aggregate(group(mean, "a", "b"), {"a": A, "b": B})


A = Value(0.8, 0.03, 100, chance=0.5, reference=0.9, also=(Value(0.6, 0.01, 100),))
B = Value(0.5, 0.04, 300, chance=0.25)


def test_every_mean_is_what_it_is_by_hand():
    assert by_hand("micro") == pytest.approx(((80 + 150) / 400, math.hypot(3, 12) / 400))
    assert by_hand("macro") == pytest.approx((0.65, 0.05 / 2))
    assert by_hand("glue") == pytest.approx(((0.7 + 0.5) / 2, math.hypot(0.02, 0.04) / 2))
    scaled = (100 * 0.3 / 0.4 + 100 * 0.25 / 0.75) / 2
    assert by_hand("normalised") == pytest.approx((scaled, math.hypot(3 / 0.4, 4 / 0.75) / 2))


def test_chance_is_0_and_the_reference_100_for_errors_too():
    for value, wanted in ((2.0, 0), (0.5, 100), (1.25, 50)):
        error = Value(value, 0.1, 9, chance=2.0, reference=0.5, greater_is_better=False)
        assert aggregate(group("normalised", "x"), {"x": error}) == pytest.approx((wanted, 100 * 0.1 / 1.5))
    perfect = Value(0.0, 0.0, 9, chance=2.0, greater_is_better=False)
    assert aggregate(group("normalised", "x"), {"x": perfect}) == (100, 0)


@pytest.mark.parametrize("mean", MEANS)
def test_the_standard_error_is_the_spread_of_the_mean_over_redrawn_tasks(mean):
    rng = np.random.default_rng(7)
    shares = {name: rng.binomial(n, p, DRAWS) / n for name, (p, n, _, _) in TASKS.items()}

    def value(name, score, stderr):
        _, n, chance, reference = TASKS[name]
        return Value(score, stderr, n, chance, reference)

    redrawn = [
        aggregate(group(mean, *TASKS), {name: value(name, shares[name][i], 0.0) for name in TASKS})[0]
        for i in range(DRAWS)
    ]
    exact = {name: value(name, p, math.sqrt(p * (1 - p) / n)) for name, (p, n, _, _) in TASKS.items()}

    assert aggregate(group(mean, *TASKS), exact) == pytest.approx(
        (np.mean(redrawn), np.std(redrawn)), rel=0.02
    )


@pytest.mark.parametrize("mean", ["micro", "macro", "glue", "normalised"])
def test_the_standard_error_of_errors_is_their_spread_too(mean):
    rng = np.random.default_rng(8)
    n, draws = 300, 4000
    squares = rng.normal(0, 1.2, (draws, n)) ** 2

    def mse(value, stderr):
        return {"x": Value(value, stderr, n, chance=3.0, reference=0.5, greater_is_better=False)}

    redrawn = [aggregate(group(mean, "x"), mse(value, 0.0))[0] for value in squares.mean(1)]
    exact = mse(1.44, 1.44 * math.sqrt(2 / n))  # the variance of a squared normal is 2 sigma^4

    assert aggregate(group(mean, "x"), exact)[1] == pytest.approx(np.std(redrawn), rel=0.05)


def test_two_metrics_of_one_task_are_never_given_too_small_an_error():
    rng = np.random.default_rng(9)
    n = 200
    for shared in (0.0, 0.5, 1.0):  # how much of the noise the two metrics have in common
        common, own = rng.normal(size=(2, DRAWS)), rng.normal(size=(2, DRAWS))
        first, second = common[0], math.sqrt(shared) * common[0] + math.sqrt(1 - shared) * own[1]
        spread = np.std((0.02 * first + 0.05 * second) / 2)
        value = Value(0.8, 0.02, n, also=(Value(0.7, 0.05, n),))
        _, stderr = aggregate(group("glue", "x"), {"x": value})
        assert spread < stderr * 1.02
    assert stderr == pytest.approx(spread, rel=0.02)  # the bound is reached where they are one


def test_errors_enter_a_mean_as_the_report_turns_them():
    error = Value(0.25, 0.1, 9, greater_is_better=False)

    value, _ = aggregate(group("macro", "x"), {"x": error})

    assert value == goodness("mse", "regress", 0.25)


def test_tasks_without_a_score_are_left_out_and_those_of_other_groups_do_not_matter():
    scores = {"a": A, "other": Value(0.0, 9.0, 9)}

    assert aggregate(group("macro", "a", "missing"), scores) == (A.value, A.stderr)


def test_a_score_that_is_no_number_shows_in_the_mean():
    value, stderr = aggregate(group("macro", "a", "b"), {"a": A, "b": Value(math.nan, math.nan, 5)})

    assert math.isnan(value) and math.isnan(stderr)


@pytest.mark.parametrize(
    ("asked", "scores", "message"),
    [
        (group("macro", "x", "y"), {"a": A}, r"none of its tasks has a score \(x, y\)"),
        (group("macro"), {"a": A}, "it has no tasks"),
        (group("marco", "a"), {"a": A}, "Did you mean 'macro'"),
        (group("normalised", "a"), {"a": Value(0.5, 0.1, 9)}, "g: a: a normalised mean needs its chance"),
        (group("normalised", "a"), {"a": Value(0.5, 0.1, 9, 1.0)}, "chance and reference are both 1"),
        (group("micro", "a"), {"a": Value(0.5, 0.1, 0)}, "needs the number of its rows, found 0"),
    ],
)
def test_a_mean_that_cannot_be_given_is_refused(asked, scores, message):
    with pytest.raises(MtnlpError, match=message):
        aggregate(asked, scores)
