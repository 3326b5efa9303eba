"""The face of a sampler: how often each task is drawn, as rates that are constant over stretches of steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mtnlp.errors import MtnlpError


@dataclass(frozen=True)
class Phase:
    """From step `start` (0-based) on, task t is drawn with probability rates[t]; (T,) float64, of sum one."""

    start: int
    rates: np.ndarray


class Sampler(ABC):
    """Options come in `__init__` (keyword-only, what YAML can say); sizes and budget come in `phases`."""

    @abstractmethod
    def phases(
        self, tasks: Sequence[str], sizes: Sequence[int], steps: int, examples_per_step: int
    ) -> list[Phase]:
        """The rates of the whole run.

        Args:
            tasks: (T,) names; sizes: (T,) training rows of each; steps, examples_per_step: the budget.

        Returns:
            Phases in order of start; the first starts at step 0.
        """


def normalised(weights: Sequence[float]) -> np.ndarray:
    """(T,) weights >= 0 -> (T,) float64 rates of sum one. MtnlpError if they are negative or all zero."""
    rates = np.asarray(weights, dtype=np.float64)
    if (rates < 0).any() or not rates.sum() > 0 or not np.isfinite(rates).all():
        raise MtnlpError(f"Sampling weights must be finite, >= 0 and not all zero; got {list(weights)}.")
    return rates / rates.sum()


def without(phases: Sequence[Phase], ends: Mapping[int, int]) -> list[Phase]:
    """The same rates for tasks that end before the run does: from step ends[t] >= 1 on, task t has rate 0 and
    the others share what it had, in proportion to their own rates.

    A stretch of which all tasks have ended takes the rates of the next one that has some left. Where none
    follows, the rates are all 0: there is nothing left to draw.
    """
    starts = [phase.start for phase in phases]
    found: list[Phase] = []
    rates = np.zeros_like(phases[-1].rates)
    for start in sorted({*starts, *ends.values()}, reverse=True):
        own = phases[bisect_right(starts, start) - 1].rates
        gone = [task for task, end in ends.items() if end <= start]
        left = own.copy()
        left[gone] = 0.0
        if left.any():
            rates = own if (left == own).all() else normalised(left)
        found.append(Phase(start, rates))
    return found[::-1]


def per_task(values: Mapping[str, float], tasks: Sequence[str], option: str) -> list[float]:
    """Values of a per-task option in task order; MtnlpError names tasks that are missing or unknown."""
    missing, extra = [t for t in tasks if t not in values], [t for t in values if t not in tasks]
    if missing or extra:
        said = [
            f"{what} {', '.join(of)}" for what, of in (("no value for", missing), ("unknown", extra)) if of
        ]
        raise MtnlpError(f"sampler.{option}: {' and '.join(said)}. Tasks of this recipe: {', '.join(tasks)}.")
    return [values[task] for task in tasks]
