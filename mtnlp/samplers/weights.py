"""Rates as given, one weight per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mtnlp import samplers
from mtnlp.samplers.base import Phase, Sampler, normalised, per_task


@samplers.register("weights")
class Weights(Sampler):
    """p_t proportional to the weight of task t.

    Args:
        rates: task name -> weight >= 0, for every task of the recipe; they need not sum to one.
    """

    def __init__(self, *, rates: Mapping[str, float]) -> None:
        self.rates = rates

    def phases(
        self, tasks: Sequence[str], sizes: Sequence[int], steps: int, examples_per_step: int
    ) -> list[Phase]:
        return [Phase(0, normalised(per_task(self.rates, tasks, "rates")))]
