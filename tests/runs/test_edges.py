"""Runs a little out of the ordinary: methods of one's own, tasks without scores, metrics that are none."""

from __future__ import annotations

import json
import os
import re
import stat

import pytest
from tiny_hub import stand_in

import mtnlp
from mtnlp import strategies
from mtnlp.bench.predict import Predictor
from mtnlp.train.checkpoint import checkpoints, read_table

ROWS = [{"text": "a b", "label": "x"}, {"text": "c d", "label": "y"}] * 8
TASK = {"name": "toy", "kind": "classify", "source": {"train": ROWS, "validation": ROWS}}
STRATEGY = """
from mtnlp import strategies
from mtnlp.bench.predict import Predictor
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


def test_the_last_evaluation_in_the_metrics_is_the_one_that_results_agree_with(backbone, tmp_path):
    report = mtnlp.finetune(recipe(backbone), out=tmp_path / "run")

    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [line["kind"] for line in lines] == ["step", "step", "eval", "ledger"]
    assert lines[-2]["aggregate"] == pytest.approx(report.mean) == pytest.approx(results["mean"])


def test_a_task_without_validation_is_never_judged_on_test_while_it_trains(backbone, tmp_path):
    rows = [{"text": f"row {i}", "label": "xy"[i % 2]} for i in range(40)]
    test = [{"text": f"unseen {i}", "label": "x"} for i in range(5)]
    copies = {
        **TASK,
        "name": "copies",
        "source": {"train": ROWS, "test": test},
    }  # nothing can be held out of it
    tasks = [{**TASK, "source": {"train": rows, "test": test}}, copies]
    seen = []

    def spy(self, questions):
        seen.append(
            {part.spec.name: {one.inputs["text"] for one in part.examples} for part in questions.values()}
        )
        return call(self, questions)

    call = Predictor.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Predictor, "__call__", spy)
        report = mtnlp.finetune(recipe(backbone, tasks=tasks, eval={"every": 1}), out=tmp_path / "run")

    assert [(score.task, score.split, score.n) for score in report.scores] == [
        ("toy", "test", 5),
        ("copies", "test", 5),
    ]
    *training, last = seen
    assert len(training) == 2 and all(set(questions) == {"toy"} for questions in training)
    assert training[0]["toy"] < {row["text"] for row in rows} and len(training[0]["toy"]) < 9
    assert last["toy"] == last["copies"] == {row["text"] for row in test}


def test_shots_are_kept_with_the_run_and_are_no_training_rows(tmp_path):
    rows = [{"text": f"row {i}", "label": "xy"[i % 2]} for i in range(12)]
    task = {**TASK, "source": {"train": rows, "validation": rows[:4]}, "shots": 2}
    trunk = str(stand_in("t5", tmp_path / "t5"))
    mtnlp.finetune(recipe(trunk, tasks=[task], strategy="lora"), out=tmp_path / "run")

    model = mtnlp.load(tmp_path / "run")
    (spec,) = model.tasks.values()
    assert len(spec.demonstrations) == 2 and all(row in rows for row in spec.demonstrations)
    assert model.predict([{"text": "row"}])[0]["label"] in ("x", "y")


def test_rows_in_memory_are_told_apart_but_not_kept(backbone, tmp_path):
    run, again = tmp_path / "run", recipe(backbone)
    mtnlp.finetune(again, out=run)

    assert "a b" not in (run / "recipe.yaml").read_text() + (run / "tasks.json").read_text()
    assert mtnlp.finetune(again, out=run, resume=True).scores
    other = [{**TASK, "source": {"train": ROWS[1:], "validation": ROWS}}]
    with pytest.raises(mtnlp.MtnlpError, match="run of another recipe; it differs in tasks"):
        mtnlp.finetune(recipe(backbone, tasks=other), out=run, resume=True)
    with pytest.raises(mtnlp.RecipeError, match="toy: its rows were given in memory"):
        mtnlp.finetune(run / "recipe.yaml", out=run, resume=True)
    with pytest.raises(
        mtnlp.RecipeError, match=r"toy: its rows are not in the folder.*mtnlp.load\(run\).predict"
    ):
        mtnlp.evaluate(run)


def test_rows_that_a_name_leads_to_can_be_scored_again(tmp_path):
    rows = [{"input": f"say {i}", "output": ["it"]} for i in range(30)]
    (tmp_path / "say.json").write_text(json.dumps({"Definition": ["Say it."], "Instances": rows}))
    trunk = str(stand_in("t5", tmp_path / "t5"))
    report = mtnlp.finetune(
        recipe(trunk, tasks=[str(tmp_path / "say.json")], strategy="lora"), out=tmp_path / "run"
    )

    again = mtnlp.evaluate(tmp_path / "run", tasks=["say"])

    assert [score.values for score in again.scores] == [score.values for score in report.scores]


def test_model_predict_says_what_a_row_should_be(backbone, tmp_path):
    mtnlp.finetune(recipe(backbone), out=tmp_path / "run")
    model = mtnlp.load(tmp_path / "run")

    assert model.predict([]) == []
    for rows, message in [
        ("a b", "rows: expected a list of rows, found one str"),
        ({"text": "a"}, "rows: expected a list of rows, found one dict"),
        (["a b"], "row 1: expected a mapping of fields like {'text': ...}, found 'a b'"),
        ([{"text": "a"}, {"txt": "a"}], "row 2: text: no column 'text' in the row. Did you mean 'txt'"),
    ]:
        with pytest.raises(mtnlp.DataError, match=re.escape(message)):
            model.predict(rows)


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_every_file_of_a_run_may_be_read_by_whom_the_umask_lets(backbone, tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        mtnlp.finetune(
            recipe(backbone, strategy="lora-per-task", eval={"every": 1, "keep": "best"}),
            out=tmp_path / "run",
        )
    finally:
        os.umask(before)

    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"model.safetensors", "weights.safetensors", "adapter_model.safetensors", "results.json"} <= {
        path.name for path in files
    }
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in files} == {
        path.name: mode for path in files
    }


def test_wandb_writes_into_the_run_folder(backbone, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    mtnlp.finetune(recipe(backbone, track=["wandb"]), out=tmp_path / "run")

    assert list((tmp_path / "here").iterdir()) == []
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
