"""Tasks that are added to a trained model: the others stay bit for bit, the new ones learn as if alone."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal

import pytest
import tiny_tasks
import torch
from safetensors.torch import load_file

import mtnlp
from mtnlp import strategies
from mtnlp.errors import MtnlpError, TrainingError
from mtnlp.runs import adding, publish, train, trained
from mtnlp.train import checkpoint
from mtnlp.train.callbacks import Progress

OLD = {"own/mood": "classify", "own/names": "tag"}
RANKS = {"name": "lora-per-task", "rank": 4, "dropout": 0.1}


@pytest.fixture(scope="module")
def trunks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trunks")
    return {kind: tiny_tasks.backbone(kind, folder / kind, dropout=0.1) for kind in ("minilm", "t5")}


def recipe(trunk, tasks, strategy, **settings):
    made = tiny_tasks.recipe(
        trunk, tasks, strategy=strategy, **{"steps": 3, "lr": 0.02, "examples_per_step": 8, **settings}
    )
    return {**made, "name": "mine", "eval": {"every": 2}}


def trained_run(folder, trunk, strategy, kinds=OLD, **settings):
    tasks = [tiny_tasks.task(name, kind) for name, kind in kinds.items()]
    mtnlp.finetune(recipe(trunk, tasks, strategy, **settings), out=folder)
    return folder


def task_file(folder, name="own/new", kind="pair"):
    """A task in a YAML file with its rows beside it."""
    made = tiny_tasks.task(name, kind)
    for split, rows in made["source"].items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        made["source"][split] = f"{split}.jsonl"
    path = folder / "new.yaml"
    path.write_text(json.dumps(made), "utf-8")
    return str(path)


def add(run, entry, out, *overrides, backbone=None, **options):
    start = adding.prepare(str(run), [entry], overrides, backbone=backbone)
    return train.finetune(start.recipe, overrides, out=out, start=start, **options)


def rows_of(name, kind):
    targets = ("label", "labels", "score", "answer", "answers", "tags", "target")
    rows = tiny_tasks.task(name, kind)["source"]["validation"]
    return [{key: value for key, value in row.items() if key not in targets} for row in rows]


def answers(place, kinds=OLD, **more):
    model = mtnlp.load(place, **more)
    return {name: model.predict(rows_of(name, kind), task=name) for name, kind in kinds.items()}


def weights(run):
    return load_file(run / "model.safetensors")


def same(one, other, names):
    return all(torch.equal(one[name], other[name]) for name in names)


@pytest.mark.parametrize(
    ("family", "strategy"),
    [
        *(("minilm", name) for name in strategies.names()),
        ("t5", "lora-per-task"),
    ],
)
def test_old_tasks_answer_as_before_bit_for_bit_and_the_new_one_is_trained(
    trunks, tmp_path, family, strategy
):
    run, plus = trained_run(tmp_path / "run", trunks[family], strategy), tmp_path / "plus"
    before, files = answers(run), {path: path.read_bytes() for path in run.rglob("*.*") if path.is_file()}

    report = add(run, task_file(tmp_path), plus, "train.steps=4")

    assert answers(plus) == before
    assert {path: path.read_bytes() for path in files} == files
    old, new = weights(run), weights(plus)
    own = {name for name in new if "/own/new" in name}
    assert old.keys() == new.keys() - own and same(old, new, old) and own
    untrained = tiny_tasks.weights(tiny_tasks.build(recipe(trunks[family], [json_task(tmp_path)], strategy)))
    assert not any(torch.equal(new[name], untrained[name]) for name in own)
    assert tuple(mtnlp.load(plus).tasks) == (*OLD, "own/new")
    assert [score.task for score in report.scores] == [*OLD, "own/new"]
    assert [bool(score.notes) for score in report.scores] == [True, True, False]
    assert not (plus / adding.NEW).exists()


def json_task(folder):
    made = json.loads((folder / "new.yaml").read_text("utf-8"))
    return {**made, "source": {split: str(folder / path) for split, path in made["source"].items()}}


@pytest.mark.parametrize("strategy", [RANKS, "adapters", "heads"], ids=str)
def test_the_new_task_learns_what_it_would_learn_alone_from_the_same_seed(trunks, tmp_path, strategy):
    run = trained_run(tmp_path / "run", trunks["minilm"], strategy)
    entry, plus, alone = task_file(tmp_path), tmp_path / "plus", tmp_path / "alone"

    report = add(run, entry, plus, "train.steps=7", "eval.every=3")
    data = recipe(trunks["minilm"], [json_task(tmp_path)], strategy, steps=7)
    only = mtnlp.finetune({**data, "eval": {"every": 3}}, out=alone)

    found, expected = weights(plus), weights(alone)
    assert len(expected) > 1
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)
    assert report.scores[-1].values == only.scores[0].values


def test_under_a_frozen_network_the_new_head_is_that_of_the_strategy_heads_on_it(trunks, tmp_path):
    run = trained_run(tmp_path / "run", trunks["minilm"], "full", lr=1e-3)
    entry, plus, trunk = task_file(tmp_path), tmp_path / "plus", tmp_path / "trunk"
    backbone = mtnlp.load(run).predictor.model.backbone
    backbone.net.save_pretrained(trunk)
    backbone.tokenizer.save_pretrained(trunk)

    add(run, entry, plus, "train.steps=6", "train.lr=0.02")
    mtnlp.finetune(recipe(str(trunk), [json_task(tmp_path)], "heads", steps=6), out=tmp_path / "alone")

    found, expected = weights(plus), weights(tmp_path / "alone")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("ranks", [{"own/mood": 6}, {"own/mood": 2, "own/names": 3}], ids=str)
def test_old_tasks_may_have_ranks_of_their_own(trunks, tmp_path, ranks):
    strategy = {**RANKS, "ranks": ranks, "alphas": {"own/mood": 3.0}}
    run, plus, alone = trained_run(tmp_path / "run", trunks["minilm"], strategy), tmp_path / "plus", tmp_path
    before, entry = mtnlp.load(run), task_file(tmp_path)

    add(run, entry, plus, "train.steps=4")
    mtnlp.finetune(recipe(trunks["minilm"], [json_task(tmp_path)], RANKS, steps=4), out=alone / "alone")

    def adapter(folder, task):
        return load_file(folder / "adapters" / task.replace("/", "--") / "adapter_model.safetensors")

    for task in OLD:
        old, new = adapter(run, task), adapter(plus, task)
        assert old.keys() == new.keys() and same(old, new, old)
    expected, found = adapter(alone / "alone", "own/new"), adapter(plus, "own/new")
    after = mtnlp.load(plus)
    exported = after.predictor.model.strategy.export("own/new")[1]
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)
        assert torch.equal(exported[name], found[name])
    for name, kind in OLD.items():
        one, other = (model.predict(rows_of(name, kind), task=name) for model in (before, after))
        if kind == "tag":
            assert one == other
            continue
        for mine, its in zip(one, other, strict=True):  # sums of more zeros may be rounded otherwise
            assert its["scores"] == pytest.approx(mine["scores"], abs=1e-6)


def test_the_written_hashes_are_those_of_the_old_weights_and_other_weights_fail_loudly(
    trunks, tmp_path, monkeypatch
):
    run, plus = trained_run(tmp_path / "run", trunks["minilm"], "lora"), tmp_path / "plus"
    entry = task_file(tmp_path)
    add(run, entry, plus)

    told = json.loads((plus / "added.json").read_text("utf-8"))
    table, digest = weights(plus), hashlib.sha256()
    for name in sorted(name for name in table if name.startswith("shared/")):
        digest.update(f"{name} torch.float32 {tuple(table[name].shape)}\n".encode())
        digest.update(table[name].numpy().tobytes())
    assert told["run"] == str(run) and told["added"] == ["own/new"]
    assert told["sha256"]["shared"] == digest.hexdigest() and list(told["sha256"]["tasks"]) == list(OLD)

    write = checkpoint.write_table

    def flipped(path, table, row_layout=""):
        if path.name == "model.safetensors":
            name = next(name for name in table if name.startswith("head/own/mood/"))
            table = {**table, name: table[name] + 1e-6}
        write(path, table, row_layout)

    monkeypatch.setattr(checkpoint, "write_table", flipped)
    with pytest.raises(TrainingError, match=r"the weights of own/mood are not what they were"):
        add(run, entry, tmp_path / "other")
    assert not (tmp_path / "other" / "model.safetensors").exists()
    with pytest.raises(MtnlpError, match="has not finished"):
        mtnlp.load(tmp_path / "other")


def interrupted_at(step, monkeypatch):
    call = Progress.__call__

    def press(self, record):
        call(self, record)
        if record.step == step:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Progress, "__call__", press)


@pytest.mark.parametrize("strategy", ["lora-per-task", "lora"])
def test_an_interrupted_run_goes_on_to_the_weights_of_one_that_was_not(
    trunks, tmp_path, monkeypatch, strategy
):
    run, entry = trained_run(tmp_path / "run", trunks["minilm"], strategy), task_file(tmp_path)
    whole, plus, changes = tmp_path / "whole", tmp_path / "plus", ("train.steps=8", "eval.every=2")
    add(run, entry, whole, *changes)

    with monkeypatch.context() as patch:
        interrupted_at(5, patch)
        with pytest.raises(KeyboardInterrupt):
            add(run, entry, plus, *changes)
    assert not (plus / "model.safetensors").exists() and not (plus / "results.json").exists()
    other = shutil.copytree(run, tmp_path / "other")
    layout = mtnlp.load(run).predictor.model.row_layout
    moved = {name: tensor + 1e-6 for name, tensor in weights(run).items()}
    checkpoint.write_table(other / "model.safetensors", moved, layout)
    with pytest.raises(MtnlpError, match="begun with other weights"):
        add(other, entry, plus, *changes, resume=True)
    with pytest.raises(MtnlpError, match=r"differs in train\.lr"):
        add(run, entry, plus, *changes, "train.lr=0.1", resume=True)
    add(run, entry, plus, *changes, resume=True)

    one, other = weights(whole), weights(plus)
    assert one.keys() == other.keys() and same(one, other, one)
    scores = [json.loads((folder / "results.json").read_text("utf-8"))["scores"] for folder in (whole, plus)]
    assert scores[0] == scores[1]
    with pytest.raises(MtnlpError, match="is finished"):
        add(run, entry, plus, *changes, resume=True)


def test_a_bundle_takes_tasks_and_becomes_a_run_that_is_pushed_and_added_to_again(trunks, tmp_path):
    run, there = trained_run(tmp_path / "run", trunks["minilm"], "lora-per-task"), tmp_path / "there"
    publish.push(run, str(there))
    entry, plus, more = task_file(tmp_path), tmp_path / "plus", tmp_path / "more"
    (tmp_path / "second").mkdir()
    before = answers(run)

    report = add(there, entry, plus, "train.steps=2", backbone=trunks["minilm"])
    again = add(plus, task_file(tmp_path / "second", "own/stars", "ordinal"), more)
    publish.push(more, str(tmp_path / "again"))

    pulled = str(tmp_path / "again")
    assert answers(plus) == answers(more) == answers(pulled, backbone=trunks["minilm"]) == before
    scores = {score.task: score for score in mtnlp.evaluate(more, tasks="own/new", split="validation").scores}
    assert scores["own/new"].values == report.scores[-1].values
    assert [score.task for score in again.scores] == [*OLD, "own/new", "own/stars"]
    first = json.loads((run / "results.json").read_text("utf-8"))["scores"]
    assert [score.values for score in again.scores[:2]] == [score["values"] for score in first]
    notes = [f"Not scored again: the score is that of {place}." for place in (there, there, plus)]
    assert [score.notes for score in again.scores] == [*((note,) for note in notes), ()]
    assert trained.finished(more).recipe.name == "mine-plus-plus"


@pytest.mark.parametrize("strategy", ["lora", "full"])
def test_a_text_model_whose_tasks_share_everything_takes_none(trunks, tmp_path, strategy):
    run = trained_run(tmp_path / "run", trunks["t5"], strategy, {"own/say": "generate"})

    with pytest.raises(MtnlpError, match=rf"trained {strategy}, which all tasks share: own/new would have"):
        add(run, task_file(tmp_path), tmp_path / "plus")
    assert not (tmp_path / "plus").exists()
