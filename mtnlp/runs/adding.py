"""`mtnlp finetune --add`: more tasks for a model that is trained already, and nothing else of it is touched.

The new tasks are a run of their own, of a model that holds no other task: what they learn is what they would
have learned alone. What all tasks share comes from the trained model and is frozen. In the end the weights of
both are laid into one run folder and read back: the SHA-256 of every old task's weights, and of what is
shared, must be what it was when the run began. An unfinished folder holds beside a run's usual files

    new.safetensors   the weights of the new tasks, in the place of model.safetensors
    added.json        {"run", "added": [task, ...], "sha256": {"tasks": {task: ...}, "shared"}}; it stays
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtnlp import assemble, config, metrics, strict_yaml
from mtnlp import tasks as registered
from mtnlp.bench.evaluate import Report, TaskScore
from mtnlp.config import Recipe
from mtnlp.errors import MtnlpError, TrainingError
from mtnlp.runs import train, trained
from mtnlp.runs.folder import RunFolder, spec_to_json
from mtnlp.runs.start import Start
from mtnlp.runs.trained import Trained
from mtnlp.runs.weights import Rows, hashes, owner
from mtnlp.tasks.load import load

if TYPE_CHECKING:
    from mtnlp.models.backbone import Backbone
    from mtnlp.models.multitask import MultitaskModel
    from mtnlp.resolve import Plan
    from mtnlp.tasks.spec import TaskSpec
    from mtnlp.train.loop import Run

NEW, ADDED = "new.safetensors", "added.json"
KEPT = "Not scored again: the score is that of"  # how the note on an old task's score begins
FIXED = ("model", "tasks")  # sections of a recipe that the trained model and the arguments decide


def prepare(run: str, entries: Sequence[str], overrides: Iterable[str], *, backbone: str | None) -> Adding:
    """What `mtnlp finetune --add` is to do, checked as far as names go.

    Args:
        run: a finished run folder, or a bundle: folder, address, or owner/name.
        entries: the new tasks, as in a recipe; paths start from the working directory.
        overrides: key=value texts, laid over the recipe of the run.
        backbone: a folder or hub id to take in place of the one that a bundle names.

    Raises:
        MtnlpError: no such run or task, one that the run has already, or a key that cannot be changed.
    """
    if config.find(run).is_file():
        raise MtnlpError(f"--add: {run} is a recipe; train it first, and name the folder of its run.")
    if not entries:
        raise MtnlpError(f"--add: name the tasks to be added, as in `mtnlp finetune --add {run} TASK`.")
    for key in (text.partition("=")[0].strip() for text in overrides):
        if key.split(".")[0] in FIXED:
            raise MtnlpError(
                f"{key}: the model is that of {run}, and the tasks are the arguments without =. Leave it out."
            )
    found = trained.find(run, backbone=backbone)
    old, placed = {spec.name for spec in found.specs}, []
    for entry in entries:
        specs = load(entry, Path.cwd())
        for name in (spec.name for spec in specs if spec.name in old):
            raise MtnlpError(
                f"{entry}: {run} has a task {name} already. Give the new one another name, as in "
                f"{{use: {entry}, name: OTHER}}, or train all of them again."
            )
        placed.append(_placed(entry, specs))
    return Adding(found, placed)


def _placed(entry: str, specs: Sequence[TaskSpec]) -> str:
    """The entry with its path made absolute, if it is one: the recipe will lie elsewhere."""
    path = os.path.join(Path.cwd(), os.path.expanduser(entry))
    try:
        return path if load(path) == specs else entry
    except MtnlpError:
        return entry


class Adding(Start):
    """New tasks for a trained model.

    Args:
        found: the trained model; entries: the new tasks, as a recipe names them.

    Attributes:
        recipe: of the run of the new tasks, as plain data. The model and all settings are those of the
            trained one; its sampler, balancer, and learning rates and steps of single tasks were chosen for
            its own tasks and are left out.
    """

    def __init__(self, found: Trained, entries: Sequence[str]) -> None:
        self.found = found
        self.old = [spec.name for spec in found.specs]
        self.scores = _old_scores(found)
        self.recipe = found.recipe.data()
        for key in ("sampler", "balancer", "safe"):
            self.recipe.pop(key, None)
        if found.given is not None:
            self.recipe["base"] = str(Path.cwd())
        self.recipe |= {"name": f"{found.recipe.name[:95]}-plus", "tasks": list(entries)}
        self.recipe["train"] |= {"lr_of": {}, "steps_of": {}}
        self.recipe["model"]["strategy"] = self._without_old(self.recipe["model"]["strategy"])

    def _without_old(self, strategy: Any) -> Any:
        """A strategy without its options for single tasks."""
        if isinstance(strategy, str):
            return strategy
        return {
            key: {task: own for task, own in option.items() if task not in self.old}
            if isinstance(option, Mapping)
            else option
            for key, option in strategy.items()
        }

    def whole(self, recipe: Recipe) -> Recipe:
        """The recipe of old and new tasks together, from that of the new ones."""
        was, given = self.found.recipe, self.found.given
        known = registered.names() if given is not None else ()
        old = was.tasks if given is None else [
            spec.name if spec.name in known else spec_to_json(spec) for spec in self.found.specs
        ]  # fmt: skip
        model = recipe.model.model_copy(update={"strategy": was.model.strategy})
        return recipe.model_copy(update={"tasks": (*old, *recipe.tasks), "model": model})

    def folder(self, path: Path) -> RunFolder:
        return _Folder(path, self)

    def model(self, plan: Plan, backbone: Backbone, *, trust_remote_code: bool = False) -> MultitaskModel:
        from mtnlp.train import apart

        self._read(plan.recipe, trust_remote_code)
        model = assemble.build_model(plan.recipe, plan.specs, backbone)
        for name, tensor in model.trainable_state().items():
            if owner(name) is None:
                tensor.copy_(self.table[name])
        frozen = {} if apart.are_apart(model) else model.shared_parameters()
        for parameter in frozen.values():
            parameter.requires_grad_(False)
        strategy, run, new = plan.recipe.model.strategy.name, self.found.name, ", ".join(plan.names)
        if not model.trainable_state():
            raise MtnlpError(
                f"--add: {run} writes text and trained {strategy}, which all tasks share: {new} would have "
                "nothing of its own to train. Train the tasks together in one recipe, or train with "
                "model.strategy=lora-per-task, to which tasks can be added."
            )
        count = sum(parameter.numel() for parameter in frozen.values())
        verb = "is" if len(self.old) == 1 else "are"
        self.lines = (
            f"Added to {run}, whose {_tasks(len(self.old))} {verb} not touched: {new}.",
            *([f"The {count:,} parameters of {strategy} that tasks share stay frozen."] if frozen else []),
        )
        return model

    def _read(self, recipe: Recipe, trust_remote_code: bool) -> None:
        """Take from the trained model what it has learned, and let the rest of it go again."""
        found = self.found
        found.require(trust_remote_code=trust_remote_code)
        backbone = assemble.build_backbone(recipe, trust_remote_code=trust_remote_code)
        found.check(backbone)
        old = assemble.build_model(found.recipe, found.specs, backbone)
        found.fill(old)
        self.table, self.rows = old.trainable_state(), Rows.of(old)
        self.adapters = {task: old.strategy.export(task) for task in self.old}
        self.sha256 = hashes(self.table)

    def done(self, run: Run, folder: RunFolder, report: Report, say: Callable[[Any], None]) -> Report:
        about = {**report.about, "added": list(run.tasks), "added_to": self.found.name}
        report = replace(report, scores=(*self.scores, *report.scores), about=about)
        if run.accelerator.is_main_process:
            self._join(folder, Rows.of(run.model))
            for task, exported in self.adapters.items():
                if exported is not None:
                    train.write_adapter(folder, task, *exported)
            report.save(folder.results)
            folder.weights.unlink()
            also = " and what tasks share" if self.sha256["shared"] else ""
            say(f"{_tasks(len(self.old))}{also} unchanged (SHA-256 of their weights).")
        run.accelerator.wait_for_everyone()
        return report

    def _join(self, folder: RunFolder, rows: Rows) -> None:
        """Write the weights of all tasks, and look whether those of the old ones are what they were.

        Args:
            rows: of the new tasks.

        Raises:
            TrainingError: they are not; no weights are left then.
        """
        from mtnlp.train.checkpoint import read_table, write_table

        both = max(rows, self.rows, key=lambda rows: rows.width)
        new = both.lay_out(read_table(folder.weights, rows.mark), rows)
        weights = RunFolder(folder.path).weights
        write_table(weights, both.lay_out(self.table, self.rows) | new, both.mark)
        table = self.rows.lay_out(read_table(weights, both.mark), both)
        after = hashes({name: tensor for name, tensor in table.items() if name not in new})
        if after != self.sha256:
            weights.unlink()
            changed = _changed(self.sha256, after)
            raise TrainingError(
                f"--add: the weights of {changed} are not what they were in {self.found.name} (SHA-256), so "
                "none were kept. This must not happen: look at the disk, and tell us."
            )


@dataclass(frozen=True)
class _Folder(RunFolder):
    """The folder of the run of the new tasks; its recipe and its tasks are those of all of them."""

    adding: Adding

    @property
    def weights(self) -> Path:
        return self.path / NEW

    @property
    def added(self) -> Path:
        return self.path / ADDED

    def check(self, plan: Plan, *, resume: bool, force: bool) -> None:
        run = self.adding.found
        if self.path.resolve() == run.where.resolve():
            raise MtnlpError(f"--out {self.path}: {run.name} itself is left as it is. Choose another folder.")
        if resume and self.results.exists():
            raise MtnlpError(f"--resume: {self.path} is finished; `mtnlp eval {self.path}` scores it again.")
        super().check(plan, resume=resume, force=force)

    def create(self, plan: Plan, *, resume: bool) -> None:
        if resume:
            self._same_weights()
            return
        super().create(plan, resume=resume)
        adding = self.adding
        told = {"run": adding.found.name, "added": list(plan.names), "sha256": adding.sha256}
        dumped = partial(json.dumps, indent=1, ensure_ascii=False)
        tasks = [*_old_tasks(adding.found), *super()._read_tasks()]
        try:
            self.recipe.write_text(strict_yaml.dump(adding.whole(plan.recipe).data()), "utf-8")
            self.tasks.write_text(dumped(tasks), "utf-8")
            self.added.write_text(dumped(told) + "\n", "utf-8")
        except OSError as error:
            raise MtnlpError(f"{self.path} cannot be written ({error.strerror}).") from None

    def _same_weights(self) -> None:
        """Whether the trained model is the one that this run began with. MtnlpError if not."""
        before = json.loads(self.added.read_text("utf-8"))["sha256"] if self.added.exists() else None
        if before != self.adding.sha256:
            raise MtnlpError(
                f"{self.path} cannot be resumed: it was begun with other weights than those of "
                f"{self.adding.found.name}. Name the run it was begun with, or start again with --force."
            )

    def _same_recipe(self, recipe: Recipe) -> None:
        super()._same_recipe(self.adding.whole(recipe))

    def _read_tasks(self) -> list[dict[str, Any]]:
        """Of the new tasks: the others cannot change."""
        return [item for item in super()._read_tasks() if item["name"] not in self.adding.old]


def _old_tasks(found: Trained) -> list[dict[str, Any]]:
    """The old tasks as a run folder keeps them."""
    if found.given is None:
        return RunFolder(found.where)._read_tasks()
    return [spec_to_json(spec) for spec in found.specs]


def _old_scores(found: Trained) -> tuple[TaskScore, ...]:
    """The final scores of a trained model, each with a note that it was not scored again.

    Raises:
        MtnlpError: its results are damaged.
    """
    note, where = f"{KEPT} {found.name}.", RunFolder(found.where).results

    def noted(score: TaskScore) -> TaskScore:
        old = any(one.startswith(KEPT) for one in score.notes)
        return score if old else replace(score, notes=(*score.notes, note))

    try:
        scores = _of_bundle(found) if found.given else Report.from_dict(json.loads(where.read_text())).scores
        return tuple(map(noted, scores))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise MtnlpError(f"{found.name}: its scores are damaged ({error}).") from None


def _of_bundle(found: Trained) -> Iterator[TaskScore]:
    """The scores that a bundle states of its tasks, by known metrics only: other names could run code."""
    for spec, about in zip(found.specs, found.given.tasks, strict=True):
        known = metrics.names(spec.kind)
        values = {name: float(value) for name, value in about["metrics"].items() if name in known}
        if values:
            yield TaskScore(spec.name, spec.kind, str(about["split"]), int(about["rows"]), values, {})


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Whose hashes differ."""
    names = [*before["tasks"], *(name for name in after["tasks"] if name not in before["tasks"])]
    found = [name for name in names if before["tasks"].get(name) != after["tasks"].get(name)]
    return ", ".join(found + (["what tasks share"] if before["shared"] != after["shared"] else []))


def _tasks(count: int) -> str:
    return f"{count} task" if count == 1 else f"{count} tasks"
