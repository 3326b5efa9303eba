"""Experiment trackers: what a run needs of tensorboard, trackio or wandb before it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtnlp import assemble
from mtnlp.errors import MtnlpError

if TYPE_CHECKING:
    from mtnlp.resolve import Plan
    from mtnlp.runs.folder import RunFolder


def accelerator_for(plan: Plan, folder: RunFolder) -> Any:
    """Device and collectives of a run, with its trackers. MtnlpError if one of them is not installed."""
    trackers = list(plan.recipe.track)
    if not trackers:
        return assemble.build_accelerator(plan.recipe)
    _require(trackers)
    return assemble.build_accelerator(plan.recipe, log_with=trackers, project_dir=str(folder.path))


def _require(trackers: list[str]) -> None:
    from importlib.util import find_spec

    for name in trackers:
        if find_spec(name) is None and not (name == "tensorboard" and find_spec("tensorboardX")):
            raise MtnlpError(f'track: {name} is not installed. Run: pip install "mtnlp[track]"')


def start(plan: Plan, folder: RunFolder, accelerator: Any, *, resume: bool) -> None:
    """MtnlpError if a tracker refuses, as without an account; the new folder is removed again."""
    if not plan.recipe.track:
        return
    try:
        inside = {"wandb": {"dir": str(folder.path)}}  # by itself it writes into the current folder
        accelerator.init_trackers(plan.recipe.name, init_kwargs=inside)
    except Exception as error:  # each of them has errors of its own
        if accelerator.is_main_process and not resume:
            folder.remove()
        names = ", ".join(plan.recipe.track)
        raise MtnlpError(
            f"track: {names} could not start ({type(error).__name__}: {error}). Leave it out or set it up."
        ) from error
