"""Every row equally often: rates follow the tasks' sizes, large ones counted up to a cap.

Source: examples-proportional mixing, Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a
Unified Text-to-Text Transformer", section 3.5.2, arXiv:1910.10683.
"""

from __future__ import annotations

from collections.abc import Sequence

from mtnlp import samplers
from mtnlp.samplers.base import Phase, Sampler, normalised
from mtnlp.samplers.temperature import capped


@samplers.register("proportional")
class Proportional(Sampler):
    """p_t proportional to min(n_t, cap).

    Args:
        cap: rows that any task counts for at most (it is still drawn from all of its rows); None = no cap.
    """

    def __init__(self, *, cap: int | None = None) -> None:
        self.cap = cap

    def phases(
        self, tasks: Sequence[str], sizes: Sequence[int], steps: int, examples_per_step: int
    ) -> list[Phase]:
        return [Phase(0, normalised(capped(sizes, self.cap)))]
