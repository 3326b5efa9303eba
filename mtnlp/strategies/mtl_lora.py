"""MTL-LoRA: all tasks share one way down and K ways up; each owns a low-rank transform and a mix of the ups.

    y = W x + (alpha / R) sum_k softmax(w_t / temperature)_k  B_k  Lambda_t  A x

Source: Yang et al. 2024, "MTL-LoRA: Low-Rank Adaptation for Multi-Task Learning", arXiv:2410.09437.
The mix starts at random, as in the paper, and must: with every B_k zero and equal weights, all B_k would
receive the same gradient for ever and stay one and the same.
Shapes: R rank, K ups, I inputs, O outputs, U live tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtnlp import strategies
from mtnlp.strategies._bank import Bank, generator_for
from mtnlp.strategies._checks import check_own, check_rank
from mtnlp.strategies._lora import (
    BankLayer,
    add_up,
    check_lora,
    draw_down,
    features,
    find_targets,
    replace,
)
from mtnlp.strategies.base import Strategy, compute_dtype, freeze, require

if TYPE_CHECKING:
    from mtnlp.models.backbone import Backbone


@strategies.register("mtl-lora")
class MtlLora(Strategy):
    """Train shared low-rank factors with a transform and a mix per task.

    Args:
        rank, alpha, dropout, targets: as for `lora`.
        ups: K; temperature: of the softmax over them; low = each task takes nearly one.
    """

    def __init__(
        self,
        *,
        rank: int = 8,
        alpha: float = 16,
        dropout: float = 0.05,
        targets: str = "auto",
        ups: int = 3,
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        check_lora("mtl-lora", rank, alpha, dropout)
        require(ups >= 1, f"mtl-lora: ups={ups} must be at least 1.")
        require(temperature > 0, f"mtl-lora: temperature={temperature} must be above 0.")
        self.rank, self.alpha, self.dropout, self.targets = rank, alpha, dropout, targets
        self.ups, self.temperature = ups, temperature

    def attach(self, backbone: Backbone, tasks: Sequence[str], seed: int) -> None:
        found = find_targets(backbone, self.targets, "mtl-lora")
        check_own("mtl-lora", backbone, found)
        check_rank("mtl-lora", self.rank, found)
        freeze(backbone)
        self.bank = Bank()
        generator = generator_for(seed, "mtl-lora")
        for name, base in found.items():
            replace(backbone.net, name, MtlLinear(name, base, self, generator))
        self.bank.build(tasks, seed)


class MtlLinear(BankLayer):
    """A linear layer with one MTL-LoRA update."""

    def __init__(self, name: str, base: nn.Module, of: MtlLora, generator: torch.Generator) -> None:
        super().__init__(base, of.routing, of.bank)
        inputs, outputs = features(base)
        self.scale, self.temperature = of.alpha / of.rank, of.temperature
        self.dropout = nn.Dropout(of.dropout)
        self.down = nn.Parameter(torch.empty(of.rank, inputs))
        self.up = nn.Parameter(torch.zeros(of.ups, of.rank, outputs))
        draw_down(self.down.data, generator)
        self.transform = of.bank.add(f"{name}.transform", (of.rank, of.rank), _identity)
        self.mix = of.bank.add(f"{name}.mix", (of.ups,), draw_down)  # U(+-1/sqrt(K))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(dtype := compute_dtype(x))
        low = F.linear(self.dropout(x), self.down.to(dtype))
        ups = self._ups().to(dtype)
        return self.by_part(lambda rows, y, low: add_up(y, low, ups, rows, self.scale), self.base(x), low)

    def _ups(self) -> Tensor:
        """(U, R, O) the task's whole way up, B_mixed Lambda, in float32 (R and K are small)."""
        with torch.autocast(self.down.device.type, enabled=False):
            transform_URR, mix_UK = self.pieces(self.transform, self.mix, dtype=self.up.dtype)
            mix_UK = (mix_UK / self.temperature).softmax(-1)
            mixed_URO = torch.einsum("uk,kro->uro", mix_UK, self.up)
            return transform_URR.transpose(1, 2) @ mixed_URO


def _identity(tensor: Tensor, generator: torch.Generator) -> None:
    nn.init.eye_(tensor)
