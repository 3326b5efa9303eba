"""Every shipped recipe, end to end: two steps, a run folder, and answers from what it holds.

Nothing is left out but size: backbones are tiny random networks of the same family (all but `minilm`, where
it is installed), hub tasks are a few rows of the same columns, other tasks keep some of their rows
(few_rows.py). A new recipe is tested unasked.
"""

from __future__ import annotations

import json

import pytest
from few_rows import hub_row, small, specs_of
from tiny_hub import stand_in

import mtnlp
from mtnlp import config
from mtnlp.data.task_data import TaskData
from mtnlp.models import places
from mtnlp.tasks.spec import TaskSpec

STEPS = 2
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


def some_row(spec: TaskSpec) -> dict:
    return hub_row(spec.name) if spec.source is None else TaskData.open(spec).rows("train")[0]


@pytest.mark.parametrize("name", config.shipped())
def test_a_recipe_trains_and_answers(name, tmp_path, monkeypatch):
    recipe = config.load(name)
    backbone, tasks = recipe.model.backbone, specs_of(recipe)
    overrides = [f"tasks={json.dumps([small(*task) for task in tasks])}", f"train.steps={STEPS}"]
    overrides += ["train.examples_per_step=8", "eval.every=1", "eval.rows=4"]
    if backbone not in places.ALIASES:
        overrides.append(f"model.backbone={stand_in(backbone, tmp_path / 'backbone')}")
    elif backbone != "minilm" or places.packaged() is None:
        folder = stand_in(backbone, tmp_path / "backbone")
        monkeypatch.setattr(places, "packaged", lambda: folder)

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
