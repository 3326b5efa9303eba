"""Rows of token stores -> padded batches, by array operations only.

Shapes: S sequences, L padded length, Lt padded target length, N examples of a slice, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from mtnlp.data.batch import IGNORED, Batch, TaskSlice
from mtnlp.data.cut import BLOCK_OVERHEAD, OVERHEAD, Stretch, cut, pack
from mtnlp.data.store import TokenStore
from mtnlp.data.stream import EVEN, lay_out

Part = tuple[int, TokenStore, np.ndarray]
# Padded tokens that one more batch of prompts costs: a loop over the tokens of its answers. Measured (T5 of 4
# layers and width 256, 16 new tokens, one CPU thread): 1,024 and 4,096 are alike, 64 takes 1.4 times as long.
WRITING_OVERHEAD = 1024


def collate(
    parts: Sequence[Part], *, pad_id: int, form: str, generate: bool = False, blocks: np.ndarray | None = None
) -> Batch:
    """One batch of rows of several tasks.

    Args:
        parts: (task index, its store, (N,) row numbers), task indices ascending and distinct; every N > 0.
        pad_id: token id of padding.
        form: "encoder", "encoder-decoder" or "decoder", as the stores were encoded.
        generate: prompts only, without labels; a decoder's are padded on the left.
        blocks: (rows of all parts,) the block of each example, from 0, to lay the batch out as flat streams.
    """
    places = [_Places(store, rows, prompts_only=generate and form == "decoder") for _, store, rows in parts]
    bounds = np.cumsum([0, *(len(own.lengths) for own in places)])
    lengths = np.concatenate([own.lengths for own in places])
    width = int(lengths.max())
    left = width - lengths if generate and form == "decoder" else np.zeros_like(lengths)
    shape = (len(lengths), width)
    mask = (np.arange(width) >= left[:, None]) & (np.arange(width) < (left + lengths)[:, None])
    ids = np.full(shape, pad_id, np.int64)
    ids[mask] = np.concatenate(
        [store["tokens"][own.flat] for (_, store, _), own in zip(parts, places, strict=True)]
    )
    slices = tuple(
        TaskSlice(
            task=task,
            start=int(low),
            stop=int(high),
            rows=np.asarray(rows),
            counts=torch.from_numpy(store.sequences[rows].astype(np.int64)),
            target=_target(store, rows, own, width),
            spans_allowed=_allowed(store, own, width),
        )
        for (task, store, rows), own, low, high in zip(parts, places, bounds[:-1], bounds[1:], strict=True)
    )
    apart = form == "encoder-decoder" and not generate
    layout = labels = None
    if blocks is not None:
        of_sequence = np.repeat(blocks, np.concatenate([store.sequences[rows] for _, store, rows in parts]))
        layout = lay_out(of_sequence, lengths, _target_counts(parts, places) if apart else None)
    if apart:
        labels = _targets(parts, places, layout.target.width if layout else 0)
    elif form == "decoder" and not generate:
        labels = _scored(parts, places, ids, mask)
    return Batch(
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask.astype(np.int64)),
        token_type_ids=_types(parts, places, mask),
        labels=labels,
        task_ids=torch.from_numpy(np.repeat([task for task, _, _ in parts], np.diff(bounds))),
        slices=slices,
        targets_apart=apart,
        layout=layout,
    )


def grouped(stores: Mapping[int, TokenStore], task: np.ndarray, rows: np.ndarray) -> list[Part]:
    """(M,) tasks and (M,) rows -> parts by task; rows of a task keep their order."""
    order = np.argsort(task, kind="stable")
    names, starts = np.unique(task[order], return_index=True)
    return [
        (int(name), stores[int(name)], own)
        for name, own in zip(names, np.split(rows[order], starts[1:]), strict=True)
    ]


def eval_batches(
    stores: Mapping[int, TokenStore],
    rows: Mapping[int, np.ndarray],
    *,
    max_tokens: int,
    pad_id: int,
    form: str,
    generate: bool = False,
    flat: bool = False,
) -> Iterator[Batch]:
    """Batches that hold every given row once, tasks mixed, sorted by length over all tasks, longest first.

    Without the rows of its first batches, the others come out the same.

    Args:
        stores, rows: task index -> its store, and the rows of it that are wanted.
        max_tokens: most padded tokens of a batch; an example that is larger alone gets its own.
        generate: prompts only, as in `collate`; nothing depends on targets that the stores may have.
        flat: lay batches out as streams, for a network that runs them so; max_tokens are those of a stream.
    """
    tasks = [task for task in sorted(stores) if len(rows[task])]
    if not tasks:
        return
    task = np.repeat(tasks, [len(rows[t]) for t in tasks])
    row = np.concatenate([np.asarray(rows[t], np.int64) for t in tasks])
    measure = _prompt_sizes if generate else TokenStore.sizes
    sizes = np.concatenate([measure(stores[t], np.asarray(rows[t], np.int64)) for t in tasks], axis=1)
    order = np.lexsort((row, task, *sizes[::-1]))
    overhead = BLOCK_OVERHEAD if flat else WRITING_OVERHEAD if generate else OVERHEAD
    for stretches in cut_into_blocks(sizes[:, order], max_tokens, overhead, flat=flat):
        chosen = order[stretches[0][0] : stretches[-1][1]]
        by_task = np.argsort(task[chosen], kind="stable")
        blocks = np.repeat(np.arange(len(stretches)), [stop - start for start, stop in stretches])
        yield collate(
            grouped(stores, task[chosen], row[chosen]),
            pad_id=pad_id,
            form=form,
            generate=generate,
            blocks=blocks[by_task] if flat else None,
        )


def _prompt_sizes(store: TokenStore, rows: np.ndarray) -> np.ndarray:
    """TokenStore.sizes of the prompts by themselves, of text forms."""
    alone = store.form == "decoder"  # elsewhere, targets are sequences of their own
    lengths = store["prompt_lengths"][store.seq_offsets[rows]] if alone else store.length[rows]
    return np.stack([lengths, np.ones_like(lengths), np.zeros_like(lengths)])


def cut_into_blocks(sizes: np.ndarray, max_tokens: int, overhead: int, *, flat: bool) -> list[list[Stretch]]:
    """Batches of sorted examples with (3, M) sizes, longest first; each as its blocks (padded: as one).

    overhead: what one more batch, or block, costs, in padded tokens.
    """
    stretches = cut(*sizes, max_tokens=max_tokens, overhead=overhead)
    if not flat:
        return [[stretch] for stretch in reversed(stretches)]
    lengths, sequences, targets = sizes
    tokens = [int(sequences[a:b].sum() * (lengths[b - 1] + targets[a:b].max())) for a, b in stretches]
    # Room for what makes a stream of several blocks even.
    return pack(stretches, tokens, max_tokens * EVEN // (EVEN + 1))[::-1]


class _Places:
    """Where the sequences and tokens of some rows stand in their store."""

    def __init__(self, store: TokenStore, rows: np.ndarray, *, prompts_only: bool) -> None:
        self.sequences = ragged(store.seq_offsets[rows], store.sequences[rows])
        counts = store["prompt_lengths" if prompts_only else "token_counts"]
        self.lengths = counts[self.sequences].astype(np.int64)
        self.flat = ragged(store.token_offsets[self.sequences], self.lengths)


def ragged(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """start, start + 1, ..., start + size - 1 for every pair, one after the other; int64."""
    ends = np.cumsum(sizes, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - ends + sizes, sizes)


def _scattered(
    values: np.ndarray, lengths: np.ndarray, width: int, fill: int, dtype: type = np.int64
) -> np.ndarray:
    out = np.full((len(lengths), width), fill, dtype)
    out[np.arange(width) < lengths[:, None]] = values
    return out


def _types(parts: Sequence[Part], places: Sequence[_Places], mask: np.ndarray) -> torch.Tensor | None:
    if not any("types" in store for _, store, _ in parts):
        return None
    types = np.zeros(mask.shape, np.int64)
    types[mask] = np.concatenate(
        [
            store["types"][own.flat] if "types" in store else np.zeros(len(own.flat), np.uint8)
            for (_, store, _), own in zip(parts, places, strict=True)
        ]
    )
    return torch.from_numpy(types)


def _scored(
    parts: Sequence[Part], places: Sequence[_Places], ids: np.ndarray, mask: np.ndarray
) -> torch.Tensor:
    """Labels of a decoder: the tokens after the prompts."""
    prompts = np.concatenate(
        [store["prompt_lengths"][own.sequences] for (_, store, _), own in zip(parts, places, strict=True)]
    )
    scored = mask & (np.arange(mask.shape[1]) >= prompts[:, None])
    return torch.from_numpy(np.where(scored, ids, IGNORED))


def _target_counts(parts: Sequence[Part], places: Sequence[_Places]) -> np.ndarray:
    """(S,) tokens of the separate targets."""
    return np.concatenate(
        [store["target_counts"][own.sequences] for (_, store, _), own in zip(parts, places, strict=True)]
    ).astype(np.int64)


def _targets(parts: Sequence[Part], places: Sequence[_Places], least: int) -> torch.Tensor:
    """Labels of an encoder-decoder, at least `least` wide."""
    counts = _target_counts(parts, places)
    ends = np.cumsum([len(own.sequences) for own in places])[:-1]
    values = [
        store["target_tokens"][ragged(store.target_offsets[own.sequences], sizes)]
        for (_, store, _), own, sizes in zip(parts, places, np.split(counts, ends), strict=True)
    ]
    width = max(1, int(counts.max()), least)
    return torch.from_numpy(_scattered(np.concatenate(values), counts, width, IGNORED))


def _target(store: TokenStore, rows: np.ndarray, own: _Places, width: int) -> torch.Tensor | None:
    if store.form != "encoder" or not store.labelled:
        return None
    if store.kind == "tag":
        return torch.from_numpy(_scattered(store["tags"][own.flat], own.lengths, width, IGNORED))
    if store.kind == "span":
        return torch.from_numpy(store["spans"][own.sequences].astype(np.int64))
    target = store["target"][rows]
    dtype = {"regress": np.float32, "multilabel": np.float32}.get(store.kind, np.int64)
    return torch.from_numpy(target.astype(dtype))


def _allowed(store: TokenStore, own: _Places, width: int) -> torch.Tensor | None:
    """Where an answer may stand: on tokens of the context."""
    if store.form != "encoder" or store.kind != "span":
        return None
    return torch.from_numpy(_scattered(store["starts"][own.flat] >= 0, own.lengths, width, False, bool))
