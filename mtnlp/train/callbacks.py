"""What is done between steps: callbacks see the StepRecord of every step, in the order of their list.

The aggregate that "best" and "early" go by, where tasks share parameters, is the arithmetic mean, over the
tasks, of each task's main score (the first metric of its TaskSpec). Whoever scores sees to it that more is
better: mtnlp.bench.evaluate turns an error e into 1 / (1 + e).

Whatever must survive a resume stands in `run.memory`, which checkpoints hold; so put Save behind Evaluate.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mtnlp.train import apart, checkpoint

if TYPE_CHECKING:
    from accelerate import Accelerator

    from mtnlp.train.loop import Run, StepRecord

Callback = Callable[["StepRecord"], None]
LAST = ("ledger",)  # kinds of lines that stand at the end of a run's metrics, once


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
    """Score the model, keep the best weights, stop when they no longer improve.

    Where tasks share parameters, the aggregate decides, for all of them: `memory["best"]` holds {step,
    aggregate, scores} of the best evaluation so far. Where each has its own, each task is judged by its own
    score: see mtnlp.train.apart.

    Args:
        evaluate: () -> main score by task, greater is better; called on all ranks, rank 0's scores count.
        best: file for the best weights (safetensors); None = do not keep them.
        patience: stop after so many evaluations in a row without a new best; None = never.
        writer: where the scores are written.
    """

    def __init__(
        self,
        run: Run,
        evaluate: Callable[[], Mapping[str, float]],
        *,
        best: Path | None = None,
        patience: int | None = None,
        writer: MetricsWriter | None = None,
    ) -> None:
        self.run, self.evaluate, self.best, self.patience, self.writer = run, evaluate, best, patience, writer

    def __call__(self, record: StepRecord) -> None:
        from accelerate.utils import broadcast_object_list

        scores = broadcast_object_list([dict(self.evaluate())])[0]  # all ranks must decide alike
        if self.writer:
            self.writer.write("eval", step=record.step, scores=scores, aggregate=aggregate(scores))
        if apart.are_apart(self.run.model):
            apart.judge(self.run, scores, best=self.best, patience=self.patience)
        else:
            self._judge(record.step, scores, aggregate(scores))

    def _judge(self, step: int, scores: Mapping[str, float], value: float) -> None:
        memory = self.run.memory
        if "best" not in memory or value > memory["best"]["aggregate"]:
            memory["best"] = {"step": step, "aggregate": value, "scores": scores}
            memory["since_best"] = 0
            if self.best:
                checkpoint.save_weights(self.run, self.best)
            return
        memory["since_best"] += 1
        if self.patience is not None and memory["since_best"] >= self.patience:
            self.run.stopped = (
                f"no better mean score in {self.patience} evaluations since step {memory['best']['step']}"
            )


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
        self.write(
            "step",
            step=record.step,
            losses=record.losses,
            lr=record.lr,
            grad_norm=record.grad_norm,
            seconds=round(record.seconds, 6),
            tokens=record.tokens,
            useful_share=record.useful_share,
        )

    def write(self, kind: str, *, step: int, **values: Any) -> None:
        if self.file:
            self.file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            self.file.flush()

    def close(self) -> None:
        if self.file:
            self.file.close()


class Progress:
    """How far the run is, and the latest loss of every task: live on a terminal, else a line now and then.

    Args:
        total: steps of the run; done: steps before this start.
        tasks: all of them, in the order shown.
        seconds: between two lines where there is no terminal.
        stream: default stderr, so that stdout stays for results.
        enabled: False = silent.
    """

    def __init__(
        self,
        total: int,
        *,
        tasks: Sequence[str] = (),
        done: int = 0,
        seconds: float = 30.0,
        stream: TextIO | None = None,
        enabled: bool = True,
    ) -> None:
        self.total, self.seconds, self.enabled = total, seconds, enabled
        self.stream = stream or sys.stderr
        self.short, self.losses = short_names(tasks), dict.fromkeys(tasks, math.nan)
        self.said = time.monotonic()
        self.live = _Live(self, done) if enabled and self.stream.isatty() else None

    def __call__(self, record: StepRecord) -> None:
        self.losses.update(record.losses)
        if not self.enabled:
            return
        rate = record.tokens / record.seconds if record.seconds else 0.0
        if self.live:
            self.live.update(record.step, rate)
        elif record.step == self.total or time.monotonic() - self.said >= self.seconds:
            self.said = time.monotonic()
            named = {
                self.short.get(task, task): f"{loss:.3f}"
                for task, loss in self.losses.items()
                if loss == loss
            }
            each = _listed([f"{task} {loss}" for task, loss in named.items()])
            mean = sum(record.losses.values()) / len(record.losses)
            numbers = f"loss {mean:.4f}  {each}  lr {record.lr:.2e}  {rate:,.0f} tokens/s"
            self.say(f"step {record.step}/{self.total}  {numbers}")

    def say(self, text: str) -> None:
        """A line of its own."""
        if self.live:
            self.live.console.print(text, markup=False)
        elif self.enabled:
            print(text, file=self.stream, flush=True)

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Show what takes the time while it is not training."""
        if self.live:
            self.live.bar.update(0, what=what)
        yield
        if self.live:
            self.live.bar.update(0, what=TRAINING)

    def stopping(self) -> None:
        """Say that the run will stop; safe in a signal handler, where a stream may be in use already."""
        if self.live:
            self.live.bar.update(0, what=STOPPING)
        elif self.enabled:
            os.write(2, f"mtnlp: {STOPPING}\n".encode())

    def close(self) -> None:
        if self.live:
            self.live.stop()


TRAINING, STOPPING = "training", "stopping after this step; Ctrl-C again stops at once"
NAMED = 12  # tasks named in one line
LOSS_LINES = 6  # of losses under the bar


class _Live:
    """The bar and the losses under it, redrawn in place."""

    def __init__(self, progress: Progress, done: int) -> None:
        from rich.console import Console, Group
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console, self.progress = Console(file=progress.stream, highlight=False), progress
        speed = TextColumn("{task.fields[rate]:,.0f} tokens/s", style="dim")
        self.bar = Progress(
            TextColumn("{task.fields[what]:<8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            speed,
        )
        self.bar.add_task(TRAINING, total=progress.total, completed=done, what=TRAINING, rate=0.0)
        # A piped stdout is not ours to draw on.
        self.display = Live(
            Group(self.bar, self),
            console=self.console,
            refresh_per_second=5,
            redirect_stdout=sys.stdout.isatty(),
        )
        self.display.start()
        self.stop = self.display.stop

    def update(self, step: int, rate: float) -> None:
        self.bar.update(0, completed=step, rate=rate)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """The losses in columns, as many as fit."""
        from rich.text import Text

        cells = [(self.progress.short.get(task, task), loss) for task, loss in self.progress.losses.items()]
        width = max((len(name) for name, _ in cells), default=0) + 9
        columns = max(1, options.max_width // width)
        shown = cells if len(cells) <= columns * LOSS_LINES else cells[: columns * LOSS_LINES - 1]
        for start in range(0, len(shown), columns):
            line = Text(no_wrap=True, overflow="ellipsis")
            for name, loss in shown[start : start + columns]:
                line.append(f"{name} ", "dim").append(f"{_number(loss):<{width - len(name) - 1}}")
            yield line
        if len(shown) < len(cells):
            yield Text(f"and {len(cells) - len(shown)} more tasks", "dim")


def short_names(tasks: Iterable[str]) -> dict[str, str]:
    """Task -> the last part of its name, where that says which one it is."""
    lasts = {task: task.rpartition("/")[2] for task in tasks}
    count = Counter(lasts.values())
    return {task: last if count[last] == 1 else task for task, last in lasts.items()}


def _number(loss: float) -> str:
    return f"{loss:.3f}" if loss == loss else "-"


def _listed(parts: Sequence[str]) -> str:
    more = f"  and {len(parts) - NAMED} more" if len(parts) > NAMED else ""
    return "  ".join(parts[:NAMED]) + more


class Tracker:
    """Passes records on to the trackers of the accelerator (tensorboard, trackio, wandb).

    Args:
        accelerator: made with `log_with=[...]`, its trackers initialised by `init_trackers`.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    def __call__(self, record: StepRecord) -> None:
        losses = {f"loss/{task}": loss for task, loss in record.losses.items()}
        rest = {
            "lr": record.lr,
            "grad_norm": record.grad_norm,
            "tokens_per_second": record.tokens / record.seconds,
        }
        self.accelerator.log({**losses, **rest}, step=record.step)

    def close(self) -> None:
        self.accelerator.end_training()


def _drop_later(path: Path, step: int) -> None:
    """Keep the whole lines of steps up to `step`, but for what was written at the end of the run."""
    if not path.exists():
        return
    kept = []
    for text in path.read_text("utf-8").splitlines():
        try:
            line = json.loads(text)
            if line["step"] <= step and line["kind"] not in LAST:
                kept.append(text + "\n")
        except (ValueError, KeyError):
            continue  # the line that was being written when the run was cut short
    part = path.with_name(path.name + ".part")
    part.write_text("".join(kept), encoding="utf-8")
    part.replace(path)
