"""Measuring what tasks do to each other, against plain autograd on copies of the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mtnlp.compare import affinity as maths
from mtnlp.train import affinity
from mtnlp.train.loop import steps

ROWS = 3


def started(tiny, strategy, total=8, **options):
    """A run after two steps, so that no low-rank factor is zero."""
    run = tiny.make(strategy=strategy, total=total, examples=12, **options)
    records = steps(run)
    next(records), next(records)
    return run, records


def mean_losses(run, model, plan):
    """(T,) of an untouched copy of the model, one example at a time."""
    model.begin(plan.tasks)
    total = [0.0] * len(plan.tasks)
    for batch in run.mixture.batches(plan, max_tokens=1):
        task = batch.slices[0].task
        total[task] = total[task] + model(batch).sums[0] / plan.counts[task]
    return total


def twin(tiny, run, strategy):
    """A model of its own with the weights of the run, in double precision, without dropout."""
    model = tiny.make(strategy=strategy).model
    model.load_trainable_state(run.model.trainable_state())
    return model.double().eval()


def by_hand(run, plan, lr, made):
    """Gradients as (T, P) float64, losses (T,), and losses (T, T) after a step for each task alone."""
    flat, after = [], []
    for task in plan.tasks:
        model = made()
        params = list(model.shared_parameters().values())
        loss = mean_losses(run, model, plan)[task]
        grads = torch.autograd.grad(loss, params, allow_unused=True)
        grads = [torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True)]
        flat.append(torch.cat([grad.flatten() for grad in grads]))
        with torch.no_grad():
            for param, grad in zip(params, grads, strict=True):
                param -= lr * grad
            after.append([float(loss) for loss in mean_losses(run, model, plan)])
    with torch.no_grad():
        before = [float(loss) for loss in mean_losses(run, made(), plan)]
    return torch.stack(flat).numpy(), np.array(before), np.array(after)


@pytest.mark.parametrize(("strategy", "lr"), [("full", 0.05), ("lora", 5.0), ("mtl-lora", 5.0)])
def test_cosines_and_affinities_are_those_of_plain_autograd_in_double_precision(
    tiny, strategy, lr, monkeypatch
):
    run, _ = started(tiny, strategy)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)  # heads ask for float32
        rows, before, after = by_hand(run, affinity.probe(run, ROWS), lr, lambda: twin(tiny, run, strategy))
    norms = np.linalg.norm(rows, axis=1)

    found = affinity.measure(run, rows=ROWS, lr=lr)

    np.testing.assert_allclose(maths.cosines(found.gram), rows @ rows.T / np.outer(norms, norms), atol=2e-4)
    np.testing.assert_allclose(found.before, before, rtol=1e-5)
    np.testing.assert_allclose(maths.lookahead(found.before, found.after), 1 - after / before, atol=3e-6)
    assert np.abs(1 - after / before).max() > 1e-2 and found.moved == pytest.approx(1, abs=1e-3)


def test_a_run_that_is_measured_goes_on_as_one_that_is_not(tiny):
    measured, plain = (started(tiny, "mtl-lora", total=5, balancer="uncertainty") for _ in range(2))

    for record, other in zip(measured[1], plain[1], strict=True):
        affinity.measure(measured[0], rows=ROWS, lr=0.05)
        assert record.losses == other.losses and record.grad_norm == other.grad_norm

    torch.testing.assert_close(tiny.weights(measured[0]), tiny.weights(plain[0]), rtol=0, atol=0)


def test_rows_are_those_that_the_next_steps_draw(tiny):
    run, _ = started(tiny, "lora")

    plan = affinity.probe(run, 8)

    drawn = {task: [] for task in plan.tasks}
    for step in range(2, 40):
        found = run.mixture.plan(step)
        for task, rows in zip(found.tasks, found.rows, strict=True):
            drawn[task] += rows.tolist()
    assert plan.counts == (8, 8, 8, 7)  # the last task has seven rows in all
    assert all(rows.tolist() == drawn[task][: len(rows)] for task, rows in zip(plan.tasks, plan.rows))


def test_a_step_of_nothing_does_nothing_and_one_that_rounding_takes_is_told(tiny):
    run, _ = started(tiny, "full")

    still, lost = (affinity.measure(run, rows=ROWS, lr=lr) for lr in (0.0, 1e-12))

    assert (still.after == still.before).all() and np.isnan(still.moved).all()
    assert (lost.moved < 0.9).all()
