"""Options packed behind one context, against each option spelled out alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtnlp.data.batch import Batch
from mtnlp.data.encode import Encoder
from mtnlp.data.packed import NODES, Packed, Row, grow, option_batches, pack
from mtnlp.data.store import TokenStore
from mtnlp.tasks.spec import Example, TaskSpec, Template

FORMS = ("encoder-decoder", "decoder")
ANY = 1 << 30
OPTIONS = st.lists(st.lists(st.integers(3, 5), max_size=5).map(tuple), min_size=1, max_size=7)
START = -1  # stands for the start token of a decoder


def row(task, document, context, options, rows):
    return Row(task, document, np.array(context), options, rows, grow(options))


@given(OPTIONS)
def test_a_tree_has_a_node_for_each_different_beginning_of_an_option(options):
    tree = grow(options)

    assert len(tree.tokens) == len({option[:n] for option in options for n in range(1, len(option))})
    for option, places in zip(options, tree.places, strict=True):
        for i, place in enumerate(places):
            found = []
            while place:
                assert tree.depths[place - 1] == i - len(found)
                found.insert(0, tree.tokens[place - 1])
                place = tree.parents[place - 1]
            assert tuple(found) == option[:i]


@pytest.mark.parametrize("form", FORMS)
@given(st.lists(st.tuples(st.integers(1, 6), OPTIONS), min_size=1, max_size=4))
def test_a_scored_token_comes_after_its_context_and_the_beginning_of_its_option_and_nothing_else(form, made):
    number = itertools.count()
    rows = [
        row(i // 2, i % 2, range(100, 100 + n), options, [next(number) for _ in options])
        for i, (n, options) in enumerate(made)
    ]

    packed = pack(rows, pad_id=0, form=form)

    ids = packed.contexts.input_ids if packed.nodes is None else packed.nodes.clone()
    if packed.nodes is not None:
        ids[:, 0] = START
        for own, padded in zip(rows, packed.contexts.input_ids.tolist(), strict=True):
            assert padded == [*own.context, *[0] * (len(padded) - len(own.context))]
    places = packed.scored.nonzero()
    seen = {}
    for place, token, option in zip(packed.places, packed.tokens, packed.options, strict=True):
        sequence, column = places[place]
        mask = packed.seen[sequence, column]
        order = packed.positions[sequence][mask].argsort()
        assert packed.positions[sequence][mask].sort().values.tolist() == list(range(len(order)))
        before = ids[sequence][mask][order].tolist()
        seen.setdefault(int(option), []).append((before, int(token)))
    wanted = [([*own.context] if form == "decoder" else [START], o) for own in rows for o in own.options]
    for i, (before, option) in enumerate(wanted):
        assert seen.get(i, []) == [([*before, *option[:n]], token) for n, token in enumerate(option)]
    assert packed.farthest == packed.positions.max() + 1
    assert np.concatenate([part.rows for part in packed.slices]).tolist() == list(range(next(number)))


def stored(tokenizers, form, words, *, tasks=2, count=40):
    """Stores of tasks with 1, 2 or 3 options to a document, and the number of these."""
    encoder = Encoder(tokenizers["t5" if form == "encoder-decoder" else "gpt"], form, 400, 12)
    counts = {task: [1 + (i + task) % 3 for i in range(count)] for task in range(tasks)}
    stores = {}
    for task, own in counts.items():
        spec = TaskSpec(f"t{task}", "choose", {}, templates={"x": Template("{{ question }}")})
        examples = [
            Example("t", i, {"question": words(i, task), "choices": ("city one", "city two", "no")}, option)
            for i, n in enumerate(own)
            for option in range(n)
        ]
        stores[task] = TokenStore.from_columns(encoder.encode(spec, examples))
    return stores, counts, encoder.pad_id


@pytest.fixture
def words(sentence):
    """words(i, task): of skewed lengths"""
    lengths = np.random.default_rng(0).lognormal(2.5, 0.6, (40, 2)).astype(int) + 1
    return lambda i, task: sentence(int(lengths[i, task]), seed=2 * i + task)


def listed(made):
    return list(option_batches(*made[:2], max_tokens=600, pad_id=made[2], form=made[3], longest=ANY))


@pytest.mark.parametrize("form", FORMS)
def test_batches_hold_every_option_once_in_whole_documents_with_little_padding(form, tokenizers, words):
    stores, counts, pad = stored(tokenizers, form, words)

    found = listed((stores, counts, pad, form))

    documents = [document for own, _ in found for document in own]
    assert sorted(documents) == [(task, i) for task in counts for i in range(len(counts[task]))]
    pieces = [piece for _, own in found for piece in own]
    assert all(isinstance(piece, Packed) for piece in pieces)
    rows = [(part.task, row) for piece in pieces for part in piece.slices for row in part.rows.tolist()]
    assert sorted(rows) == [(task, row) for task, store in stores.items() for row in range(len(store))]
    for own, (piece,) in found:
        ends = {task: np.cumsum(counts[task]) for task in counts}
        whole = {(t, r) for t, i in own for r in range(ends[t][i] - counts[t][i], ends[t][i])}
        assert {(part.task, row) for part in piece.slices for row in part.rows.tolist()} == whole
        assert piece.padded_tokens <= 600
        assert len(piece.contexts.input_ids) == len(own)
    useful = sum(piece.useful_tokens for piece in pieces) / sum(piece.padded_tokens for piece in pieces)
    assert useful >= 0.87


@pytest.mark.parametrize("form", FORMS)
def test_what_is_left_after_a_stop_comes_in_the_same_batches(form, tokenizers, words):
    made = (*stored(tokenizers, form, words, tasks=1), form)
    found = listed(made)

    done = {document for own, _ in found[:2] for _, document in own}
    left = [i for i in range(len(made[1][0])) if i not in done]
    ends = np.cumsum(made[1][0])
    counts = {0: [made[1][0][i] for i in left]}
    rows = [r for i in left for r in range(ends[i] - made[1][0][i], ends[i])]
    store = kept(made[0][0], rows)
    rest = list(option_batches({0: store}, counts, max_tokens=600, pad_id=made[2], form=form, longest=ANY))

    assert [[left[i] for _, i in own] for own, _ in rest] == [[i for _, i in own] for own, _ in found[2:]]
    for (_, ours), (_, theirs) in zip(rest, found[2:], strict=True):
        assert torch.equal(ours[0].contexts.input_ids, theirs[0].contexts.input_ids)
        assert torch.equal(ours[0].tokens, theirs[0].tokens)


def test_a_document_that_is_too_large_comes_in_pieces_and_a_context_that_is_too_long_alone():
    options = [tuple(draw) for draw in np.random.default_rng(0).integers(3, 99, (40, 11))]
    for longest, kind in ((ANY, Packed), (20, Batch)):
        store = store_of([(range(3, 53), option) for option in options])
        [(documents, pieces)] = option_batches(
            {0: store}, {0: [40]}, max_tokens=200, pad_id=0, form="decoder", longest=longest
        )

        assert documents == [(0, 0)] and len(pieces) > 1
        assert all(isinstance(piece, kind) for piece in pieces)
        assert max(piece.padded_tokens for piece in pieces) <= 200
        rows = [row for piece in pieces for part in piece.slices for row in part.rows.tolist()]
        assert sorted(rows) == list(range(40))


def test_no_tree_grows_beyond_its_bound():
    options = [tuple(draw) for draw in np.random.default_rng(0).integers(3, 99, (300, 11))]
    store = store_of([((3, 4), option) for option in options])

    batches = option_batches({0: store}, {0: [300]}, max_tokens=ANY, pad_id=0, form="decoder", longest=ANY)

    [(_, [piece])] = batches
    assert len(piece.contexts.input_ids) == 4
    assert piece.scored.sum(1).max() <= NODES + 1


def test_contexts_that_a_tokenizer_makes_different_are_rows_of_their_own():
    store = store_of([((3, 4), (5, 6)), ((3,), (4, 7)), ((3, 4), (8,))])

    [(_, [piece])] = option_batches(
        {0: store}, {0: [3]}, max_tokens=64, pad_id=0, form="decoder", longest=ANY
    )

    assert piece.contexts.input_ids.tolist() == [[3, 4, 5], [3, 4, 0]]
    assert piece.slices[0].rows.tolist() == [0, 2, 1]


def store_of(both):
    """A store of a decoder's rows (prompt, target)."""
    sizes = np.array([len(prompt) + len(target) for prompt, target in both], np.int32)
    arrays = {
        "sequences": np.ones(len(both), np.int32),
        "length": sizes,
        "target_length": np.zeros(len(both), np.int32),
        "token_counts": sizes,
        "prompt_lengths": np.array([len(prompt) for prompt, _ in both], np.int32),
        "tokens": np.array([token for own in both for part in own for token in part], np.uint16),
    }
    meta = {"kind": "choose", "form": "decoder", "classes": 0, "labelled": True, "truncated": 0}
    return TokenStore(arrays, meta)


def kept(store, rows):
    """A store with some of the rows of another."""
    takes = {"tokens": store.token_offsets, "target_tokens": store.target_offsets}
    arrays = {}
    for name in ("sequences", "length", "target_length", "token_counts", "prompt_lengths", "target_counts"):
        if name in store:
            arrays[name] = store[name][rows]
    for name, offsets in takes.items():
        if name in store:
            arrays[name] = np.concatenate([store[name][offsets[row] : offsets[row + 1]] for row in rows])
    meta = {"kind": "choose", "form": store.form, "classes": 0, "labelled": True, "truncated": 0}
    return TokenStore(arrays, meta)
