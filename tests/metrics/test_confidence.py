"""AUROC, calibration and Brier score against scikit-learn and their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.metrics as sk

from mtnlp import metrics
from mtnlp.errors import MtnlpError
from mtnlp.metrics.confidence import probabilities


def answers(seed: int, *, labels: int, n: int = 300, digits: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """(N, C) probabilities with ties, better than chance, and (N,) truths."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, labels, n)
    scores = rng.dirichlet(np.ones(labels), n) + 0.5 * (np.arange(labels) == true[:, None])
    table = (scores / scores.sum(1, keepdims=True)).round(digits)
    table[np.arange(n), table.argmax(1)] += 1 - table.sum(1)
    return table, true


def sets(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = rng.random((200, 4)) < [0.1, 0.3, 0.5, 0.9]
    return (rng.random(true.shape) + 0.4 * true).round(1) / 1.4, true


def pairwise(score: np.ndarray, true: np.ndarray) -> float:
    """AUROC by its definition: every true example with every false one."""
    apart = np.subtract.outer(score[true], score[~true])
    return float(((apart > 0) + 0.5 * (apart == 0)).mean())


def test_auroc_of_two_labels_equals_scikit_learn_and_all_pairs():
    table, true = answers(0, labels=2)

    ours = metrics.get("auroc", "classify")(table.tolist(), true.tolist(), ("no", "yes"))

    assert ours == pytest.approx(sk.roc_auc_score(true, table[:, 1]), abs=1e-12)
    assert ours == pytest.approx(pairwise(table[:, 1], true == 1), abs=1e-12)


def test_auroc_of_more_labels_is_the_mean_of_each_against_the_rest():
    table, true = answers(1, labels=4)

    ours = metrics.get("auroc", "classify")(table.tolist(), true.tolist())

    assert ours == pytest.approx(sk.roc_auc_score(true, table, multi_class="ovr"), abs=1e-9)
    rows = np.arange(4)
    assert ours == pytest.approx(np.mean([pairwise(table[:, c], true == c) for c in rows]), abs=1e-9)


def test_auroc_of_label_sets_equals_scikit_learn():
    scores, true = sets(2)
    references = [tuple(np.flatnonzero(row).tolist()) for row in true]

    ours = metrics.get("auroc", "multilabel")(scores.tolist(), references)

    assert ours == pytest.approx(sk.roc_auc_score(true, scores), abs=1e-12)


def test_auroc_leaves_out_labels_that_all_or_none_have_and_is_chance_without_any():
    auroc = metrics.get("auroc", "classify")
    table, true = answers(3, labels=3)
    true = true % 2  # label 2 is never true

    ours = auroc(table.tolist(), true.tolist())

    assert ours == pytest.approx(np.mean([pairwise(table[:, c], true == c) for c in (0, 1)]), abs=1e-12)
    assert auroc([[0.1, 0.9], [0.6, 0.4]], [1, 1]) == 0.5


@pytest.mark.parametrize("kind", ["classify", "multilabel"])
@pytest.mark.parametrize("labels", [2, 4])
def test_resampled_aurocs_are_those_of_the_rows_that_were_drawn(kind, labels):
    auroc = metrics.get("auroc", kind)
    table, true = answers(4, labels=labels, n=40, digits=1)
    stats = auroc.stats(table, [(t,) for t in true] if kind == "multilabel" else true, None)
    rng = np.random.default_rng(0)
    counts = np.stack([np.bincount(rng.integers(0, 40, n), minlength=40) for n in [1, 2, *[40] * 30]])

    found = auroc.resample(stats, counts)

    expected = [auroc.reduce(np.repeat(stats, often, axis=0)) for often in counts]
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("labels", [2, 5])
def test_brier_is_the_sum_of_squares_over_labels(labels):
    table, true = answers(5, labels=labels)

    ours = metrics.get("brier", "classify")(table.tolist(), true.tolist())

    truth = np.eye(labels)[true]
    assert ours == pytest.approx(((table - truth) ** 2).sum(1).mean(), abs=1e-12)
    if labels == 2:
        assert ours == pytest.approx(2 * sk.brier_score_loss(true, table[:, 1]), abs=1e-9)


@pytest.mark.parametrize("labels", [2, 5])
def test_calibration_error_is_the_gap_of_each_of_fifteen_bins(labels):
    table, true = answers(6, labels=labels)
    table[:3] = [1] + [0] * (labels - 1)  # the upper end belongs to the last bin

    ours = metrics.get("ece", "classify")(table.tolist(), true.tolist())

    top, right, expected = table.max(1), table.argmax(1) == true, 0.0
    for k in range(15):
        own = (top > np.linspace(0, 1, 16)[k]) & (top <= np.linspace(0, 1, 16)[k + 1])
        if own.any():
            expected += own.mean() * abs(top[own].mean() - right[own].mean())
    assert ours == pytest.approx(expected, abs=1e-12)
    assert metrics.get("ece", "classify")([[0.2, 0.8]] * 10, [1] * 8 + [0] * 2) == pytest.approx(0.0)


def test_log_likelihoods_count_as_the_probabilities_behind_them():
    table, true = answers(7, labels=3, digits=12)
    moved = np.log(table) - 250 * np.random.default_rng(0).random((len(table), 1))  # up to a constant

    for name in ("auroc", "brier", "ece"):
        metric = metrics.get(name, "classify")
        assert metric(moved.tolist(), true.tolist()) == pytest.approx(metric(table, true.tolist()), abs=1e-9)
    assert probabilities([-1e4, -1e4 + math.log(3)]) == pytest.approx([0.25, 0.75], abs=1e-9)
    assert probabilities([-math.inf, -5.0]).tolist() == [0.0, 1.0]
    assert probabilities([-7.0]).tolist() == [1.0]


def test_options_may_be_of_different_numbers():
    scores, true = [[0.5, 0.5], [0.1, 0.2, 0.7], [-1.0, -1.0, -1.0, -1.0]], [0, 2, 3]

    brier = metrics.get("brier", "choose")(scores, true)

    assert brier == pytest.approx((0.5 + (0.01 + 0.04 + 0.09) + (3 / 16 + 9 / 16)) / 3, abs=1e-12)


def test_scores_that_are_no_numbers_are_seen_and_lose_nothing_else():
    for name in ("auroc", "brier", "ece"):
        metric = metrics.get(name, "classify")
        for bad in (math.nan, math.inf):
            stats = metric.stats([[0.5, 0.5], [bad, 0.1], [0.3, 0.7]], [0, 1, 1], None)

            assert math.isnan(metric.reduce(stats))
            assert math.isfinite(metric.reduce(stats[[0, 2]]))


def test_mistakes_are_named():
    auroc = metrics.get("auroc", "classify")
    with pytest.raises(MtnlpError, match="example 1 has 3 scores for 2 labels"):
        auroc([[0.5, 0.5], [0.2, 0.3, 0.5]], [0, 1])
    with pytest.raises(MtnlpError, match="example 0 has 2 scores, but its answer is number 2"):
        auroc([[0.5, 0.5]], [2])
    with pytest.raises(MtnlpError, match="one score per label or option of an example; got 1"):
        metrics.get("brier", "classify")([1], [1])
    with pytest.raises(MtnlpError, match=r"labels \(4,\) are not all within 0..1"):
        metrics.get("auroc", "multilabel")([[0.5, 0.1]], [(4,)])
