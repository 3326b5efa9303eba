"""Save and resume a run, bit for bit, at any step.

    <folder>/step-00000500/   weights.safetensors    what is trained, by name
                              optimizer.safetensors  moments and step counts
                              balancer.safetensors   its parameters and state
                              state.json             step, tasks, seed, what callbacks remember

Only safetensors and JSON, never pickle. A checkpoint is written as `<name>.part` and renamed when it is
whole, so a folder with its proper name is complete. No state of a random generator is needed: plan and
dropout follow from (seed, step, rank). Sharded weights are gathered, so a run may resume on another number of
processes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from mtnlp.errors import MtnlpError
from mtnlp.train.grads import placed, whole

if TYPE_CHECKING:
    from mtnlp.train.loop import Run

VERSION = 1
ROW_LAYOUT = "row_layout"  # what the files' metadata call it
NAME = re.compile(r"step-(\d{8,})")


def save(run: Run, folder: Path, *, keep: int | None = None) -> Path:
    """Write everything a resume needs into `<folder>/step-<number>`; all ranks must call it.

    Args:
        folder: holds the checkpoints of one run; made if need be.
        keep: remove the oldest checkpoints beyond so many; None = keep all.

    Returns:
        The checkpoint's path. One that is already there is left as it is.
    """
    path = folder / f"step-{run.step:08d}"
    tables = {
        "weights": _gathered(run.model.trainable_state()),
        "optimizer": _gathered(run.optimizer.state()),
        "balancer": _gathered(run.balancer.state_dict()),
    }
    if run.accelerator.is_main_process and not path.exists():
        state = {
            "version": VERSION,
            "step": run.step,
            "seed": run.seed,
            "tasks": list(run.tasks),
            "max_tokens": run.max_tokens,
            "stopped": run.stopped,
            "memory": run.memory,
        }
        _write(path, tables, state, run.model.row_layout)
        for old in checkpoints(folder)[:-keep] if keep else []:
            shutil.rmtree(old.rename(_part(old)))  # cut short, it leaves nothing that looks whole
    run.accelerator.wait_for_everyone()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, oldest first; [] if there is none."""
    return sorted((p for p in folder.glob("step-*") if NAME.fullmatch(p.name)), key=lambda p: int(p.name[5:]))


def load(run: Run, path: Path) -> None:
    """Put `run` where it was when `path` was saved. After an error `run` may hold parts of it.

    Raises:
        MtnlpError: no checkpoint there, a damaged one, or one of other tasks or another seed.
    """
    state = read_state(path)
    for key, here in (("tasks", list(run.tasks)), ("seed", run.seed)):
        if state[key] != here:
            raise MtnlpError(
                f"{path}: saved with {key} {state[key]}, but this run has {here}. "
                "Resume with the recipe in the run's folder, or start a new run."
            )
    weights, optimizer, balancer = (
        read_table(path / f"{name}.safetensors", run.model.row_layout)
        for name in ("weights", "optimizer", "balancer")
    )
    load_weights(run, weights)
    run.optimizer.load_state(optimizer)
    try:
        run.balancer.load_state_dict(balancer)
    except RuntimeError as error:
        raise MtnlpError(f"{path}: saved with another balancer. {error}") from error
    run.step, run.max_tokens, run.stopped = state["step"], state["max_tokens"], state["stopped"]
    run.memory.clear()
    run.memory.update(state["memory"])
    if "ended" in run.memory:
        run.finish({})


def load_weights(run: Run, weights: Mapping[str, Tensor]) -> None:
    """Copy full tensors by name into what `run` trains, cut over ranks where it is sharded."""
    here = run.model.trainable_state()
    run.model.load_trainable_state(
        {name: placed(tensor, here[name]) if name in here else tensor for name, tensor in weights.items()}
    )


def save_weights(run: Run, path: Path, *, only: Collection[str] | None = None) -> None:
    """Write what is trained to one safetensors file, whole or not at all; all ranks must call it.

    Args:
        only: tasks of which the parameters of their own are written; the rest stays as the file has it.
    """
    table = run.model.trainable_state()
    if only is not None:
        table = {name: table[name] for task in only for name in _own(run, task)}
    weights = _gathered(table)
    if run.accelerator.is_main_process:
        if only is not None:
            weights = read_table(path, run.model.row_layout) | weights
        part = _part(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(part, weights, run.model.row_layout)
        part.replace(path)
        _sync(path.parent)
    run.accelerator.wait_for_everyone()


def _own(run: Run, task: str) -> list[str]:
    """Names in `trainable_state` of what belongs to one task alone."""
    head = run.model.head_parameters(run.tasks.index(task))
    row = [f"bank/{task}"] if run.model.strategy.bank is not None else []
    return [f"head/{task}/{name}" for name in head] + row


def read_state(path: Path) -> dict:
    """A checkpoint's state.json. MtnlpError if it is missing, damaged, or of a later version of mtnlp."""
    try:
        state = json.loads((path / "state.json").read_text("utf-8"))
    except FileNotFoundError as error:
        raise MtnlpError(f"{path} is no checkpoint: it holds no state.json.") from error
    except ValueError as error:
        raise MtnlpError(f"{path / 'state.json'} is damaged: {error}. Take an earlier checkpoint.") from error
    if state["version"] != VERSION:
        raise MtnlpError(f"{path} is of checkpoint version {state['version']}; this mtnlp reads {VERSION}.")
    return state


def read_table(path: Path, row_layout: str = "") -> dict[str, Tensor]:
    """The tensors of one safetensors file.

    Args:
        row_layout: of the model that they are for, see `MultitaskModel.row_layout`; empty = of no concern.

    Raises:
        MtnlpError: it is missing or damaged, or the rows in it are laid out otherwise.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            found = (file.metadata() or {}).get(ROW_LAYOUT, "")
            table = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise MtnlpError(f"{path} is missing or damaged: {error}. Take an earlier checkpoint.") from error
    if row_layout and found != row_layout:
        raise MtnlpError(
            f"{path}: the parameters of single tasks are laid out otherwise than in this model. Another "
            "version of mtnlp or transformers saved them, or another strategy. Use what saved them, or train "
            "again."
        )
    return table


def write_table(path: Path, table: Mapping[str, Tensor], row_layout: str = "") -> None:
    """Write tensors (whole, contiguous, on the CPU) to a safetensors file; it is on the disk afterwards."""
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode  # what the umask allows; save_file leaves a file for its owner only
    save_file(dict(table), path, metadata={"format": "pt", ROW_LAYOUT: row_layout})
    path.chmod(mode)
    _sync(path)


def _gathered(table: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Full tensors on the CPU; sharded ones are gathered one at a time, so all ranks must come here."""
    return {name: whole(tensor.detach()).cpu().contiguous() for name, tensor in table.items()}


def _write(path: Path, tables: Mapping[str, Mapping[str, Tensor]], state: dict, row_layout: str) -> None:
    for left in path.parent.glob("step-*.part"):  # by a save that was cut short
        shutil.rmtree(left)
    (part := _part(path)).mkdir(parents=True)
    for name, table in tables.items():
        write_table(part / f"{name}.safetensors", table, row_layout)
    with (part / "state.json").open("w", encoding="utf-8") as file:
        json.dump(state, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    _sync(part)
    part.rename(path)
    _sync(path.parent)


def _part(path: Path) -> Path:
    """What `path` is called while it is not whole."""
    return path.with_name(path.name + ".part")


def _sync(path: Path) -> None:
    """Make the disk hold a file's content, or a folder's names, before anything relies on it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
