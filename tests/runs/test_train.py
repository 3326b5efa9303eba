"""What `finetune` leaves beside weights: the ledger, and for tasks that share nothing a kept step of each."""

from __future__ import annotations

import io
import json
import signal

import pytest
import tiny_tasks
from rich.console import Console

import mtnlp
from mtnlp.runs import train
from mtnlp.train import ledger
from mtnlp.train.callbacks import Progress
from mtnlp.train.checkpoint import checkpoints, read_table

EXAMPLES = 6


@pytest.fixture(scope="module")
def trunks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trunks")
    return {kind: tiny_tasks.backbone(kind, folder / kind) for kind in ("minilm", "t5")}


def recipe(trunk, kinds, *, evaluation=None, **settings):
    tasks = [tiny_tasks.task(name, kind, rows=rows) for name, (kind, rows) in kinds.items()]
    made = tiny_tasks.recipe(trunk, tasks, examples_per_step=EXAMPLES, **{"lr": 1e-2, **settings})
    return {**made, "eval": evaluation or {}}


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]


def trained(data, run, **options):
    """What `finetune` prints."""
    stream = io.StringIO()
    train.finetune(data, out=run, console=Console(file=stream, width=160), **options)
    return stream.getvalue()


SOME = {"topic": ("classify", 30), "pick": ("choose", 3), "find": ("span", 12)}
TEXT = {"say": ("generate", 3), "topic": ("classify", 30)}


@pytest.mark.parametrize(("trunk", "kinds"), [("minilm", SOME), ("t5", TEXT)])
def test_an_interrupted_run_ends_with_the_ledger_of_one_that_was_not(
    trunks, tmp_path, monkeypatch, trunk, kinds
):
    data, whole, run = recipe(trunks[trunk], kinds, steps=16), tmp_path / "whole", tmp_path / "run"
    said = trained(data, whole)

    with monkeypatch.context() as patch:
        call = Progress.__call__

        def press(self, record):
            call(self, record)
            if record.step == 7:
                signal.raise_signal(signal.SIGINT)

        patch.setattr(Progress, "__call__", press)
        with pytest.raises(KeyboardInterrupt):
            trained(data, run)
    part = ledger.read(run / "ledger.json")
    assert sum(entry.drawn for entry in part) == 7 * EXAMPLES
    assert {line["kind"] for line in metrics(run)} == {"step"}
    again = trained(data, run, resume=True)
    once_more = trained(data, run, resume=True)

    entries = ledger.read(run / "ledger.json")
    assert entries == ledger.read(whole / "ledger.json")
    lines = metrics(run)
    assert sum(entry.tokens for entry in entries) == sum(line.get("tokens", 0) for line in lines)
    assert [line["kind"] for line in lines].count("ledger") == 1 and lines[-1]["kind"] == "ledger"
    assert [item["drawn"] for item in lines[-1]["tasks"]] == [entry.drawn for entry in entries]
    small = next(entry for entry in entries if entry.rows < 10)
    warning = f"warning: more than 10 epochs over the same rows: {small.task} ({small.epochs:.1f}). Draw them"
    for text in (said, again, once_more):
        table, rest = text[text.index(" task ") :].split("warning: ", 1)
        assert "achieved  first step" in table and "last step" not in table
        assert all(f" {entry.task} " in table and f"{entry.tokens:,}" in table for entry in entries)
        assert f"warning: {rest}".startswith(warning)


def test_a_run_that_ends_early_says_since_when_which_task_was_finished(trunks, tmp_path):
    data = recipe(
        trunks["minilm"],
        SOME,
        evaluation={"every": 2, "patience": 2},
        steps=400,
        steps_of={"find": 5},
        lr=1e-9,
    )  # nothing is learned
    said = trained(data, tmp_path / "run")

    entries = {entry.task: entry for entry in ledger.read(tmp_path / "run" / "ledger.json")}
    assert {task: (entry.ended, entry.kept) for task, entry in entries.items()} == {
        "topic": (6, 2), "pick": (6, 2), "find": (5, 2),
    }  # fmt: skip
    assert "Stopped early: no task that is left to train had a better score in 2 evaluations." in said
    assert "first step  last step  kept step" in said and "warning" not in said
    results = json.loads((tmp_path / "run" / "results.json").read_text("utf-8"))
    assert results["about"]["step_of"] == dict.fromkeys(entries, 2) and results["about"]["steps"] == 6


def test_the_final_weights_are_each_tasks_best(trunks, tmp_path):
    data = recipe(
        trunks["minilm"], SOME, evaluation={"every": 1}, steps=8, lr_of={"topic": 5e-2}, checkpoint_every=1
    )
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtnlp.train.callbacks.Save.__call__", _save_all)
        trained(data, run)

    lines = [line for line in metrics(run) if line["kind"] == "eval"]
    kept = json.loads((run / "results.json").read_text("utf-8"))["about"]["step_of"]
    saved = {int(path.name[5:]): read_table(path / "weights.safetensors") for path in _all(run)}
    final = read_table(run / "model.safetensors")
    for task, step in kept.items():
        scores = [line["scores"][task] for line in lines]
        assert step == scores.index(max(scores)) + 1
        mine = [name for name in final if f"/{task}" in name]
        assert mine and all((final[name] == saved[step][name]).all() for name in mine)
    assert sorted(saved) == list(range(1, 9))


def _save_all(self, record):
    from mtnlp.train import checkpoint

    checkpoint.save(self.run, self.folder, keep=None)


def _all(run):
    return checkpoints(run / "checkpoints")


@pytest.mark.parametrize(
    ("strategy", "settings", "message"),
    [
        ("lora", {"lr_of": {"topic": 1e-3}}, "train.lr_of: topic cannot have a pace of its own"),
        ("heads", {"steps_of": {"topik": 3}}, "train.steps_of: no task of this recipe is called 'topik'"),
        ("heads", {"lr_of": {"topic": -1.0}}, r"train.lr_of.topic: Input should be greater than 0 \(got -1"),
        ("heads", {"steps_of": {"topic": 0}}, "train.steps_of.topic: Input should be greater than or equal"),
    ],
)
def test_a_pace_that_cannot_be_is_told_before_anything_is_written(
    trunks, tmp_path, strategy, settings, message
):
    data = recipe(trunks["minilm"], SOME, strategy=strategy, **settings)

    with pytest.raises(mtnlp.MtnlpError, match=message):
        trained(data, tmp_path / "run")

    assert not (tmp_path / "run").exists()
