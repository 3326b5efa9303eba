"""Columns against slow references: the tokenizer's own layouts, and loops over characters."""

from __future__ import annotations

import numpy as np
import pytest

from mtnlp.data.encode import Encoder, decode
from mtnlp.data.pieces import shares
from mtnlp.data.store import TokenStore
from mtnlp.errors import MtnlpError
from mtnlp.tasks.examples import example
from mtnlp.tasks.spec import Template
from mtnlp.tasks.templates import render


def encoded(encoder, task, **options):
    spec, rows = task
    examples = [example(spec, row, i) for i, row in enumerate(rows)]
    return spec, examples, TokenStore.from_columns(encoder.encode(spec, examples, **options))


def sequences(store, row, column="tokens"):
    first, last = store.seq_offsets[row], store.seq_offsets[row + 1]
    return [
        store[column][store.token_offsets[s] : store.token_offsets[s + 1]].tolist()
        for s in range(first, last)
    ]


@pytest.mark.parametrize("make", ["bert", "gpt", "t5"])
@pytest.mark.parametrize("kind", ["classify", "pair", "multilabel", "regress"])
def test_texts_are_laid_out_as_the_tokenizer_does_it(make, kind, tokenizers, tasks):
    tokenizer = tokenizers[make]
    _, examples, store = encoded(Encoder(tokenizer, "encoder", 10_000), tasks[kind])

    for i, own in enumerate(examples):
        expected = tokenizer(own.inputs["text"], own.inputs.get("text_pair"), return_token_type_ids=True)
        assert sequences(store, i) == [expected["input_ids"]]
        if make == "bert":
            assert sequences(store, i, "types") == [expected["token_type_ids"]]
    assert ("types" in store) == (make == "bert")
    assert store.truncated == 0 and store.labelled


def test_long_pairs_lose_the_end_of_the_longer_text(tokenizers, tasks):
    tokenizer = tokenizers["bert"]
    _, examples, store = encoded(Encoder(tokenizer, "encoder", 24), tasks["pair"])

    for i, own in enumerate(examples):
        a, b = (
            tokenizer(own.inputs[name], add_special_tokens=False)["input_ids"]
            for name in ("text", "text_pair")
        )
        (ids,) = sequences(store, i)
        keep_a, keep_b = shares(len(a), len(b), 21)
        assert ids == [2, *a[:keep_a], 3, *b[:keep_b], 3]
        assert len(ids) == min(24, len(a) + len(b) + 3)
    assert store.truncated == np.mean(
        [len(tokenizer(e.inputs["text"], e.inputs["text_pair"])["input_ids"]) > 24 for e in examples]
    )


def test_the_longer_part_is_cut_first():
    assert shares(3, 4, 10) == (3, 4)
    assert shares(3, 40, 10) == (3, 7)
    assert shares(40, 3, 10) == (7, 3)
    assert shares(40, 30, 11) == (6, 5)
    for a in range(12):
        for b in range(12):
            kept = shares(a, b, 9)
            assert sum(kept) == min(a + b, 9) and kept[0] <= a and kept[1] <= b


def test_every_choice_is_a_sequence_after_its_question(tokenizers, tasks):
    tokenizer = tokenizers["bert"]
    _, examples, store = encoded(Encoder(tokenizer, "encoder", 10_000), tasks["choose"])

    for i, own in enumerate(examples):
        expected = [
            tokenizer(own.inputs["question"], choice)["input_ids"] for choice in own.inputs["choices"]
        ]
        assert sequences(store, i) == expected
        assert store.length[i] == max(map(len, expected))
    assert store.sequences.tolist() == [len(own.inputs["choices"]) for own in examples]
    assert store["target"].tolist() == [own.target for own in examples]


@pytest.mark.parametrize("make", ["bert", "gpt", "t5"])
@pytest.mark.parametrize("max_length", [12, 10_000])
def test_a_words_label_stands_on_its_first_piece(make, max_length, tokenizers, tasks):
    spec, rows = tasks["tag"]
    rows = [
        *rows,
        {"tokens": ["naïve", "", "\u200b", "é́", "日本", "a b", "!?"], "tags": [0, 1, 2, 0, 1, 2, 0]},
    ]
    tokenizer = tokenizers[make]
    _, examples, store = encoded(Encoder(tokenizer, "encoder", max_length), (spec, rows))
    front = {"bert": 1}.get(make, 0)
    room = max_length - {"bert": 2, "t5": 1}.get(make, 0)

    for i, own in enumerate(examples):
        words = own.inputs["tokens"]
        places = tokenizer(" ".join(words), add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        expected, start = {}, 0
        for w, word in enumerate(words):
            inside = {c for c in range(start, start + len(word)) if not " ".join(words)[c].isspace()}
            hits = [k for k, (a, b) in enumerate(places) if inside & set(range(a, b))]
            if hits and hits[0] < room:
                expected[front + hits[0]] = w
            start += len(word) + 1
        (tags,), (starts,) = sequences(store, i, "tags"), sequences(store, i, "words")
        assert {k: w for k, w in enumerate(starts) if w >= 0} == expected
        assert {k: t for k, t in enumerate(tags) if t != -100} == {
            k: own.target[w] for k, w in expected.items()
        }


def test_tags_come_back_per_word_and_words_beyond_the_end_are_outside(tokenizers, tasks):
    spec, rows = tasks["tag"]
    spec = spec.replace(labels=("B-loc", "I-loc", "O"))
    _, examples, store = encoded(Encoder(tokenizers["bert"], "encoder", 12), (spec, rows))

    for i, own in enumerate(examples):
        (tags,) = sequences(store, i, "tags")
        seen = sum(tag != -100 for tag in tags)
        found = decode(spec, own, [*tags, -100, -100], store, i)
        assert found == own.target[:seen] + (2,) * (len(own.target) - seen)
    assert 0 < store.truncated < 1


@pytest.mark.parametrize("make", ["bert", "gpt"])
def test_windows_equal_the_tokenizers_overflow_and_spans_hold_the_answer(make, tokenizers, tasks):
    tokenizer, max_length = tokenizers[make], 40
    spec, rows = tasks["span"]
    answer = {"text": ["a city"], "answer_start": [9]}  # fits into a window, whatever the tokenizer learned
    rows = [*rows, {"question": "a", "context": "Paris is a city", "answers": answer}]
    spec, examples, store = encoded(Encoder(tokenizer, "encoder", max_length), (spec, rows))
    special = tokenizer.num_special_tokens_to_add(pair=True)
    answered = 0

    for i, own in enumerate(examples):
        question, context = own.inputs["question"], own.inputs["context"]
        room = max_length - special - len(tokenizer(question, add_special_tokens=False)["input_ids"])
        if room < 8 or room + special + len(question) < max_length:
            continue
        expected = tokenizer(
            question,
            context,
            truncation="only_second",
            max_length=max_length,
            stride=room // 4,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        assert sequences(store, i) == expected["input_ids"]
        spans = store["spans"][store.seq_offsets[i] : store.seq_offsets[i + 1]].tolist()
        for window, (first, last) in enumerate(spans):
            inside = [k for k, s in enumerate(expected.sequence_ids(window)) if s == 1]
            places = expected["offset_mapping"][window]
            allowed = [k for k, start in enumerate(sequences(store, i, "starts")[window]) if start >= 0]
            assert allowed == inside
            text, start = own.target[0] if own.target else ("", None)
            touched = [
                k for k in inside if own.target and places[k][1] > start and places[k][0] < start + len(text)
            ]
            whole = touched and places[touched[0]][0] <= start and places[touched[-1]][1] >= start + len(text)
            assert [first, last] == ([touched[0], touched[-1]] if whole else [0, 0])
            if whole:
                answered += 1
                assert decode(spec, own, (window, first, last), store, i) == text.strip()
        assert decode(spec, own, None, store, i) == ""
    assert answered


def test_prompt_and_target_stand_apart_for_an_encoder_decoder(tokenizers, tasks):
    tokenizer = tokenizers["t5"]
    spec, examples, store = encoded(Encoder(tokenizer, "encoder-decoder", 10_000, 8), tasks["classify"])

    for i, own in enumerate(examples):
        text = render(spec, own)
        assert sequences(store, i) == [tokenizer(text.prompt)["input_ids"]]
        low, high = store.target_offsets[i : i + 2]
        assert store["target_tokens"][low:high].tolist() == [*tokenizer(text.target)["input_ids"][:-1][:7], 1]
        assert store.target_length[i] == high - low


@pytest.mark.parametrize("kind", ["classify", "choose", "tag", "span", "regress", "generate"])
def test_a_decoder_reads_one_text_and_learns_only_its_end(kind, tokenizers, tasks):
    tokenizer = tokenizers["gpt"]
    spec, examples, store = encoded(Encoder(tokenizer, "decoder", 10_000, 1000), tasks[kind])

    for i, own in enumerate(examples):
        text = render(spec, own)
        (ids,), split = sequences(store, i), store["prompt_lengths"][i]
        white = text.prompt[len(text.prompt.rstrip()) :] or " "
        assert tokenizer.decode(ids[:split]) == text.prompt.rstrip()
        assert tokenizer.decode(ids[split:-1]) == white + text.target
        assert ids == [
            *tokenizer(text.prompt.rstrip() + white + text.target)["input_ids"],
            tokenizer.eos_token_id,
        ]


def test_a_token_across_the_border_leaves_the_prompt_as_generation_sees_it(tokenizers, tasks):
    tokenizer = tokenizers["gpt"]
    spec, rows = tasks["classify"]
    spec = spec.replace(templates={"glued": Template("{{ text }} questi\n", "{{ answer }}")})
    encoder = Encoder(tokenizer, "decoder", 10_000)
    _, examples, store = encoded(encoder, (spec, rows))
    open_ended = [
        example(spec, row, i, needs_target=False) for i, row in enumerate({"text": r["text"]} for r in rows)
    ]
    asked = TokenStore.from_columns(encoder.encode(spec, open_ended))

    for i in range(len(examples)):
        assert sequences(store, i)[0][: store["prompt_lengths"][i]] == sequences(asked, i)[0]
    assert not asked.labelled


@pytest.mark.parametrize(("make", "form"), [("t5", "encoder-decoder"), ("gpt", "decoder")])
def test_prompts_lose_shots_then_their_left_end_but_never_the_target(make, form, tokenizers, tasks):
    tokenizer = tokenizers[make]
    spec, rows = tasks["classify"]
    shots = [example(spec, row, i) for i, row in enumerate(rows[:2])]
    _, examples, whole = encoded(Encoder(tokenizer, form, 10_000), tasks["classify"], shots=shots)
    _, _, plain = encoded(Encoder(tokenizer, form, 10_000), tasks["classify"])
    limit = int(np.median(plain.length)) + 9
    _, _, short = encoded(Encoder(tokenizer, form, max(limit, 80), 64), tasks["classify"], shots=shots)
    limit, ends = short.length.max(), []

    for i in range(len(examples)):
        (ids,), (alone,), (full,) = sequences(short, i), sequences(plain, i), sequences(whole, i)
        assert len(ids) <= limit
        if len(full) <= limit:
            assert ids == full
        elif len(alone) > limit and form == "encoder-decoder":
            assert ids == alone[-limit:]
        elif len(alone) > limit:
            assert ids == alone[-limit:] and ids[-1] == tokenizer.eos_token_id
        else:
            assert len(alone) <= len(ids) and ids[-8:] == alone[-8:]
        ends.append(len(full) > limit)
    assert short.truncated == np.mean(ends)


def test_what_an_encoder_cannot_do_is_refused(tokenizers, tasks):
    with pytest.raises(MtnlpError, match="toy/generate: a generate task writes text"):
        encoded(Encoder(tokenizers["bert"], "encoder", 32), tasks["generate"])
    with pytest.raises(MtnlpError, match="Did you mean 'encoder'"):
        Encoder(tokenizers["bert"], "encodr", 32)
    with pytest.raises(MtnlpError, match=r"model\.max_length: 60 leaves .* target of up to 64 .*use 72 or"):
        Encoder(tokenizers["gpt"], "decoder", 60, 64)


def test_the_digest_tells_tokenizers_and_settings_apart(tokenizers):
    def digest(make="bert", form="encoder", length=32, target=8):
        return Encoder(tokenizers[make], form, length, target).digest

    first = digest()
    tokenizers["bert"](
        "a", truncation=True, max_length=5, padding="max_length"
    )  # leaves a trace in the tokenizer

    assert digest() == first
    assert len({first, digest("t5"), digest(form="decoder"), digest(length=33), digest(target=9)}) == 5
