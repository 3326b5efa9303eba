"""Predictions of a multi-task model for rows of several tasks, in the canonical values that metrics read.

Three ways, by the family of the backbone and the kind of the task:
    encoder                          the task's head on hidden states
    text, task with options          log-likelihood of every option, per token where the options are free text
    text, any other task             greedy generation, parsed by tasks.templates.parse
Batches mix tasks and are sorted by length; values come back in the order of the examples asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mtnlp.bench.questions import Questions
from mtnlp.data.batch import Batch
from mtnlp.data.collate import eval_batches
from mtnlp.data.encode import Encoder, decode
from mtnlp.data.store import TokenStore
from mtnlp.models.multitask import MultitaskModel
from mtnlp.tasks.answers import CLOSED
from mtnlp.tasks.spec import Example
from mtnlp.tasks.templates import parse, render


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

    def __call__(self, questions: Mapping[int, Questions]) -> dict[int, list[dict[str, Any]]]:
        """Task index -> one dict per example, in order: its "value", and "scores" where there are some."""
        asked = {task: part for task, part in questions.items() if part.examples}
        found: dict[int, list] = {task: [None] * len(part.examples) for task, part in questions.items()}
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode(), self.autocast():
                if not asked:
                    return found
                self.model.begin(sorted(asked))
                if self.encoder.form == "encoder":
                    self._by_heads(asked, found)
                else:
                    self._by_options({t: q for t, q in asked.items() if q.spec.kind in CLOSED}, found)
                    self._by_generation({t: q for t, q in asked.items() if q.spec.kind not in CLOSED}, found)
        finally:
            self.model.train(was_training)
        return found

    def _by_heads(self, questions: Mapping[int, Questions], found: dict[int, list]) -> None:
        stores = {task: self._store(part, part.examples) for task, part in questions.items()}
        for batch in self._batches(stores):
            for part, results in zip(batch.slices, self.model.predict(batch), strict=True):
                asked = questions[part.task]
                for row, raw in zip(part.rows.tolist(), results, strict=True):
                    value = decode(asked.spec, asked.examples[row], raw["value"], stores[part.task], row)
                    found[part.task][row] = {**raw, "value": value}

    def _by_options(self, questions: Mapping[int, Questions], found: dict[int, list]) -> None:
        """Every option of every example is one row with that option as its target."""
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
        scores = {task: np.zeros(len(store)) for task, store in stores.items()}
        for batch in self._batches(stores):
            sums, lengths = self.model.option_scores(batch)
            for part in batch.slices:
                here = slice(part.start, part.stop)
                free = questions[part.task].spec.kind == "choose"
                scores[part.task][part.rows] = (
                    (sums[here] / lengths[here] if free else sums[here]).cpu().numpy()
                )
        for task in questions:
            ends = np.cumsum(counts[task])
            for row, own in enumerate(np.split(scores[task], ends[:-1])):
                found[task][row] = {"value": int(own.argmax()), "scores": own.tolist()}

    def _by_generation(self, questions: Mapping[int, Questions], found: dict[int, list]) -> None:
        stores = {task: self._store(part, part.examples) for task, part in questions.items()}
        for batch in self._batches(stores, generate=True):
            texts = self.model.generate(batch, max_new_tokens=self.max_new_tokens)
            for part in batch.slices:
                asked = questions[part.task]
                for row, text in zip(part.rows.tolist(), texts[part.start : part.stop], strict=True):
                    found[part.task][row] = {
                        "value": parse(asked.spec, asked.examples[row], text),
                        "text": text,
                    }

    def _batches(self, stores: Mapping[int, TokenStore], *, generate: bool = False) -> Iterator[Batch]:
        rows = {task: np.arange(len(store)) for task, store in stores.items()}
        for batch in eval_batches(
            stores,
            rows,
            max_tokens=self.max_tokens,
            pad_id=self.encoder.pad_id,
            form=self.encoder.form,
            generate=generate,
        ):
            yield batch.to(self.device)

    def _store(self, part: Questions, examples: Sequence[Example]) -> TokenStore:
        columns = self.encoder.encode(part.spec, list(examples), template=part.template, shots=part.shots)
        return TokenStore.from_columns(columns)


def _options(part: Questions, example: Example) -> int:
    return len(render(part.spec, replace(example, target=None), template=part.template).options)
