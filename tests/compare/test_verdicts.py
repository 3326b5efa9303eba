"""Verdicts against scipy, closed forms, hand-made numbers, and what they promise where nothing differs."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats as scipy_stats

from mtnlp import metrics
from mtnlp.bench import statistics
from mtnlp.bench.comparison import Side
from mtnlp.compare.verdicts import verdicts
from mtnlp.errors import MtnlpError

ACCURACY = metrics.get("accuracy", "classify")


def side(task, right, *, metric="accuracy", kind="classify"):
    """A side whose rows have these scores."""
    table = np.stack([np.asarray(right, dtype=float), np.ones(len(right))], axis=1)
    return Side(task, kind, metric, table, data="the same rows")


def sides(task, draw, *, n=200, seeds=3, noise=0.3, shift=0.0):
    """(baselines, joint runs): some rows are easier than others, some seeds better than others."""
    easy = draw.normal(1, 1, n)

    def trained(by):
        return side(task, easy + by + draw.normal(0, noise) + draw.logistic(0, 0.6, n) > 0)

    return [trained(0) for _ in range(seeds)], [trained(shift) for _ in range(seeds)]


@pytest.mark.parametrize("freedom", [1, 1.7, 2, 5.3, 40, 3000])
def test_students_t_is_that_of_scipy(freedom):
    for level in (0.5, 0.95, 0.99):
        known = scipy_stats.t.ppf((1 + level) / 2, freedom)
        assert statistics.student(freedom, level) == pytest.approx(known, rel=1e-3)
    for t in (0.0, 0.3, 1.0, 2.5, 7.0):
        assert statistics.student_p(t, freedom) == pytest.approx(2 * scipy_stats.t.sf(t, freedom), abs=1e-5)


def test_one_seed_is_a_paired_bootstrap_and_more_add_what_seeds_vary_by():
    draw = np.random.default_rng(3)
    (one, *_), (other, *_) = sides("t", draw, n=400)
    plain = statistics.paired(ACCURACY, one.stats, other.stats)
    first, second = sides("t", draw, n=400, seeds=5)
    tables = [[own.stats for own in part] for part in (first, second)]

    alone = statistics.paired_over_seeds(ACCURACY, [one.stats], [other.stats])
    several = statistics.paired_over_seeds(ACCURACY, *tables)

    assert (alone.value, alone.stderr, alone.seeds) == (plain.value, pytest.approx(plain.stderr), 0.0)
    assert (alone.low, alone.high) == pytest.approx((plain.low, plain.high), abs=0.004)
    assert alone.p == pytest.approx(plain.p, abs=0.02)
    apart = np.mean([b[:, 0] - a[:, 0] for a, b in zip(*tables, strict=True)], axis=0)
    scores = [[table[:, 0].mean() for table in part] for part in tables]
    seeds = sum(np.var(part, ddof=1) / 5 for part in scores)
    assert several.rows == pytest.approx(apart.std() / 20, rel=0.03)
    assert several.stderr**2 == pytest.approx(several.rows**2 + seeds)
    parts = [(several.rows**2, 399), *((np.var(part, ddof=1) / 5, 4) for part in scores)]
    known = several.stderr**4 / sum(variance**2 / freedom for variance, freedom in parts)
    assert several.freedom == pytest.approx(known)
    half = scipy_stats.t.ppf(0.975, known) * several.stderr
    assert (several.low, several.high) == pytest.approx(
        (several.value - half, several.value + half), rel=1e-4
    )


def test_a_metric_that_is_no_mean_is_resampled_as_a_whole():
    draw, metric = np.random.default_rng(0), metrics.get("spearman", "regress")
    true = draw.normal(size=80)
    tables = [metric.stats(true + draw.normal(size=80), true, None) for _ in range(4)]

    found = statistics.paired_over_seeds(metric, tables[:2], tables[2:], resamples=300)

    means = [np.mean([metric.reduce(table) for table in part]) for part in (tables[:2], tables[2:])]
    assert found.value == pytest.approx(means[1] - means[0]) and found.low < found.value < found.high
    with pytest.raises(MtnlpError, match="over the same seeds"):
        statistics.paired_over_seeds(metric, tables[:1], tables[2:])


@pytest.mark.parametrize(("seeds", "noise"), [(1, 0.0), (2, 0.4), (3, 0.2), (3, 0.5)])
def test_of_200_tasks_that_do_not_differ_few_are_called_different(seeds, noise):
    draw, different, raw = np.random.default_rng(seeds), 0, []
    for _ in range(50):  # comparisons of four tasks each
        pairs = {f"task {i}": sides(f"task {i}", draw, seeds=seeds, noise=noise) for i in range(4)}
        alone, joint = ({task: pair[i] for task, pair in pairs.items()} for i in (0, 1))

        found = verdicts(alone, joint, dict.fromkeys(pairs, "test"), resamples=200)

        different += found.count("helped") + found.count("hurt")
        raw += [task.p for task in found.tasks]
    assert different / 200 <= 0.05 + 0.03  # after Holm's correction
    assert np.mean(np.array(raw) < 0.05) <= 0.05 + 0.03  # and before it


def test_differences_that_are_there_are_found():
    draw = np.random.default_rng(1)
    pairs = {name: sides(name, draw, n=600, noise=0.05, shift=shift) for name, shift in
             (("up", 1.0), ("down", -1.0), ("same", 0.0))}  # fmt: skip
    alone, joint = ({task: pair[i] for task, pair in pairs.items()} for i in (0, 1))

    found = verdicts(alone, joint, dict.fromkeys(pairs, "test"))

    assert [task.verdict for task in found.tasks] == ["helped", "hurt", "unclear"]
    assert all(task.low < task.difference < task.high for task in found.tasks)


def test_less_of_an_error_is_help_and_delta_m_is_the_mean_relative_change():
    n = 60
    accuracy = [[side("labels", [1] * right + [0] * (n - right))] for right in (30, 36)]
    errors = [[side("scores", [error] * n, metric="mse", kind="regress")] for error in (2.0, 1.5)]
    nothing = [[side("zero", [value] * n)] for value in (0, 0)]
    alone, joint = ({"labels": a[i], "scores": b[i], "zero": c[i]} for i, (a, b, c) in
                    enumerate([(accuracy, errors, nothing)] * 2))  # fmt: skip

    found = verdicts(alone, joint, dict.fromkeys(alone, "test"))

    labels, scores, zero = found.tasks
    assert (labels.relative, scores.relative, zero.relative) == (
        pytest.approx(0.2),
        pytest.approx(0.25),
        None,
    )
    assert found.delta_m == pytest.approx((0.2 + 0.25) / 2) and found.delta_m_sd is None
    assert scores.difference == pytest.approx(-0.5) and scores.verdict == "helped"
    assert found.mean == pytest.approx((0.6 + 1 / 2.5 + 0) / 3)


def test_too_few_rows_give_no_verdict_but_what_they_could_show():
    draw = np.random.default_rng(0)
    alone, joint = {"few": [side("few", [1] * 12)] * 2}, {"few": [side("few", [0] * 12)] * 2}
    noisy = {"some": sides("some", draw, n=40, noise=0.0)[0]}, {"some": sides("some", draw, n=40)[1]}

    (few,), (some,) = verdicts(alone, joint, {"few": "test"}).tasks, verdicts(*noisy, {"some": "test"}).tasks

    effect = NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)  # in standard errors, 4 of 5 found
    assert few.verdict == "unclear" and few.note == (
        f"too few rows for a verdict; all rows say the same, and differences below {effect / 24**0.5:.3f} "
        "in the share of right answers cannot be seen"
    )
    assert some.verdict == "unclear" and f"differences below {some.least:.3f} cannot be seen" in some.note
    known = statistics.minimum_detectable_effect((some.high - some.low) / 2 / 1.96)
    assert some.least == pytest.approx(known, rel=0.35) and math.isfinite(some.least)
