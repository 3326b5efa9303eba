"""Bottleneck adapters, one set per task, on a frozen backbone: small networks after its sub-layers.

    h + U act(D h + c) + u        D (B, D) down, U (B, D) up; the up side starts at zero, so an exact identity

Source: Houlsby et al. 2019, arXiv:1902.00751 (after attention and after the feed-forward part); Pfeiffer et
al. 2020, arXiv:2005.00247 (after the feed-forward part only).
Deviations: both placements read the sub-layer's output before its residual is added, in post- and pre-norm
networks alike (Pfeiffer et al. read the normalised sum, which pre-norm networks do not have); normalisation
stays frozen.
Shapes: S sequences, L tokens, D width, B bottleneck, U live tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtnlp import strategies
from mtnlp.errors import shown
from mtnlp.strategies._bank import Bank
from mtnlp.strategies._lora import BankLayer, block_linears, draw_down, features, replace, zeros
from mtnlp.strategies._sublayers import ATTENTION_OUT, FEED_FORWARD_OUT, matching, unknown
from mtnlp.strategies.base import Routing, Strategy, compute_dtype, freeze, require

if TYPE_CHECKING:
    from mtnlp.models.backbone import Backbone

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}
PLACEMENTS = {"houlsby": f"({ATTENTION_OUT}|{FEED_FORWARD_OUT})", "pfeiffer": FEED_FORWARD_OUT}


@strategies.register("adapters")
class Adapters(Strategy):
    """Train bottleneck adapters per task.

    Args:
        reduction: the bottleneck is width / reduction wide (at least 1).
        placement: "houlsby" = after attention and feed-forward, "pfeiffer" = after feed-forward only.
        activation: relu, gelu or silu.
    """

    def __init__(
        self,
        *,
        reduction: int = 16,
        placement: Literal["houlsby", "pfeiffer"] = "houlsby",
        activation: Literal["relu", "gelu", "silu"] = "relu",
    ) -> None:
        super().__init__()
        require(reduction >= 1, f"adapters: reduction={reduction} must be at least 1.")
        require(
            placement in PLACEMENTS,
            f"adapters: placement={shown(placement)} must be one of {', '.join(PLACEMENTS)}.",
        )
        require(
            activation in ACTIVATIONS,
            f"adapters: activation={shown(activation)} must be one of {', '.join(ACTIVATIONS)}.",
        )
        self.reduction, self.placement, self.activation = reduction, placement, activation

    def attach(self, backbone: Backbone, tasks: Sequence[str], seed: int) -> None:
        pattern = PLACEMENTS[self.placement]
        found = matching(block_linears(backbone), pattern)
        if not found:
            raise unknown(
                backbone,
                "adapters",
                "output of a sub-layer",
                pattern,
                "Use lora-per-task, which adapts any linear layer.",
            )
        freeze(backbone)
        self.bank = Bank()
        for name, base in found.items():
            layer = Bottleneck(name, base, self.routing, self.bank, self.reduction, self.activation)
            replace(backbone.net, name, layer)
        self.bank.build(tasks, seed)


class Bottleneck(BankLayer):
    """The output projection of a sub-layer, followed by the adapter of each sequence's task."""

    def __init__(
        self, name: str, base: nn.Module, routing: Routing, bank: Bank, reduction: int, activation: str
    ) -> None:
        super().__init__(base, routing, bank)
        _, width = features(base)
        inner = max(1, width // reduction)
        self.activation = ACTIVATIONS[activation]
        self.indices = (
            bank.add(f"{name}.down", (inner, width), draw_down),
            bank.add(f"{name}.down_bias", (inner,), zeros),
            bank.add(f"{name}.up", (inner, width), zeros),
            bank.add(f"{name}.up_bias", (width,), zeros),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        down, down_bias, up, up_bias = self.pieces(*self.indices, dtype=compute_dtype(y))

        def adapted(rows: Tensor | None, y: Tensor) -> Tensor:
            own = (down, down_bias, up, up_bias)
            d, c, u, b = own if rows is None else (piece.index_select(0, rows) for piece in own)
            inner = self.activation(torch.baddbmm(c.unsqueeze(1), y, d.transpose(1, 2)))
            return torch.baddbmm(y + b.unsqueeze(1), inner, u)

        return self.by_part(adapted, y)
