"""What every sampler promises. A new file in mtnlp/samplers is tested here, unasked."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from mtnlp import samplers
from mtnlp.samplers.base import Sampler

TASKS, SIZES = ("a", "b", "c", "d"), (40, 1000, 7, 300)
STEPS, EXAMPLES = 20, 32
NEEDED = {  # options of samplers that cannot do without
    "weights": {"rates": {"a": 1, "b": 2, "c": 0.5, "d": 3}},
    "phased": {"phases": [{"until": 0.25, "tasks": ["b"]}, {"sampler": "uniform"}]},
}


def phases_of(name: str, tasks=TASKS, sizes=SIZES):
    return samplers.get(name)(**NEEDED.get(name, {})).phases(tasks, sizes, STEPS, EXAMPLES)


@pytest.mark.parametrize("name", samplers.names())
def test_options_are_keywords_and_are_explained(name):
    method = samplers.get(name)
    options = inspect.signature(method).parameters.values()

    assert issubclass(method, Sampler)
    assert all(option.kind is option.KEYWORD_ONLY for option in options)
    assert all(f"{option.name}:" in method.__doc__ for option in options)
    assert samplers.summary(name)


@pytest.mark.parametrize("name", samplers.names())
def test_rates_are_distributions_over_the_whole_run(name):
    phases = phases_of(name)

    starts = [phase.start for phase in phases]
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert starts[-1] < STEPS
    for phase in phases:
        assert phase.rates.shape == (len(TASKS),)
        assert phase.rates.dtype == np.float64
        assert (phase.rates >= 0).all()
        assert phase.rates.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", samplers.names())
def test_no_task_is_left_out_of_the_run(name):
    assert (sum(phase.rates for phase in phases_of(name)) > 0).all()


@pytest.mark.parametrize("name", sorted(set(samplers.names()) - set(NEEDED)))  # those name several tasks
def test_a_task_alone_gets_everything(name):
    assert [(p.start, p.rates.tolist()) for p in phases_of(name, ("a",), (500,))] == [(0, [1.0])]


@pytest.mark.parametrize("name", samplers.names())
def test_the_same_question_has_the_same_answer(name):
    method = samplers.get(name)(**NEEDED.get(name, {}))

    first, second = (method.phases(TASKS, SIZES, STEPS, EXAMPLES) for _ in range(2))

    assert [(p.start, p.rates.tolist()) for p in first] == [(p.start, p.rates.tolist()) for p in second]


@pytest.mark.parametrize("name", sorted(set(samplers.names()) - {"sequential"}))  # its subject is the order
def test_the_order_of_tasks_changes_nothing(name):
    back = [3, 1, 0, 2]

    turned = phases_of(name, [TASKS[t] for t in back], [SIZES[t] for t in back])

    for straight, other in zip(phases_of(name), turned, strict=True):
        assert straight.start == other.start
        np.testing.assert_allclose(straight.rates[back], other.rates, rtol=1e-12)
