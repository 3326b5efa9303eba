"""`finetune` with `safe: true`: the joint run, every task alone, and of each task what held-out rows choose.

recipe.yaml ...     once it is finished, a run folder like any other: of the lora-per-task model that ships
safe.json           what was chosen of every task and why, and what came of it
alone/recipe.yaml   the recipe that was asked for; a resume goes by it
alone/<run>/        the joint run and the single-task runs, as `mtnlp compare` keeps them

Which rows decide: those of `eval.split`, or of validation, never test. The runs below `alone/` do not score
test rows; the shipped model does when all is chosen.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtnlp import assemble, config, resolve
from mtnlp.bench import comparison, ranks, statistics, tables
from mtnlp.bench.comparison import Side
from mtnlp.bench.evaluate import Report
from mtnlp.bench.suites import Entry, Suite
from mtnlp.compare import choice, reuse
from mtnlp.compare.choice import Choice
from mtnlp.compare.chosen import Chosen
from mtnlp.compare.reuse import Job
from mtnlp.config import Recipe
from mtnlp.errors import MtnlpError
from mtnlp.resolve import Plan
from mtnlp.runs import blends, compare, harness, lineup, train
from mtnlp.runs.blends import Candidates, Sources
from mtnlp.runs.folder import RunFolder
from mtnlp.runs.hints import next_steps
from mtnlp.runs.lineup import Group
from mtnlp.runs.start import FRESH, Start
from mtnlp.runs.targets import RunTarget, Target
from mtnlp.runs.trained import Trained

if TYPE_CHECKING:
    from rich.console import Console

    from mtnlp.data.task_data import TaskData

ALONE, CHOSEN = "alone", "safe.json"
SHARING = "lora"  # whose private form fits into one model with the shared one
APART = ("lora-per-task", "adapters", "heads")
BOTH = (0.0, 1.0)  # shares of the private update: the joint run, and those of single tasks
COPIED = ("metrics.jsonl", "ledger.json", "versions.json")  # what the joint run tells of its training
Answered = dict[str, dict[str, Side]]  # candidate -> task -> what it did


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
    """Train a recipe that says `safe: true`: docs/safe-mode.md. `runs.start.trainer` comes here for those.

    Where there is nothing to choose, it is trained as `runs.train.finetune` does, and a line says why.

    Returns:
        The final table of the shipped model; None after a dry run.

    Raises:
        MtnlpError: as `train.finetune`, or a strategy whose parts do not fit into one model, a task without
            held-out rows, several processes.
    """
    overrides, console = list(overrides), console or tables.console()
    say = _printer(console)
    options = {"resume": resume, "force": force, "dry_run": dry_run}
    usual = partial(
        train.finetune,
        source,
        overrides,
        out=out,
        **options,
        trust_remote_code=trust_remote_code,
        console=console,
        start=start,
    )
    recipe, _ = config.read(source, overrides)  # `resolve` tells all that is wrong with it
    assert recipe is not None, "a recipe that cannot be read never says `safe: true`"
    place = Path(out or Path("runs") / recipe.name)
    if not (why := _needless(recipe, start)):
        plan = resolve.resolve(source, overrides, look=train.bad_scored_rows)
        _check(recipe)
        if len(plan.names) > 1:
            return _Run(plan, _Folder(place), trust_remote_code, say).whole(**options, console=console)
        why = f"{plan.names[0]} is alone already"
    _not_shipped(place, resume)
    say(f"safe: {why}; trained as usual.")
    return usual()


def _printer(console: Console) -> Callable[[Any], None]:
    def say(item: Any) -> None:
        if isinstance(item, str):
            console.print(item, markup=False, soft_wrap=True)
        else:
            item(console)

    return say


# Before training.


def _needless(recipe: Recipe, start: Start) -> str:
    """Why there is nothing to choose; empty if there is."""
    name = recipe.model.strategy.name
    if start is not FRESH:
        return "tasks that are added share nothing that is trained"
    alone = f"{name} shares no trained parameter between tasks, so none can hurt another"
    return alone if name in APART else ""


def _check(recipe: Recipe) -> None:
    """MtnlpError if this cannot be done at all."""
    if ranks.world() > 1:
        raise MtnlpError("safe: it runs in one process; start it without a launcher.")
    name = recipe.model.strategy.name
    if name != SHARING:
        raise MtnlpError(
            f"safe: what {name} trains for one task alone cannot be shipped in one model with what it trains "
            f"for all. Use model.strategy={SHARING}, or leave `safe` out."
        )


def _not_shipped(path: Path, resume: bool) -> None:
    """MtnlpError if this is to go on in the folder of a safe run: it would train over what ships."""
    asked = _Folder(path).recipe
    if resume and asked.exists():
        raise MtnlpError(
            f"--resume: {path} is a run of safe mode, and this is not the recipe that it was begun with: "
            f"that is {asked}."
        )


def held_out(recipe: Recipe, data: TaskData) -> str:
    """The split that decides about a task. MtnlpError if it has none."""
    for name in (recipe.eval.split, "validation"):
        if name in data.splits and name != "test" and len(data.rows(name)):
            return name
    raise MtnlpError(
        f"safe: {data.spec.name} has no validation rows to choose by, and test rows are never looked at for "
        "that. Give it a validation split, or leave `safe` out."
    )


@dataclass(frozen=True)
class _Folder(RunFolder):
    """The folder of a safe run, by the recipe that was asked for; a `RunFolder` there is what ships."""

    @property
    def recipe(self) -> Path:
        return self.path / ALONE / "recipe.yaml"

    @property
    def chosen(self) -> Path:
        return self.path / CHOSEN

    def check(self, plan: Plan, *, resume: bool, force: bool) -> None:
        if resume and self.holds_run():
            super().check(plan, resume=resume, force=force)
        else:
            RunFolder(self.path).check(plan, resume=resume, force=force)

    def create(self, plan: Plan, *, resume: bool) -> None:
        if not resume:
            plain = RunFolder(self.path)
            plain.create(plan, resume=False)
            reuse.write(self.recipe, plain.recipe.read_text("utf-8"))


# The whole of it.


@dataclass
class _Run:
    """One safe run. say: prints a text, or what prints itself on a console."""

    plan: Plan
    folder: _Folder
    trust: bool
    say: Callable[[Any], None]

    def whole(self, *, resume: bool, force: bool, dry_run: bool, console: Console) -> Report | None:
        """From the checks to the table; None after a dry run."""
        started = time.perf_counter()
        splits = {data.spec.name: held_out(self.plan.recipe, data) for data in self.plan.data}
        self.folder.check(self.plan, resume=resume, force=force)
        recipe = self.folder.as_begun(self.plan.recipe) if resume else self.plan.recipe
        self.plan = replace(self.plan, recipe=assemble.settle(recipe)[0])
        gates = self._gates()
        group, runs = self._group(), self.folder.path / ALONE
        jobs = [*group.joint, *(job for own in group.baselines.values() for job in own)]
        done = {job.name: compare.state(runs, job) for job in jobs}
        if dry_run:
            self.say("\n".join(compare.plan_lines(jobs, done, runs)))
            options = {"dry_run": True, "trust_remote_code": self.trust, "console": console}
            return train.finetune(group.joint[0].recipe, out=runs / f"{group.joint[0].name}.tried", **options)
        compare.try_joint([group], done, runs, self.trust)
        self.folder.create(self.plan, resume=resume)
        self.say("\n".join(compare.plan_lines(jobs, done, runs)))
        compare.train_missing([job for job in jobs if done[job.name] != "reused"], runs, self.say, self.trust)

        plain, sources = blends.as_rows(self.plan.recipe), _sources(group, runs)
        both = Candidates(plain, self.plan.specs, sources, BOTH, trust_remote_code=self.trust)
        chosen = self._choose(both, splits, gates)
        self._keep(chosen)
        self.say(chosen.print)
        report = self._ship(both, chosen, seconds=time.perf_counter() - started)
        self.say(next_steps(self.folder.path, self.plan.data))
        return report

    def _gates(self) -> tuple[float, ...]:
        """The blends to try: none where a layer is too small for twice the rank.

        Raises:
            MtnlpError: what ships cannot be made of this backbone.
        """
        backbone = assemble.build_backbone(self.plan.recipe, trust_remote_code=self.trust)
        if backbone.fresh:
            raise MtnlpError(
                f"safe: {backbone.described} has weights that no checkpoint gave it. Every run trains its "
                "own, so they cannot be shipped in one model. Use a backbone that is whole, or leave `safe` "
                "out."
            )
        for gates in (choice.GATES, ()):
            try:
                assemble.build_model(
                    blends.as_rows(self.plan.recipe, doubled=bool(gates)), self.plan.specs, backbone
                )
                return gates
            except MtnlpError as error:
                problem = error
        raise MtnlpError(f"safe: {problem}")

    def _group(self) -> Group:
        """The joint run and the baselines; the former is the run that would be without safe mode, but that it
        scores no test rows."""
        recipe = self.plan.recipe
        judged = recipe.eval.model_copy(update={"final_split": "validation"})
        plain = recipe.model_copy(update={"safe": False, "eval": judged})
        try:
            (group,) = lineup.groups(
                replace(self.plan, recipe=plain), {}, [recipe.seed], trust_remote_code=self.trust
            )
        except MtnlpError as error:
            raise MtnlpError(str(error).replace("compare: ", "safe: ", 1)) from None
        joint = replace(group.joint[0], recipe=plain)  # with its name and its trackers
        return replace(group, joint=(joint,))

    def _choose(self, both: Candidates, splits: Mapping[str, str], gates: tuple[float, ...]) -> Chosen:
        """Of every task, by its held-out rows. Blends are tried only for tasks that are not to be shared."""
        sources, (found, _) = both.sources, self._asked(both, splits)
        alone = found[choice.PRIVATE]
        choices = choice.first(alone, found[choice.SHARED], splits)
        hurt = [spec for spec in self.plan.specs if choices[spec.name].gate]
        if hurt and gates:
            doubled = blends.as_rows(self.plan.recipe, doubled=True)
            more = Candidates(doubled, hurt, sources, gates, trust_remote_code=self.trust)
            answered, _ = self._asked(more, {spec.name: splits[spec.name] for spec in hurt})
            for task in (spec.name for spec in hurt):
                sides = {gate: answered[choice.named(gate)][task] for gate in gates}
                choices[task] = choice.refined(choices[task], alone[task], sides)
        elif hurt:
            choices |= {spec.name: _without_blends(choices[spec.name]) for spec in hurt}
        made_from = {"joint": sources.joint, **sources.alone}
        places = {name: str(run.path.relative_to(self.folder.path)) for name, run in made_from.items()}
        return Chosen(tuple(choices[name] for name in self.plan.names), places, gates)

    def _asked(
        self, target: Target, splits: Mapping[str, str], resamples: int = 0
    ) -> tuple[Answered, Report]:
        """What all models of a target do on these splits of these tasks, row by row, and their scores."""
        opened = {data.spec.name: data for data in self.plan.data if data.spec.name in splits}
        entries = tuple(Entry(data.spec, splits[name], data.spec.metrics[0]) for name, data in opened.items())
        suite = Suite("own tasks", 1, "", entries, (), self.folder.path)
        found = harness.evaluate(target, suite, opened=opened, resamples=resamples)
        if found.report.skipped:
            raise MtnlpError("\n".join(f"{item['task']}: {item['reason']}" for item in found.report.skipped))
        sides = {
            model: {side.task: side for side in comparison.sides(found.judged, model)}
            for model in target.models
        }
        return sides, found.report

    def _ship(self, both: Candidates, chosen: Chosen, *, seconds: float) -> Report:
        """Write the model, score it on the final rows, and make the folder that of the model."""
        plain, specs, sources = RunFolder(self.folder.path), self.plan.specs, both.sources
        gated = [one.task for one in chosen.choices if one.way == choice.GATED]
        recipe = blends.as_rows(self.plan.recipe, gated=gated)
        found = {one.task: sources.blend(one.task, one.gate) for one in chosen.choices}
        blends.ship(plain, recipe, specs, found, trust_remote_code=self.trust)
        for name in COPIED:
            shutil.copyfile(sources.joint.path / name, plain.path / name)

        splits = {data.spec.name: train.final_split(recipe, data) for data in self.plan.data}
        shipped = RunTarget(Trained(str(plain.path), plain.path, recipe, specs), trust_remote_code=self.trust)
        answers, report = self._asked(shipped, splits, statistics.RESAMPLES)
        known, _ = self._asked(both, splits)
        sides = (known[choice.PRIVATE], known[choice.SHARED], answers[""])
        finals = tuple(choice.final(*(side[task] for side in sides), split) for task, split in splits.items())
        chosen = replace(chosen, finals=finals)
        report = Report(report.scores, self._about(sources, chosen, recipe, seconds))
        self._keep(chosen)
        reuse.write(plain.recipe, _written(config.load(self.folder.recipe), recipe, chosen))
        report.save(plain.results)
        self.say(report.print)
        self.say(chosen.print_final)
        return report

    def _about(self, sources: Sources, chosen: Chosen, recipe: Recipe, seconds: float) -> dict[str, Any]:
        ways = [one.way for one in chosen.choices]
        counts = ", ".join(
            f"{ways.count(way)} {way}" for way in (choice.SHARED, choice.PRIVATE, choice.GATED)
        )
        joint = json.loads(sources.joint.results.read_text("utf-8"))["about"]
        about = {"run": recipe.name, "strategy": recipe.model.strategy.name, "seconds": round(seconds, 1)}
        return {**joint, **about, "safe": counts}

    def _keep(self, chosen: Chosen) -> None:
        text = json.dumps(chosen.as_dict(), indent=2, ensure_ascii=False)
        reuse.write(self.folder.chosen, text + "\n")


def _sources(group: Group, runs: Path) -> Sources:
    def folder(job: Job) -> RunFolder:
        return RunFolder(runs / job.name)

    return Sources(folder(group.joint[0]), {task: folder(jobs[0]) for task, jobs in group.baselines.items()})


def _without_blends(one: Choice) -> Choice:
    return replace(one, reason=f"{one.reason}; no blend was tried: a layer is too small for twice the rank")


def _written(asked: Recipe, recipe: Recipe, chosen: Chosen) -> str:
    """The recipe of what ships, as the folder keeps it, with a remark on what it was made from.

    Args:
        asked: as the folder keeps the recipe that was asked for.
    """
    made = asked.model_copy(update={"model": recipe.model})
    ways = "".join(
        f"#   {one.task}: {choice.named(one.gate)}, of {_of(one, chosen)}\n" for one in chosen.choices
    )
    return (
        f"# Made by safe mode from the runs of {ALONE}/recipe.yaml; {CHOSEN} says why.\n{ways}{made.dump()}"
    )


def _of(one: Choice, chosen: Chosen) -> str:
    runs = {choice.SHARED: ["joint"], choice.PRIVATE: [one.task]}.get(one.way, ["joint", one.task])
    return " and ".join(chosen.made_from[name] for name in runs)
