"""Whole comparisons of tiny runs: what is trained, what is reused, what goes on, and what is found."""

from __future__ import annotations

import io
import json
import os
import random
import re
import signal

import pytest
import tiny_tasks
from rich.console import Console

from mtnlp import config
from mtnlp.errors import MtnlpError
from mtnlp.runs import compare, lineup, targets
from mtnlp.runs.folder import RunFolder
from mtnlp.train import timings
from mtnlp.train.callbacks import MetricsWriter

TASKS = ("own/left", "own/right", "own/rating")
SEEDS = (13, 14)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTNLP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones")
    return {kind: tiny_tasks.backbone(kind, folder / kind) for kind in ("minilm", "t5")}


def rows(split, label, n=40):
    """Rows of one of two words."""
    draw = random.Random(split)
    words = [draw.choice(("river", "market")) for _ in range(n)]
    return [{"text": word, "label": label[word]} for word in words]


def conflict(name, *, flipped):
    """Two of these, one of them flipped, have the same texts and opposite labels."""
    words = ("market", "river") if flipped else ("river", "market")
    label = dict(zip(words, ("no", "yes"), strict=True))
    splits = {split: rows(split, label) for split in ("train", "validation", "test")}
    return {"name": name, "kind": "classify", "labels": ["no", "yes"], "source": splits}


def recipe(backbone, **train):
    """Two tasks that contradict each other, and one that has nothing to do with them."""
    tasks = [conflict("own/left", flipped=False), conflict("own/right", flipped=True)]
    tasks.append(tiny_tasks.task("own/rating", "regress"))
    made = tiny_tasks.recipe(backbone, tasks, **{"steps": 3, "examples_per_step": 6, **train})
    return {**made, "name": "tiny", "eval": {"keep": "last"}}


def run(data, out, *, seeds=2, **more):
    """What was found, and what was said before."""
    console = Console(file=io.StringIO(), width=200)
    found = compare.compare(data, out=out, seeds=seeds, console=console, **more)
    return found, console.file.getvalue()


def names(*labels, seeds=SEEDS):
    return sorted(f"{label.replace('/', '--')}-{seed}" for label in labels for seed in seeds)


def numbers(found):
    """Without what a clock has measured."""
    return [variant.found for variant in found.variants]


def test_a_conflict_is_found_and_a_second_comparison_trains_and_asks_nothing(
    backbones, tmp_path, trained, monkeypatch
):
    data = recipe(backbones["t5"], strategy="full", steps=30, examples_per_step=12, lr=1e-2)
    data["tasks"][2] = tiny_tasks.task("own/rating", "classify")
    weights = {"own/left": 3.0, "own/right": 0.3, "own/rating": 1.0}  # so that one of the two wins
    data["balancer"] = {"name": "fixed", "weights": weights}

    first, said = run(data, tmp_path / "out")

    left, right, rating = first.variants[0].found.tasks
    assert sorted(trained) == names("joint", *TASKS) and "8 to train" in said
    assert "own/left (full): 30 steps of 4 rows = 120 rows" in said
    assert (left.verdict, right.verdict, rating.verdict) == ("unclear", "hurt", "unclear")
    assert right.split == "test" and left.joint + right.joint == pytest.approx(1)  # it answers both alike
    assert right.baseline > 0.9 and right.joint < 0.1 and right.high < 0 and right.adjusted < 0.05
    assert rating.split == "validation" and "too few rows for a verdict" in rating.note
    text = (tmp_path / "out" / "compare.html").read_text("utf-8")
    assert text.count("<svg") == 1 and ">hurt<" in text and not re.search(r"https?:|src=|<script", text)
    told = json.loads((tmp_path / "out" / "compare.json").read_text("utf-8"))
    assert told["variants"][0]["found"]["tasks"][1]["verdict"] == "hurt"

    trained.clear()
    monkeypatch.setattr(targets.RunTarget, "_load", lambda self: pytest.fail("a model was loaded"))
    again, said = run(data, tmp_path / "out")

    assert trained == [] and "8 reused" in said and numbers(again) == numbers(first)


def test_only_what_changed_is_trained_again_and_the_reason_is_told(backbones, tmp_path, trained):
    data = recipe(backbones["minilm"], strategy="lora")
    run(data, tmp_path / "out")
    trained.clear()
    data["tasks"][1]["source"]["train"][0]["text"] += " stone"

    _, said = run(data, tmp_path / "out")

    assert sorted(trained) == names("joint", "own/right")
    assert re.search(r"own--right-13-\w+ is not reused: it differs in tasks.own/right.rows.train \(", said)
    assert "own--left-" not in said


def test_an_interrupted_comparison_goes_on_and_finds_the_same(backbones, tmp_path, trained, monkeypatch):
    data = recipe(backbones["minilm"], strategy="lora-per-task")
    whole, _ = run(data, tmp_path / "whole", seeds=1)
    trained.clear()
    real = MetricsWriter.__call__

    def interrupted(self, record):
        real(self, record)
        if len(trained) == 3 and record.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(MetricsWriter, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "out", seeds=1)
    begun, rest = trained[:2], trained[2]
    monkeypatch.setattr(MetricsWriter, "__call__", real)
    trained.clear()

    found, said = run(data, tmp_path / "out", seeds=1)

    assert "1 to train, 1 to resume, 2 reused" in said and trained[0] == f"resumed {rest}"
    assert sorted([*begun, rest, *trained[1:]]) == names("joint", *TASKS, seeds=[13])
    assert numbers(found) == numbers(whole)
    assert [run["done"] for run in found.runs].count("reused") == 2
    (folder,) = (tmp_path / "out" / "runs").glob("joint-13-*/")
    assert compare._finished(RunFolder(folder)) and not (folder / "checkpoints").exists()
    (folder / "results.json").write_text((folder / "results.json").read_text()[:-20])  # as a kill leaves it
    assert not compare._finished(RunFolder(folder))


def test_variants_of_a_sweep_share_their_baselines(backbones, tmp_path, trained):
    data = recipe(backbones["minilm"], strategy="lora")
    axes = {"strategies": ["lora", "lora-per-task", "full"]}

    found, said = run(data, tmp_path / "out", seeds=1, axes=axes)

    assert sorted(trained) == sorted([*names(*TASKS, seeds=[13]), *["joint-13"] * 3])
    assert [variant.name for variant in found.variants] == axes["strategies"]
    lora, own, full = (variant.costs for variant in found.variants)
    assert lora.parameters < own.parameters < full.parameters and lora.size < own.size < full.size
    assert all(costs.seconds > 0 and costs.latency > 0 for costs in (lora, own, full))
    assert found.variants[0].alone == found.variants[2].alone and "One seed" in found.notes[0]

    trained.clear()
    _, said = run(data, tmp_path / "out", seeds=1, axes={"balancers": ["equal", "pcgrad"]})

    assert trained == ["joint-13"] and "differs in balancer ('equal' there, 'pcgrad' here)" in said


def test_methods_that_do_not_go_together_are_told_before_anything_is_trained(backbones, tmp_path, trained):
    data = recipe(backbones["minilm"], strategy="lora")
    axes = {"strategies": ["lora", "lora-per-task"], "balancers": ["pcgrad"]}

    with pytest.raises(MtnlpError, match="lora-per-task pcgrad: balancer: pcgrad merges gradients"):
        run(data, tmp_path / "out", axes=axes)

    assert trained == [] and not (tmp_path / "out").exists()


def test_what_a_recipe_leaves_open_is_measured_once_for_all_runs(backbones, tmp_path, monkeypatch):
    data = config.load(recipe(backbones["minilm"], precision="auto", matmul="auto"))
    monkeypatch.setattr(timings, "bf16_gain", lambda *args: 0.5)
    monkeypatch.setattr(timings, "medium_gain", lambda: (9.0, 0.0))
    first = lineup.settled(data, tmp_path / "engine.json")
    lineup.keep_engine(first, tmp_path / "engine.json")

    monkeypatch.setattr(timings, "bf16_gain", lambda *args: 9.0)
    again = lineup.settled(data, tmp_path / "engine.json")

    assert (first.train.precision, first.train.matmul, first.model.attention) == ("fp32", "medium", "eager")
    assert again == first and lineup.settled(data, tmp_path / "none.json").train.precision == "bf16"
