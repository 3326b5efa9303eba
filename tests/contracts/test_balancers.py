"""What every balancer promises; a new file in mtnlp/balancers is tested by this one, unasked."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save

from mtnlp import balancers

TASKS = ("a", "b", "c")
OPTIONS = {"fixed": {"weights": {"a": 2.0}}}  # for those that cannot do without

pytestmark = pytest.mark.parametrize("name", balancers.names())


def make(name):
    balancer = balancers.get(name)(**OPTIONS.get(name, {}))
    balancer.setup(TASKS)
    return balancer


def trained(name):
    """One that has seen a few steps."""
    balancer = make(name)
    optimizer = torch.optim.SGD([*balancer.parameters(), torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    for step in range(3):
        losses = torch.tensor([2.0, 1.0 + step, 0.5], requires_grad=True)
        balancer.weigh([0, 1, 2], losses, torch.ones(3)).backward()
        balancer.weights(gram(4 + step))
        optimizer.step()
        optimizer.zero_grad()
        balancer.observe(dict(enumerate(losses.tolist())))
    return balancer


def gram(seed, tasks=3):
    rows = torch.randn(tasks, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return rows @ rows.T


def test_the_loss_does_not_depend_on_the_cut(name):
    balancer = trained(name)
    losses, share = torch.tensor([2.0, 1.0, 0.5]), torch.ones(3)

    whole = balancer.weigh([0, 1, 2], losses, share)
    parts = [
        balancer.weigh([0, 1], torch.tensor([0.5, 1.0]), torch.tensor([0.25, 1.0])),
        balancer.weigh([0, 2], torch.tensor([1.5, 0.5]), torch.tensor([0.75, 1.0])),
    ]

    torch.testing.assert_close(sum(parts), whole)


def test_absent_tasks_get_no_gradient(name):
    balancer = trained(name)
    before = [p.detach().clone() for p in balancer.parameters()]

    alone = balancer.weigh([1], torch.tensor([1.0], requires_grad=True), torch.ones(1))
    alone.backward()
    touched = sum(p.grad is not None for p in balancer.parameters())

    assert touched <= max(1, len(before) // len(TASKS))


def test_more_loss_is_never_better(name):
    losses = torch.tensor([2.0, 1.0, 0.5], requires_grad=True)

    trained(name).weigh([0, 1, 2], losses, torch.ones(3)).backward()

    assert (losses.grad >= 0).all()


def test_weights_are_finite_and_one_task_alone_keeps_its_direction(name):
    balancer = make(name)

    assert float(balancer.weights(gram(0, tasks=1))) > 0
    assert balancer.weights(gram(1)).isfinite().all()
    assert balancer.weights(torch.zeros(3, 3, dtype=torch.float64)).isfinite().all()


def test_equal_tasks_keep_their_direction(name):
    grad = torch.tensor([[1.0, 2.0], [1.0, 2.0]], dtype=torch.float64)

    merged = make(name).weights(grad @ grad.T) @ grad

    assert float(torch.cosine_similarity(merged, grad[0], dim=0)) == pytest.approx(1.0)


def test_its_state_is_tensors_and_decides_what_comes_next(name):
    balancer, other = trained(name), make(name)

    other.load_state_dict(load(save(balancer.state_dict())))

    losses, share = torch.tensor([2.0, 1.0, 0.5]), torch.ones(3)
    assert torch.equal(other.weigh([0, 1, 2], losses, share), balancer.weigh([0, 1, 2], losses, share))
    assert torch.equal(other.weights(gram(9, tasks=3)), balancer.weights(gram(9, tasks=3)))
