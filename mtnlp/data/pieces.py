"""Text -> token ids, and the special tokens that a tokenizer puts around one text or between two."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mtnlp.errors import MtnlpError

IGNORED = -100  # the label of a position that no loss looks at


@dataclass(frozen=True)
class Frame:
    """Special tokens of a pair: `first` a `middle` b `last`, each with its segment ids; b is absent for one
    text."""

    first: tuple[int, ...]
    middle: tuple[int, ...]
    last: tuple[int, ...]
    types: tuple[tuple[int, ...], int, tuple[int, ...], int, tuple[int, ...]]

    @property
    def size(self) -> int:
        return len(self.first) + len(self.middle) + len(self.last)


class Pieces:
    """A tokenizer as the data room uses it: plain ids without special tokens, and the frames to put around
    them.

    Args:
        tokenizer: any transformers tokenizer; a fast one where character offsets are needed.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab().values()
        self.vocabulary = max(len(tokenizer), max(vocabulary, default=0) + 1)
        self.dtype = np.uint16 if self.vocabulary <= 1 << 16 else np.uint32
        self.one, self.two = self._frames()
        self.segments = "token_type_ids" in tokenizer.model_input_names and any(
            map(any, map(_tuple, self.two.types))
        )

    @property
    def pad_id(self) -> int:
        """Padding token: the tokenizer's, else its end of text, else 0 (masked everywhere, so any id will
        do)."""
        return next(
            (i for i in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if i is not None), 0
        )

    @property
    def end_id(self) -> int | None:
        """What ends a target: end of sequence, else the separator, else nothing."""
        tokenizer = self.tokenizer
        return tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of every text, without special tokens."""
        if not texts:
            return []
        backend = self.tokenizer.backend_tokenizer if self.tokenizer.is_fast else None
        if backend is None or backend.truncation is not None or backend.padding is not None:
            return self._call(texts)["input_ids"]
        # Without the offsets that a call always computes: 1.6 times as fast.
        return [own.ids for own in backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def offsets(self, texts: Sequence[str]) -> tuple[list[list[int]], list[np.ndarray]]:
        """Token ids, and per text (tokens, 2) first character and first character after each token.

        Raises:
            MtnlpError: a slow tokenizer, which cannot tell.
        """
        if not self.tokenizer.is_fast:
            raise MtnlpError(
                f"{type(self.tokenizer).__name__} is a slow tokenizer and knows no character offsets, which "
                "tag and span tasks need. Use a backbone with a tokenizer.json."
            )
        if not texts:
            return [], []
        found = self._call(texts, return_offsets_mapping=True)
        return found["input_ids"], [np.array(own, np.int32).reshape(-1, 2) for own in found["offset_mapping"]]

    def fingerprint(self) -> str:
        """Hash of everything that decides how a text becomes ids."""
        if self.tokenizer.is_fast:
            content = json.loads(self.tokenizer.backend_tokenizer.to_str())
            content = {key: value for key, value in content.items() if key not in ("truncation", "padding")}
        else:
            content = [type(self.tokenizer).__name__, sorted(self.tokenizer.get_vocab().items())]
        special = {key: str(value) for key, value in self.tokenizer.special_tokens_map.items()}
        frames = [self.one.__dict__, self.two.__dict__]
        text = json.dumps([content, special, frames, self.segments, self.pad_id, self.end_id], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def _call(self, texts: Sequence[str], **options: Any) -> Any:
        return self.tokenizer(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
            **options,
        )

    def _frames(self) -> tuple[Frame, Frame]:
        """Found by looking at what the tokenizer makes of "a" and of the pair "a", "b"."""
        a, b = self.ids(["a", "b"])
        alone = self.tokenizer("a", return_token_type_ids=True)
        pair = self.tokenizer("a", "b", return_token_type_ids=True)
        return _frame(alone, a, []), _frame(pair, a, b)


@dataclass
class Sequences:
    """Sequences as they are put together: flat lists that become columns of a chunk."""

    tokens: list[int] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def add(self, frame: Frame, a: Sequence[int], b: Sequence[int] = (), *, blank: int = 0) -> None:
        """Append one sequence; where nothing at all would stand, the token `blank` does."""
        size = len(self.tokens)
        for part in (frame.first, a, frame.middle, b, frame.last):
            self.tokens.extend(part)
        if len(self.tokens) == size:
            self.tokens.append(blank)
        first, of_a, middle, of_b, last = frame.types
        self.types.extend((*first, *[of_a] * len(a), *middle, *[of_b] * len(b), *last))
        self.types.extend([0] * (len(self.tokens) - len(self.types)))
        self.counts.append(len(self.tokens) - size)


def shares(a: int, b: int, room: int) -> tuple[int, int]:
    """Tokens of a and of b that are kept in `room`: the longer one is cut first, then both alike."""
    if a + b <= room:
        return a, b
    half = room // 2
    if a <= half:
        return a, room - a
    return (room - b, b) if b <= half else (room - half, half)


def _frame(encoded: Mapping[str, list[int]], a: list[int], b: list[int]) -> Frame:
    """What stands around `a` and, if it is not empty, `b`."""
    ids = encoded["input_ids"]
    types = encoded.get("token_type_ids") or [0] * len(ids)
    start = _find(a, ids, 0)
    stop = start + len(a)
    second = _find(b, ids, stop) if b else stop
    end = second + len(b)
    special = [slice(0, start), slice(stop, second), slice(end, None)]
    first, middle, last = (tuple(types[part]) for part in special)
    return Frame(
        *(tuple(ids[part]) for part in special),
        types=(first, types[start], middle, types[second] if b else 0, last),
    )


def _tuple(item: int | Iterable[int]) -> tuple[int, ...]:
    return (item,) if isinstance(item, int) else tuple(item)


def _find(needle: list[int], hay: list[int], start: int) -> int:
    for place in range(start, len(hay) - len(needle) + 1):
        if needle and hay[place : place + len(needle)] == needle:
            return place
    raise MtnlpError(
        f"The tokenizer writes 'a' and 'b' differently with special tokens {hay} and without {needle}; "
        "such a tokenizer cannot be used."
    )
