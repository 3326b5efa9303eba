"""mtnlp: fine-tune one backbone on many NLP tasks at once, with a part of its own for each task.

    report = mtnlp.finetune("recipes/quickstart.yaml", "train.steps=100")
    model = mtnlp.load("runs/quickstart")
    model.predict([{"text": "..."}], task="pystdlib/module")

Importing this package loads nothing heavy; torch and the rest come with the first call.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtnlp.bench.evaluate import Report
    from mtnlp.config import Recipe, Slot
    from mtnlp.errors import DataError, MtnlpError, RecipeError, TrainingError
    from mtnlp.runs.saved import Model
    from mtnlp.tasks.spec import Example, TaskSpec, Template

__version__ = "0.1.0"

_HOMES = {  # public name -> the module that holds it, imported when the name is first used
    "Example": "mtnlp.tasks.spec",
    "TaskSpec": "mtnlp.tasks.spec",
    "Template": "mtnlp.tasks.spec",
    "Recipe": "mtnlp.config",
    "Slot": "mtnlp.config",
    "DataError": "mtnlp.errors",
    "MtnlpError": "mtnlp.errors",
    "RecipeError": "mtnlp.errors",
    "TrainingError": "mtnlp.errors",
}
__all__ = [
    "DataError",
    "Example",
    "MtnlpError",
    "Recipe",
    "RecipeError",
    "Slot",
    "TaskSpec",
    "Template",
    "TrainingError",
    "evaluate",
    "finetune",
    "load",
]


def finetune(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *overrides: str,
    out: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    dry_run: bool = False,
    trust_remote_code: bool = False,
) -> Report | None:
    """Train one backbone on all tasks of a recipe; what `mtnlp finetune` does.

    Args:
        recipe: a file, the name of a shipped recipe, plain data with a recipe's keys, or a Recipe.
        overrides: "key=value" texts laid over it, as on the command line.
        out: the run folder; default: runs/<name>.
        resume: go on from the folder's last checkpoint.
        force: replace a folder that exists.
        dry_run: check everything and stop before training.
        trust_remote_code: let the backbone's repository run its own Python.

    Returns:
        The scores of every task, which also stand in the run folder; None after a dry run.

    Raises:
        RecipeError: every problem of keys, names, options, files, columns and rows at once; nothing is
            written.
        MtnlpError: parts that do not go together, a folder that exists, with neither `resume` nor `force`, or
            rows or labels that have changed since the run that is to be resumed began.
        TrainingError: training had to stop.
        KeyboardInterrupt: Ctrl-C; the step was finished and saved, and `resume` goes on from there.
    """
    from mtnlp.runs.start import trainer

    return trainer(recipe, overrides)(
        recipe,
        overrides,
        out=None if out is None else Path(out),
        resume=resume,
        force=force,
        dry_run=dry_run,
        trust_remote_code=trust_remote_code,
    )


def load(
    run: str | Path,
    *,
    revision: str | None = None,
    backbone: str | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """The trained model of a run or a bundle; `model.predict(rows, task=...)` answers that task's rows.

    Args:
        run: the folder that `finetune` wrote; or a bundle: its folder, its address (s3:// ...), or owner/name
            on the model hub.
        revision: of a hub repository: a branch, a tag or a commit.
        backbone: a folder or hub id to take in place of the backbone that a bundle names.
        trust_remote_code: let the backbone's repository run its own Python.

    Raises:
        MtnlpError: neither, a run whose training has not finished, a bundle that is not as it was published,
            or another backbone than it was trained on.
    """
    from mtnlp.runs import saved

    return saved.load(run, revision=revision, backbone=backbone, trust_remote_code=trust_remote_code)


def evaluate(
    run: str | Path,
    *,
    tasks: str | Sequence[str] | None = None,
    split: str = "test",
    limit: int | None = None,
    trust_remote_code: bool = False,
) -> Report:
    """Score a run folder; what `mtnlp eval` does.

    Args:
        run: the folder that `finetune` wrote.
        tasks: some of its tasks, by names or patterns over them, also as one text: "a,b/*"; None = all.
        split: which rows.
        limit: at most so many rows of each task, chosen by a fixed permutation.
        trust_remote_code: let the backbone's repository run its own Python.

    Returns:
        The scores of every task beside its baseline.

    Raises:
        MtnlpError: an unknown task; tasks without that split or with rows that cannot be used, all together;
            a limit below 1.
    """
    from mtnlp.runs import saved

    return saved.evaluate_run(Path(run), tasks, split, limit, trust_remote_code=trust_remote_code)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mtnlp' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
