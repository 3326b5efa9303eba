"""Which runs need not be trained again: those of the same content, whatever they are called.

A run lies in `<label>-<seed>-<key>/`, its key being a hash of all that its weights follow from. Beside it,
`<the same>.json` says what that was, so that a run which is not reused can be told why.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mtnlp.bench.samples import key_of
from mtnlp.config import Recipe
from mtnlp.data.task_data import TaskData
from mtnlp.errors import MtnlpError, shown

NOT_CONTENT = (
    "name",
    "base",
    "seed",
    "tasks",
    "track",
    "imports",
    "safe",
)  # names, places, and what stands by itself
NAMED = 4  # differences that one reason names


@dataclass(frozen=True)
class Job:
    """One run.

    Args:
        label: its task, or JOINT. seed: of its recipe. data: its tasks, opened.
        parts: all that its weights follow from, as dotted key -> plain value.
    """

    label: str
    seed: int
    recipe: Recipe
    data: tuple[TaskData, ...]
    parts: Mapping[str, Any]

    @cached_property
    def name(self) -> str:
        return f"{self.label.replace('/', '--')}-{self.seed}-{key_of(dict(self.parts))[:12]}"


JOINT = "joint"


def parts_of(recipe: Recipe, data: Sequence[TaskData], **more: Any) -> dict[str, Any]:
    """All that a run's weights follow from: settings, tasks and their rows.

    Args:
        more: what else there is; the content of the backbone, in place of its name, and of the code.
    """
    settings = {key: value for key, value in recipe.data().items() if key not in NOT_CONTENT}
    settings["model"] = {k: v for k, v in settings["model"].items() if k not in ("backbone", "revision")}
    settings["train"] = {key: value for key, value in settings["train"].items() if key != "threads"}
    tasks = {item.spec.name: _task(item) for item in data}
    return {"seed": recipe.seed, **more, **_flat({**settings, "tasks": tasks})}


def _task(data: TaskData) -> dict[str, Any]:
    """A task by its content: where its rows lie is no part of it."""
    spec = dataclasses.asdict(data.spec.replace(source=None))
    rows = {split: data.rows(split) for split in data.splits}
    counted = {split: f"{len(part)} rows, {part.fingerprint}" for split, part in rows.items()}
    return {**json.loads(json.dumps(spec, default=str)), "rows": counted}


def _flat(value: Any, where: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    if not isinstance(value, Mapping) or not value:
        return {where: value}
    return {
        key: part
        for name, inner in value.items()
        for key, part in _flat(inner, f"{where}.{name}".lstrip(".")).items()
    }


def note(folder: Path, job: Job) -> None:
    """Write down what a run's weights follow from, before it begins."""
    _write(folder / f"{job.name}.json", {"label": job.label, "parts": dict(job.parts)})


def measured(folder: Path, job: Job) -> dict[str, Any]:
    """What was measured of a run, by name; empty if nothing was."""
    return _read(folder / f"{job.name}.json").get("measured", {})


def keep(folder: Path, job: Job, **found: Any) -> None:
    """Add to what was measured of a run."""
    path = folder / f"{job.name}.json"
    _write(path, {**_read(path), "measured": {**measured(folder, job), **found}})


def reason(folder: Path, job: Job) -> str:
    """Why no run in the folder stands for this one: where the nearest one differs. Empty if there is none, or
    if it is one of another seed only."""
    others = [(path.stem, found) for path in sorted(folder.glob("*.json")) if (found := _read(path))]
    apart = [
        (_differences(found["parts"], job.parts), name)
        for name, found in others
        if found["label"] == job.label and name != job.name
    ]
    if not apart:
        return ""
    differences, name = min(apart, key=lambda item: (len(item[0]), "seed" in item[0], item[1]))
    told = [f"{key} ({then} there, {now} here)" for key, (then, now) in differences.items() if key != "seed"]
    if not told:
        return ""
    more = f" and {len(told) - NAMED} more" if len(told) > NAMED else ""
    return f"{name} is not reused: it differs in {', '.join(told[:NAMED])}{more}."


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    none = object()
    return {
        key: tuple("nothing" if value is none else shown(value, 40) for value in (was, is_now))
        for key in {**then, **now}
        if (was := then.get(key, none)) != (is_now := now.get(key, none))
    }


def _read(path: Path) -> dict[str, Any]:
    """What `note` wrote; empty if it is not there, or not whole."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text("utf-8"))
        return found if isinstance(found, dict) and {"label", "parts"} <= set(found) else {}
    return {}


def _write(path: Path, data: Mapping[str, Any]) -> None:
    write(path, json.dumps(data, indent=1, ensure_ascii=False, default=str) + "\n")


def write(path: Path, text: str) -> None:
    """Write a file in one piece. MtnlpError if that cannot be."""
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, "utf-8")
        part.replace(path)
    except OSError as error:
        raise MtnlpError(
            f"{path} cannot be written ({error.strerror}). Choose another folder with --out."
        ) from None
