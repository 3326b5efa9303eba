"""Every task equally often, whatever its size."""

from __future__ import annotations

from collections.abc import Sequence

from mtnlp import samplers
from mtnlp.samplers.base import Phase, Sampler, normalised


@samplers.register("uniform")
class Uniform(Sampler):
    """p_t = 1 / T."""

    def phases(
        self, tasks: Sequence[str], sizes: Sequence[int], steps: int, examples_per_step: int
    ) -> list[Phase]:
        return [Phase(0, normalised([1.0] * len(tasks)))]
