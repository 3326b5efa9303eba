"""The choice between shared, private and gated, against statistics made by hand."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from mtnlp import metrics
from mtnlp.bench import statistics
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


@pytest.mark.parametrize(
    ("n", "alone", "joint", "way", "reason"),
    [
        (200, 180, 150, "private", "the joint run is below the baseline by 0.1500 (p 0.0001)"),
        (200, 180, 179, "private", "the joint run is below the baseline by 0.0050 (p "),
        (200, 180, 180, "shared", "the joint run is not below the baseline"),
        (200, 180, 200, "shared", "the joint run is not below the baseline"),
        (2, 2, 1, "private", "by 0.5000"),
        (2, 1, 2, "shared", "not below"),
    ],
)
def test_a_task_is_shared_only_if_its_joint_score_is_not_below_its_baseline(n, alone, joint, way, reason):
    found = chosen(share(n, alone), share(n, joint))

    (evidence,) = found.evidence
    assert found.way == way and found.reason.startswith("the joint run is") and reason in found.reason
    assert (found.gate, found.n) == (float(way == "private"), n) and evidence.adjusted == evidence.p
    assert (found.single, evidence.score, evidence.difference) == pytest.approx(
        (alone / n, joint / n, (joint - alone) / n)
    )


def test_the_p_of_the_choice_is_that_of_a_plain_bootstrap():
    draw = np.random.default_rng(1)
    alone, joint = draw.random(150) < 0.8, draw.random(150) < 0.74
    found = chosen(alone, joint).evidence[0]

    change = joint.astype(float) - alone
    moved = np.array([draw.choice(change, 150).mean() - change.mean() for _ in range(4000)])

    assert change.mean() < 0  # else there is nothing to see
    assert found.p == pytest.approx((moved <= change.mean() + 1e-9).mean(), abs=0.025)
    assert found.low == pytest.approx(np.quantile(moved, 0.025) + change.mean(), abs=0.012)


def test_of_an_error_more_is_worse():
    truth = np.linspace(0, 5, 200)
    stats = [metrics.get("mse", "regress").stats(list(truth + off), list(truth)) for off in (0.1, 0.3)]
    small, large = (Side("t", "regress", "mse", table, "rows") for table in stats)

    hurt, helped = (
        choice.first({"t": a}, {"t": b}, VALIDATION)["t"] for a, b in ((small, large), (large, small))
    )

    assert (hurt.way, helped.way) == ("private", "shared") and hurt.evidence[0].difference > 0
    assert choice.refined(hurt, large, {0.5: small}).way == "gated"


def test_a_task_without_a_joint_score_is_private():
    alone = side(share(50, 40))
    none = Side("t", "classify", "accuracy", np.full((50, 2), np.nan), "rows")

    found = choice.first({"t": alone}, {"t": none}, VALIDATION)["t"]

    assert found.way == "private" and "has no score" in found.reason and found.evidence[0].p == 1
    assert found.single == 0.8


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


def test_rows_of_a_cluster_count_as_one():
    private, blend = share(200, 150), side(share(200, 190))
    clusters = [row % 5 for row in range(200)]
    first = chosen(private, share(200, 50))

    apart = choice.refined(first, side(private), {0.5: blend})
    together = choice.refined(first, side(private, clusters=clusters), {0.5: blend})

    assert (apart.way, together.way) == ("gated", "private")


def test_a_task_that_ships_below_its_baseline_all_the_same_is_told():
    alone, joint, other = (side(share(200, right)) for right in (180, 150, 178))
    shared, private = chosen(share(200, 178), share(200, 178)), chosen(share(200, 180), share(200, 178))

    missed, fine = (choice.final(alone, found, found, "test") for found in (joint, other))

    assert (missed.below, fine.below) == (True, False) and missed.high < 0 < fine.high + 0.01
    (line,) = Chosen((shared,), {}, choice.GATES, (missed,)).missed()
    assert "below the single-task run on test, beyond noise; its validation rows" in line
    assert Chosen((shared,), {}, choice.GATES, (fine,)).missed() == []
    assert Chosen((private,), {}, choice.GATES, (missed,)).missed() == []  # rounding, as it is the baseline


@pytest.mark.parametrize("harm", [0.5, 1.0, 2.0])
def test_a_hurt_task_is_shared_as_often_as_chance_hides_its_harm(harm, monkeypatch):
    """harm: in standard errors of the measured difference, which is normal."""
    monkeypatch.setattr(statistics, "RESAMPLES", 100)  # they decide nothing here
    draw, n, accuracy, flips = np.random.default_rng(7), 400, 0.8, 0.1
    drop = harm * np.sqrt(flips / n)  # each row differs by -1, 0 or 1, with flips = P(not 0)
    worse, better = (flips + drop) / 2 / accuracy, (flips - drop) / 2 / (1 - accuracy)
    shared = 0
    for _ in range(300):
        alone, coin = draw.random(n) < accuracy, draw.random(n)
        joint = np.where(alone, coin >= worse, coin < better)
        shared += chosen(alone, joint).way == "shared"

    chance = NormalDist().cdf(-harm)
    assert shared / 300 == pytest.approx(chance, abs=0.02 + 3 * np.sqrt(chance * (1 - chance) / 300))
