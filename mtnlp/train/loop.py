"""The training loop: a generator of one StepRecord per optimizer step. All else happens in callbacks on it.

    for record in steps(run): print(record.step, record.losses)       # all there is
    fit(run, [Progress(...), Every(100, evaluate), Every(500, save)])  # the same with callbacks

A step is a plan (which rows of which tasks), cut into micro-batches by length. Its loss is the same for every
cut and number of ranks: sum_t balancer(sum of task t's example losses / its examples in the GLOBAL step).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mtnlp.balancers.base import Balancer
from mtnlp.data.batch import Batch
from mtnlp.errors import MtnlpError, TrainingError
from mtnlp.train.grads import TaskGrads, in_step, is_sharded, sum_over_ranks
from mtnlp.train.optim import Optimizer

if TYPE_CHECKING:
    from accelerate import Accelerator

    from mtnlp.data.mixture import Mixture, StepPlan
    from mtnlp.models.multitask import MultitaskModel


INTERRUPTED = "interrupted"


@dataclass
class Run:
    """All live parts of a training run. `checkpoint.save` writes whatever of it a resume needs.

    Args:
        tasks: (T,) names, in the order of the mixture's and the model's task indices.
        model, balancer: already on the accelerator's device; see `grads.place`.
        steps: optimizer steps of the whole run.
        seed: of the randomness inside the model (dropout); every step is seeded anew by (seed, step, rank).
        step: optimizer steps done.
        max_tokens: padded tokens of a micro-batch; None = as the mixture says. Halved when memory runs out.
        stopped: why the run ended before `steps`; empty = it did not. The same on all ranks.
        asked_to_stop: set on any rank at any time, by a signal: all ranks end after the same step, the
            present or the next one, with `stopped` = INTERRUPTED.
        memory: what callbacks must remember over a resume; JSON values only.
        row_name: (task, row of its store) -> what messages call it.
    """

    tasks: Sequence[str]
    model: MultitaskModel
    mixture: Mixture
    balancer: Balancer
    optimizer: Optimizer
    accelerator: Accelerator
    steps: int
    seed: int
    step: int = 0
    max_tokens: int | None = None
    stopped: str = ""
    asked_to_stop: bool = False
    memory: dict[str, Any] = field(default_factory=dict)
    row_name: Callable[[int, int], str] = lambda task, row: str(row)

    def __post_init__(self) -> None:
        shared = list(self.model.shared_parameters().values())
        if self.balancer.needs_gram and not shared:
            raise MtnlpError(
                "The balancer merges gradients of parameters that tasks share, but this "
                "strategy shares none. Use a balancer that only weighs losses (equal, fixed, "
                "uncertainty) or a strategy that shares parameters (full, lora)."
            )
        self.sharded = any(is_sharded(parameter) for parameter in self.model.parameters())

    def finish(self, ends: Mapping[str, int]) -> None:
        """Draw these tasks no more once ends[task] steps are done; the run ends when no task is left. It is
        remembered over a resume, in memory["ended"]."""
        ended = self.memory.setdefault("ended", {})
        ended.update(ends)
        self.mixture.end({self.tasks.index(task): step for task, step in ended.items()})
        if self.mixture.over is not None:
            self.steps = min(self.steps, self.mixture.over)


@dataclass(frozen=True)
class StepRecord:
    """All that leaves the loop; equal on all ranks but for `seconds`.

    Args:
        step: optimizer steps done, this one among them.
        losses: task -> mean loss of its examples in this step, live tasks only.
        lr: learning rate of this step.
        grad_norm: norm of all gradients before clipping.
        seconds: wall time of the step, callbacks not counted.
        tokens: real tokens of the step over all ranks.
        useful_share: real tokens / tokens with padding.
    """

    step: int
    losses: dict[str, float]
    lr: float
    grad_norm: float
    seconds: float
    tokens: int
    useful_share: float


def steps(run: Run) -> Iterator[StepRecord]:
    """Yield one record per optimizer step until `run.steps`, or until a callback sets `run.stopped`.

    Raises:
        TrainingError: a loss or gradient is not finite (on all ranks, before anything was updated), or one
            example alone, or what a step needs besides its examples, does not fit into memory.
    """
    model, balancer, optimizer, acc = run.model, run.balancer, run.optimizer, run.accelerator
    shared = list(model.shared_parameters().values())
    task_grads = TaskGrads(shared) if balancer.needs_gram else None
    model.train()  # all of it: a backbone comes from its files in eval mode
    while run.step < run.steps and not run.stopped:
        start = time.perf_counter()
        plan = run.mixture.plan(run.step)

        # 1. Forward and backward of this rank's share, micro-batch by micro-batch.
        if not model.training:
            model.train()
        tally = _accumulate(run, plan, task_grads)
        tally = acc.reduce(torch.cat([tally, tally.new_tensor([float(run.asked_to_stop)])]), "sum")

        with _no_smaller_cut(run):
            # 2. Across ranks, then across tasks: one gradient.
            private = [*optimizer.private(plan.tasks), *(p for p in balancer.parameters() if p.requires_grad)]
            if task_grads:
                sum_over_ranks(private, acc)
                task_grads.merge(balancer.weights, plan.tasks, acc)
            else:
                sum_over_ranks([*shared, *private], acc)

            # 3. Update.
            norms = optimizer.norms(plan.tasks, acc)
            numbers = torch.cat([tally, norms]).tolist()  # here the host waits for the device
            live = len(plan.tasks)
            losses, (useful, padded, asked, *all_norms) = numbers[:live], numbers[live:]
            _check_finite(run, plan, losses, all_norms)
            optimizer.clip(plan.tasks, all_norms)
            lr = optimizer.step(run.step, plan.tasks)
        run.step += 1

        # 4. Report: the same numbers on every rank, so adaptive methods stay in step.
        balancer.observe(dict(zip(plan.tasks, losses, strict=True)))
        by_name = {run.tasks[task]: loss for task, loss in zip(plan.tasks, losses, strict=True)}
        seconds = time.perf_counter() - start
        yield StepRecord(run.step, by_name, lr, math.hypot(*all_norms), seconds, int(useful), useful / padded)
        if (asked or (run.asked_to_stop and acc.num_processes == 1)) and not run.stopped:
            run.stopped = INTERRUPTED


def fit(run: Run, callbacks: Sequence[Callable[[StepRecord], None]] = ()) -> Run:
    """Run all steps; after each, call the callbacks in their order."""
    for record in steps(run):
        for callback in callbacks:
            callback(record)
    return run


def _accumulate(run: Run, plan: StepPlan, task_grads: TaskGrads | None) -> Tensor:
    """Add this rank's gradients of one step; returns (U + 2,): each live task's part of its mean loss, real
    tokens, padded tokens. Out of memory halves the token budget and starts the step again, which changes no
    gradient."""
    from accelerate.utils.memory import clear_device_cache

    while True:
        torch.manual_seed(_seed(run.seed, run.step, run.accelerator.process_index))
        run.optimizer.zero_grad(plan.tasks)
        with _no_smaller_cut(run):
            run.model.begin(list(plan.tasks))
        tally = torch.zeros(len(plan.tasks) + 2, device=run.accelerator.device)
        batch = None
        try:
            for task, batch, weight in _micro_batches(run, plan):
                _forward_backward(run, plan, batch, weight, tally)
                if task_grads:
                    task_grads.stash(task)
            return tally
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            run.max_tokens = _smaller_budget(run, batch, error)
        if task_grads:  # outside the handler, whose traceback keeps the step's tensors alive
            task_grads.clear()
        clear_device_cache(garbage_collection=True)


def _micro_batches(run: Run, plan: StepPlan) -> Iterator[tuple[int, Batch, float]]:
    """This rank's micro-batches, each with its task (if it holds only one) and its weight: 1, or 0 for those
    that only keep sharded ranks in step."""
    acc, one_task = run.accelerator, run.balancer.needs_gram

    def cut(rank: int) -> list[Batch]:
        return run.mixture.batches(
            plan, rank=rank, world=acc.num_processes, one_task=one_task, max_tokens=run.max_tokens
        )

    if not run.sharded:
        yield from ((batch.slices[0].task, batch, 1.0) for batch in cut(acc.process_index))
        return
    mine = cut(acc.process_index)
    spare = (mine or cut(0))[0]  # rows are dealt from rank 0 on
    groups = [mine]
    if one_task:  # FSDP adds gradients up over ranks at once, so all ranks must be at the same task
        groups = [[batch for batch in mine if batch.slices[0].task == task] for task in plan.tasks]
    for i, batch, weight in in_step(groups, spare, acc):
        yield plan.tasks[i], batch, weight


def _forward_backward(run: Run, plan: StepPlan, batch: Batch, weight: float, tally: Tensor) -> None:
    acc = run.accelerator
    place = {task: i for i, task in enumerate(plan.tasks)}
    useful, padded = batch.useful_tokens, batch.padded_tokens  # counted before the batch goes to the device
    examples = [part.examples for part in batch.slices]
    batch = batch.to(acc.device)
    with acc.autocast():
        out = run.model(batch)
    at = [place[task] for task in out.tasks]
    in_step = torch.tensor([int(plan.counts[i]) for i in at], dtype=torch.float32)
    share = (torch.tensor(examples) * weight / in_step).to(acc.device)
    means = out.sums.float() * (weight / in_step).to(acc.device)
    loss = run.balancer.weigh(out.tasks, means, share)
    if out.aux is not None:
        loss = loss + out.aux * (weight * sum(examples) / int(sum(plan.counts)))
    acc.backward(loss)
    tally[at] += means.detach()
    tally[-2:] += torch.tensor([useful * weight, padded * weight]).to(acc.device)


def ran_out_of_memory(error: Exception) -> bool:
    """Whether it says so: only some devices have an error of their own for it; a CPU's is in the message."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or should_reduce_batch_size(error)


@contextmanager
def _no_smaller_cut(run: Run) -> Iterator[None]:
    """Inside, memory is needed that does not depend on how the step is cut: TrainingError if it runs out."""
    try:
        yield
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        raise TrainingError(
            f"Step {run.step + 1}: out of memory with what is trained, its gradients and its moments, which "
            "a lower train.max_tokens does not make fewer. Train less (a model.strategy that freezes the "
            "backbone, a lower rank, fewer targets), or keep the tasks' own parameters in main memory "
            "(train.bank_on_cpu=true)."
        ) from error


def _smaller_budget(run: Run, batch: Batch, error: Exception) -> int:
    """Half the padded tokens of the micro-batch that did not fit."""
    size = f"{tuple(batch.input_ids.shape)} tokens" if batch else "no rows"
    if run.sharded:
        # Ranks meet inside the forward here: one rank cannot start the step again alone.
        raise TrainingError(
            f"Step {run.step + 1}: out of memory with a micro-batch of {size}. Lower train.max_tokens."
        ) from error
    if batch is None or sum(part.examples for part in batch.slices) == 1:
        raise TrainingError(
            f"Step {run.step + 1}: out of memory with one example of {size}. "
            "Lower model.max_length, or take a smaller backbone."
        ) from error
    return batch.padded_tokens // 2


def _check_finite(run: Run, plan: StepPlan, losses: list[float], norms: list[float]) -> None:
    """Stop the run when a loss or gradient is inf or nan. All ranks hold the same numbers, so all stop."""
    shared, *private = norms
    names = [run.tasks[task] for task in plan.tasks]
    found = [
        f"the loss of {names[i]} is {loss}; its rows: {_rows(run, plan, i)}"
        for i, loss in enumerate(losses)
        if not math.isfinite(loss)
    ]
    if not found:
        found = [
            f"the gradient of {names[i]}'s own parameters has norm {norm}; its rows: {_rows(run, plan, i)}"
            for i, norm in enumerate(private)
            if not math.isfinite(norm)
        ]
    if not found and not math.isfinite(shared):
        found = [f"the gradient of the shared parameters has norm {shared}; tasks: {', '.join(names)}"]
    if found:
        raise TrainingError(
            f"Step {run.step + 1}: {'. Also '.join(found)}. Nothing was updated in this step. "
            "Lower train.lr, use train.precision=fp32, or look at these rows."
        )


def _rows(run: Run, plan: StepPlan, i: int, shown: int = 4) -> str:
    """Some rows that the step drew of its i-th task."""
    rows = plan.rows[i]
    named = ", ".join(run.row_name(plan.tasks[i], int(row)) for row in rows[:shown])
    return named + (f" and {len(rows) - shown} more" if len(rows) > shown else "")


def _seed(seed: int, step: int, rank: int) -> int:
    """63 bits that differ for every (seed, step, rank)."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))
