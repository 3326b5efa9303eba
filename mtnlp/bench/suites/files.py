"""A suite from a YAML file: pydantic at this border only, and all problems at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, ValidationError

from mtnlp import metrics, strict_yaml
from mtnlp.bench.groups import Group
from mtnlp.bench.questions import LIKELIHOODS
from mtnlp.bench.suites.entries import (
    PERPLEXITIES,
    Entry,
    Search,
    Suite,
    guess,
    matching,
    misfits,
    no_scale,
    twice,
    unmatched,
)
from mtnlp.config import Section, Texts
from mtnlp.errors import MtnlpError, RecipeError, did_you_mean, shown
from mtnlp.tasks.load import from_mapping, load
from mtnlp.tasks.spec import TaskSpec

SHIPPED = Path(__file__).parent
S = TypeVar("S", bound=Section)


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Names = Annotated[Texts, BeforeValidator(_one_or_more)]


class GenerationSection(Section):
    """How texts are written; see mtnlp.models.generation. No temperature = the likeliest token each time."""

    max_new_tokens: int = Field(64, ge=1)
    beams: int = Field(1, ge=1)
    temperature: float | None = Field(None, gt=0)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    stop: Names = ()
    seed: int = Field(0, ge=0)


class EntrySection(Section):
    """One of `tasks` with options, named as in `Entry`.

    task: a name, a pattern, a path or a task written out, as in a recipe; the options are for all its tasks.
    metric: what the task is scored by: one metric, or several with the main one first. Default: its own.
    """

    task: Any
    split: str | None = Field(None, min_length=1)
    metric: Names = ()
    chance: float | None = None
    reference: float | None = None
    templates: Names = ()
    shots: int | None = Field(None, ge=0)
    request: Literal["auto", "head", "options", "generate", "likelihood", "text", "embed"] = "auto"
    limit: int | None = Field(None, ge=1)
    generation: GenerationSection | None = None
    normalise: Literal["auto", "sum", "token", "byte", "pmi"] = "auto"
    slices: Names = ()
    cluster: str = ""


class SearchSection(Section):
    """One of `retrieval`. path: folder or file, from `root`; metric: of the kind "retrieve"."""

    name: str = Field(min_length=1)
    path: str = Field(min_length=1)
    split: str | None = Field(None, min_length=1)
    metric: Names = ("ndcg_10", "recall_100", "mrr_10")


class GroupSection(Section):
    """One of `groups`. tasks: names, or patterns over the names of the suite's tasks."""

    tasks: Names
    mean: Literal["micro", "macro", "glue", "normalised"] = "macro"


class FileSection(Section):
    """The whole file.

    version: to be raised when scores before and after a change cannot be compared. split: of all tasks that
    do not say their own. root: where relative paths of tasks start, seen from the file's folder; a suite that
    comes with mtnlp has no neighbours, and looks from the working directory.
    """

    name: str = Field(pattern=r"^[\w][\w.+-]*$", max_length=100)
    version: int = Field(ge=1)
    description: str = ""
    split: str = Field("test", min_length=1)
    root: str = Field(".", min_length=1)
    tasks: Annotated[tuple[Any, ...], Field(strict=False)] = ()
    retrieval: Annotated[tuple[Any, ...], Field(strict=False)] = ()
    groups: dict[str, Any] = Field(default_factory=dict)


def read(
    path: Path, *, split: str | None, limit: int | None, root: str | Path | None
) -> tuple[Suite | None, list[str]]:
    """The suite of a file, without what is wrong with it, and every problem found.

    Args:
        split, limit, root: as in mtnlp.bench.suites.load.

    Raises:
        MtnlpError: not YAML, or nothing that could be a suite.
    """
    problems: list[str] = []
    data = {"name": path.stem, **_raw(path)}
    file = _checked(FileSection, data, "", problems, {"name": path.stem, "version": 1})
    if not file.tasks and not file.retrieval and not any(problem.startswith("tasks") for problem in problems):
        problems.append("tasks: name at least one, as in [glue/sst2]; `mtnlp list tasks` shows them.")
    base = _base(path, file.root) if root is None else Path(os.path.expanduser(root))
    if not base.is_dir():
        hint = "Say where the folders of its tasks lie: root=... (--root)."
        return None, [*problems, f"root: the folder {base} does not exist. {hint}"]
    entries = _entries(file, base, split, limit, problems)
    groups = _groups(file.groups, entries, problems)
    found = tuple(entries.values()), groups, path
    searches = _searches(file, base, split, problems)
    return Suite(file.name, file.version, file.description, *found, searches=searches), problems


def _searches(file: FileSection, base: Path, split: str | None, problems: list[str]) -> tuple[Search, ...]:
    found = []
    for i, value in enumerate(file.retrieval):
        section = _checked(SearchSection, value, f"retrieval.{i}", problems)
        if section is None:
            continue
        for name in section.metric:
            try:
                metrics.get(name, "retrieve")
            except MtnlpError as error:
                problems.append(f"retrieval.{i}.metric: {error}")
        path = base / os.path.expanduser(section.path)
        found.append(Search(section.name, path, split or section.split or file.split, section.metric))
    return tuple(found)


def _raw(path: Path) -> dict[str, Any]:
    data = strict_yaml.read(path)
    if not isinstance(data, dict):
        found = "nothing" if data is None else shown(data)
        raise MtnlpError(f"{path}: expected keys and values (version: ..., tasks: ...), found {found}.")
    if "model" in data:
        raise MtnlpError(f"{path}: this is a recipe; a suite has name, version, tasks and groups.")
    return data


def _base(path: Path, own: str) -> Path:
    home = Path.cwd() if path.parent == SHIPPED else path.parent
    return (home / os.path.expanduser(own)).resolve()


def _entries(
    file: FileSection, base: Path, split: str | None, limit: int | None, problems: list[str]
) -> dict[str, Entry]:
    """Name of a task -> its entry; split and limit go before what the file says."""
    entries: dict[str, Entry] = {}
    places: dict[str, list[str]] = {}
    for i, value in enumerate(file.tasks):
        section = _section(value, f"tasks.{i}", problems)
        for spec in _specs(section.task, base, f"tasks.{i}", problems) if section else ():
            place = f"tasks.{i} ({spec.name})"
            entry = _entry(spec, section, split or section.split or file.split, limit or section.limit)
            problems += [f"{place}: {problem}" for problem in misfits(entry)]
            places.setdefault(spec.name, []).append(place)
            entries[spec.name] = entry
    problems += twice(places)
    return entries


def _section(value: Any, where: str, problems: list[str]) -> EntrySection | None:
    """A name, a path or a task written out is an entry without options."""
    written_out = isinstance(value, Mapping) and bool({"use", "kind", "source"} & set(value))
    if isinstance(value, str) or written_out:
        return EntrySection(task=value)
    return _checked(EntrySection, value, where, problems)


def _specs(task: Any, base: Path, where: str, problems: list[str]) -> list[TaskSpec]:
    """The tasks that `task` stands for; what is wrong goes to `problems`, with its place or its file."""
    try:
        if isinstance(task, Mapping):
            return [from_mapping(task, base=base, where=where)]
        if not isinstance(task, str) or not task:
            raise MtnlpError(f"a task is a name, a path or a mapping, got {shown(task)}.")
        return load(task, base)
    except RecipeError as error:
        place = f"{where}." if isinstance(task, Mapping) else f"{where}: {error.path}: "
        problems += [f"{place}{problem}" for problem in error.problems]
    except MtnlpError as error:
        problems.append(f"{where}: {error}")
    return []


def _entry(spec: TaskSpec, section: EntrySection, split: str, limit: int | None) -> Entry:
    own = PERPLEXITIES if section.request in LIKELIHOODS else spec.metrics
    spec = spec.replace(metrics=section.metric or own)
    metric = spec.metrics[0]
    return Entry(
        spec,
        split,
        metric,
        chance=guess(spec, metric) if section.chance is None else section.chance,
        reference=section.reference,
        templates=section.templates,
        shots=section.shots,
        request=section.request,
        limit=limit,
        generation=section.generation.model_dump() if section.generation else {},
        normalise=section.normalise,
        slices=section.slices,
        cluster=section.cluster,
    )


def _groups(
    written: Mapping[str, Any], entries: Mapping[str, Entry], problems: list[str]
) -> tuple[Group, ...]:
    """The groups, with names for patterns; those are right or wrong only when all tasks are there."""
    made, whole = [], not problems
    for name, value in written.items():
        where = f"groups.{name}"
        section = _checked(GroupSection, value, where, problems)
        if section is None or not whole:
            continue
        group = Group(name, tuple(matching(section.tasks, entries)), section.mean)
        wrong = unmatched(section.tasks, list(entries))
        if group.mean == "normalised":
            wrong += filter(None, (no_scale(entries[task]) for task in group.tasks))
        if not section.tasks:
            wrong.append("tasks: name at least one, or a pattern.")
        problems += [f"{where}: {problem}" for problem in wrong]
        made.append(group)
    return tuple(made)


def _checked(
    model: type[S],
    data: Any,
    where: str,
    problems: list[str],
    stand_in: Mapping[str, Any] | None = None,
) -> S | None:
    """`data` as a section. What is wrong goes to `problems` and is left out, so that the rest is looked at.

    Args:
        stand_in: values of keys that have no default and may be wrong; None is returned if they are not all
            there.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        found = error.errors()
    problems += [_sentence(item, model, where) for item in found]
    wrong = {item["loc"][0] for item in found if item["loc"]}
    kept = data.items() if isinstance(data, Mapping) else ()
    try:
        return model.model_validate({**(stand_in or {}), **{k: v for k, v in kept if k not in wrong}})
    except ValidationError:
        return None


def _sentence(error: Mapping[str, Any], model: type[Section], where: str) -> str:
    """One pydantic error as a sentence that starts with its place."""
    key = ".".join(filter(None, [where, *map(str, error["loc"])]))
    if error["type"] == "extra_forbidden":
        return f"{key}: no such key. {did_you_mean(str(error['loc'][-1]), model.model_fields)}"
    if error["type"] == "missing":
        return f"{key}: missing; it has no default."
    if error["type"] == "tuple_type":
        return f"{key}: expected a list, as in [a, b] (got {shown(error['input'])})."
    if error["type"] in ("model_type", "dict_type"):
        return f"{key}: expected keys and values (got {shown(error['input'])})."
    return f"{key}: {error['msg']} (got {shown(error['input'])})."
