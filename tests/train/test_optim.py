"""AdamW by rows, clipping by owner and learning rates, each against the library that everybody trusts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mtnlp.errors import MtnlpError
from mtnlp.strategies._bank import Bank
from mtnlp.train.loop import steps
from mtnlp.train.optim import RowAdamW, Schedule

TASKS = ("a", "b", "c", "d")


def bank(width=37):
    made = Bank()
    made.add("w", (width,), lambda piece, generator: piece.normal_(generator=generator))
    made.build(TASKS, seed=0)
    return made


@pytest.mark.parametrize(("fused", "tolerance"), [(True, 0.0), (False, 1e-7)])
def test_rows_move_as_under_an_adamw_of_their_own(fused, tolerance):
    rows = bank()
    optimizer = RowAdamW(rows, weight_decay=0.1, fused=fused)
    alone = [nn.Parameter(row.clone()) for row in rows.rows]
    single = [torch.optim.AdamW([p], lr=1.0, weight_decay=0.1, fused=True) for p in alone]
    draw = torch.Generator().manual_seed(0)

    for step in range(25):
        live = torch.randperm(4, generator=draw)[: 1 + step % 3].sort().values.tolist()
        lr = 0.01 * (1 + step % 5)
        before = rows.rows.clone()
        rows.gather(live)
        rows.leaf.grad = torch.randn(rows.leaf.shape, generator=draw)
        optimizer.step(lr)
        for position, task in enumerate(live):
            alone[task].grad = rows.leaf.grad[position].clone()
            single[task].param_groups[0]["lr"] = lr
            single[task].step()
        assert not rows.holds(live)  # the leaf is known to be stale
        for task in set(range(4)) - set(live):
            assert torch.equal(rows.rows[task], before[task])

    torch.testing.assert_close(rows.rows, torch.stack(list(alone)).detach(), rtol=tolerance, atol=tolerance)
    assert optimizer.steps.tolist() == [single[t].state[alone[t]]["step"].item() for t in range(4)]


def test_a_bank_that_no_backward_reached_stays_as_it_is():
    rows = bank()
    before = rows.rows.clone()
    rows.gather([1])

    optimizer = RowAdamW(rows)
    optimizer.step(0.1)

    assert torch.equal(rows.rows, before)
    assert optimizer.steps.sum() == 0


@pytest.mark.parametrize("warmup", [0, 0.1, 7])
@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
def test_learning_rates_equal_those_of_transformers(name, warmup):
    from transformers import get_scheduler

    schedule = Schedule(lr=3e-4, steps=50, name=name, warmup=warmup)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3e-4)
    theirs = get_scheduler(
        "constant_with_warmup" if name == "constant" else name,
        optimizer,
        num_warmup_steps=schedule.warmup_steps,
        num_training_steps=50,
    )

    for step in range(50):
        assert schedule.lr_at(step) == theirs.get_last_lr()[0]  # to the last bit
        optimizer.step()
        theirs.step()
    assert schedule.warmup_steps == {0: 0, 0.1: 5, 7: 7}[warmup]


def test_an_unknown_schedule_is_named():
    with pytest.raises(MtnlpError, match=r"'cosin'.*Did you mean 'cosine'"):
        Schedule(lr=1.0, steps=1, name="cosin")


@pytest.mark.parametrize("strategy", ["lora", "lora-per-task", "full"])
def test_shared_parameters_and_every_task_are_clipped_by_norms_of_their_own(tiny, strategy):
    run = tiny.make(strategy=strategy, max_norm=0.05)
    optimizer, live = run.optimizer, [0, 2, 3]
    run.model.begin(live)
    draw = torch.Generator().manual_seed(0)
    owned = [list(optimizer.shared.values()), *(list(optimizer.heads[task].values()) for task in live)]
    for scale, parameters in zip((1e-5, 3.0, 1e-5, 0.5), owned):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=draw) * scale
    if optimizer.bank is not None:
        leaf = optimizer.bank.leaf
        leaf.grad = torch.randn(leaf.shape, generator=draw) * torch.tensor([[3.0], [1e-5], [0.5]])
        copies = [nn.Parameter(row.clone()) for row in leaf.detach()]
        for copy, grad in zip(copies, leaf.grad):
            copy.grad = grad.clone()
        owned = [owned[0], *([*own, copy] for own, copy in zip(owned[1:], copies))]
    twins = [[nn.Parameter(p.detach().clone()) for p in own] for own in owned]
    for own, twin in zip(owned, twins):
        for parameter, copy in zip(own, twin):
            copy.grad = parameter.grad.clone()

    norms = optimizer.norms(live, run.accelerator)
    optimizer.clip(live, norms)

    expected = [torch.nn.utils.clip_grad_norm_(twin, 0.05) for twin in twins]
    torch.testing.assert_close(norms, torch.stack(expected))
    if optimizer.bank is not None:
        for copy, grad in zip(copies, leaf.grad):
            copy.grad = grad
    for own, twin in zip(owned, twins):
        for parameter, copy in zip(own, twin):
            torch.testing.assert_close(parameter.grad, copy.grad)


def test_only_matrices_and_rows_decay(tiny):
    schedule = Schedule(lr=0.1, steps=9, warmup=0)
    run = tiny.make(strategy="full", balancer="uncertainty", weight_decay=0.5, schedule=schedule)
    with torch.no_grad():
        for parameter in run.optimizer.names.values():
            parameter.add_(0.5)
            parameter.grad = torch.zeros_like(parameter)
    before = tiny.weights(run)

    run.optimizer.step(0)

    for name, tensor in tiny.weights(run).items():
        factor = 0.95 if tensor.ndim > 1 else 1.0
        torch.testing.assert_close(tensor, before[name] * factor)


def test_state_of_another_run_is_refused_by_name(tiny):
    run = tiny.make(strategy="full")
    list(steps(run))

    with pytest.raises(MtnlpError, match=r"shared\.net.* this run does not train"):
        tiny.make(strategy="heads").optimizer.load_state(run.optimizer.state())
    with pytest.raises(MtnlpError, match=r"lacks bank\.exp_avg"):
        tiny.make(strategy="lora-per-task").optimizer.load_state({})
