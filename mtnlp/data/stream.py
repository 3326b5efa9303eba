"""The sequences of a batch as one flat stream of tokens, block by block: what a network needs to run without
padding.

Linear layers, norms and activations look at single tokens, so they may see all of a batch's tokens as one
sequence (1, N, D). Only attention must know where a sequence begins and ends; it works on blocks of sequences
of nearly equal length, each a view (n, l, D) of the stream.

Shapes: S sequences of the batch, L their padded length, N tokens of the stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

EVEN = 32  # a stream is lengthened by less than 1 / EVEN


class Block(NamedTuple):
    """Sequences of nearly equal length that lie one after the other in a flat stream of tokens.

    length, target_length: what each is padded to in the stream of sources, and in that of text targets (0
    where there is none).
    """

    sequences: int
    length: int
    target_length: int = 0


@dataclass(frozen=True)
class Stream:
    """One side of a batch, its sources or its text targets, without (most of) the padding.

    Args:
        shapes: (sequences, length) of every block, in order.
        shortest: of every block, tokens of its shortest sequence; the places before it hold no padding.
        width: L of the padded batch that `index` counts in.
        index: (N,) int64, the place of every token in a padded batch seen as (S * L,).
        positions: (1, N) int64, of a token in its sequence; from 0.
        mask: (1, N) int64, 1 on real tokens.
    """

    shapes: tuple[tuple[int, int], ...]
    shortest: tuple[int, ...]
    width: int
    index: Tensor
    positions: Tensor
    mask: Tensor

    @property
    def tokens(self) -> int:
        return self.index.numel()

    @property
    def rows(self) -> Tensor:
        """(N,) int64, the sequence of the batch that each token belongs to."""
        return self.index // self.width

    def take(self, padded_SL: Tensor) -> Tensor:
        """(1, N) values of the stream's tokens."""
        return padded_SL.reshape(-1)[self.index].unsqueeze(0)

    def give_back(self, hidden_1ND: Tensor, sequences: int) -> Tensor:
        """(S, L, D) states in the places of the padded batch; 0 at places outside of the stream."""
        hidden_ND = hidden_1ND.squeeze(0)
        padded = hidden_ND.new_zeros(sequences * self.width, hidden_ND.shape[-1])
        return padded.index_copy(0, self.index, hidden_ND).view(sequences, self.width, -1)


@dataclass(frozen=True)
class Layout:
    """How the sequences of a batch lie in streams: block by block, inside a block in the order of the batch.

    Args:
        order: (S,) int64, the rows of the batch in the order of the streams.
        source, target: of the inputs and of an encoder-decoder's text targets (None elsewhere); never of
            equal numbers of tokens, by which layers tell them apart.
    """

    order: Tensor
    source: Stream
    target: Stream | None

    @property
    def blocks(self) -> tuple[Block, ...]:
        if self.target is None:
            return tuple(Block(*shape) for shape in self.source.shapes)
        pairs = zip(self.source.shapes, self.target.shapes, strict=True)
        return tuple(Block(*shape, length) for shape, (_, length) in pairs)

    @property
    def tokens(self) -> int:
        """Of both streams, what padding is left among them."""
        return self.source.tokens + (self.target.tokens if self.target else 0)


def lay_out(blocks: np.ndarray, lengths: np.ndarray, target_lengths: np.ndarray | None = None) -> Layout:
    """Streams of a batch whose sequences are numbered by block.

    Args:
        blocks: (S,) block of every sequence, from 0; lengths: (S,) its tokens, at least one.
        target_lengths: (S,) tokens of its text target, for an encoder-decoder.
    """
    order = np.argsort(blocks, kind="stable")
    counts = np.bincount(blocks)
    starts = np.cumsum(counts) - counts
    longest = _evened(counts, np.maximum.reduceat(lengths[order], starts))
    source = _stream(order, counts, longest, lengths)
    target = None
    if target_lengths is not None:
        longest_targets = np.maximum(np.maximum.reduceat(target_lengths[order], starts), 1)
        longest_targets = _evened(counts, longest_targets)
        if (counts * longest).sum() == (counts * longest_targets).sum():
            longest_targets[np.argmin(counts)] += 1
        target = _stream(order, counts, longest_targets, target_lengths)
    return Layout(torch.from_numpy(order), source, target)


def _evened(counts: np.ndarray, longest: np.ndarray) -> np.ndarray:
    """The blocks' lengths, one of them longer if that gives the stream a round number of tokens.

    A library that compiles its products for every shape (oneDNN, for bfloat16) takes up to ten times as long
    for one that it has not seen; so streams have few different totals: about EVEN between N and 2 N tokens.
    """
    total = int(counts @ longest)
    grid = 1 << max(0, (total // EVEN).bit_length() - 1)
    missing = -total % grid
    fits = (missing % counts == 0) & (longest + missing // counts <= longest.max())
    if missing and fits.any():
        at = np.flatnonzero(fits)[np.argmin(longest[fits])]
        longest[at] += missing // counts[at]
    return longest


def _stream(order: np.ndarray, counts: np.ndarray, longest: np.ndarray, lengths: np.ndarray) -> Stream:
    """counts, longest: of the blocks; lengths: (S,) of the sequences in batch order."""
    width = int(longest.max())
    padded_to = np.repeat(longest, counts)  # of each sequence, in stream order
    ends = np.cumsum(padded_to)
    positions = np.arange(ends[-1]) - np.repeat(ends - padded_to, padded_to)
    rows = np.repeat(order, padded_to)
    real = positions < lengths[rows]
    return Stream(
        shapes=tuple(zip(counts.tolist(), longest.tolist(), strict=True)),
        shortest=tuple(np.minimum.reduceat(lengths[order], np.cumsum(counts) - counts).tolist()),
        width=width,
        index=torch.from_numpy(rows * width + positions),
        positions=torch.from_numpy(positions[None]),
        mask=torch.from_numpy(real.astype(np.int64)[None]),
    )
