"""Where the rows of a task are, and how they are read: hub data sets, local files and folders, rows in
memory.

Sources of a TaskSpec:
    hub:owner/name[/config][@revision]    through `datasets`
    pystdlib:task                         built from the Python standard library
    a path                                a folder with one file per split, or one file
    {split: path} or {split: [row, ...]}  files or rows in memory, split by split

Splits are called train, validation and test; files and splits called dev, val or valid count as validation.
`spec.splits` renames and cuts them, {"validation": "dev", "train": "train[:90%]"}, and leaves out what it
does not name (but train). A bare file is train. Where a source has no validation split, `with_validation`
holds one out of train, so that nothing is judged on test while it trains.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mtnlp.data import hub, readers
from mtnlp.data.kept import pystdlib_rows
from mtnlp.data.shuffle import key_of, sample
from mtnlp.errors import DataError, MtnlpError, did_you_mean, shown
from mtnlp.tasks.examples import example
from mtnlp.tasks.spec import MEMORY, Example, TaskSpec

Row = dict[str, Any]
SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "dev": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
}
HELD_OUT, MOST_HELD_OUT = 10, 1000  # one train row in so many becomes validation, and at most so many rows
_HUB = re.compile(r"hub:(?P<name>[^/@]+(?:/[^/@]+)?)(?:/(?P<config>[^@]+))?(?:@(?P<revision>.+))?")
_SLICE = re.compile(r"(?P<name>[^\[\]]+)(?:\[(?P<low>-?\d+%?)?:(?P<high>-?\d+%?)?\])?")


class Rows(Sequence):
    """The rows of one split, as dicts in the source's own columns.

    Args:
        data: the rows; a slice of it is a list of rows.
        path: where they are, for messages.
        lines: line number of each row, None = rows are named by their index.
        digest: makes a hash of the content of `data`.
        index: which rows of `data`, in order; None = all.
        label_names: columns whose integers stand for names, as hub data sets tell.
        held_out: these rows were taken out of train, because the source has no validation split.
    """

    def __init__(
        self,
        data: Sequence[Row],
        *,
        path: str,
        digest: Callable[[], str],
        lines: Sequence[int] | None = None,
        index: np.ndarray | None = None,
        label_names: Mapping[str, Sequence[str]] | None = None,
        held_out: bool = False,
    ) -> None:
        self.path, self.label_names, self.held_out = path, dict(label_names or {}), held_out
        self._data, self._lines, self._digest, self._index = data, lines, digest, index

    def __len__(self) -> int:
        return len(self._data) if self._index is None else len(self._index)

    def __getitem__(self, i: int | slice) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(f"{self.path} has {len(self)} rows; there is no row {i}.")
        return self._data[self._place(i % len(self))]

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self), 1000):
            yield from self.read(start, min(start + 1000, len(self)))

    def read(self, start: int, stop: int) -> list[Row]:
        """Rows start..stop-1; faster than one by one."""
        if self._index is None:
            return list(self._data[start:stop])
        return [self._data[int(i)] for i in self._index[start:stop]]

    @cached_property
    def columns(self) -> list[str]:
        """Columns of the first 100 rows, in order of appearance.

        Rows that cannot be read are told when they are needed; DataError if none of these can.
        """
        return list(dict.fromkeys(name for row in self._readable(min(100, len(self))) for name in row))

    def _readable(self, most: int) -> list[Row]:
        try:
            return self.read(0, most)
        except DataError as error:
            found = []
            for i in range(most):
                with suppress(DataError):
                    found.append(self[i])
            if not found:
                raise error
            return found

    @cached_property
    def fingerprint(self) -> str:
        """Hex hash of the content."""
        index = b"" if self._index is None else self._index.tobytes()
        return hashlib.blake2b(self._digest().encode() + index, digest_size=16).hexdigest()

    def where(self, i: int) -> str:
        """Place of row i: "data/train.jsonl:17", or "data/train.parquet[16]" where there are no lines."""
        place = self._place(i)
        return f"{self.path}[{place}]" if self._lines is None else f"{self.path}:{self._lines[place]}"

    def take(self, index: np.ndarray, *, held_out: bool = False) -> Rows:
        """These rows only."""
        place = np.asarray(index, np.int64)
        return Rows(
            self._data,
            path=self.path,
            lines=self._lines,
            digest=self._digest,
            label_names=self.label_names,
            index=place if self._index is None else self._index[place],
            held_out=held_out or self.held_out,
        )

    def _place(self, i: int) -> int:
        return i if self._index is None else int(self._index[i])


def open_rows(spec: TaskSpec) -> dict[str, Rows]:
    """The splits that the task's source has, under our names, each cut to `spec.limit` rows.

    Raises:
        DataError: a missing file, an empty split, a file without a reader, a split that `spec.splits` names
            in vain.
        MtnlpError: a hub data set that cannot be loaded.
    """
    found = _renamed(spec, _opened(spec))
    for split, rows in found.items():
        if not len(rows):
            raise DataError(
                f"{spec.name}: {rows.path}: the {split} split has no rows. Fill it, or leave it out."
            )
    return limited(found, spec.limit)


def limited(found: Mapping[str, Rows], most: int | None) -> dict[str, Rows]:
    """At most so many rows of each split, drawn by a fixed permutation; None = all."""
    return {
        split: rows if most is None or len(rows) <= most else rows.take(sample(len(rows), most, "limit"))
        for split, rows in found.items()
    }


def with_validation(found: Mapping[str, Rows]) -> dict[str, Rows]:
    """`found`, with a validation split held out of train if there is none: one row in ten, at most 1,000.

    Chosen by a hash of their content, so equal rows stay on one side and new rows move hardly an old one.
    """
    if "train" not in found or "validation" in found or len(found["train"]) < 2:
        return dict(found)
    rows = found["train"]
    order = np.array([key_of("split", _written(row, rows.where(i))) for i, row in enumerate(rows)], np.uint64)
    chosen = order % np.uint64(HELD_OUT) == 0
    if not chosen.any():
        chosen = order == order.min()
    most = min(MOST_HELD_OUT, max(1, 2 * len(rows) // HELD_OUT))  # copies of a few rows may be many
    if chosen.sum() > most:
        chosen &= order < np.sort(order[chosen])[most]
    if not chosen.any():  # nothing but copies
        return dict(found)
    parts = {
        "train": rows.take(np.flatnonzero(~chosen)),
        "validation": rows.take(np.flatnonzero(chosen), held_out=True),
    }
    return {**parts, **{split: rows for split, rows in found.items() if split != "train"}}


def read_example(
    spec: TaskSpec, rows: Rows, i: int, row: Row | None = None, *, needs_target: bool = True
) -> Example:
    """Row i as an Example; `row` spares reading it again.

    Raises:
        DataError: the row cannot be used; the message starts with its place.
    """
    try:
        return example(spec, rows[i] if row is None else row, i, needs_target=needs_target)
    except DataError as error:
        raise DataError(f"{rows.where(i)}: {error}") from error


def memory(data: Sequence[Mapping[str, Any]], path: str) -> Rows:
    """Rows from a list of dicts; `path` says where they are from.

    Raises:
        DataError: a row is no mapping, or a column's name no text.
    """
    for i, row in enumerate(data):
        if not isinstance(row, Mapping):
            raise DataError(f"{path}[{i}]: a row is a mapping of columns to values, found {shown(row)}.")
        if odd := [name for name in row if not isinstance(name, str)]:
            raise DataError(f"{path}[{i}]: the column {shown(odd[0])} has no text for a name; give it one.")

    def digest() -> str:
        state = hashlib.blake2b(digest_size=16)
        for i, row in enumerate(data):
            state.update(_written(row, f"{path}[{i}]").encode())
        return state.hexdigest()

    return Rows(data, path=path, digest=digest)


def _written(row: Row, where: str) -> str:
    """The row as JSON, the same for equal rows."""
    try:
        return json.dumps(row, sort_keys=True, default=str)
    except TypeError as error:
        raise DataError(f"{where}: {error}. The keys of a mapping in a row must all be texts.") from None


def file_rows(path: Path) -> Rows:
    """Rows of one local file."""
    data, lines = readers.read(path)
    return Rows(data, path=str(path), lines=lines, digest=lambda: readers.digest(path))


def _opened(spec: TaskSpec) -> dict[str, Rows]:
    """Split name in the source -> rows."""
    source = spec.source
    if isinstance(source, Mapping):
        return {
            split: _named(spec.name, part)
            if isinstance(part, str | Path)
            else memory(part, f"{spec.name} {split}")
            for split, part in source.items()
        }
    if isinstance(source, str) and source.startswith("hub:"):
        return _from_hub(spec.name, source)
    if isinstance(source, str) and source.startswith("pystdlib:"):
        found = pystdlib_rows(source.partition(":")[2])
        return {split: memory(rows, f"{source} {split}") for split, rows in found.items()}
    if not isinstance(source, str | Path):
        raise DataError(
            f"{spec.name}: source is a {type(source).__name__}; expected 'hub:...', 'pystdlib:...', a path, "
            "or a mapping of split to path or rows."
        )
    path = Path(source)
    return _folder(spec.name, path) if path.is_dir() else {"train": file_rows(path)}


def _named(name: str, path: str | Path) -> Rows:
    if str(path).startswith(MEMORY):
        raise DataError(
            f"{name}: its rows were given in memory and are not kept; give them again from Python."
        )
    return file_rows(Path(path))


def _folder(name: str, folder: Path) -> dict[str, Rows]:
    files = sorted(
        p for p in folder.iterdir() if p.suffix.lower() in readers.READERS and p.name != "meta.json"
    )
    if not files:
        raise DataError(
            f"{name}: {folder}: no data files here; expected train, validation, test with one of the endings "
            f"{', '.join(readers.READERS)}."
        )
    if len(files) == 1 and files[0].stem not in SPLITS:
        return {"train": file_rows(files[0])}
    found: dict[str, Path] = {}
    for path in files:
        split = SPLITS.get(path.stem, path.stem)
        if split in found:
            raise DataError(
                f"{name}: {folder}: {found[split].name} and {path.name} are both the {split} split; "
                "remove one, or name a file per split in `source`."
            )
        found[split] = path
    return {split: file_rows(path) for split, path in found.items()}


def _from_hub(name: str, source: str) -> dict[str, Rows]:
    match = _HUB.fullmatch(source)
    if match is None:
        raise DataError(
            f"{name}: source {shown(source)} is no hub address; expected hub:owner/name[/config][@revision]."
        )
    import datasets

    try:
        with hub.at_once():
            loaded = datasets.load_dataset(match["name"], match["config"], revision=match["revision"])
    except Exception as error:  # datasets raises a dozen unrelated types when it cannot find, reach or read
        raise MtnlpError(
            f"{name}: {source} could not be loaded: {type(error).__name__}: {error}. Check its name, config "
            "and revision. Without a network, load it once online so that it is in the cache, or give local "
            "files as the task's source."
        ) from error
    return {
        split: Rows(
            _HubRows(part),
            path=f"{source} {split}",
            digest=lambda part=part: _arrow_digest(part),
            label_names=_label_names(part.features),
        )
        for split, part in loaded.items()
    }


class _HubRows(Sequence):
    """Rows of a datasets.Dataset; slices are lists of rows."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int | slice) -> Any:
        if not isinstance(index, slice):
            return self.data[index]
        columns = self.data[index]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _label_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names of ClassLabel columns, and of columns that are lists of them."""
    inner = {name: getattr(feature, "feature", feature) for name, feature in features.items()}
    return {name: list(feature.names) for name, feature in inner.items() if hasattr(feature, "names")}


def _arrow_digest(data: Any) -> str:
    """Hash of a datasets.Dataset's columns and values, whatever file or selection they come from."""
    import pyarrow

    state = hashlib.blake2b(str(data.features).encode(), digest_size=16)
    for part in data.with_format("arrow").iter(10_000):
        stream = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(stream, part.schema) as writer:
            writer.write_table(part.combine_chunks())
        state.update(stream.getvalue())
    return state.hexdigest()


def _renamed(spec: TaskSpec, available: Mapping[str, Rows]) -> dict[str, Rows]:
    """What spec.splits names, and train in any case; without it all that the source has."""
    found, used = {}, set()
    canonical = {SPLITS.get(name, name): name for name in reversed(available)}
    for split, wanted in spec.splits.items():
        match = _SLICE.fullmatch(wanted)
        name = match and (match["name"] if match["name"] in available else canonical.get(match["name"]))
        if name is None:
            raise DataError(
                f"{spec.name}: splits.{split}: the source has no split {shown(wanted)}. "
                f"{did_you_mean(wanted, available)}"
            )
        used.add(name)
        rows = available[name]
        low, high = (
            _bound(match[end], len(rows), default) for end, default in (("low", 0), ("high", len(rows)))
        )
        found[split] = rows if (low, high) == (0, len(rows)) else rows.take(np.arange(low, max(low, high)))
    left = {
        split: available[name]
        for split, name in canonical.items()
        if name not in used and split not in found and (split == "train" or not spec.splits)
    }
    return {
        split: rows
        for split in dict.fromkeys(["train", "validation", "test", *found, *left])
        if (rows := found.get(split, left.get(split))) is not None
    }


def _bound(text: str | None, size: int, default: int) -> int:
    if text is None:
        return default
    bound = round(size * int(text[:-1]) / 100) if text.endswith("%") else int(text)
    return min(size, max(0, bound + size if bound < 0 else bound))
