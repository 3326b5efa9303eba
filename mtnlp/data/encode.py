"""Examples -> columns of token ids, in the form that a family of backbones reads; predictions -> values.

Forms: "encoder" (raw inputs for a head), "encoder-decoder" (prompt, and target apart), "decoder" (prompt and
target in one sequence). The columns of a chunk of N examples with S sequences and F tokens in all:

    sequences      (N,) int32       sequences of each example: 1; choices of `choose`; windows of `span`
    length         (N,) int32       its longest sequence, in tokens
    target_length  (N,) int32       its longest separate target (encoder-decoder), else 0
    token_counts   (S,) int32       tokens of each sequence
    tokens         (F,) uint16 or uint32, as the vocabulary needs
    types          (F,) uint8       segment ids, for tokenizers that have them
    target         (N,) int64 or float32, (N, C) uint8 for multilabel; 0 where the example has no target
    tags, words    (F,) int32       tag: label, or -100; word that starts at this token, or -1
    spans          (S, 2) int32     span: first and last token of the answer, (0, 0) = not in this window
    starts, ends   (F,) int32       span: characters of the context under a token, -1 outside the context
    target_counts, target_tokens    encoder-decoder: targets like token_counts and tokens
    prompt_lengths (S,) int32       decoder: tokens before the target
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mtnlp.data import inputs, prompts
from mtnlp.data.pieces import Pieces
from mtnlp.errors import MtnlpError, did_you_mean
from mtnlp.tasks.spec import Example, TaskSpec

if TYPE_CHECKING:
    from mtnlp.data.store import TokenStore

FORMS = ("encoder", "encoder-decoder", "decoder")
VERSION = 1  # of the code below; raise it when the same example would become other columns
SHORTEST = 8
LOST = {  # what inputs that are too long lose
    "choose": "the start of the context and question",
    "tag": "the last words",
    "span": "the end of the question",
}


@dataclass(frozen=True)
class Columns:
    """A chunk of encoded examples.

    Args:
        arrays: as in the table above; only those that the form and kind need.
        kind, form: of the task and the encoder.
        classes: C of a multilabel target, else 0.
        labelled: every example has a target.
        cut: indices of the examples that lost tokens, ascending.
    """

    arrays: dict[str, np.ndarray]
    kind: str
    form: str
    classes: int
    labelled: bool
    cut: tuple[int, ...]

    @property
    def truncated(self) -> int:
        """Number of examples that lost tokens."""
        return len(self.cut)


def too_short(form: str, max_length: int, max_target_length: int) -> str | None:
    """Why these lengths hold nothing; None = they do."""
    if max_target_length < 2:
        return f"model.max_target_length: {max_target_length} holds no word and its end; use 2 or more."
    least = SHORTEST + (max_target_length if form == "decoder" else 0)
    if max_length >= least:
        return None
    beside = f" beside a target of up to {max_target_length} (model.max_target_length)"
    return (
        f"model.max_length: {max_length} leaves too little room for a prompt"
        f"{beside if form == 'decoder' else ''}; use {least} or more."
    )


class Encoder:
    """Turns examples into columns.

    Args:
        tokenizer: the backbone's.
        form: the backbone's family: "encoder", "encoder-decoder" or "decoder".
        max_length: most tokens of a sequence, with special tokens, and with the target in a decoder.
        max_target_length: most tokens of a target, with its end token; the rest is cut.

    Raises:
        MtnlpError: an unknown form, or lengths too small to hold anything.
    """

    def __init__(self, tokenizer: Any, form: str, max_length: int, max_target_length: int = 64) -> None:
        if form not in FORMS:
            raise MtnlpError(f"No form of input is called {form!r}. {did_you_mean(form, FORMS)}")
        if problem := too_short(form, max_length, max_target_length):
            raise MtnlpError(problem)
        self.tokenizer, self.form = tokenizer, form
        self.max_length, self.max_target_length = max_length, max_target_length
        self.pieces = Pieces(tokenizer)

    @property
    def pad_id(self) -> int:
        return self.pieces.pad_id

    @cached_property
    def digest(self) -> str:
        """Hex hash of the tokenizer, the settings and the version of this code: equal digests, equal
        columns."""
        settings = [VERSION, self.form, self.max_length, self.max_target_length, self.pieces.fingerprint()]
        return hashlib.blake2b(json.dumps(settings).encode(), digest_size=16).hexdigest()

    def loses(self, kind: str) -> str:
        """What an input of such a task loses when it is too long."""
        if self.form != "encoder":
            return "solved examples, then the start of the prompt"
        return LOST.get(kind, "the end of the longer text")

    def encode(
        self,
        spec: TaskSpec,
        examples: Sequence[Example],
        *,
        template: str | None = None,
        shots: Sequence[Example] = (),
        drawn: Sequence[Sequence[Example]] | None = None,
    ) -> Columns:
        """Columns of `examples`, all of the task `spec`.

        Args:
            template: name of the prompt, for text forms; None = the task's default.
            shots: solved examples put into every prompt, for text forms. A prompt that is too long loses
                shots from the last one on, then tokens from its left; a target is never cut to make room.
            drawn: in place of `shots`, those of each example.

        Raises:
            MtnlpError: a generate task in the encoder form.
        """
        if self.form != "encoder":
            own = [tuple(shots)] * len(examples) if drawn is None else [tuple(some) for some in drawn]
            arrays, cut = prompts.encode(self, spec, examples, template=template, shots=own)
        elif spec.kind in inputs.BY_KIND:
            arrays, cut = inputs.BY_KIND[spec.kind](self, spec, examples)
        else:
            raise MtnlpError(
                f"{spec.name}: a {spec.kind} task writes text, which an encoder with heads cannot. Use an "
                "encoder-decoder or a decoder backbone, or leave the task out."
            )
        if not self.pieces.segments:
            arrays.pop("types", None)
        _add_lengths(arrays, len(examples))
        labelled = all(example.target is not None for example in examples)
        classes = len(spec.labels or ()) if spec.kind == "multilabel" else 0
        return Columns(arrays, spec.kind, self.form, classes, labelled, tuple(sorted(cut)))


def decode(spec: TaskSpec, example: Example, value: Any, store: TokenStore, row: int) -> Any:
    """The canonical prediction for what a head said.

    Args:
        value: "value" of the head's prediction: label(s) or number as they are; tag: (L,) label ids per token
            position; span: (window, first token, last token), None = unanswerable.
        store, row: where the example was encoded.

    Returns:
        tag: a label id per word; words beyond the last token get "O", or the first label where there is no
            "O".
        span: the answer's text, "" = unanswerable. Else `value`.
    """
    if spec.kind == "tag":
        start, stop = store.token_offsets[store.seq_offsets[row] + np.arange(2)]
        words = np.asarray(store["words"][start:stop])
        labels = spec.labels or ()
        tags = np.full(len(example.inputs["tokens"]), labels.index("O") if "O" in labels else 0, np.int64)
        at = np.flatnonzero(words >= 0)
        tags[words[at]] = np.asarray(value)[at]
        return tuple(tags.tolist())
    if spec.kind == "span":
        if value is None:
            return ""
        window, first, last = value
        base = store.token_offsets[store.seq_offsets[row] + window]
        return example.inputs["context"][store["starts"][base + first] : store["ends"][base + last]].strip()
    return value


def _add_lengths(arrays: dict[str, np.ndarray], examples: int) -> None:
    sequences = arrays.setdefault("sequences", np.ones(examples, np.int32))
    for counts, name in (("token_counts", "length"), ("target_counts", "target_length")):
        arrays[name] = np.zeros(examples, np.int32)
        if counts in arrays and examples:
            first = np.cumsum(sequences) - sequences
            arrays[name] = np.maximum.reduceat(arrays[counts], first).astype(np.int32)
