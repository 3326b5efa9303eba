"""What the tasks of a recipe can be: registered names, YAML files, folders, Natural-Instructions files.

A task in YAML has TaskSpec's fields as keys, and two short forms: `use: glue/sst2` to start from another task
and change some keys (each key given replaces that key whole), and `template:` for one template, as a text or
by the name it has among the task's own.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mtnlp import strict_yaml, tasks
from mtnlp.errors import MtnlpError, RecipeError, did_you_mean, shown
from mtnlp.tasks import folders, templates
from mtnlp.tasks.spec import MEMORY, TaskSpec, Template

KEYS = (*(field.name for field in dataclasses.fields(TaskSpec)), "template", "use")
REMOTE = ("hub:", "pystdlib:", MEMORY)  # sources that are not paths


def load(entry: str, base: Path | str = ".") -> list[TaskSpec]:
    """The tasks that one entry of a recipe's `tasks` list names.

    Args:
        entry: a registered name (`glue/rte`), a pattern over registered names (`glue/*`), or a path or path
            pattern to YAML files (one task, or a list of tasks, each), folders with meta.json, or
            Natural-Instructions JSON.
        base: folder that relative paths start from.

    Raises:
        MtnlpError: nothing has that name; a file is not of the form expected; a folder whose kind of task is
            not supported. RecipeError lists all problems of a YAML file, or of all that a pattern matches.
    """
    base, pattern = Path(base), bool(re.search(r"[*?\[]", entry))
    is_file = entry.endswith((".yaml", ".yml", ".json"))
    if not pattern and not is_file and entry.split("/")[0] in tasks.families():
        return [tasks.get(entry)]
    if pattern and (names := fnmatch.filter(tasks.names(), entry)):
        return [tasks.get(name) for name in names]
    paths = sorted(_glob(base, entry)) if pattern else [base / Path(os.path.expanduser(entry))]
    paths = [path for path in paths if os.path.exists(path)]  # Path's own raises on a name that is too long
    if not paths and entry in tasks.names():
        return [tasks.get(entry)]
    if not paths:
        raise MtnlpError(
            f"No task is called {shown(entry)} and {shown(str(base / entry), 200)} does not exist. "
            f"{_near(entry, base)}"
        )
    return _read_all(paths, entry) if pattern else _read(paths[0])


def from_mapping(data: Mapping[str, Any], *, base: Path | str, where: str) -> TaskSpec:
    """A task written as a mapping (YAML), checked key by key.

    Args:
        base: folder that relative paths in `source` start from.
        where: what to call this mapping in messages ("recipe.yaml: tasks[2]").

    Raises:
        RecipeError: every problem at once, each with its key, what was found and what was expected.
    """
    if not isinstance(data, Mapping):
        raise RecipeError(where, [f"a task is a mapping of keys, found {type(data).__name__} {shown(data)}."])
    problems = [
        f"{key}: no such key. {did_you_mean(str(key), KEYS, shown=99)}" for key in data if key not in KEYS
    ]
    fields = _used(data.get("use"), Path(base), problems)
    for key in (key for key in KEYS if key in data and key != "use"):  # template after templates
        try:
            value = _CHECKS[key](data[key])
            if key == "template":
                fields["templates"] = _first(value, fields.get("templates", {}))
            else:
                fields[key] = _based(value, Path(base)) if key == "source" else value
        except MtnlpError as error:
            problems.append(f"{key}: {error}")
    missing = [key for key in ("name", "kind", "source") if key not in fields]
    problems += [f"{key}: missing. {_NEEDED[key]}" for key in missing if key not in data]
    if not missing:
        try:
            spec = TaskSpec(**fields)
            problems += _template_problems(spec)
        except MtnlpError as error:
            problems.append(str(error))
    if problems:
        raise RecipeError(where, problems)
    return spec


_NEEDED = {
    "name": "Give the task a short unique name.",
    "kind": "One of classify, pair, ordinal, multilabel, regress, choose, tag, span, generate.",
    "source": "A path, hub:owner/name/config@revision, or a mapping of split to path or rows.",
}


def _glob(base: Path, entry: str) -> list[Path]:
    anchor = Path(os.path.expanduser(entry))
    base = Path(anchor.anchor) if anchor.is_absolute() else base
    return list(base.glob(str(anchor.relative_to(anchor.anchor))))


def _near(entry: str, base: Path) -> str:
    """What stands in the folder that a path leads to; registered names if it is no path."""
    path = base / Path(os.path.expanduser(entry))
    if os.path.isdir(path.parent) and ("/" in entry or path.suffix in (".yaml", ".yml", ".json")):
        return did_you_mean(path.name, os.listdir(path.parent))
    if entry.startswith((".", "~", "/")):
        return f"The folder {shown(str(path.parent), 200)} does not exist either."
    return did_you_mean(entry, tasks.names())


def _read_all(paths: list[Path], pattern: str) -> list[TaskSpec]:
    specs, problems = [], []
    for path in paths:
        try:
            specs += _read(path)
        except RecipeError as error:
            problems += [f"{error.path}: {problem}" for problem in error.problems]
        except MtnlpError as error:
            problems.append(str(error))
    if problems:
        hint = f"A pattern takes all that it matches, here {len(paths)}; list those that are wanted instead."
        raise RecipeError(pattern, [*problems, hint])
    return specs


def _read(path: Path) -> list[TaskSpec]:
    if path.is_dir():
        return folders.read_folder(path)
    if path.suffix == ".json":
        return [folders.read_natural_instructions(path)]
    if path.suffix not in (".yaml", ".yml"):
        raise MtnlpError(
            f"{path}: a task is a .yaml file, a folder with meta.json or a Natural-Instructions .json "
            "file. For bare rows write a task in the recipe: {name: ..., kind: ..., source: " + f"{path}}}"
        )
    if (real := path.resolve()) in _open:
        raise MtnlpError(f"{path}: its `use` leads back to itself.")
    found = strict_yaml.read(path)
    if isinstance(found, dict) and {"model", "tasks"} & set(found):
        raise MtnlpError(f"{path}: this is a recipe, not a task. `mtnlp check {path}` shows its tasks.")
    items = found if isinstance(found, list) else [found]
    places = [f"{path}"] if len(items) == 1 else [f"{path}: task {i + 1}" for i in range(len(items))]
    _open.append(real)
    try:
        return [
            from_mapping(item, base=path.parent, where=where)
            for item, where in zip(items, places, strict=True)
        ]
    finally:
        _open.pop()


_open: list[Path] = []  # the YAML files being read, outermost first


def _used(name: Any, base: Path, problems: list[str]) -> dict[str, Any]:
    if name is None:
        return {}
    try:
        found = load(str(name), base)
        if len(found) != 1:
            raise MtnlpError(f"{shown(name)} names {len(found)} tasks; it must name one.")
        return {field.name: getattr(found[0], field.name) for field in dataclasses.fields(TaskSpec)}
    except MtnlpError as error:
        problems.append(f"use: {error}")
        return {"name": None, "kind": None, "source": None}  # not missing, only unknown


def _template_problems(spec: TaskSpec) -> list[str]:
    found = [
        f"templates.{name}: {problem}"
        for name, template in spec.templates.items()
        if (problem := templates.problem(spec.kind, template))
    ]
    for name, source in spec.fields.items():
        for text in source if isinstance(source, tuple) else [source]:
            if "{{" in text or "{%" in text:
                try:
                    templates.variables(text)
                except MtnlpError as error:
                    found.append(f"fields.{name}: {error}")
    return found


def _based(source: Any, base: Path) -> Any:
    """The source with its relative paths made to start from `base`."""
    if isinstance(source, Mapping):
        return {split: _based(value, base) for split, value in source.items()}
    if not isinstance(source, str) or source.startswith(REMOTE):
        return source
    return str(base / Path(os.path.expanduser(source)))


def _is(
    expected: str, test: Callable[[Any], bool], change: Callable[[Any], Any] = lambda value: value
) -> Callable:
    def check(value: Any) -> Any:
        if not test(value):
            raise MtnlpError(f"expected {expected}, found {shown(value)} ({type(value).__name__}).")
        return change(value)

    return check


def _words(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise MtnlpError(f"expected a list of names, found {shown(value)}.")
    for item in value:
        if isinstance(item, bool):
            raise MtnlpError(f"{item} is a boolean for YAML; put quotes around the word.")
        if not isinstance(item, str | int | float):
            raise MtnlpError(f"expected a list of names, found {shown(item)} in it.")
    return tuple(map(str, value))


def _template(value: Any) -> Template:
    if isinstance(value, str):
        return Template(value)
    if isinstance(value, Mapping) and "prompt" in value and set(value) <= {"prompt", "target"}:
        return Template(**{key: str(text) for key, text in value.items()})
    raise MtnlpError(f"expected a text, or {{prompt: ..., target: ...}}, found {shown(value)}.")


def _first(chosen: Template, known: Mapping[str, Template]) -> dict[str, Template]:
    """The templates of a task with the chosen one in front: one of them by its name, or a new one instead."""
    name = chosen.prompt
    if name in known:
        return {name: known[name], **known}
    if "{{" in name or "{%" in name:
        return {"default": chosen}
    others = did_you_mean(name, known) if known else "This task has none of its own."
    raise MtnlpError(
        f"{shown(name)} is neither a template's name nor a text with {{{{ a field }}}}. {others}"
    )


def _templates(value: Any) -> dict[str, Template]:
    if not isinstance(value, Mapping) or not value:
        raise MtnlpError(f"expected a mapping of name to template, found {shown(value)}.")
    return {str(name): _template(text) for name, text in value.items()}


def _fields(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise MtnlpError(f"expected a mapping of field to column, found {shown(value)}.")
    for name, column in value.items():
        items = column if isinstance(column, list | tuple) else [column]
        if not items or not all(isinstance(item, str) for item in items):
            raise MtnlpError(
                f"{name}: expected a column, a list of columns or a text with {{{{ column }}}}, "
                f"found {shown(column)}."
            )
    return {name: tuple(column) if isinstance(column, list) else column for name, column in value.items()}


def _source(value: Any) -> Any:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, Mapping) and value and all(isinstance(item, str | list) for item in value.values()):
        for split, rows in value.items():
            if odd := [row for row in rows if not isinstance(rows, str) and not isinstance(row, Mapping)]:
                raise MtnlpError(f"{split}: a row is a mapping of columns to values, found {shown(odd[0])}.")
        return dict(value)
    raise MtnlpError(
        f"expected a path, hub:owner/name@revision, or a mapping of split to path or list of rows, "
        f"found {shown(value)}."
    )


def _range(value: Any) -> tuple[float, float]:
    numbers = isinstance(value, list | tuple) and [v for v in value if isinstance(v, int | float)]
    if not numbers or len(numbers) != 2 or len(value) != 2 or not numbers[0] < numbers[1]:
        raise MtnlpError(f"expected [low, high], found {shown(value)}.")
    return float(value[0]), float(value[1])


def _scale(value: Any) -> tuple[float, float]:
    numbers = isinstance(value, list | tuple) and [float(v) for v in value if isinstance(v, int | float)]
    if not numbers or len(numbers) != 2 or len(value) != 2 or numbers[1] <= 0:
        raise MtnlpError(f"expected [centre, spread] with a spread above 0, found {shown(value)}.")
    return numbers[0], numbers[1]


_text = _is("a text", lambda value: isinstance(value, str | int | float) and not isinstance(value, bool), str)
_mapping = _is("a mapping", lambda value: isinstance(value, Mapping), dict)
_CHECKS: dict[str, Callable[[Any], Any]] = {
    "name": _is(
        "a name", lambda value: isinstance(value, str) and bool(re.fullmatch(r"[\w.+-]+(/[\w.+-]+)*", value))
    ),
    "kind": _text,
    "source": _source,
    "splits": _mapping,
    "fields": _fields,
    "labels": _words,
    "words": _words,
    "instruction": _text,
    "templates": _templates,
    "template": _template,
    "demonstrations": _is(
        "a list of rows",
        lambda value: isinstance(value, list) and all(isinstance(row, Mapping) for row in value),
        tuple,
    ),
    "metrics": lambda value: _words([value] if isinstance(value, str) else value),
    "score_range": _range,
    "score_scale": _scale,
    "limit": _is("a whole number above 0", lambda value: type(value) is int and value > 0),
    "shots": _is("a whole number, 0 or more", lambda value: type(value) is int and value >= 0),
    "floor": _mapping,
    "licence": _text,
    "citation": _text,
    "notes": _text,
    "language": lambda value: ", ".join(_words([value] if isinstance(value, str) else value)),
}
