"""Answers of a plain transformers network with classification heads of its own, for sequences or tokens.

It is asked like `predict.Predictor`; a head is matched to a task by the names of the labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mtnlp.bench import ranks
from mtnlp.bench.labels import columns
from mtnlp.bench.predict import Answered
from mtnlp.bench.questions import Questions
from mtnlp.data.batch import Batch
from mtnlp.data.collate import eval_batches
from mtnlp.data.encode import Encoder, decode
from mtnlp.data.store import TokenStore
from mtnlp.tasks.spec import TaskSpec


class Classifier:
    """Runs a network over questions.

    Args:
        net: gives logits (S, C) or, for tokens, (S, L, C).
        encoder: of the form "encoder".
        configs: for every task index the config.json that describes its head.
        choose: is told of every batch before the network sees it; a batch is of one task index.
        max_tokens: padded tokens per batch.
    """

    def __init__(
        self,
        net: torch.nn.Module,
        encoder: Encoder,
        configs: Sequence[Mapping[str, Any]],
        *,
        choose: Callable[[Batch], None] = lambda batch: None,
        device: torch.device | str = "cpu",
        max_tokens: int = 4096,
    ) -> None:
        self.net, self.encoder, self.configs = net.to(device).eval(), encoder, configs
        self.choose = choose
        self.device, self.max_tokens = device, max_tokens

    def batches(
        self, questions: Mapping[int, Questions], *, shared: bool = False
    ) -> Iterator[list[Answered]]:
        """See Predictor.batches."""
        for task, part in questions.items():
            found = self.encoder.encode(part.spec, list(part.examples))
            store, chosen = TokenStore.from_columns(found), columns(self.configs[task], part.spec)
            whole = eval_batches(
                {task: store},
                {task: np.arange(len(store))},
                max_tokens=self.max_tokens,
                pad_id=self.encoder.pad_id,
                form="encoder",
            )
            for batch in ranks.share(whole) if shared else whole:
                rows = batch.slices[0].rows.tolist()
                answers = self._answers(part.spec, batch.to(self.device), chosen)
                yield [
                    (task, row, self._read(part, row, answer, store, row in found.cut))
                    for row, answer in zip(rows, answers, strict=True)
                ]

    @torch.inference_mode()
    def _answers(self, spec: TaskSpec, batch: Batch, chosen: Sequence[int]) -> list[dict[str, Any]]:
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if batch.token_type_ids is not None:
            inputs["token_type_ids"] = batch.token_type_ids
        self.choose(batch)
        logits = self.net(**inputs).logits.float()[..., list(chosen)]
        if spec.kind == "tag":
            return [{"value": tags} for tags in logits.argmax(-1).tolist()]
        if spec.kind == "regress":
            return [{"value": value} for value in logits[:, 0].tolist()]
        if spec.kind == "multilabel":
            return [
                {"value": tuple(np.flatnonzero(np.array(own) > 0.5).tolist()), "scores": own}
                for own in logits.sigmoid().tolist()
            ]
        return [{"value": int(np.argmax(own)), "scores": own} for own in logits.softmax(-1).tolist()]

    def _read(
        self, part: Questions, row: int, answer: dict[str, Any], store: TokenStore, cut: bool
    ) -> dict[str, Any]:
        value = decode(part.spec, part.examples[row], answer["value"], store, row)
        lost = {"cut": self.encoder.loses(part.spec.kind)} if cut else {}
        return {**answer, "value": value, **lost}
