"""Counts of a step against exact fractions, rows against their meaning."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtnlp.data import plan
from mtnlp.data.mixture import Mixture
from mtnlp.data.plan import GOLDEN, ONE, Quota, floor_sum, in_units
from mtnlp.errors import MtnlpError
from mtnlp.samplers.base import Phase

WEIGHTS = [0.5, 0.2, 0.0, 0.29, 0.01]


class Sized:
    """As much of a store as a plan needs."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


def mixture(sizes, phases, *, names=None, seed=3, k=8):
    names = names or [f"task{i}" for i in range(len(sizes))]
    return Mixture(
        names,
        [Sized(n) for n in sizes],
        phases,
        seed=seed,
        examples_per_step=k,
        max_tokens=100,
        pad_id=0,
        form="encoder",
    )


def places_counted(rates, k: int, shift: int, step: int) -> list[int]:
    """The definition: K evenly spaced places with a common offset, counted in the tasks' shares."""
    edges = np.cumsum(in_units(np.array(rates), k)).tolist()
    v = Fraction((shift + step * GOLDEN) % ONE, ONE)
    counts = [0] * len(rates)
    for i in range(k):
        counts[next(t for t, edge in enumerate(edges) if i + v < Fraction(edge, ONE))] += 1
    return counts


@given(
    count=st.integers(0, 60),
    modulus=st.integers(1, 1000),
    slope=st.integers(0, 5000),
    offsets=st.lists(st.integers(0, 5000), min_size=1, max_size=4),
)
def test_floor_sum_equals_the_sum(count, modulus, slope, offsets):
    found = floor_sum(count, modulus, slope, np.array(offsets))

    assert found.tolist() == [
        sum(floor(Fraction(slope * i + b, modulus)) for i in range(count)) for b in offsets
    ]


@settings(deadline=None, max_examples=40)
@given(
    weights=st.lists(st.floats(0, 1), min_size=1, max_size=6).filter(lambda w: sum(w) > 0.01),
    k=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_counts_and_cursors_equal_a_simulation(weights, k, seed):
    rates = np.array(weights) / sum(weights)
    second = rates[::-1].copy()
    quota = Quota([Phase(0, rates), Phase(13, second)], examples_per_step=k, seed=seed)
    cursors = np.zeros(len(rates), int)

    for step in range(30):
        expected = places_counted(rates if step < 13 else second, k, quota.shift, step)

        assert quota.drawn(step).tolist() == cursors.tolist()
        assert quota.counts(step).tolist() == expected
        cursors += expected


@pytest.mark.parametrize("together", [1, 7, 1000])
def test_a_resume_in_any_phase_goes_on_as_the_run_did(together, monkeypatch):
    monkeypatch.setattr(plan, "AT_ONCE", together)
    draw = np.random.default_rng(4)
    starts = [0, *sorted(draw.choice(np.arange(1, 150), 40, replace=False).tolist())]
    rates = draw.dirichlet(np.ones(9), len(starts)) * (draw.random((len(starts), 9)) < 0.4)
    rates[rates.sum(1) == 0, 3] = 1  # phases of one task, and tasks that are in few phases
    phases = [Phase(start, own / own.sum()) for start, own in zip(starts, rates)]
    run, before = Quota(phases, examples_per_step=5, seed=2), np.zeros(9, int)

    for step in range(160):
        resumed = Quota(phases, examples_per_step=5, seed=2)

        assert resumed.drawn(step).tolist() == run.drawn(step).tolist() == before.tolist()
        assert resumed.counts(step).sum() == 5
        before += run.counts(step)


def test_a_resume_after_a_million_steps_replays_none(monkeypatch):
    asked = []
    counts = Quota.counts
    monkeypatch.setattr(Quota, "counts", lambda quota, step: asked.append(step) or counts(quota, step))
    mix = mixture([100_000] * 1000, [Phase(0, np.full(1000, 1e-3))], k=64)

    found = mix.plan(10**6)

    assert sum(found.counts) == 64 and asked == [10**6]
    assert abs(mix.drawn(10**6) - 64_000).max() < 20


def test_counts_sum_to_the_step_and_stay_within_one_of_the_rate():
    quota = Quota([Phase(0, np.array(WEIGHTS))], examples_per_step=32, seed=5)

    for step in range(500):
        counts = quota.counts(step)

        assert counts.sum() == 32
        assert (abs(counts - 32 * np.array(WEIGHTS)) < 1).all()
    assert (abs(quota.drawn(10**6) - 32e6 * np.array(WEIGHTS)) < 20).all()


@pytest.mark.parametrize(
    ("rates", "k"), [([1 / 3] * 3, 12), ([0.1] * 10, 20), ([0.5, 0.25, 0.25], 4), ([1.0], 7)]
)
def test_counts_are_exact_where_the_rate_is_a_whole_number_of_examples(rates, k):
    quota = Quota([Phase(0, np.array(rates))], examples_per_step=k, seed=1)

    for step in (0, 1, 2, 999, 10**6):
        assert quota.counts(step).tolist() == [round(k * p) for p in rates]


def test_rates_that_are_no_rates_are_refused():
    for rates in ([0.5, 0.4], [1.5, -0.5], [float("nan"), 1.0]):
        with pytest.raises(MtnlpError, match="sum to 1"):
            in_units(np.array(rates), 8)
    with pytest.raises(MtnlpError, match="start at step 0"):
        Quota([Phase(5, np.array([1.0]))], examples_per_step=1, seed=0)


def test_every_epoch_holds_every_row_once_and_epochs_differ():
    sizes = [5, 17, 40, 1, 8]
    mix = mixture(sizes, [Phase(0, np.array(WEIGHTS))])
    streams: dict[int, list[int]] = {t: [] for t in range(5)}

    for step in range(300):
        plan = mix.plan(step)
        assert plan.tasks == tuple(sorted(plan.tasks)) and min(plan.counts) > 0 and sum(plan.counts) == 8
        for task, rows in zip(plan.tasks, plan.rows, strict=True):
            streams[task] += rows.tolist()

    assert streams.pop(2) == []
    for task, stream in streams.items():
        epochs = [tuple(stream[i : i + sizes[task]]) for i in range(0, len(stream), sizes[task])]
        assert all(sorted(epoch) == list(range(sizes[task])) for epoch in epochs[:-1])
        assert len(set(epochs[-1])) == len(epochs[-1])
        if sizes[task] > 10:
            assert len(set(epochs)) > 0.9 * len(epochs)
    assert mix.drawn(300).tolist() == [len(streams.get(t, ())) for t in range(5)]


def test_a_plan_depends_on_nothing_but_its_arguments():
    phases = [Phase(0, np.array(WEIGHTS)), Phase(10, np.full(5, 0.2))]
    one, other = mixture([9, 9, 9, 9, 9], phases), mixture([9, 9, 9, 9, 9], phases)
    forward = [one.plan(step) for step in range(40)]

    for step in reversed(range(40)):
        for a, b in zip(forward[step].rows, other.plan(step).rows, strict=True):
            assert (a == b).all()
    changed = mixture([9, 9, 9, 9, 9], phases, seed=4)
    assert any((a != b).any() for a, b in zip(forward[39].rows, changed.plan(39).rows, strict=True))


def test_the_rows_of_a_task_do_not_depend_on_the_other_tasks():
    def stream(mix, name):
        plans = [mix.plan(step) for step in range(60)]
        return np.concatenate(
            [
                own
                for plan in plans
                for t, own in zip(plan.tasks, plan.rows, strict=True)
                if mix.names[t] == name
            ]
        )

    alone = stream(mixture([23], [Phase(0, np.ones(1))], names=["b"]), "b")
    among = stream(mixture([7, 23, 99], [Phase(0, np.array([0.3, 0.2, 0.5]))], names=["a", "b", "c"]), "b")

    assert 60 < len(among) < len(alone)
    assert (alone[: len(among)] == among).all()
