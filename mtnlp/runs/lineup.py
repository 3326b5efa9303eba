"""Which runs a comparison needs, each with its own recipe and a hash of all that its weights follow from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mtnlp import assemble, resolve
from mtnlp.bench.samples import key_of
from mtnlp.compare import budget, reuse
from mtnlp.compare.budget import Budget
from mtnlp.compare.reuse import JOINT, Job
from mtnlp.config import Recipe
from mtnlp.data.task_data import TaskData
from mtnlp.errors import MtnlpError
from mtnlp.models.places import content_of, digest_of, folder_of
from mtnlp.resolve import Plan
from mtnlp.runs import targets
from mtnlp.samplers.base import without

TRAINING = ("assemble.py", "balancers", "kernels", "samplers", "train")  # beside what answers depend on
OPEN = ("attention", "precision", "matmul")


@dataclass(frozen=True)
class Group:
    """The jobs of one variant: its joint runs, one per seed, and the baselines of each task."""

    name: str
    joint: tuple[Job, ...]
    baselines: Mapping[str, tuple[Job, ...]]

    @property
    def jobs(self) -> list[Job]:
        return [job for jobs in (*self.baselines.values(), self.joint) for job in jobs]


def settled(recipe: Recipe, path: Path) -> Recipe:
    """The recipe with what it leaves open of its engine as this file says that the runs there have it, else
    as measured now: runs that compute otherwise are not to be compared."""
    try:
        chosen = json.loads(path.read_text("utf-8"))
        return assemble.closed(recipe, **{name: str(chosen[name]) for name in OPEN})
    except (OSError, ValueError, KeyError, TypeError):
        return assemble.settle(recipe)[0]


def keep_engine(recipe: Recipe, path: Path) -> None:
    """Note down the engine of a settled recipe for `settled`, unless there is one."""
    if not path.exists():
        chosen = {**recipe.model.model_dump(include=set(OPEN)), **recipe.train.model_dump(include=set(OPEN))}
        reuse.write(path, json.dumps(chosen) + "\n")


def groups(
    plan: Plan, axes: Mapping[str, Sequence[str]], seeds: Sequence[int], *, trust_remote_code: bool = False
) -> list[Group]:
    """The jobs of every variant. A baseline's strategy is the recipe's, so that variants share baselines
    unless their samplers give a task another budget.

    Raises:
        MtnlpError: a task that a joint run never draws.
    """
    content = {"backbone": _backbone(plan.recipe, trust_remote_code), "code": _code()}
    content |= {f"imports.{name}": _content(plan.recipe, name) for name in plan.recipe.imports}
    entries, sizes = budget.entries(plan.recipe), [len(data.rows("train")) for data in plan.data]

    def jobs(label: str, recipe: Recipe, data: Sequence[TaskData]) -> tuple[Job, ...]:
        found = []
        for seed in seeds:
            name = f"{label.replace('/', '--')}-{seed}"[-90:].lstrip(".+-")
            made = recipe.model_copy(update={"seed": seed, "name": name, "track": ()})
            found.append(Job(label, seed, made, tuple(data), reuse.parts_of(made, data, **content)))
        return tuple(found)

    found = []
    for name, recipe in budget.variants(plan.recipe, axes).items():
        steps = resolve.total_steps(recipe, sizes)
        plain = recipe.model_copy(update={"model": plan.recipe.model})
        baselines = {}
        for data, own in zip(plan.data, _budgets(recipe, plan.names, sizes), strict=True):
            task = data.spec.name
            baselines[task] = jobs(
                task, budget.baseline(plain, task, entries[task], own, steps=steps), [data]
            )
        found.append(Group(name, jobs(JOINT, recipe, plan.data), baselines))
    return found


def _budgets(recipe: Recipe, names: Sequence[str], sizes: Sequence[int]) -> list[Budget]:
    steps, each = resolve.total_steps(recipe, sizes), recipe.train.examples_per_step
    ends = {names.index(task): end for task, end in recipe.train.steps_of.items() if task in names}
    phases = without(resolve.phases_of(recipe, names, sizes), ends)
    over = next((phase.start for phase in phases if not phase.rates.any()), steps)  # all have ended
    phases = [phase for phase in phases if phase.start < over]
    found = budget.budgets(phases, steps=min(steps, over), examples_per_step=each, seed=recipe.seed)
    if never := [name for name, own in zip(names, found, strict=True) if own is None]:
        raise MtnlpError(
            f"compare: with sampler {recipe.sampler.name} the joint run never draws {', '.join(never)} in "
            f"{steps:,} steps, so there is nothing to compare. Leave it out, or change the sampler."
        )
    return [own for own in found if own is not None]


@cache
def _code() -> str:
    """A hash of the code that weights are made by, and of the libraries below it."""
    root = Path(assemble.__file__).parent
    files = [path for part in TRAINING for path in sorted([root / part, *(root / part).glob("*.py")])]
    return key_of(targets.code_version(), [content_of(path).hex() for path in files if path.is_file()])


def _backbone(recipe: Recipe, trust_remote_code: bool) -> str:
    """The content of the backbone; it is downloaded if need be."""
    name, revision = recipe.model.backbone, recipe.model.revision
    folder = folder_of(name, revision)
    if folder is None:
        assemble.build_backbone(recipe, trust_remote_code=trust_remote_code)
        folder = folder_of(name, revision)
    return digest_of(folder) if folder else f"{name}@{revision}"


def _content(recipe: Recipe, name: str) -> str:
    """Of a module that a recipe imports: a file by its content, another by its name."""
    path = Path(recipe.base, name)
    return content_of(path).hex() if path.suffix == ".py" else name
