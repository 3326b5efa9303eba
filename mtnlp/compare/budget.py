"""The single-task baseline of a joint run: a recipe that gives its task as much as the joint run does.

Of the joint steps, L draw a task, R rows in all; both follow from the sampler's rates alone and are counted
on the plan. Its baseline takes e = R / L rows per step, rounded and at least 1, in R / e steps, rounded: the
rows are equal to within e / 2, and the steps are L wherever R / L is a whole number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from mtnlp.config import Recipe, Slot
from mtnlp.data.plan import Quota
from mtnlp.samplers.base import Phase
from mtnlp.tasks.load import load
from mtnlp.tasks.spec import TaskSpec

AXES = {"strategies": "model.strategy", "samplers": "sampler", "balancers": "balancer"}


@dataclass(frozen=True)
class Budget:
    """What a joint run gives one task (rows, in live steps), and the steps and examples_per_step with which
    its baseline gets the same."""

    rows: int
    live: int
    steps: int
    examples_per_step: int


def budgets(phases: Sequence[Phase], *, steps: int, examples_per_step: int, seed: int) -> list[Budget | None]:
    """Of each task; None for one that the joint run never draws."""
    quota = Quota(phases, examples_per_step=examples_per_step, seed=seed)
    live = sum(quota.counts(step) > 0 for step in range(steps)).tolist()
    found: list[Budget | None] = []
    for rows, own in zip(quota.drawn(steps).tolist(), live, strict=True):
        each = max(1, round(rows / own)) if own else 0
        found.append(Budget(rows, own, max(1, round(rows / each)), each) if own else None)
    return found


def baseline(recipe: Recipe, task: str, entry: Any, budget: Budget, *, steps: int) -> Recipe:
    """The recipe of one task alone: what counts steps is put in proportion, so that it is evaluated as often
    and warmed up as long a share; sampler and balancer, which have no say over one task, are the plain ones.

    Args:
        entry: the task, as a recipe holds it. steps: of the joint run.
    """
    share, train, judged = budget.steps / steps, recipe.train, recipe.eval

    def part(count: int | None) -> int | None:
        return count and max(1, round(count * share))

    settings = {
        "steps": budget.steps,
        "epochs": None,
        "examples_per_step": budget.examples_per_step,
        "lr": train.lr_of.get(task, train.lr),
        "lr_of": {},
        "steps_of": {},
        "warmup": train.warmup if train.warmup < 1 else float(part(int(train.warmup))),
        "checkpoint_every": part(train.checkpoint_every),
    }
    return recipe.model_copy(
        update={
            "tasks": (entry,),
            "sampler": Slot("proportional"),
            "balancer": Slot("equal"),
            "train": train.model_copy(update=settings),
            "eval": judged.model_copy(update={"every": part(judged.every)}),
        }
    )


def entries(recipe: Recipe) -> dict[str, Any]:
    """Task -> the entry of a recipe that is this task alone; one of several (of a pattern, of a file with a
    list) is written out."""
    found: dict[str, Any] = {}
    for entry in recipe.tasks:
        specs = load(entry, recipe.base) if isinstance(entry, str) else []
        if len(specs) > 1:
            found |= {spec.name: _written_out(spec) for spec in specs}
        else:
            found[specs[0].name if specs else _name(entry, recipe.base)] = entry
    return found


def _name(entry: dict[str, Any], base: str) -> str:
    return entry["name"] if "name" in entry else load(str(entry["use"]), base)[0].name


def _written_out(spec: TaskSpec) -> dict[str, Any]:
    """A task as the mapping that makes it again; what is empty or 0 is so by default."""
    fields = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    made = {name: list(part) if isinstance(part, tuple) else part for name, part in fields.items() if part}
    if spec.templates:
        made["templates"] = {name: dataclasses.asdict(part) for name, part in spec.templates.items()}
    return made


def variants(recipe: Recipe, axes: Mapping[str, Sequence[str]]) -> dict[str, Recipe]:
    """The recipe with every combination of the methods that are swept, by their names joined; a method that
    is the recipe's own keeps its options.

    Args:
        axes: key of AXES -> names; an axis without names stays as the recipe has it.
    """
    swept = {axis: list(dict.fromkeys(names)) for axis, names in axes.items() if names}
    found = {}
    for names in product(*swept.values()):
        made = recipe
        for axis, name in zip(swept, names, strict=True):
            made = _with(made, axis, name)
        found[" ".join(names) or "joint"] = made
    return found


def slot_of(recipe: Recipe, axis: str) -> Slot:
    return recipe.model.strategy if axis == "strategies" else getattr(recipe, AXES[axis])


def _with(recipe: Recipe, axis: str, name: str) -> Recipe:
    slot = slot_of(recipe, axis)
    slot = slot if slot.name == name else Slot(name)
    if axis == "strategies":
        return recipe.model_copy(update={"model": recipe.model.model_copy(update={"strategy": slot})})
    return recipe.model_copy(update={AXES[axis]: slot})
