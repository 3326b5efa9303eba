"""`finetune`: from a recipe to a run folder."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtnlp import assemble, config
from mtnlp.bench import tables
from mtnlp.bench.evaluate import Report, evaluate, goodness
from mtnlp.errors import RecipeError
from mtnlp.resolve import Plan, resolve, total_steps
from mtnlp.runs import ledger, room, trackers, versions
from mtnlp.runs.folder import RunFolder
from mtnlp.runs.hints import next_steps
from mtnlp.runs.session import bad_rows, questions_of, store_of, train_targets
from mtnlp.runs.start import FRESH, Start

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from mtnlp.config import Recipe
    from mtnlp.data.encode import Encoder
    from mtnlp.data.store import TokenStore
    from mtnlp.data.task_data import TaskData
    from mtnlp.models.multitask import MultitaskModel
    from mtnlp.train.callbacks import Progress
    from mtnlp.train.loop import Run


def finetune(
    source: config.Source,
    overrides: Iterable[str] = (),
    *,
    out: Path | None = None,
    resume: bool = False,
    force: bool = False,
    dry_run: bool = False,
    trust_remote_code: bool = False,
    console: Console | None = None,
    start: Start = FRESH,
) -> Report | None:
    """Train one backbone on all tasks of a recipe; see mtnlp.finetune for the arguments.

    Args:
        start: what the run begins with, and what becomes of it at its end.

    Returns:
        The final table, on all ranks; None after a dry run.
    """
    started = time.perf_counter()
    plan = resolve(source, overrides, look=bad_scored_rows)
    folder = start.folder(Path(out or Path("runs") / plan.recipe.name))
    folder.check(plan, resume=resume, force=force)
    recipe, engine = assemble.settle(folder.as_begun(plan.recipe) if resume else plan.recipe)
    plan = replace(plan, recipe=recipe)
    with engine.applied(training=True):
        accelerator = trackers.accelerator_for(plan, folder)
        say = _printer(console, accelerator)
        backbone = assemble.build_backbone(plan.recipe, trust_remote_code=trust_remote_code)
        encoder = assemble.encoder_for(plan.recipe, backbone.tokenizer, backbone.family)
        model = start.model(plan, backbone, trust_remote_code=trust_remote_code)
        _check_model(plan, model)
        with accelerator.main_process_first():  # the others find the token stores made
            where = config.label(source)
            stores = training_stores(plan, encoder, where, visible=accelerator.is_main_process)
        run = assemble.build_run(plan, backbone, stores, encoder, accelerator, model=model)
        _set_paces(plan, run)
        say("\n".join((assemble.summary(plan, run), *start.lines, engine.line)))
        if dry_run:
            say("Dry run: everything is in order, nothing was written.")
            return None

        if accelerator.is_main_process:
            folder.create(plan, resume=resume)
        accelerator.wait_for_everyone()
        trackers.start(plan, folder, accelerator, resume=resume)
        if resume:
            _resume(run, folder, say)
        judge = _Judge(plan, run, encoder)
        with _trunk(plan, run, stores, folder, say):
            _train(plan, run, folder, judge, say)
        with _status(accelerator.is_main_process) as tell:
            tell("scoring all rows")
            report = judge.final(seconds=time.perf_counter() - started)
        _export(run, folder)
        say(report)
        report = start.done(run, folder, report, say)
        say(next_steps(folder.path, plan.data))
        return report


# Before training.


def bad_scored_rows(recipe: Recipe, tasks: Sequence[TaskData], doubtful: bool) -> list[str]:
    """What is wrong with the rows that the run will be scored on; found now, not after training.

    Training rows are read when they are tokenised, and only if something is wrong already here too, so that
    everything is told at once.
    """
    problems = [problem for data in tasks for problem in _bad_judged_rows(recipe, data)]
    if problems or doubtful:
        found = [bad_rows(data, "train") for data in tasks]
        problems += [problem for problem in found if problem]
    return problems


def _bad_judged_rows(recipe: Recipe, data: TaskData, form: str = "encoder") -> list[str]:
    """A sentence, with file, line and field, per split with a bad row among those it is scored on."""
    judged = {_split_while_training(recipe, data): recipe.eval.rows, final_split(recipe, data): None}
    problems = [bad_rows(data, split, most=most, form=form) for split, most in judged.items() if split]
    return [problem for problem in problems if problem]


def _check_model(plan: Plan, model: MultitaskModel) -> None:
    """MtnlpError if a balancer, a pace or the memory does not fit it: told before rows are tokenised."""
    from mtnlp.train import apart

    recipe = plan.recipe
    assemble.build_balancer(recipe, model)
    steps = total_steps(recipe, [len(data.rows("train")) for data in plan.data])
    apart.check(model, recipe.train.lr_of, recipe.train.steps_of, steps)
    room.require(recipe, model)


def _set_paces(plan: Plan, run: Run) -> None:
    from mtnlp.train import apart

    apart.pace(run, plan.recipe.train.lr_of, plan.recipe.train.steps_of)


def training_stores(plan: Plan, encoder: Encoder, where: str, *, visible: bool) -> list[TokenStore]:
    """The tokenised training rows of every task; `where` is what messages call the recipe.

    Raises:
        RecipeError: every task with a row that cannot be used, each with file, line and field.
    """
    stores, problems = [], []
    with _status(visible) as tell:
        for i, data in enumerate(plan.data, start=1):
            tell(f"reading {i} of {len(plan.data)} tasks: {data.spec.name}")
            found = _bad_judged_rows(plan.recipe, data, encoder.form) if encoder.form != "encoder" else []
            problems += found
            stores += [] if found else [store_of(data, "train", encoder, problems)]
    if problems:
        raise RecipeError(where, problems)
    return stores


@contextmanager
def _status(visible: bool) -> Iterator[Callable[[str], None]]:
    """What is being done, on a terminal only."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if not visible or not console.is_terminal:
        yield lambda text: None
        return
    with console.status("") as status:
        yield status.update


def _split_while_training(recipe: Recipe, data: TaskData) -> str | None:
    """What a task is judged on during training: never on test unless the recipe says so."""
    return next((name for name in (recipe.eval.split, "validation") if name in data.splits), None)


def final_split(recipe: Recipe, data: TaskData) -> str | None:
    wanted = (recipe.eval.final_split or recipe.eval.split, "validation", "test")
    return next((name for name in wanted if name in data.splits), None)


def _printer(console: Console | None, accelerator: Any) -> Callable[[Any], None]:
    """Prints text and reports, on the first rank only."""
    console = console or tables.console()

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
        say(f"Resumed after step {run.step} of {run.steps}.")
    else:
        say("No checkpoint yet: starting from the first step.")


# Training.


class _Judge:
    """Scores the run on its evaluation rows, and at the end on the final split."""

    def __init__(self, plan: Plan, run: Run, encoder: Encoder) -> None:
        self.plan, self.run = plan, run
        self.predictor = assemble.build_predictor(plan.recipe, run.model, encoder, run.accelerator)
        self.targets = {i: train_targets(data) for i, data in enumerate(plan.data)}
        self._questions: dict[int, Any] | None = None

    def report(self) -> Report:
        """The scores on eval.split."""
        settings = self.plan.recipe.eval
        if self._questions is None:
            self._questions = {
                i: questions_of(data, split, most=settings.rows)
                for i, data in enumerate(self.plan.data)
                if (split := _split_while_training(self.plan.recipe, data))
            }
        return evaluate(self.predictor, self._questions, self.targets, split=settings.split)

    def final(self, *, seconds: float) -> Report:
        """All rows of eval.final_split (validation for tasks that lack it), with the kept weights."""
        by_split: dict[str, dict[int, Any]] = {}
        for i, data in enumerate(self.plan.data):
            if split := final_split(self.plan.recipe, data):
                by_split.setdefault(split, {})[i] = questions_of(data, split)
        scores = [
            score
            for split, questions in by_split.items()
            for score in evaluate(self.predictor, questions, self.targets, split=split).scores
        ]
        order = {name: i for i, name in enumerate(self.plan.names)}
        return Report(tuple(sorted(scores, key=lambda score: order[score.task])), self._about(seconds))

    def _about(self, seconds: float) -> dict[str, Any]:
        from mtnlp.train import apart

        recipe, run = self.plan.recipe, self.run
        best = run.memory.get("best", {}) if recipe.eval.keep == "best" else {}
        each = apart.kept_steps(run) if recipe.eval.keep == "best" else {}
        return {
            "run": recipe.name,
            "backbone": recipe.model.backbone,
            "strategy": recipe.model.strategy.name,
            "step": best.get("step", run.step),
            **({"step_of": each} if each else {}),
            "steps": run.step,
            "seconds": round(seconds, 1),
        }


@contextmanager
def _trunk(
    plan: Plan, run: Run, stores: Sequence[TokenStore], folder: RunFolder, say: Callable[[Any], None]
) -> Iterator[None]:
    """Inside, what the frozen lower blocks compute is kept, if the recipe says so; a file of each rank."""
    if not plan.recipe.train.cache_trunk:
        yield
        return
    trunk = assemble.keep_trunk(run, stores, folder.path / f"trunk-{run.accelerator.process_index}.cache")
    say(trunk.described)
    try:
        yield
    finally:
        run.model.trunk = None
        trunk.close()


def _train(plan: Plan, run: Run, folder: RunFolder, judge: _Judge, say: Callable[[Any], None]) -> None:
    from mtnlp.train import callbacks, checkpoint, conflicts, loop

    settings, acc = plan.recipe.eval, run.accelerator
    versions.note(folder.versions, run)
    writer = callbacks.MetricsWriter(folder.metrics, step=run.step, enabled=acc.is_main_process)
    progress = callbacks.Progress(run.steps, tasks=run.tasks, done=run.step, enabled=acc.is_main_process)
    judged = any(_split_while_training(plan.recipe, data) for data in plan.data)
    best = folder.weights if settings.keep == "best" and judged else None

    def scores() -> dict[str, float]:
        with progress.doing("scoring"):
            report = judge.report()
        progress.say(report.line(f"scores after step {run.step}", progress.short))
        return {
            score.task: goodness(score.main, score.kind, score.values[score.main]) for score in report.scores
        }

    scored = callbacks.Evaluate(run, scores, best=best, patience=settings.patience, writer=writer)
    tracker = [callbacks.Tracker(acc)] if plan.recipe.track else []
    save_every = plan.recipe.train.checkpoint_every or settings.every
    todo = [writer, progress, *tracker]
    if conflicts.possible(run):
        todo += [callbacks.Every(conflicts.EVERY, conflicts.Watch(run, writer), last=run.steps)]
    todo += [callbacks.Every(settings.every, scored, last=run.steps)] if judged else []
    todo += [callbacks.Every(save_every, callbacks.Save(run, folder.checkpoints), last=run.steps)]
    try:
        with _stopping(run, progress):
            loop.fit(run, todo)
        entries = ledger.keep(run, folder.ledger, writer, kept=best is not None)
    finally:
        for item in (progress, writer, *tracker):
            item.close()
    if run.stopped == loop.INTERRUPTED:
        run.stopped = ""
        checkpoint.save(run, folder.checkpoints, keep=2)
        say(f"Stopped after step {run.step} of {run.steps}; everything is saved.")
        raise KeyboardInterrupt
    if run.stopped:
        say(f"Stopped early: {run.stopped}.")
    ledger.tell(entries, say)
    if best:
        checkpoint.load_weights(run, checkpoint.read_table(best, run.model.row_layout))
    else:
        checkpoint.save_weights(run, folder.weights)


@contextmanager
def _stopping(run: Run, progress: Progress) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) ends the run after the current step, a second Ctrl-C at once.

    A second SIGTERM does not: on Ctrl-C, launchers send one to processes that the terminal has told already.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: Any) -> None:
        if run.asked_to_stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        run.asked_to_stop = True
        progress.stopping()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _export(run: Run, folder: RunFolder) -> None:
    """Adapters in peft's format, where peft can express the strategy; all ranks must come here."""
    from mtnlp.train.grads import whole

    for task in run.tasks:
        exported = run.model.strategy.export(task)
        if exported is None:
            return
        settings, tensors = exported
        tensors = {name: whole(tensor.detach()).cpu().contiguous() for name, tensor in tensors.items()}
        if run.accelerator.is_main_process:
            write_adapter(folder, task, settings, tensors)


def write_adapter(
    folder: RunFolder, task: str, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """What a strategy exports of a task (settings, whole tensors on the CPU), as peft's two files."""
    from mtnlp.train.checkpoint import write_table

    place = folder.adapters / task.replace("/", "--")
    place.mkdir(parents=True, exist_ok=True)
    (place / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
    write_table(place / "adapter_model.safetensors", tensors)
