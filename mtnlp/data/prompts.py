"""Inputs of text-to-text backbones: rendered prompts and targets, from examples to columns.

Each returns (columns as listed in mtnlp.data.encode, indices of the examples that lost tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mtnlp.tasks.spec import Example, TaskSpec
from mtnlp.tasks.templates import render

if TYPE_CHECKING:
    from mtnlp.data.encode import Encoder

Tokens = list[list[int]]


def encode(
    encoder: Encoder,
    spec: TaskSpec,
    examples: Sequence[Example],
    *,
    template: str | None,
    shots: Sequence[tuple[Example, ...]],
) -> tuple[dict[str, np.ndarray], set[int]]:
    """Prompts within the length, and targets; an example without a target has an empty one.

    shots: those of each example.
    """
    apart = encoder.form == "encoder-decoder"
    tokenised = _in_two if apart or not encoder.tokenizer.is_fast else _in_one

    def read(chosen: Sequence[int], most: int) -> tuple[Tokens, list[list[int] | None]]:
        shown = [(examples[i], shots[i][:most]) for i in chosen]
        return tokenised(encoder, _rendered(encoder, spec, shown, template))

    most = max(map(len, shots), default=0)
    prompts, targets = read(range(len(examples)), most)
    cut = _end_targets(encoder, targets)
    frame = encoder.pieces.one
    last = frame.last if apart else ()
    room = [encoder.max_length - len(frame.first) - len(last) - _beside(encoder, own) for own in targets]
    long = [i for i, prompt in enumerate(prompts) if len(prompt) > room[i]]
    cut.update(long)
    for fewer in range(most - 1, -1, -1):
        for i, prompt in zip(long, read(long, fewer)[0], strict=True):
            prompts[i] = prompt
        long = [i for i in long if len(prompts[i]) > room[i]]
    for i in long:
        prompts[i] = prompts[i][len(prompts[i]) - room[i] :]
    prompts = [[*frame.first, *prompt, *last] or [encoder.pad_id] for prompt in prompts]
    join = _apart if apart else _together
    return join(prompts, [target or [] for target in targets], encoder.pieces.dtype), cut


def _end_targets(encoder: Encoder, targets: list[list[int] | None]) -> set[int]:
    """Put the end token behind every target, within the length; indices of those that were too long."""
    ending = [] if encoder.pieces.end_id is None else [encoder.pieces.end_id]
    most = encoder.max_target_length - len(ending)
    cut = {i for i, target in enumerate(targets) if target is not None and len(target) > most}
    targets[:] = [None if target is None else target[:most] + ending for target in targets]
    return cut


def _rendered(
    encoder: Encoder,
    spec: TaskSpec,
    shown: Sequence[tuple[Example, tuple[Example, ...]]],
    template: str | None,
) -> list[tuple[str, str | None]]:
    """(prompt, target); in a decoder the space between them goes to the target, as tokenizers like it."""
    texts = [
        (text.prompt, text.target)
        for text in (render(spec, example, template=template, shots=shots) for example, shots in shown)
    ]
    if encoder.form == "encoder-decoder":
        return texts
    return [
        (head := prompt.rstrip(), None if target is None else (prompt[len(head) :] or " ") + target)
        for prompt, target in texts
    ]


def _in_two(encoder: Encoder, texts: list[tuple[str, str | None]]) -> tuple[Tokens, list[list[int] | None]]:
    """Prompt and target tokenised apart."""
    # Once each: the options of a document share a prompt, and documents share options.
    distinct = list({text for both in texts for text in both if text is not None})
    ids = dict(zip(distinct, encoder.pieces.ids(distinct), strict=True))
    return [ids[prompt] for prompt, _ in texts], [None if text is None else ids[text] for _, text in texts]


def _in_one(encoder: Encoder, texts: list[tuple[str, str | None]]) -> tuple[Tokens, list[list[int] | None]]:
    """Prompt and target tokenised as the one text that they are in a decoder, and divided between two tokens.

    Where one token holds the end of the prompt and the start of the target, apart: the prompt must be what
    generation starts from.
    """
    prompts, targets, straddling = [], [], []
    wholes = [prompt + (target or "") for prompt, target in texts]
    for i, (ids, places) in enumerate(zip(*encoder.pieces.offsets(wholes), strict=True)):
        prompt, target = texts[i]
        split = int(np.searchsorted(places[:, 1], len(prompt), side="right"))
        if split < len(ids) and places[split, 0] < len(prompt):
            straddling.append(i)
        prompts.append(ids[:split])
        targets.append(None if target is None else ids[split:])
    for i, prompt, target in zip(straddling, *_in_two(encoder, [texts[i] for i in straddling]), strict=True):
        prompts[i], targets[i] = prompt, target
    return prompts, targets


def _beside(encoder: Encoder, target: list[int] | None) -> int:
    """Tokens of max_length that the target takes from the prompt: in a decoder, even one that is unknown."""
    if encoder.form == "encoder-decoder":
        return 0
    return encoder.max_target_length if target is None else len(target)


def _apart(prompts: Tokens, targets: Tokens, dtype: type) -> dict[str, np.ndarray]:
    return {
        "token_counts": _counts(prompts),
        "tokens": _flat(prompts, dtype),
        "target_counts": _counts(targets),
        "target_tokens": _flat(targets, dtype),
    }


def _together(prompts: Tokens, targets: Tokens, dtype: type) -> dict[str, np.ndarray]:
    both = [prompt + target for prompt, target in zip(prompts, targets, strict=True)]
    return {"token_counts": _counts(both), "tokens": _flat(both, dtype), "prompt_lengths": _counts(prompts)}


def _counts(lists: Tokens) -> np.ndarray:
    return np.array([len(own) for own in lists], np.int32)


def _flat(lists: Tokens, dtype: type) -> np.ndarray:
    return np.array([token for own in lists for token in own], dtype)
