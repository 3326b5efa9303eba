"""A trained run folder as a model that answers rows, and its scores."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtnlp import assemble
from mtnlp.bench.evaluate import Report, evaluate
from mtnlp.bench.predict import Predictor, Questions
from mtnlp.config import Recipe
from mtnlp.errors import DataError, MtnlpError, RecipeError, did_you_mean
from mtnlp.runs.folder import RunFolder
from mtnlp.runs.session import questions_of, shots_of, train_targets
from mtnlp.tasks.examples import example
from mtnlp.tasks.spec import Example, TaskSpec

if TYPE_CHECKING:
    from mtnlp.data.task_data import TaskData


class Model:
    """A trained model with all of its tasks. `mtnlp.load(run)` makes it.

    Args:
        recipe: the run's recipe; tasks: name -> task, in the order of the model's task indices.
    """

    def __init__(self, recipe: Recipe, tasks: Mapping[str, TaskSpec], predictor: Predictor) -> None:
        self.recipe, self.tasks, self.predictor = recipe, dict(tasks), predictor
        self._index = {name: i for i, name in enumerate(self.tasks)}
        self._shots: dict[str, tuple[Example, ...]] = {}

    def predict(self, rows: Sequence[Mapping[str, Any]], *, task: str | None = None) -> list[dict[str, Any]]:
        """Answer rows.

        Args:
            rows: dicts with the task's fields (`text`, `text_pair`, `tokens` ...) or its source's columns.
            task: which task; may be left out when there is one.

        Returns:
            One dict per row. classify, pair, ordinal: label, score (its probability), scores per label. choose: choice,
            index, scores. multilabel: labels, scores. regress: score. tag: tags, one per token. span: answer.
            generate: text.

        Raises:
            MtnlpError: no such task. DataError: a row without the fields of the task; names the row.
        """
        spec = self.tasks[self.chosen(task)]
        examples = [_question(spec, row, i) for i, row in enumerate(rows)]
        asked = Questions(spec, examples, shots=self.shots(spec.name))
        index = self._index[spec.name]
        answers = self.predictor({index: asked})[index]
        return [_readable(spec, one, answer, self.predictor.encoder.form)
                for one, answer in zip(examples, answers, strict=True)]

    def chosen(self, task: str | None) -> str:
        """The task that was named, or the only one."""
        if task is None and len(self.tasks) == 1:
            return next(iter(self.tasks))
        if task is None:
            raise MtnlpError(f"This run has {len(self.tasks)} tasks; say which. Known: {', '.join(self.tasks)}.")
        if task not in self.tasks:
            raise MtnlpError(f"No task of this run is called {task!r}. {did_you_mean(task, self.tasks)}")
        return task

    def shots(self, task: str) -> tuple[Example, ...]:
        """The solved examples in this task's prompts; the source is opened for them if there are any."""
        spec = self.tasks[task]
        if not spec.shots or self.predictor.encoder.form == "encoder":
            return ()
        if task not in self._shots:
            self._shots[task] = shots_of(_opened(spec))
        return self._shots[task]


def load(run: Path | str, *, trust_remote_code: bool = False) -> Model:
    """The model of a run folder.

    Raises:
        MtnlpError: no run folder, an unfinished or damaged one.
    """
    from mtnlp.train.checkpoint import read_table

    folder = RunFolder(Path(run))
    recipe, specs = folder.read_recipe(), folder.read_specs()
    if not folder.weights.exists():
        raise MtnlpError(f"{folder.path} holds no {folder.weights.name}: its training has not finished. Go on with "
                         f"`mtnlp finetune {folder.recipe} --out {folder.path} --resume`.")
    if problems := assemble.load_imports(recipe):
        raise RecipeError(folder.recipe, problems)
    accelerator = assemble.build_accelerator(recipe)
    backbone = assemble.build_backbone(recipe, trust_remote_code=trust_remote_code)
    encoder = assemble.encoder_for(recipe, backbone.tokenizer, backbone.family)
    model = assemble.build_model(recipe, specs, backbone)
    model.load_trainable_state(read_table(folder.weights))
    model.to(accelerator.device)
    predictor = assemble.build_predictor(recipe, model, encoder, accelerator)
    return Model(recipe, {spec.name: spec for spec in specs}, predictor)


def evaluate_run(run: Path | str, tasks: Sequence[str] | None = None, split: str = "test",
                 limit: int | None = None, *, trust_remote_code: bool = False) -> Report:
    """Scores of a run folder on a split of its tasks, on at most `limit` rows of each.

    Raises:
        MtnlpError: unknown task; a task without that split or whose rows lived in memory.
    """
    started = time.perf_counter()
    model = load(run, trust_remote_code=trust_remote_code)
    names = list(model.tasks) if tasks is None else [model.chosen(name) for name in tasks]
    questions, targets = {}, {}
    for name in names:
        data = _opened(model.tasks[name])
        index = list(model.tasks).index(name)
        questions[index] = questions_of(data, split, most=limit)
        targets[index] = train_targets(data)
    report = evaluate(model.predictor, questions, targets, split=split)
    about = {"run": str(run), "backbone": model.recipe.model.backbone, "strategy": model.recipe.model.strategy.name,
             "seconds": round(time.perf_counter() - started, 1)}
    return Report(report.scores, about)


def _opened(spec: TaskSpec) -> TaskData:
    from mtnlp.data.task_data import TaskData

    if spec.source is None:
        raise MtnlpError(f"{spec.name}: its rows were given in memory and are not in the run folder. Use "
                         "mtnlp.load(run).predict on rows instead.")
    return TaskData.open(spec)


def _question(spec: TaskSpec, row: Mapping[str, Any], index: int) -> Example:
    """A row without its answer. Columns may have the source's names or the task's own."""
    renamed = {name: name for name in (*spec.parts.inputs, *spec.parts.optional) if name in row}
    plain = spec.replace(fields={**spec.fields, **renamed})
    try:
        return example(plain, {k: v for k, v in row.items() if k in renamed or k != spec.parts.target}, index,
                       needs_target=False)
    except DataError as error:
        raise DataError(f"row {index + 1}: {error}") from None


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
