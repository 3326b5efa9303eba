"""The face of a sampler: how often each task is drawn, as rates that are constant over stretches of steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
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


def per_task(values: Mapping[str, float], tasks: Sequence[str], option: str) -> list[float]:
    """Values of a per-task option in task order; MtnlpError names tasks that are missing or unknown."""
    missing, extra = [t for t in tasks if t not in values], [t for t in values if t not in tasks]
    if missing or extra:
        said = [
            f"{what} {', '.join(of)}" for what, of in (("no value for", missing), ("unknown", extra)) if of
        ]
        raise MtnlpError(f"sampler.{option}: {' and '.join(said)}. Tasks of this recipe: {', '.join(tasks)}.")
    return [values[task] for task in tasks]
