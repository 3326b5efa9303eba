"""Intervals and tests against brute force, closed forms, scipy, and what they promise over many data sets."""

import math

import numpy as np
import pytest

from mtnlp import metrics
from mtnlp.bench import statistics
from mtnlp.bench.statistics import Difference
from mtnlp.errors import MtnlpError

ACCURACY = metrics.get("accuracy", "classify")
METRICS = [("accuracy", "classify"), ("macro_f1", "classify"), ("matthews", "classify"), ("f1", "classify"),
           ("micro_f1", "pair"), ("weighted_f1", "classify"), ("balanced_accuracy", "pair"),
           ("quadratic_kappa", "ordinal"), ("mse", "regress"), ("pearson", "regress"),
           ("spearman", "regress")]  # fmt: skip


def right(n, share, draw):
    """Statistics of the accuracy of n answers."""
    return np.stack([draw.random(n) < share, np.ones(n)], axis=1).astype(float)


def answered(name, kind, n, draw):
    """Statistics of n answers that have something to do with the truth."""
    if kind == "regress":
        true = draw.normal(size=n).round(1)
        return metrics.get(name, kind).stats(true + draw.normal(size=n).round(1), true, None)
    labels = ("no", "yes") if name == "f1" else ("a", "b", "c")
    true = draw.integers(0, len(labels), n)
    said = np.where(draw.random(n) < 0.6, true, draw.integers(0, len(labels), n))
    return metrics.get(name, kind).stats(said.tolist(), true.tolist(), labels)


@pytest.mark.parametrize("n", [12, 150])  # every row for itself, and (of few labels) equal rows together
@pytest.mark.parametrize(("name", "kind"), METRICS)
def test_a_resample_is_the_metric_of_the_rows_that_were_drawn(name, kind, n):
    metric, stats = metrics.get(name, kind), answered(name, kind, n, np.random.default_rng(n))

    (found,) = statistics.resampled(metric, [stats], resamples=40)

    (rows,), equal = statistics._kinds([stats])
    counts = np.concatenate(list(statistics._drawn(equal, 40, statistics.SEED)))
    assert (counts.sum(1) == n).all()
    for value, often in zip(found, counts, strict=True):
        assert value == pytest.approx(metric.reduce(np.repeat(rows, often, axis=0)), abs=1e-9)


def test_every_row_is_drawn_as_often_as_chance_has_it_whether_equal_rows_are_together_or_not():
    for equal in (np.ones(50, dtype=int), np.array([30, 15, 5])):
        share, n = equal / 50, 50

        counts = np.concatenate(list(statistics._drawn(equal, 20_000, 0)))

        assert counts.mean(0) == pytest.approx(equal, rel=0.05)
        assert counts.var(0) == pytest.approx(n * share * (1 - share), rel=0.06)
        together = np.cov(counts[:, 0], counts[:, 1])[0, 1]
        assert together == pytest.approx(-n * share[0] * share[1], rel=0.6, abs=0.02)


def test_the_standard_error_and_interval_of_a_mean_are_the_known_ones():
    draw = np.random.default_rng(5)
    lengths = np.stack([draw.exponential(size=2000), np.ones(2000)], axis=1)  # no two rows are equal
    for stats in (right(2000, 0.3, draw), lengths):
        mean, known = stats[:, 0].mean(), stats[:, 0].std() / math.sqrt(2000)

        found = statistics.interval(ACCURACY, stats)

        assert found.value == pytest.approx(mean, abs=1e-12)
        assert found.stderr == pytest.approx(known, rel=0.03)
        assert (found.low, found.high) == pytest.approx((mean - 1.96 * known, mean + 1.96 * known), rel=0.01)


@pytest.mark.parametrize("name", ["accuracy", "pearson"])
def test_clusters_are_drawn_whole_and_widen_the_interval_by_their_size(name):
    kind = "classify" if name == "accuracy" else "regress"
    metric, once = metrics.get(name, kind), answered(name, kind, 200, np.random.default_rng(6))
    repeated, clusters = np.repeat(once, 4, axis=0), np.repeat([f"text {i}" for i in range(200)], 4)

    whole = statistics.interval(metric, once, resamples=2000)
    clustered = statistics.interval(metric, repeated, resamples=2000, clusters=clusters)
    loose = statistics.interval(metric, repeated, resamples=2000)

    assert (clustered.low, clustered.high) == pytest.approx((whole.low, whole.high), abs=0.01)
    assert clustered.stderr == pytest.approx(2 * loose.stderr, rel=0.08)


@pytest.mark.parametrize("name", ["accuracy", "pearson"])
def test_clusters_of_unequal_size_are_their_rows_as_often_as_they_were_drawn(name):
    kind = "classify" if name == "accuracy" else "regress"
    metric, draw = metrics.get(name, kind), np.random.default_rng(7)
    stats, clusters = answered(name, kind, 40, draw), draw.integers(0, 9, 40)

    (found,) = statistics.resampled(metric, [stats], resamples=40, clusters=clusters.tolist())

    own = np.unique(clusters, return_inverse=True)[1]
    counts = np.concatenate(list(statistics._drawn(np.ones(own.max() + 1, dtype=int), 40, statistics.SEED)))
    for value, often in zip(found, counts[:, own], strict=True):
        assert value == pytest.approx(metric.reduce(np.repeat(stats, often, axis=0)), abs=1e-9)


@pytest.mark.parametrize("name", ["accuracy", "f1"])
def test_intervals_hold_the_truth_as_often_as_they_say(name):
    draw, metric = np.random.default_rng(0), metrics.get(name, "classify")
    true = metric.reduce(answered(name, "classify", 400_000, draw)) if name == "f1" else 0.7
    held = []
    for trial in range(300):
        stats = answered(name, "classify", 250, draw) if name == "f1" else right(200, 0.7, draw)
        found = statistics.interval(metric, stats, resamples=1000, seed=trial)
        held.append(found.low <= true <= found.high)
    assert 0.92 <= np.mean(held) <= 0.98


@pytest.mark.parametrize("name", ["accuracy", "f1"])
def test_models_that_do_not_differ_are_seldom_called_different(name):
    metric, draw, p = metrics.get(name, "classify"), np.random.default_rng(1), []
    for trial in range(600):
        true, easy = draw.integers(0, 2, 200), draw.random(200) < 0.5  # half of the rows are easy for both
        said = [np.where(easy | (draw.random(200) < 0.6), true, 1 - true).tolist() for _ in range(2)]
        pair = [metric.stats(one, true.tolist(), ("no", "yes")) for one in said]
        p.append(statistics.paired(metric, *pair, resamples=1000, seed=trial).p)

    families = [statistics.holm(p[i : i + 5]) for i in range(0, 600, 5)]  # comparisons over five tasks
    called = np.array(families) < statistics.ALPHA

    assert 0.03 <= np.mean(np.array(p) < statistics.ALPHA) <= 0.07  # alone
    assert called.any(axis=1).mean() <= 0.08  # any of five, where 0.05 is promised
    assert called.mean() <= 0.02


def test_a_real_difference_is_found_with_the_power_that_the_least_effect_promises():
    draw, n, found, measured = np.random.default_rng(2), 400, 0, []
    gap = statistics.effect_of(n)
    for trial in range(300):
        one, other = right(n, 0.5 - gap / 2, draw), right(n, 0.5 + gap / 2, draw)
        difference = statistics.paired(ACCURACY, one, other, resamples=1000, seed=trial)
        found += difference.p < 0.05
        measured.append(statistics.minimum_detectable_effect(difference.stderr))
    assert 0.73 <= found / 300 <= 0.87
    assert np.mean(measured) == pytest.approx(gap, rel=0.03)
    assert gap == pytest.approx(0.0991, abs=1e-4)  # (1.960 + 0.842) sqrt(0.5 / 400)


def test_rows_that_both_get_right_or_wrong_make_pairs_surer_than_two_intervals():
    draw = np.random.default_rng(3)
    one = right(1000, 0.6, draw)
    other = np.where((draw.random(1000) < 0.05)[:, None], [1.0, 1.0], one)

    found = statistics.paired(ACCURACY, one, other)

    alone = [statistics.interval(ACCURACY, stats).stderr for stats in (one, other)]
    gained = other[:, 0] - one[:, 0]
    assert found.stderr == pytest.approx(gained.std() / math.sqrt(1000), rel=0.03)
    assert found.stderr < math.hypot(*alone) / 3
    assert found.low > 0
    assert found.p == pytest.approx(1 / 10_001)


def test_mcnemar_is_the_binomial_test_on_the_rows_that_one_model_gets_right():
    assert statistics.mcnemar([True] * 8 + [False], [False] * 8 + [True]) == pytest.approx(2 * 10 / 2**9)
    assert statistics.mcnemar([True, False], [True, False]) == 1.0
    binomtest = pytest.importorskip("scipy.stats").binomtest
    draw = np.random.default_rng(4)
    for n in (1, 7, 40, 300, 5000):
        first, second = draw.random(n) < 0.6, draw.random(n) < 0.55
        one, other = int((first & ~second).sum()), int((second & ~first).sum())
        expected = binomtest(one, one + other).pvalue if one + other else 1.0
        assert statistics.mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.9]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_a_verdict_needs_the_corrected_p_and_the_interval_and_says_when_rows_are_too_few():
    gain, loss = Difference(0.05, 0.02, 0.01, 0.09, 0.01), Difference(-0.05, 0.02, -0.09, -0.01, 0.01)
    unsure = Difference(0.05, 0.04, -0.01, 0.12, 0.03)

    assert statistics.verdict(gain, 0.02) == "better"
    assert statistics.verdict(loss, 0.02) == "worse"
    assert statistics.verdict(loss, 0.02, greater_is_better=False) == "better"
    assert statistics.verdict(gain, 0.06) == "unclear"
    assert statistics.verdict(unsure, 0.04) == "unclear"
    assert statistics.verdict(unsure, 0.04, matters=0.10) == "too few rows"  # finds 2.8 x 0.04
    assert statistics.verdict(unsure, 0.04, matters=0.12) == "unclear"


def test_the_standard_error_of_a_mean_over_tasks_is_that_of_a_sum_of_independent_scores():
    draw, errors, weights = np.random.default_rng(8), np.array([0.01, 0.02, 0.04]), np.array([5, 3, 1])
    means = np.average(draw.normal(0, errors, (100_000, 3)), axis=1, weights=weights)

    assert statistics.mean_stderr(errors, weights) == pytest.approx(means.std(), rel=0.02)
    assert statistics.mean_stderr([0.3, 0.4]) == pytest.approx(0.25)


def test_numbers_depend_on_the_seed_and_not_on_what_was_asked_before():
    stats = answered("macro_f1", "classify", 60, np.random.default_rng(9))
    metric = metrics.get("macro_f1", "classify")

    first = statistics.interval(metric, stats, resamples=500)
    np.random.default_rng(0).random(7)
    statistics.interval(ACCURACY, stats, resamples=10)

    assert statistics.interval(metric, stats.copy(), resamples=500) == first
    assert statistics.interval(metric, stats, resamples=500, seed=1) != first
    assert statistics.paired(metric, stats, stats, resamples=500) == Difference(0.0, 0.0, 0.0, 0.0, 1.0)


def test_a_score_that_is_no_number_stays_one_and_is_never_a_difference():
    stats = right(50, 0.5, np.random.default_rng(10))
    broken = stats.copy()
    broken[3, 0] = np.nan

    found = statistics.paired(ACCURACY, stats, broken, resamples=100)

    assert math.isnan(found.value)
    assert math.isnan(found.low)
    assert found.p == 1.0
    assert statistics.verdict(found, found.p) == "unclear"


def test_what_cannot_be_resampled_is_refused_with_what_was_found():
    stats = right(50, 0.5, np.random.default_rng(11))
    with pytest.raises(MtnlpError, match="accuracy: 50 and 40 examples cannot be paired"):
        statistics.paired(ACCURACY, stats, stats[:40])
    with pytest.raises(MtnlpError, match="no examples"):
        statistics.interval(ACCURACY, stats[:0])
    with pytest.raises(MtnlpError, match="3 clusters for 50 examples"):
        statistics.interval(ACCURACY, stats, clusters=[1, 2, 3])
    with pytest.raises(MtnlpError, match="1 resamples"):
        statistics.interval(ACCURACY, stats, resamples=1)
    with pytest.raises(MtnlpError, match=r"between 0 and 1, .* got 95"):
        statistics.interval(ACCURACY, stats, resamples=10, level=95)
    with pytest.raises(MtnlpError, match="found 2 and 1"):
        statistics.mcnemar([True, False], [True])
