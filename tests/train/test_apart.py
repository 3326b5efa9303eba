"""Tasks that share nothing: each keeps its own best weights, ends by itself and learns at its own pace."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mtnlp import strategies
from mtnlp.errors import MtnlpError
from mtnlp.samplers.base import Phase
from mtnlp.train import apart, checkpoint
from mtnlp.train.callbacks import Evaluate, Every, Save
from mtnlp.train.loop import StepRecord, fit, steps
from mtnlp.train.optim import Schedule

TASKS = ("topic", "mood", "names", "pick")
SCORES = {  # after steps 2, 4, 6, ...; "pick" has no rows to be scored on
    "topic": [0.1, 0.5, 0.4, 0.5, 0.3, 0.2, 0.9, 0.1],
    "mood": [0.2, 0.1, 0.1, 0.3, 0.4, 0.5, 0.6, 0.7],
    "names": [0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0],
}


def own(state, task):
    return {name: tensor for name, tensor in state.items() if f"/{task}" in name}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def everything(tiny, run):
    return {**tiny.weights(run), **{f"optimizer/{name}": t for name, t in run.optimizer.state().items()}}


class Sittings:
    """A run with an evaluation every two steps, that goes through some stops; what it held and drew."""

    def __init__(self, tiny, folder, *, stops=(16,), patience=None, strategy="lora-per-task"):
        self.best, self.held, self.drawn = folder / "best.safetensors", {}, {}
        for stop in stops:
            run = self.run = tiny.make(strategy=strategy, total=16, dropout=0.1)
            if saved := checkpoint.checkpoints(folder):
                checkpoint.load(run, saved[-1])

            def evaluate(run=run):
                self.held[run.step] = tiny.weights(run)
                return {task: values[run.step // 2 - 1] for task, values in SCORES.items()}

            watch = Evaluate(run, evaluate, best=self.best, patience=patience)
            todo = [Every(2, watch), Every(stop, Save(run, folder))]
            while run.step < min(stop, run.steps) and not run.stopped:
                plan = run.mixture.plan(run.step)
                self.drawn[run.step] = {run.tasks[t]: rows.tolist() for t, rows in zip(plan.tasks, plan.rows)}
                record = next(steps(run))
                for callback in todo:
                    callback(record)


@pytest.mark.parametrize(
    ("strategy", "stops"),
    [("lora-per-task", (16,)), ("lora-per-task", (5, 12, 16)), ("adapters", (16,)), ("heads", (6, 16))],
)
def test_every_task_keeps_the_weights_of_its_own_best_step(tiny, tmp_path, strategy, stops):
    found = Sittings(tiny, tmp_path, strategy=strategy, stops=stops)

    assert apart.kept_steps(found.run) == {"topic": 14, "mood": 16, "names": 2}
    kept = checkpoint.read_table(found.best)
    for task, step in {"topic": 14, "mood": 16, "names": 2, "pick": 16}.items():
        assert same(own(kept, task), own(found.held[step], task)) and own(kept, task)
        assert not same(own(kept, task), own(found.held[8], task))
    checkpoint.load_weights(found.run, kept)
    assert same(tiny.weights(found.run), kept)


@pytest.mark.parametrize("strategy", strategies.names())
def test_the_model_says_whether_tasks_share_something(tiny, strategy):
    model = tiny.make(strategy=strategy).model

    assert apart.are_apart(model) == (strategy in ("heads", "adapters", "lora-per-task"))


def test_finished_tasks_leave_the_mixture_and_the_others_have_their_share(tiny, tmp_path):
    plain = Sittings(tiny, tmp_path / "plain")
    found = Sittings(tiny, tmp_path / "early", patience=3)

    # names: its best at 2, then 4, 6, 8; topic: its best at 4, then 6, 8, 10; mood gets better to the end.
    assert found.run.memory["ended"] == {"names": 8, "topic": 10}
    assert found.run.step == 16 and not found.run.stopped
    for step, drawn in found.drawn.items():
        assert ("names" in drawn) <= (step < 8) and ("topic" in drawn) <= (step < 10)
        assert sum(map(len, drawn.values())) == 10
        assert step >= 8 or drawn == plain.drawn[step]
    for task in ("mood", "pick"):
        more, less = (
            [row for step in sorted(run.drawn) for row in run.drawn[step].get(task, [])]
            for run in (found, plain)
        )
        assert len(more) > len(less) and more[: len(less)] == less
    frozen = [own(found.held[step], "names") for step in (8, 10, 16)]
    assert same(frozen[0], frozen[1]) and same(frozen[0], frozen[2])


def test_who_is_finished_survives_a_resume_to_the_bit(tiny, tmp_path):
    whole = Sittings(tiny, tmp_path / "whole", patience=3)
    parts = Sittings(tiny, tmp_path / "parts", patience=3, stops=(3, 8, 9, 13, 16))

    assert parts.drawn == whole.drawn and parts.run.memory == whole.run.memory
    assert same(everything(tiny, parts.run), everything(tiny, whole.run))
    assert same(checkpoint.read_table(parts.best), checkpoint.read_table(whole.best))


def test_the_run_ends_when_no_task_is_left(tiny):
    run = tiny.make(total=20, tasks=("topic", "mood"))
    fit(run, [Evaluate(run, lambda: {"topic": 1.0, "mood": min(run.step, 6)}, patience=2)])

    assert run.memory["ended"] == {"topic": 3, "mood": 8} and run.step == 8
    assert run.stopped == "no task that is left to train had a better score in 2 evaluations"


def test_patience_counts_only_evaluations_between_which_a_task_was_trained(tiny):
    run = tiny.make(total=12, tasks=("topic", "mood"))
    one_by_one = [Phase(0, np.array([1.0, 0.0])), Phase(6, np.array([0.0, 1.0]))]
    run.mixture.phases = one_by_one
    run.mixture.end({})

    fit(run, [Evaluate(run, lambda: {"topic": 0.5, "mood": 0.5}, patience=3)])

    assert run.memory["ended"] == {"topic": 4, "mood": 7}  # mood has its turn early
    assert run.step == 7


@pytest.mark.parametrize("strategy", ["lora-per-task", "heads"])
@pytest.mark.parametrize("ends", [{}, {"names": 4}], ids=["rates", "rates and steps"])
def test_a_task_with_a_pace_of_its_own_learns_what_it_learns_alone_at_that_pace(tiny, strategy, ends):
    tasks, lrs = TASKS[:3], {"topic": 3e-3, "names": 2e-2}
    options = {"strategy": strategy, "dropout": 0.0, "eps": 1e-4, "weight_decay": 0.1}

    def schedule(task):
        return Schedule(lr=lrs.get(task, 1e-2), steps=ends.get(task, 9), warmup=0.3)

    run = tiny.make(
        tasks=tasks, total=9, examples=12, rates=[1 / 3] * 3, schedule=schedule("mood"), **options
    )
    apart.check(run.model, lrs, ends, run.steps)
    apart.pace(run, lrs, ends)
    joint, learned = [record.losses for record in steps(run)], tiny.weights(run)

    assert len(joint) == 9
    for task in ends or tasks:  # after an end the others have more examples in a step than alone
        total = ends.get(task, 9)
        alone = tiny.make(tasks=(task,), total=total, examples=4, schedule=schedule(task), **options)
        losses = [record.losses[task] for record in steps(alone)]
        assert losses == pytest.approx([one[task] for one in joint[:total]], abs=1e-6)
        for name, tensor in tiny.weights(alone).items():
            torch.testing.assert_close(learned[name], tensor, rtol=0, atol=1e-6)


def test_paces_resume_to_the_bit(tiny, tmp_path):
    def make():
        run = tiny.make(total=8)
        apart.pace(run, {"topic": 3e-3}, {"names": 4, "mood": 6})
        return run

    whole, half = make(), make()
    fit(whole)
    for record, _ in zip(steps(half), range(5), strict=False):
        Save(half, tmp_path)(record)
    again = make()
    checkpoint.load(again, checkpoint.checkpoints(tmp_path)[-1])
    fit(again)

    assert again.step == 8 and same(everything(tiny, again), everything(tiny, whole))


def test_a_run_is_as_long_as_its_longest_task(tiny):
    run = tiny.make(total=8, tasks=("topic", "mood"))

    apart.pace(run, {}, {"topic": 3, "mood": 5})

    assert isinstance([*steps(run)][-1], StepRecord) and run.step == 5 and not run.stopped


@pytest.mark.parametrize(
    ("strategy", "lrs", "ends", "message"),
    [
        ("lora", {"mood": 1e-3}, {}, "train.lr_of: mood cannot have a pace of its own, .* all tasks share"),
        ("mixlora", {}, {"mood": 3}, "train.steps_of: mood cannot have a pace of its own"),
        ("heads", {"moood": 1e-3}, {}, "train.lr_of: no task of this recipe is called 'moood'. Did you mean"),
        ("heads", {}, {"mood": 7}, "mood is to be trained for 7 steps, but the run has 6. Use at most 6"),
    ],
)
def test_a_pace_that_cannot_be_is_told(tiny, strategy, lrs, ends, message):
    with pytest.raises(MtnlpError, match=message):
        apart.check(tiny.make(strategy=strategy).model, lrs, ends, 6)
