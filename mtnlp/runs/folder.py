"""The run folder: what lies where, and that no run is ever overwritten unasked.

recipe.yaml          the resolved recipe, every default written out
tasks.json           the tasks as resolved: kind, labels, words, templates, fields, metrics; hashes of rows
versions.json        of mtnlp, Python and the libraries, and the machine; see mtnlp.runs.versions
metrics.jsonl        one line per step, per evaluation and per look at gradients, and at the end the ledger
checkpoints/         what a resume needs
model.safetensors    the trained parameters of the kept checkpoint
adapters/TASK/       the same adapters in peft's format, where peft can express the strategy
ledger.json          what each task was given: rows, tokens, epochs, shares; see mtnlp.train.ledger
results.json         the final table
report.html          all of it as one page, once `mtnlp report` was asked for it
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtnlp import assemble, config, strict_yaml
from mtnlp.config import Recipe
from mtnlp.data.sources import memory
from mtnlp.data.store import ENCODED
from mtnlp.errors import MtnlpError, did_you_mean, shown
from mtnlp.tasks.spec import MEMORY, TaskSpec, Template

if TYPE_CHECKING:
    from mtnlp.data.sources import Rows
    from mtnlp.data.task_data import TaskData
    from mtnlp.resolve import Plan

ROWS = "rows"  # what tasks.json holds of a task beside its spec


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def tasks(self) -> Path:
        return self.path / "tasks.json"

    @property
    def versions(self) -> Path:
        return self.path / "versions.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def adapters(self) -> Path:
        return self.path / "adapters"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def holds_run(self) -> bool:
        """Whether a run was started here; a recipe alone may be its author's only copy."""
        return self.recipe.exists() and self.tasks.exists()

    def check(self, plan: Plan, *, resume: bool, force: bool) -> None:
        """Whether a run of this plan may start here; nothing is written.

        Raises:
            MtnlpError: the folder holds a run and neither resume nor force was asked for, or it holds another
                recipe's run, one of tasks or rows that have changed, or something that is no run at all, or
                there is nothing to resume.
        """
        used = self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))
        if resume and force:
            raise MtnlpError("--resume goes on with a run and --force replaces it; give one of the two.")
        if resume and not self.holds_run():
            raise MtnlpError(f"--resume: there is no run in {self.path}. Leave --resume out to start one.")
        if resume:
            self._same_recipe(plan.recipe)
            self._same_tasks(plan.data)
        elif used and not self.holds_run():
            raise MtnlpError(
                f"{self.path} holds files but no run, and --force replaces runs only. Choose another "
                "folder with --out."
            )
        elif used and not force:
            raise MtnlpError(
                f"{self.path} already holds a run. Continue it with --resume, replace it with --force, or "
                "choose another folder with --out."
            )
        there = next(place for place in (self.path, *self.path.absolute().parents) if place.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):
            raise MtnlpError(
                f"{self.path} cannot be made: {there} is no folder that can be written. Choose another "
                "folder with --out."
            )

    def as_begun(self, recipe: Recipe) -> Recipe:
        """The recipe with what it leaves open of its engine chosen as when the run in this folder began."""
        old = config.load(self.recipe)
        return assemble.closed(
            recipe, attention=old.model.attention, precision=old.train.precision, matmul=old.train.matmul
        )

    def create(self, plan: Plan, *, resume: bool) -> None:
        """Make the folder (after `check`): an old run in it is removed, unless it is to be resumed."""
        if resume:
            return
        tasks = json.dumps([_task_to_json(data) for data in plan.data], indent=1, ensure_ascii=False)
        try:
            if self.path.exists():
                shutil.rmtree(self.path)
            self.path.mkdir(parents=True)
            self.recipe.write_text(strict_yaml.dump(_stored(plan.recipe)), "utf-8")
            self.tasks.write_text(tasks, "utf-8")
        except OSError as error:
            raise MtnlpError(
                f"{self.path} cannot be written ({error.strerror}). Choose another folder with --out."
            ) from None

    def remove(self) -> None:
        """Take the folder away again."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _same_recipe(self, recipe: Recipe) -> None:
        old, new = config.load(self.recipe).data(), _stored(self.as_begun(recipe))
        changed = sorted(_differences(old, new))
        if changed:
            raise MtnlpError(
                f"{self.path} is a run of another recipe; it differs in {', '.join(changed)}. Resume it "
                "with the recipe it was started with, or choose another folder with --out."
            )

    def _same_tasks(self, tasks: Sequence[TaskData]) -> None:
        old = {item["name"]: item for item in self._read_tasks()}
        new = {data.spec.name: _task_to_json(data) for data in tasks}
        changed = [
            f"  {name}: {change}"
            for name in {**old, **new}
            for change in _changes(old.get(name), new.get(name))
        ]
        if changed:
            raise MtnlpError(
                "\n".join(
                    [f"{self.path} cannot be resumed: since it began, its tasks have changed.", *changed]
                )
                + "\nPut back what they were, start again with --force, or choose another folder with --out."
            )

    def read_recipe(self) -> Recipe:
        """The recipe of a finished or running run. MtnlpError if this is no run folder."""
        if not self.holds_run():
            raise MtnlpError(
                f"{self.path} is not a run folder: it has no {self.recipe.name} and {self.tasks.name}. "
                "Name a folder that `mtnlp finetune` wrote, such as runs/quickstart."
            )
        return config.load(self.recipe)

    def read_specs(self) -> tuple[TaskSpec, ...]:
        return tuple(spec_from_json(item) for item in self._read_tasks())

    def read_marks(self) -> dict[str, dict[str, str]]:
        """Task -> split -> `mark_of` its rows when the run began; early runs have kept none."""
        return {item["name"]: item.get(ROWS, {}) for item in self._read_tasks()}

    def _read_tasks(self) -> list[dict[str, Any]]:
        """What `create` wrote of each task. MtnlpError if it is damaged."""
        try:
            items = json.loads(self.tasks.read_text("utf-8"))
            for item in items:
                spec_from_json(item)
            return items
        except (ValueError, TypeError, KeyError) as error:
            raise MtnlpError(f"{self.tasks}: damaged ({error}). Restore the file or train again.") from None


def _stored(recipe: Recipe) -> dict[str, Any]:
    """A recipe as the folder keeps it: in place of rows given in memory stand their number and a hash."""
    data = recipe.data()
    for task in data["tasks"]:
        if isinstance(task, dict) and isinstance(source := task.get("source"), dict):
            task["source"] = {
                split: part if isinstance(part, str) else _mark(part) for split, part in source.items()
            }
    return data


def _mark(rows: Sequence[Mapping[str, Any]]) -> str:
    return f"{MEMORY}{len(rows)} rows, {memory(rows, '').fingerprint}"


def spec_to_json(spec: TaskSpec) -> dict[str, Any]:
    """A task as JSON; rows in memory belong to the process that had them and are left out (`source` null)."""
    data = dataclasses.asdict(spec)
    in_memory = isinstance(spec.source, Mapping) and not all(isinstance(v, str) for v in spec.source.values())
    return json.loads(json.dumps({**data, "source": None if in_memory else spec.source}, default=str))


def spec_from_json(data: Mapping[str, Any]) -> TaskSpec:
    """The inverse of `spec_to_json`; also reads what `_task_to_json` gives."""
    names = {field.name for field in dataclasses.fields(TaskSpec)}
    data = {name: data[name] for name in data if name != ROWS}
    unknown = set(data) - names
    if unknown:
        raise ValueError(f"{sorted(unknown)[0]}: no such field. {did_you_mean(sorted(unknown)[0], names)}")
    lists = {key: tuple(value) for key, value in data.items() if isinstance(value, list)}
    templates = {name: Template(**template) for name, template in data["templates"].items()}
    return TaskSpec(**{**data, **lists, "templates": templates})


def _task_to_json(data: TaskData) -> dict[str, Any]:
    """An opened task as JSON, and of the rows of each split how many there are and a hash."""
    rows = {split: data.rows(split) for split in data.splits}
    return {**spec_to_json(data.spec), ROWS: {split: mark_of(part) for split, part in rows.items()}}


def mark_of(rows: Rows) -> str:
    """How many rows there are, and a hash of them."""
    return f"{len(rows)} rows, {rows.fingerprint}"


def _changes(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> Iterator[str]:
    """How what a task learns from has changed, in sentences; None = there is no such task."""
    if old is None or new is None:
        yield "this task is new." if old is None else "this task is gone."
        return
    was, is_now = old.get(ROWS, new[ROWS]), new[ROWS]  # an early run has kept none
    for split in {**was, **is_now}:
        then, now = (rows.get(split, "no rows") for rows in (was, is_now))
        if then != now:
            then, now = (text.partition(",")[0] for text in (then, now))
            yield f"rows of {split} changed ({then} then, {now} now)."
    for key in ENCODED:
        if old[key] != new[key]:
            yield f"{key} changed ({shown(old[key])} then, {shown(new[key])} now)."


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Keys at which two plain values differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            place
            for key in {*old, *new}
            for place in _differences(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))
        ]
    return [] if old == new else [where]
