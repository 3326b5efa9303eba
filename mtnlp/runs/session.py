"""What training, evaluation and prediction share: the rows of a plan as tokens and as questions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtnlp.bench.predict import Questions
from mtnlp.data.shuffle import sample
from mtnlp.errors import DataError, MtnlpError, RecipeError
from mtnlp.tasks.examples import demonstrations
from mtnlp.tasks.spec import Example

if TYPE_CHECKING:
    from mtnlp.assemble import Plan
    from mtnlp.data.encode import Encoder
    from mtnlp.data.store import TokenStore
    from mtnlp.data.task_data import TaskData

BASELINE_ROWS = 20_000  # training rows that a baseline is read from, at most


def cache_dir() -> Path:
    """Where token stores are kept: $MTNLP_CACHE, else ~/.cache/mtnlp."""
    return Path(os.environ.get("MTNLP_CACHE") or Path.home() / ".cache" / "mtnlp").expanduser()


def training_stores(plan: Plan, encoder: Encoder) -> list[TokenStore]:
    """The tokenised training rows of every task.

    Raises:
        RecipeError: every task with a row that cannot be used, each with file, line and field.
    """
    stores, problems = [], []
    for data in plan.data:
        try:
            stores.append(data.store("train", encoder, cache_dir() / "tokens", shots=shots_of(data)))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise RecipeError(plan.recipe.name, problems)
    return stores


def questions_of(data: TaskData, split: str, *, most: int | None = None) -> Questions:
    """Labelled examples of a split: all, or `most` of them chosen by a fixed permutation, in the order of the file."""
    rows = _chosen(data, split, most)
    return Questions(data.spec, [data.example(split, i) for i in rows], shots=shots_of(data))


def train_targets(data: TaskData) -> list[Any]:
    """Targets of (at most BASELINE_ROWS) training rows."""
    return [data.example("train", i).target for i in _chosen(data, "train", BASELINE_ROWS)]


def shots_of(data: TaskData) -> tuple[Example, ...]:
    """The solved examples that every prompt of this task shows.

    Raises:
        MtnlpError: fewer demonstrations than spec.shots and no train split to draw the rest from.
    """
    spec = data.spec
    given = demonstrations(spec)[: spec.shots]
    if len(given) == spec.shots:
        return given
    if "train" not in data.splits:
        raise MtnlpError(f"{spec.name}: shots is {spec.shots}, and there are {len(given)} demonstrations and no train "
                         "split to draw the rest from. Add `demonstrations`, or lower `shots`.")
    drawn = sample(len(data.rows("train")), spec.shots - len(given), f"shots {spec.name}")
    return (*given, *(data.example("train", int(i)) for i in drawn))


def _chosen(data: TaskData, split: str, most: int | None) -> list[int]:
    size = len(data.rows(split))
    return list(range(size)) if most is None else sample(size, most, f"{split} {data.spec.name}").tolist()
