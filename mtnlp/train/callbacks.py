"""What is done between steps: callbacks see the StepRecord of every step, in the order of their list.

The aggregate that "best" and "early" go by is the arithmetic mean, over the tasks, of each task's main score
(the first metric of its TaskSpec). Whoever scores sees to it that more is better: mtnlp.bench.evaluate turns
an error e into 1 / (1 + e).

Whatever must survive a resume stands in `run.memory`, which checkpoints hold; so put Save behind Evaluate.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mtnlp.train import checkpoint

if TYPE_CHECKING:
    from accelerate import Accelerator

    from mtnlp.train.loop import Run, StepRecord

Callback = Callable[["StepRecord"], None]


def aggregate(scores: Mapping[str, float]) -> float:
    """The one number that "best" means: the mean of the tasks' main scores, greater is better."""
    return sum(scores.values()) / len(scores)


class Every:
    """Call `action` every `n` steps.

    Args:
        n: steps; None = only at the end.
        action: what to do.
        last: the run's last step, when the action is due in any case; None = not due then.
    """

    def __init__(self, n: int | None, action: Callback, *, last: int | None = None) -> None:
        self.n, self.action, self.last = n, action, last

    def __call__(self, record: StepRecord) -> None:
        if record.step == self.last or (self.n is not None and record.step % self.n == 0):
            self.action(record)


class Evaluate:
    """Score the model, remember the best aggregate, keep the best weights, stop when it no longer improves.

    Args:
        run: its `memory["best"]` holds {step, aggregate, scores} of the best evaluation so far.
        evaluate: () -> main score by task, greater is better; called on all ranks, rank 0's scores count.
        best: file for the weights of the best evaluation (safetensors); None = do not keep them.
        patience: stop after so many evaluations in a row without a new best; None = never.
        writer: where the scores are written.
    """

    def __init__(
        self, run: Run, evaluate: Callable[[], Mapping[str, float]], *, best: Path | None = None,
        patience: int | None = None, writer: MetricsWriter | None = None,
    ) -> None:
        self.run, self.evaluate, self.best, self.patience, self.writer = run, evaluate, best, patience, writer

    def __call__(self, record: StepRecord) -> None:
        from accelerate.utils import broadcast_object_list

        scores = broadcast_object_list([dict(self.evaluate())])[0]  # all ranks must decide alike
        value = aggregate(scores)
        if self.writer:
            self.writer.write("eval", step=record.step, scores=scores, aggregate=value)
        memory = self.run.memory
        if "best" not in memory or value > memory["best"]["aggregate"]:
            memory["best"] = {"step": record.step, "aggregate": value, "scores": scores}
            memory["since_best"] = 0
            if self.best:
                checkpoint.save_weights(self.run, self.best)
            return
        memory["since_best"] += 1
        if self.patience is not None and memory["since_best"] >= self.patience:
            self.run.stopped = (f"no better mean score in {self.patience} evaluations since step "
                                f"{memory['best']['step']}")


class Save:
    """Write a checkpoint; see mtnlp.train.checkpoint."""

    def __init__(self, run: Run, folder: Path, *, keep: int | None = 2) -> None:
        self.run, self.folder, self.keep = run, folder, keep

    def __call__(self, record: StepRecord) -> None:
        checkpoint.save(self.run, self.folder, keep=self.keep)


class MetricsWriter:
    """Appends one JSON object per line to metrics.jsonl: {"kind": "step" | "eval" | ..., "step": ..., ...}.

    Args:
        path: the file; made if need be.
        step: where the run starts. Lines of later steps, left by a run that went on after its last
            checkpoint, are dropped, so a resumed file reads like that of a run never interrupted.
        enabled: False = write nothing (all ranks but the first).
    """

    def __init__(self, path: Path, *, step: int = 0, enabled: bool = True) -> None:
        self.file: TextIO | None = None
        if enabled:
            path.parent.mkdir(parents=True, exist_ok=True)
            _drop_later(path, step)
            self.file = path.open("a", encoding="utf-8")

    def __call__(self, record: StepRecord) -> None:
        self.write("step", step=record.step, losses=record.losses, lr=record.lr, grad_norm=record.grad_norm,
                   seconds=round(record.seconds, 6), tokens=record.tokens, useful_share=record.useful_share)

    def write(self, kind: str, *, step: int, **values: Any) -> None:
        if self.file:
            self.file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            self.file.flush()

    def close(self) -> None:
        if self.file:
            self.file.close()


class Progress:
    """How far the run is: a bar on a terminal; elsewhere one line every so often, and one at the end.

    Args:
        total: steps of the run; done: steps before this start.
        seconds: between two lines where there is no terminal.
        stream: default stderr, so that stdout stays for results.
        enabled: False = silent.
    """

    def __init__(
        self, total: int, *, done: int = 0, seconds: float = 30.0, stream: TextIO | None = None,
        enabled: bool = True,
    ) -> None:
        self.total, self.seconds, self.enabled = total, seconds, enabled
        self.stream = stream or sys.stderr
        self.said = time.monotonic()
        self.bar = self._bar(done) if enabled and self.stream.isatty() else None

    def __call__(self, record: StepRecord) -> None:
        if not self.enabled:
            return
        loss = sum(record.losses.values()) / len(record.losses)
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=record.step, loss=loss)
        elif record.step == self.total or time.monotonic() - self.said >= self.seconds:
            self.said = time.monotonic()
            rate = record.tokens / record.seconds if record.seconds else 0.0
            numbers = f"loss {loss:.4f}  lr {record.lr:.2e}  {rate:,.0f} tokens/s"
            print(f"step {record.step}/{self.total}  {numbers}", file=self.stream, flush=True)

    def close(self) -> None:
        if self.bar:
            self.bar.stop()

    def _bar(self, done: int) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        bar = Progress(TextColumn("training"), BarColumn(), MofNCompleteColumn(),
                       TextColumn("loss {task.fields[loss]:.4f}"), TimeRemainingColumn(),
                       console=Console(file=self.stream))
        bar.add_task("training", total=self.total, completed=done, loss=float("nan"))
        bar.start()
        return bar


class Tracker:
    """Passes records on to the trackers of the accelerator (tensorboard, trackio, wandb).

    Args:
        accelerator: made with `log_with=[...]`, its trackers initialised by `init_trackers`.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    def __call__(self, record: StepRecord) -> None:
        losses = {f"loss/{task}": loss for task, loss in record.losses.items()}
        rest = {"lr": record.lr, "grad_norm": record.grad_norm,
                "tokens_per_second": record.tokens / record.seconds}
        self.accelerator.log({**losses, **rest}, step=record.step)

    def close(self) -> None:
        self.accelerator.end_training()


def _drop_later(path: Path, step: int) -> None:
    """Keep the whole lines of steps up to `step`."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text("utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue  # the line that was being written when the run was cut short
    part = path.with_name(path.name + ".part")
    part.write_text("".join(kept), encoding="utf-8")
    part.replace(path)
