"""AdamW by rows, clipping by owner and learning rates, each against the library that everybody trusts."""

from __future__ import annotations

import json
import mmap
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from mtnlp.errors import MtnlpError
from mtnlp.strategies._bank import Bank
from mtnlp.train.loop import steps
from mtnlp.train.optim import RowAdamW, Schedule

TASKS = ("a", "b", "c", "d")
STATM = Path("/proc/self/statm")  # pages: the second number are those in memory


def bank(width=37):
    made = Bank()
    made.add("w", (width,), lambda piece, generator: piece.normal_(generator=generator))
    made.build(TASKS, seed=0)
    return made


def turns(count, draw):
    """Live rows of `count` steps, some of them twice in a row and some long absent."""
    return [torch.randperm(len(TASKS), generator=draw)[: 1 + step % 3].sort().values.tolist()
            for step in range(count)]  # fmt: skip


def put(rows, live, grad):
    rows.gather(live)
    rows.leaf.grad = grad


@pytest.mark.parametrize("max_norm", [None, 4.0])  # norms are about 6 and 3
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("fused", "tolerance"), [(True, 0.0), (False, 1e-7)])
def test_rows_move_as_under_an_adamw_of_their_own(fused, tolerance, own, max_norm):
    rows, draw = bank(), torch.Generator().manual_seed(0)
    scales, decays = ([1.0, 0.3, 2.0, 1.0], [0.0, 0.1, 0.2, 0.1]) if own else ([1.0] * 4, [0.1] * 4)
    options = {"weight_decay": decays, "lr_scale": scales} if own else {"weight_decay": 0.1}
    optimizer = RowAdamW(rows, max_norm=max_norm, fused=fused, **options)
    alone = [nn.Parameter(row.clone()) for row in rows.rows]
    single = [torch.optim.AdamW([p], weight_decay=w, fused=True) for p, w in zip(alone, decays)]

    for step, live in enumerate(turns(25, draw)):
        optimizer.param_groups[0]["lr"] = lr = 0.01 * (1 + step % 5)
        before = {name: table.clone() for name, table in (optimizer.tables | {"rows": rows.rows}).items()}
        put(rows, live, torch.randn(len(live), 37, generator=draw) * (1 if step % 2 else 0.5))
        for position, task in enumerate(live):
            alone[task].grad = rows.leaf.grad[position].clone()
            if max_norm:
                nn.utils.clip_grad_norm_([alone[task]], max_norm)
            single[task].param_groups[0]["lr"] = lr * scales[task]
            single[task].step()
        optimizer.step()
        assert not rows.holds(live)  # the leaf is known to be stale
        absent = sorted(set(range(4)) - set(live))
        for name, table in (optimizer.tables | {"rows": rows.rows}).items():
            assert torch.equal(table[absent], before[name][absent])

    torch.testing.assert_close(rows.rows, torch.stack(alone).detach(), rtol=tolerance, atol=tolerance)
    assert optimizer.tables["steps"].tolist() == [single[t].state[alone[t]]["step"].item() for t in range(4)]


@pytest.mark.parametrize("kind", ["another precision", "another layout"])
def test_gradients_of_other_precision_or_layout_move_rows_alike(kind):
    draw = torch.Generator().manual_seed(1)
    rows, plain = bank(), bank()
    optimizers = RowAdamW(rows, max_norm=1.0), RowAdamW(plain, max_norm=1.0)

    for live in turns(6, draw):
        grad = torch.randn(37, len(live), generator=draw).bfloat16().float().T
        put(plain, live, grad.clone(memory_format=torch.contiguous_format))
        if kind == "another precision":
            rows.gather(live)
            rows.leaf = rows.leaf.bfloat16().detach().requires_grad_()
            rows.leaf.grad = grad.contiguous().bfloat16()
        else:
            put(rows, live, grad)
        for optimizer in optimizers:
            optimizer.step()

    assert torch.equal(rows.rows, plain.rows)
    assert torch.equal(optimizers[0].tables["exp_avg_sq"], optimizers[1].tables["exp_avg_sq"])


def test_schedulers_of_torch_set_the_rate_of_rows():
    rows = bank()
    alone = [nn.Parameter(row.clone()) for row in rows.rows]
    optimizers = RowAdamW(rows, lr=0.1), torch.optim.AdamW(alone, lr=0.1, fused=True)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=8) for o in optimizers]

    for step in range(8):
        grad = torch.randn(4, 37, generator=torch.Generator().manual_seed(step))
        put(rows, [0, 1, 2, 3], grad)
        for parameter, own in zip(alone, grad.clone()):
            parameter.grad = own
        for optimizer, schedule in zip(optimizers, schedules):
            optimizer.step()
            schedule.step()

    assert schedules[0].get_last_lr() == schedules[1].get_last_lr() != [0.1]
    assert torch.equal(rows.rows, torch.stack(alone).detach())


def test_a_saved_optimizer_of_rows_goes_on_bit_for_bit(tmp_path):
    draw = torch.Generator().manual_seed(2)
    made = [(live, torch.randn(len(live), 37, generator=draw)) for live in turns(12, draw)]

    def train(optimizer, part):
        for live, grad in part:
            put(optimizer.bank, live, grad.clone())
            optimizer.step()
        return optimizer

    options = {"lr": 0.1, "lr_scale": (1.0, 0.5, 2.0, 1.0), "max_norm": 5.0}
    through = train(RowAdamW(bank(), **options), made)
    half = train(RowAdamW(bank(), **options), made[:5])
    saved = half.state_dict()
    safetensors.torch.save_file(saved["state"][0], tmp_path / "moments")
    groups = json.loads(json.dumps(saved["param_groups"]))
    resumed = RowAdamW(bank(), lr=9.0)
    tables = resumed.tables
    with torch.no_grad():
        resumed.bank.rows.copy_(half.bank.rows)
    resumed.load_state_dict({"state": {0: safetensors.torch.load_file(tmp_path / "moments")},
                             "param_groups": groups})  # fmt: skip
    train(resumed, made[5:])

    assert torch.equal(resumed.bank.rows, through.bank.rows)
    for name, table in through.tables.items():
        assert torch.equal(resumed.tables[name], table)
        assert resumed.tables[name] is tables[name]  # no second copy of moments in memory
    assert resumed.param_groups[0]["lr"] == 0.1


def test_without_a_backward_rows_stay_as_they_are():
    rows = bank()
    before = rows.rows.clone()
    optimizer = RowAdamW(rows)

    assert optimizer.step(lambda: 7) == 7
    rows.gather([1])
    optimizer.step()
    rows.leaf.grad = torch.ones_like(rows.leaf)
    optimizer.zero_grad(set_to_none=False)
    assert rows.leaf.grad.count_nonzero() == 0
    optimizer.zero_grad()
    optimizer.step()

    assert torch.equal(rows.rows, before)
    assert optimizer.tables["steps"].sum() == 0


def test_what_does_not_fit_the_bank_is_refused():
    optimizer = RowAdamW(bank())
    with pytest.raises(MtnlpError, match=r"lr_scale has 3 numbers for 4 tasks"):
        RowAdamW(bank(), lr_scale=[1.0, 2.0, 3.0])
    with pytest.raises(MtnlpError, match="one bank"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
    with pytest.raises(MtnlpError, match=r"exp_avg of shape \(4, 36\), expected \(4, 37\)"):
        optimizer.load_state_dict(RowAdamW(bank(width=36)).state_dict())


@pytest.mark.skipif(not STATM.exists(), reason="reads the process's memory where Linux tells it")
def test_moments_of_tasks_that_were_never_trained_take_no_memory():
    def resident():
        return int(STATM.read_text().split()[1]) * mmap.PAGESIZE

    rows = Bank()
    rows.rows = torch.empty(1_000, 100_000)  # 400 MB, and 800 of moments
    before = resident()
    optimizer = RowAdamW(rows)
    put(rows, [3, 500], torch.ones(2, 100_000))
    optimizer.step()
    optimizer.load_state_dict(RowAdamW(rows).state_dict())

    assert resident() - before < 80e6


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
    optimizer.clip(live, norms.tolist())

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


def test_heads_move_as_under_one_adamw_over_all_and_only_those_that_are_live(tiny):
    schedule = Schedule(lr=0.1, steps=9, warmup=0, name="constant")
    run = tiny.make(strategy="lora", balancer="uncertainty", schedule=schedule, weight_decay=0.5)
    names, draw = run.optimizer.names, torch.Generator().manual_seed(0)
    twins = {name: nn.Parameter(p.detach().clone()) for name, p in names.items()}
    decayed = {name for name, p in names.items() if p.ndim > 1}
    plain = torch.optim.AdamW(
        [{"params": [p for name, p in twins.items() if (name in decayed) == decays], "weight_decay": decay}
         for decays, decay in ((True, 0.5), (False, 0.0))], lr=0.1, fused=True,
    )  # fmt: skip

    for live in ([0, 2], [2, 3], [0], [0, 2]):
        for name, parameter in names.items():
            parameter.grad = torch.randn(parameter.shape, generator=draw)
            task = name.split(".")[1] if name.startswith("head.") else None
            there = task is None or run.tasks.index(task) in live
            twins[name].grad = parameter.grad.clone() if there else None
        run.optimizer.step(0, live)
        plain.step()

    for name, parameter in names.items():
        assert torch.equal(parameter, twins[name]), name
        assert (parameter.grad is not None) == name.startswith(("head.mood", "head.pick"))  # not looked at
    run.optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in names.values())


def test_state_of_another_run_is_refused_by_name(tiny):
    run = tiny.make(strategy="full")
    list(steps(run))

    with pytest.raises(MtnlpError, match=r"shared\.net.* this run does not train"):
        tiny.make(strategy="heads").optimizer.load_state(run.optimizer.state())
    with pytest.raises(MtnlpError, match=r"lacks bank\.exp_avg"):
        tiny.make(strategy="lora-per-task").optimizer.load_state({})
