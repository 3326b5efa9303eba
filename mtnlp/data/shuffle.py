"""Shuffled orders that are computed, not stored: the i-th element of a keyed permutation in O(1) time and
memory.

A Feistel network over the grid left x right with left * right just above the size, so that few points fall
outside the range; those are sent through the network again until they fall inside (cycle walking). Round
function: the finaliser of SplitMix64.

Sources: Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains"; Steele, Lea and Flood 2014, "Fast
Splittable Pseudorandom Number Generators".
"""

from __future__ import annotations

import hashlib

import numpy as np

_STEP = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd
ROUNDS = tuple(np.uint64(_STEP * (turn + 1) % 2**64) for turn in range(8))


def key_of(*parts: object) -> int:
    """A 64-bit key from the text of `parts`; equal on every machine and Python version."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def mixed(values: np.ndarray) -> np.ndarray:
    """uint64 -> uint64, every input bit spread over all output bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def permuted(index: np.ndarray, size: np.ndarray | int, key: np.ndarray | int) -> np.ndarray:
    """Where a shuffle puts each index.

    Args:
        index: (M,) integers, 0 <= index < size.
        size: (M,) or one number >= 1, length of the list that is shuffled.
        key: (M,) uint64 or one number; each (size, key) is a permutation of its own.

    Returns:
        (M,) int64 in 0..size-1; for fixed size and key, distinct indices give distinct results.
    """
    place = np.array(index, dtype=np.uint64)
    size = np.broadcast_to(np.asarray(size, np.uint64), place.shape)
    key = np.broadcast_to(np.asarray(key, np.uint64), place.shape)
    place = _network(place, size, key)
    outside = np.flatnonzero(place >= size)
    while len(outside):
        place[outside] = _network(place[outside], size[outside], key[outside])
        outside = outside[place[outside] >= size[outside]]
    return place.astype(np.int64)


def _network(place: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    height = np.ceil(np.sqrt(size.astype(np.float64))).astype(np.uint64)
    width = (size + height - np.uint64(1)) // height
    left, right = place // width, place % width
    for first, second in zip(ROUNDS[::2], ROUNDS[1::2], strict=True):
        left = (left + mixed(mixed(right + key) + first)) % height
        right = (right + mixed(mixed(left + key) + second)) % width
    return left * width + right


def sample(size: int, count: int, name: str) -> np.ndarray:
    """`count` of `size` rows, drawn by a permutation that depends on `name` only; ascending int64."""
    return np.sort(permuted(np.arange(min(count, size)), size, key_of("sample", name)))
