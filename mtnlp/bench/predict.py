"""Predictions of a multi-task model for rows of several tasks, in the canonical values that metrics read.

Three ways, by the family of the backbone and the kind of the task:
    encoder                          the task's head on hidden states
    text, task with options          log-likelihood of every option, per token where the options are free text
    text, any other task             greedy generation, parsed by tasks.templates.parse
Where it is asked for, a text model says instead how likely it finds the target, or the text of a row.
Batches mix tasks and are sorted by length; values come back in the order of the examples asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from mtnlp.bench import ranks
from mtnlp.bench.questions import LIKELIHOODS, Questions
from mtnlp.bench.shots import document
from mtnlp.data.batch import Batch
from mtnlp.data.collate import eval_batches
from mtnlp.data.encode import SHORTEST, Encoder, decode
from mtnlp.data.packed import Packed, option_batches
from mtnlp.data.store import TokenStore
from mtnlp.errors import MtnlpError
from mtnlp.models import likelihood
from mtnlp.models.generation import Generation
from mtnlp.models.multitask import MultitaskModel
from mtnlp.models.options import longest
from mtnlp.tasks.answers import write
from mtnlp.tasks.spec import Example
from mtnlp.tasks.templates import parse, render

CPU_TOKENS = 2048  # padded tokens of a batch of options that a CPU does fastest
STREAM_TOKENS = 4096  # of prompts encoded as one stream: half as many take 1.5 times as long to be answered
Answered = tuple[int, int, dict[str, Any]]  # task, row among the task's examples, answer


class Predictor:
    """Runs a model over questions.

    Args:
        model: in any state; it is put in eval mode while predicting and back afterwards.
        encoder: the encoder its training rows went through.
        max_tokens: padded tokens per batch.
        max_new_tokens: longest generated answer.
        autocast: makes the context of every forward (Accelerator.autocast), default none.
    """

    def __init__(
        self,
        model: MultitaskModel,
        encoder: Encoder,
        *,
        device: torch.device | str = "cpu",
        max_tokens: int = 8192,
        max_new_tokens: int = 64,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        self.model, self.encoder, self.device = model, encoder, device
        self.max_tokens, self.max_new_tokens, self.autocast = max_tokens, max_new_tokens, autocast
        self._shared = False
        self._longest: int | None = None  # see models.options.longest
        self._cut: dict[str, set[int]] = {}  # task -> indices of its examples that lost tokens

    def __call__(self, questions: Mapping[int, Questions]) -> dict[int, list[dict[str, Any]]]:
        """Task index -> one dict per example, in order: its "value", and "scores" where there are some."""
        found: dict[int, list] = {task: [None] * len(part.examples) for task, part in questions.items()}
        for answers in self.batches(questions):
            for task, row, answer in answers:
                found[task][row] = answer
        return found

    def batches(
        self, questions: Mapping[int, Questions], *, shared: bool = False
    ) -> Iterator[list[Answered]]:
        """The same, batch after batch, as soon as each is answered: what has come is whole, and a stop loses
        one batch. Each example comes once; an answer to one that lost tokens has "cut": which it lost.

        Args:
            shared: this process answers only its share of the batches; see `bench.ranks`.
        """
        self._shared = shared
        for answers in self._answers({task: part for task, part in questions.items() if part.examples}):
            for task, row, answer in answers:
                part = questions[task]
                if part.examples[row].index in self._cut.get(part.spec.name, ()):
                    answer["cut"] = self.encoder.loses(part.spec.kind)
            yield answers

    def _answers(self, asked: Mapping[int, Questions]) -> Iterator[list[Answered]]:
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode(), self.autocast():
                if not asked:
                    return
                self.model.begin(sorted(asked))
                if self.encoder.form == "encoder":
                    yield from self._by_heads(asked)
                else:
                    yield from self._by_options({t: q for t, q in asked.items() if q.by_options})
                    yield from self._of_targets({t: q for t, q in asked.items() if q.request == "likelihood"})
                    yield from self._of_texts({t: q for t, q in asked.items() if q.request == "text"})
                    rest = {t: q for t, q in asked.items() if q.request not in LIKELIHOODS}
                    yield from self._by_generation({t: q for t, q in rest.items() if not q.by_options})
        finally:
            self.model.train(was_training)

    def _by_heads(self, questions: Mapping[int, Questions]) -> Iterator[list[Answered]]:
        stores = {task: self._store(part, part.examples) for task, part in questions.items()}
        for batch in self._batches(stores):
            answered = []
            for part, results in zip(batch.slices, self.model.predict(batch), strict=True):
                asked = questions[part.task]
                for row, raw in zip(part.rows.tolist(), results, strict=True):
                    value = decode(asked.spec, asked.examples[row], raw["value"], stores[part.task], row)
                    answered.append((part.task, row, {**raw, "value": value}))
            yield answered

    def _by_options(self, questions: Mapping[int, Questions]) -> Iterator[list[Answered]]:
        """Every option of every example is one row of a store, with that option as its target."""
        counts = {
            task: [_options(part, example) for example in part.examples] for task, part in questions.items()
        }
        stores = {
            task: self._store(
                part,
                [
                    replace(example, target=option)
                    for example, n in zip(part.examples, counts[task], strict=True)
                    for option in range(n)
                ],
            )
            for task, part in questions.items()
        }
        sums, tokens = (
            {task: np.zeros(len(store), kind) for task, store in stores.items()} for kind in (float, int)
        )
        ends = {task: np.cumsum(own) for task, own in counts.items()}
        for documents, pieces in self._option_batches(stores, counts):
            for piece in pieces:
                found = [own.cpu().numpy() for own in self.model.option_scores(piece.to(self.device))]
                for part in piece.slices:
                    sums[part.task][part.rows], tokens[part.task][part.rows] = (
                        own[part.start : part.stop] for own in found
                    )
            answered = []
            for task, row in documents:
                own = slice(ends[task][row] - counts[task][row], ends[task][row])
                answered.append((task, row, _chosen(questions[task], sums[task][own], tokens[task][own])))
            yield answered

    def _option_batches(
        self, stores: Mapping[int, TokenStore], counts: Mapping[int, Sequence[int]]
    ) -> Iterator[tuple[list[tuple[int, int]], list[Packed | Batch]]]:
        if not stores:
            return iter(())
        if self._longest is None:
            self._longest = longest(self.model, min(stores))
        on_cpu = torch.device(self.device).type == "cpu"
        whole = option_batches(
            stores,
            counts,
            max_tokens=min(self.max_tokens, CPU_TOKENS) if on_cpu else self.max_tokens,
            pad_id=self.encoder.pad_id,
            form=self.encoder.form,
            longest=self._longest,
        )
        return ranks.share(whole) if self._shared else whole

    def _of_targets(self, questions: Mapping[int, Questions]) -> Iterator[list[Answered]]:
        """The log-likelihood of each target below its prompt, in nats, and its tokens, words and bytes."""
        stores = {task: self._store(part, part.examples) for task, part in questions.items()}
        texts = {task: [write(part.spec, one) for one in part.examples] for task, part in questions.items()}
        if questions:
            options = {"max_tokens": self.max_tokens, "pad_id": self.encoder.pad_id, "device": self.device}
            yield from self._likelihoods(likelihood.of_targets(self.model, stores, texts, **options))

    def _of_texts(self, questions: Mapping[int, Questions]) -> Iterator[list[Answered]]:
        """The same of each whole text, however long."""
        texts = {task: [one.inputs["text"] for one in part.examples] for task, part in questions.items()}
        if questions:
            options = {"max_tokens": self.max_tokens, "device": self.device}
            yield from self._likelihoods(likelihood.of_texts(self.model, self.encoder, texts, **options))

    def _likelihoods(self, whole: Iterator[list[likelihood.Scored]]) -> Iterator[list[Answered]]:
        for scored in ranks.share(whole) if self._shared else whole:
            yield [(task, row, {"value": asdict(found)}) for task, row, found in scored]

    def _by_generation(self, questions: Mapping[int, Questions]) -> Iterator[list[Answered]]:
        """Tasks whose answers are to be written in the same way share batches."""
        ways = {task: self._way(part) for task, part in questions.items()}
        for how in dict.fromkeys(ways.values()):
            yield from self._written({task: questions[task] for task, way in ways.items() if way == how}, how)

    def _way(self, part: Questions) -> Generation:
        return Generation(**{"max_new_tokens": self.max_new_tokens, **part.generation})

    def _written(self, questions: Mapping[int, Questions], how: Generation) -> Iterator[list[Answered]]:
        encoder = self._leaving(how.max_new_tokens)
        stores = {
            task: self._store(part, [replace(one, target=None) for one in part.examples], encoder)
            for task, part in questions.items()
        }
        for batch in self._batches(stores, generate=True):
            keys = [
                document(questions[part.task].examples[row])
                for part in batch.slices
                for row in part.rows.tolist()
            ]
            texts = self.model.generate(batch, how, keys=keys)
            answered = []
            for part in batch.slices:
                asked = questions[part.task]
                for row, text in zip(part.rows.tolist(), texts[part.start : part.stop], strict=True):
                    value = parse(asked.spec, asked.examples[row], text)
                    answered.append((part.task, row, {"value": value, "text": text}))
            yield answered

    def _leaving(self, new: int) -> Encoder:
        """The encoder whose prompts leave room for so many new tokens behind them, in a decoder."""
        own = self.encoder
        if own.form != "decoder" or new == own.max_target_length:
            return own
        if own.max_length < SHORTEST + new:
            raise MtnlpError(
                f"{self.model.backbone.described} reads {own.max_length} tokens, the new ones among them: "
                f"max_new_tokens={new} leaves too little room for a prompt. Ask for at most "
                f"{max(0, own.max_length - SHORTEST)}."
            )
        return Encoder(own.tokenizer, own.form, own.max_length, max(new, 2))

    def _batches(self, stores: Mapping[int, TokenStore], *, generate: bool = False) -> Iterator[Batch]:
        rows = {task: np.arange(len(store)) for task, store in stores.items()}
        flat = generate and self._encodes_flat()
        whole = eval_batches(
            stores,
            rows,
            max_tokens=max(self.max_tokens, STREAM_TOKENS) if flat else self.max_tokens,
            pad_id=self.encoder.pad_id,
            form=self.encoder.form,
            generate=generate,
            flat=flat,
        )
        for batch in ranks.share(whole) if self._shared else whole:
            yield batch.to(self.device)

    def _encodes_flat(self) -> bool:
        """Whether prompts are encoded as streams: then a batch may mix lengths, so that fewer loops write the
        answers. Heads alone gain nothing from it: sorted batches are 95 % useful (benchmarks/encode_eval.py).
        """
        on_cpu = torch.device(self.device).type == "cpu"
        return on_cpu and self.encoder.form == "encoder-decoder" and self.model.backbone.runs_flat

    def _store(
        self, part: Questions, examples: Sequence[Example], encoder: Encoder | None = None
    ) -> TokenStore:
        drawn = [part.drawn[document(example)] for example in examples] if part.drawn else None
        columns = (encoder or self.encoder).encode(
            part.spec, list(examples), template=part.template, shots=part.shots, drawn=drawn
        )
        self._cut[part.spec.name] = {examples[i].index for i in columns.cut}
        return TokenStore.from_columns(columns)


def _options(part: Questions, example: Example) -> int:
    return len(render(part.spec, replace(example, target=None), template=part.template).options)


def _chosen(part: Questions, sums: np.ndarray, tokens: np.ndarray) -> dict[str, Any]:
    """The likeliest option: per token where the options are free text, so that length does not decide."""
    scores = sums / np.maximum(tokens, 1) if part.spec.kind == "choose" else sums
    found = {"scores": scores, "logprobs": sums, "tokens": tokens}
    return {"value": int(scores.argmax()), **{name: own.tolist() for name, own in found.items()}}
