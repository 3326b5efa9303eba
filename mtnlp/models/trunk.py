"""Keeping what the frozen lower blocks of a network compute, so that later epochs need not compute it again.

The blocks below the first one that learns (all of them for the strategy `heads`) give the same states for a
row every time it is seen, once their dropout is off. They are kept in one file, in the type that the network
computes in: tokens x width x 2 bytes in bf16. A batch whose rows have all been seen skips those blocks.

Shapes: S sequences, L padded length, N tokens of a stream, D width.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mtnlp.data.batch import Batch
from mtnlp.errors import MtnlpError

if TYPE_CHECKING:
    from mtnlp.models.backbone import Backbone


def frozen_blocks(backbone: Backbone) -> list[nn.Module]:
    """The leading blocks in which, and before which, nothing learns.

    A layer of a bank learns too, though it holds no parameter. Encoder-decoders have two rows of blocks, and
    none of them count; nor do any where something around the blocks learns, which may be before them.
    """
    if backbone.family == "encoder-decoder":
        return []
    blocks = [block for _, block in backbone.blocks()]
    inside = {module for block in blocks for module in block.modules()}
    if any(_learns(module) for module in backbone.net.modules() if module not in inside):
        return []
    first = next((i for i, block in enumerate(blocks) if any(map(_learns, block.modules()))), len(blocks))
    return blocks[:first]


def require(backbone: Backbone) -> list[nn.Module]:
    """The frozen blocks.

    Raises:
        MtnlpError: there is none.
    """
    if found := frozen_blocks(backbone):
        return found
    why = "learns in its lowest block or outside of the blocks"
    if backbone.family == "encoder-decoder":
        why = "has two rows of blocks"
    raise MtnlpError(
        f"train.cache_trunk: {backbone.described} {why}, so there is nothing to keep. Adapt the upper blocks "
        'of an encoder or decoder only (model.strategy.targets, such as "layer\\.[45]\\."), take '
        "the strategy heads, or leave train.cache_trunk out."
    )


def _learns(module: nn.Module) -> bool:
    """Whether the module itself does, its children left out."""
    return hasattr(module, "bank") or any(p.requires_grad for p in module.parameters(recurse=False))


class TrunkCache:
    """The states that enter the first block that learns, by task and row.

    Args:
        backbone: already edited by its strategy.
        path: of the file, made here, of its full size from the start but empty blocks of it take no room.
        tokens: of all rows that may be seen.
        dtype: of the states that are kept.

    Raises:
        MtnlpError: no block of the network is frozen from the bottom on, or the disk is too small.
    """

    def __init__(self, backbone: Backbone, path: Path, *, tokens: int, dtype: torch.dtype) -> None:
        self.blocks = require(backbone)
        self.backbone, self.path, self.width = backbone, path, backbone.width
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        count = max(1, tokens) * self.width
        if (needed := count * dtype.itemsize) > (free := shutil.disk_usage(path.parent).free):
            raise MtnlpError(
                f"train.cache_trunk: {needed / 2**20:,.1f} MiB may be needed in {path.parent}, and "
                f"{free / 2**20:,.1f} MiB are free. Leave train.cache_trunk out, or choose another folder "
                "with --out."
            )
        self.states = torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(-1, self.width)
        self.places: dict[tuple[int, int], tuple[int, int]] = {}  # (task, row) -> first and last + 1 token
        self.used = 0
        self._tuples, self._dtype = False, dtype  # whether the network's blocks give tuples, and of what

    @property
    def described(self) -> str:
        """One sentence on what is kept, how large it gets, and where."""
        total = len(self.backbone.blocks())
        return (
            f"trunk cache: states after {len(self.blocks)} of {total} blocks, {self.bytes / 2**20:,.1f} MiB "
            f"when every row has been seen, in {self.path} until training ends."
        )

    @property
    def bytes(self) -> int:
        """Size of the file when every row has been seen."""
        return self.states.numel() * self.states.element_size()

    def still(self) -> None:
        """Switch off dropout below the first block that learns."""
        above = {id(m) for _, block in self.backbone.blocks()[len(self.blocks) :] for m in block.modules()}
        for module in self.backbone.net.modules():
            if id(module) not in above:
                module.training = False

    def holds(self, batch: Batch) -> bool:
        return all((part.task, int(row)) in self.places for part in batch.slices for row in part.rows)

    @contextmanager
    def around(self, batch: Batch) -> Iterator[None]:
        """Around a forward of `batch`: the frozen blocks are skipped, or what they compute is kept."""
        if self.holds(batch):
            states = self._read(batch)
            with ExitStack() as stack:
                for block in self.blocks:
                    stack.enter_context(_giving(block, (states,) if self._tuples else states))
                yield
            return
        seen: list[Any] = []  # a network that runs one block several times leaves several
        handle = self.blocks[-1].register_forward_hook(lambda _, __, output: seen.append(output))
        try:
            yield
        finally:
            handle.remove()
        self._tuples = isinstance(seen[-1], tuple)
        states = seen[-1][0] if self._tuples else seen[-1]
        self._dtype = states.dtype  # under autocast, norms give float32
        self._write(batch, states)

    def _tokens(self, batch: Batch) -> Tensor:
        """(tokens,) the places in the padded batch, seen as (S * L,), of its rows' tokens, row by row."""
        return batch.attention_mask.flatten().nonzero()[:, 0]

    def _read(self, batch: Batch) -> Tensor:
        """(S, L, D) or (1, N, D): the kept states of a batch, as its network would have them."""
        spans = [self.places[part.task, int(row)] for part in batch.slices for row in part.rows]
        index = torch.from_numpy(np.concatenate([np.arange(*span) for span in spans]))
        mask = batch.attention_mask
        padded = torch.zeros(mask.numel(), self.width, dtype=self._dtype, device=mask.device)
        padded[self._tokens(batch)] = self.states[index].to(padded)
        if batch.layout is not None:
            return padded[batch.layout.source.index].unsqueeze(0)
        return padded.view(*mask.shape, self.width)

    def _write(self, batch: Batch, states: Tensor) -> None:
        mask = batch.attention_mask
        padded = states.detach()
        if batch.layout is not None:
            padded = padded.new_zeros(mask.numel(), self.width)
            padded[batch.layout.source.index] = states.detach()[0]
        kept = padded.view(-1, self.width)[self._tokens(batch)].to("cpu", self.states.dtype)
        lengths = mask.sum(1).tolist()
        start = 0
        for part in batch.slices:
            counts, sequence = part.counts.tolist(), part.start
            for row, count in zip(part.rows.tolist(), counts, strict=True):
                size = sum(lengths[sequence : sequence + count])
                if (part.task, row) not in self.places:
                    self.states[self.used : self.used + size] = kept[start : start + size]
                    self.places[part.task, row] = (self.used, self.used + size)
                    self.used += size
                start, sequence = start + size, sequence + count

    def close(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


@contextmanager
def _giving(block: nn.Module, output: Any) -> Iterator[None]:
    """Inside, the block gives `output` instead of computing anything."""
    block.forward = lambda *_, **__: output
    try:
        yield
    finally:
        del block.forward
