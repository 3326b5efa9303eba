"""Slices against the metric of only those rows; spreads by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from mtnlp import metrics
from mtnlp.bench.axes import SMALL, Slice, Spread, by_length, by_value, languages, quartiles, spread
from mtnlp.errors import MtnlpError
from mtnlp.tasks.spec import TaskSpec

N = 400
DRAW = np.random.default_rng(0)
LENGTHS = DRAW.lognormal(4, 1, N).astype(int)
TRUE, GUESSED = DRAW.integers(0, 3, (2, N))
NAMES = [("a", "b", "c")[min(int(length) // 60, 2)] for length in LENGTHS]


def of(name, kind="classify"):
    metric = metrics.get(name, kind)
    return metric, metric.stats(
        GUESSED.tolist(), TRUE.tolist(), ("x", "y", "z") if kind == "classify" else None
    )


@pytest.mark.parametrize(
    ("name", "kind"), [("accuracy", "classify"), ("macro_f1", "classify"), ("spearman", "regress")]
)
@pytest.mark.parametrize("edges", [None, (10, 100), (1, 2, 3, 1000)])
def test_a_slice_by_length_scores_its_rows_as_if_they_were_alone(name, kind, edges):
    metric, stats = of(name, kind)

    found = by_length(stats, metric, LENGTHS.tolist(), edges)

    bounds = [0, *(edges or quartiles(LENGTHS)), 10**9]
    rows = [np.flatnonzero((low <= LENGTHS) & (high > LENGTHS)) for low, high in pairwise(bounds)]
    labels = ("x", "y", "z") if kind == "classify" else None
    wanted = [
        (len(own), metric(GUESSED[own].tolist(), TRUE[own].tolist(), labels), len(own) < SMALL)
        for own in rows
        if len(own)
    ]
    assert [(part.n, part.value, part.small) for part in found] == wanted
    assert sum(part.n for part in found) == N


def test_slices_by_length_say_which_lengths_they_hold():
    metric, stats = of("accuracy")

    found = by_length(stats[:6], metric, [0, 1, 3, 4, 5, 90], (1, 2, 4, 8))

    assert [(part.name, part.n) for part in found] == [
        ("0", 1),
        ("1", 1),
        ("2 to 3", 1),
        ("4 to 7", 2),
        ("8 and more", 1),
    ]
    assert all(part.small for part in found)


def test_the_usual_edges_are_quartiles_as_powers_of_two():
    quarters = np.quantile(LENGTHS, (0.25, 0.5, 0.75))

    edges = quartiles(LENGTHS)

    assert all(edge.bit_count() == 1 for edge in edges)
    assert all(abs(math.log2(edge / quarter)) <= 0.5 for edge, quarter in zip(edges, quarters, strict=True))
    assert quartiles([20] * 9) == [16]
    assert quartiles([0, 0, 0]) == [1]
    assert quartiles([]) == []


def test_slices_by_value_hold_the_rows_of_each_value():
    metric, stats = of("accuracy")

    found = by_value(stats, metric, NAMES)

    counts = {name: NAMES.count(name) for name in set(NAMES)}
    assert [part.n for part in found] == sorted(counts.values(), reverse=True)
    for part in found:
        own = [row for row, name in enumerate(NAMES) if name == part.name]
        assert part.value == np.mean(TRUE[own] == GUESSED[own])
    assert by_value(stats[:2], metric, [None, 3]) == [
        Slice("3", 1, float(stats[1, 0]), True),
        Slice("None", 1, float(stats[0, 0]), True),
    ]


def test_a_language_is_read_from_the_row_and_else_from_the_task():
    rows = [{"lang": "sw"}, {"language": "de", "lang": "x"}, {"lang": ""}, {}]

    assert languages(TaskSpec("t", "classify", {}, language="fr"), rows) == ["sw", "de", "fr", "fr"]


def test_the_spread_of_prompts_is_by_hand():
    scores = {"plain": 0.5, "polite": 0.8, "short": 0.2}

    assert spread(scores) == Spread(pytest.approx(0.5), pytest.approx(0.3), 0.2, 0.8, "short", "polite")
    assert spread(scores, greater_is_better=False).worst_template == "polite"
    assert spread({"only": 0.5}) == Spread(0.5, 0.0, 0.5, 0.5, "only", "only")


def test_a_prompt_whose_score_is_no_number_is_the_worst():
    for greater in (True, False):
        found = spread({"a": 0.5, "b": math.nan, "c": 0.7}, greater_is_better=greater)

        assert found.worst_template == "b"
        assert math.isnan(found.mean)
        assert found.best == (0.7 if greater else 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda metric, stats: by_length(stats, metric, [1, 2]), "2 lengths for 400 rows"),
        (lambda metric, stats: by_value(stats, metric, ["a"]), "1 values for 400 rows"),
        (lambda metric, stats: by_length(stats, metric, LENGTHS, (8, 8)), r"edges \[8, 8\] must be above 0"),
        (lambda metric, stats: by_length(stats, metric, LENGTHS, (0, 8)), "must be above 0 and rise"),
        (lambda metric, stats: spread({}), "no template has a score"),
    ],
)
def test_an_axis_that_does_not_fit_is_refused(call, message):
    with pytest.raises(MtnlpError, match=message):
        call(*of("accuracy"))
