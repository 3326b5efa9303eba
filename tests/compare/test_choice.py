"""The choice between shared, private and gated, against statistics made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mtnlp import metrics
from mtnlp.bench.comparison import Side
from mtnlp.compare import choice
from mtnlp.compare.chosen import Chosen

VALIDATION = {"t": "validation"}


def side(right, task="t", clusters=None):
    """A task whose rows were answered rightly (1) or wrongly (0)."""
    right = np.asarray(right, dtype=float)
    return Side(task, "classify", "accuracy", np.stack([right, np.ones_like(right)], 1), "rows", clusters)


def share(n, right):
    """n rows, the first so many right."""
    return np.arange(n) < right


def chosen(alone, joint, **more):
    return choice.first({"t": side(alone, **more)}, {"t": side(joint, **more)}, VALIDATION)["t"]


def test_a_task_is_private_where_the_joint_run_is_below_its_baseline_beyond_noise():
    hurt, same, helped = (chosen(share(200, 180), share(200, right)) for right in (150, 178, 200))

    assert (hurt.way, hurt.gate) == ("private", 1.0) and "below the baseline beyond noise" in hurt.reason
    assert (same.way, helped.way) == ("shared", "shared") and "not below" in same.reason
    (evidence,) = hurt.evidence
    assert (hurt.single, evidence.score, evidence.difference) == pytest.approx((0.9, 0.75, -0.15))
    assert evidence.high < 0 and evidence.p < 0.001 and helped.evidence[0].p > 0.99


def test_the_p_of_the_choice_is_that_of_a_plain_bootstrap():
    draw = np.random.default_rng(1)
    alone, joint = draw.random(150) < 0.8, draw.random(150) < 0.74
    found = chosen(alone, joint).evidence[0]

    change = joint.astype(float) - alone
    moved = np.array([draw.choice(change, 150).mean() - change.mean() for _ in range(4000)])

    assert change.mean() < 0  # else there is nothing to see
    assert found.p == pytest.approx((moved <= change.mean() + 1e-9).mean(), abs=0.025)
    assert found.low == pytest.approx(np.quantile(moved, 0.025) + change.mean(), abs=0.012)


def test_the_more_tasks_the_more_evidence_each_needs():
    draw = np.random.default_rng(6)
    alone = draw.random(600) < 0.85
    joint = np.where(draw.random(600) < 0.06, ~alone, alone)
    task = {name: side(alone, name) for name in "abcdef"}
    same = {name: side(alone, name) for name in "bcdef"}
    splits = dict.fromkeys("abcdef", "validation")

    few = choice.first({"a": task["a"]}, {"a": side(joint, "a")}, splits)["a"]
    many = choice.first(task, {"a": side(joint, "a"), **same}, splits)["a"]

    assert few.evidence[0].p == many.evidence[0].p and 0.05 / 6 < few.evidence[0].p < 0.05
    assert many.evidence[0].adjusted == pytest.approx(6 * few.evidence[0].p)
    assert (few.way, many.way) == ("private", "shared")


def test_of_an_error_more_is_worse():
    truth = np.linspace(0, 5, 200)
    stats = [metrics.get("mse", "regress").stats(list(truth + off), list(truth)) for off in (0.1, 0.3)]
    small, large = (Side("t", "regress", "mse", table, "rows") for table in stats)

    hurt, helped = (
        choice.first({"t": a}, {"t": b}, VALIDATION)["t"] for a, b in ((small, large), (large, small))
    )

    assert (hurt.way, helped.way) == ("private", "shared") and hurt.evidence[0].difference > 0
    assert choice.refined(hurt, large, {0.5: small}).way == "gated"


@pytest.mark.parametrize(
    ("n", "alone", "joint", "way", "reason"),
    [
        (
            10,
            9,
            5,
            "private",
            "too few rows to tell, and the joint run is below the baseline by 0.4000, more than",
        ),
        (10, 9, 9, "shared", "too few rows to tell; the joint run is not below the baseline"),
        (19, 19, 0, "private", "too few rows"),  # whatever resamples of so few say
        (19, 0, 19, "shared", "too few rows"),
        (30, 24, 23, "shared", "by 0.0333, no more than the margin of 0.0400"),
        (30, 24, 22, "private", "by 0.0667, more than the margin of 0.0400"),
    ],
)
def test_where_rows_are_too_few_to_tell_a_margin_decides(n, alone, joint, way, reason):
    draw = np.random.default_rng(0)
    found = chosen(draw.permutation(share(n, alone)), draw.permutation(share(n, joint)))

    assert found.way == way and reason in found.reason and found.n == n


def test_rows_of_a_cluster_count_as_one():
    alone, joint = share(200, 200), share(200, 100)
    clusters = np.arange(200) % 5

    assert "too few rows" not in chosen(alone, joint).reason
    assert "too few rows" in chosen(alone, joint, clusters=clusters.tolist()).reason


def test_a_task_without_a_joint_score_is_private():
    alone = side(share(50, 40))
    none = Side("t", "classify", "accuracy", np.full((50, 2), np.nan), "rows")

    found = choice.first({"t": alone}, {"t": none}, VALIDATION)["t"]

    assert found.way == "private" and "without a score" in found.reason and found.evidence[0].p == 1


@pytest.mark.parametrize(
    ("n", "blends", "gate"),
    [
        (200, {0.25: 150, 0.5: 190, 0.75: 185}, 0.5),
        (200, {0.25: 150, 0.5: 160, 0.75: 162}, 1.0),  # better, but who knows
        (200, {0.25: 100, 0.5: 120, 0.75: 160}, 1.0),  # no better
        (16, {0.25: 8, 0.5: 16, 0.75: 16}, 1.0),  # too few rows to know
    ],
)
def test_a_blend_ships_only_if_it_is_better_than_private_beyond_noise(n, blends, gate):
    private = share(n, n * 8 // 10)
    first = chosen(private, share(n, n // 4))
    draw = np.random.default_rng(3)
    answered = {g: side(share(n, right) if right != 162 else draw.permutation(share(n, right)))
                for g, right in blends.items()}  # fmt: skip

    found = choice.refined(first, side(private), answered)

    assert first.gate == 1 and found.gate == gate and found.way == ("private" if gate == 1 else "gated")
    assert [evidence.candidate for evidence in found.evidence] == [
        "shared",
        "gated 0.25",
        "gated 0.5",
        "gated 0.75",
    ]
    assert (f"gated {gate} is above private" if gate < 1 else "no blend is above private") in found.reason


def test_a_task_that_ships_below_its_baseline_all_the_same_is_told():
    alone, joint, other = (side(share(200, right)) for right in (180, 150, 178))
    splits = {"t": "validation"}
    shared = choice.first({"t": alone}, {"t": other}, splits)["t"]

    missed, fine = (choice.final(alone, found, found, "test") for found in (joint, other))

    assert (missed.below, fine.below) == (True, False) and missed.high < 0 < fine.high + 0.01
    (line,) = Chosen((shared,), {}, choice.GATES, (missed,)).missed()
    assert "below the single-task run on test, beyond noise; its validation rows" in line
    assert Chosen((shared,), {}, choice.GATES, (fine,)).missed() == []


def test_tasks_that_joint_training_does_not_hurt_are_seldom_taken_apart():
    draw, wrong, splits = np.random.default_rng(7), 0, dict.fromkeys("abcd", "validation")
    for _ in range(100):
        alone, joint = ({name: side(draw.random(800) < 0.9, name) for name in splits} for _ in range(2))
        wrong += any(one.gate for one in choice.first(alone, joint, splits).values())

    assert wrong / 100 < 0.05 + 0.05  # of four tasks together; 2 standard errors of 100 draws
