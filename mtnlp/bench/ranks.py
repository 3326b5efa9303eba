"""An evaluation by several processes: each takes every n-th batch, and all learn all answers.

The batches are those of one process, so the answers do not depend on how many there are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def rank() -> int:
    """Of this process, as its launcher says; 0 without one."""
    return int(os.environ.get("RANK", 0)) if world() > 1 else 0


def world() -> int:
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE", 1))


def share(batches: Iterable[T]) -> Iterator[T]:
    """The batches that are this process's to answer."""
    return islice(batches, rank(), None, world())


def together(answered: Iterable[list[T]]) -> Iterator[list[T]]:
    """What this and all other processes have answered, a batch of each at a time; all must call it."""
    if world() == 1:
        yield from answered
        return
    from accelerate.utils import gather_object

    own = iter(answered)
    while any(found := gather_object([next(own, None)])):
        yield [answer for batch in found for answer in batch or ()]


def settle() -> None:
    """Wait until all processes are here; without an accelerator they meet on their CPUs."""
    if world() > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.accelerator.is_available()).wait_for_everyone()


def merged(own: dict[str, list[int]]) -> dict[str, list[int]]:
    """What any process has under a name, ascending; all must call it, and none goes on before all have."""
    if world() == 1:
        return own
    from accelerate.utils import gather_object

    settle()
    found: dict[str, set[int]] = {}
    for one in gather_object([own]):
        for name, rows in one.items():
            found.setdefault(name, set()).update(rows)
    return {name: sorted(rows) for name, rows in found.items()}
