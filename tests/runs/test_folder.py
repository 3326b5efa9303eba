"""The run folder: what it takes for a run, and when it lets one go on."""

from __future__ import annotations

import json

import pytest
from tiny_hub import stand_in

import mtnlp
from mtnlp.resolve import resolve

ROWS = [{"text": f"row {i}", "label": "xyz"[i % 3]} for i in range(30)]
TASK = {"name": "toy", "kind": "classify", "source": "toy"}


@pytest.fixture
def lab(tmp_path):
    """A folder with a backbone, rows of a task, and a recipe that names both by relative paths."""
    stand_in("minilm", tmp_path / "bb")
    write(tmp_path, ROWS)
    model = {"backbone": "bb", "strategy": "heads"}
    recipe = {"model": model, "tasks": [TASK], "train": {"steps": 2, "examples_per_step": 4}}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    return tmp_path


def write(lab, rows):
    (lab / "toy").mkdir(exist_ok=True)
    (lab / "toy" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_folder_with_a_recipe_of_its_author_is_no_run_and_is_never_removed(lab):
    own = lab / "own"
    own.mkdir()
    (own / "recipe.yaml").write_text((lab / "r.yaml").read_text())
    (own / "thesis.txt").write_text("years of work")

    for options in ({}, {"force": True}, {"resume": True}):
        with pytest.raises(mtnlp.MtnlpError) as refused:
            mtnlp.finetune(lab / "r.yaml", out=own, **options)
        expected = "there is no run in" if "resume" in options else "own holds files but no run, and --force"
        assert expected in str(refused.value)
    assert {path.name for path in own.iterdir()} == {"recipe.yaml", "thesis.txt"}

    mtnlp.finetune(lab / "r.yaml", out=lab / "run")
    (lab / "run" / "old.txt").touch()
    mtnlp.finetune(lab / "r.yaml", out=lab / "run", force=True)
    assert not (lab / "run" / "old.txt").exists() and (lab / "run" / "results.json").exists()


def test_a_run_is_not_resumed_on_rows_or_labels_that_have_changed(lab):
    mtnlp.finetune(lab / "r.yaml", out=lab / "run")
    count = json.loads((lab / "run" / "tasks.json").read_text())[0]["rows"]["train"].partition(",")[0]

    for rows, told in [
        (
            [row for row in ROWS if row["label"] != "z"],
            ("rows of validation changed", "labels changed (['x'"),
        ),
        ([{**ROWS[0], "text": "row 0!"}, *ROWS[1:]], ("rows of train changed",)),
    ]:
        write(lab, rows)
        with pytest.raises(mtnlp.MtnlpError, match="its tasks have changed") as refused:
            mtnlp.finetune(lab / "r.yaml", out=lab / "run", resume=True)
        assert f"\n  toy: rows of train changed ({count} then, " in str(refused.value)
        assert all(part in str(refused.value) for part in told) and "--force" in str(refused.value)

    write(lab, ROWS)
    assert mtnlp.finetune(lab / "r.yaml", out=lab / "run", resume=True).scores


def test_a_run_on_a_relative_backbone_works_from_any_directory(lab, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))

    mtnlp.finetune(lab / "r.yaml", out="run")  # beside the recipe, not here
    monkeypatch.chdir(lab)
    run = mtnlp.load(next(lab.parent.glob("elsewhere*/run")))

    assert run.recipe.model.backbone == str(lab / "bb") and run.predict([{"text": "row 1"}])
    for folder in ("minilm", "there/base", "there/bb"):
        (lab / folder).mkdir(parents=True)
    monkeypatch.chdir(lab / "there")
    for name, place in [
        ("bb", lab / "bb"),
        ("base", lab / "there" / "base"),
        ("minilm", "minilm"),
        ("a/b", "a/b"),
    ]:
        assert resolve(lab / "r.yaml", [f"model.backbone={name}"]).recipe.model.backbone == str(place)
