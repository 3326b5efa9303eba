"""A step costs what its live tasks cost, however many others the run has."""

from __future__ import annotations

import sys

import pytest
import tiny_tasks
import torch

from mtnlp.models.backbone import Backbone
from mtnlp.train.loop import steps

LIVE = [f"t{i:03}" for i in (2, 3, 5, 7)]
MANY = 300


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    return Backbone.load(tiny_tasks.backbone("minilm", tmp_path_factory.mktemp("net")))


def run_of(trunk, count: int, strategy: str = "lora-per-task"):
    """A run of `count` tasks, four of which are ever drawn."""
    tasks = [tiny_tasks.task(f"t{i:03}", "classify", rows=6) for i in range(count)]
    made = tiny_tasks.recipe("minilm", tasks, strategy=strategy, examples_per_step=12, max_norm=1.0)
    return tiny_tasks.build(made | {"sampler": {"name": "phased", "phases": [{"tasks": LIVE}]}}, trunk=trunk)


def lines_of_a_step(run) -> int:
    """Lines of Python that the second step runs, in all files."""
    going, count = steps(run), 0

    def trace(frame, event, arg):
        nonlocal count
        count += event == "line"
        return trace

    next(going)
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        next(going)
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("strategy", ["lora-per-task", "adapters", "full"])
def test_the_work_of_a_step_does_not_grow_with_the_number_of_tasks(trunk, strategy):
    few, many = (lines_of_a_step(run_of(trunk, count, strategy)) for count in (10, MANY))

    print(f"\n{strategy}: a step runs {few} lines of Python with 10 tasks, {many} with {MANY}")
    assert few > 1000 and abs(many - few) < (MANY - 10) / 10


def test_what_absent_tasks_own_is_not_read_and_not_written(trunk):
    run = run_of(trunk, MANY)
    going = steps(run)
    next(going)
    rows = [task for task, name in enumerate(run.tasks) if name not in LIVE]
    absent = [
        tensor
        for name, tensor in run.model.trainable_state().items()
        if name.split("/")[0] in ("bank", "head") and name.split("/")[1] not in LIVE
    ]
    moments = [table for name, table in run.optimizer.state().items() if name.startswith("bank.")]
    assert len(absent) == 3 * (MANY - len(LIVE)) and len(moments) >= 3
    for tensor in absent:
        tensor.fill_(torch.nan)  # whatever is computed from it is not a number either
    for table in moments:
        table[rows] = torch.nan

    records = [next(going), next(going)]

    assert all(set(record.losses) == set(LIVE) for record in records)
    assert all(tensor.isnan().all() for tensor in (*absent, *(table[rows] for table in moments)))
    live = [tensor for name, tensor in run.model.trainable_state().items() if name.split("/")[1] in LIVE]
    assert len(live) == 3 * len(LIVE) and all(tensor.isfinite().all() for tensor in live)
