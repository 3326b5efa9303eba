"""A trained run folder as a model that answers rows, and its scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtnlp import assemble
from mtnlp.bench.questions import Questions
from mtnlp.config import Recipe
from mtnlp.errors import DataError, MtnlpError, RecipeError, did_you_mean, shown
from mtnlp.resolve import named_tasks
from mtnlp.runs import trained
from mtnlp.runs.session import bad_rows, shots_of
from mtnlp.runs.trained import Trained
from mtnlp.tasks.examples import check_columns, example
from mtnlp.tasks.spec import Example, TaskSpec

if TYPE_CHECKING:
    from mtnlp.bench.evaluate import Report
    from mtnlp.bench.predict import Predictor
    from mtnlp.data.task_data import TaskData
    from mtnlp.models.backbone import Backbone
    from mtnlp.runs.targets import RunTarget

_NO_COLUMN = "\0"  # where no row has an answer: it is not asked for, and whatever stands there is no mistake


class Model:
    """A trained model with all of its tasks. `mtnlp.load(run)` makes it.

    Args:
        recipe: the run's recipe; tasks: name -> task, in the order of the model's task indices.
    """

    def __init__(self, recipe: Recipe, tasks: Mapping[str, TaskSpec], predictor: Predictor) -> None:
        self.recipe, self.tasks, self.predictor = recipe, dict(tasks), predictor
        self._index = {name: i for i, name in enumerate(self.tasks)}

    def predict(
        self,
        rows: Iterable[Mapping[str, Any]],
        *,
        task: str | None = None,
        places: Sequence[str] | None = None,
    ) -> list[dict[str, Any]]:
        """Answer rows.

        Args:
            rows: dicts with the task's fields (`text`, `text_pair`, `tokens` ...) or its source's columns;
                with all columns that it is read from, a row counts as one of the source.
            task: which task; may be left out when there is one.
            places: what to call each row in a message; default: "row 1", "row 2" ...

        Returns:
            One dict per row. classify, pair, ordinal: label, score (its probability), scores per label.
            choose: choice, index, scores. multilabel: labels, and on an encoder scores. regress: score.
            tag: tokens, tags. span: answer. generate: text.

        Raises:
            MtnlpError: no such task. DataError: a row without the fields of the task; names the row.
        """
        spec = self.tasks[self.chosen(task)]
        if isinstance(rows, str | Mapping) or not isinstance(rows, Iterable):
            raise DataError(
                f"rows: expected a list of rows, found one {type(rows).__name__}; put it in a list."
            )
        rows = list(rows)
        places = places or [f"row {i + 1}" for i in range(len(rows))]
        examples = [
            _question(spec, row, i, place) for i, (row, place) in enumerate(zip(rows, places, strict=True))
        ]
        asked = Questions(spec, examples, shots=shots_of(spec))
        index = self._index[spec.name]
        answers = self.predictor({index: asked})[index]
        return [
            _readable(spec, one, answer, self.predictor.encoder.form)
            for one, answer in zip(examples, answers, strict=True)
        ]

    def chosen(self, task: str | None) -> str:
        """The task that was named, or the only one."""
        if task is None and len(self.tasks) == 1:
            return next(iter(self.tasks))
        if task is None:
            raise MtnlpError(
                f"This run has {len(self.tasks)} tasks; say which. Known: {', '.join(self.tasks)}."
            )
        return _chosen(self.tasks, task)


def load(
    run: Path | str,
    *,
    revision: str | None = None,
    backbone: str | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """The model of a run folder or of a bundle.

    Raises:
        MtnlpError: neither; an unfinished run, a damaged bundle, another backbone than it was trained on.
    """
    found = trained.find(run, revision=revision, backbone=backbone)
    return live(found, trust_remote_code=trust_remote_code)


def live(found: Trained, *, backbone: Backbone | None = None, trust_remote_code: bool = False) -> Model:
    """The model that was found, loaded.

    Args:
        backbone: its backbone, where it is loaded already; it is edited.
    """
    found.require(trust_remote_code=trust_remote_code)
    recipe, specs = found.recipe, found.specs
    recipe, _ = assemble.settle(recipe)  # early runs did not keep what was chosen
    accelerator = assemble.build_accelerator(recipe)
    backbone = backbone or assemble.build_backbone(recipe, trust_remote_code=trust_remote_code)
    found.check(backbone)
    encoder = assemble.encoder_for(recipe, backbone.tokenizer, backbone.family)
    model = assemble.build_model(recipe, specs, backbone)
    found.fill(model)
    model.to(accelerator.device)
    predictor = assemble.build_predictor(recipe, model, encoder, accelerator)
    return Model(recipe, {spec.name: spec for spec in specs}, predictor)


def evaluate_run(
    run: Path | str,
    tasks: str | Sequence[str] | None = None,
    split: str = "test",
    limit: int | None = None,
    *,
    trust_remote_code: bool = False,
) -> Report:
    """Scores of a run folder on a split of its tasks, on at most `limit` rows of each; see mtnlp.evaluate.

    Raises:
        MtnlpError: unknown task; no such split; rows that lived in memory, or cannot be used; limit below 1.
    """
    if limit is not None and limit < 1:
        raise MtnlpError(f"limit: expected at least 1 row, got {limit}. Leave it out for all rows.")
    from mtnlp.runs import harness, targets

    target = targets.RunTarget(trained.find(run), trust_remote_code=trust_remote_code)
    return harness.evaluate_own(target, tasks, split, limit).report


def open_tasks(
    target: RunTarget, tasks: str | Sequence[str] | None, split: str, limit: int | None
) -> list[TaskData]:
    """The chosen tasks of a run with their rows, every row that will be asked being usable.

    Raises:
        MtnlpError: unknown task; no such split; rows that lived in memory, or cannot be used.
    """
    return _opened_all(target.recipe, _wanted(target.tasks, tasks), split, limit, where=target.found.where)


def _wanted(tasks: Mapping[str, TaskSpec], names: str | Sequence[str] | None) -> list[TaskSpec]:
    """The tasks that names and patterns over them stand for, each once; None = all."""
    if names is None:
        return list(tasks.values())
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",") if name.strip()]
    if not names:
        raise MtnlpError("tasks: names no task. Give some as a,b, or leave it out for all.")
    found = [[task for task in tasks if fnmatchcase(task, name)] or [_chosen(tasks, name)] for name in names]
    return [tasks[name] for name in dict.fromkeys(chain.from_iterable(found))]


def _chosen(tasks: Mapping[str, TaskSpec], name: str) -> str:
    if name not in tasks:
        raise MtnlpError(f"No task of this run is called {shown(name)}. {did_you_mean(name, tasks)}")
    return name


def _opened_all(
    recipe: Recipe, specs: Sequence[TaskSpec], split: str, limit: int | None, *, where: Path
) -> list[TaskData]:
    """The tasks with their rows; RecipeError with all that is wrong with any of them."""
    opened, problems, splits = [], [], set()
    for spec in specs:
        try:
            data = open_task(spec, recipe)
            splits |= set(data.splits)
            data.rows(split)
            opened.append(data)
            problems += [bad] if (bad := bad_rows(data, split, most=limit)) else []
        except MtnlpError as error:
            text = str(error)
            problems.append(text if text.startswith(f"{spec.name}: ") else f"{spec.name}: {text}")
    if problems:
        known = [name for name in ("test", "validation") if name in splits - {split}]
        raise RecipeError(
            where, problems + ([f"Choose with --split {known[0]}."] if known and not opened else [])
        )
    return opened


def open_task(spec: TaskSpec, recipe: Recipe) -> TaskData:
    """A task of a run, with its rows.

    Where they are not in files (a Natural-Instructions task, or one that a script under `imports` registers),
    they are found again by the name in the recipe.
    """
    from mtnlp.data.task_data import TaskData

    if spec.source is not None:
        return TaskData.open(spec)
    for found in named_tasks(recipe):
        if found.name == spec.name:
            return TaskData.open(spec.replace(source=found.source))
    raise MtnlpError(
        f"{spec.name}: its rows are not in the folder (they were given in memory, or it is a bundle). Name a "
        "--suite that has them, or use mtnlp.load(run).predict on rows."
    )


def _question(spec: TaskSpec, row: Mapping[str, Any], index: int, place: str) -> Example:
    """A row without its answer: in the source's columns if it has all that it needs, else in the task's."""
    if not isinstance(row, Mapping):
        fields = ", ".join(f"{name!r}: ..." for name in spec.parts.inputs)
        raise DataError(f"{place}: expected a mapping of fields like {{{fields}}}, found {shown(row)}.")
    row = {str(name): value for name, value in row.items()}
    fields = {**spec.fields, spec.parts.target: _NO_COLUMN}
    if check_columns(spec, list(row), needs_target=False):
        fields |= {name: name for name in (*spec.parts.inputs, *spec.parts.optional) if name in row}
    try:
        return example(spec.replace(fields=fields), row, index, needs_target=False)
    except DataError as error:
        raise DataError(f"{place}: {error}") from None


def _readable(spec: TaskSpec, asked: Example, answer: Mapping[str, Any], form: str) -> dict[str, Any]:
    """An answer in words instead of indices."""
    value, labels, scores = answer["value"], spec.labels or (), answer.get("scores")
    if spec.kind in ("classify", "pair", "ordinal"):
        named = dict(zip(labels, _shares(scores, form), strict=True))
        return {"label": labels[value], "score": named[labels[value]], "scores": named}
    if spec.kind == "choose":
        return {"choice": asked.inputs["choices"][value], "index": value, "scores": _shares(scores, form)}
    if spec.kind == "multilabel":
        found = {"labels": [labels[i] for i in value]}
        return found | ({"scores": dict(zip(labels, scores, strict=True))} if scores is not None else {})
    if spec.kind == "tag":
        return {"tokens": list(asked.inputs["tokens"]), "tags": [labels[i] for i in value]}
    return {{"regress": "score", "span": "answer", "generate": "text"}[spec.kind]: value}


def _shares(scores: Sequence[float], form: str) -> list[float]:
    """Probabilities: heads give them, text forms give log-likelihoods of the options."""
    if form == "encoder":
        return list(scores)
    import numpy as np

    powers = np.exp(np.asarray(scores) - max(scores))
    return (powers / powers.sum()).tolist()
