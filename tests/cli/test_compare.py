"""`mtnlp compare` by command lines: its options, and what a user may get wrong."""

from __future__ import annotations

import json
import re
import types

import pytest
import tiny_tasks

from mtnlp.runs import compare as room


@pytest.fixture
def recipe(tmp_path):
    """A recipe file of two tasks; its backbone is never loaded here."""
    tasks = [tiny_tasks.task(name, "classify") for name in ("own/mood", "own/topic")]
    path = tmp_path / "two.yaml"
    path.write_text(json.dumps({"model": {"backbone": "minilm"}, "tasks": tasks, "train": {"steps": 2}}))
    return path


def test_options_reach_the_room_and_methods_may_be_listed_or_repeated(recipe, run, monkeypatch):
    calls = []

    def compare(*args, **more):
        calls.append((args, more))
        return types.SimpleNamespace(print=lambda: print("the tables"))

    monkeypatch.setattr(room, "compare", compare)
    found = run("compare", recipe, "train.lr=1e-4", "--strategies", "lora, full", "--strategies", "heads",
                "--balancers", "pcgrad", "--seeds", "2")  # fmt: skip

    (((source, overrides), more),) = calls
    assert found.code == 0 and found.out == "the tables\n"
    assert (source, overrides, more["seeds"]) == (str(recipe), ["train.lr=1e-4"], 2)
    assert more["axes"] == {"strategies": ["lora", "full", "heads"], "samplers": [], "balancers": ["pcgrad"]}


def test_an_interruption_says_how_to_go_on(recipe, run, monkeypatch, tmp_path):
    def compare(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "compare", compare)
    found = run("compare", recipe, "seed=4", "--strategies", "lora,full", "--out", tmp_path / "out")

    again = f"mtnlp compare {recipe} seed=4 --seeds 3 --strategies lora,full --out {tmp_path / 'out'}"
    assert found.code == 130 and found.err.strip().endswith(f"to go on: {again}")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--strategies", "lora,ful"], r"--strategies: No strategy is called 'ful'. Did you mean 'full'\?"),
        (["--samplers", "unifrom"], "--samplers: No sampler is called 'unifrom'. Did you mean 'uniform'"),
        (["--balancers", "fixed"], "--balancers.*: missing; it has no default."),
        (["--seeds", "0"], "--seeds: expected at least 1, got 0."),
        (["tasks=[]"], "tasks: name at least one"),
        (["train.stepz=3"], "train.stepz: no such key. Did you mean 'steps'"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence_and_nothing_is_written(args, said, recipe, run, tmp_path):
    found = run("compare", recipe, *args, "--out", tmp_path / "out")

    assert found.code == 2 and "Traceback" not in found.err and not (tmp_path / "out").exists()
    assert re.search(said, found.err), found.err


def test_a_recipe_of_one_task_has_nothing_to_compare(run, tmp_path):
    data = {"model": {"backbone": "minilm"}, "tasks": [tiny_tasks.task("own/mood", "classify")]}
    (tmp_path / "one.yaml").write_text(json.dumps(data))

    found = run("compare", tmp_path / "one.yaml")

    assert found.code == 2 and "one has one task, own/mood, so there is nothing to compare" in found.err


def test_a_folder_of_other_things_is_left_alone(recipe, run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    (tmp_path / "file").write_text("dear")

    full, file = (run("compare", recipe, "--out", tmp_path / name) for name in ("full", "file"))

    assert full.code == 2 and "holds other files (letter.txt)" in full.err
    assert file.code == 2 and "is a file; name a folder" in file.err
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["letter.txt"]
