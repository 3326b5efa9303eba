"""Whether tasks pull the shared parameters apart: dot products of their gradients, now and then in every run.

    Every(conflicts.EVERY, conflicts.Watch(run, writer), last=run.steps)    # a callback like others

A measurement takes the rows that the streams of its tasks have next, as mtnlp.train.affinity does: half as
many in all as a step has, as many of each task, ROWS or more. Cut by task, they take the time of one or two
steps, so under a percent of that of a run. Where not all tasks fit in (too few rows, or too much memory for
their gradients), some are drawn each time. It computes in eval mode, in the precision of the run, and the run
goes on as if nobody had looked.
Shapes: T tasks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mtnlp.train import affinity
from mtnlp.train.loop import ran_out_of_memory

if TYPE_CHECKING:
    from mtnlp.train.callbacks import MetricsWriter
    from mtnlp.train.loop import Run, StepRecord

EVERY = 250  # steps between two measurements; the last step has one in any case
ROWS = 2  # of a task, at least
MEMORY = 2**29  # bytes of gradients that lie side by side; those of two tasks must


def possible(run: Run) -> bool:
    """Whether two tasks train the same parameters, and this process holds these whole."""
    return len(run.tasks) > 1 and bool(run.model.shared_parameters()) and not run.sharded


class Watch:
    """Measures, and writes a line {"kind": "conflicts", "step", "tasks": (T,) names, "rows": of each, "gram":
    (T, T)} of dot products of the tasks' gradients, each of its mean loss, on the shared parameters.

    A measurement that runs out of memory is left out.
    """

    def __init__(self, run: Run, writer: MetricsWriter) -> None:
        self.run, self.writer = run, writer

    def __call__(self, record: StepRecord) -> None:
        if not self.run.accelerator.is_main_process:
            return
        tasks, rows = chosen(self.run)
        try:
            gram = measure(self.run, tasks, rows)
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            self.run.optimizer.zero_grad()
            return
        names = [self.run.tasks[task] for task in tasks]
        told = [[float(f"{value:.5g}") for value in row] for row in gram.tolist()]
        self.writer.write("conflicts", step=record.step, tasks=names, rows=rows, gram=told)


def chosen(run: Run) -> tuple[list[int], int]:
    """The tasks to measure after this step, ascending, and how many rows of each; by seed and step. All of
    them, unless that would be more than half the rows of a step, or more than MEMORY."""
    size = sum(param.nbytes for param in run.model.shared_parameters().values())
    half = run.mixture.examples_per_step // 2
    count = max(2, min(len(run.tasks), half // ROWS, MEMORY // size))
    draw = np.random.default_rng([run.seed, run.step])
    return sorted(draw.permutation(len(run.tasks))[:count].tolist()), max(ROWS, half // count)


def measure(run: Run, tasks: list[int], rows: int) -> np.ndarray:
    """(T, T) float64 dot products of the gradients of these tasks; nothing of the run is changed."""
    model, trunk = run.model, run.model.trunk
    training, model.trunk = model.training, None  # it would keep states of batches that are cut otherwise
    model.eval()
    try:
        plan = affinity.probe(run, rows, tasks)
        grads = affinity.gradients(run, plan)
        return grads.gram([grads.rows[task] for task in tasks], run.accelerator).numpy()
    finally:
        model.trunk = trunk
        model.train(training)
