"""Tables of weights by name, as `MultitaskModel.trainable_state` gives them: whose they are, their hashes,
and the rows of single tasks in the layout of another model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from mtnlp.models.multitask import MultitaskModel


def owner(name: str) -> str | None:
    """The task that a name in `trainable_state` belongs to; None = all share it."""
    kind, _, rest = name.partition("/")
    return {"shared": None, "bank": rest}.get(kind, rest.rpartition("/")[0])


def hashes(table: Mapping[str, Tensor]) -> dict[str, Any]:
    """SHA-256 of weights by whom they belong to: {"tasks": {task: ...}, "shared": of what all share, or
    None}. Names, shapes and types count too."""
    import torch

    found: dict[str | None, Any] = {}
    for name in sorted(table):
        tensor = table[name].detach().cpu().contiguous()
        digest = found.setdefault(owner(name), hashlib.sha256())
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    sums = {owner: digest.hexdigest() for owner, digest in found.items()}
    shared = sums.pop(None, None)
    return {"tasks": sums, "shared": shared}


@dataclass(frozen=True)
class Rows:
    """How the rows of a bank are laid out; empty where a model has none.

    Args:
        pieces: name -> (first column, shape); width: numbers in a row; mark: as files call the layout.
    """

    pieces: Mapping[str, tuple[int, tuple[int, ...]]]
    width: int
    mark: str

    @classmethod
    def of(cls, model: MultitaskModel) -> Rows:
        bank = model.strategy.bank
        return cls({}, 0, "") if bank is None else cls(bank.layout, bank.rows.shape[1], model.row_layout)

    def lay_out(self, table: Mapping[str, Tensor], come: Rows) -> dict[str, Tensor]:
        """A table of weights with its rows, so far laid out like `come`, like this.

        The two differ where tasks have ranks of their own: a shorter piece is the beginning of a longer one,
        whose rest is zero.
        """
        if come.mark == self.mark:
            return dict(table)
        found = dict(table)
        for name in (name for name in table if name.startswith("bank/")):
            found[name] = table[name].new_zeros(self.width)
            for piece, (first, shape) in self.pieces.items():
                start, other = come.pieces[piece]
                size = min(math.prod(shape), math.prod(other))
                found[name][first : first + size] = table[name][start : start + size]
        return found
