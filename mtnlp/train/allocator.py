"""Keeping freed memory in the process, on a CPU with glibc.

glibc gives large blocks back to the system as soon as they are freed, and the system hands the next ones out
page by page, cleared: a training step that frees what it has computed meets page faults in the next one, some
ten thousand of them. Up to 32 MiB glibc learns better by itself, so this saves 0 to 2 % of a step whose
tensors are smaller, and 5 to 18 % where larger ones come and go. The process stays as large as its largest
step, 0 to 5 % larger than without.

Whoever sets one of its limits ends glibc's learning for the rest of the process. So afterwards they are what
it learns at most: with those that it starts with, a product of 6 MB took five times as long.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # names of mallopt(3)
KEEP = {MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1}
LEARNED = {MMAP_MAX: 65_536, MMAP_THRESHOLD: 32 * 2**20, TRIM_THRESHOLD: 64 * 2**20}
OWN_WISHES = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")  # variables: someone has chosen already


@lru_cache
def tunable() -> bool:
    """Whether this process allocates by a glibc that nobody has set up otherwise."""
    told = any(name.startswith(OWN_WISHES) for name in os.environ)
    return platform.libc_ver()[0] == "glibc" and not told


@contextmanager
def keeping() -> Iterator[None]:
    """Inside, freed memory stays with the process; at the end it goes back. Nothing unless `tunable`."""
    if not tunable():
        yield
        return
    libc = _libc()
    for name, value in KEEP.items():
        libc.mallopt(name, value)
    try:
        yield
    finally:
        for name, value in LEARNED.items():
            libc.mallopt(name, value)
        libc.malloc_trim(0)


@lru_cache
def _libc() -> Any:
    return ctypes.CDLL("libc.so.6")
