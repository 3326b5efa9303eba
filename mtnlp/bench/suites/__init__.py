"""Suites as data: which tasks, on which split, by which metric, and which means over them.

    load("glue")                    shipped with mtnlp: a YAML file beside this one
    load("my-suite.yaml")           one of your own
    load("../shared/data/tasks")    a folder of task folders (meta.json beside the rows), each of them a task

A suite file holds name, version, description, split, root, tasks and groups. An entry of `tasks` is what it
is in a recipe (a name, a pattern, a path, a task written out), or {task: one of these, split: ..., ...} with
the keys of `Entry`. A group is {tasks: patterns over the suite's tasks, mean: one of groups.MEANS}.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from mtnlp.bench.suites import files
from mtnlp.bench.suites.entries import Entry, Suite, guess, matching, misfits, no_split, twice, unmatched
from mtnlp.errors import MtnlpError, RecipeError, did_you_mean, shown
from mtnlp.tasks.folders import NO_KIND
from mtnlp.tasks.load import load as load_tasks

__all__ = ["Entry", "Suite", "load", "names"]


def names() -> list[str]:
    """Suites that come with mtnlp, sorted."""
    return sorted(path.stem for path in files.SHIPPED.glob("*.yaml"))


def load(
    source: str | Path,
    *,
    tasks: str | Iterable[str] | None = None,
    split: str | None = None,
    limit: int | None = None,
    root: str | Path | None = None,
) -> Suite:
    """The suite of a shipped name, a YAML file, or a folder of task folders. Opens no data.

    Args:
        tasks: only these: names or patterns over the names of its tasks; one text may hold several: "a,b/*".
        split, limit: instead of what the suite says for its tasks.
        root: the folder that relative paths of tasks start from, instead of the suite's own.

    Raises:
        MtnlpError: no such suite, with the nearest names. RecipeError: all that is wrong with it together:
            keys and values, tasks that do not exist, metrics that do not fit their kind.
    """
    path = _find(source)
    if path.is_dir():
        suite, problems = _folder(path, split or "test", limit)
    else:
        suite, problems = files.read(path, split=split, limit=limit, root=root)
    if suite and tasks is not None and not problems:
        suite = _only(suite, tasks)  # before its splits are looked at: a split may be one task's alone
    problems += filter(None, (no_split(entry) for entry in (suite.entries if suite else ())))
    if problems:
        raise RecipeError(path, problems)
    return suite


def _find(source: str | Path) -> Path:
    """A shipped name goes before a folder of that name, so that it means the same everywhere."""
    if str(source) in names():
        return files.SHIPPED / f"{source}.yaml"
    path = Path(os.path.expanduser(source))
    if not os.path.exists(path):  # Path's own raises on a name that is too long
        raise MtnlpError(
            f"No suite is called {shown(str(source))}, and there is no such file or folder. "
            f"{did_you_mean(str(source), names())}"
        )
    if not path.is_dir() and path.suffix not in (".yaml", ".yml"):
        raise MtnlpError(f"{path}: a suite is a name, a .yaml file, or a folder of task folders.")
    return path


def _folder(path: Path, split: str, limit: int | None) -> tuple[Suite, list[str]]:
    """A task per folder with meta.json. Those of a kind that we do not have are left out, as notes say."""
    single = (path / "meta.json").exists()
    entries: dict[str, Entry] = {}
    places: dict[str, list[str]] = {}
    problems, notes = [], []
    for folder in [path] if single else sorted(found.parent for found in path.glob("*/meta.json")):
        try:
            for spec in load_tasks(str(folder.resolve())):
                metric = spec.metrics[0]
                entries[spec.name] = Entry(spec, split, metric, guess(spec, metric), limit=limit)
                problems += [f"{folder}: {problem}" for problem in misfits(entries[spec.name])]
                places.setdefault(spec.name, []).append(folder.name)
        except MtnlpError as error:
            (notes if _without_kind(folder) else problems).append(str(error))
    if not entries and not problems:
        problems = [*notes, "expected folders in it with a meta.json and rows (train.jsonl ...), found none."]
    name = path.resolve().name
    about = f"The tasks of the folder {name}."
    suite = Suite(name, 1, about, tuple(entries.values()), (), path, tuple(notes))
    return suite, [*problems, *twice(places)]


def _without_kind(folder: Path) -> bool:
    try:
        return json.loads((folder / "meta.json").read_text("utf-8")).get("task_type") in NO_KIND
    except (OSError, ValueError, AttributeError):
        return False


def _only(suite: Suite, wanted: str | Iterable[str]) -> Suite:
    """The suite with some of its tasks; groups keep what is left of them, and notes say so."""
    patterns = [p.strip() for p in (wanted.split(",") if isinstance(wanted, str) else wanted) if p.strip()]
    known = [entry.spec.name for entry in suite.entries]
    problems = unmatched(patterns, known) if patterns else ["give some as a,b, or leave it out for all."]
    if problems:
        raise RecipeError(suite.path, [f"tasks: {problem}" for problem in problems])
    kept = set(matching(patterns, known))
    groups, notes = [], list(suite.notes)
    for group in suite.groups:
        left = tuple(name for name in group.tasks if name in kept)
        if left:
            groups.append(replace(group, tasks=left))
        if not left:
            notes.append(f"group {group.name}: left out, none of its tasks is asked for.")
        elif len(left) < len(group.tasks):
            notes.append(f"group {group.name}: over {len(left)} of its {len(group.tasks)} tasks.")
    entries = tuple(entry for entry in suite.entries if entry.spec.name in kept)
    return replace(suite, entries=entries, groups=tuple(groups), notes=tuple(notes))
