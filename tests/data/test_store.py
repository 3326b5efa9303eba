from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from mtnlp.data import store as store_module
from mtnlp.data.encode import Encoder
from mtnlp.data.sources import memory
from mtnlp.data.store import TokenStore, tokenise
from mtnlp.errors import DataError
from mtnlp.tasks.examples import example

KINDS = ("classify", "pair", "multilabel", "regress", "choose", "tag", "span")


def equal(a: TokenStore, b: TokenStore) -> bool:
    names = set(a._arrays) | set(b._arrays)
    offsets = ("seq_offsets", "token_offsets", "target_offsets", "length", "sequences", "target_length")
    plain = ("kind", "form", "classes", "labelled", "truncated")
    return (
        all((a[name] == b[name]).all() and a[name].dtype == b[name].dtype for name in names)
        and all((getattr(a, name) == getattr(b, name)).all() for name in offsets)
        and all(getattr(a, name) == getattr(b, name) for name in plain)
    )


@pytest.mark.parametrize(
    ("make", "form", "kinds"),
    [
        ("bert", "encoder", KINDS),
        ("t5", "encoder-decoder", ("generate", "tag")),
        ("gpt", "decoder", ("choose",)),
    ],
)
def test_a_store_reopened_equals_the_store_built_whatever_the_chunks(
    make, form, kinds, tokenizers, tasks, tmp_path, monkeypatch
):
    encoder = Encoder(tokenizers[make], form, 100)
    for kind in kinds:
        spec, rows = tasks[kind]
        whole = TokenStore.from_columns(
            encoder.encode(spec, [example(spec, row, i) for i, row in enumerate(rows)])
        )
        monkeypatch.setattr(store_module, "CHUNK", 4)
        built = tokenise(spec, memory(rows, kind), encoder, tmp_path)
        monkeypatch.setattr(encoder, "encode", None)  # may not be needed again
        reopened = tokenise(spec, memory(rows, kind), encoder, tmp_path)
        monkeypatch.undo()

        assert equal(built, whole) and equal(built, reopened)
        assert len(built) == len(rows)
    assert len(list(tmp_path.iterdir())) == len(kinds)


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="this system does not list a process's open files")
def test_a_store_is_read_where_it_lies_and_keeps_no_file_open(tokenizers, tasks, tmp_path):
    spec, rows = tasks["classify"]
    before = len(os.listdir("/dev/fd"))

    store = tokenise(spec, memory(rows, "m"), Encoder(tokenizers["bert"], "encoder", 100), tmp_path)

    assert len(os.listdir("/dev/fd")) == before
    first = int(store["tokens"][0])
    with (store.path / "tokens.bin").open("r+b") as file:
        file.write(store["tokens"].dtype.type(first + 1).tobytes())
    assert store["tokens"][0] == first + 1
    with pytest.raises(ValueError, match="read-only"):
        store["tokens"][0] = 0


def test_anything_that_changes_the_tokens_makes_another_store(tokenizers, tasks, tmp_path):
    spec, rows = tasks["classify"]
    shot = example(spec, rows[0], 0)

    def path(spec=spec, rows=rows, form="decoder", length=200, **options):
        make = "gpt" if form == "decoder" else "bert"
        return tokenise(
            spec, memory(rows, "m"), Encoder(tokenizers[make], form, length), tmp_path, **options
        ).path

    variants = [
        path(),
        path(form="encoder"),
        path(length=201),
        path(rows=rows[:-1]),
        path(shots=[shot]),
        path(spec.replace(labels=("bad", "good", "neither"))),
        path(spec.replace(instruction="Judge it.")),
    ]

    assert len(set(variants)) == len(variants)
    assert path(spec.replace(notes="x", name="other", metrics=("accuracy",))) == path()


def test_a_damaged_store_is_named_and_made_again(tokenizers, tasks, tmp_path):
    spec, rows = tasks["tag"]
    encoder = Encoder(tokenizers["bert"], "encoder", 100)
    built = tokenise(spec, memory(rows, "m"), encoder, tmp_path)
    tokens = built["tokens"].tolist()
    with (built.path / "tokens.bin").open("r+b") as file:
        file.truncate(10)

    with pytest.raises(DataError, match=r"tokens.bin holds 10 bytes, expected \d+.*Delete it"):
        TokenStore.open(built.path)

    assert tokenise(spec, memory(rows, "m"), encoder, tmp_path)["tokens"].tolist() == tokens
    assert [p.name for p in tmp_path.iterdir()] == [built.path.name]


def test_nothing_is_left_behind_when_a_row_is_bad(tokenizers, tasks, tmp_path):
    spec, rows = tasks["tag"]

    with pytest.raises(DataError, match=r"^mem\[1\]: tags: 1 tags for 3 tokens"):
        tokenise(
            spec,
            memory([rows[0], {**rows[1], "tags": [0]}], "mem"),
            Encoder(tokenizers["bert"], "encoder", 99),
            tmp_path,
        )

    assert list(tmp_path.iterdir()) == []


def test_rows_without_answers_make_a_store_without_targets(tokenizers, tasks, tmp_path):
    spec, rows = tasks["tag"]
    bare = memory([{"tokens": row["tokens"]} for row in rows], "m")
    encoder = Encoder(tokenizers["bert"], "encoder", 100)

    store = tokenise(spec, bare, encoder, tmp_path, needs_target=False)

    assert not store.labelled and set(store["tags"].tolist()) == {-100}
    assert store["words"].max() == max(len(row["tokens"]) for row in rows) - 1
    with pytest.raises(DataError, match=r"^m\[0\]: tags: no column 'tags'"):
        tokenise(spec, bare, encoder, tmp_path)


@pytest.mark.parametrize(("vocabulary", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_tokens_are_as_wide_as_the_vocabulary_needs(vocabulary, dtype, tasks, tmp_path):
    from transformers import PreTrainedTokenizerFast

    words = {"a": 0, "b": 1, "[UNK]": 2} | {f"w{i}": i for i in range(3, vocabulary)}
    raw = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]")
    last = f"w{vocabulary - 1}"

    store = tokenise(
        tasks["classify"][0],
        memory([{"text": f"a {last}", "label": 0}], "m"),
        Encoder(tokenizer, "encoder", 10),
        tmp_path,
    )

    assert store["tokens"].dtype == dtype and store["tokens"].tolist() == [0, vocabulary - 1]
    assert json.loads((store.path / "store.json").read_text())["arrays"]["tokens"] == [
        np.dtype(dtype).str,
        [2],
    ]
