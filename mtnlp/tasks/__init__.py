"""The registry of tasks. A file here that holds `TASKS` is a family: glue.py has `glue/sst2` and its kin.

Importing this room imports no family; listing names imports them all, which is data and costs milliseconds.
Other packages add families through the entry-point group `mtnlp.tasks` (an object that is, or has as `TASKS`,
a mapping of name to TaskSpec); a script adds single tasks with `register`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtnlp.errors import MtnlpError, did_you_mean, shown

if TYPE_CHECKING:
    from mtnlp.tasks.spec import TaskSpec

_MACHINERY = {"spec", "examples", "templates", "answers", "load", "folders"}  # every other file is a family
_added: dict[str, TaskSpec] = {}


def families() -> list[str]:
    """Names of all families, sorted, without importing any."""
    return sorted({*_files(), *_plugins()})


def names() -> list[str]:
    """Names of all registered tasks, sorted."""
    return sorted({*_added, *(name for family in families() for name in _family(family))})


def get(name: str) -> TaskSpec:
    """The task called `name`; imports only its family.

    Raises:
        MtnlpError: no such task, with the nearest names.
    """
    if name in _added:
        return _added[name]
    family = name.split("/")[0]
    if family in families() and name in _family(family):
        return _family(family)[name]
    raise MtnlpError(f"No task is called {shown(name)}. {did_you_mean(name, names())}")


def register(spec: TaskSpec) -> TaskSpec:
    """Add one task at run time (for scripts named under `imports` in a recipe).

    Raises:
        MtnlpError: the name is taken by a different task.
    """
    family = spec.name.split("/")[0]
    old = _added.get(spec.name) or (_family(family).get(spec.name) if family in families() else None)
    if old is not None and old != spec:
        raise MtnlpError(
            f"The task {spec.name!r} is registered already, with other content; choose another name."
        )
    _added[spec.name] = spec
    return spec


def _files() -> set[str]:
    stems = {path.stem for path in Path(__file__).parent.glob("*.py")}
    return {stem.replace("_", "-") for stem in stems - _MACHINERY if not stem.startswith("_")}


@lru_cache(maxsize=1)
def _plugins() -> Mapping[str, Any]:
    from importlib.metadata import entry_points  # 10 ms that a plain import need not pay

    return {point.name: point for point in entry_points(group=__name__)}


@cache
def _family(family: str) -> Mapping[str, TaskSpec]:
    if family in _files():
        return importlib.import_module(f"{__name__}.{family.replace('-', '_')}").TASKS
    loaded = _plugins()[family].load()
    return getattr(loaded, "TASKS", loaded)
