"""The tasks of a recipe cut down to a few rows; of those of the hub, the row that hub_rows.py has."""

from __future__ import annotations

import fnmatch

from hub_rows import ROWS

from mtnlp import config
from mtnlp.tasks.load import from_mapping, load
from mtnlp.tasks.spec import TaskSpec

LIMIT = 24
Entry = str | dict


def specs_of(recipe: config.Recipe) -> list[tuple[Entry, TaskSpec]]:
    """(what `use` takes, task) of every task of a recipe."""
    found = []
    for entry in recipe.tasks:
        if isinstance(entry, str):
            specs = load(entry, recipe.base)
            found += [(entry if len(specs) == 1 else spec.name, spec) for spec in specs]
        else:
            found.append((dict(entry), from_mapping(entry, base=recipe.base, where="recipe")))
    return found


def from_hub(spec: TaskSpec) -> bool:
    return str(spec.source).startswith("hub:")


def hub_row(name: str) -> dict:
    return next(row for pattern, (row, _) in ROWS.items() if fnmatch.fnmatch(name, pattern))


def small(entry: Entry, spec: TaskSpec) -> dict:
    """The task as a recipe's mapping, with few rows."""
    if from_hub(spec):
        rows = [hub_row(spec.name)] * 6
        return {"use": entry, "source": {"train": rows, "validation": rows[:3]}, "splits": {}}
    return {**(entry if isinstance(entry, dict) else {"use": entry}), "limit": LIMIT}
