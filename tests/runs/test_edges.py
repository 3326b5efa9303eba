"""Runs a little out of the ordinary: methods of one's own, tasks without scores, metrics that are none."""

from __future__ import annotations

import json

import pytest
from tiny_hub import stand_in

import mtnlp
from mtnlp import strategies
from mtnlp.train.checkpoint import checkpoints, read_table

ROWS = [{"text": "a b", "label": "x"}, {"text": "c d", "label": "y"}] * 8
TASK = {"name": "toy", "kind": "classify", "source": {"train": ROWS, "validation": ROWS}}
STRATEGY = """
from mtnlp import strategies
from mtnlp.strategies.heads import Heads

@strategies.register("heads-of-mine")
class Mine(Heads):
    pass
"""


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return str(stand_in("minilm", tmp_path_factory.mktemp("backbone")))


def recipe(backbone, **changes):
    model = {"backbone": backbone, "strategy": changes.pop("strategy", "heads")}
    return {"model": model, "tasks": [TASK], "train": {"steps": 2, "examples_per_step": 4}, **changes}


def test_a_run_with_a_strategy_of_its_own_is_loaded_where_nothing_has_imported_it(
    backbone, tmp_path, monkeypatch
):
    (tmp_path / "mine.py").write_text(STRATEGY)
    own = recipe(backbone, strategy="heads-of-mine", imports=["mine.py"], base=str(tmp_path))
    mtnlp.finetune(own, out=tmp_path / "run")
    monkeypatch.delitem(strategies._registry._added, "heads-of-mine")

    model = mtnlp.load(tmp_path / "run")

    assert type(model.predictor.model.strategy).__name__ == "Mine"
    (tmp_path / "mine.py").unlink()
    with pytest.raises(mtnlp.RecipeError, match=r"imports: mine\.py: .*No such file"):
        mtnlp.load(tmp_path / "run")


def test_tasks_with_train_rows_only_are_trained_to_the_last_step_and_not_scored(backbone, tmp_path):
    tasks = [{**TASK, "source": {"train": ROWS}}]

    report = mtnlp.finetune(recipe(backbone, tasks=tasks, eval={"every": 1}), out=tmp_path / "run")

    assert report.scores == ()
    (last,) = checkpoints(tmp_path / "run" / "checkpoints")[-1:]
    kept, final = read_table(tmp_path / "run" / "model.safetensors"), read_table(last / "weights.safetensors")
    assert last.name == "step-00000002" and kept.keys() == final.keys()
    assert all((kept[name] == final[name]).all() for name in kept)
    assert mtnlp.load(tmp_path / "run").predict([{"text": "a b"}])[0]["label"] in ("x", "y")


def test_metrics_that_do_not_exist_or_do_not_fit_are_told_before_anything_is_written(backbone, tmp_path):
    tasks = [{**TASK, "metrics": "acuracy"}, {**TASK, "name": "other", "metrics": "rouge_l"}]

    with pytest.raises(mtnlp.RecipeError) as refused:
        mtnlp.finetune(recipe(backbone, tasks=tasks, sampler="unifrm"), out=tmp_path / "run")

    assert not (tmp_path / "run").exists()
    problems = "\n".join(refused.value.problems)
    assert len(refused.value.problems) == 3
    assert "toy: metrics: No metric is called 'acuracy'. Did you mean 'accuracy'" in problems
    assert "other: metrics: The metric rouge_l does not score classify tasks." in problems


def test_the_last_line_of_metrics_is_the_evaluation_that_results_agree_with(backbone, tmp_path):
    report = mtnlp.finetune(recipe(backbone), out=tmp_path / "run")

    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [line["kind"] for line in lines] == ["step", "step", "eval"]
    assert lines[-1]["aggregate"] == pytest.approx(report.mean) == pytest.approx(results["mean"])
