"""Answers of a model, kept line by line while it is asked, so that no example is asked twice.

One append-only JSON Lines file per model. A line is an example's key and its answer, and how many lines of
its batch follow. A batch is written in one piece; one that was cut off by a kill is not read again, so that
the rest is asked in the same batches as without the kill, and comes out the same to the last bit.

Files do not pile up: before its first batch is written, files beside it are removed, the longest unused
first, as long as all together have more than MOST bytes; but none that was opened or written within the last
DAYS. What they held is asked again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mtnlp.errors import MtnlpError

KEY, LEFT = "key", "left"
DAYS, MOST = 30, 4 << 30


def key_of(*parts: Any) -> str:
    """32 hexadecimal digits of the content of plain data."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, default=repr)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class Samples:
    """The answers of one model.

    Args:
        path: its file; made, with its folder, when the first batch is added.

    Raises:
        MtnlpError: it is there and cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._answers: dict[str, dict[str, Any]] = {}
        self._whole = 0  # bytes up to the end of the last whole batch
        self._wrote = False
        with suppress(OSError):  # a folder that cannot be written is not pruned either
            os.utime(path)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            data = b""
        except OSError as error:
            raise MtnlpError(f"{path}: kept answers cannot be read ({error.strerror}).") from None
        self._read(data)

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer kept under a key."""
        return self._answers.get(key)

    def add(self, batch: Iterable[tuple[str, Mapping[str, Any]]], *, write: bool = True) -> None:
        """Keep the answers of one batch; without `write` only in this process.

        Raises:
            MtnlpError: they cannot be written.
        """
        from filelock import FileLock

        batch = list(batch)
        lines = [
            json.dumps({KEY: key, LEFT: len(batch) - 1 - i, **answer}, ensure_ascii=False)
            for i, (key, answer) in enumerate(batch)
        ]
        data = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass")
        if not write:
            self._answers.update((key, json.loads(json.dumps(answer))) for key, answer in batch)
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self._wrote:
                prune(self.path.parent)
                self._wrote = True
            with FileLock(f"{self.path}.lock"), open(self.path, "a+b") as file:
                if file.seek(0, os.SEEK_END) < self._whole:  # it was removed meanwhile
                    self._whole = 0
                file.seek(self._whole)
                self._read(file.read())  # what others have added meanwhile
                file.truncate(self._whole)  # what a kill has left of a batch
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise MtnlpError(
                f"{self.path}: answers cannot be kept there ({error.strerror}). Set MTNLP_CACHE to a folder "
                "that can be written."
            ) from None
        self._read(data)

    def _read(self, data: bytes) -> None:
        """Take in whole batches; stop at the first line that is not whole."""
        batch, end = [], 0
        for line in data.splitlines(keepends=True):
            try:
                entry = json.loads(line) if line.endswith(b"\n") else None
                key, left = entry.pop(KEY), entry.pop(LEFT)
            except (ValueError, AttributeError, KeyError, TypeError):
                break
            batch.append((key, entry))
            end += len(line)
            if left == 0:
                self._answers.update(batch)
                self._whole += end
                batch, end = [], 0


def prune(folder: Path) -> None:
    """Remove files of kept answers that were not used for DAYS, the longest unused first, until no more than
    MOST bytes are left. Those that are being written, or cannot be removed, stay."""
    from filelock import FileLock, Timeout

    found = []
    for lock in folder.glob("*.jsonl.lock"):  # stands beside each file of ours, and no other
        path = lock.with_suffix("")
        with suppress(OSError):
            found.append((path.stat().st_mtime, path.stat().st_size, path))
    total, oldest = sum(size for _, size, _ in found), time.time() - DAYS * 24 * 3600
    for used, size, path in sorted(found):
        if total <= MOST or used > oldest:
            return
        with suppress(OSError, Timeout), FileLock(f"{path}.lock", timeout=0):
            if path.stat().st_mtime == used:  # nobody has opened it since
                path.unlink()
                total -= size
