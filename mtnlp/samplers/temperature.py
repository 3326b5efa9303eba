"""Between proportional and uniform: rates follow sizes to the power 1/T.

Source: Raffel et al. 2020, section 3.5.2, arXiv:1910.10683; the order is cap, then temperature.
Deviation: `floor`, a least rate per task, is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtnlp import samplers
from mtnlp.errors import MtnlpError
from mtnlp.samplers.base import Phase, Sampler, normalised


@samplers.register("temperature")
class Temperature(Sampler):
    """p_t proportional to min(n_t, cap) ** (1 / temperature).

    Args:
        temperature: > 0; 1 is proportional, infinity (`.inf` in YAML) is uniform.
        cap: rows that any task counts for at most; None = no cap.
        floor: least rate of every task, at most 1 / number of tasks; the others give it in proportion.
    """

    def __init__(
        self, *, temperature: float = 2.0, cap: int | None = None, floor: float | None = None
    ) -> None:
        if not temperature > 0:
            raise MtnlpError(f"sampler.temperature must be > 0; got {temperature}.")
        self.temperature, self.cap, self.floor = temperature, cap, floor

    def phases(
        self, tasks: Sequence[str], sizes: Sequence[int], steps: int, examples_per_step: int
    ) -> list[Phase]:
        rows = capped(sizes, self.cap)
        rates = normalised((rows / rows.max()) ** (1 / self.temperature))
        return [Phase(0, rates if self.floor is None else lifted(rates, self.floor))]


def capped(sizes: Sequence[int], cap: int | None) -> np.ndarray:
    """(T,) float64 sizes, none above the cap. MtnlpError if the cap is below 1."""
    if cap is not None and cap < 1:
        raise MtnlpError(f"sampler.cap must be at least 1 row; got {cap}.")
    return np.minimum(np.asarray(sizes, dtype=np.float64), np.inf if cap is None else cap)


def lifted(rates: np.ndarray, floor: float) -> np.ndarray:
    """(T,) rates, none below the floor; those above it keep their ratios. MtnlpError if that cannot be."""
    if not 0 <= floor * len(rates) <= 1:
        raise MtnlpError(
            f"sampler.floor must lie between 0 and 1 / number of tasks ({1 / len(rates):.4g}); got {floor}."
        )
    low = np.zeros(len(rates), dtype=bool)
    while True:  # scaling the rest down may push more of them under the floor: at most T rounds
        rest = rates[~low].sum()
        scaled = np.where(low, floor, rates * ((1 - floor * low.sum()) / rest if rest else 0.0))
        if not (scaled < floor)[~low].any():
            return normalised(scaled)
        low |= scaled < floor
