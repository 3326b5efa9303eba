"""One task after the other. What later tasks make a model forget shows here; also the plainest curriculum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mtnlp import samplers
from mtnlp.errors import MtnlpError
from mtnlp.samplers.base import Phase, Sampler, per_task


@samplers.register("sequential")
class Sequential(Sampler):
    """Train on each task alone, for a stretch of steps.

    Args:
        steps: task name -> number of steps, in the order of training; they add up to the run's steps. None =
            the order of the recipe's tasks, with steps in proportion to their sizes and at least one each.
    """

    def __init__(self, *, steps: Mapping[str, int] | None = None) -> None:
        self.steps = steps

    def phases(
        self, tasks: Sequence[str], sizes: Sequence[int], steps: int, examples_per_step: int
    ) -> list[Phase]:
        if self.steps is None:
            order, lengths = list(range(len(tasks))), shares(sizes, steps)
        else:
            per_task(self.steps, tasks, "steps")
            order, lengths = [list(tasks).index(task) for task in self.steps], list(self.steps.values())
        if min(lengths) < 0 or sum(lengths) != steps:
            raise MtnlpError(
                f"sampler.steps add up to {sum(lengths)}, but the run has {steps} steps; make them equal."
            )
        starts = np.cumsum([0, *lengths]).tolist()
        only = np.eye(len(tasks))
        return [Phase(start, only[task]) for start, task, n in zip(starts, order, lengths, strict=False) if n]


def shares(sizes: Sequence[int], steps: int) -> list[int]:
    """(T,) steps >= 1 that add up to `steps`, in proportion to sizes by largest remainder."""
    if steps < len(sizes):
        raise MtnlpError(
            f"The sampler sequential needs a step for each of its {len(sizes)} tasks; got {steps}."
        )
    exact = np.asarray(sizes, dtype=np.float64) / sum(sizes) * (steps - len(sizes))
    whole = np.floor(exact).astype(int)
    late = np.argsort(whole - exact, kind="stable")[: steps - len(sizes) - whole.sum()]
    whole[late] += 1
    return (whole + 1).tolist()
