"""Whether the rows of a suite stand in what a run was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mtnlp.bench.overlap import Overlap, overlap, text_of
from mtnlp.data.task_data import TaskData
from mtnlp.errors import MtnlpError
from mtnlp.runs import saved, session
from mtnlp.runs.harness import Judged
from mtnlp.runs.targets import RunTarget, Target
from mtnlp.tasks.spec import TaskSpec


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
    train = {spec.name: _texts(saved._opened(spec, target.recipe)) for spec in target.tasks.values()}
    return overlap(train, test)


def _texts(data: TaskData) -> Iterator[str]:
    rows = data.rows("train")
    for i, row in enumerate(rows):
        yield text_of(data.spec, session.read_example(data.spec, rows, i, row))
