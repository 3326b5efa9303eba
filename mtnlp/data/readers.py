"""Local files -> rows: JSON Lines, JSON, CSV, TSV, Parquet, CoNLL. Every bad line is named with its file and
number.

JSON Lines files stay on disk (memory-mapped, parsed row by row); Parquet is read through `datasets`' own
pyarrow. The text formats are not read through `datasets`, whose readers cannot say which line is wrong and
rewrite rows to one schema.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import mmap
import re
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from mtnlp.errors import DataError, did_you_mean, shown

Row = dict[str, Any]
BLOCK = 1 << 24  # bytes searched for line ends at a time
LISTS = ("data", "rows", "examples", "Instances")  # keys under which a JSON object may hold its rows
CONLLU = ("id", "tokens", "lemmas", "upos", "xpos", "feats", "heads", "deprels", "deps", "misc")


def read(path: Path) -> tuple[Sequence[Row], Sequence[int] | None]:
    """The rows of a file, and the line number of each (None where a file has no lines).

    Raises:
        DataError: no such file, no reader for its ending, or a line that cannot be read.
    """
    if path.is_dir():
        raise DataError(
            f"{path} is a folder; expected one file for a split. Name the file, or give the folder as the "
            f"whole source (`source: {path}`): then each of its files is the split that it is named after."
        )
    if not path.is_file():
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, near) if near else f"The folder {path.parent} does not exist either."
        raise DataError(f"{path}: no such file. {hint}")
    if path.suffix.lower() not in READERS:
        raise DataError(
            f"{path}: files ending in {path.suffix!r} cannot be read. {did_you_mean(path.suffix, READERS)}"
        )
    return READERS[path.suffix.lower()](path)


def digest(path: Path) -> str:
    """Hex hash of a file's bytes."""
    state = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


class JsonLines(Sequence):
    """Rows of a JSON Lines file, parsed when they are asked for; empty lines do not count.

    Attributes:
        lines: number of each row's line, counted from 1.
    """

    def __init__(self, path: Path) -> None:
        self.path, found = path, path.stat()
        self._version = found.st_ino, found.st_mtime_ns, found.st_size
        self._edges = _line_starts(data := self._data())
        blank = [line for line in _perhaps_blank(data, self._edges) if not self._line(data, line).strip()]
        numbers = np.arange(1, len(self._edges))
        self.lines: Sequence[int] = np.delete(numbers, blank) if blank else range(1, len(self._edges))

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = int(self.lines[index])
        return _object(_decoded(self._line(self._data(), number - 1), self.path, number), self.path, number)

    def _data(self) -> bytes | mmap.mmap:
        return _mapped(self.path, self._version)

    def _line(self, data: bytes | mmap.mmap, line: int) -> bytes:
        start, stop = self._edges[line : line + 2].tolist()
        return data[start:stop].removesuffix(b"\n")


@lru_cache(maxsize=64)
def _mapped(path: Path, version: tuple[int, ...]) -> bytes | mmap.mmap:
    """A file's content. Each mapping keeps the file open, so a thousand tasks take turns."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""


def _line_starts(data: bytes | mmap.mmap) -> np.ndarray:
    """(lines + 1,) int64: where each line starts, and where the last one ends."""
    start = 3 if data[:3] == b"\xef\xbb\xbf" else 0
    ends = [
        np.flatnonzero(np.frombuffer(data[low : low + BLOCK], np.uint8) == ord("\n")) + low + 1
        for low in range(0, len(data), BLOCK)
    ]
    edges = np.concatenate([[start], *ends]).astype(np.int64)
    return edges if edges[-1] == len(data) else np.append(edges, len(data))


def _perhaps_blank(data: bytes | mmap.mmap, edges: np.ndarray) -> list[int]:
    """The lines that do not begin with what a row begins with."""
    first = np.frombuffer(data, np.uint8)[edges[:-1]] if len(edges) > 1 else np.zeros(0, np.uint8)
    return np.flatnonzero(first != ord("{")).tolist()


def _json_lines(path: Path) -> tuple[Sequence[Row], Sequence[int]]:
    rows = JsonLines(path)
    return rows, rows.lines


def _object(text: str, path: Path, line: int) -> Row:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        keys = re.findall(r'"((?:[^"\\]|\\.)*)"\s*:', text[: error.pos])
        near = f" in or after the field {keys[-1]!r}" if keys else ""
        raise DataError(
            f"{path}:{line}: not valid JSON{near}: {error.msg} (column {error.colno}). Expected one object "
            "per line."
        ) from error
    if not isinstance(row, dict):
        raise DataError(
            f"{path}:{line}: found {shown(text)}, expected a JSON object with one entry per field."
        )
    return row


def _json(path: Path) -> tuple[Sequence[Row], None]:
    try:
        content = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno})."
        ) from error
    if isinstance(content, dict):
        content = next((content[key] for key in LISTS if isinstance(content.get(key), list)), content)
    if not isinstance(content, list):
        raise DataError(
            f"{path}: expected a list of objects, or an object with the list under {', '.join(LISTS)}; found "
            f"{type(content).__name__}."
        )
    for i, row in enumerate(content):
        if not isinstance(row, dict):
            raise DataError(f"{path}[{i}]: found {shown(row)}, expected an object with one entry per field.")
    return content, None


def _separated(path: Path, *, delimiter: str, quoting: int) -> tuple[Sequence[Row], Sequence[int]]:
    """A header line, then one record per row; an empty file has no rows. TSV knows no quotes."""
    csv.field_size_limit(2**31 - 1)  # long documents are ordinary here; Python's own limit is 128 kB
    lines_of = io.StringIO(_text(path), newline="")  # str.splitlines cuts at characters of text as well
    reader = csv.reader(lines_of, delimiter=delimiter, quoting=quoting, strict=True)
    rows, lines, header, last = [], [], None, 0
    try:
        for record in reader:
            line, last = last + 1, reader.line_num
            if header is None:
                header = record
                if len(set(header)) < len(header):
                    raise DataError(f"{path}:{line}: a column name stands twice in the header {header}.")
            elif record and record != [""]:
                if len(record) != len(header):
                    raise DataError(
                        f"{path}:{line}: {len(record)} fields, but the header names {len(header)}; "
                        f"{_odd_field(record, header)}"
                    )
                rows.append(dict(zip(header, record, strict=True)))
                lines.append(line)
    except csv.Error as error:
        raise DataError(f"{path}:{last + 1}: not a valid record: {error}. Check the quotes.") from error
    return rows, lines


def _odd_field(record: list[str], header: list[str]) -> str:
    if len(record) < len(header):
        return f"the field {header[len(record)]!r} is missing."
    more = repr(record[len(header)][:40])
    return f"{more} comes after the last field {header[-1]!r}. Quote fields that hold the separator."


def _conll(path: Path) -> tuple[Sequence[Row], Sequence[int]]:
    """One token per line, columns apart by tabs or spaces, sentences apart by empty lines.

    Columns: the first is `tokens`, the last `tags`, those between `column_2`, `column_3`, ... In CoNLL-U
    files they have the names of its columns and `tags` is `upos`.
    """
    rows, lines, sentence, start = [], [], [], 0
    universal = path.suffix.lower() == ".conllu"
    for number, line in enumerate([*_text(path).split("\n"), ""], start=1):
        line = line.strip("\r\n ")
        fields = line.split("\t") if "\t" in line else re.findall("[^ ]+", line)
        if not fields or fields[0] == "-DOCSTART-":
            if sentence:
                rows.append(_sentence(sentence, universal))
                lines.append(start)
            sentence = []
        elif not (universal and (line.startswith("#") or not fields[0].isdigit())):
            if len(fields) < 2 or (sentence and len(fields) != len(sentence[0])):
                expected = len(sentence[0]) if sentence else "at least 2"
                raise DataError(
                    f"{path}:{number}: {len(fields)} columns, expected {expected}; the field 'tags' (last "
                    f"column) or 'tokens' (first) is missing in {shown(line)}."
                )
            start = start if sentence else number
            sentence.append(fields)
    return rows, lines


def _sentence(fields: list[list[str]], universal: bool) -> Row:
    columns = [list(column) for column in zip(*fields, strict=True)]
    if universal:
        row = dict(zip(CONLLU, columns, strict=False))
        return {**row, "tags": row.get("upos", columns[-1])}
    middle = {f"column_{i}": column for i, column in enumerate(columns[1:-1], start=2)}
    return {"tokens": columns[0], **middle, "tags": columns[-1]}


def _parquet(path: Path) -> tuple[Sequence[Row], None]:
    import pyarrow
    import pyarrow.parquet

    try:
        return ArrowRows(pyarrow.parquet.read_table(path, memory_map=True)), None
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from error


class ArrowRows(Sequence):
    """Rows of a pyarrow Table."""

    def __init__(self, table: Any) -> None:
        self.table = table

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            start, stop, _ = index.indices(len(self))
            return self.table.slice(start, max(0, stop - start)).to_pylist()
        return self.table.slice(index, 1).to_pylist()[0]


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return _decoded(data[data.rfind(b"\n", 0, error.start) + 1 :].split(b"\n", 1)[0], path, line)


def _decoded(data: bytes, path: Path, line: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{line}: byte {data[error.start]:#04x} after {data[: error.start][-20:]!r} is not UTF-8. "
            "Save the file as UTF-8."
        ) from error


READERS: dict[str, Callable[[Path], tuple[Sequence[Row], Sequence[int] | None]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
    ".csv": partial(_separated, delimiter=",", quoting=csv.QUOTE_MINIMAL),
    ".tsv": partial(_separated, delimiter="\t", quoting=csv.QUOTE_NONE),
    ".conll": _conll,
    ".conllu": _conll,
    ".bio": _conll,
    ".iob2": _conll,
}
