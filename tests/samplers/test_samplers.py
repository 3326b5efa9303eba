"""Rates against worked numbers and the definitions of the papers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtnlp import samplers
from mtnlp.errors import MtnlpError

SIZES = st.lists(st.integers(1, 10**7), min_size=1, max_size=8)


def rates(name: str, sizes, *, steps: int = 10, examples: int = 10, **options) -> np.ndarray:
    tasks = [f"t{i}" for i in range(len(sizes))]
    (phase,) = samplers.get(name)(**options).phases(tasks, sizes, steps, examples)
    return phase.rates


def timeline(sampler, tasks, sizes, steps):
    """(steps, T) rates of every step."""
    rows = np.full((steps, len(tasks)), np.nan)
    for phase in sampler.phases(tasks, sizes, steps, 4):
        rows[phase.start :] = phase.rates
    return rows


@pytest.mark.parametrize(
    ("sizes", "options", "small"),
    [
        ((100, 10_000), {"temperature": 1}, 0.0099),
        ((100, 10_000), {"temperature": 2}, 0.0909),
        ((100, 10_000), {"temperature": 5}, 0.2847),
        ((100, 10_000), {"temperature": 10}, 0.3869),
        ((100, 10_000), {"temperature": float("inf")}, 0.5),
        ((100, 10_000), {"temperature": 1, "cap": 1000}, 0.0909),
        ((100, 10_000), {"temperature": 3, "cap": 50}, 0.5),
        ((100, 10_000), {"temperature": 1, "floor": 0.2}, 0.2),
    ],
)
def test_temperature_gives_the_published_rates(sizes, options, small):
    assert rates("temperature", sizes, **options)[0] == pytest.approx(small, abs=6e-5)


@given(sizes=SIZES, cap=st.none() | st.integers(1, 10**6))
def test_temperature_one_is_proportional_and_infinity_is_uniform(sizes, cap):
    proportional = rates("proportional", sizes, cap=cap)

    np.testing.assert_allclose(rates("temperature", sizes, temperature=1, cap=cap), proportional)
    np.testing.assert_allclose(
        proportional * np.minimum(sizes, cap or np.inf).sum(), np.minimum(sizes, cap or np.inf)
    )
    np.testing.assert_allclose(rates("temperature", sizes, temperature=float("inf")), rates("uniform", sizes))


@given(sizes=SIZES, share=st.floats(0, 1))
def test_a_floor_holds_and_keeps_the_ratios_above_it(sizes, share):
    floor = share / len(sizes)

    plain, lifted = rates("temperature", sizes), rates("temperature", sizes, floor=floor)

    assert (lifted >= floor - 1e-12).all()
    above = lifted > floor + 1e-12
    if above.any():
        ratio = lifted[above] / plain[above]
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)


@pytest.mark.parametrize(
    ("sizes", "budget", "epochs", "taken"),
    [
        ((5, 10, 100), 100, 2, (10, 20, 70)),
        ((10, 100, 1000), 300, 1, (10, 100, 190)),
        ((10, 100, 1000), 300, 4, (40, 130, 130)),
        ((1000, 10, 100), 300, 1000, (100, 100, 100)),
    ],
)
def test_unimax_gives_the_published_shares(sizes, budget, epochs, taken):
    share = rates("unimax", sizes, steps=budget // 10, examples=10, epochs=epochs)

    np.testing.assert_allclose(share * budget, taken)


@given(sizes=SIZES, epochs=st.integers(1, 8), spent=st.floats(0, 1))
def test_unimax_is_the_fairest_share_within_its_epochs(sizes, epochs, spent):
    budget = max(1, int(spent * epochs * sum(sizes)))

    taken = rates("unimax", sizes, steps=budget, examples=1, epochs=epochs) * budget

    most = epochs * np.array(sizes)
    assert (taken <= most * (1 + 1e-9)).all()
    free = taken < most * (1 - 1e-9)  # whoever is not at its limit gets as much as anyone
    assert taken[free] == pytest.approx(taken.max(), rel=1e-9)


def test_unimax_refuses_a_budget_that_its_epochs_cannot_fill():
    with pytest.raises(MtnlpError, match=r"train.steps=4, or at least sampler.epochs=3\."):
        rates("unimax", (10, 10), steps=6, examples=10, epochs=2)
    rates("unimax", (10, 10), steps=4, examples=10, epochs=2)
    rates("unimax", (10, 10), steps=6, examples=10, epochs=3)


def test_weights_need_not_sum_to_one_but_name_every_task():
    sampler = samplers.get("weights")(rates={"x": 3, "y": 1})

    assert sampler.phases(["y", "x"], [5, 5], 2, 2)[0].rates.tolist() == [0.25, 0.75]
    with pytest.raises(MtnlpError, match=r"sampler.rates: no value for z and unknown x"):
        sampler.phases(["y", "z"], [5, 5], 2, 2)


@given(sizes=st.lists(st.integers(1, 10**6), min_size=1, max_size=8), extra=st.integers(0, 1000))
def test_sequential_shares_out_the_steps_by_size(sizes, extra):
    steps, tasks = len(sizes) + extra, [f"t{i}" for i in range(len(sizes))]

    lengths = timeline(samplers.get("sequential")(), tasks, sizes, steps).sum(0)

    assert lengths.sum() == steps
    np.testing.assert_array_less(np.abs(lengths - 1 - np.array(sizes) / sum(sizes) * extra), 1)


def test_sequential_goes_in_the_order_of_its_steps():
    rows = timeline(samplers.get("sequential")(steps={"y": 3, "z": 0, "x": 2}), ["x", "y", "z"], [9, 9, 9], 5)

    assert rows.argmax(1).tolist() == [1, 1, 1, 0, 0]
    with pytest.raises(MtnlpError, match="add up to 5, but the run has 6 steps"):
        timeline(samplers.get("sequential")(steps={"x": 3, "y": 2}), ["x", "y"], [9, 9], 6)
    with pytest.raises(MtnlpError, match="a step for each of its 2 tasks; got 1"):
        timeline(samplers.get("sequential")(), ["x", "y"], [9, 9], 1)


def test_phases_follow_each_other_with_their_own_tasks_and_samplers():
    sampler = samplers.get("phased")(
        phases=[
            {"until": 0.2, "tasks": ["big/*"]},
            {"until": 6, "rates": {"big/a": 1, "big/b": 1, "c": 2}},
            {"sampler": {"name": "sequential"}, "tasks": ["c", "big/a"]},
        ]
    )

    rows = timeline(sampler, ["big/a", "c", "big/b"], [300, 300, 100], 10)

    expected = [[0.75, 0, 0.25]] * 2 + [[0.25, 0.5, 0.25]] * 4 + [[1, 0, 0]] * 2 + [[0, 1, 0]] * 2
    np.testing.assert_allclose(rows, expected)


def test_a_first_phase_of_no_steps_is_static_mixing():
    phases = [{"until": 0.0, "tasks": ["x"]}, {"sampler": {"name": "temperature", "temperature": 3}}]

    rows = timeline(samplers.get("phased")(phases=phases), ["x", "y"], [100, 10], 7)

    static = timeline(samplers.get("temperature")(temperature=3), ["x", "y"], [100, 10], 7)
    np.testing.assert_array_equal(rows, static)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([], "is empty"),
        ([{"untl": 0.5}], r"phases.0.untl: no such key. Did you mean 'until'"),
        ([{"sampler": "uniform", "rates": {"x": 1}}], "not both"),
        ([{"sampler": "unifrom"}], "Did you mean 'uniform'"),
        ([{"sampler": {"temperature": 2}}], "`name` is missing"),
        ([{"sampler": {"name": "temperature", "temp": 2}}], "phases.0.sampler: temperature: .*'temp'"),
        ([{}, {}], r"phases.0: `until` is missing"),
        ([{"until": 0.5}], "0.5 means step 5; expected the run's end, 10"),
        ([{"until": 0.5}, {"until": 4}, {}], "4 means step 4; expected a step from 5 to 10"),
        ([{"tasks": ["z*"]}], r"phases.0.tasks: no task of this recipe is called 'z\*'"),
    ],
)
def test_mistakes_in_phases_are_named(phases, message):
    with pytest.raises(MtnlpError, match=message):
        samplers.get("phased")(phases=phases).phases(["x", "y"], [5, 5], 10, 4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("temperature", {"temperature": 0}, "must be > 0; got 0"),
        ("temperature", {"floor": 0.6}, r"between 0 and 1 / number of tasks \(0.5\); got 0.6"),
        ("proportional", {"cap": 0}, "at least 1 row; got 0"),
        ("unimax", {"epochs": -1}, "must be > 0; got -1"),
        ("weights", {"rates": {"t0": 0, "t1": 0}}, "not all zero"),
    ],
)
def test_impossible_options_are_refused(name, options, message):
    with pytest.raises(MtnlpError, match=message):
        rates(name, (5, 5), **options)
