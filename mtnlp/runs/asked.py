"""The rows of a split that a suite asks: those that can be used, and what their columns say of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtnlp.bench import axes
from mtnlp.bench.suites import Entry
from mtnlp.data.task_data import TaskData
from mtnlp.errors import DataError, MtnlpError, did_you_mean, shown
from mtnlp.runs import session
from mtnlp.tasks.spec import Example

SHOWN = 3  # bad rows that a note quotes


@dataclass(frozen=True)
class Rows:
    """N rows that can be used.

    Args:
        places: where each is. examples: what it asks and wants. languages: see `axes.languages`.
        columns: those that the suite slices or clusters by -> (N,) values; None where a row has none.
        faults: a note on the rows that cannot be used.
    """

    places: Sequence[str]
    examples: Sequence[Example]
    languages: Sequence[str]
    columns: Mapping[str, Sequence[Any]]
    faults: tuple[str, ...]


def read(data: TaskData, entry: Entry) -> Rows:
    """The rows of an entry's split.

    Raises:
        MtnlpError: none can be used, or no row has a column that the suite names.
    """
    rows = session.chosen_rows(data, entry.split, entry.limit)
    wanted = dict.fromkeys([*entry.slices, *([entry.cluster] if entry.cluster else [])])
    kept, raws, bad = [], [], []
    known: dict[str, None] = {}  # columns of all rows, in order of appearance
    for i, row in session.each_row(rows):
        try:
            if isinstance(row, DataError):
                raise row
            found = session.read_example(data.spec, rows, i, row)
            if not all(text.strip() for text in found.inputs.get("choices", ())):
                raise DataError("choices: one of them is empty.")
            kept.append((rows.where(i), found, *axes.languages(data.spec, [row])))
            raws.append([row.get(name) for name in wanted])
            known |= dict.fromkeys(row)
        except DataError as error:
            place, text = rows.where(i), str(error)
            bad.append(text if text.startswith(place) else f"{place}: {text}")
    if not kept:
        first = f" {bad[0]}" if bad else ""
        raise MtnlpError(f"none of the {len(rows):,} rows of {entry.split} can be used.{first}")
    if missing := [name for name in wanted if name not in known]:
        key = "slices" if missing[0] in entry.slices else "cluster"
        raise MtnlpError(
            f"{key}: {rows.path} has no column {shown(missing[0])}. {did_you_mean(missing[0], known)}"
        )
    more = f" (and {len(bad) - SHOWN} more)" if len(bad) > SHOWN else ""
    faults = [f"{len(bad)} of {len(rows):,} rows left out: {' '.join(bad[:SHOWN])}{more}"] if bad else []
    places, examples, languages = map(list, zip(*kept))
    return Rows(places, examples, languages, dict(zip(wanted, zip(*raws))), tuple(faults))


def numbered(values: Sequence[Any]) -> list[int]:
    """A number for each row, the same for the same value; a row without a value has one of its own."""
    known: dict[str, int] = {}
    texts = (f"{i}" if value in (None, "") else f"= {value}" for i, value in enumerate(values))
    return [known.setdefault(text, len(known)) for text in texts]
