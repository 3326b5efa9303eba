"""The bank: all parameters that a task has for itself are one row of one tensor.

A step gathers its U live rows once into a leaf `(U, P)`, splits it once into the pieces the layers use, and
finds every gradient of a task's parameters in one row of `leaf.grad`. Nothing here grows with the number of
tasks except the tensor itself, and a row can be saved, shipped and updated alone.

Shapes: T tasks, U live tasks, P parameters of one task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from hashlib import blake2b

import torch
from torch import Tensor, nn

Init = Callable[[Tensor, torch.Generator], None]


class Bank(nn.Module):
    """Float32 rows, one per task, as a buffer: no optimizer or gradient ever sees all of them.

    Use: `add` every piece, `build` once, then per step `gather`, and per layer `piece`.

    Attributes:
        rows: (T, P) float32, the parameters.
        leaf: (U, P) copy of the live rows; requires grad when gathered with gradients enabled, so that after
            the backward passes of a step `leaf.grad` is (U, P).
        live: (U,) task indices of the leaf's rows, in its order.
        layout: name -> (first column, shape) of every piece.
    """

    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", torch.empty(0, 0))
        self.layout: dict[str, tuple[int, tuple[int, ...]]] = {}
        self.leaf: Tensor | None = None
        self.live: tuple[int, ...] = ()
        self._inits: list[Init] = []
        self._sizes: list[int] = []
        self._views: dict[tuple[torch.dtype, bool], list[Tensor]] = {}
        self._position: Tensor | None = None
        self._version = -1

    def add(self, name: str, shape: tuple[int, ...], init: Init) -> int:
        """Reserve a piece of every row and return its index. `init(piece, generator)` fills a task's."""
        assert name not in self.layout, f"{name} is added twice"
        assert not len(self.rows), f"{name} is added after build"
        self.layout[name] = (sum(self._sizes), tuple(shape))
        self._sizes.append(math.prod(shape))
        self._inits.append(init)
        return len(self._sizes) - 1

    def build(self, tasks: Sequence[str], seed: int) -> None:
        """Make the rows. A row depends on (seed, name of its task) and the layout, not on the other tasks."""
        self.rows = torch.empty(len(tasks), sum(self._sizes))
        for row, task in zip(self.rows, tasks, strict=True):
            generator = generator_for(seed, task)
            pieces = zip(row.split(self._sizes), self.layout.values(), self._inits, strict=True)
            for piece, (_, shape), init in pieces:
                init(piece.view(shape), generator)

    def gather(self, live: Sequence[int]) -> None:
        """Copy the rows of the (U,) tasks `live` into a new leaf. Call again after the rows have changed."""
        assert len(set(live)) == len(live), f"a task is live twice: {live}"
        index = torch.tensor(live, dtype=torch.long, device=self.rows.device)
        self.live = tuple(live)
        self.leaf = self.rows.index_select(0, index).requires_grad_(torch.is_grad_enabled())
        self._position = torch.full((len(self.rows),), -1, device=index.device)
        self._position[index] = torch.arange(len(index), device=index.device)
        self._views.clear()
        self._version = self.rows._version

    def holds(self, tasks: Sequence[int]) -> bool:
        """Whether the leaf has the present rows of all `tasks`, on the right device, and with a gradient if
        one is wanted now."""
        return (
            self.leaf is not None
            and self._version == self.rows._version
            and self.leaf.device == self.rows.device
            and (self.leaf.requires_grad or not torch.is_grad_enabled())
            and set(tasks) <= set(self.live)
        )

    def piece(self, index: int, dtype: torch.dtype) -> Tensor:
        """(U, *shape) of piece `index` in `dtype`. All pieces come from one split: one (U, P) in backward."""
        key = (dtype, torch.is_grad_enabled())
        if key not in self._views:
            parts = self.leaf.to(dtype).split(self._sizes, dim=1)
            shapes = [shape for _, shape in self.layout.values()]
            self._views[key] = [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]
        return self._views[key][index]

    def position(self, task_ids: Tensor) -> Tensor:
        """(S,) task indices -> (S,) rows of the leaf; -1 for a task that is not live."""
        return self._position[task_ids]

    def named(self, task: int) -> dict[str, Tensor]:
        """Views of one task's pieces in `rows`, by name."""
        return {
            name: self.rows[task, first : first + math.prod(shape)].view(shape)
            for name, (first, shape) in self.layout.items()
        }


def generator_for(seed: int, name: str) -> torch.Generator:
    """Random numbers that depend on (seed, name) alone."""
    digest = blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
