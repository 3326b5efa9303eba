"""Solved examples for prompts, drawn anew for every document.

A draw follows from the seed and from what the document and the pool say, not from where they stand: to
shuffle, to split over processes or to ask one document alone changes nothing. Each pair (document, example)
has a number that is random but fixed, and the k examples with the smallest are shown (a bottom-k sample,
Cohen and Kaplan 2007), so one example more in the pool changes at most one shot of a document.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from mtnlp.bench.samples import key_of
from mtnlp.errors import MtnlpError
from mtnlp.tasks.spec import Example


def document(example: Example) -> str:
    """The id of a document: a hash of its inputs, the same in whatever task, split or row they stand."""
    return key_of(dict(example.inputs))


def draw_shots(examples: Iterable[Example], key: str, k: int, seed: int) -> tuple[Example, ...]:
    """k solved examples for the document with the id `key`; `Pool.draw` for one document."""
    return Pool(examples).draw(key, k, seed)


class Pool:
    """Examples to draw from: those with an answer, each document once.

    Args:
        examples: in any order. Of several answers to one document, one is kept, whatever the order.
    """

    def __init__(self, examples: Iterable[Example]) -> None:
        found: dict[str, Example] = {}
        for example in examples:
            if example.target is not None:
                key = document(example)
                found[key] = min(found.get(key, example), example, key=lambda own: repr(own.target))
        self.keys = sorted(found)
        self.examples = [found[key] for key in self.keys]
        self._places = {key: i for i, key in enumerate(self.keys)}
        self._numbers = np.array([_number(key) for key in self.keys], np.uint64)

    def draw(self, key: str, k: int, seed: int) -> tuple[Example, ...]:
        """k examples, in the order in which they are to be shown; the document itself is never among them.

        Args:
            key: the id of the document that is asked, by `document`.
            k: 0 or more.
            seed: another seed is another draw.

        Raises:
            MtnlpError: the pool has fewer than k others.
        """
        others = len(self.keys) - (key in self._places)
        if not 0 <= k <= others:
            raise MtnlpError(f"{k} examples are to be shown, and there are {others} others with an answer.")
        numbers = _mixed(self._numbers ^ _number(f"{seed} {key}"))
        if key in self._places:
            numbers[self._places[key]] = np.iinfo(np.uint64).max
        smallest = np.argpartition(numbers, k)[:k] if k < len(numbers) else np.arange(k)
        return tuple(self.examples[i] for i in smallest[np.argsort(numbers[smallest])])


def _number(text: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big"))


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """(N,) uint64, each bit of which depends on all bits of the number that was there (splitmix64)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
