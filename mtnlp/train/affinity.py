"""What tasks do to each other's losses, measured between two steps of a run, which is not changed by it.

    rows      of every task, the next ones of its stream: rows that the run has not trained on in this epoch
    gram      dot products of the tasks' gradients g_i on the shared parameters, of each task's mean loss
    before    the losses L_j of these rows
    after     L_j when the shared parameters have gone to theta - lr g_i: plain SGD, without the momentum,
              clipping and decay of the run's own optimizer; heads and rows of single tasks stay as they are

Source: Fifty et al. 2021, arXiv:2109.04617, section 3. Everything is computed in eval mode, so no dropout
differs between the two losses, and these without autocast: a step for one task moves the loss of another by
some 1e-4 of it, which bfloat16 does not see. Gradients are computed in the precision of the run. A
strategy's own loss (a router's balance) is no task's and left out.
Memory: one gradient of the shared parameters per task, as for balancers that need gradients, and a copy of
these parameters. Cost: T gradients and T (T + 1) losses. One process.
Shapes: T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mtnlp.data.batch import Batch
from mtnlp.data.plan import StepPlan
from mtnlp.train.grads import TaskGrads
from mtnlp.train.loop import Run


@dataclass(frozen=True)
class Measured:
    """One measurement, float64: gram (T, T), before (T,) losses, after (T, T), after[i, j] of j gone for i.

    step: optimizer steps done before. lr: of the lookahead steps. moved: (T,) share of each lookahead step
    that the parameters have taken; less than 1 where it was too small beside them for their float32.
    """

    step: int
    lr: float
    gram: np.ndarray
    before: np.ndarray
    after: np.ndarray
    moved: np.ndarray


def measure(run: Run, *, rows: int, lr: float) -> Measured:
    """Gradients and lookahead losses of all tasks, on `rows` rows of each (or all that it has).

    Parameters, moments and the order of the run's rows are as before; gradients are forgotten.
    """
    plan = probe(run, rows)
    training = run.model.training
    run.model.eval()
    grads = gradients(run, plan)
    params, own = grads.params, [grads.rows[task] for task in plan.tasks]
    gram = grads.gram(own, run.accelerator).numpy()
    batches = [batch.to(run.accelerator.device) for batch in _cut(run, plan)]
    before = losses(run, plan, batches)
    kept = [param.detach().clone() for param in params]
    after, moved = [], []
    for task_grads, square in zip(own, np.diag(gram), strict=True):
        _go(params, task_grads, lr)
        after.append(losses(run, plan, batches))
        moved.append(_along(kept, params, task_grads) / (lr * square) if lr * square > 0 else np.nan)
        _restore(params, kept)
    run.model.train(training)
    return Measured(run.step, lr, gram, before, np.stack(after), np.array(moved))


def probe(run: Run, rows: int, tasks: Sequence[int] | None = None) -> StepPlan:
    """The next `rows` rows of every task's stream, as a step would draw them; all, where a task has fewer.

    Args:
        tasks: indices, ascending; None = all.
    """
    mixture, own = run.mixture, range(len(run.tasks)) if tasks is None else tasks
    drawn, found = mixture.drawn(run.step), []
    for task in own:
        draws = drawn[task] + np.arange(min(rows, mixture.sizes[task]))
        found.append(mixture.rows(np.full(len(draws), task), draws))
    return StepPlan(run.step, tuple(own), tuple(found))


def gradients(run: Run, plan: StepPlan) -> TaskGrads:
    """Each task's gradient of its mean loss over the plan's rows, on the shared parameters."""
    grads = TaskGrads(list(run.model.shared_parameters().values()))
    counts = dict(zip(plan.tasks, plan.counts, strict=True))
    run.optimizer.zero_grad()
    run.model.begin(plan.tasks)
    for batch in _cut(run, plan, one_task=True):
        (part,) = batch.slices
        with run.accelerator.autocast():
            (sums,) = run.model(batch.to(run.accelerator.device)).sums
        run.accelerator.backward(sums / counts[part.task])
        grads.stash(part.task)
    run.optimizer.zero_grad()
    return grads


@torch.no_grad()
def losses(run: Run, plan: StepPlan, batches: Sequence[Batch]) -> np.ndarray:
    """(T,) float64 mean loss of every task over the plan's rows, which `batches` hold."""
    run.model.begin(plan.tasks)
    total = np.zeros(len(plan.tasks))
    for batch in batches:
        out = run.model(batch)
        total[list(out.tasks)] += out.sums.double().cpu().numpy()
    return total / np.array(plan.counts)


def _cut(run: Run, plan: StepPlan, *, one_task: bool = False) -> list[Batch]:
    return run.mixture.batches(plan, one_task=one_task, max_tokens=run.max_tokens)


@torch.no_grad()
def _go(params: Sequence[Tensor], grads: Sequence[Tensor | None], lr: float) -> None:
    for param, grad in zip(params, grads, strict=True):
        if grad is not None:
            param.sub_(grad, alpha=lr)


@torch.no_grad()
def _restore(params: Sequence[Tensor], kept: Sequence[Tensor]) -> None:
    for param, value in zip(params, kept, strict=True):
        param.copy_(value)


@torch.no_grad()
def _along(kept: Sequence[Tensor], params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> float:
    """How far the parameters have come along a gradient: <kept - params, grad>."""
    parts = zip(kept, params, grads, strict=True)
    return sum(
        float(((old - new) * grad).sum(dtype=torch.float64)) for old, new, grad in parts if grad is not None
    )
