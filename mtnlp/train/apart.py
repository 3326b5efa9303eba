"""Tasks that share no trained parameter: each is judged by itself, ends by itself, learns at its own pace.

Under such a strategy (lora-per-task, adapters, heads: the model is asked) a joint run is many runs that use
one backbone, so what is best for one task is nothing to the others:

    kept     the weights of each task are those of its own best evaluation
    ended    a task without a better score for long enough is drawn no more, and the others have its share
    own      a learning rate of its own, and a number of steps of its own over which that rises and falls

Of every scored task `memory["kept"]` holds {step, score, waited, drawn}: its best evaluation, how many there
were since, and its examples drawn up to the last of them; of those that end, `memory["ended"]` the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mtnlp.errors import MtnlpError, did_you_mean
from mtnlp.train import checkpoint

if TYPE_CHECKING:
    from mtnlp.models.multitask import MultitaskModel
    from mtnlp.train.loop import Run


def are_apart(model: MultitaskModel) -> bool:
    """Whether every trained parameter belongs to one task alone."""
    return not model.shared_parameters()


def judge(run: Run, scores: Mapping[str, float], *, best: Path | None, patience: int | None) -> None:
    """Take in the scores of an evaluation, greater is better; all ranks must call it with the same ones.

    Args:
        best: file for the kept weights of every task; of those that are not scored, the latest. None = none.
        patience: a task is finished after so many evaluations in a row without a new best; those count only
            between which it was trained. None = never. When no task is left to train, the run stops.
    """
    first, drawn = "kept" not in run.memory, run.mixture.drawn(run.step)
    kept = run.memory.setdefault("kept", {})
    counts = {task: int(count) for task, count in zip(run.tasks, drawn, strict=True)}
    better = []
    for task, score in scores.items():
        if task not in kept or score > kept[task]["score"]:
            better.append(task)
            kept[task] = {"step": run.step, "score": score, "waited": 0, "drawn": counts[task]}
        elif counts[task] > kept[task]["drawn"]:
            kept[task] |= {"waited": kept[task]["waited"] + 1, "drawn": counts[task]}
    saved = [*better, *(task for task in run.tasks if task not in scores)]
    if best and saved:
        checkpoint.save_weights(run, best, only=None if first else saved)
    if patience is not None:
        _finish(run, [task for task in scores if kept[task]["waited"] >= patience], patience)


def _finish(run: Run, tasks: list[str], patience: int) -> None:
    """End those that have not ended yet; stop the run if that leaves nothing to train."""
    ended = run.memory.get("ended", {})
    new = [task for task in tasks if ended.get(task, run.step + 1) > run.step]
    if not new or run.step >= run.steps:
        return
    run.finish(dict.fromkeys(new, run.step))
    if run.steps == run.step:
        run.stopped = f"no task that is left to train had a better score in {patience} evaluations"


def kept_steps(run: Run) -> dict[str, int]:
    """Task -> the step of its best evaluation, of those that were scored."""
    return {task: found["step"] for task, found in run.memory.get("kept", {}).items()}


def check(model: MultitaskModel, lrs: Mapping[str, float], steps: Mapping[str, int], total: int) -> None:
    """MtnlpError unless these tasks can be trained at a pace of their own.

    Args:
        lrs, steps: train.lr_of and train.steps_of. total: steps of the run.
    """
    for key, values in (("lr_of", lrs), ("steps_of", steps)):
        for task in values:
            if task not in model.tasks:
                hint = did_you_mean(task, model.tasks)
                raise MtnlpError(f"train.{key}: no task of this recipe is called {task!r}. {hint}")
        if values and not are_apart(model):
            raise MtnlpError(
                f"train.{key}: {', '.join(values)} cannot have a pace of its own, for the strategy trains "
                "parameters that all tasks share. Leave the key out, or use a strategy that shares none "
                "(model.strategy: lora-per-task, adapters or heads)."
            )
    for task, own in steps.items():
        if own > total:
            raise MtnlpError(
                f"train.steps_of: {task} is to be trained for {own} steps, but the run has {total}. "
                f"Use at most {total}, or raise train.steps."
            )


def pace(run: Run, lrs: Mapping[str, float], steps: Mapping[str, int]) -> None:
    """Give tasks, after `check`, a learning rate of their own, and a number of steps after which they end."""
    common = run.optimizer.schedule
    if lrs or steps:
        run.optimizer.set_own(
            {
                run.tasks.index(task): replace(
                    common, lr=lrs.get(task, common.lr), steps=steps.get(task, common.steps)
                )
                for task in {**lrs, **steps}
            }
        )
    if steps:
        run.finish(steps)
