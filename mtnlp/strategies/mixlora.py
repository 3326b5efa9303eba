"""MixLoRA: frozen feed-forward parts become sparse mixtures of experts that differ by their LoRA.

Every expert is the frozen part plus a LoRA of its own; a router sends each token to its top-k experts.
Attention carries one LoRA shared by all tasks.

    p = softmax(G x)      out = sum over the top k of  p_e / sum(p) * FFN_e(x)
    aux = coefficient * K * sum_e f_e P_e     f_e: slots per token, P_e: mean probability

The aux loss is the mean over blocks, and `top_k` (2.0 by default) times the coefficient when the load is
balanced. It is computed per micro-batch, which makes it the one loss that depends on how a step is cut.

Source: Li et al. 2024, "MixLoRA", arXiv:2404.15159. Two rearrangements, neither of which changes the result:
all experts' factors stand side by side and a mask picks (no loop, no empty expert), and the frozen
down-projection runs once on the mixed activations, because it is linear.
Shapes: tokens (...) of any number of dimensions, D width, I and O inputs and outputs of one layer, K experts,
k slots of a token, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtnlp import strategies
from mtnlp.data.stream import Block
from mtnlp.strategies._bank import generator_for
from mtnlp.strategies._checks import check_rank
from mtnlp.strategies._lora import (
    Replacement,
    SharedLora,
    check_lora,
    draw_down,
    features,
    per_block,
    replace,
)
from mtnlp.strategies._sublayers import FEED_FORWARD_IN, FEED_FORWARD_OUT, matching, unknown
from mtnlp.strategies.base import Routing, Strategy, compute_dtype, freeze, require

if TYPE_CHECKING:
    from mtnlp.models.backbone import Backbone


@strategies.register("mixlora")
class MixLora(Strategy):
    """Train routed LoRA experts in the feed-forward parts and a shared LoRA in attention.

    Args:
        experts: K; top_k: experts per token; rank, alpha, dropout: of every LoRA.
        coefficient: weight of the load-balance loss.
    """

    def __init__(
        self,
        *,
        experts: int = 8,
        top_k: int = 2,
        rank: int = 8,
        alpha: float = 16,
        dropout: float = 0.05,
        coefficient: float = 0.01,
    ) -> None:
        super().__init__()
        check_lora("mixlora", rank, alpha, dropout)
        require(1 <= top_k <= experts, f"mixlora: top_k={top_k} must be between 1 and experts={experts}.")
        require(coefficient >= 0, f"mixlora: coefficient={coefficient} must not be negative.")
        self.experts, self.top_k, self.rank, self.alpha = experts, top_k, rank, alpha
        self.dropout, self.coefficient = dropout, coefficient
        self._routers: list[Router] = []

    def attach(self, backbone: Backbone, tasks: Sequence[str], seed: int) -> None:
        blocks = per_block(backbone)
        ways = {
            name: (matching(linears, FEED_FORWARD_IN), matching(linears, FEED_FORWARD_OUT))
            for name, linears in blocks.items()
        }
        if not ways or any(not ups or len(downs) != 1 for ups, downs in ways.values()):
            pattern = f"{FEED_FORWARD_IN}/ and exactly one /{FEED_FORWARD_OUT}"
            raise unknown(
                backbone, "mixlora", "dense feed-forward part", pattern, "Use lora or mtl-lora instead."
            )
        for linears in blocks.values():
            check_rank("mixlora", self.rank, linears)
        freeze(backbone)
        generator = generator_for(seed, "mixlora")
        lora = (self.rank, self.alpha / self.rank, self.dropout)
        for block, (ups, downs) in ways.items():
            targets = backbone.family == "encoder-decoder" and "decoder" in block.split(".")
            width, _ = features(next(iter(ups.values())))
            router = Router(width, self.experts, self.top_k, self.routing, targets, generator)
            self._routers.append(router)
            for name, base in blocks[block].items():
                made = (
                    ExpertsIn(base, router, *lora, generator)
                    if name in ups
                    else ExpertsOut(base, router, *lora, generator)
                    if name in downs
                    else SharedLora(base, self.routing, *lora, generator)
                )
                replace(backbone.net, name, made)

    def select(
        self,
        task_ids: Tensor,
        mask: Tensor,
        *,
        tasks: Sequence[int] | None = None,
        target_mask: Tensor | None = None,
        blocks: Sequence[Block] = (),
        on_host: Sequence[int] | None = None,
    ) -> None:
        super().select(task_ids, mask, tasks=tasks, target_mask=target_mask, blocks=blocks, on_host=on_host)
        for router in self._routers:
            router.balance = None

    def aux_loss(self) -> Tensor | None:
        found = [router.balance for router in self._routers if router.balance is not None]
        return self.coefficient * torch.stack(found).mean() if found else None


class Router(nn.Module):
    """Chooses the experts of every token of one block.

    The first layer of the feed-forward part asks it with the input; the others take what it said.

    Attributes:
        weight: (K, D), no bias. picked: (k, ..., K) one-hot; share: (k, ..., 1), sums to one over k.
        balance: () K sum_e f_e P_e of the last forward with gradients, None without.
    """

    def __init__(
        self,
        width: int,
        experts: int,
        top_k: int,
        routing: Routing,
        targets: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.top_k, self.routing, self.targets = top_k, routing, targets
        self.weight = nn.Parameter(torch.empty(experts, width).normal_(std=0.02, generator=generator))
        self.picked = self.share = self.balance = self._asked = None

    def ask(self, x: Tensor) -> Tensor:
        """picked (k, ..., K) for the tokens x (..., D)."""
        if self._asked is not x:  # a gated feed-forward part asks twice with the same tensor
            self._asked = x
            with torch.autocast(x.device.type, enabled=False):
                chances = F.linear(x.float(), self.weight.float()).softmax(-1)
            best, experts = chances.topk(self.top_k, dim=-1)
            self.share = (best / best.sum(-1, keepdim=True)).movedim(-1, 0).unsqueeze(-1)
            self.picked = F.one_hot(experts, chances.shape[-1]).movedim(-2, 0).to(chances.dtype)
            self.balance = self._balance(chances) if self.training and torch.is_grad_enabled() else None
        return self.picked

    def done(self) -> tuple[Tensor, Tensor]:
        """(picked, share) of the tokens asked for; forgets them."""
        picked, share = self.picked, self.share
        self._asked = self.picked = self.share = None
        return picked, share

    def _balance(self, chances: Tensor) -> Tensor:
        experts = chances.shape[-1]
        mask = self.routing.target_mask if self.targets else self.routing.mask
        real = mask.reshape(-1, 1).to(chances.dtype)
        load = (self.picked.sum(0).reshape(-1, experts) * real).sum(0) / real.sum()
        chance = (chances.reshape(-1, experts) * real).sum(0) / real.sum()
        return experts * (load * chance).sum()


class Experts(Replacement):
    """A linear layer with K LoRAs side by side: down (K, R, I), up (K, R, O)."""

    def __init__(
        self,
        base: nn.Module,
        router: Router,
        rank: int,
        scale: float,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__(base, router.routing)
        inputs, outputs = features(base)
        experts = len(router.weight)
        self.rank, self.scale = rank, scale
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Parameter(torch.empty(experts, rank, inputs))
        self.up = nn.Parameter(torch.zeros(experts, rank, outputs))
        draw_down(self.down.data, generator)

    def low(self, x: Tensor) -> Tensor:
        """(..., K R) codes of all experts."""
        return F.linear(self.dropout(x), self.down.to(x.dtype).flatten(0, 1))

    def high(self, low: Tensor) -> Tensor:
        """(..., K R) codes -> (..., O) scaled updates."""
        return self.scale * (low @ self.up.to(low.dtype).flatten(0, 1))

    def of_ranks(self, per_expert: Tensor, dtype: torch.dtype) -> Tensor:
        """(..., K) -> (..., K R), each value for all ranks of its expert."""
        return per_expert.to(dtype).repeat_interleave(self.rank, dim=-1)


class ExpertsIn(Experts):
    """A first layer of the feed-forward part: (..., D) -> (k, ..., O), one activation per slot.

    What the backbone computes from here to the last layer is elementwise, so the extra dimension passes
    through."""

    def __init__(self, base: nn.Module, router: Router, *options) -> None:
        super().__init__(base, router, *options)
        self.__dict__["router"] = router  # owned by ExpertsOut

    def forward(self, x: Tensor) -> Tensor:
        picked = self.router.ask(x)
        x = x.to(dtype := compute_dtype(x))
        return self.base(x) + self.high(self.low(x) * self.of_ranks(picked, dtype))


class ExpertsOut(Experts):
    """The last layer of the feed-forward part: (k, ..., I) -> (..., D), the slots mixed by their share."""

    def __init__(self, base: nn.Module, router: Router, *options) -> None:
        super().__init__(base, router, *options)
        self.router = router

    def forward(self, x: Tensor) -> Tensor:
        picked, share = self.router.done()
        x = x.to(dtype := compute_dtype(x))
        share = share.to(dtype)
        # As differences from the first slot: fresh experts agree, and then this is that slot, bit for bit.
        mixed = x[0] + (share[1:] * (x[1:] - x[0])).sum(0)
        low = (self.low(x) * self.of_ranks(picked, dtype) * share).sum(0)
        return self.base(mixed) + self.high(low)
