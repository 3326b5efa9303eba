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

from mtnlp import memory

Init = Callable[[Tensor, torch.Generator], None]


class Bank(nn.Module):
    """Float32 rows, one per task, as a buffer: no optimizer or gradient ever sees all of them.

    Use: `add` every piece, `build` once, then per step `gather`, and per layer `piece` (autograd puts its
    gradient into the leaf) or `columns` (whoever computes a gradient adds it to those of `grad`).

    What has the size of the live rows is kept from step to step: memory fresh from the system costs ten times
    the copy itself.

    Attributes:
        on_cpu: set it and rows stay in main memory when the model moves to a device; the leaf goes there. So
            the number of tasks is not bounded by the device's memory.
        rows: (T, P) float32, the parameters.
        leaf: (U, P) for the live rows; requires grad when gathered with gradients enabled, so that after the
            backward passes of a step `leaf.grad` is (U, P). Valid until the next `gather`; it holds their
            values only once `piece` has asked for them.
        live: (U,) task indices of the leaf's rows, in its order.
        layout: name -> (first column, shape) of every piece.
    """

    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", torch.empty(0, 0))
        self.on_cpu = False
        self._device = self.rows.device
        self.layout: dict[str, tuple[int, tuple[int, ...]]] = {}
        self.leaf: Tensor | None = None
        self.live: tuple[int, ...] = ()
        self._layout: list[tuple[int, tuple[int, ...]]] = []  # that of piece 0, 1, ...
        self._inits: list[Init] = []
        self._sizes: list[int] = []
        self._views: dict[tuple[torch.dtype, bool], list[Tensor]] = {}
        self._cast: dict[torch.dtype, Tensor] = {}
        self._kept: dict[tuple[str, torch.dtype], Tensor] = {}
        self._position: Tensor | None = None
        self._version = -1

    def add(self, name: str, shape: tuple[int, ...], init: Init) -> int:
        """Reserve a piece of every row and return its index. `init(piece, generator)` fills a task's."""
        assert name not in self.layout, f"{name} is added twice"
        assert not len(self.rows), f"{name} is added after build"
        self.layout[name] = (sum(self._sizes), tuple(shape))
        self._layout.append(self.layout[name])
        self._sizes.append(math.prod(shape))
        self._inits.append(init)
        return len(self._sizes) - 1

    def build(self, tasks: Sequence[str], seed: int, ranks: Sequence[int] | None = None) -> None:
        """Make the rows. A row depends on (seed, name of its task) and the layout, not on the other tasks.

        Args:
            ranks: (T,) how many rows of each piece a task uses, where tasks differ in rank; the rest is zero,
                and a low-rank update whose other factor is zero there too leaves it so.
        """
        memory.check_rows(len(tasks), sum(self._sizes))
        self.rows = torch.zeros(len(tasks), sum(self._sizes))
        for i, (row, task) in enumerate(zip(self.rows, tasks, strict=True)):
            generator = generator_for(seed, task)
            pieces = zip(row.split(self._sizes), self.layout.values(), self._inits, strict=True)
            for piece, (_, shape), init in pieces:
                init(piece.view(shape)[: None if ranks is None else ranks[i]], generator)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Bank:
        like = fn(self.rows.new_empty(0)) if self.on_cpu else None
        self.rows = fn(self.rows) if like is None else self.rows.to(like.dtype)
        self._device = self.rows.device if like is None else like.device
        return self

    @property
    def fingerprint(self) -> str:
        """Of the names, shapes and order of the pieces in a row: rows of another one mean something else."""
        return blake2b(repr(list(self.layout.items())).encode(), digest_size=8).hexdigest()

    @property
    def device(self) -> torch.device:
        """Where the leaf lies."""
        return self._device if self.on_cpu else self.rows.device

    def gather(self, live: Sequence[int]) -> None:
        """Copy the rows of the (U,) tasks `live` into a new leaf. Call again after the rows have changed."""
        assert len(set(live)) == len(live), f"a task is live twice: {live}"
        index = torch.tensor(live, dtype=torch.long, device=self.device)
        self.live = tuple(live)
        self.leaf = self._buffer("leaf", self.rows.dtype).detach().requires_grad_(torch.is_grad_enabled())
        self._position = torch.full((len(self.rows),), -1, device=self.device)
        self._position[index] = torch.arange(len(index), device=self.device)
        self._views.clear()
        self._cast.clear()
        self._version = self.rows._version

    def _buffer(self, name: str, dtype: torch.dtype) -> Tensor:
        """(U, P) to be overwritten, the same memory every step."""
        size, kept = len(self.live) * self.rows.shape[1], self._kept.get((name, dtype))
        if kept is None or len(kept) < size or kept.device != self.device:
            with torch.inference_mode(False):  # made in an evaluation, it must serve training too
                self._kept[name, dtype] = kept = torch.empty(size, dtype=dtype, device=self.device)
        return kept[:size].view(len(self.live), -1)

    def holds(self, tasks: Sequence[int]) -> bool:
        """Whether the leaf has the present rows of all `tasks`, on the right device, and with a gradient if
        one is wanted now."""
        return (
            self.leaf is not None
            and self._version == self.rows._version
            and self.leaf.device == self.device
            and (self.leaf.requires_grad or not torch.is_grad_enabled())
            and set(tasks) <= set(self.live)
        )

    def piece(self, index: int, dtype: torch.dtype) -> Tensor:
        """(U, *shape) of piece `index` in `dtype`. All pieces come from one split: one (U, P) in backward."""
        key = (dtype, torch.is_grad_enabled())
        if key not in self._views:
            self._data(self.leaf.dtype)
            parts = self.leaf.to(dtype).split(self._sizes, dim=1)
            shapes = [shape for _, shape in self.layout.values()]
            self._views[key] = [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]
        return self._views[key][index]

    def columns(self, pieces: Sequence[int], dtype: torch.dtype) -> Tensor:
        """(U, sum of first dimensions, ...) of neighbouring pieces in `dtype`, as data without gradient."""
        return self._stacked(self._data(dtype), pieces)

    def _data(self, dtype: torch.dtype) -> Tensor:
        """(U, P) the live rows in `dtype`, copied when first asked for; into the leaf if of its type."""
        if dtype not in self._cast:
            data = self._buffer("leaf", dtype)
            for row, task in zip(data, self.live, strict=True):
                row.copy_(self.rows[task], non_blocking=True)
            self._cast[dtype] = data
        return self._cast[dtype]

    def grad(self, pieces: Sequence[int]) -> Tensor:
        """What `columns` is to the leaf, of the leaf's gradient: a view to add to; zero at first."""
        if self.leaf.grad is None:
            self.leaf.grad = self._buffer("grad", self.leaf.dtype).zero_()
        return self._stacked(self.leaf.grad, pieces)

    def _stacked(self, table: Tensor, pieces: Sequence[int]) -> Tensor:
        first, shape = self._layout[pieces[0]]
        stop = self._layout[pieces[-1]][0] + self._sizes[pieces[-1]]
        return table[:, first:stop].unflatten(1, (-1, *shape[1:]))

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
