"""As uniform as possible while no task is seen for more than so many epochs.

Source: Chung et al. 2023, "UniMax: Fairer and More Effective Language Sampling for Large-Scale Multilingual
Pretraining", Algorithm 1, arXiv:2304.09151. Deviation: the unit is the example, not the character.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mtnlp import samplers
from mtnlp.errors import MtnlpError
from mtnlp.samplers.base import Phase, Sampler, normalised


@samplers.register("unimax")
class UniMax(Sampler):
    """Share the budget of examples equally, small tasks first, each up to its epochs.

    Args:
        epochs: passes over a task's rows at most, > 0.
    """

    def __init__(self, *, epochs: float = 4.0) -> None:
        if not epochs > 0:
            raise MtnlpError(f"sampler.epochs must be > 0; got {epochs}.")
        self.epochs = epochs

    def phases(
        self, tasks: Sequence[str], sizes: Sequence[int], steps: int, examples_per_step: int
    ) -> list[Phase]:
        budget, most = steps * examples_per_step, self.epochs * sum(sizes)
        if budget > most:
            raise MtnlpError(
                f"sampler.epochs: {budget} examples cannot be drawn from {sum(sizes)} rows in "
                f"{self.epochs:g} epochs each. Use at most train.steps={int(most // examples_per_step)}, "
                f"or at least sampler.epochs={math.ceil(budget / sum(sizes))}."
            )
        taken = np.zeros(len(sizes))
        left = float(budget)
        order = sorted(range(len(sizes)), key=lambda task: sizes[task])
        for place, task in enumerate(order):
            taken[task] = min(left / (len(order) - place), self.epochs * sizes[task])
            left -= taken[task]
        return [Phase(0, normalised(taken))]
