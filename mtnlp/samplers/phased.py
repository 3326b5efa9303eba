"""A run in phases, each with its own sampler and its own tasks.

Large tasks first, the small ones joining later, is the schedule of Choi et al. 2023, "Order Matters in the
Presence of Dataset Imbalance for Multilingual Learning", arXiv:2312.06134:

    sampler:
      name: phased
      phases:
        - {until: 0.5, tasks: [glue/mnli, glue/qqp]}
        - {sampler: {name: temperature, temperature: 5}}

Deviation: the optimizer's state and the learning rate go on across phases.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from mtnlp import samplers
from mtnlp.errors import MtnlpError, did_you_mean, shown
from mtnlp.samplers.base import Phase, Sampler

KEYS = ("until", "tasks", "sampler", "rates")


@samplers.register("phased")
class Phased(Sampler):
    """Other samplers, one after the other.

    Args:
        phases: mappings in order of time with the keys
            until: where the phase ends: up to 1 a share of the run's steps, above 1 a step. The last phase
                ends with the run and needs none.
            tasks: names or patterns (`glue/*`) of the tasks that take part; default all.
            sampler: a sampler's name or {name: ..., option: ...}; default proportional.
            rates: instead of a sampler, task -> weight.
    """

    def __init__(self, *, phases: Sequence[Mapping[str, Any]]) -> None:
        if not phases:
            raise MtnlpError("sampler.phases is empty; give at least one phase.")
        for place, phase in enumerate(phases):
            for key in phase:
                if key not in KEYS:
                    raise MtnlpError(f"sampler.phases.{place}.{key}: no such key. {did_you_mean(key, KEYS)}")
            if "sampler" in phase and "rates" in phase:
                raise MtnlpError(f"sampler.phases.{place}: give `sampler` or `rates`, not both.")
        self.parts = list(phases)
        self.inner = [inner(phase, f"sampler.phases.{place}") for place, phase in enumerate(phases)]

    def phases(
        self, tasks: Sequence[str], sizes: Sequence[int], steps: int, examples_per_step: int
    ) -> list[Phase]:
        out: list[Phase] = []
        start = 0
        for place, (part, sampler) in enumerate(zip(self.parts, self.inner, strict=True)):
            end = self._end(place, start, steps)
            live = list(range(len(tasks)))
            if "tasks" in part:
                live = members(part["tasks"], tasks, f"sampler.phases.{place}.tasks")
            if end > start:
                chosen = [tasks[t] for t in live], [sizes[t] for t in live]
                for phase in sampler.phases(*chosen, end - start, examples_per_step):
                    rates = np.zeros(len(tasks))
                    rates[live] = phase.rates
                    out.append(Phase(start + phase.start, rates))
            start = end
        return out

    def _end(self, place: int, start: int, steps: int) -> int:
        """Step at which a phase ends; MtnlpError when ends run backwards or miss the end of the run."""
        last = place == len(self.parts) - 1
        until = self.parts[place].get("until", 1.0 if last else None)
        if until is None:
            raise MtnlpError(
                f"sampler.phases.{place}: `until` is missing; only the last phase may leave it out."
            )
        end = round(until * steps) if until <= 1 else int(until)
        if end < start or end > steps or (last and end != steps):
            wanted = f"the run's end, {steps}" if last else f"a step from {start} to {steps}"
            raise MtnlpError(f"sampler.phases.{place}.until: {until} means step {end}; expected {wanted}.")
        return end


def inner(phase: Mapping[str, Any], where: str) -> Sampler:
    """The sampler of one phase. MtnlpError for a name or option that does not exist."""
    slot = (
        {"name": "weights", "rates": phase["rates"]}
        if "rates" in phase
        else phase.get("sampler", "proportional")
    )
    options = {"name": slot} if isinstance(slot, str) else dict(slot)
    name = options.pop("name", None)
    if name is None:
        raise MtnlpError(f"{where}.sampler: `name` is missing.")
    method = samplers.get(name)
    try:
        inspect.signature(method).bind(**options)
    except TypeError as error:
        raise MtnlpError(f"{where}.sampler: {name}: {error}.") from None
    return method(**options)


def members(patterns: Sequence[str], tasks: Sequence[str], where: str) -> list[int]:
    """Indices of the tasks that a name or pattern means. MtnlpError for one that means none."""
    for pattern in patterns:
        if not any(fnmatchcase(task, pattern) for task in tasks):
            raise MtnlpError(
                f"{where}: no task of this recipe is called {shown(pattern)}. {did_you_mean(pattern, tasks)}"
            )
    return [t for t, task in enumerate(tasks) if any(fnmatchcase(task, pattern) for pattern in patterns)]
