"""Every shipped recipe, end to end: two steps, a run folder, and answers from what it holds.

Nothing is left out but size: backbones are tiny random networks of the same family (all but `minilm`, where
it is installed), hub tasks are a few rows of the same columns (hub_rows.py), other tasks keep some of their
rows. A new recipe is tested unasked.
"""

from __future__ import annotations

import fnmatch
import json

import pytest
from hub_rows import ROWS
from tiny_hub import stand_in

import mtnlp
from mtnlp import config
from mtnlp.data.task_data import TaskData
from mtnlp.models import _load
from mtnlp.tasks.load import from_mapping, load
from mtnlp.tasks.spec import TaskSpec

STEPS, LIMIT = 2, 24
ANSWER = {
    "classify": {"label", "score", "scores"},
    "pair": {"label", "score", "scores"},
    "ordinal": {"label", "score", "scores"},
    "multilabel": {"labels"},
    "regress": {"score"},
    "choose": {"choice", "index", "scores"},
    "tag": {"tokens", "tags"},
    "span": {"answer"},
    "generate": {"text"},
}


def specs_of(recipe: config.Recipe) -> list[tuple[str | dict, TaskSpec]]:
    """(what `use` takes, task) of every task of a recipe."""
    found = []
    for entry in recipe.tasks:
        if isinstance(entry, str):
            specs = load(entry, recipe.base)
            found += [(entry if len(specs) == 1 else spec.name, spec) for spec in specs]
        else:
            found.append((dict(entry), from_mapping(entry, base=recipe.base, where="recipe")))
    return found


def from_hub(spec: TaskSpec) -> bool:
    return str(spec.source).startswith("hub:")


def hub_row(name: str) -> dict:
    return next(row for pattern, (row, _) in ROWS.items() if fnmatch.fnmatch(name, pattern))


def small(entry: str | dict, spec: TaskSpec) -> dict:
    """The task as a recipe's mapping, with few rows."""
    if from_hub(spec):
        rows = [hub_row(spec.name)] * 6
        return {"use": entry, "source": {"train": rows, "validation": rows[:3]}, "splits": {}}
    return {**(entry if isinstance(entry, dict) else {"use": entry}), "limit": LIMIT}


def some_row(spec: TaskSpec) -> dict:
    return hub_row(spec.name) if spec.source is None else TaskData.open(spec).rows("train")[0]


@pytest.mark.parametrize("name", config.shipped())
def test_a_recipe_trains_and_answers(name, tmp_path, monkeypatch):
    recipe = config.load(name)
    backbone, tasks = recipe.model.backbone, specs_of(recipe)
    overrides = [f"tasks={json.dumps([small(*task) for task in tasks])}", f"train.steps={STEPS}"]
    overrides += ["train.examples_per_step=8", "eval.every=1", "eval.rows=4"]
    if backbone not in _load.ALIASES:
        overrides.append(f"model.backbone={stand_in(backbone, tmp_path / 'backbone')}")
    elif backbone != "minilm" or _load._packaged() is None:
        folder = stand_in(backbone, tmp_path / "backbone")
        monkeypatch.setattr(_load, "_packaged", lambda: folder)

    report = mtnlp.finetune(name, *overrides, out=tmp_path / "run")
    model = mtnlp.load(tmp_path / "run")

    names = [spec.name for _, spec in tasks]
    assert [score.task for score in report.scores] == names == list(model.tasks)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "step"] == [1, STEPS]
    for _, spec in tasks:
        (answer,) = model.predict([some_row(model.tasks[spec.name])], task=spec.name)
        assert ANSWER[spec.kind] <= set(answer)


def test_every_recipe_says_how_to_run_it_and_what_it_costs():
    for name, path in config.shipped().items():
        comments = [line for line in path.read_text("utf-8").splitlines() if line.startswith("#")]

        assert len(comments) >= 3, f"{name}: a line on what it is, then `Run:`, `Cost`"
        assert f"mtnlp finetune recipes/{path.name}" in comments[1] and "Run:" in comments[1]
        assert comments[2].startswith("# Cost")
