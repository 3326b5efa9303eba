"""Tasks that end before the run does: what the others are drawn by then, against counting step by step."""

from __future__ import annotations

import numpy as np
import pytest

from mtnlp import samplers
from mtnlp.data.mixture import Mixture
from mtnlp.samplers.base import Phase, without

SIZES, STEPS, EXAMPLES = (40, 7, 19, 3), 60, 9
TASKS = ("a", "b", "c", "d")
SAMPLERS = {
    "proportional": {},
    "uniform": {},
    "temperature": {"temperature": 3.0},
    "weights": {"rates": {"a": 1.0, "b": 0.0, "c": 2.0, "d": 0.01}},
    "sequential": {},
    "phased": {"phases": [{"until": 0.4, "tasks": ["a", "d"]}, {"sampler": "uniform"}]},
}


class Sized:
    """As much of a store as a plan needs."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


def mixture(phases):
    stores = [Sized(n) for n in SIZES]
    return Mixture(
        TASKS, stores, phases, seed=3, examples_per_step=EXAMPLES, max_tokens=99, pad_id=0, form="encoder"
    )


def phases(name):
    return samplers.get(name)(**SAMPLERS[name]).phases(TASKS, SIZES, STEPS, EXAMPLES)


def stream(made, task, start=0):
    """Rows of a task in the order of the run."""
    plans = [made.plan(step) for step in range(start, STEPS)]
    return np.concatenate(
        [rows for plan in plans for t, rows in zip(plan.tasks, plan.rows, strict=True) if t == task]
        or [np.zeros(0, np.int64)]
    )


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_end_changes_no_plan_before_it_and_no_order_of_the_others(name):
    plain, made = mixture(phases(name)), mixture(phases(name))

    made.end({0: 25, 2: 31})

    for step in range(25):
        one, two = plain.plan(step), made.plan(step)
        assert one.tasks == two.tasks and all((a == b).all() for a, b in zip(one.rows, two.rows))
    assert not len(stream(made, 0, 25)) and not len(stream(made, 2, 31))
    for task in (1, 3):
        more = stream(made, task)
        alone = made.rows(np.full(len(more), task), np.arange(len(more)))
        assert (more == alone).all(), "the others' rows do not come in the order of their own stream"
        assert (more[: len(old := stream(plain, task))] == old[: len(more)]).all()
    assert all(sum(made.plan(step).counts) == EXAMPLES for step in range(STEPS))


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_first_step_of_a_task_is_found_without_walking(name):
    made = mixture(phases(name))
    made.end({0: 5})

    for steps in (0, 1, 7, STEPS):
        found = made.first(steps)
        seen = [made.plan(step).tasks for step in range(steps)]
        assert found.tolist() == [
            next((step for step, tasks in enumerate(seen) if task in tasks), -1) for task in range(len(TASKS))
        ]


def test_the_rates_of_those_left_keep_their_ratios():
    found = without([Phase(0, np.array([0.5, 0.3, 0.2])), Phase(9, np.array([0.1, 0.0, 0.9]))], {0: 4})

    assert [phase.start for phase in found] == [0, 4, 9]
    np.testing.assert_allclose(found[1].rates, [0, 0.6, 0.4])
    np.testing.assert_allclose(found[2].rates, [0, 0, 1])


def test_a_stretch_with_nothing_left_is_spent_on_the_next_one_and_the_last_ends_the_run():
    one_by_one = [Phase(0, np.array([1.0, 0.0])), Phase(20, np.array([0.0, 1.0]))]
    made = mixture(phases("uniform"))
    made.end({task: 10 + task for task in range(4)})

    assert [phase.rates.tolist() for phase in without(one_by_one, {0: 5})] == [[1, 0], [0, 1], [0, 1]]
    assert [phase.rates.tolist() for phase in without(one_by_one, {1: 30})] == [[1, 0], [0, 1], [0, 0]]
    assert made.over == 13 and sum(made.plan(12).counts) == EXAMPLES
