"""The run folder: what lies where, and that no run is ever overwritten unasked.

recipe.yaml          the resolved recipe, every default written out
tasks.json           the tasks as resolved: kind, labels, words, templates, fields, metrics
metrics.jsonl        one line per step, one per evaluation
checkpoints/         what a resume needs
model.safetensors    the trained parameters of the kept checkpoint
adapters/TASK/       the same adapters in peft's format, where peft can express the strategy
results.json         the final table
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtnlp import config, strict_yaml
from mtnlp.config import Recipe
from mtnlp.data.sources import memory
from mtnlp.errors import MtnlpError, did_you_mean
from mtnlp.tasks.spec import MEMORY, TaskSpec, Template


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
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

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

    def check(self, recipe: Recipe, *, resume: bool, force: bool) -> None:
        """Whether a run of this recipe may start here; nothing is written.

        Raises:
            MtnlpError: the folder holds a run and neither resume nor force was asked for, or it holds another
                recipe's run, or something that is no run at all, or there is nothing to resume.
        """
        used = self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))
        if resume and force:
            raise MtnlpError("--resume goes on with a run and --force replaces it; give one of the two.")
        if resume and not self.recipe.exists():
            raise MtnlpError(f"--resume: there is no run in {self.path}. Leave --resume out to start one.")
        if resume:
            self._same(recipe)
        elif used and not force:
            raise MtnlpError(
                f"{self.path} already holds {'a run' if self.recipe.exists() else 'files'}. Continue a run "
                "with --resume, replace it with --force, or choose another folder with --out."
            )
        elif used and not self.recipe.exists():
            raise MtnlpError(
                f"{self.path} holds files but no run, and --force replaces runs only. Choose another "
                "folder with --out."
            )
        there = next(place for place in (self.path, *self.path.absolute().parents) if place.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):
            raise MtnlpError(
                f"{self.path} cannot be made: {there} is no folder that can be written. Choose another "
                "folder with --out."
            )

    def create(self, recipe: Recipe, specs: Sequence[TaskSpec], *, resume: bool) -> None:
        """Make the folder (after `check`): an old run in it is removed, unless it is to be resumed."""
        if resume:
            return
        tasks = json.dumps([spec_to_json(spec) for spec in specs], indent=1, ensure_ascii=False)
        try:
            if self.path.exists():
                shutil.rmtree(self.path)
            self.path.mkdir(parents=True)
            self.recipe.write_text(strict_yaml.dump(_stored(recipe)), "utf-8")
            self.tasks.write_text(tasks, "utf-8")
        except OSError as error:
            raise MtnlpError(
                f"{self.path} cannot be written ({error.strerror}). Choose another folder with --out."
            ) from None

    def remove(self) -> None:
        """Take the folder away again."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _same(self, recipe: Recipe) -> None:
        old, new = config.load(self.recipe).data(), _stored(recipe)
        changed = sorted(_differences(old, new))
        if changed:
            raise MtnlpError(
                f"{self.path} is a run of another recipe; it differs in {', '.join(changed)}. Resume it "
                "with the recipe it was started with, or choose another folder with --out."
            )

    def read_recipe(self) -> Recipe:
        """The recipe of a finished or running run. MtnlpError if this is no run folder."""
        if not self.recipe.exists() or not self.tasks.exists():
            raise MtnlpError(
                f"{self.path} is not a run folder: it has no {self.recipe.name} and {self.tasks.name}. "
                "Name a folder that `mtnlp finetune` wrote, such as runs/quickstart."
            )
        return config.load(self.recipe)

    def read_specs(self) -> tuple[TaskSpec, ...]:
        try:
            return tuple(spec_from_json(item) for item in json.loads(self.tasks.read_text("utf-8")))
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
    """The inverse of `spec_to_json`."""
    names = {field.name for field in dataclasses.fields(TaskSpec)}
    unknown = set(data) - names
    if unknown:
        raise ValueError(f"{sorted(unknown)[0]}: no such field. {did_you_mean(sorted(unknown)[0], names)}")
    lists = {key: tuple(value) for key, value in data.items() if isinstance(value, list)}
    templates = {name: Template(**template) for name, template in data["templates"].items()}
    return TaskSpec(**{**data, **lists, "templates": templates})


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Keys at which two plain values differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            place
            for key in {*old, *new}
            for place in _differences(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))
        ]
    return [] if old == new else [where]
