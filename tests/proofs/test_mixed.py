"""A batch of several tasks is the sum of its tasks: for every kind of task, every strategy and every family.

Compared are each task's mean loss, of size 1 to 6, and the gradients of their sum.
"""

from __future__ import annotations

import inspect

import pytest
import tiny_tasks
import torch
from torch import Tensor

from mtnlp import strategies
from mtnlp.data.batch import Batch
from mtnlp.data.collate import collate
from mtnlp.models.backbone import Backbone
from mtnlp.models.multitask import MultitaskModel
from mtnlp.strategies._bank import generator_for
from mtnlp.train.loop import Run, steps

TASKS = {
    "minilm": tiny_tasks.TWELVE,
    "t5": {f"text-{kind}": kind for kind in tiny_tasks.KINDS},
    "SmolLM2": {f"text-{kind}": kind for kind in tiny_tasks.KINDS},
}
# Every strategy on an encoder, without a loss of its own (mixlora's balance), which is no sum over rows.
CASES = [(name, "minilm") for name in strategies.names() if "encoder" in strategies.get(name).families]
CASES += [(name, network) for network in ("t5", "SmolLM2") for name in ("lora-per-task", "full")]


@pytest.fixture(scope="module")
def trunks(tmp_path_factory):
    """Tiny networks of three families, without dropout."""
    return {name: Backbone.load(tiny_tasks.backbone(name, tmp_path_factory.mktemp(name))) for name in TASKS}


def run_of(trunk: Backbone, tasks: dict[str, str], strategy: str, **train) -> Run:
    options = inspect.signature(strategies.get(strategy)).parameters
    slot = {"name": strategy} | ({"dropout": 0.0} if "dropout" in options else {})
    made = [tiny_tasks.task(name, kind) for name, kind in tasks.items()]
    return tiny_tasks.build(tiny_tasks.recipe("here", made, strategy=slot, **train), trunk=trunk)


def disturb(model: MultitaskModel) -> None:
    """Move what is trained away from its start, where a task's own update is zero."""
    for name, tensor in model.trainable_state().items():
        tensor += 0.05 * torch.randn(tensor.shape, generator=generator_for(0, name))


def outcome(run: Run, batches: list[Batch]) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Task -> mean loss, and name -> its gradient; the bank's by task."""
    model, plan = run.model.train(), run.mixture.plan(0)
    counts, losses = dict(zip(plan.tasks, plan.counts, strict=True)), dict.fromkeys(run.tasks, 0.0)
    model.zero_grad()
    model.begin(plan.tasks)
    for batch in batches:
        out = model(batch)
        means = out.sums / torch.tensor([counts[task] for task in out.tasks])
        means.sum().backward()
        for task, mean in zip(out.tasks, means.tolist(), strict=True):
            losses[run.tasks[task]] += mean
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    if (bank := model.strategy.bank) is not None:
        grads |= {f"bank/{run.tasks[task]}": g for task, g in zip(bank.live, bank.leaf.grad, strict=True)}
    return losses, grads


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the norm of the whole tensor where that is above 1."""
    return float((found - expected).abs().max()) / max(1.0, float(expected.norm()))


@pytest.mark.parametrize(("strategy", "network"), CASES)
def test_a_mixed_batch_equals_a_batch_per_task_for_every_kind(trunks, strategy, network):
    tasks = TASKS[network]
    run = run_of(trunks[network], tasks, strategy, examples_per_step=3 * len(tasks))
    disturb(run.model)
    plan, gaps, worst = run.mixture.plan(0), [], []

    parts = [(task, run.mixture.stores[task], rows) for task, rows in zip(plan.tasks, plan.rows)]
    frame = {"pad_id": run.mixture.pad_id, "form": run.mixture.form}
    expected_losses, expected = outcome(run, [collate([part], **frame) for part in parts])
    assert len(parts) == len(expected_losses) == len(tasks) and len(expected) >= len(tasks)

    in_one, as_trained = [collate(parts, **frame)], tiny_tasks.batches(run, 0)
    for batches in (in_one, as_trained):
        losses, grads = outcome(run, batches)
        assert grads.keys() == expected.keys()
        gaps.append(max(abs(losses[name] - expected_losses[name]) for name in losses))
        worst.append(max(apart(grads[name], expected[name]) for name in grads))

    kinds = len(set(tasks.values()))
    print(
        f"\n{strategy} on {network}, {kinds} kinds: losses differ by {max(gaps):.0e} at most, "
        f"gradients by {max(worst):.0e}"
    )
    assert max(gaps) < 1e-6 and max(worst) < 1e-6


@pytest.mark.parametrize("strategy", ["lora-per-task", "full"])
@pytest.mark.parametrize("network", TASKS)
def test_the_order_of_the_tasks_changes_nothing(trunks, network, strategy):
    tasks = TASKS[network]
    order = sorted(tasks, key=lambda name: generator_for(1, name).initial_seed())
    assert order != list(tasks)
    options = {"examples_per_step": 2 * len(tasks), "steps": 3, "max_norm": 1.0}
    runs = [
        run_of(trunks[network], {name: tasks[name] for name in names}, strategy, **options)
        for names in (tasks, order)
    ]

    losses, turned_losses = ([record.losses for record in steps(run)] for run in runs)

    weights, turned = (tiny_tasks.weights(run) for run in runs)
    assert weights.keys() == turned.keys()
    loss = max(abs(a[name] - b[name]) for a, b in zip(losses, turned_losses, strict=True) for name in tasks)
    worst = max(float((weights[name] - turned[name]).abs().max()) for name in weights)
    print(
        f"\n{strategy} on {network}, {len(tasks)} tasks in another order, 3 steps: losses differ by "
        f"{loss:.0e} at most, weights by {worst:.0e}"
    )
    assert loss < 1e-6 and worst < 1e-6


@pytest.mark.parametrize(
    ("strategy", "network"),
    [("lora-per-task", "minilm"), ("adapters", "minilm"), ("mtl-lora", "minilm"), ("lora-per-task", "t5")],
)
def test_a_task_absent_from_a_step_keeps_everything_to_the_last_bit(trunks, strategy, network):
    run = run_of(trunks[network], TASKS[network], strategy, examples_per_step=4, steps=9, lr=1e-2)
    kept, changed, before = 0, set(), owned(run)
    for record in steps(run):
        after = owned(run)
        for task in run.tasks:
            same = [
                torch.equal(before[task][name], tensor)
                for name, tensor in after[task].items()
                if name in before[task]
            ]
            if task in record.losses:
                changed |= {task} if not all(same) else set()
            else:
                assert after[task].keys() == before[task].keys() and all(same), (record.step, task)
                kept += len(same)
        before = after

    print(f"\n{strategy} on {network}: {kept} tensors of absent tasks kept every bit over {run.steps} steps")
    assert changed == set(run.tasks)


def owned(run: Run) -> dict[str, dict[str, Tensor]]:
    """Task -> everything that belongs to it alone: head, row of the bank, moments and step counts of both."""
    found = {task: {} for task in run.tasks}
    state = tiny_tasks.weights(run) | {f"optimizer/{k}": v.clone() for k, v in run.optimizer.state().items()}
    for i, task in enumerate(run.tasks):
        mine = (f"head/{task}/", f"bank/{task}", f"optimizer/head.{task}.")
        found[task] |= {name: tensor for name, tensor in state.items() if name.startswith(mine)}
        found[task] |= {
            name: tensor[i] for name, tensor in state.items() if name.startswith("optimizer/bank.")
        }
    return found
