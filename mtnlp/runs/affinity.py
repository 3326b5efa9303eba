"""What `mtnlp affinity` does: one short joint run, measured every few steps, and groups to try.

affinity.json, affinity.html   in the folder; the short run itself is not kept
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtnlp import assemble, config, resolve
from mtnlp.bench import ranks, tables
from mtnlp.compare import affinity as maths
from mtnlp.compare import affinity_page, budget, reuse
from mtnlp.compare.affinity_found import Affinities
from mtnlp.config import Recipe, Slot
from mtnlp.errors import MtnlpError
from mtnlp.resolve import Plan
from mtnlp.runs import room, train, vectors
from mtnlp.tasks import names as known_tasks

if TYPE_CHECKING:
    from mtnlp.models.backbone import Backbone
    from mtnlp.models.multitask import MultitaskModel
    from mtnlp.train.affinity import Measured
    from mtnlp.train.loop import Run

OURS = ("affinity.json", "affinity.html", "group-*.yaml")
MEASUREMENTS, ROWS = 10, 16  # in a short run, at least; rows of a task in each, at least
SHARED = "lora"  # what is measured where a recipe's tasks share nothing
LONGEST = 600  # letters of tasks in a command line
LOST = 0.9  # share of a lookahead step below which rounding has taken too much of it


def affinity(
    source: config.Source,
    overrides: Iterable[str] = (),
    *,
    steps: int = 50,
    groups: int | None = None,
    runs: Sequence[str] = (),
    backbone: str | None = None,
    out: Path | None = None,
    trust_remote_code: bool = False,
    console: Any = None,
) -> Affinities:
    """Measure which tasks of a recipe go together; see docs/affinity.md.

    Args:
        steps: of the short run. groups: that there may be at most, None = any number.
        runs: finished runs or bundles whose task vectors are compared too. backbone: a folder or hub id to
            take in place of the one that a bundle names.
        out: the folder; default runs/<name>-affinity.

    Raises:
        RecipeError: as `finetune`. MtnlpError: one task only, a strategy without shared parameters, runs
            without adapters, a folder that holds other files.
    """
    overrides, console = list(overrides), console or tables.console()

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    plan = _checked(source, overrides, steps, groups)
    place = out or Path("runs", f"{plan.recipe.name}-affinity")
    check_out(place)
    learned = vectors.similarities(runs, backbone=backbone) if runs else None
    recipe, engine = assemble.settle(_short(plan, steps))
    with engine.applied(training=True):
        recipe, network, model, notes = _built(replace(plan, recipe=recipe), trust_remote_code)
        short = replace(plan, recipe=recipe)
        encoder = assemble.encoder_for(recipe, network.tokenizer, network.family)
        stores = train.training_stores(short, encoder, config.label(source), visible=True)
        accelerator = assemble.build_accelerator(recipe)
        run = assemble.build_run(short, network, stores, encoder, accelerator, model=model)
        say(assemble.summary(short, run))
        rows = max(ROWS, -(-recipe.train.examples_per_step // len(plan.data)))
        measured = _measured(run, rows)
    grouping, cosine, lookahead = _judged(measured, groups)
    for path in place.glob("group-*.yaml"):
        path.unlink()
    found = Affinities(
        plan.recipe.name, plan.names, recipe.model.strategy.name, steps, len(measured), rows,
        cosine, lookahead, grouping,
        commands=_commands(source, overrides, plan, recipe, grouping, place, trust_remote_code),
        vectors=learned, notes=(*notes, *_notes(plan, measured, lookahead)),
    )  # fmt: skip
    text = json.dumps(found.as_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    reuse.write(place / "affinity.json", text + "\n")
    reuse.write(place / "affinity.html", affinity_page.page(found))
    return found


# Before the short run.


def _checked(source: config.Source, overrides: Sequence[str], steps: int, groups: int | None) -> Plan:
    if steps < 2:
        raise MtnlpError(f"--steps: expected at least 2, got {steps}; the first one may only warm up.")
    if groups is not None and groups < 1:
        raise MtnlpError(f"--groups: expected at least 1, got {groups}. Leave it out for any number.")
    if ranks.world() > 1:
        raise MtnlpError("affinity runs in one process; start it without a launcher.")
    plan = resolve.resolve(source, overrides)
    if len(plan.data) < 2:
        raise MtnlpError(
            f"affinity: {plan.recipe.name} has one task, {plan.names[0]}, so there is nobody to help or hurt "
            "it. Add tasks."
        )
    return plan


def check_out(out: Path) -> None:
    """MtnlpError if the folder is a file, or holds what no measurement has written."""
    if out.exists() and not out.is_dir():
        raise MtnlpError(f"--out {out} is a file; name a folder.")
    names = sorted(path.name for path in out.iterdir()) if out.exists() else []
    others = [name for name in names if not any(fnmatchcase(name, own) for own in OURS)]
    if others:
        raise MtnlpError(
            f"--out {out} holds other files ({', '.join(others[:3])}); name a new folder, or one that "
            "`mtnlp affinity` has written."
        )


def _short(plan: Plan, steps: int) -> Recipe:
    """The recipe with so many steps, its warm-up in proportion, in float32: differences will be small."""
    recipe = plan.recipe
    total = resolve.total_steps(recipe, [len(data.rows("train")) for data in plan.data])
    warmup = recipe.train.warmup
    settings = {
        "steps": steps,
        "epochs": None,
        "warmup": warmup if warmup < 1 else float(max(1, round(warmup * steps / total))),
        "lr_of": {},
        "steps_of": {},
        "precision": "fp32",
        "matmul": "highest",
        "cache_trunk": False,
    }
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=settings)})


def _built(plan: Plan, trust_remote_code: bool) -> tuple[Recipe, Backbone, MultitaskModel, tuple[str, ...]]:
    """The recipe that is measured, its network and model; and what to say where it is not as it was given.

    Raises:
        MtnlpError: nothing is shared, and no part of the backbone learns.
    """
    recipe, notes = plan.recipe, ()
    backbone = assemble.build_backbone(recipe, trust_remote_code=trust_remote_code)
    model = assemble.build_model(recipe, plan.specs, backbone)
    if not model.shared_parameters():
        name = recipe.model.strategy.name
        if model.strategy.bank is None:
            raise MtnlpError(
                f"affinity: with strategy {name} tasks share no trained parameter, so none can help or hurt "
                f"another. To see what sharing would do, add model.strategy={SHARED}."
            )
        assemble.build_balancer(recipe, model)
        recipe = _sharing(recipe)
        notes = (f"{name} shares nothing between tasks; this was measured with {SHARED}, which does.",)
        backbone = assemble.build_backbone(recipe, trust_remote_code=trust_remote_code)
        model = assemble.build_model(recipe, plan.specs, backbone)
    room.require(recipe, model)
    return recipe, backbone, model, notes


def _sharing(recipe: Recipe) -> Recipe:
    """The recipe with one LoRA for all tasks, of the size of its own ones."""
    options = recipe.model.strategy.options
    kept = {key: options[key] for key in ("rank", "alpha", "dropout", "targets") if key in options}
    model = recipe.model.model_copy(update={"strategy": Slot(SHARED, kept)})
    return recipe.model_copy(update={"model": model})


# The short run, and what follows from it.


def _measured(run: Run, rows: int) -> list[Measured]:
    """Train, and measure about MEASUREMENTS times, after steps that moved something."""
    from mtnlp.train import affinity as probes
    from mtnlp.train import callbacks, loop

    every, found = max(1, run.steps // MEASUREMENTS), []
    progress = callbacks.Progress(run.steps, tasks=run.tasks)
    try:
        for record in loop.steps(run):
            progress(record)
            if record.step % every == 0 and record.lr > 0:
                with progress.doing("measuring"):
                    found.append(probes.measure(run, rows=rows, lr=record.lr))
    finally:
        progress.close()
    return found


def _judged(
    measured: Sequence[Measured], groups: int | None
) -> tuple[maths.Grouping, maths.Matrix, maths.Matrix]:
    cosine = maths.averaged([maths.cosines(one.gram) for one in measured])
    lookahead = maths.averaged([maths.lookahead(one.before, one.after) for one in measured])
    return maths.grouped(lookahead.mean, groups), cosine, lookahead


def _notes(plan: Plan, measured: Sequence[Measured], found: maths.Matrix) -> list[str]:
    """How sure the affinities are, and whether rounding has taken a part of them."""
    others = ~np.eye(len(found.mean), dtype=bool)
    means, errors = found.mean[others], found.error[others]
    clear = int((np.abs(means) > 2 * errors).sum())
    notes = [
        f"{clear} of {len(means)} affinities between tasks are more than two standard errors from 0; groups "
        "that rest on the others may be chance. More --steps make errors smaller."
    ]
    moved = np.array([one.moved for one in measured])
    lost = [name for name, own in zip(plan.names, moved.T, strict=True) if (own < LOST).any()]
    if lost:
        notes.append(
            f"The lookahead steps for {', '.join(lost)} were so small that rounding to float32 took over a "
            "tenth of them: their affinities are too near to 0. Raise train.lr, or measure with lora."
        )
    return notes


def _commands(
    source: config.Source,
    overrides: Sequence[str],
    plan: Plan,
    measured: Recipe,
    grouping: maths.Grouping,
    place: Path,
    trust_remote_code: bool,
) -> tuple[str, ...]:
    """A line per group that verifies it; a task alone is trained, as there is nothing to compare it with.

    Where tasks cannot be named in a line (their rows or templates stand in the recipe), the group gets a
    recipe file of its own in the folder.
    """
    entries, registered = budget.entries(plan.recipe), set(known_tasks())
    strategy, lines = measured.model.strategy, []
    given = [text for text in overrides if text.partition("=")[0].strip().split(".")[0] != "tasks"]
    if strategy != plan.recipe.model.strategy:
        given.append(f"model.strategy={json.dumps({'name': strategy.name, **strategy.options})}")
    model = plan.recipe.model.model_copy(update={"strategy": strategy})
    for i, group in enumerate(grouping.groups, start=1):
        own = [plan.names[task] for task in group]
        tasks = [name if name in registered else entries[name] for name in own]
        named, name = json.dumps(tasks, default=str), f"{plan.recipe.name}-group-{i}"
        if isinstance(source, (str, Path)) and len(named) <= LONGEST:
            recipe = [str(source), *given, f"tasks={named}"]
        else:
            path = place / f"group-{i}.yaml"
            changed = {"tasks": tuple(tasks), "name": name, "model": model}
            reuse.write(path, plan.recipe.model_copy(update=changed).dump())
            recipe = [str(path)]
        command = "compare" if len(own) > 1 else "finetune"
        words = ["mtnlp", command, *recipe, "--out", str(Path("runs", name))]
        lines.append(shlex.join(words + ["--trust-remote-code"] * trust_remote_code))
    return tuple(lines)
