"""What `mtnlp compare` does: every task alone and all of them together, over several seeds, and the verdicts.

    runs/<task or joint>-<seed>-<key>/   a run folder, and beside it a .json of what its weights follow from
    engine.json                          what was measured once, so that all runs compute alike
    compare.json, compare.html           what came of it

A run whose key is there and finished is reused, one that was begun goes on, so the same command continues
after an interruption.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtnlp import balancers, config, resolve, samplers, strategies
from mtnlp.bench import ranks, tables
from mtnlp.compare import budget, page, reuse
from mtnlp.compare.outcome import Outcome
from mtnlp.compare.reuse import JOINT, Job
from mtnlp.config import Slot
from mtnlp.errors import MtnlpError, RecipeError, TrainingError
from mtnlp.resolve import Plan
from mtnlp.runs import lineup, tally, train
from mtnlp.runs.folder import RunFolder
from mtnlp.runs.lineup import Group

OURS = ("runs", "engine.json", "compare.json", "compare.html")
ROOMS = {"strategies": strategies, "samplers": samplers, "balancers": balancers}
DONE = {"to train": "trained", "to resume": "resumed", "reused": "reused"}
ONE_SEED = "One seed: what other seeds would give is not in the intervals. --seeds 3 puts it there."


def compare(
    source: config.Source,
    overrides: Iterable[str] = (),
    *,
    seeds: int = 3,
    axes: Mapping[str, Sequence[str]] | None = None,
    out: Path | None = None,
    trust_remote_code: bool = False,
    console: Any = None,
) -> Outcome:
    """Train what is missing, and compare; see docs/compare.md.

    Args:
        seeds: how many, from the recipe's own on.
        axes: "strategies", "samplers", "balancers" -> names to sweep over.
        out: the folder; default runs/<name>-compare.

    Raises:
        RecipeError: as `finetune`. MtnlpError: one task only, no seeds, a name that does not exist, methods
            that do not go together, a folder that holds other files.
    """
    console = console or tables.console()

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    if seeds < 1:
        raise MtnlpError(f"--seeds: expected at least 1, got {seeds}.")
    if ranks.world() > 1:
        raise MtnlpError("compare runs in one process; start it without a launcher.")
    plan = resolve.resolve(source, overrides)
    _check(plan, axes or {})
    place = out or Path("runs", f"{plan.recipe.name}-compare")
    check_out(place)
    engine, runs = place / "engine.json", place / "runs"
    plan = replace(plan, recipe=lineup.settled(plan.recipe, engine))
    wanted = range(plan.recipe.seed, plan.recipe.seed + seeds)
    groups = lineup.groups(plan, axes or {}, wanted, trust_remote_code=trust_remote_code)
    jobs = list({job.name: job for group in groups for job in group.jobs}.values())
    done = {job.name: state(runs, job) for job in jobs}
    try_joint(groups, done, runs, trust_remote_code)
    for line in plan_lines(jobs, done, runs):
        say(line)
    lineup.keep_engine(plan.recipe, engine)
    train_missing([job for job in jobs if done[job.name] != "reused"], runs, say, trust_remote_code)
    variants = tuple(tally.judged(groups, runs, trust_remote_code=trust_remote_code))
    told = tuple({"name": job.name, **_told(job), "done": DONE[done[job.name]]} for job in jobs)
    result = Outcome(plan.recipe.name, tuple(wanted), variants, told, (ONE_SEED,) if seeds == 1 else ())
    reuse.write(place / "compare.json", json.dumps(result.as_dict(), indent=2, ensure_ascii=False) + "\n")
    reuse.write(place / "compare.html", page.page(result))
    return result


# Before training.


def _check(plan: Plan, axes: Mapping[str, Sequence[str]]) -> None:
    """MtnlpError where there is nothing to compare, or a method that is swept over does not exist."""
    if len(plan.data) < 2:
        raise MtnlpError(
            f"compare: {plan.recipe.name} has one task, {plan.names[0]}, so there is nothing to compare: "
            "it is alone already. Add tasks, or train it with `mtnlp finetune`."
        )
    problems: list[str] = []
    for axis, names in axes.items():
        for name in names:
            own = budget.slot_of(plan.recipe, axis)
            try:
                config.build(f"--{axis}", own if own.name == name else Slot(name), ROOMS[axis])
            except RecipeError as error:
                problems += error.problems
    if problems:
        raise MtnlpError("\n".join(problems))


def check_out(out: Path) -> None:
    """MtnlpError if the folder is a file, or holds what no comparison has written."""
    if out.exists() and not out.is_dir():
        raise MtnlpError(f"--out {out} is a file; name a folder.")
    others = sorted(path.name for path in out.iterdir() if path.name not in OURS) if out.exists() else []
    if others:
        raise MtnlpError(
            f"--out {out} holds other files ({', '.join(others[:3])}); name a new folder, or one that "
            "`mtnlp compare` has written."
        )


def try_joint(groups: Sequence[Group], done: Mapping[str, str], runs: Path, trust_remote_code: bool) -> None:
    """Build every joint run that is to be trained, so that what does not go together is told before hours of
    training."""
    for group in groups:
        job = group.joint[0]
        if all(done[job.name] == "reused" for job in group.joint):
            continue
        try:
            train.finetune(
                job.recipe,
                out=runs / f"{job.name}.tried",
                dry_run=True,
                trust_remote_code=trust_remote_code,
                console=_quiet(),
            )
        except MtnlpError as error:
            raise error if len(groups) == 1 else MtnlpError(f"{group.name}: {error}") from None


def _quiet() -> Any:
    from rich.console import Console

    return Console(quiet=True)


def plan_lines(jobs: Sequence[Job], done: Mapping[str, str], runs: Path) -> list[str]:
    """What is going to be done: a line for all, one for runs that differ in their seed only, and why what is
    there is not reused."""
    states = list(done.values())
    counts = ", ".join(f"{states.count(state)} {state}" for state in DONE)
    lines, alike = [f"{len(jobs)} runs in {runs}: {counts}."], {}
    for job in jobs:
        shape = json.dumps({key: value for key, value in job.parts.items() if key != "seed"}, default=str)
        alike.setdefault(shape, []).append(job)
    for own in alike.values():
        told = _told(own[0])
        steps, each = told["steps"], told["examples_per_step"]
        seeds = ", ".join(f"{job.seed} {done[job.name]}" for job in own)
        rows = f"{steps:,} steps of {each} rows = {steps * each:,} rows"
        lines.append(f"  {_described(own[0])}: {rows}; seeds {seeds}.")
    reasons = (reuse.reason(runs, job) for job in jobs if done[job.name] == "to train")
    return [*lines, *(f"  {line}" for line in dict.fromkeys(reasons) if line)]


def _described(job: Job) -> str:
    recipe = job.recipe
    methods = [recipe.model.strategy.name]
    methods += [recipe.sampler.name, recipe.balancer.name] if job.label == JOINT else []
    return f"{job.label} ({', '.join(methods)})"


def _told(job: Job) -> dict[str, Any]:
    steps = resolve.total_steps(job.recipe, [len(data.rows("train")) for data in job.data])
    each = job.recipe.train.examples_per_step
    return {"label": job.label, "seed": job.seed, "steps": steps, "examples_per_step": each}


# Training.


def state(runs: Path, job: Job) -> str:
    """What is to be done about a run."""
    folder = RunFolder(runs / job.name)
    if _finished(folder):
        return "reused"
    return "to resume" if _can_go_on(folder, job) else "to train"


def _finished(folder: RunFolder) -> bool:
    """Whether a run is whole: a kill may have cut its last file off."""
    try:
        return bool(json.loads(folder.results.read_text("utf-8"))["scores"]) and folder.weights.exists()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _can_go_on(folder: RunFolder, job: Job) -> bool:
    """Whether a run was begun there that can be resumed: the files that it reads may have been moved."""
    if not folder.holds_run():
        return False
    try:
        folder.check(Plan(job.recipe, job.data), resume=True, force=False)
    except MtnlpError:
        return False
    return True


def train_missing(
    jobs: Sequence[Job], runs: Path, say: Callable[[str], None], trust_remote_code: bool
) -> None:
    """Train what is not there; what was begun goes on where it was."""
    for i, job in enumerate(jobs, start=1):
        folder, started = RunFolder(runs / job.name), time.perf_counter()
        resume = _can_go_on(folder, job)
        if not resume:
            folder.remove()  # what a kill has left of its beginning
        reuse.note(runs, job)
        try:
            report = train.finetune(
                job.recipe,
                out=folder.path,
                resume=resume,
                trust_remote_code=trust_remote_code,
                console=_quiet(),
            )
        except TrainingError as error:
            raise TrainingError(f"{job.name}: {error}") from None
        shutil.rmtree(folder.checkpoints, ignore_errors=True)  # only a resume reads them
        seconds = time.perf_counter() - started
        say(f"{i}/{len(jobs)} {_described(job)}, seed {job.seed}: {report.mean:.3f} in {seconds:.0f} s")
