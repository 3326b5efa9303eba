"""`mtnlp finetune --add` by command lines: what it passes on, and what a user may get wrong."""

from __future__ import annotations

import json
import re
import shlex

import pytest
import tiny_tasks
from safetensors.torch import load_file, save_file

import mtnlp
from mtnlp import strict_yaml
from mtnlp.runs import publish, train


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a run, its bundle, an unfinished run, a recipe, another backbone, and tasks in files."""
    here = tmp_path_factory.mktemp("made")
    trunk, other = (tiny_tasks.backbone("minilm", here / name) for name in ("trunk", "other"))
    weights = {name: tensor * 2 for name, tensor in load_file(f"{other}/model.safetensors").items()}
    save_file(weights, f"{other}/model.safetensors", {"format": "pt"})
    recipe = tiny_tasks.recipe(trunk, [tiny_tasks.task("own/mood", "classify")], steps=1)
    mtnlp.finetune({**recipe, "name": "mine"}, out=here / "run")
    publish.push(here / "run", str(here / "bundle"))
    mtnlp.finetune({**recipe, "name": "half"}, out=here / "half")
    (here / "half" / "results.json").unlink()
    (here / "recipe.yaml").write_text(json.dumps(recipe), "utf-8")
    for name in ("own/mood", "own/new"):
        task = tiny_tasks.task(name, "classify")
        (here / f"{name[4:]}.yaml").write_text(json.dumps(task), "utf-8")
    return here


def test_tasks_and_keys_reach_training_and_the_run_can_be_used(made, run, tmp_path, monkeypatch):
    monkeypatch.chdir(made)

    added = run("finetune", "--add", "run", "new.yaml", "train.steps=2", "--out", tmp_path / "plus")
    scored = run("predict", tmp_path / "plus", "--task", "own/new", "--input", text(tmp_path))

    assert added.code == 0 and "1 task unchanged (SHA-256 of their weights)." in added.out
    assert "Added to run, whose 1 task is not touched: own/new." in added.out
    assert "2 steps of" in added.out and scored.code == 0 and '"label"' in scored.out
    assert strict_yaml.read(tmp_path / "plus" / "recipe.yaml")["tasks"][1] == str(made / "new.yaml")


def text(folder):
    (folder / "rows.txt").write_text("fine\n", "utf-8")
    return folder / "rows.txt"


@pytest.mark.parametrize("written", [True, False])
def test_an_interruption_says_how_to_go_on(made, run, tmp_path, monkeypatch, written):
    def finetune(*args, **more):
        if written:
            for name in ("recipe.yaml", "tasks.json"):
                (tmp_path / "runs" / "mine-plus").mkdir(parents=True, exist_ok=True)
                (tmp_path / "runs" / "mine-plus" / name).write_text("")
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "finetune", finetune)
    words = ["finetune", str(made / "new.yaml"), "train.steps=2", "--add", str(made / "bundle"), "--backbone"]
    words.append(str(made / "trunk"))

    found = run(*words)

    assert found.code == 130
    again = shlex.join(["mtnlp", *words])
    if written:
        assert found.err == f"mtnlp: interrupted. To go on from the last checkpoint: {again} --resume\n"
    else:
        assert found.err == f"mtnlp: interrupted. Nothing was written yet; start again with: {again}\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["run", "nwe.yaml"], r"No task is called 'nwe.yaml' .* Did you mean 'new.yaml'"),
        (
            ["run", "train.steps=2"],
            r"--add: name the tasks to be added, as in `mtnlp finetune --add run",
        ),
        (
            ["run", "mood.yaml"],
            r"run has a task own/mood already. .* \{use: mood.yaml, name: OTHER",
        ),
        (["run", "new.yaml", "new.yaml"], "tasks: 2 tasks are called own/new"),
        (["run", "recipe.yaml"], "this is a recipe, not a task"),
        (
            ["run", "new.yaml", "model.pooling=first"],
            r"model.pooling: the model is that of run, .* Leave it",
        ),
        (["run", "new.yaml", "train.stepz=2"], "train.stepz: no such key. Did you mean 'steps'"),
        (["run", "new.yaml", "--out", "run", "--force"], "run itself is left as it is"),
        (["run", "new.yaml", "--backbone", "trunk"], "--backbone goes with a bundle, and run holds no"),
        (["run", "new.yaml", "--resume", "--out", "none"], "--resume: there is no run in none"),
        (["half", "new.yaml"], "half holds no results.json: its training has not finished"),
        (["recipe.yaml", "new.yaml"], "--add: recipe.yaml is a recipe; train it first"),
        (["quickstart", "new.yaml"], "--add: quickstart is a recipe; train it first"),
        (["nowhere", "new.yaml"], "nowhere is not a run folder"),
        (["trunk", "new.yaml"], "trunk is not a run folder"),
        (["bundle", "new.yaml"], "its backbone, 'trunk', was a folder of whoever .* --backbone FOLDER"),
        (["bundle", "new.yaml", "--backbone", "other"], "it was trained on trunk, and .* has other weights"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_added_is_one_message(made, run, tmp_path, monkeypatch, args, said):
    monkeypatch.chdir(made)

    found = run("finetune", "--add", *args, *([] if "--out" in args else ["--out", tmp_path / "plus"]))

    assert found.code == 2 and found.err.startswith("mtnlp: ") and "Traceback" not in found.err
    assert re.search(said, found.err, re.DOTALL), found.err
    assert not (tmp_path / "plus").exists() and not (made / "none").exists()


def test_a_backbone_without_add_is_refused(made, run):
    found = run("finetune", made / "recipe.yaml", "--backbone", made / "trunk")

    assert found.code == 2 and "--backbone goes with --add" in found.err
