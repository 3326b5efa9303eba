"""Recipe -> plan: every name looked up, every option checked, every task opened; all problems at once.

Loads no network and, but for the methods that a recipe names, no torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtnlp import balancers, config, metrics, samplers, strategies
from mtnlp.config import Recipe
from mtnlp.errors import DataError, MtnlpError, RecipeError, did_you_mean, shown
from mtnlp.tasks.load import from_mapping, load
from mtnlp.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from mtnlp.data.task_data import TaskData
    from mtnlp.samplers.base import Phase, Sampler


@dataclass(frozen=True)
class Plan:
    """A recipe that has been checked, with the data of its tasks."""

    recipe: Recipe
    data: tuple[TaskData, ...]

    @property
    def specs(self) -> tuple[TaskSpec, ...]:
        return tuple(data.spec for data in self.data)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(data.spec.name for data in self.data)


def resolve(
    source: config.Source,
    overrides: Iterable[str] = (),
    *,
    look: Callable[[Recipe, Sequence[TaskData], bool], Iterable[str]] = lambda recipe, tasks, doubtful: (),
) -> Plan:
    """Read a recipe, look up its names and open its tasks.

    Args:
        look: (recipe, opened tasks, whether something is wrong already) -> what else is, in sentences.

    Raises:
        RecipeError: everything that is wrong with keys, names, options, tasks, files and columns, together.
    """
    recipe, problems = config.read(source, overrides)
    if recipe is None:
        raise RecipeError(config.label(source), problems)
    recipe = _placed(recipe)
    problems = [*problems, *load_imports(recipe)]
    for key, slot, room in _slots(recipe):
        _collect(problems, config.build, key, slot, room)
    specs = _specs(recipe, problems)
    for spec in specs:
        _collect(problems, _check_metrics, spec)
    data = [opened for spec in specs if (opened := _collect(problems, _open, spec)) is not None]
    problems += look(recipe, data, bool(problems))
    if not problems:  # these name tasks, and are right or wrong only when all tasks are there
        _collect(problems, _check_split, recipe, data)
        sizes = [len(opened.rows("train")) for opened in data]
        _collect(problems, phases_of, recipe, [opened.spec.name for opened in data], sizes)
    if problems:
        raise RecipeError(config.label(source), problems)
    return Plan(recipe, tuple(data))


def _placed(recipe: Recipe) -> Recipe:
    """The recipe with the absolute path of its backbone, if that is a folder: from `base`, else from here."""
    name = recipe.model.backbone
    places = [Path(home, os.path.expanduser(name)) for home in (recipe.base, "")]
    found = next((place for place in places if os.path.isdir(place)), None)
    if name in config.ALIASES or found is None:
        return recipe
    model = recipe.model.model_copy(update={"backbone": str(found.resolve())})
    return recipe.model_copy(update={"model": model})


def _slots(recipe: Recipe) -> list[tuple[str, config.Slot, Any]]:
    return [
        ("model.strategy", recipe.model.strategy, strategies),
        ("sampler", recipe.sampler, samplers),
        ("balancer", recipe.balancer, balancers),
    ]


def _collect(problems: list[str], function: Any, *args: Any) -> Any:
    """function(*args), or None with its problem noted."""
    try:
        return function(*args)
    except RecipeError as error:
        problems += error.problems
    except MtnlpError as error:
        problems += str(error).split("\n")
    return None


def load_imports(recipe: Recipe) -> list[str]:
    """Load the recipe's own modules and files, so that what they register has names; what went wrong."""
    problems = []
    for name in recipe.imports:
        path = Path(recipe.base, name)
        try:
            if path.suffix == ".py":
                spec = importlib.util.spec_from_file_location(f"mtnlp_import_{path.stem}", path)
                module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
            else:
                importlib.import_module(name)
        except (ImportError, OSError, SyntaxError) as error:
            problems.append(f"imports: {name}: {error}. Name a module, or a .py file beside the recipe.")
        except Exception as error:  # whatever the user's own code does
            frames = traceback.extract_tb(error.__traceback__)
            lines = [frame.lineno for frame in frames if frame.filename == str(path)]
            line = f", line {lines[-1]}" if lines else ""
            problems.append(f"imports: {name}{line}: {type(error).__name__}: {error}")
    return problems


def named_tasks(recipe: Recipe) -> list[TaskSpec]:
    """The tasks that a recipe names and does not write out, without those that cannot be found any more."""
    entries = tuple(entry for entry in recipe.tasks if isinstance(entry, str))
    return _specs(recipe.model_copy(update={"tasks": entries}), [])


def _specs(recipe: Recipe, problems: list[str]) -> list[TaskSpec]:
    """The tasks of a recipe, each name once."""
    base, specs, places = Path(recipe.base), {}, {}
    for i, entry in enumerate(recipe.tasks):
        place = f"tasks.{i} ({entry})" if isinstance(entry, str) else f"tasks.{i}"
        for spec in _collect(problems, _entry, entry, base, f"tasks.{i}") or []:
            specs[spec.name] = spec
            places.setdefault(spec.name, []).append(place)
    for name, found in places.items():
        if len(found) > 1:
            problems.append(
                f"tasks: {len(found)} tasks are called {name}: {', '.join(found)}. Leave out all but one, or "
                f"give each a name of its own: {{use: TASK, name: OTHER}}."
            )
    return list(specs.values())


def _entry(entry: str | Mapping[str, Any], base: Path, where: str) -> list[TaskSpec]:
    """The tasks of one entry; its problems start with its place in the recipe, or with its file."""
    try:
        if isinstance(entry, Mapping):
            return [from_mapping(entry, base=base, where=where)]
        return load(entry, base)
    except RecipeError as error:
        place = f"{where}." if isinstance(entry, Mapping) else f"{error.path}: "
        raise RecipeError(where, [f"{place}{problem}" for problem in error.problems]) from None
    except MtnlpError as error:
        raise MtnlpError(f"{where}: {error}") from None


def _check_metrics(spec: TaskSpec) -> None:
    """MtnlpError if a metric of a task does not exist, or scores other kinds of task."""
    for name in spec.metrics:
        try:
            metrics.get(name, spec.kind)
        except MtnlpError as error:
            raise MtnlpError(f"{spec.name}: metrics: {error}") from None


def _open(spec: TaskSpec) -> TaskData:
    from mtnlp.data.task_data import TaskData

    try:
        data = TaskData.open(spec)
    except MtnlpError as error:
        named, lines = f"{spec.name}: ", str(error).split("\n")
        raise DataError("\n".join(named + line.removeprefix(named) for line in lines)) from None
    if "train" not in data.splits:
        raise DataError(
            f"{spec.name}: no train split; found {', '.join(data.splits) or 'none'}. "
            "Say which one it is with `splits: {train: NAME}`."
        )
    return data


def _check_split(recipe: Recipe, data: Sequence[TaskData]) -> None:
    """MtnlpError if no task at all has the split that training is judged on."""
    known = {"validation", "test", *(split for opened in data for split in opened.splits)}
    if recipe.eval.split not in known:
        raise MtnlpError(
            f"eval.split: no task has a split {shown(recipe.eval.split)}. "
            f"{did_you_mean(recipe.eval.split, known)}"
        )


# The budget.


def total_steps(recipe: Recipe, sizes: Sequence[int]) -> int:
    """Optimizer steps of the budget: train.steps, or epochs over all rows of all tasks."""
    if recipe.train.steps is not None:
        return recipe.train.steps
    return max(1, math.ceil(recipe.train.epochs * sum(sizes) / recipe.train.examples_per_step))


def phases_of(recipe: Recipe, names: Sequence[str], sizes: Sequence[int]) -> list[Phase]:
    """The sampler's rates over the run."""
    sampler: Sampler = config.build("sampler", recipe.sampler, samplers)
    return sampler.phases(names, sizes, total_steps(recipe, sizes), recipe.train.examples_per_step)
