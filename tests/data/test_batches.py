"""Collation and the cut of a step, against the stores they are made from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mtnlp.data.collate import collate, eval_batches
from mtnlp.data.encode import Encoder
from mtnlp.data.mixture import Mixture
from mtnlp.data.store import TokenStore
from mtnlp.samplers.base import Phase
from mtnlp.tasks.examples import example

KINDS = ("classify", "pair", "ordinal", "multilabel", "regress", "choose", "tag", "span")


@pytest.fixture
def stores(tokenizers, tasks):
    """stores(make, form, kinds) -> one store in memory per kind"""

    def build(make="bert", form="encoder", kinds=KINDS):
        encoder = Encoder(tokenizers[make], form, 40 if form == "encoder" else 200)
        return [
            TokenStore.from_columns(
                encoder.encode(spec, [example(spec, row, i) for i, row in enumerate(rows)])
            )
            for spec, rows in map(tasks.get, kinds)
        ]

    return build


def tokens(store, row):
    first, last = store.seq_offsets[row], store.seq_offsets[row + 1]
    return [range(store.token_offsets[s], store.token_offsets[s + 1]) for s in range(first, last)]


def padded(lists, fill, width):
    return torch.tensor([[*np.asarray(own).tolist(), *[fill] * (width - len(own))] for own in lists])


def test_a_batch_of_all_kinds_holds_what_the_stores_hold(stores, tasks):
    parts = [(3 * t, store, np.array([4, 0, 7, 1])[: 1 + t % 4]) for t, store in enumerate(stores())]

    batch = collate(parts, pad_id=9, form="encoder")

    flat = [(task, store, own) for task, store, rows in parts for row in rows for own in tokens(store, row)]
    width = max(len(own) for _, _, own in flat)
    assert batch.task_ids.tolist() == [task for task, _, _ in flat]
    assert torch.equal(batch.input_ids, padded([store["tokens"][own] for _, store, own in flat], 9, width))
    assert torch.equal(
        batch.token_type_ids, padded([store["types"][own] for _, store, own in flat], 0, width)
    )
    assert torch.equal(batch.attention_mask, padded([[1] * len(own) for _, _, own in flat], 0, width))
    assert batch.input_ids.dtype == batch.attention_mask.dtype == torch.int64 and batch.labels is None
    for (task, store, rows), part in zip(parts, batch.slices, strict=True):
        spec, raw = tasks[store.kind]
        truth = [example(spec, raw[row], row).target for row in rows]
        own = [where for row in rows for where in tokens(store, row)]
        assert (part.task, part.stop - part.start, part.rows.tolist()) == (task, len(own), rows.tolist())
        assert part.counts.tolist() == store.sequences[rows].tolist()
        if store.kind == "tag":
            assert torch.equal(part.target, padded([store["tags"][where] for where in own], -100, width))
        elif store.kind == "span":
            spans = np.concatenate(
                [store["spans"][store.seq_offsets[r] : store.seq_offsets[r + 1]] for r in rows]
            )
            assert part.target.tolist() == spans.tolist()
            allowed = padded([store["starts"][where] >= 0 for where in own], False, width)
            assert torch.equal(part.spans_allowed, allowed)
        elif store.kind == "multilabel":
            assert part.target.dtype == torch.float32
            assert part.target.tolist() == [[float(k in own) for k in range(3)] for own in truth]
        else:
            assert part.target.tolist() == truth
            assert part.target.dtype == (torch.float32 if store.kind == "regress" else torch.int64)


def test_a_batch_does_not_depend_on_how_a_row_is_asked_for(stores):
    store = stores(kinds=["choose"])[0]

    together = collate([(0, store, np.array([2, 5]))], pad_id=0, form="encoder")
    alone = collate([(0, store, np.array([5]))], pad_id=0, form="encoder")

    width = alone.input_ids.shape[1]
    assert torch.equal(together.input_ids[int(together.slices[0].counts[0]) :, :width], alone.input_ids)


def test_text_targets_are_labels_and_generation_sees_none(stores):
    for make, form in [("t5", "encoder-decoder"), ("gpt", "decoder")]:
        store = stores(make, form, ["classify"])[0]
        rows = np.array([6, 0, 3])
        batch = collate([(0, store, rows)], pad_id=0, form=form)
        asked = collate([(0, store, rows)], pad_id=0, form=form, generate=True)

        for i, row in enumerate(rows):
            (where,) = tokens(store, row)
            ids = store["tokens"][where].tolist()
            scored = batch.labels[i][batch.labels[i] != -100].tolist()
            prompt = asked.input_ids[i][asked.attention_mask[i].bool()].tolist()
            if form == "decoder":
                split = store["prompt_lengths"][row]
                assert (prompt, scored) == (ids[:split], ids[split:])
                assert torch.equal(batch.labels[i, split : len(ids)], batch.input_ids[i, split : len(ids)])
                assert asked.attention_mask[i, -1] == 1
            else:
                low, high = store.target_offsets[row : row + 2]
                assert (prompt, scored) == (ids, store["target_tokens"][low:high].tolist())
                assert asked.attention_mask[i, 0] == 1
        assert asked.labels is None and batch.slices[0].target is None


def members(batches):
    return sorted((part.task, int(row)) for batch in batches for part in batch.slices for row in part.rows)


def mixture(stores, max_tokens=300, k=24, form="encoder"):
    rates = np.full(len(stores), 1 / len(stores))
    return Mixture(
        [f"t{i}" for i in range(len(stores))],
        stores,
        [Phase(0, rates)],
        seed=2,
        examples_per_step=k,
        max_tokens=max_tokens,
        pad_id=0,
        form=form,
    )


@pytest.mark.parametrize("one_task", [False, True])
@pytest.mark.parametrize("world", [1, 2, 3, 50])
def test_ranks_and_batches_together_hold_the_plan(stores, world, one_task):
    mix = mixture(stores())

    for step in range(4):
        plan = mix.plan(step)
        ranks = [mix.batches(plan, rank=rank, world=world, one_task=one_task) for rank in range(world)]

        together = members(batch for batches in ranks for batch in batches)
        assert together == sorted(
            (t, r) for t, rows in zip(plan.tasks, plan.rows, strict=True) for r in rows.tolist()
        )
        sizes = [sum(part.examples for batch in batches for part in batch.slices) for batches in ranks]
        assert max(sizes) - min(sizes) <= 1
        for batch in (batch for batches in ranks for batch in batches):
            assert batch.padded_tokens <= 300 or sum(part.examples for part in batch.slices) == 1
            assert batch.task_ids.tolist() == sorted(batch.task_ids.tolist())
            assert len(batch.slices) == 1 or not one_task
            assert batch.attention_mask.any(0).all()


def test_the_budget_counts_targets_too_and_can_be_lowered(stores):
    mix = mixture(
        stores("t5", "encoder-decoder", ["classify", "generate"]), max_tokens=800, form="encoder-decoder"
    )

    for budget in (800, 300):
        for batch in mix.batches(mix.plan(0), max_tokens=budget):
            assert batch.padded_tokens == batch.input_ids.numel() + batch.labels.numel()
            assert batch.padded_tokens <= budget or len(batch.task_ids) == 1


def test_evaluation_sees_every_row_once_longest_first(stores):
    built = dict(enumerate(stores()))
    rows = {t: np.arange(len(store))[t % 3 :] for t, store in built.items()} | {2: np.zeros(0, int)}

    batches = list(eval_batches(built, rows, max_tokens=400, pad_id=0, form="encoder"))

    assert members(batches) == sorted((t, int(r)) for t, own in rows.items() for r in own)
    widths = [batch.input_ids.shape[1] for batch in batches]
    assert widths == sorted(widths, reverse=True) and len(widths) < 30
    assert list(eval_batches({}, {}, max_tokens=400, pad_id=0, form="encoder")) == []
