"""Inputs of an encoder with heads: one function per kind of task, from examples to columns.

Each returns (columns as listed in mtnlp.data.encode, indices of the examples that lost tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mtnlp.data.pieces import IGNORED, Sequences, shares
from mtnlp.tasks.spec import Example, TaskSpec

if TYPE_CHECKING:
    from mtnlp.data.encode import Encoder

Encoded = tuple[dict[str, np.ndarray], set[int]]


def texts(encoder: Encoder, spec: TaskSpec, examples: Sequence[Example]) -> Encoded:
    """One text or a pair; too long ones are cut at the end of the longer part."""
    pieces, out, cut = encoder.pieces, Sequences(), set()
    firsts = pieces.ids([example.inputs["text"] for example in examples])
    paired = [i for i, example in enumerate(examples) if example.inputs.get("text_pair") is not None]
    seconds = dict(zip(paired, pieces.ids([examples[i].inputs["text_pair"] for i in paired]), strict=True))
    for i, a in enumerate(firsts):
        frame, b = (pieces.two, seconds[i]) if i in seconds else (pieces.one, [])
        keep_a, keep_b = shares(len(a), len(b), encoder.max_length - frame.size)
        if keep_a + keep_b < len(a) + len(b):
            cut.add(i)
        out.add(frame, a[:keep_a], b[:keep_b], blank=pieces.pad_id)
    return _columns(encoder, out) | {"target": _targets(spec, examples)}, cut


def choices(encoder: Encoder, spec: TaskSpec, examples: Sequence[Example]) -> Encoded:
    """One sequence per choice: context and question, then the choice. The context is cut first, from its
    start."""
    pieces, out, cut = encoder.pieces, Sequences(), set()
    stems = [
        " ".join(part for name in ("context", "question") if (part := example.inputs.get(name)))
        for example in examples
    ]
    options = [list(example.inputs["choices"]) for example in examples]
    encoded = iter(pieces.ids([choice for own in options for choice in own]))
    for i, a in enumerate(pieces.ids(stems)):
        frame = pieces.two if a else pieces.one
        for _ in options[i]:
            b = next(encoded)
            keep_a, keep_b = shares(len(a), len(b), encoder.max_length - frame.size)
            if keep_a + keep_b < len(a) + len(b):
                cut.add(i)
            stem, choice = a[len(a) - keep_a :], b[:keep_b]
            out.add(frame, *((stem, choice) if a else (choice,)), blank=pieces.pad_id)
    sequences = np.array([len(own) for own in options], np.int32)
    return _columns(encoder, out) | {"sequences": sequences, "target": _targets(spec, examples)}, cut


def words(encoder: Encoder, spec: TaskSpec, examples: Sequence[Example]) -> Encoded:
    """Words joined by spaces; the first piece of a word carries its label.

    The piece is found by characters, so any fast tokenizer will do: it belongs to the word in which its last
    character stands (some tokenizers count the space before a word in).
    """
    pieces, out, cut = encoder.pieces, Sequences(), set()
    frame, room = pieces.one, encoder.max_length - pieces.one.size
    tokens = [[str(word) for word in example.inputs["tokens"]] for example in examples]
    tags, starts = [], []
    for i, (ids, offsets) in enumerate(zip(*pieces.offsets([" ".join(own) for own in tokens]), strict=True)):
        if len(ids) > room:
            cut.add(i)
        out.add(frame, ids[:room], blank=pieces.pad_id)
        word = np.full(out.counts[-1], -1, np.int32)
        word[len(frame.first) : len(frame.first) + min(len(ids), room)] = first_pieces(
            tokens[i], offsets[:room]
        )
        tag = np.full(len(word), IGNORED, np.int32)
        if examples[i].target is not None:
            tag[word >= 0] = np.array(examples[i].target, np.int32)[word[word >= 0]]
        tags.append(tag)
        starts.append(word)
    return _columns(encoder, out) | {"tags": _joined(tags), "words": _joined(starts)}, cut


def first_pieces(tokens: Sequence[str], offsets: np.ndarray) -> np.ndarray:
    """(F,) int32: the word that starts at each token of the joined words, -1 for later pieces and spaces."""
    sizes = np.array([len(token) for token in tokens], np.int64)
    owner = np.repeat(np.arange(len(tokens)), sizes + 1)  # of each character; a word owns the space behind it
    if not len(owner) or not len(offsets):
        return np.full(len(offsets), -1, np.int32)
    is_space = np.zeros(len(owner), bool)
    is_space[np.cumsum(sizes + 1) - 1] = True
    last = np.maximum(offsets[:, 1] - 1, 0)
    word = np.where((offsets[:, 1] > offsets[:, 0]) & ~is_space[last], owner[last], -1)
    highest = np.maximum.accumulate(word)
    return np.where(word > np.concatenate([[-1], highest[:-1]]), word, -1).astype(np.int32)


def windows(encoder: Encoder, spec: TaskSpec, examples: Sequence[Example]) -> Encoded:
    """Question, then a window of the context; windows overlap by a quarter so that no answer falls between
    two."""
    pieces, out, cut = encoder.pieces, Sequences(), set()
    frame, room = pieces.two, encoder.max_length - pieces.two.size
    questions = pieces.ids([example.inputs["question"] for example in examples])
    contexts, offsets = pieces.offsets([example.inputs["context"] for example in examples])
    counts, spans, starts, ends = [], [], [], []
    for i, (question, context, places) in enumerate(zip(questions, contexts, offsets, strict=True)):
        if len(question) > room // 2:
            cut.add(i)
            question = question[: room // 2]
        answer = _answer_tokens(examples[i].target, places)
        before = len(frame.first) + len(question) + len(frame.middle)
        bounds = _window_bounds(len(context), room - len(question))
        for low, high in bounds:
            out.add(frame, question, context[low:high], blank=pieces.pad_id)
            inside = answer is not None and low <= answer[0] and answer[1] < high
            spans.append((answer[0] - low + before, answer[1] - low + before) if inside else (0, 0))
            own = np.full((out.counts[-1], 2), -1, np.int32)
            own[before : before + high - low] = places[low:high]
            starts.append(own[:, 0])
            ends.append(own[:, 1])
        counts.append(len(bounds))
    return _columns(encoder, out) | {
        "sequences": np.array(counts, np.int32),
        "spans": np.array(spans, np.int32).reshape(-1, 2),
        "starts": _joined(starts),
        "ends": _joined(ends),
    }, cut


def _window_bounds(tokens: int, room: int) -> list[tuple[int, int]]:
    step = max(1, room - room // 4)
    count = 1 + max(0, -(-(tokens - room) // step))
    return [(i * step, min(i * step + room, tokens)) for i in range(count)]


def _answer_tokens(target: tuple | None, places: np.ndarray) -> tuple[int, int] | None:
    """First and last context token that the first answer touches; None without an answer."""
    if not target:
        return None
    text, start = target[0]
    first = int(np.searchsorted(places[:, 1], start, side="right"))
    last = int(np.searchsorted(places[:, 0], start + len(text), side="left")) - 1
    return (first, last) if first <= last else None


def _targets(spec: TaskSpec, examples: Sequence[Example]) -> np.ndarray:
    if spec.kind == "multilabel":
        hot = np.zeros((len(examples), len(spec.labels or ())), np.uint8)
        for i, example in enumerate(examples):
            hot[i, list(example.target or ())] = 1
        return hot
    dtype = np.float32 if spec.kind == "regress" else np.int64
    return np.array([0 if example.target is None else example.target for example in examples], dtype)


def _columns(encoder: Encoder, out: Sequences) -> dict[str, np.ndarray]:
    return {
        "token_counts": np.array(out.counts, np.int32),
        "tokens": np.array(out.tokens, encoder.pieces.dtype),
        "types": np.array(out.types, np.uint8),
    }


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)


BY_KIND: dict[str, Callable[[Encoder, TaskSpec, Sequence[Example]], Encoded]] = {
    **dict.fromkeys(("classify", "pair", "ordinal", "multilabel", "regress"), texts),
    "choose": choices,
    "tag": words,
    "span": windows,
}
