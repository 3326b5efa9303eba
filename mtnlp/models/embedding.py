"""Texts -> vectors, by a backbone of any family: the pooled states of its last layer.

An encoder gives its states, an encoder-decoder those of its encoder, a decoder those before its
language-modelling head; there only the last token has read the whole text (pooling "last").

Shapes: N texts, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mtnlp.data.batch import Batch
from mtnlp.data.collate import eval_batches
from mtnlp.data.encode import Encoder
from mtnlp.data.store import TokenStore
from mtnlp.errors import MtnlpError, did_you_mean, shown
from mtnlp.heads.base import pooled
from mtnlp.models.backbone import Backbone
from mtnlp.models.embedded import Embedded
from mtnlp.models.multitask import MultitaskModel
from mtnlp.tasks.spec import Example, TaskSpec

POOLINGS = ("mean", "first", "last")
MAX_TOKENS = 4096  # padded tokens of a batch
CHUNK = 20_000  # texts that are tokenised and sorted at a time: more of them would fill the memory as lists
_TEXTS = TaskSpec("texts", "classify", {})


@dataclass(frozen=True)
class Embedder:
    """How texts become vectors. A text's vector does not depend on the other texts, but for rounding.

    Args:
        model: in any state; it is put in eval mode while embedding and back afterwards.
        task: the task whose adapter is used; needed for a MultitaskModel of several tasks, none for others.
        pooling: "mean" of all tokens (special ones among them), the "first" or the "last" token.
        normalise: divide each vector by its length (a vector of zeros stays one).
        query, document: what is put before each text of either role, such as "query: " and "passage: "
            (Wang et al. 2022, E5, arXiv:2212.03533, section 4.3).
        max_length: most tokens of a text, special ones counted, the rest is cut off; None = all that the
            network takes.
        max_tokens: padded tokens per batch.

    Raises:
        MtnlpError: no tokenizer, an unknown pooling or task, or lengths that cannot be.
    """

    model: Backbone | MultitaskModel
    task: str | None = None
    pooling: str = "mean"
    normalise: bool = True
    query: str = ""
    document: str = ""
    max_length: int | None = None
    max_tokens: int = MAX_TOKENS

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise MtnlpError(
                f"No pooling is called {shown(self.pooling)}. {did_you_mean(str(self.pooling), POOLINGS)}"
            )
        if self.max_tokens < 1:
            raise MtnlpError(f"max_tokens={self.max_tokens} must be 1 or more.")
        most = self.backbone.max_length
        if self.max_length is not None and self.max_length > most:
            raise MtnlpError(
                f"max_length={self.max_length}: {self.backbone.described} takes {most} tokens at most. Use "
                "no more, or leave max_length out."
            )
        _ = self._encoder, self._index

    def queries(self, texts: Sequence[str]) -> Embedded:
        """Vectors of texts that search, or that are compared with each other."""
        return self._embed([self.query + text for text in texts])

    def documents(self, texts: Sequence[str]) -> Embedded:
        """Vectors of texts that are searched."""
        return self._embed([self.document + text for text in texts])

    def batches(
        self, texts: Sequence[str], share: Callable[[Iterable[Batch]], Iterable[Batch]] = iter
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Texts as they are, batch by batch, the longest of each chunk first: (n,) indices, (n, D) float32
        vectors and (n,) bool, whether a text lost tokens.

        Args:
            share: chooses among the batches before they are run.
        """
        encoder, was_training = self._encoder, self.model.training
        self.model.eval()
        try:
            if isinstance(self.model, MultitaskModel):
                with torch.inference_mode():
                    self.model.begin([self._index])
            for start in range(0, len(texts), CHUNK):
                for rows, vectors, cut in self._chunk(texts[start : start + CHUNK], encoder, share):
                    yield start + rows, vectors, cut
        finally:
            self.model.train(was_training)

    @property
    def backbone(self) -> Backbone:
        return self.model if isinstance(self.model, Backbone) else self.model.backbone

    @property
    def _encoder(self) -> Encoder:
        """For every family the form of an encoder: a text in the tokenizer's own special tokens."""
        if self.backbone.tokenizer is None:
            raise MtnlpError(f"{self.backbone.described} has no tokenizer; texts cannot be read without one.")
        return Encoder(self.backbone.tokenizer, "encoder", self.max_length or self.backbone.max_length)

    @property
    def _index(self) -> int:
        """Of the task."""
        tasks = () if isinstance(self.model, Backbone) else self.model.tasks
        if self.task is None and len(tasks) <= 1:
            return 0
        if not tasks:
            raise MtnlpError(f"task={self.task!r}: a backbone by itself has no tasks. Leave task out.")
        if self.task is None:
            raise MtnlpError(f"Say with whose adapter texts are embedded: task={'|'.join(tasks)}.")
        if self.task not in tasks:
            raise MtnlpError(
                f"The model knows no task {shown(self.task)}. {did_you_mean(str(self.task), tasks)}"
            )
        return tasks.index(self.task)

    def _embed(self, texts: Sequence[str]) -> Embedded:
        vectors, cut = np.empty((len(texts), self.backbone.width), np.float32), np.zeros(len(texts), bool)
        for rows, found, lost in self.batches(texts):
            vectors[rows], cut[rows] = found, lost
        return Embedded(vectors, tuple(np.flatnonzero(cut).tolist()))

    def _chunk(
        self, texts: Sequence[str], encoder: Encoder, share: Callable[[Iterable[Batch]], Iterable[Batch]]
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        examples = [Example(_TEXTS.name, i, {"text": text}, None) for i, text in enumerate(texts)]
        columns = encoder.encode(_TEXTS, examples)
        cut = np.zeros(len(texts), bool)
        cut[list(columns.cut)] = True
        batches = eval_batches(
            {self._index: TokenStore.from_columns(columns)},
            {self._index: np.arange(len(texts))},
            max_tokens=self.max_tokens,
            pad_id=encoder.pad_id,
            form="encoder",
        )
        for batch in share(batches):
            rows = batch.slices[0].rows
            yield rows, self._vectors(batch), cut[rows]

    @torch.inference_mode()
    def _vectors(self, batch: Batch) -> np.ndarray:
        """(S, D) of a batch."""
        batch = batch.to(next(self.model.parameters()).device)
        found = pooled(self._hidden(batch), batch.attention_mask, self.pooling)
        if self.normalise:
            found = torch.nn.functional.normalize(found, dim=1)
        return found.cpu().numpy()

    def _hidden(self, batch: Batch) -> Tensor:
        if isinstance(self.model, MultitaskModel):
            self.model.strategy.select(batch.task_ids, batch.attention_mask, tasks=[self._index])
        return self.backbone.hidden(batch)


def embed(
    model: Backbone | MultitaskModel,
    texts: Sequence[str],
    *,
    task: str | None = None,
    pooling: str = "mean",
    normalise: bool = True,
    max_length: int | None = None,
    max_tokens: int = MAX_TOKENS,
) -> np.ndarray:
    """(N, D) float32 vectors of texts, in their order; see Embedder, which also says which were cut."""
    embedder = Embedder(
        model,
        task=task,
        pooling=pooling,
        normalise=normalise,
        max_length=max_length,
        max_tokens=max_tokens,
    )
    return embedder.queries(texts).vectors


def similarity(embedder: Embedder, pairs: Sequence[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) float64 cosine of the two texts of each pair, -1..1, and (N,) bool, whether one of them was cut.

    Both are embedded as queries. A cosine is 0 where a vector is all zeros; NaN where one is not finite.
    """
    places = {text: i for i, text in enumerate(dict.fromkeys(text for pair in pairs for text in pair))}
    embedded = embedder.queries(list(places))
    vectors = embedded.vectors.astype(np.float64)
    one, two = (np.array([places[pair[side]] for pair in pairs], np.int64) for side in (0, 1))
    a, b = vectors[one], vectors[two]
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(1) / np.where(lengths == 0, 1, lengths)
    return np.clip(cosines, -1, 1), np.isin(one, embedded.cut) | np.isin(two, embedded.cut)
