"""One LoRA per task on a frozen backbone, trained together: rows of a bank, gathered for mixed-task batches.

Nothing is shared between tasks, so twelve tasks in one run learn what twelve runs would.
Source: Hu et al. 2021, arXiv:2106.09685; one update per task, gathered per example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtnlp import strategies
from mtnlp.errors import MtnlpError, did_you_mean, shown
from mtnlp.strategies._bank import Bank
from mtnlp.strategies._checks import check_own, check_rank
from mtnlp.strategies._lora import PeftFormat, TaskLora, check_lora, find_targets, replace
from mtnlp.strategies._siblings import siblings
from mtnlp.strategies.base import Strategy, freeze, require

if TYPE_CHECKING:
    from mtnlp.models.backbone import Backbone


@strategies.register("lora-per-task")
class LoraPerTask(Strategy):
    """Train one low-rank update per linear layer and task.

    Args:
        rank: R; alpha: the update is scaled by alpha / rank; dropout: on the update's input.
        targets: "auto" = all linear layers inside the transformer blocks, or a regex on module names.
        ranks, alphas: task name -> a rank or alpha of its own. Rows are as long as the largest rank needs.
    """

    def __init__(
        self,
        *,
        rank: int = 8,
        alpha: float = 16,
        dropout: float = 0.0,
        targets: str = "auto",
        ranks: Mapping[str, int] | None = None,
        alphas: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.rank, self.alpha, self.dropout, self.targets = rank, alpha, dropout, targets
        self.ranks, self.alphas = dict(ranks or {}), dict(alphas or {})
        for own_rank in (rank, *self.ranks.values()):
            for own_alpha in (alpha, *self.alphas.values()):
                check_lora("lora-per-task", own_rank, own_alpha, dropout)

    def attach(self, backbone: Backbone, tasks: Sequence[str], seed: int) -> None:
        for option, given in (("ranks", self.ranks), ("alphas", self.alphas)):
            for name in given.keys() - set(tasks):
                require(
                    False,
                    f"lora-per-task: {option} names {shown(name)}, which is no task of this recipe. "
                    f"{did_you_mean(name, tasks)}",
                )
        ranks = [self.ranks.get(task, self.rank) for task in tasks]
        alphas = [self.alphas.get(task, self.alpha) for task in tasks]
        scales = [alpha / rank for rank, alpha in zip(ranks, alphas, strict=True)]
        scale = scales[0] if len(set(scales)) == 1 else torch.tensor(scales)
        found = find_targets(backbone, self.targets, "lora-per-task")
        check_own("lora-per-task", backbone, found)
        check_rank("lora-per-task", max(ranks), found, key="ranks" if max(ranks) > self.rank else "rank")
        freeze(backbone)
        self.bank = Bank()
        self._own = dict(zip(tasks, zip(range(len(tasks)), ranks, alphas), strict=True))
        self._names = list(found)
        self._peft = PeftFormat(backbone, found, self.rank, self.alpha, self.dropout)
        for names in siblings(backbone, found, dropout=self.dropout):
            first, *others = (
                TaskLora(found[name], self.routing, self.bank, scale, self.dropout) for name in names
            )
            first.join(others)
            first.add_to(self.bank, names, max(ranks))
            for name, layer in zip(names, first.group, strict=True):
                replace(backbone.net, name, layer)
        self.bank.build(tasks, seed, ranks)

    def export(self, task: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        index, rank, alpha = self._own[task]
        pieces = self.bank.named(index)
        pairs = {name: (pieces[f"{name}.down"][:rank], pieces[f"{name}.up"][:rank]) for name in self._names}
        config, tensors = self._peft(pairs)
        return {**config, "r": rank, "lora_alpha": alpha}, tensors

    def adopt(self, task: str, tensors: Mapping[str, Tensor]) -> None:
        index, rank, _ = self._own[task]
        pieces = self.bank.named(index)
        for name, pair in self._peft.pairs(tensors).items():
            for part, value in zip(("down", "up"), pair, strict=True):
                own = pieces[f"{name}.{part}"][:rank]
                if own.shape != value.shape:
                    raise MtnlpError(f"{name}: {part} is {tuple(value.shape)}, expected {tuple(own.shape)}.")
                own.copy_(value)
