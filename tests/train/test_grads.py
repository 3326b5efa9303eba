"""One gradient out of several: merging by the Gram matrix against doing it with the gradients themselves."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from mtnlp import balancers
from mtnlp.train.grads import TaskGrads


@pytest.fixture
def params():
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in [(3, 4), (5,), (2, 2)]]


def losses(params):
    """Three tasks; the last parameter is not seen by the second one, and the third one opposes the first."""
    a, b, c = params
    first, second = a.square().sum() + b.sum() + c.sum(), a.sum() * b.square().sum()
    return [first, second, -(a.square().sum() + 3 * b.sum() + c.prod())]


def flat(task, params):
    grads = torch.autograd.grad(losses(params)[task], params, allow_unused=True)
    filled = [torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True)]
    return torch.cat([grad.flatten() for grad in filled]).double()


def stashed(params, parts=1):
    grads = TaskGrads(params)
    for task in (0, 1, 2):
        for _ in range(parts):
            (losses(params)[task] / parts).backward()
            grads.stash(task)
    return grads


@pytest.mark.parametrize("parts", [1, 3])
def test_the_gram_matrix_and_the_merged_gradient(params, parts):
    grads, seen = stashed(params, parts), []
    rows = torch.stack([flat(task, params) for task in (0, 1, 2)])
    weights = torch.tensor([0.5, -2.0, 3.0])

    grads.merge(lambda gram: seen.append(gram) or weights, [0, 1, 2], Accelerator(cpu=True))

    torch.testing.assert_close(seen[0], rows @ rows.T, rtol=1e-5, atol=1e-5)
    merged = torch.cat([p.grad.flatten() for p in params]).double()
    torch.testing.assert_close(merged, weights.double() @ rows, rtol=1e-5, atol=1e-5)
    assert grads.rows == {}


def test_weights_of_one_give_the_plain_gradient(params):
    stashed(params).merge(balancers.get("equal")().weights, [0, 1, 2], Accelerator(cpu=True))

    merged = torch.cat([p.grad.flatten() for p in params]).double()
    torch.testing.assert_close(merged, sum(flat(task, params) for task in (0, 1, 2)), rtol=1e-5, atol=1e-5)


def test_no_gradient_conflicts_with_the_pcgrad_update_of_two_tasks(params):
    grads = TaskGrads(params)
    for task in (0, 2):
        losses(params)[task].backward()
        grads.stash(task)

    grads.merge(balancers.get("pcgrad")().weights, [0, 2], Accelerator(cpu=True))

    merged = torch.cat([p.grad.flatten() for p in params]).double()
    assert flat(0, params) @ flat(2, params) < 0
    assert merged @ flat(0, params) >= 0
    assert merged @ flat(2, params) >= 0


def test_a_parameter_that_no_task_reached_has_no_gradient(params):
    grads = TaskGrads([*params, nn.Parameter(torch.ones(2))])
    losses(params)[0].backward()
    grads.stash(0)

    grads.merge(balancers.get("equal")().weights, [0], Accelerator(cpu=True))

    assert grads.params[-1].grad is None
