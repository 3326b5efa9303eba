"""What training, evaluation and prediction share: the rows of a plan as tokens and as questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mtnlp.bench.questions import Questions
from mtnlp.data.kept import cache_dir
from mtnlp.data.shuffle import sample
from mtnlp.data.sources import read_example
from mtnlp.errors import DataError, MtnlpError
from mtnlp.tasks.examples import demonstrations
from mtnlp.tasks.spec import Example, TaskSpec
from mtnlp.tasks.templates import render

if TYPE_CHECKING:
    from mtnlp.data.encode import Encoder
    from mtnlp.data.sources import Row, Rows
    from mtnlp.data.store import TokenStore
    from mtnlp.data.task_data import TaskData

BASELINE_ROWS = 20_000  # training rows that a baseline is read from, at most
CHUNK = 1_000  # rows read at a time


def store_of(data: TaskData, split: str, encoder: Encoder, problems: list[str]) -> TokenStore | None:
    """The tokens of a split; None, and a sentence more in `problems`, if a row cannot be used."""
    try:
        return data.store(split, encoder, cache_dir() / "tokens", shots=shots_of(data.spec))
    except DataError as error:
        problems.append(bad_rows(data, split, form=encoder.form) or f"{data.spec.name}: {error}")
    except OSError as error:
        raise MtnlpError(
            f"{cache_dir()}: tokens cannot be kept there ({error.strerror}). Set MTNLP_CACHE to a folder "
            "that can be written."
        ) from None
    return None


def bad_rows(data: TaskData, split: str, *, most: int | None = None, form: str = "encoder") -> str | None:
    """What is wrong with the first row of a split that cannot be used, and how many there are; None = none.

    Args:
        most: look at those only that `questions_of` takes.
        form: in the text forms a row must also fit its template.
    """
    rows, first, count = chosen_rows(data, split, most), "", 0
    for i, row in each_row(rows):
        try:
            if isinstance(row, DataError):
                raise row
            example = read_example(data.spec, rows, i, row)
            if form != "encoder":
                render(data.spec, example, shots=shots_of(data.spec))
        except DataError as error:
            place, text = rows.where(i), str(error)
            first = first or (text if text.startswith(place) else f"{place}: {text}")
            count += 1
    if not count:
        return None
    rest = f" In all {count:,} rows of {split} cannot be used." if count > 1 else ""
    return f"{data.spec.name}: {first}{rest}"


def questions_of(data: TaskData, split: str, *, most: int | None = None) -> Questions:
    """Labelled examples of a split: all, or `most` of them chosen by a fixed permutation, in their order."""
    return Questions(data.spec, _examples(data, chosen_rows(data, split, most)), shots=shots_of(data.spec))


def train_targets(data: TaskData) -> list[Any]:
    """Targets of (at most BASELINE_ROWS) training rows."""
    return [example.target for example in _examples(data, chosen_rows(data, "train", BASELINE_ROWS))]


def shots_of(spec: TaskSpec) -> tuple[Example, ...]:
    """The solved examples that every prompt of an opened task shows."""
    return demonstrations(spec.replace(demonstrations=spec.demonstrations[: spec.shots]))


def _examples(data: TaskData, rows: Rows) -> list[Example]:
    return [read_example(data.spec, rows, i, row) for i, row in enumerate(rows)]


def chosen_rows(data: TaskData, split: str, most: int | None) -> Rows:
    rows = data.rows(split)
    if most is None or most >= len(rows):
        return rows
    return rows.take(sample(len(rows), most, f"{split} {data.spec.name}"))


def each_row(rows: Rows) -> Iterator[tuple[int, Row | DataError]]:
    """(index, row) of all rows, or the error of a row that cannot even be read."""
    for start in range(0, len(rows), CHUNK):
        stop = min(start + CHUNK, len(rows))
        try:
            chunk: Sequence[Any] = rows.read(start, stop)
        except DataError:
            chunk = [_one(rows, i) for i in range(start, stop)]
        yield from enumerate(chunk, start)


def _one(rows: Rows, i: int) -> Row | DataError:
    try:
        return rows[i]
    except DataError as error:
        return error
