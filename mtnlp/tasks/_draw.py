"""Draws that follow from a key alone, in every process and on every machine: for splits made by ourselves."""

from __future__ import annotations

import hashlib

SPLITS = {"train": 0.8, "validation": 0.1, "test": 0.1}


def chance(*key: str) -> float:
    """A number in [0, 1)."""
    digest = hashlib.blake2b("\0".join(key).encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


def split_of(*key: str) -> str:
    """The split that a row with this key belongs to, whatever other rows there are."""
    place, high = chance("split", *key), 0.0
    for split, share in SPLITS.items():
        high += share
        if place < high:
            return split
    return split
