"""One LoRA per task on a frozen backbone, trained together: rows of a bank, gathered for mixed-task batches.

Nothing is shared between tasks, so twelve tasks in one run learn what twelve runs would.
Source: Hu et al. 2021, arXiv:2106.09685; one update per task, gathered per example.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mtnlp import strategies
from mtnlp.strategies._bank import Bank
from mtnlp.strategies._lora import PeftFormat, TaskLora, check_lora, find_targets, replace
from mtnlp.strategies.base import Strategy, freeze

if TYPE_CHECKING:
    from mtnlp.models.backbone import Backbone


@strategies.register("lora-per-task")
class LoraPerTask(Strategy):
    """Train one low-rank update per linear layer and task.

    Args:
        rank: R; alpha: the update is scaled by alpha / rank; dropout: on the update's input.
        targets: "auto" = all linear layers inside the transformer blocks, or a regex on module names.
    """

    def __init__(
        self, *, rank: int = 8, alpha: float = 16, dropout: float = 0.0, targets: str = "auto"
    ) -> None:
        super().__init__()
        check_lora("lora-per-task", rank, alpha, dropout)
        self.rank, self.alpha, self.dropout, self.targets = rank, alpha, dropout, targets

    def attach(self, backbone: Backbone, tasks: Sequence[str], seed: int) -> None:
        found = find_targets(backbone, self.targets, "lora-per-task")
        freeze(backbone)
        self.bank = Bank()
        self._peft = PeftFormat(backbone, found, self.rank, self.alpha, self.dropout)
        self._tasks, self._names = list(tasks), list(found)
        for name, base in found.items():
            layer = TaskLora(
                name, base, self.routing, self.bank, self.rank, self.alpha / self.rank, self.dropout
            )
            replace(backbone.net, name, layer)
        self.bank.build(tasks, seed)

    def export(self, task: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        pieces = self.bank.named(self._tasks.index(task))
        return self._peft({name: (pieces[f"{name}.down"], pieces[f"{name}.up"]) for name in self._names})
