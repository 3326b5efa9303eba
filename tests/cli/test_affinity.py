"""`mtnlp affinity` by command lines: its options, and what a user may get wrong."""

from __future__ import annotations

import json
import re
import types

import pytest
import tiny_tasks

from mtnlp.runs import affinity as room


@pytest.fixture
def recipe(tmp_path):
    """A recipe file of two tasks; its backbone is tiny."""
    tasks = [tiny_tasks.task(name, "classify") for name in ("own/mood", "own/topic")]
    folder = tiny_tasks.backbone("minilm", tmp_path / "backbone")
    path = tmp_path / "two.json"
    path.write_text(json.dumps(tiny_tasks.recipe(folder, tasks)))
    return path


def test_options_reach_the_room_and_runs_may_be_listed_or_repeated(recipe, run, monkeypatch):
    calls = []

    def affinity(*args, **more):
        calls.append((args, more))
        return types.SimpleNamespace(print=lambda: print("the tables"))

    monkeypatch.setattr(room, "affinity", affinity)
    found = run("affinity", recipe, "train.lr=1e-4", "--runs", "a, b", "--runs", "c", "--groups", "2")

    (((source, overrides), more),) = calls
    assert found.code == 0 and found.out == "the tables\n"
    assert (source, overrides, more["steps"], more["groups"]) == (str(recipe), ["train.lr=1e-4"], 50, 2)
    assert more["runs"] == ["a", "b", "c"] and more["out"] is None


def test_an_interruption_leaves_nothing(recipe, run, monkeypatch, tmp_path):
    def affinity(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "affinity", affinity)
    found = run("affinity", recipe, "--out", tmp_path / "out")

    assert found.code == 130 and "interrupted. Nothing was written." in found.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--groups", "0"], "--groups: expected at least 1, got 0. Leave it out for any number."),
        (["--steps", "1"], "--steps: expected at least 2, got 1"),
        (["train.stepz=3"], "train.stepz: no such key. Did you mean 'steps'"),
        (["tasks=[]"], "tasks: name at least one"),
        (["model.strategy=heads"], r"with strategy heads tasks share no trained .* add model.strategy=lora"),
        (["--runs", "nowhere"], "nowhere"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence_and_nothing_is_written(args, said, recipe, run, tmp_path):
    found = run("affinity", recipe, *args, "--out", tmp_path / "out")

    assert found.code == 2 and "Traceback" not in found.err and not (tmp_path / "out").exists()
    assert re.search(said, found.err), found.err


def test_a_recipe_of_one_task_has_nobody_to_help_or_hurt_it(run, tmp_path):
    data = {"model": {"backbone": "minilm"}, "tasks": [tiny_tasks.task("own/mood", "classify")]}
    (tmp_path / "one.yaml").write_text(json.dumps(data))

    found = run("affinity", tmp_path / "one.yaml")

    assert (
        found.code == 2 and "one has one task, own/mood, so there is nobody to help or hurt it" in found.err
    )


def test_a_folder_of_other_things_is_left_alone(recipe, run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    (tmp_path / "file").write_text("dear")

    full, file = (run("affinity", recipe, "--out", tmp_path / name) for name in ("full", "file"))

    assert full.code == 2 and "holds other files (letter.txt)" in full.err
    assert file.code == 2 and "is a file; name a folder" in file.err
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["letter.txt"]
