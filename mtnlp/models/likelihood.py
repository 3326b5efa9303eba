"""How likely texts are: whole texts under a decoder, or targets given prompts under any model that writes.

A text that is longer than the network can read is read in windows, each of its tokens scored exactly once.
Windows of three tokens over the text a b c d e f g h, with `_` (a start or end of text) put before it:

    reads _ a b, scores a b c
    reads c d e, scores d e f
    reads e f g, scores g h          the last one reads as far back as it has room

This is what lm-evaluation-harness calls loglikelihood_rolling, with one token of context. A stride shorter
than the window makes the later ones score only so many tokens, each with more context before it.

Shapes: S sequences, L padded length, N scored tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mtnlp.data.batch import IGNORED, Batch, TaskSlice
from mtnlp.data.collate import eval_batches
from mtnlp.data.cut import cut
from mtnlp.data.store import TokenStore
from mtnlp.errors import MtnlpError

if TYPE_CHECKING:
    from mtnlp.data.encode import Encoder
    from mtnlp.models.backbone import Backbone
    from mtnlp.models.multitask import MultitaskModel


@dataclass(frozen=True)
class Likelihood:
    """Of one text.

    Args:
        logprob: log-likelihood in nats, summed over its tokens.
        tokens, words, bytes: how many it has; words are divided by white space, bytes are those of UTF-8. The
            perplexity of texts per token (word, byte) is exp(-sum of logprob / sum of tokens (words, bytes)).
    """

    logprob: float
    tokens: int
    words: int
    bytes: int

    @classmethod
    def of(cls, text: str, logprob: float, tokens: int) -> Likelihood:
        return cls(logprob, tokens, len(text.split()), len(text.encode("utf-8", "surrogatepass")))


Scored = tuple[int, int, Likelihood]  # task, row among the task's texts


class Window(NamedTuple):
    """Reads places start..stop-1 of a sequence (place 0 is the token before the text), which predict places
    start+1..stop, and scores those from `first` on."""

    start: int
    stop: int
    first: int


def windows(tokens: int, length: int, stride: int) -> list[Window]:
    """Windows of at most `length` tokens over a text of so many; together they score places 1..tokens."""
    stops = [min(length, tokens)] if tokens else []
    while stops and stops[-1] < tokens:
        stops.append(min(stops[-1] + stride, tokens))
    firsts = [1, *(stop + 1 for stop in stops)]
    return [Window(max(0, stop - length), stop, first) for stop, first in zip(stops, firsts)]


@dataclass(frozen=True)
class _Text:
    """tokens: with the one before the text; cuts: windows over them."""

    task: int
    row: int
    text: str
    tokens: np.ndarray
    cuts: list[Window]


def of_texts(
    model: MultitaskModel,
    encoder: Encoder,
    texts: Mapping[int, Sequence[str]],
    *,
    max_tokens: int,
    stride: int | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[list[Scored]]:
    """Whole texts under a decoder, in lists of one batch each, longest first; each text comes once.

    Without the texts of the first lists, the others come out the same.

    Args:
        model: in eval mode.
        encoder: its tokenizer is used, and its max_length is that of a window.
        texts: task index -> texts. An empty one has no tokens and the log-likelihood 0.
        max_tokens: most padded tokens of a batch.
        stride: tokens that a window scores, None = all that it holds; see above.

    Raises:
        MtnlpError: no decoder, a stride outside of 1..max_length, or a tokenizer that knows no start or end.
    """
    length = encoder.max_length
    stride = length if stride is None else stride
    before = _token_before(encoder)
    if not 1 <= stride <= length:
        raise MtnlpError(f"stride={stride} must be 1 to {length}, the tokens of a window.")
    named = [(task, row, text) for task in sorted(texts) for row, text in enumerate(texts[task])]
    asked = [
        _Text(task, row, text, np.array([before, *ids]), windows(len(ids), length, stride))
        for (task, row, text), ids in zip(named, encoder.pieces.ids([text for *_, text in named]))
    ]
    for together in _batches(asked, max_tokens):
        sums = _sums(model, together, max_tokens, encoder.pad_id, device)
        yield [
            (one.task, one.row, Likelihood.of(one.text, logprob, len(one.tokens) - 1))
            for one, logprob in zip(together, sums)
        ]


def of_targets(
    model: MultitaskModel,
    stores: Mapping[int, TokenStore],
    targets: Mapping[int, Sequence[str]],
    *,
    max_tokens: int,
    pad_id: int,
    device: torch.device | str = "cpu",
) -> Iterator[list[Scored]]:
    """Targets given their prompts, in lists of one batch each, longest first; each target comes once.

    Args:
        model: in eval mode; an encoder-decoder or a decoder.
        stores: task index -> prompts and targets, encoded. The end token of a target counts as one.
        targets: their texts, for words and bytes.
    """
    form = model.backbone.family
    rows = {task: np.arange(len(store)) for task, store in stores.items()}
    for batch in eval_batches(stores, rows, max_tokens=max_tokens, pad_id=pad_id, form=form):
        sums_S, counts_S = (own.tolist() for own in model.option_scores(batch.to(device)))
        yield [
            (part.task, row, Likelihood.of(targets[part.task][row], sums_S[at], counts_S[at]))
            for part in batch.slices
            for at, row in enumerate(part.rows.tolist(), part.start)
        ]


def next_logprobs(backbone: Backbone, batch: Batch, labels_SL: Tensor) -> Tensor:
    """(S,) float64, summed log-likelihood of the labels, each given all tokens up to its own place. Where a
    label is IGNORED, nothing is scored."""
    kept_SL = labels_SL != IGNORED
    with backbone.scoring_only(kept_SL):
        logits_NV = backbone.net(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).logits[0]
    logits_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    losses_N = F.cross_entropy(logits_NV, labels_SL[kept_SL], reduction="none").double()
    return losses_N.new_zeros(len(labels_SL)).index_add(0, kept_SL.nonzero()[:, 0], -losses_N)


def _token_before(encoder: Encoder) -> int:
    """What stands before a text, so that its first token is scored too: a start, else an end of text."""
    if encoder.form != "decoder":
        raise MtnlpError(
            f"The likelihood of whole texts needs a decoder, and this is an {encoder.form}. Give it prompts "
            "and targets."
        )
    tokenizer = encoder.tokenizer
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise MtnlpError(
        f"{type(tokenizer).__name__} knows no token for the start or end of a text, which must stand before "
        "its first token. Set bos_token in its tokenizer_config.json."
    )


def _batches(asked: Sequence[_Text], max_tokens: int) -> Iterator[list[_Text]]:
    """Whole texts, longest first, those of a batch in the order asked. One that is larger has its own."""
    if not asked:
        return
    longest = np.array([max((cut_.stop - cut_.start for cut_ in one.cuts), default=1) for one in asked])
    counts = np.array([max(1, len(one.cuts)) for one in asked])
    order = np.lexsort((counts, longest))
    stretches = cut(longest[order], counts[order], np.zeros_like(counts), max_tokens=max_tokens)
    for start, stop in reversed(stretches):
        yield [asked[i] for i in sorted(order[start:stop])]


def _sums(
    model: MultitaskModel, texts: Sequence[_Text], max_tokens: int, pad_id: int, device: torch.device | str
) -> list[float]:
    """The log-likelihood of each text; its windows in one batch, or several where one would be too large."""
    rows = [(i, cut_) for i, one in enumerate(texts) for cut_ in one.cuts]
    width = max((cut_.stop - cut_.start for _, cut_ in rows), default=1)
    each = max(1, max_tokens // width)
    sums = np.zeros(len(texts))
    for low in range(0, len(rows), each):
        part = rows[low : low + each]
        batch, labels_SL = _padded([(texts[i], cut_) for i, cut_ in part], pad_id)
        found_S = model.next_logprobs(batch.to(device), labels_SL.to(device))
        np.add.at(sums, [i for i, _ in part], found_S.cpu().numpy())
    return sums.tolist()


def _padded(rows: Sequence[tuple[_Text, Window]], pad_id: int) -> tuple[Batch, Tensor]:
    """Windows, sorted by task, as a batch, and (S, L) the token after each place that is to be scored."""
    shape = (len(rows), max(cut_.stop - cut_.start for _, cut_ in rows))
    ids, mask, labels = np.full(shape, pad_id), np.zeros(shape, np.int64), np.full(shape, IGNORED)
    for i, (one, (start, stop, first)) in enumerate(rows):
        ids[i, : stop - start], mask[i, : stop - start] = one.tokens[start:stop], 1
        labels[i, first - 1 - start : stop - start] = one.tokens[first : stop + 1]
    tasks = np.array([one.task for one, _ in rows])
    names, starts = np.unique(tasks, return_index=True)
    slices = tuple(
        TaskSlice(
            int(task), int(a), int(b), np.arange(b - a), torch.ones(int(b - a), dtype=torch.int64), None
        )
        for task, a, b in zip(names, starts, [*starts[1:], len(rows)])
    )
    ids, mask, labels, tasks = (torch.from_numpy(own) for own in (ids, mask, labels, tasks))
    return Batch(ids, mask, None, None, tasks, slices), labels
