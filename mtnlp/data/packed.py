"""All options of a document behind one copy of its context, as a batch: each token is read once.

    context  c1 c2 c3                  options  a b </s> | a c </s> | d </s>

    row      c1 c2 c3 a b c d          a, d follow c3; b, c follow a: a tree
    scored   c3 -> a, d;  a -> b, c;  b, c, d -> </s>

A token of the tree sees the context and those it follows, and stands at the place it has in its option. So
each option is scored as if it were alone. Options that begin alike share tokens, and an option's last token
is never read. An encoder-decoder reads the context apart; the tree then starts at the decoder's start token.

Shapes: S contexts of a batch, L their padded length, R the padded length of rows with a tree (that of the
decoder's rows in an encoder-decoder), O options, M scored tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from mtnlp.data.batch import Batch, TaskSlice
from mtnlp.data.collate import collate, grouped
from mtnlp.data.cut import cut
from mtnlp.data.store import TokenStore

NODES = 1024  # most tokens in a tree: each may look at each, so the cost of a larger one would be its square


@dataclass(frozen=True)
class Tree:
    """Options merged where they begin alike. Node 0 is the last token before them, node i > 0 an own one.

    Args:
        tokens, parents, depths: (n,) of nodes 1..n; parents come first, and node 0 has depth 0.
        places: for each option, the node after which each of its tokens is expected.
    """

    tokens: list[int]
    parents: list[int]
    depths: list[int]
    places: list[list[int]]


def grow(options: Sequence[Sequence[int]]) -> Tree:
    """The tree of some options, given by their tokens."""
    found: dict[tuple[int, int], int] = {}
    depths, places = [0], []
    for option in options:
        path = [0] * len(option)
        for i, token in enumerate(option[:-1]):
            path[i + 1] = node = found.setdefault((path[i], token), len(found) + 1)
            if node == len(depths):
                depths.append(i + 1)
        places.append(path)
    return Tree([token for _, token in found], [parent for parent, _ in found], depths[1:], places)


@dataclass(frozen=True)
class Row:
    """One context with some of its options.

    Args:
        task: index; document: number among the task's documents.
        context: (n,) token ids.
        options: token ids of each; rows: where each stands in the task's store.
        tree: of the options; None = this is a row for each option, as the store has it.
    """

    task: int
    document: int
    context: np.ndarray
    options: list[tuple[int, ...]]
    rows: list[int]
    tree: Tree | None


@dataclass(frozen=True)
class Packed:
    """One batch of contexts with their options.

    Args:
        contexts: the S contexts, with slices; a decoder's with the trees behind them.
        nodes: (S, R) int64 tokens of an encoder-decoder's decoder, the first of each row to be overwritten
            by the start token; None for a decoder.
        positions: (S, R) int64, place of each token in its own option; farthest: the largest, + 1.
        seen: (S, R, R) bool, which tokens (last) each token sees.
        scored: (S, R) bool, tokens whose next one is scored.
        places: (M,) int64, the token after which a scored token is expected, counting the True of `scored`.
        tokens: (M,) int64, scored tokens. options: (M,) int64, their option.
        slices: one per task; start, stop: its options, in the order of `options`; rows: theirs in the store.
    """

    contexts: Batch
    nodes: Tensor | None
    positions: Tensor
    farthest: int
    seen: Tensor
    scored: Tensor
    places: Tensor
    tokens: Tensor
    options: Tensor
    slices: tuple[TaskSlice, ...]

    @property
    def useful_tokens(self) -> int:
        """Real tokens that the network runs."""
        apart = 0 if self.nodes is None else int(self.scored.sum())
        return self.contexts.useful_tokens + apart

    @property
    def padded_tokens(self) -> int:
        """Tokens that the network runs."""
        return self.contexts.padded_tokens + (0 if self.nodes is None else self.nodes.numel())

    def to(self, device: torch.device | str) -> Packed:
        """The same batch with every tensor on `device`."""
        moved = {
            name: value.to(device, non_blocking=True)
            for name, value in self.__dict__.items()
            if isinstance(value, Tensor)
        }
        return replace(self, contexts=self.contexts.to(device), **moved)


def option_batches(
    stores: Mapping[int, TokenStore],
    counts: Mapping[int, Sequence[int]],
    *,
    max_tokens: int,
    pad_id: int,
    form: str,
    longest: int,
) -> Iterator[tuple[list[tuple[int, int]], list[Packed | Batch]]]:
    """Batches that hold every option of every document once, tasks mixed, longest first.

    Args:
        stores: task index -> its store, with a row for every option of every document, in order.
        counts: task index -> the number of options of each document.
        max_tokens: most padded tokens of a batch; no row of several options is longer.
        form: "encoder-decoder" or "decoder".
        longest: most tokens of a context with an option that may share its row; 0 = none may.

    Yields:
        (task, document) of those whose options are in the batch, all of them; and the batch, in pieces if one
        document alone is larger than `max_tokens`. Where contexts are not shared, a piece is a plain Batch.
    """
    documents = [
        _rows(task, document, store, range(stop - n, stop), form, max_tokens, longest)
        for task, store in sorted(stores.items())
        for document, (n, stop) in enumerate(zip(counts[task], np.cumsum(counts[task], dtype=int).tolist()))
    ]
    for shared in (False, True):
        chosen = [rows for rows in documents if (rows[0].tree is not None) == shared]
        for rows in _cut(chosen, form, max_tokens):
            pieces = [
                pack(own, pad_id=pad_id, form=form) if shared else _plain(own, stores, pad_id, form)
                for own in _pieces(rows, form, max_tokens)
            ]
            yield list(dict.fromkeys((row.task, row.document) for row in rows)), pieces


def pack(rows: Sequence[Row], *, pad_id: int, form: str) -> Packed:
    """One batch of rows with trees, sorted by task."""
    apart, trees = form == "encoder-decoder", [row.tree for row in rows]
    heads = np.array([0 if apart else len(row.context) - 1 for row in rows])
    grid = _Grid(heads, trees)
    context, real = _padded([row.context for row in rows], pad_id, None if apart else grid.shape[1])
    ids = np.full(grid.shape, pad_id, np.int64) if apart else context
    ids[grid.rows, grid.columns] = [token for tree in trees for token in tree.tokens]
    first = np.cumsum(grid.sizes + 1) - grid.sizes - 1  # node 0 of each row, among the scored places
    paths = [start + np.array(path, np.int64) for start, tree in zip(first, trees) for path in tree.places]
    options = [option for row in rows for option in row.options]
    positions = grid.positions()
    return Packed(
        contexts=_contexts(rows, context, real if apart else grid.filled),
        nodes=torch.from_numpy(ids) if apart else None,
        positions=torch.from_numpy(positions),
        farthest=int(positions.max()) + 1,
        seen=torch.from_numpy(grid.seen()),
        scored=torch.from_numpy(grid.filled & (np.arange(grid.shape[1]) >= heads[:, None])),
        places=torch.from_numpy(np.concatenate(paths)),
        tokens=torch.tensor([token for option in options for token in option], dtype=torch.long),
        options=torch.from_numpy(np.repeat(np.arange(len(options)), [len(option) for option in options])),
        slices=_slices(rows, [row.rows for row in rows]),
    )


class _Grid:
    """The places of trees in padded rows, each tree right behind its node 0, which stands at column `heads`.

    Attributes:
        shape: (S, R). filled: (S, R) bool, True up to the end of each tree. sizes: (S,) nodes of each tree.
        rows, columns, depths: (n,) of the nodes of all trees in order; parents: (n,) column of the node that
            each follows.
    """

    def __init__(self, heads: np.ndarray, trees: Sequence[Tree]) -> None:
        self.heads, self.sizes = heads, np.array([len(tree.tokens) for tree in trees])
        stops = heads + self.sizes + 1
        self.shape = (len(trees), int(stops.max()))
        self.filled = _before(stops, self.shape[1])
        self.rows, self.columns = np.nonzero(self.filled & (np.arange(self.shape[1]) > heads[:, None]))
        self.depths = np.array([depth for tree in trees for depth in tree.depths], np.int64)
        parents = np.array([parent for tree in trees for parent in tree.parents], np.int64)
        self.parents = heads[self.rows] + parents

    def positions(self) -> np.ndarray:
        """(S, R) int64, of each token in its own option; 0 on padding, where there may be no such place."""
        columns = np.arange(self.shape[1])
        found = np.where(columns <= self.heads[:, None], columns, 0)
        found[self.rows, self.columns] = self.heads[self.rows] + self.depths
        return found

    def seen(self) -> np.ndarray:
        """(S, R, R) bool: a node sees itself and what the node before it sees, other tokens all before."""
        found = np.tile(np.tri(self.shape[1], dtype=bool), (self.shape[0], 1, 1))
        for depth in range(1, int(self.depths.max(initial=0)) + 1):
            now = self.depths == depth
            rows, columns = self.rows[now], self.columns[now]
            found[rows, columns] = found[rows, self.parents[now]]
            found[rows, columns, columns] = True
        return found


def _rows(
    task: int, document: int, store: TokenStore, rows: range, form: str, max_tokens: int, longest: int
) -> list[Row]:
    """The rows of a document: one for all options behind the same context, or one for each."""
    both = [_tokens(store, row, form) for row in rows]
    if max((len(context) + len(option) for context, option in both), default=0) > longest:
        return [
            Row(task, document, context, [option], [row], None) for row, (context, option) in zip(rows, both)
        ]
    behind: dict[bytes, list[int]] = {}
    for i, (context, _) in enumerate(both):
        behind.setdefault(context.tobytes(), []).append(i)
    found = []
    for own in behind.values():
        context = both[own[0]][0]
        # Sorted, so that what a row looks like does not depend on the order of the options.
        own = sorted(own, key=lambda i: both[i][1])
        for part, tree in _trees(
            [both[i][1] for i in own], min(NODES, min(max_tokens, longest) - len(context))
        ):
            options, places = [both[i][1] for i in own[part]], [rows[i] for i in own[part]]
            found.append(Row(task, document, context, options, places, tree))
    return found


def _trees(options: list[tuple[int, ...]], most: int, start: int = 0) -> Iterator[tuple[slice, Tree]]:
    """Trees of at most so many nodes, each with the stretch of the sorted options that is in it."""
    tree = grow(options)
    if len(tree.tokens) <= most or len(options) == 1:
        yield slice(start, start + len(options)), tree
        return
    half = len(options) // 2
    yield from _trees(options[:half], most, start)
    yield from _trees(options[half:], most, start + half)


def _tokens(store: TokenStore, row: int, form: str) -> tuple[np.ndarray, tuple[int, ...]]:
    """Context and option of one row of a store."""
    start, stop = store.token_offsets[row], store.token_offsets[row + 1]
    if form == "encoder-decoder":
        low, high = store.target_offsets[row], store.target_offsets[row + 1]
        return store["tokens"][start:stop], tuple(store["target_tokens"][low:high].tolist())
    middle = start + store["prompt_lengths"][row]
    return store["tokens"][start:middle], tuple(store["tokens"][middle:stop].tolist())


def _size(row: Row, form: str) -> tuple[int, int]:
    """Tokens of a row, and of an encoder-decoder's row of targets."""
    nodes = len(row.options[0]) if row.tree is None else len(row.tree.tokens)
    if form == "decoder":
        return len(row.context) + nodes, 0
    return len(row.context), nodes + (row.tree is not None)


def _cut(documents: list[list[Row]], form: str, max_tokens: int) -> Iterator[list[Row]]:
    """The rows of each batch, sorted by task. A stop and a new start with the documents that are left change
    nothing for these."""
    if not documents:
        return
    sizes = [[max(own) for own in zip(*(_size(row, form) for row in rows))] for rows in documents]
    order = sorted(
        range(len(documents)), key=lambda i: (*sizes[i], documents[i][0].task, documents[i][0].document)
    )
    lengths, targets = np.array(sizes, np.int64)[order].T
    counts = np.array([len(documents[i]) for i in order])
    for start, stop in reversed(cut(lengths, counts, targets, max_tokens=max_tokens)):
        chosen = [documents[i] for i in order[start:stop]]
        yield [row for rows in sorted(chosen, key=lambda rows: rows[0].task) for row in rows]


def _pieces(rows: list[Row], form: str, max_tokens: int) -> Iterator[list[Row]]:
    """All rows; or some after some, if they have too many tokens together."""
    each = sum(max(own) for own in zip(*(_size(row, form) for row in rows)))
    fit = max(1, max_tokens // each) if len({(row.task, row.document) for row in rows}) == 1 else len(rows)
    for start in range(0, len(rows), fit):
        yield rows[start : start + fit]


def _plain(rows: Sequence[Row], stores: Mapping[int, TokenStore], pad_id: int, form: str) -> Batch:
    tasks, places = (np.array(own) for own in zip(*((row.task, row.rows[0]) for row in rows)))
    return collate(grouped(stores, tasks, places), pad_id=pad_id, form=form)


def _before(stops: np.ndarray, width: int) -> np.ndarray:
    """(len(stops), width) bool, True on columns before each stop."""
    return np.arange(width) < stops[:, None]


def _padded(rows: Sequence[np.ndarray], pad_id: int, width: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(S, L) int64 ids and (S, L) bool, True on real ones."""
    lengths = np.array([len(row) for row in rows])
    real = _before(lengths, width or int(lengths.max()))
    ids = np.full(real.shape, pad_id, np.int64)
    ids[real] = np.concatenate(rows)
    return ids, real


def _contexts(rows: Sequence[Row], ids: np.ndarray, real: np.ndarray) -> Batch:
    return Batch(
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy(real.astype(np.int64)),
        token_type_ids=None,
        labels=None,
        task_ids=torch.tensor([row.task for row in rows]),
        slices=_slices(rows, [[row.document] for row in rows]),
    )


def _slices(rows: Sequence[Row], members: Sequence[list[int]]) -> tuple[TaskSlice, ...]:
    """One per task of what each row holds."""
    found, start = [], 0
    for task, own in groupby(zip(rows, members), key=lambda pair: pair[0].task):
        numbers = np.array([number for _, mine in own for number in mine])
        ones = torch.ones(len(numbers), dtype=torch.long)
        found.append(TaskSlice(task, start, start + len(numbers), numbers, ones, None))
        start += len(numbers)
    return tuple(found)
