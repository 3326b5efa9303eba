"""One LoRA shared by all tasks on a frozen backbone.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mtnlp import strategies
from mtnlp.strategies._bank import generator_for
from mtnlp.strategies._checks import check_rank
from mtnlp.strategies._lora import PeftFormat, SharedLora, check_lora, find_targets, replace
from mtnlp.strategies._siblings import siblings
from mtnlp.strategies.base import Strategy, freeze

if TYPE_CHECKING:
    from mtnlp.models.backbone import Backbone


@strategies.register("lora")
class Lora(Strategy):
    """Train one low-rank update per linear layer.

    Args:
        rank: R; alpha: the update is scaled by alpha / rank; dropout: on the update's input.
        targets: "auto" = all linear layers inside the transformer blocks, or a regex on module names.
    """

    def __init__(
        self, *, rank: int = 8, alpha: float = 16, dropout: float = 0.0, targets: str = "auto"
    ) -> None:
        super().__init__()
        check_lora("lora", rank, alpha, dropout)
        self.rank, self.alpha, self.dropout, self.targets = rank, alpha, dropout, targets

    def attach(self, backbone: Backbone, tasks: Sequence[str], seed: int) -> None:
        found = find_targets(backbone, self.targets, "lora")
        check_rank("lora", self.rank, found)
        freeze(backbone)
        generator = generator_for(seed, "lora")
        self._peft = PeftFormat(backbone, found, self.rank, self.alpha, self.dropout)
        self._layers = {}
        groups = siblings(backbone, found, dropout=self.dropout)
        for name, base in found.items():
            layer = SharedLora(base, self.routing, self.rank, self.alpha / self.rank, self.dropout, generator)
            replace(backbone.net, name, layer)
            self._layers[name] = layer
        for first, *others in groups:
            self._layers[first].join([self._layers[name] for name in others])

    def export(self, task: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return self._peft({name: (layer.down, layer.up) for name, layer in self._layers.items()})
