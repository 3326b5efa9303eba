"""Whether the rows of a suite, or those a recipe's own tasks are scored on, stand in what is trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mtnlp.bench.overlap import Overlap, overlap, text_of
from mtnlp.data.task_data import TaskData
from mtnlp.errors import MtnlpError
from mtnlp.runs import saved, session
from mtnlp.runs.harness import Judged
from mtnlp.runs.targets import RunTarget, Target
from mtnlp.tasks.spec import TaskSpec

HEAD = ("rows of", "rows", "exact", "near", "share", "in train of")
SHOWN = 3  # train tasks that a row names


def look(target: Target, judged: Sequence[Judged], specs: Sequence[TaskSpec]) -> Overlap:
    """Of each task of a suite, the rows that a run's train splits hold.

    Args:
        judged: what was asked; specs: the suite's tasks.

    Raises:
        MtnlpError: the target is no run, so nobody knows what it was trained on; train rows that are gone.
    """
    if not isinstance(target, RunTarget):
        raise MtnlpError(f"--overlap: what {target.name} was trained on is not known; it is no run folder.")
    known = {spec.name: spec for spec in specs}
    test = {
        item.score.task: [text_of(known[item.score.task], example) for example in item.examples]
        for item in judged
    }
    train = {spec.name: _texts(saved.open_task(spec, target.recipe)) for spec in target.tasks.values()}
    return overlap(train, test)


def own(tasks: Sequence[TaskData]) -> Overlap:
    """Of each split of each task but train, the rows that stand in the train split of any of the tasks.

    A part of the result is called "TASK SPLIT". Takes about 40 us per row.
    """
    others = [(data, split) for data in tasks for split in data.splits if split != "train"]
    test = {f"{data.spec.name} {split}": list(_texts(data, split)) for data, split in others}
    train = {data.spec.name: _texts(data, "train") for data in tasks if "train" in data.splits}
    return overlap(train, test)


def told(found: Overlap) -> str:
    """The sentence on what `own` found."""
    rows, exact, near = (sum(getattr(part, key) for part in found.tasks) for key in ("rows", "exact", "near"))
    if not exact + near:
        return f"Leaks: none of {rows:,} validation and test rows stands in {found.train_rows:,} train rows."
    nearly = f"{near:,} nearly (at least {found.share:.0%} of their {found.n}-grams)"
    return (
        f"Leaks: of {rows:,} validation and test rows, {exact:,} stand in train word for word and {nearly}."
    )


def cells(found: Overlap) -> list[tuple[str, ...]]:
    """The cells of HEAD for every part with a leak."""
    return [
        (
            part.task,
            f"{part.rows:,}",
            f"{part.exact:,}",
            f"{part.near:,}",
            f"{part.fraction:.1%}",
            ", ".join(f"{task} {count:,}" for task, count in list(part.sources.items())[:SHOWN])
            + (f" and {len(part.sources) - SHOWN} more" if len(part.sources) > SHOWN else ""),
        )
        for part in found.tasks
        if part.exact + part.near
    ]


def _texts(data: TaskData, split: str = "train") -> Iterator[str]:
    rows = data.rows(split)
    for i, row in enumerate(rows):
        yield text_of(data.spec, session.read_example(data.spec, rows, i, row))
