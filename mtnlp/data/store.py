"""The token store: a task's split as memory-mapped columns of token ids, made once and keyed by content.

On disk a store is a folder with one flat file per column (see mtnlp.data.encode) and `store.json`, which says
what each file holds. It is written beside its place and renamed when it is whole, so a folder under its own
name is complete.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mtnlp.data.encode import Columns, Encoder
from mtnlp.data.sources import Rows, read_example
from mtnlp.errors import DataError
from mtnlp.tasks.spec import Example, TaskSpec

CHUNK = 2_000  # rows that are read, tokenised and written at a time
# What of a spec reaches the tokens; the rest may change without a new store.
ENCODED = ("kind", "fields", "labels", "words", "instruction", "templates", "score_range")


class TokenStore:
    """N encoded examples with S sequences. `store["tokens"]` is a column by its name in mtnlp.data.encode.

    Attributes:
        seq_offsets: (N + 1,) int64; example i is sequences seq_offsets[i] .. seq_offsets[i + 1] - 1.
        token_offsets: (S + 1,) int64; the same for sequences and tokens.
        target_offsets: (S + 1,) int64; for separate targets (encoder-decoder).
        length, sequences, target_length: (N,) per example: tokens of its longest sequence, sequences, tokens
            of its longest separate target.
        kind, form, classes, labelled: as in Columns, of all rows.
        truncated: share of the examples that lost tokens, 0..1.
        path: folder, or None for a store in memory.
    """

    def __init__(
        self, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], path: Path | None = None
    ) -> None:
        self._arrays, self.path = dict(arrays), path
        self.kind, self.form, self.classes = meta["kind"], meta["form"], meta["classes"]
        self.labelled = meta["labelled"]
        self._sizes = [self._arrays[name] for name in ("length", "sequences", "target_length")]
        self.length, self.sequences, self.target_length = self._sizes
        self.truncated = meta["truncated"] / max(1, len(self))

    # Made when first asked for, so that opening a store costs nothing.

    @cached_property
    def seq_offsets(self) -> np.ndarray:
        return _offsets(self.sequences)

    @cached_property
    def token_offsets(self) -> np.ndarray:
        return _offsets(self["token_counts"])

    @cached_property
    def target_offsets(self) -> np.ndarray:
        return _offsets(self._arrays.get("target_counts", np.zeros(0, np.int64)))

    @classmethod
    def from_columns(cls, columns: Columns) -> TokenStore:
        """A store in memory."""
        return cls(columns.arrays, _meta(columns, columns.truncated, columns.labelled))

    @classmethod
    def open(cls, path: Path) -> TokenStore:
        """The store in folder `path`, memory-mapped.

        Raises:
            DataError: the folder is no whole store; the message names the file.
        """
        try:
            meta = json.loads((path / "store.json").read_text("utf-8"))
            arrays = {name: _mapped(path / f"{name}.bin", *form) for name, form in meta["arrays"].items()}
            return cls(arrays, meta, path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} is not a whole token store ({error}). Delete it; it will be made again."
            ) from error

    def __len__(self) -> int:
        return len(self.length)

    def __getitem__(self, column: str) -> np.ndarray:
        return self._arrays[column]

    def __contains__(self, column: str) -> bool:
        return column in self._arrays

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        """(3, n) length, sequences and target_length of `rows`: what cutting into batches needs."""
        return np.stack([column[rows] for column in self._sizes])


def tokenise(
    spec: TaskSpec,
    rows: Rows,
    encoder: Encoder,
    cache_dir: Path,
    *,
    template: str | None = None,
    shots: Sequence[Example] = (),
    needs_target: bool = True,
) -> TokenStore:
    """The store of `rows`; opened if it exists, else made and kept in `cache_dir`.

    Args:
        spec: with its labels resolved.
        template, shots: as in Encoder.encode.
        needs_target: False lets rows pass whose target column is absent.

    Raises:
        DataError: a row that cannot be used; the message names its file and line, and the field.
    """
    key = _key(spec, rows, encoder, template, shots, needs_target)
    place = Path(cache_dir) / key
    if place.exists():
        with suppress(DataError):
            return TokenStore.open(place)
        shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f"{key}.part-", dir=place.parent))
    try:
        _write(part, _chunks(spec, rows, encoder, template, shots, needs_target))
        with suppress(OSError):  # another process was faster: its store is equal to ours
            part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return TokenStore.open(place)


def _chunks(
    spec: TaskSpec,
    rows: Rows,
    encoder: Encoder,
    template: str | None,
    shots: Sequence[Example],
    needs_target: bool,
) -> Iterator[Columns]:
    for start in range(0, max(1, len(rows)), CHUNK):
        stop = min(start + CHUNK, len(rows))
        examples = [
            read_example(spec, rows, start + i, row, needs_target=needs_target)
            for i, row in enumerate(rows.read(start, stop))
        ]
        yield encoder.encode(spec, examples, template=template, shots=shots)


def _write(folder: Path, chunks: Iterator[Columns]) -> None:
    arrays: dict[str, list] = {}
    truncated, labelled = 0, True
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        for columns in chunks:
            truncated, labelled = truncated + columns.truncated, labelled and columns.labelled
            for name, values in columns.arrays.items():
                if name not in files:
                    files[name] = stack.enter_context((folder / f"{name}.bin").open("wb"))
                    arrays[name] = [values.dtype.str, [0, *values.shape[1:]]]
                files[name].write(np.ascontiguousarray(values).data)
                arrays[name][1][0] += len(values)
    meta = {**_meta(columns, truncated, labelled), "arrays": arrays}
    (folder / "store.json").write_text(json.dumps(meta), "utf-8")


def _meta(columns: Columns, truncated: int, labelled: bool) -> dict[str, Any]:
    return {
        "kind": columns.kind,
        "form": columns.form,
        "classes": columns.classes,
        "truncated": truncated,
        "labelled": labelled,
    }


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _mapped(path: Path, dtype: str, shape: Sequence[int]) -> np.ndarray:
    expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if (found := path.stat().st_size) != expected:
        raise ValueError(f"{path.name} holds {found} bytes, expected {expected}")
    if not expected:
        return np.zeros(shape, dtype)
    import torch  # whoever only looks at a task's rows does without

    # Unlike np.memmap's, torch's mapping keeps no file open: a thousand tasks have ten thousand columns.
    array = torch.from_file(str(path), shared=False, size=expected, dtype=torch.uint8).numpy()
    array = array.view(dtype).reshape(shape)
    array.flags.writeable = False
    return array


def _key(
    spec: TaskSpec,
    rows: Rows,
    encoder: Encoder,
    template: str | None,
    shots: Sequence[Example],
    needs_target: bool,
) -> str:
    parts = [rows.fingerprint, encoder.digest, template, needs_target]
    parts += [repr(getattr(spec, name)) for name in ENCODED]
    parts += [repr((dict(shot.inputs), shot.target)) for shot in shots]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
