"""`check`: everything that can be known about a recipe without its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mtnlp import assemble, config
from mtnlp.bench import tables
from mtnlp.bench.overlap import Overlap
from mtnlp.data.plan import Quota
from mtnlp.data.sources import read_example
from mtnlp.errors import RecipeError
from mtnlp.resolve import Plan, phases_of, resolve, total_steps
from mtnlp.runs import leaks, room
from mtnlp.runs.session import bad_rows, shots_of, store_of
from mtnlp.tasks.spec import Example
from mtnlp.tasks.templates import render

if TYPE_CHECKING:
    from rich.console import Console

    from mtnlp.data.encode import Encoder
    from mtnlp.data.store import TokenStore
    from mtnlp.data.task_data import TaskData

PROMPTS = 3  # shown
REPEATS = 10.0  # epochs over a task's rows from which on it is worth a warning


@dataclass(frozen=True)
class TaskCheck:
    """What is known of one task.

    Rows per split, labels, tokens per example, the share of examples that lose tokens, and how often its
    training rows will be seen.
    """

    name: str
    kind: str
    rows: Mapping[str, int]
    labels: int
    tokens_mean: float
    tokens_most: int
    truncated: float
    epochs: float
    held_out: bool  # its validation rows were taken out of train
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class CheckReport:
    """The result of a check that found nothing wrong; what is only odd stands in the tasks' warnings."""

    recipe: config.Recipe
    family: str
    steps: int
    engine: str  # the line on what the run would compute with
    tasks: tuple[TaskCheck, ...]
    memory: Mapping[str, float]  # GiB
    prompts: tuple[tuple[str, str, str], ...]  # task, what the model reads, what it should answer
    leaks: Overlap  # rows of the other splits that stand in train

    def print(self, console: Console | None = None) -> None:
        """Tables on a rich console."""
        console = console or tables.console()
        recipe = self.recipe
        console.print(
            f"{recipe.name}: {len(self.tasks)} tasks on {recipe.model.backbone} ({self.family}) with "
            f"{recipe.model.strategy.name}, {self.steps:,} steps of {recipe.train.examples_per_step} "
            "examples",
            markup=False,
            soft_wrap=True,
        )
        console.print(self.engine, markup=False, soft_wrap=True)
        numbers = ("train", "valid", "test", "labels", "tokens", "most", "cut", "epochs")
        table = tables.table(("task", "kind", *numbers), numbers)
        for task in self.tasks:
            sizes = [
                f"{task.rows[name]:,}" if name in task.rows else "-"
                for name in ("train", "validation", "test")
            ]
            sizes[1] += "*" if task.held_out else ""
            table.add_row(
                task.name,
                task.kind,
                *sizes,
                str(task.labels or "-"),
                f"{task.tokens_mean:.0f}",
                str(task.tokens_most),
                f"{task.truncated:.1%}",
                f"{task.epochs:.1f}",
            )
        console.print(table)
        if any(task.held_out for task in self.tasks):
            console.print(
                "* The source has no validation split: one row of train in ten is held out by a hash of the "
                "row, at most 1,000.",
                markup=False,
                soft_wrap=True,
            )
        parts = ", ".join(f"{name} {size:.2f}" for name, size in self.memory.items())
        console.print(
            f"Memory, roughly: {sum(self.memory.values()):.1f} GiB ({parts})", markup=False, soft_wrap=True
        )
        self._print_leaks(console)
        for task, prompt, target in self.prompts:
            console.rule(f"{task}: what the model reads, and what it should answer", align="left")
            console.print(prompt, markup=False, soft_wrap=True)
            console.print(f"=> {target}", markup=False, soft_wrap=True)
        for task in self.tasks:
            for warning in task.warnings:
                console.print(f"warning: {task.name}: {warning}", markup=False, soft_wrap=True)

    def _print_leaks(self, console: Console) -> None:
        console.print(leaks.told(self.leaks), markup=False, soft_wrap=True)
        if found := leaks.cells(self.leaks):
            table = tables.table(leaks.HEAD, leaks.HEAD[1:5])
            for row in found:
                table.add_row(*row)
            console.print(table)


def check(
    source: config.Source, overrides: Iterable[str] = (), *, trust_remote_code: bool = False
) -> CheckReport:
    """Look at everything but the weights.

    Raises:
        RecipeError: every problem of keys, names, options, files, columns and rows.
    """
    from mtnlp.models.backbone import Backbone

    plan = resolve(source, overrides, look=_bad_rows)
    recipe = plan.recipe
    outline = Backbone.outline(
        recipe.model.backbone,
        revision=recipe.model.revision,
        family=recipe.model.family,
        trust_remote_code=trust_remote_code,
    )
    assemble.check_backbone(recipe, outline.family, outline.max_length)
    model = assemble.build_model(recipe, plan.specs, outline)
    assemble.build_balancer(recipe, model)
    room.require(recipe, model)
    encoder = assemble.encoder_for(recipe, outline.tokenizer, outline.family)
    splits, problems = _all_stores(plan, encoder)
    if problems:
        raise RecipeError(config.label(source), problems)
    sizes = [len(stores["train"]) for stores in splits]
    steps = total_steps(recipe, sizes)
    quota = Quota(
        phases_of(recipe, plan.names, sizes),
        examples_per_step=recipe.train.examples_per_step,
        seed=recipe.seed,
    )
    epochs = quota.drawn(steps) / np.array(sizes)
    tasks = [_task(data, stores, seen) for data, stores, seen in zip(plan.data, splits, epochs, strict=True)]
    prompts = tuple(_prompts(plan, encoder))
    memory = {part: size / 2**30 for part, size in room.needed(recipe, model).items()}
    _, engine = assemble.settle(recipe)
    found = leaks.own(plan.data)
    return CheckReport(recipe, outline.family, steps, engine.line, tuple(tasks), memory, prompts, found)


def _bad_rows(recipe: config.Recipe, tasks: Sequence[TaskData], doubtful: bool) -> list[str]:
    """Rows are read when they are tokenised; if something is wrong already, here, to tell all at once."""
    found = [bad_rows(data, split) for data in tasks for split in data.splits] if doubtful else []
    return [problem for problem in found if problem]


def _all_stores(plan: Plan, encoder: Encoder) -> tuple[list[dict[str, TokenStore]], list[str]]:
    """Every split of every task, tokenised; and a sentence per split with a row that cannot be used."""
    problems: list[str] = []
    found = [{split: store_of(data, split, encoder, problems) for split in data.splits} for data in plan.data]
    return found, problems


def _task(data: TaskData, stores: Mapping[str, TokenStore], epochs: float) -> TaskCheck:
    spec, train = data.spec, stores["train"]
    warnings = [*_strange_labels(data), *_unused_splits(data)]
    if epochs > REPEATS:
        warnings.append(
            f"its {len(train):,} training rows will be seen {epochs:.1f} times; more than {REPEATS:.0f} is "
            "seldom worth it. Lower train.steps, or its rate in the sampler."
        )
    cut = [f"{store.truncated:.1%} of {split}" for split, store in stores.items() if store.truncated > 0.05]
    if cut:
        warnings.append(f"rows lose tokens: {', '.join(cut)}; raise model.max_length.")
    lengths = np.asarray(train.length)
    return TaskCheck(
        name=spec.name,
        kind=spec.kind,
        rows={split: len(store) for split, store in stores.items()},
        labels=len(spec.labels or ()),
        tokens_mean=float(lengths.mean()),
        tokens_most=int(lengths.max()),
        truncated=train.truncated,
        epochs=float(epochs),
        held_out="validation" in data.splits and data.rows("validation").held_out,
        warnings=tuple(warnings),
    )


def _strange_labels(data: TaskData) -> list[str]:
    """Labels that occur in an evaluation split and never in train: the model cannot learn them."""
    if not data.spec.parts.labelled:
        return []
    seen = _labels_in(data, "train")
    warnings = []
    for split in (split for split in data.splits if split != "train"):
        unseen = {label: n for label, n in _labels_in(data, split).items() if label not in seen}
        if unseen:
            listed = ", ".join(f"{data.spec.labels[label]} ({n})" for label, n in sorted(unseen.items()))
            warnings.append(f"labels in {split} that are not in train: {listed}.")
    return warnings


def _labels_in(data: TaskData, split: str) -> Counter:
    counts: Counter = Counter()
    rows = data.rows(split)
    for i, row in enumerate(rows):
        target = read_example(data.spec, rows, i, row).target
        counts.update(target if isinstance(target, tuple) else (target,))
    return counts


def _unused_splits(data: TaskData) -> list[str]:
    if set(data.splits) & {"validation", "test"}:
        return []
    return ["no validation or test split: it will be trained and never scored."]


def _prompts(plan: Plan, encoder: Encoder) -> Iterable[tuple[str, str, str]]:
    """The first row of the first tasks; more rows where there are fewer tasks."""
    for i in range(PROMPTS):
        data = plan.data[i % len(plan.data)]
        row = i // len(plan.data)
        if row < len(data.rows("train")):
            example = data.example("train", row)
            if encoder.form == "encoder":
                yield data.spec.name, _inputs(example), _answer(data, example)
            else:
                rendered = render(data.spec, example, shots=shots_of(data.spec))
                yield data.spec.name, rendered.prompt, str(rendered.target)


def _inputs(example: Example) -> str:
    return "\n".join(
        f"{name}: {' | '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}"
        for name, value in example.inputs.items()
        if value is not None
    )


def _answer(data: TaskData, example: Example) -> str:
    labels, target = data.spec.labels, example.target
    if labels is None:
        return str(target)
    return " ".join(labels[i] for i in target) if isinstance(target, tuple) else labels[target]
