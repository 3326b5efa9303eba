"""The model that many tasks share: a backbone, the strategy that edits it, and one head per task.

Shapes: S sequences of a batch, L their length, N examples of a slice, U its tasks, P parameters of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mtnlp.data.batch import IGNORED, Batch
from mtnlp.data.packed import Packed
from mtnlp.errors import MtnlpError
from mtnlp.heads.base import Head, pooled
from mtnlp.kernels import grouped
from mtnlp.models import likelihood, options
from mtnlp.models.backbone import Backbone
from mtnlp.models.generation import Generation
from mtnlp.models.trunk import TrunkCache
from mtnlp.strategies.base import Strategy


@dataclass(frozen=True)
class Output:
    """What a forward gives.

    Args:
        tasks: (U,) task indices, in the order of the batch's slices.
        sums: (U,) float32, the summed example losses of each slice.
        aux: () loss of the strategy itself for this batch, or None.
    """

    tasks: tuple[int, ...]
    sums: Tensor
    aux: Tensor | None


class MultitaskModel(nn.Module):
    """Mixed batches in, one loss per task out.

    Args:
        backbone: already edited by `strategy.attach(backbone, tasks, seed)`.
        heads: task name -> head; empty for a backbone that writes text.
        tasks: (T,) names; a task index of a batch counts in them.

    Attributes:
        trunk: set it, and the states of the frozen lower blocks are kept while training; see there.
    """

    def __init__(
        self, backbone: Backbone, strategy: Strategy, heads: Mapping[str, Head], tasks: Sequence[str]
    ) -> None:
        super().__init__()
        self.backbone, self.strategy, self.tasks = backbone, strategy, tuple(tasks)
        self.heads = nn.ModuleDict({_key(name): head for name, head in heads.items()})
        self.trunk: TrunkCache | None = None

    def begin(self, live: Sequence[int]) -> None:
        """Start a step in which only the tasks `live` (indices) occur. Needed again after each update."""
        self.strategy.begin(live)

    def forward(self, batch: Batch) -> Output:
        """Losses of a micro-batch; its tasks must be live (`begin`)."""
        self._select(batch)
        with self.trunk.around(batch) if self.trunk else nullcontext():
            sums = self._head_sums(batch) if self.heads else self._text_sums(batch)
        return Output(tuple(part.task for part in batch.slices), torch.stack(sums), self.strategy.aux_loss())

    def train(self, mode: bool = True) -> MultitaskModel:
        """As of any module; but blocks whose states are kept must give the same ones every time."""
        super().train(mode)
        if self.trunk:
            self.trunk.still()
        return self

    def _text_sums(self, batch: Batch) -> list[Tensor]:
        losses_S = self.backbone.text_losses(batch)
        return [losses_S[part.start : part.stop].sum() for part in batch.slices]

    def _head_sums(self, batch: Batch) -> list[Tensor]:
        sizes = [part.stop - part.start for part in batch.slices]
        hidden_SLD, masks = self.backbone.hidden(batch), batch.attention_mask.split(sizes)
        states: dict[str | None, tuple[Tensor, ...]] = {}  # way of pooling, None = none -> by slice
        sums = []
        for i, part in enumerate(batch.slices):
            head = self.head(part.task)
            how = None if head.reads_tokens else head.pooling
            if how not in states:  # of all at once: single slices would make a whole gradient each
                found = hidden_SLD if how is None else pooled(hidden_SLD, batch.attention_mask, how)
                states[how] = found.split(sizes)
            sums.append(head.loss(states[how][i], masks[i], part).sum())
        return sums

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[list[dict[str, Any]]]:
        """For each slice, for each example, what the head predicts. In eval mode, or dropout will show."""
        self._select(batch)
        hidden_SLD, mask_SL = self.backbone.hidden(batch), batch.attention_mask
        return [
            self.head(part.task).predict(
                hidden_SLD[part.start : part.stop], mask_SL[part.start : part.stop], part
            )
            for part in batch.slices
        ]

    @torch.no_grad()
    def option_scores(self, batch: Batch | Packed) -> tuple[Tensor, Tensor]:
        """(S,) log-likelihood of each sequence's target and (S,) the number of its tokens; (O,) of each
        option where contexts are shared."""
        if isinstance(batch, Packed):
            self._select(batch.contexts)
            return options.scores(self.backbone, batch)
        self._select(batch)
        return self.backbone.option_scores(batch)

    @torch.no_grad()
    def next_logprobs(self, batch: Batch, labels_SL: Tensor) -> Tensor:
        """(S,) float64 log-likelihood of what follows the tokens of a decoder's batch: models.likelihood."""
        self._select(batch)
        return likelihood.next_logprobs(self.backbone, batch, labels_SL)

    @torch.no_grad()
    def generate(
        self,
        batch: Batch,
        how: Generation | None = None,
        *,
        keys: Sequence[str] = (),
        max_new_tokens: int = 64,
    ) -> list[str]:
        """S texts, as in Backbone.generate. A batch with a layout (of an encoder-decoder) is encoded so."""
        self._select(batch)
        encoded = None
        if batch.layout is not None:
            encoded = self.backbone.hidden(batch)
            batch = replace(batch, layout=None)
            self._select(batch)  # the texts are written row by row
        return self.backbone.generate(batch, how, keys=keys, encoded=encoded, max_new_tokens=max_new_tokens)

    def _select(self, batch: Batch) -> None:
        tasks = [part.task for part in batch.slices]
        if not self.strategy.holds(tasks):
            assert not torch.is_grad_enabled(), "call begin(live) at the start of every step"
            self.begin(tasks)
        targets = None
        if self.backbone.family == "encoder-decoder" and batch.labels is not None:
            targets = (batch.labels != IGNORED).long()
        layout, on_host = batch.layout, _tasks_on_host(batch)
        if layout is None:
            self.strategy.select(
                batch.task_ids, batch.attention_mask, tasks=tasks, target_mask=targets, on_host=on_host
            )
            return
        self.strategy.select(
            batch.task_ids[layout.order],
            layout.source.mask,
            tasks=tasks,
            target_mask=layout.target.mask if layout.target else None,
            blocks=layout.blocks,
            on_host=on_host,
        )

    def head(self, task: int) -> Head:
        """The head of a task, by index."""
        return self.heads[_key(self.tasks[task])]

    # What is trained.

    def shared_parameters(self) -> dict[str, nn.Parameter]:
        """Trained parameters that all tasks share, by name: those of the edited backbone."""
        return {name: p for name, p in self.backbone.named_parameters() if p.requires_grad}

    def head_parameters(self, task: int) -> dict[str, nn.Parameter]:
        """Trained parameters of one task's head, by name; empty for text. See also `strategy.bank`."""
        if not self.heads:
            return {}
        return {name: p for name, p in self.head(task).named_parameters() if p.requires_grad}

    @property
    def row_layout(self) -> str:
        """A hash of how the rows of `bank/<task>` are laid out; empty where there is no bank."""
        return "" if self.strategy.bank is None else self.strategy.bank.fingerprint

    def trainable_state(self) -> dict[str, Tensor]:
        """Everything training changes, by name: `shared/<parameter>`, `head/<task>/<parameter>`, and each
        task's row of the bank, `bank/<task>` (P,). Live tensors, not copies."""
        return {name: tensor.detach() for name, tensor in self._trained()}

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `trainable_state` gave.

        Raises:
            MtnlpError: names that are missing or unknown here, or another shape. Nothing is changed then.
        """
        own = self.trainable_state()
        missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        shapes = [
            f"{name} is {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
            for name in own.keys() & state.keys()
            if own[name].shape != state[name].shape
        ]
        problems = [
            *(f"no {name}" for name in missing),
            *(f"unknown {name}" for name in extra),
            *sorted(shapes),
        ]
        if problems:
            more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise MtnlpError(
                f"The saved weights do not fit this model: {', '.join(problems[:5])}{more}. They were "
                "saved with other tasks, another strategy or another backbone."
            )
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def _trained(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.shared_parameters().items():
            yield f"shared/{name}", parameter
        for index, task in enumerate(self.tasks):
            for name, parameter in self.head_parameters(index).items():
                yield f"head/{task}/{name}", parameter
        if self.strategy.bank is not None:
            for task, row in zip(self.tasks, self.strategy.bank.rows, strict=True):
                yield f"bank/{task}", row


def _tasks_on_host(batch: Batch) -> list[int] | None:
    """(S,) the tasks of the sequences as they lie, where grouped products may be used; else None.

    Of a flat batch on a device that takes a sync, which a padded one is spared."""
    if grouped.faster_from is None:
        return None
    tasks = [part.task for part in batch.slices for _ in range(part.stop - part.start)]
    return tasks if batch.layout is None else [tasks[place] for place in batch.layout.order.tolist()]


def _key(task: str) -> str:
    """A task name as a name of a submodule, which may hold no dot."""
    return task.replace("%", "%25").replace(".", "%2E")
