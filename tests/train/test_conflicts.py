"""Gradient conflicts recorded while a run trains, against plain autograd, and a run that nobody looks at."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mtnlp.train import affinity, conflicts
from mtnlp.train.callbacks import Every, MetricsWriter
from mtnlp.train.loop import fit


def watched(tiny, path, **options):
    """A run of six steps, measured after every second one; its lines."""
    run, writer = tiny.make(examples=24, **options), MetricsWriter(path)
    fit(run, [Every(2, conflicts.Watch(run, writer), last=run.steps)])
    writer.close()
    return run, [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("strategy", ["lora", "full", "mtl-lora"])
def test_dot_products_are_those_of_plain_autograd(tiny, tmp_path, strategy):
    run, lines = watched(tiny, tmp_path / "metrics.jsonl", strategy=strategy)
    plan = affinity.probe(run, 3)
    run.model.eval()
    params = list(run.model.shared_parameters().values())
    rows = []
    for task in plan.tasks:
        run.model.begin(plan.tasks)
        batches = [b for b in run.mixture.batches(plan, max_tokens=1) if b.slices[0].task == task]
        mean = sum(run.model(batch).sums[0] for batch in batches) / plan.counts[task]
        grads = torch.autograd.grad(mean, params, allow_unused=True)
        rows.append(torch.cat([torch.zeros(p.numel()) if g is None else g.flatten()
                               for p, g in zip(params, grads, strict=True)]).double())  # fmt: skip

    assert [(line["kind"], line["step"], line["rows"]) for line in lines] == [
        ("conflicts", step, 3) for step in (2, 4, 6)
    ]
    assert lines[-1]["tasks"] == list(run.tasks)
    expected = torch.stack(rows) @ torch.stack(rows).T
    np.testing.assert_allclose(lines[-1]["gram"], expected, rtol=1e-4, atol=1e-4 * float(expected.max()))


@pytest.mark.parametrize("options", [
    {"strategy": "full"}, {"strategy": "mtl-lora", "balancer": "pcgrad"},
    {"strategy": "lora", "precision": "bf16", "flat": True, "balancer": "uncertainty"},
], ids=str)  # fmt: skip
def test_not_one_bit_of_what_is_trained_depends_on_it(tiny, tmp_path, options):
    run, _ = watched(tiny, tmp_path / "metrics.jsonl", **options)

    plain = fit(tiny.make(examples=24, **options))

    torch.testing.assert_close(tiny.weights(run), tiny.weights(plain), rtol=0, atol=0)
    torch.testing.assert_close(run.optimizer.state(), plain.optimizer.state(), rtol=0, atol=0)


def test_with_few_rows_or_little_memory_some_tasks_are_drawn_each_time(tiny, tmp_path, monkeypatch):
    run = tiny.make(strategy="full", examples=12)
    assert conflicts.chosen(run) == conflicts.chosen(run) and len(conflicts.chosen(run)[0]) == 3

    monkeypatch.setattr(conflicts, "MEMORY", 1)
    run, lines = watched(tiny, tmp_path / "metrics.jsonl", strategy="full")

    assert all(len(line["tasks"]) == 2 and line["rows"] == 6 for line in lines)
    assert len({tuple(line["tasks"]) for line in lines}) > 1
    assert conflicts.possible(run) and not conflicts.possible(tiny.make(strategy="lora-per-task"))
    assert not conflicts.possible(tiny.make(strategy="full", tasks=("topic",)))


def test_a_measurement_that_runs_out_of_memory_is_left_out(tiny, tmp_path, monkeypatch):
    def full(run, plan):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(affinity, "gradients", full)
    run, lines = watched(tiny, tmp_path / "metrics.jsonl", strategy="lora")

    assert run.step == 6 and lines == []


def test_states_of_a_kept_trunk_are_neither_read_nor_added_to(tiny):
    run, kept = tiny.make(strategy="lora", examples=24), []
    run.model.trunk = trunk = SimpleNamespace(still=lambda: kept.append("still"))  # has no `around`
    run.model.train()

    conflicts.measure(run, *conflicts.chosen(run))

    assert run.model.trunk is trunk and run.model.training and kept == ["still", "still"]
