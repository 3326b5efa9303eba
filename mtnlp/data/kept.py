"""What is made once and kept in the user's cache: where that is, and the rows of pystdlib tasks.

Building those rows parses the whole standard library, which takes seconds. A file holds those of one task as
two lines of JSON: a hash of the second line, and split -> rows.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from mtnlp.tasks import pystdlib

Row = dict[str, Any]


def cache_dir() -> Path:
    """Where token stores and built rows are kept: $MTNLP_CACHE, else ~/.cache/mtnlp."""
    return Path(os.environ.get("MTNLP_CACHE") or Path.home() / ".cache" / "mtnlp").expanduser()


@cache
def pystdlib_rows(task: str) -> dict[str, list[Row]]:
    """Split -> rows of `pystdlib/<task>`; the same lists each time, so do not change them.

    A damaged file is made again, and where none can be written there is none.

    Raises:
        MtnlpError, DataError: as mtnlp.tasks.pystdlib.rows.
    """
    place = cache_dir() / "pystdlib" / f"{task}-{pystdlib.signature()}.jsonl"
    with suppress(OSError, ValueError):
        return _read(place)
    made = {split: pystdlib.rows(task, split) for split in pystdlib.SPLITS}
    with suppress(OSError):
        _write(place, made)
    return made


def _read(place: Path) -> dict[str, list[Row]]:
    """ValueError if the file is not whole."""
    digest, text = place.read_text("utf-8").split("\n", 1)
    if json.loads(digest) != _hash(text):
        raise ValueError(f"{place} is damaged.")
    return json.loads(text)


def _write(place: Path, made: dict[str, list[Row]]) -> None:
    text = json.dumps(made)
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f"{place.name}.part-{os.getpid()}")
    try:
        part.write_text(f"{json.dumps(_hash(text))}\n{text}", "utf-8")
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
