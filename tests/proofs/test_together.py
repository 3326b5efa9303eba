"""Twelve tasks trained together under lora-per-task learn what twelve runs learn apart.

Nothing is shared between tasks but frozen weights, and a task's rows, fresh weights, learning rate, clipping
and optimizer state depend on nothing but the task. What is left is rounding: in a mixed batch other rows
stand beside a task's own, and its updates go through a batched product.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_tasks
from torch import Tensor, nn

from mtnlp.models.backbone import Backbone
from mtnlp.train.loop import steps

PER_TASK = 2  # examples of every task in every step, together and apart
SHARED = Path(__file__).parents[3] / "shared/data/tasks"
REAL = ["sst2", "trec6", "banking77", "snli", "paws", "scitail", "wnut17_ner", "ewt_pos", "boolq", "arc"]
REAL += ["sts_semeval", "goemotions"]


def trained(
    trunk: Backbone, tasks: list, **train
) -> tuple[list[dict[str, float]], dict[str, Tensor], dict[str, list]]:
    """Losses of every step, weights at the end, and every task's rows of every step."""
    recipe = tiny_tasks.recipe(
        "minilm", tasks, examples_per_step=PER_TASK * len(tasks), max_norm=1.0, **train
    )
    run = tiny_tasks.build(recipe, trunk=trunk)
    plans = [run.mixture.plan(step) for step in range(run.steps)]
    rows = {
        name: np.concatenate([dict(zip(plan.tasks, plan.rows))[task] for plan in plans])
        for task, name in enumerate(run.tasks)
    }
    losses = [record.losses for record in steps(run)]
    return losses, tiny_tasks.weights(run), rows


def compare(trunk: Backbone, tasks: list, **train) -> tuple[float, float]:
    """Largest difference of a loss and of a weight between all tasks in one run and each in its own."""
    losses, weights, rows = trained(trunk, tasks, **train)
    assert len(rows) == len(tasks) == 12
    loss_gap, weight_gap, seen = 0.0, 0.0, set()
    for task in tasks:
        alone, own, own_rows = trained(trunk, [task], **train)
        ((name, drawn),) = own_rows.items()
        assert (drawn == rows[name]).all()
        loss_gap = max(loss_gap, *(abs(a[name] - b[name]) for a, b in zip(alone, losses, strict=True)))
        weight_gap = max(weight_gap, *(float((own[key] - weights[key]).abs().max()) for key in own))
        seen |= set(own)
    assert seen == set(weights)
    return loss_gap, weight_gap


def test_twelve_tasks_together_equal_twelve_runs_apart(tmp_path):
    trunk = Backbone.load(tiny_tasks.backbone("minilm", tmp_path))
    tasks = [tiny_tasks.task(name, kind) for name, kind in tiny_tasks.TWELVE.items()]

    loss, weight = compare(trunk, tasks, steps=6, lr=2e-3)

    print(f"\n12 tasks of 8 kinds, 6 steps: losses differ by {loss:.1e} at most, weights by {weight:.1e}")
    assert loss < 1e-5 and weight < 1e-5


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="the shared data folder is not here")
def test_twelve_real_tasks_on_minilm_together_equal_twelve_runs_apart():
    trunk = Backbone.load("minilm")
    for module in trunk.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # a mixed batch draws other masks

    loss, weight = compare(trunk, [str(SHARED / name) for name in REAL], steps=20, lr=5e-4)

    print(
        f"\n12 real tasks on minilm, 20 steps: losses differ by {loss:.1e} at most, weights by {weight:.1e}"
    )
    assert loss < 1e-5 and weight < 1e-5
