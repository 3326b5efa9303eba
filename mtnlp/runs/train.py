"""`finetune`: from a recipe to a run folder."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtnlp import assemble, config
from mtnlp.assemble import Plan
from mtnlp.bench.evaluate import Report, evaluate, goodness
from mtnlp.errors import MtnlpError
from mtnlp.runs.folder import RunFolder
from mtnlp.runs.session import questions_of, train_targets, training_stores

if TYPE_CHECKING:
    from rich.console import Console

    from mtnlp.data.encode import Encoder
    from mtnlp.train.loop import Run


def finetune(source: config.Source, overrides: Iterable[str] = (), *, out: Path | None = None, resume: bool = False,
             force: bool = False, dry_run: bool = False, trust_remote_code: bool = False,
             console: Console | None = None) -> Report | None:
    """Train one backbone on all tasks of a recipe; see mtnlp.finetune for the arguments.

    Returns:
        The final table, on all ranks; None after a dry run.
    """
    started = time.perf_counter()
    plan = assemble.resolve(source, overrides)
    folder = RunFolder(Path(out or Path("runs") / plan.recipe.name))
    folder.check(plan.recipe, resume=resume, force=force)

    accelerator = _accelerator(plan, folder)
    say = _printer(console, accelerator)
    backbone = assemble.build_backbone(plan.recipe, trust_remote_code=trust_remote_code)
    encoder = assemble.encoder_for(plan.recipe, backbone.tokenizer, backbone.family)
    with accelerator.main_process_first():  # the others find the token stores made
        stores = training_stores(plan, encoder)
    run = assemble.build_run(plan, backbone, stores, encoder, accelerator)
    say(assemble.summary(plan, run))
    if dry_run:
        say("Dry run: everything is in order, nothing was written.")
        return None

    if accelerator.is_main_process:
        folder.create(plan.recipe, plan.specs, resume=resume)
    accelerator.wait_for_everyone()
    if resume:
        _resume(run, folder, say)
    judge = _Judge(plan, run, encoder)
    _train(plan, run, folder, judge, say)
    report = judge.final(seconds=time.perf_counter() - started)
    _export(run, folder)
    if accelerator.is_main_process:
        report.save(folder.results)
    say(report)
    say(_next_steps(folder, plan))
    return report


def _accelerator(plan: Plan, folder: RunFolder) -> Any:
    trackers = list(plan.recipe.track)
    if not trackers:
        return assemble.build_accelerator(plan.recipe)
    _require_trackers(trackers)
    return assemble.build_accelerator(plan.recipe, log_with=trackers, project_dir=str(folder.path))


def _require_trackers(trackers: list[str]) -> None:
    from importlib.util import find_spec

    for name in trackers:
        if find_spec(name) is None and not (name == "tensorboard" and find_spec("tensorboardX")):
            raise MtnlpError(f'track: {name} is not installed. Run: pip install "mtnlp[track]"')


def _printer(console: Console | None, accelerator: Any) -> Callable[[Any], None]:
    """Prints text and reports, on the first rank only."""
    from rich.console import Console

    console = console or Console(highlight=False)

    def say(item: Any) -> None:
        if not accelerator.is_main_process:
            return
        if isinstance(item, Report):
            item.print(console)
        else:
            console.print(item, markup=False, soft_wrap=True)

    return say


def _resume(run: Run, folder: RunFolder, say: Callable[[Any], None]) -> None:
    from mtnlp.train import checkpoint

    saved = checkpoint.checkpoints(folder.checkpoints)
    if saved:
        checkpoint.load(run, saved[-1])
        run.stopped = "" if run.stopped == INTERRUPTED else run.stopped
        say(f"Resumed after step {run.step} of {run.steps}.")
    else:
        say("No checkpoint yet: starting from the first step.")


class _Judge:
    """Scores the run on its evaluation rows, and at the end on the final split."""

    def __init__(self, plan: Plan, run: Run, encoder: Encoder) -> None:
        self.plan, self.run = plan, run
        self.predictor = assemble.build_predictor(plan.recipe, run.model, encoder, run.accelerator)
        self.targets = {i: train_targets(data) for i, data in enumerate(plan.data)}
        self._questions: dict[int, Any] | None = None

    def scores(self) -> dict[str, float]:
        """Task -> main score on eval.split, greater is better."""
        settings = self.plan.recipe.eval
        if self._questions is None:
            self._questions = {i: questions_of(data, split, most=settings.rows) for i, data in enumerate(self.plan.data)
                               if (split := _split(data, settings.split))}
        report = evaluate(self.predictor, self._questions, self.targets, split=settings.split)
        return {score.task: goodness(score.main, score.kind, score.values[score.main]) for score in report.scores}

    def final(self, *, seconds: float) -> Report:
        """All rows of eval.final_split (validation for tasks that lack it), with the kept weights."""
        recipe, run = self.plan.recipe, self.run
        wanted = recipe.eval.final_split or recipe.eval.split
        parts = []
        by_split: dict[str, dict[int, Any]] = {}
        for i, data in enumerate(self.plan.data):
            if split := _split(data, wanted):
                by_split.setdefault(split, {})[i] = questions_of(data, split)
        for split, questions in by_split.items():
            parts += evaluate(self.predictor, questions, self.targets, split=split).scores
        order = {name: i for i, name in enumerate(self.plan.names)}
        about = {"run": recipe.name, "backbone": recipe.model.backbone, "strategy": recipe.model.strategy.name,
                 "step": run.memory.get("best", {}).get("step", run.step) if recipe.eval.keep == "best" else run.step,
                 "steps": run.step, "seconds": round(seconds, 1)}
        return Report(tuple(sorted(parts, key=lambda score: order[score.task])), about)


def _split(data: Any, wanted: str) -> str | None:
    """The wanted split of a task, else another one to judge on; None if it has only training rows."""
    return next((name for name in (wanted, "validation", "test") if name in data.splits), None)


def _train(plan: Plan, run: Run, folder: RunFolder, judge: _Judge, say: Callable[[Any], None]) -> None:
    from mtnlp.train import callbacks, checkpoint, loop

    settings, acc = plan.recipe.eval, run.accelerator
    writer = callbacks.MetricsWriter(folder.metrics, step=run.step, enabled=acc.is_main_process)
    progress = callbacks.Progress(run.steps, done=run.step, enabled=acc.is_main_process)
    judged = any(_split(data, settings.split) for data in plan.data)
    best = folder.weights if settings.keep == "best" and judged else None
    scored = callbacks.Evaluate(run, judge.scores, best=best, patience=settings.patience, writer=writer)
    save = callbacks.Save(run, folder.checkpoints)
    tracker = [callbacks.Tracker(acc)] if plan.recipe.track else []
    if tracker:
        acc.init_trackers(plan.recipe.name)
    todo = [writer, progress, *tracker, *([callbacks.Every(settings.every, scored, last=run.steps)] if judged else []),
            callbacks.Every(plan.recipe.train.checkpoint_every or settings.every, save, last=run.steps)]
    try:
        with _stopping(run):
            loop.fit(run, todo)
    finally:
        for item in (progress, writer, *tracker):
            item.close()
    if run.stopped == INTERRUPTED:
        run.stopped = ""
        checkpoint.save(run, folder.checkpoints, keep=2)
        say(f"Stopped after step {run.step} of {run.steps}; everything is saved.")
        raise KeyboardInterrupt
    if run.stopped:
        say(f"Stopped early: {run.stopped}.")
    if best:
        checkpoint.load_weights(run, checkpoint.read_table(best))
    else:
        checkpoint.save_weights(run, folder.weights)


INTERRUPTED = "interrupted"


@contextmanager
def _stopping(run: Run) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) ends the run after the current step, the second one at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: Any) -> None:
        if run.stopped == INTERRUPTED:
            raise KeyboardInterrupt
        run.stopped = INTERRUPTED

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _export(run: Run, folder: RunFolder) -> None:
    """Adapters in peft's format, where peft can express the strategy; all ranks must come here."""
    from safetensors.torch import save_file

    from mtnlp.train.grads import whole

    for task in run.tasks:
        exported = run.model.strategy.export(task)
        if exported is None:
            return
        settings, tensors = exported
        tensors = {name: whole(tensor.detach()).cpu().contiguous() for name, tensor in tensors.items()}
        if run.accelerator.is_main_process:
            place = folder.adapters / task.replace("/", "--")
            place.mkdir(parents=True, exist_ok=True)
            (place / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
            save_file(tensors, place / "adapter_model.safetensors", metadata={"format": "pt"})


def _next_steps(folder: RunFolder, plan: Plan) -> str:
    task = next((spec for spec in plan.specs if spec.kind in ("classify", "generate", "tag")), plan.specs[0])
    return (f"\nThe run lies in {folder.path}. Try next:\n"
            f"  echo 'Return the square root of x.' | mtnlp predict {folder.path} --task {task.name}\n"
            f"  mtnlp eval {folder.path} --split validation")
