"""Micro-batches that are laid out as flat streams: what lies in them, and how little of it is padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtnlp.data.cut import pack
from mtnlp.data.mixture import Mixture
from mtnlp.data.store import TokenStore
from mtnlp.data.stream import lay_out
from mtnlp.samplers.base import Phase

FORMS = ("encoder", "encoder-decoder", "decoder")


def lognormal(draw, rows, *, median, sigma, low, high):
    return np.clip(np.exp(np.log(median) + draw.normal(size=rows) * sigma), low, high).astype(np.int32)


def store(form: str, seed: int, *, rows: int = 200, median: float = 60, kind: str = "classify") -> TokenStore:
    """Random tokens in sequences of lognormal length; three to five of them per `choose` example."""
    draw = np.random.default_rng(seed)
    sequences = draw.integers(3, 6, rows) if kind == "choose" else np.ones(rows, int)
    ends = np.cumsum(sequences)[:-1]
    counts = lognormal(draw, sequences.sum(), median=median, sigma=0.9, low=8, high=512)
    arrays = {
        "sequences": sequences.astype(np.int32),
        "token_counts": counts,
        "length": np.array([own.max() for own in np.split(counts, ends)], np.int32),
        "target_length": np.zeros(rows, np.int32),
        "tokens": draw.integers(1, 500, counts.sum()).astype(np.uint16),
        "target": draw.integers(0, 3, rows),
        "prompt_lengths": (counts // 2).astype(np.int32),
    }
    if form == "encoder-decoder":
        targets = lognormal(draw, rows, median=12, sigma=0.7, low=1, high=64)
        arrays |= {"target_counts": targets, "target_length": targets}
        arrays["target_tokens"] = draw.integers(1, 500, targets.sum()).astype(np.uint16)
    meta = {"kind": kind, "form": form, "classes": 3, "labelled": True, "truncated": 0}
    return TokenStore(arrays, meta)


def mixture(form: str, stores: list[TokenStore], *, max_tokens: int = 4096, flat: bool = True) -> Mixture:
    return Mixture(
        [f"t{i}" for i in range(len(stores))],
        stores,
        [Phase(0, np.full(len(stores), 1 / len(stores)))],
        seed=4,
        examples_per_step=64,
        max_tokens=max_tokens,
        pad_id=0,
        form=form,
        flat=flat,
    )


def members(batches):
    return sorted((part.task, int(row)) for batch in batches for part in batch.slices for row in part.rows)


@pytest.mark.parametrize("form", FORMS)
def test_a_step_of_many_lengths_has_little_padding(form):
    mix = mixture(form, [store(form, seed) for seed in range(8)])

    steps = [mix.batches(mix.plan(step)) for step in range(6)]

    useful, run = (
        sum(getattr(batch, name) for batches in steps for batch in batches)
        for name in ("useful_tokens", "padded_tokens")
    )
    assert useful / run >= 0.95
    assert all(len(batches) <= run / 6 / 4096 + 2 for batches in steps)


@pytest.mark.parametrize("form", FORMS)
def test_useful_tokens_are_the_same_flat_and_padded_and_count_separate_targets(form):
    stores = [store(form, seed) for seed in range(3)]
    tokens = []
    for flat in (False, True):
        mix = mixture(form, stores, flat=flat)
        batches = mix.batches(mix.plan(0))
        tokens.append(sum(batch.useful_tokens for batch in batches))
        for batch in batches:
            labels = batch.labels.numel() if form == "encoder-decoder" else 0
            whole = batch.input_ids.numel() + labels
            assert batch.padded_tokens <= whole if flat else batch.padded_tokens == whole

    plan = mix.plan(0)
    sizes = np.concatenate([s.sizes(rows) for s, rows in zip(stores, plan.rows, strict=True)], axis=1)
    assert tokens == [sizes[0].sum() + sizes[2].sum()] * 2


@pytest.mark.parametrize("one_task", [False, True])
@pytest.mark.parametrize("world", [1, 3])
def test_ranks_and_streams_together_hold_the_plan_within_the_budget(world, one_task):
    stores = [store("encoder", 0), store("encoder", 1, kind="choose", median=20), store("encoder", 2)]
    mix = mixture("encoder", stores, max_tokens=700)

    for step in range(3):
        plan = mix.plan(step)
        batches = [
            b for rank in range(world) for b in mix.batches(plan, rank=rank, world=world, one_task=one_task)
        ]

        assert members(batches) == sorted(
            (t, r) for t, rows in zip(plan.tasks, plan.rows, strict=True) for r in rows.tolist()
        )
        for batch in batches:
            assert batch.padded_tokens <= 700 or sum(part.examples for part in batch.slices) == 1
            assert len(batch.slices) == 1 or not one_task
        if world == 1 and not one_task:
            longest = [batch.input_ids.shape[1] for batch in batches]
            assert longest == sorted(longest, reverse=True)


@given(
    st.lists(st.lists(st.integers(1, 400), min_size=1, max_size=6), min_size=1, max_size=9),
)
@settings(deadline=None)
def test_a_stream_is_made_even_by_less_than_its_32nd_part(blocks):
    lengths = np.array([length for block in blocks for length in block])
    of_block = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])

    stream = lay_out(of_block, lengths).source

    least = sum(len(block) * max(block) for block in blocks)
    assert least <= stream.tokens < least + least / 32 + 1
    assert stream.width == lengths.max()
    for (_, length), block in zip(stream.shapes, blocks, strict=True):
        assert length >= max(block)
    grid = 2 ** max(0, (least // 32).bit_length() - 1)
    alone = [block[0] for block in blocks if len(block) == 1 and block[0] + grid <= lengths.max()]
    assert not alone or stream.tokens % grid == 0


@pytest.mark.parametrize("form", FORMS)
def test_streams_hold_every_token_of_the_padded_batch_once_in_blocks(form):
    stores = [store(form, seed, median=15) for seed in range(3)]
    if form == "encoder":
        stores.append(store(form, 3, median=15, kind="choose"))
    mix = mixture(form, stores)

    for batch in mix.batches(mix.plan(0)):
        layout = batch.layout
        sides = [(layout.source, batch.input_ids, batch.attention_mask)]
        if form == "encoder-decoder":
            sides.append((layout.target, batch.labels, (batch.labels != -100).long()))
        assert sorted(layout.order.tolist()) == list(range(len(batch.task_ids)))
        assert len({stream.tokens for stream, _, _ in sides}) == len(sides)
        for stream, padded, mask in sides:
            assert torch.equal(stream.take(mask), stream.mask)
            assert stream.mask.sum() == mask.sum()
            at = 0
            order = iter(layout.order.tolist())
            for (n, length), shortest in zip(stream.shapes, stream.shortest, strict=True):
                rows = [next(order) for _ in range(n)]
                assert min(int(mask[row].sum()) for row in rows) == shortest
                tasks = batch.task_ids[rows].tolist()
                assert tasks == sorted(tasks)
                for row in rows:
                    own = slice(at, at + length)
                    assert torch.equal(stream.take(padded)[0, own], padded[row, :length])
                    assert stream.positions[0, own].tolist() == list(range(length))
                    assert (stream.rows[own] == row).all()
                    at += length
            states = torch.randn(1, stream.tokens, 3)
            back = stream.give_back(states, len(batch.task_ids))
            assert torch.equal(torch.stack([stream.take(back[..., i])[0] for i in range(3)], -1), states[0])
            assert (back.abs().sum(-1) != 0).sum() == stream.tokens


@settings(deadline=None, max_examples=100)
@given(tokens=st.lists(st.integers(1, 40), min_size=1, max_size=9), budget=st.integers(1, 80))
def test_no_packing_of_neighbours_within_the_budget_has_fewer_batches(tokens, budget):
    stretches = [(i, i + 1) for i in range(len(tokens))]

    found = pack(stretches, tokens, budget)

    def fewest(left):  # batches that the first `left` blocks need at least
        if not left:
            return 0
        fits = [n for n in range(1, left + 1) if n == 1 or sum(tokens[left - n : left]) <= budget]
        return min(1 + fewest(left - n) for n in fits)

    assert [stretch for batch in found for stretch in batch] == stretches
    assert all(sum(tokens[a] for a, _ in batch) <= budget or len(batch) == 1 for batch in found)
    assert len(found) == fewest(len(tokens))


def test_a_batch_moves_with_its_layout():
    mix = mixture("encoder-decoder", [store("encoder-decoder", 0)])

    moved = mix.batches(mix.plan(0))[0].to("meta")

    tensors = [moved.input_ids, moved.labels, moved.slices[0].counts, moved.layout.order]
    tensors += [t for s in (moved.layout.source, moved.layout.target) for t in (s.index, s.positions, s.mask)]
    assert all(tensor.is_meta for tensor in tensors)
