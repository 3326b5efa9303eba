"""Intervals and tests against brute force, closed forms, scipy, and what they promise over many data sets."""

import math

import numpy as np
import pytest

from mtnlp import metrics
from mtnlp.bench import statistics
from mtnlp.errors import MtnlpError

DRAW = np.random.default_rng(5)


def right(n, share, draw=DRAW):
    """Statistics of the accuracy of n answers."""
    return np.stack([draw.random(n) < share, np.ones(n)], axis=1).astype(float)


ACCURACY = metrics.get("accuracy", "classify")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("accuracy", "classify"), ("macro_f1", "classify"), ("matthews", "classify"), ("pearson", "regress"),
     ("spearman", "regress"), ("mse", "regress"), ("quadratic_kappa", "ordinal")],
)  # fmt: skip
def test_a_resample_is_the_metric_of_the_rows_that_were_drawn(name, kind):
    n, metric = 30, metrics.get(name, kind)
    numbers = kind == "regress"
    said, true = (DRAW.normal(size=n).round(1) if numbers else DRAW.integers(0, 3, n) for _ in range(2))
    labels = None if numbers else ("a", "b", "c")
    stats = metric.stats(said.tolist(), true.tolist(), labels)

    (found,) = statistics.resampled(metric, [stats], resamples=50)

    counts = np.concatenate(list(statistics._drawn(n, 50, statistics.SEED, None)))
    assert (counts.sum(1) == n).all()
    for value, own in zip(found, counts, strict=True):
        rows = np.repeat(np.arange(n), own)
        expected = metric(said[rows].tolist(), true[rows].tolist(), labels)
        assert value == pytest.approx(expected, abs=1e-9)


def test_the_standard_error_and_interval_of_a_mean_are_the_known_ones():
    stats = right(2000, 0.3)
    share = stats[:, 0].mean()
    known = math.sqrt(share * (1 - share) / 2000)

    found = statistics.interval(ACCURACY, stats)

    assert found.value == share and found.stderr == pytest.approx(known, rel=0.03)
    assert (found.low, found.high) == pytest.approx((share - 1.96 * known, share + 1.96 * known), abs=0.002)


def test_clusters_are_drawn_whole_and_widen_the_interval_by_their_size():
    once = right(300, 0.5)
    repeated, clusters = np.repeat(once, 4, axis=0), np.repeat(np.arange(300), 4)

    whole = statistics.interval(ACCURACY, once, seed=1)
    clustered = statistics.interval(ACCURACY, repeated, clusters=clusters, seed=1)
    loose = statistics.interval(ACCURACY, repeated, seed=1)

    assert clustered == whole and whole.stderr == pytest.approx(2 * loose.stderr, rel=0.05)


def test_intervals_hold_the_truth_as_often_as_they_say():
    draw = np.random.default_rng(0)
    held = [
        found.low <= 0.7 <= found.high
        for found in (
            statistics.interval(ACCURACY, right(200, 0.7, draw), resamples=1000, seed=i) for i in range(300)
        )
    ]
    assert 0.92 <= np.mean(held) <= 0.98


def test_models_that_do_not_differ_are_seldom_called_different():
    draw, called = np.random.default_rng(1), 0
    for trial in range(20):
        values = []
        for task in range(10):
            both = draw.random((300, 1)) < 0.5  # half of the rows are easy for both
            one, other = (np.where(both[:, 0], 1.0, draw.random(300) < 0.4) for _ in range(2))
            stats = [np.stack([own, np.ones(300)], axis=1) for own in (one, other)]
            values.append(statistics.paired(ACCURACY, *stats, resamples=2000, seed=trial * 10 + task).p)
        called += sum(p < statistics.ALPHA for p in statistics.holm(values))
    assert called / 200 <= 0.08


def test_a_real_difference_is_found_with_the_power_that_the_least_effect_promises():
    draw, found = np.random.default_rng(2), 0
    n, share = 400, 0.5
    gap = statistics.effect_of(n, share=share)
    for trial in range(100):
        one, other = right(n, share - gap / 2, draw), right(n, share + gap / 2, draw)
        found += statistics.paired(ACCURACY, one, other, resamples=1000, seed=trial).p < 0.05
    assert 70 <= found <= 90


def test_mcnemar_is_the_binomial_test_on_the_rows_that_one_model_gets_right():
    stats = pytest.importorskip("scipy.stats")
    for n in (1, 7, 40, 300):
        first, second = DRAW.random(n) < 0.6, DRAW.random(n) < 0.5
        one, other = int((first & ~second).sum()), int((second & ~first).sum())
        expected = stats.binomtest(one, one + other).pvalue if one + other else 1.0
        assert statistics.mcnemar(first, second) == pytest.approx(expected, abs=1e-12)


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.9]) == [1.0, 1.0] and statistics.holm([]) == []


def test_the_same_seed_gives_the_same_numbers_and_unequal_rows_are_refused():
    stats = right(50, 0.5)
    assert statistics.interval(ACCURACY, stats) == statistics.interval(ACCURACY, stats.copy())
    assert statistics.paired(ACCURACY, stats, stats).p == 1.0
    with pytest.raises(MtnlpError, match="50 and 40 examples cannot be paired"):
        statistics.paired(ACCURACY, stats, stats[:40])
