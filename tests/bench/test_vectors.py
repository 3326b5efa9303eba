"""Kept vectors against those that an embedder gives at once, whatever of them is kept already."""

from __future__ import annotations

import numpy as np
import pytest

from mtnlp.bench import vectors
from mtnlp.bench.samples import Samples
from mtnlp.bench.vectors import Vectors

TEXTS = ["one", "two!", "three", "one", "nan", "", "tëxt\u2028", "seven!", "two!"]


class Table:
    """Gives every text a vector by its letters, three at a time, the last first; "!" is said to be cut."""

    query, document = "", "d: "

    def __init__(self):
        self.seen = []

    def batches(self, texts, share):
        self.seen += texts
        for stop in range(len(texts), 0, -3):
            rows = np.arange(max(0, stop - 3), stop)
            yield (
                rows,
                np.stack([by_letters(texts[i]) for i in rows]),
                np.array(["!" in texts[i] for i in rows]),
            )


def by_letters(text):
    found = np.array([len(text) / 3, sum(map(ord, text)) / 7, 1e-40], np.float32)
    return found * np.float32("nan") if "nan" in text else found


def never():
    raise AssertionError("the model was loaded")


@pytest.mark.parametrize("at_once", [2, 4, 100])
def test_vectors_come_back_to_the_last_bit_each_embedded_once(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(vectors, "AT_ONCE", at_once)
    table, path = Table(), tmp_path / "v.jsonl"
    Vectors(lambda: table, Samples(path), "m").documents(TEXTS[2:4])

    first = Vectors(lambda: table, Samples(path), "m").documents(TEXTS)
    again = Vectors(never, Samples(path), "m").documents(TEXTS[::-1])

    expected = np.stack([by_letters(f"d: {text}") for text in TEXTS])
    assert first.vectors.dtype == np.float32 and first.vectors.tobytes() == expected.tobytes()
    assert again.vectors.tobytes() == expected[::-1].tobytes()
    assert (first.cut, again.cut) == ((1, 7, 8), (0, 1, 7))
    assert sorted(table.seen) == sorted({f"d: {text}" for text in TEXTS})


def test_another_model_or_role_has_vectors_of_its_own(tmp_path):
    table, samples = Table(), Samples(tmp_path / "v.jsonl")
    for digest in "mnm":
        kept = Vectors(lambda: table, samples, digest)
        found = kept.queries(["a"]), kept.documents(["a"])
        assert [own.vectors.tobytes() for own in found] == [by_letters(t).tobytes() for t in ("a", "d: a")]

    assert table.seen == ["a", "d: a"] * 2
