"""Balancers against their papers' formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mtnlp import balancers
from mtnlp.errors import MtnlpError

ONES = torch.ones(1)


def make(name, tasks=("a", "b", "c"), **options):
    balancer = balancers.get(name)(**options)
    balancer.setup(tasks)
    return balancer


def algorithm_1(grads, seed, call):
    """PCGrad on the gradients themselves, as in the paper."""
    draw = np.random.default_rng([seed, call])
    projected = []
    for i, own in enumerate(grads):
        v = own.clone()
        for j in draw.permutation(len(grads)):
            if i != j and (dot := v @ grads[j]) < 0:
                v = v - dot / (grads[j] @ grads[j]) * grads[j]
        projected.append(v)
    return torch.stack(projected).sum(0)


@pytest.mark.parametrize("tasks", [2, 3, 7])
def test_pcgrad_on_dot_products_equals_algorithm_1(tasks):
    grads = torch.randn(tasks, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(tasks))
    grads[1] -= 2 * grads[0]
    balancer = make("pcgrad", seed=5)

    for call in range(3):
        torch.testing.assert_close(balancer.weights(grads @ grads.T) @ grads, algorithm_1(grads, 5, call))


@pytest.mark.parametrize(
    ("grads", "update"),
    [
        ([[1, 0], [-1, 0]], [0, 0]),
        ([[1, 0], [-1, 1]], [0.5, 1.5]),
        ([[1, 0], [1, 1]], [2, 1]),
        ([[1, 0], [0, 0]], [1, 0]),
    ],
)
def test_pcgrad_worked_examples(grads, update):
    grads = torch.tensor(grads, dtype=torch.float64)

    merged = make("pcgrad").weights(grads @ grads.T) @ grads

    torch.testing.assert_close(merged, torch.tensor(update, dtype=torch.float64))


def test_pcgrad_goes_on_drawing_where_it_was_saved():
    grads = torch.randn(6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gram = grads @ grads.T
    whole, resumed = make("pcgrad"), make("pcgrad")
    first = [whole.weights(gram) for _ in range(4)]

    resumed.weights(gram), resumed.weights(gram)
    state = resumed.state_dict()
    resumed = make("pcgrad")
    resumed.load_state_dict(state)

    assert torch.equal(resumed.weights(gram), first[2])
    assert not torch.equal(first[2], first[3])


def test_uncertainty_equals_the_card():
    balancer = make("uncertainty")
    s = balancer.log_variances[1]
    loss = torch.tensor([2.0])

    at_zero = balancer.weigh([1], loss, ONES)
    at_zero.backward()
    gradient = s.grad.clone()
    with torch.no_grad():
        s.fill_(math.log(2))
    s.grad = None
    best = balancer.weigh([1], loss, ONES)
    best.backward()

    assert at_zero.item() == pytest.approx(1.0)
    assert float(gradient) == pytest.approx(0.5 * (1 - 2))
    assert best.item() == pytest.approx(0.8466, abs=1e-4)
    assert float(s.grad) == pytest.approx(0.0, abs=1e-6)
    assert balancer.log_variances[0].grad is None  # an absent task stays where it is


def test_uncertainty_holds_its_variances_in_bounds():
    balancer = make("uncertainty")
    with torch.no_grad():
        balancer.log_variances[0].fill_(-7.0)
        balancer.log_variances[2].fill_(-7.0)

    balancer.observe({0: 0.0})

    assert [s.item() for s in balancer.log_variances] == [-5.0, 0.0, -7.0]


def test_fixed_multiplies_and_counts_unnamed_tasks_once():
    balancer = make("fixed", weights={"b": 3.0, "c": 0})

    loss = balancer.weigh([0, 1, 2], torch.tensor([1.0, 2.0, 5.0]), torch.ones(3))

    assert float(loss) == 7.0


def test_fixed_names_a_task_that_is_not_there():
    with pytest.raises(MtnlpError, match=r"'bb'.*Did you mean 'b'"):
        make("fixed", weights={"bb": 1.0}, tasks=("a", "b"))


@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan, "2"])
def test_fixed_refuses_what_is_no_weight(weight):
    with pytest.raises(MtnlpError, match="finite number >= 0"):
        make("fixed", weights={"a": weight})
