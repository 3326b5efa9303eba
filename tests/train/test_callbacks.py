"""What happens between steps."""

from __future__ import annotations

import io
import json
import re

import pytest
import torch

from mtnlp.train import checkpoint
from mtnlp.train.callbacks import (
    Evaluate,
    Every,
    MetricsWriter,
    Progress,
    Save,
    Tracker,
    aggregate,
    short_names,
)
from mtnlp.train.loop import StepRecord, fit, steps


def record(step, loss=0.5):
    return StepRecord(step, {"a": loss, "b": loss / 2}, 1e-3, 1.5, 0.25, 100, 0.8)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_fires_on_multiples_and_on_the_last_step():
    seen = []
    often, end = Every(3, seen.append, last=8), Every(None, lambda r: seen.append(("end", r.step)), last=8)

    for step in range(1, 9):
        often(record(step))
        end(record(step))

    assert [r if isinstance(r, tuple) else r.step for r in seen] == [3, 6, 8, ("end", 8)]


def test_metrics_are_one_json_object_per_line(tiny, tmp_path):
    writer = MetricsWriter(tmp_path / "run" / "metrics.jsonl")

    fit(tiny.make(total=3), [writer])
    writer.write("eval", step=3, scores={"a": 1.0})
    writer.close()

    found = lines(tmp_path / "run" / "metrics.jsonl")
    kinds = [(line["kind"], line["step"]) for line in found]
    assert kinds == [("step", 1), ("step", 2), ("step", 3), ("eval", 3)]
    assert {"losses", "lr", "grad_norm", "seconds", "tokens", "useful_share"} <= found[0].keys()


def test_a_resumed_file_reads_like_that_of_a_run_never_interrupted(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path)
    for step in range(1, 6):
        writer(record(step))
    writer.close()
    with path.open("a") as file:
        file.write('{"kind": "step", "st')  # the power went

    writer = MetricsWriter(path, step=3)  # the last checkpoint
    writer(record(4))
    writer.close()

    assert [line["step"] for line in lines(path)] == [1, 2, 3, 4]


def test_other_ranks_write_nothing(tmp_path):
    writer = MetricsWriter(tmp_path / "metrics.jsonl", enabled=False)
    writer(record(1))
    writer.close()

    assert list(tmp_path.iterdir()) == []


def test_the_aggregate_is_the_mean_of_the_tasks():
    assert aggregate({"a": 0.5, "b": 1.0, "c": -0.3}) == pytest.approx(0.4)


def test_the_best_weights_are_kept_and_patience_ends_the_run(tiny, tmp_path):
    run, held = tiny.make(strategy="lora", total=10), {}
    scores = iter([0.1, 0.5, 0.3, 0.5, 0.4, 0.9])  # a tie is no improvement

    def evaluate():
        held[run.step] = tiny.weights(run)
        value = next(scores)
        return {"topic": value + 0.1, "mood": value - 0.1}

    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    best = tmp_path / "best.safetensors"
    fit(run, [Evaluate(run, evaluate, best=best, patience=3, writer=writer)])
    writer.close()

    assert run.step == 5
    assert run.stopped == "no better mean score in 3 evaluations since step 2"
    assert run.memory["best"]["step"] == 2
    assert run.memory["best"]["aggregate"] == pytest.approx(0.5)
    written = [line["aggregate"] for line in lines(tmp_path / "metrics.jsonl")]
    assert written == pytest.approx([0.1, 0.5, 0.3, 0.5, 0.4])
    kept = checkpoint.read_table(best)
    assert all(torch.equal(kept[name], held[2][name]) for name in kept)


def test_patience_goes_on_counting_after_a_resume(tiny, tmp_path):
    def evaluate():
        return {"topic": 1.0 / run.step}

    run = tiny.make(strategy="lora", total=10)
    watch, keep = Evaluate(run, evaluate, patience=3), Save(run, tmp_path)
    for record, _ in zip(steps(run), range(3), strict=False):
        watch(record)
        keep(record)
    run = tiny.make(strategy="lora", total=10)
    checkpoint.load(run, checkpoint.checkpoints(tmp_path)[-1])

    fit(run, [Evaluate(run, evaluate, patience=3)])

    assert run.step == 4


def test_progress_is_few_lines_where_there_is_no_terminal():
    stream = io.StringIO()
    progress = Progress(50, tasks=["x/b", "x/a", "y/c"], seconds=3600, stream=stream)

    for step in range(1, 51):
        progress(
            StepRecord(
                step, {"x/a": 0.5, "y/c": 0.25} if step > 9 else {"x/b": 2.0}, 1e-3, 1.5, 0.25, 100, 1.0
            )
        )
    with progress.doing("scoring"):
        progress.say("scores")
    progress.close()

    line, said = stream.getvalue().splitlines()
    assert line == "step 50/50  loss 0.3750  b 2.000  a 0.500  c 0.250  lr 1.00e-03  400 tokens/s"
    assert said == "scores"


@pytest.mark.parametrize(("tasks", "more"), [(3, ""), (130, "and 119 more tasks")])
def test_progress_is_a_bar_and_the_losses_on_a_terminal(tasks, more, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    stream = io.StringIO()
    stream.isatty = lambda: True
    names = [f"family/task{i}" for i in range(tasks)]
    progress = Progress(2, tasks=names, stream=stream)

    progress(StepRecord(1, {names[0]: 0.5, names[1]: 0.25}, 1e-3, 1.5, 0.25, 100, 1.0))
    progress.say("scores of all")
    progress.close()

    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    last = shown[shown.rindex("training") :]
    assert "1/2" in last and "scores of all" in shown
    assert "task0 0.500" in last and "task1 0.250" in last and "task2 -" in last and more in last
    assert max(map(len, last.splitlines())) <= 40 and len(last.splitlines()) <= 9


def test_short_names_say_which_task():
    assert short_names(["a/x", "b/x", "a/y", "z"]) == {"a/x": "a/x", "b/x": "b/x", "a/y": "y", "z": "z"}


def test_progress_can_be_silent():
    stream = io.StringIO()
    progress = Progress(1, stream=stream, enabled=False)

    progress(record(1))
    progress.close()

    assert stream.getvalue() == ""


def test_trackers_get_flat_numbers():
    class Accelerator:
        def log(self, values, step):
            self.said = values, step

        def end_training(self):
            self.ended = True

    acc = Accelerator()
    tracker = Tracker(acc)
    tracker(record(7))
    tracker.close()

    values, step = acc.said
    assert step == 7
    assert values == {"loss/a": 0.5, "loss/b": 0.25, "lr": 1e-3, "grad_norm": 1.5, "tokens_per_second": 400.0}
    assert acc.ended
