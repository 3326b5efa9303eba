"""Low-rank updates of linear layers: finding the layers, the update, and the layer that takes their place.

    y = x W^T + b + (alpha / R) * dropout(x) A^T B      A (R, I) random, B (R, O) zero: an exact identity

Source: Hu et al. 2021, arXiv:2106.09685. B is kept as (R, O), the transpose of the paper's and of peft's, so
that a gathered batch of it goes into bmm as it lies.
Shapes: S sequences, L tokens of each, I inputs, O outputs, R rank, U live tasks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mtnlp.errors import MtnlpError, shown
from mtnlp.strategies._bank import Bank
from mtnlp.strategies.base import Routing, compute_dtype, require

if TYPE_CHECKING:
    from mtnlp.models.backbone import Backbone

LINEAR = (nn.Linear, Conv1D)


class Replacement(nn.Module):
    """Takes the place of a linear layer, which stays inside as `base`. Reads as that layer from outside."""

    def __init__(self, base: nn.Module, routing: Routing) -> None:
        super().__init__()
        self.base = base
        self.routing = routing

    @property
    def weight(self) -> Tensor:
        return self.base.weight  # T5 looks at its dtype

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias


class BankLayer(Replacement):
    """A replacement whose parameters are pieces of the bank."""

    def __init__(self, base: nn.Module, routing: Routing, bank: Bank) -> None:
        super().__init__(base, routing)
        self.__dict__["bank"] = bank  # not a submodule: the strategy owns it, once

    def pieces(self, *indices: int, dtype: torch.dtype) -> list[Tensor]:
        """The live rows' pieces, (U, ...) each; (1, ...) when all sequences are of one task."""
        only, found = self.routing.only, [self.bank.piece(index, dtype) for index in indices]
        return (
            found if only is None or len(self.bank.live) == 1 else [piece[only : only + 1] for piece in found]
        )

    def rows(self, x: Tensor) -> Tensor | None:
        """The row of each sequence of x; None = all take the first (and only) one of `pieces`."""
        return None if self.routing.only is not None else self.routing.rows_for(len(x))


class SharedLora(Replacement):
    """One update for all tasks: `down` (R, I), `up` (R, O)."""

    def __init__(
        self,
        base: nn.Module,
        routing: Routing,
        rank: int,
        scale: float,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__(base, routing)
        inputs, outputs = features(base)
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Parameter(torch.empty(rank, inputs))
        self.up = nn.Parameter(torch.zeros(rank, outputs))
        draw_down(self.down.data, generator)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(dtype := compute_dtype(x))
        return add_low_rank(
            self.base(x),
            self.dropout(x),
            self.down.to(dtype)[None],
            self.up.to(dtype)[None],
            None,
            self.scale,
        )


class TaskLora(BankLayer):
    """One update per task: two pieces of the bank, named like the layer."""

    def __init__(
        self,
        name: str,
        base: nn.Module,
        routing: Routing,
        bank: Bank,
        rank: int,
        scale: float,
        dropout: float,
    ) -> None:
        super().__init__(base, routing, bank)
        inputs, outputs = features(base)
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        self.down = bank.add(f"{name}.down", (rank, inputs), draw_down)
        self.up = bank.add(f"{name}.up", (rank, outputs), zeros)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(dtype := compute_dtype(x))
        down, up = self.pieces(self.down, self.up, dtype=dtype)
        return add_low_rank(self.base(x), self.dropout(x), down, up, self.rows(x), self.scale)


def add_low_rank(y: Tensor, x: Tensor, down: Tensor, up: Tensor, rows: Tensor | None, scale: float) -> Tensor:
    """y + scale * (x down[t]^T) up[t], with the row t of each sequence.

    Args:
        y: (S, ..., O); x: (S, ..., I); S may also count tokens or beams, as long as `rows` does.
        down: (U, R, I); up: (U, R, O); rows: (S,) int64, None = row 0 for all (then two plain matmuls).
    """
    if rows is None:
        return add_up(y, F.linear(x, down[0]), up, None, scale)
    x = x.reshape(len(rows), -1, x.shape[-1])
    return add_up(y, torch.bmm(x, down.index_select(0, rows).transpose(1, 2)), up, rows, scale)


def add_up(y: Tensor, low: Tensor, up: Tensor, rows: Tensor | None, scale: float) -> Tensor:
    """y + scale * low up[t]; the second half of `add_low_rank`, with low (S, ..., R)."""
    if rows is None:
        return torch.addmm(y.flatten(0, -2), low.flatten(0, -2), up[0], alpha=scale).view(y.shape)
    y_SLO, low_SLR = (tensor.reshape(len(rows), -1, tensor.shape[-1]) for tensor in (y, low))
    return torch.baddbmm(y_SLO, low_SLR, up.index_select(0, rows), alpha=scale).view(y.shape)


def draw_down(tensor: Tensor, generator: torch.Generator) -> None:
    """U(-1/sqrt(I), 1/sqrt(I)) for a (..., R, I) projection: Kaiming-uniform with a = sqrt(5)."""
    tensor.uniform_(-(tensor.shape[-1] ** -0.5), tensor.shape[-1] ** -0.5, generator=generator)


def zeros(tensor: Tensor, generator: torch.Generator) -> None:
    tensor.zero_()


def features(linear: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer or of GPT-2's Conv1D, which keeps its weight transposed."""
    if isinstance(linear, Conv1D):
        return linear.nx, linear.nf
    return linear.in_features, linear.out_features


def per_block(backbone: Backbone) -> dict[str, dict[str, nn.Module]]:
    """Transformer block -> its linear layers; all by their names in the network."""
    return {
        prefix: {f"{prefix}.{name}": m for name, m in block.named_modules() if isinstance(m, LINEAR)}
        for prefix, block in backbone.blocks()
    }


def block_linears(backbone: Backbone) -> dict[str, nn.Module]:
    """Every linear layer inside the transformer blocks, by its name in the network."""
    return {name: module for block in per_block(backbone).values() for name, module in block.items()}


def find_targets(backbone: Backbone, targets: str, strategy: str) -> dict[str, nn.Module]:
    """The linear layers that `targets` names: "auto" = all inside the blocks, else a regex on their names.

    Raises:
        MtnlpError: a regex that cannot be read or finds nothing.
    """
    if targets == "auto":
        if found := block_linears(backbone):
            return found
        raise MtnlpError(
            f"{strategy}: targets=auto looks for nn.Linear or Conv1D inside the transformer blocks "
            f"(an nn.ModuleList of equal layers), and {backbone.described} has none. "
            'Name the layers with a regex: targets: "(query|value)$".'
        )
    pattern = compiled(targets, strategy)
    linears = {name: module for name, module in backbone.net.named_modules() if isinstance(module, LINEAR)}
    if found := {name: module for name, module in linears.items() if pattern.search(name)}:
        return found
    raise MtnlpError(
        f"{strategy}: no linear layer of {backbone.described} matches targets={shown(targets)}. "
        f"{endings(linears)}"
    )


def compiled(pattern: str, strategy: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise MtnlpError(f"{strategy}: targets={shown(pattern)} is no regular expression: {error}.") from None


def endings(linears: Mapping[str, nn.Module]) -> str:
    """What the linear layers of a backbone are called, block numbers left out."""
    names = dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in linears)
    return (
        f"Its linear layers: {', '.join(names)}."
        if names
        else "It has no linear layer (nn.Linear or Conv1D)."
    )


def replace(net: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where the submodule called `name` is."""
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, module)


def check_lora(strategy: str, rank: int, alpha: float, dropout: float) -> None:
    """MtnlpError unless the three numbers make a LoRA."""
    require(rank >= 1, f"{strategy}: rank={rank} must be at least 1.")
    require(alpha > 0, f"{strategy}: alpha={alpha} must be above 0.")
    require(0 <= dropout < 1, f"{strategy}: dropout={dropout} must be in [0, 1).")


_PEFT_TASKS = {"encoder": "FEATURE_EXTRACTION", "encoder-decoder": "SEQ_2_SEQ_LM", "decoder": "CAUSAL_LM"}


class PeftFormat:
    """Writes low-rank updates as peft's LoRA files. Made at attach: the network still has its own names."""

    def __init__(
        self, backbone: Backbone, linears: Mapping[str, nn.Module], rank: int, alpha: float, dropout: float
    ) -> None:
        self.config = {
            "peft_type": "LORA",
            "task_type": _PEFT_TASKS[backbone.family],
            "base_model_name_or_path": backbone.name,
            "revision": backbone.revision,
            "r": rank,
            "lora_alpha": alpha,
            "lora_dropout": dropout,
            "target_modules": list(linears),
            "bias": "none",
            "inference_mode": True,
            "fan_in_fan_out": all(isinstance(module, Conv1D) for module in linears.values()),
        }

    def __call__(
        self, pairs: Mapping[str, tuple[Tensor, Tensor]]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """pairs: layer name -> (down (R, I), up (R, O)). Tensors come out float32, on the CPU."""
        tensors = {}
        for name, (down, up) in pairs.items():
            key = f"base_model.model.{name}"
            tensors[f"{key}.lora_A.weight"] = down.detach().float().cpu().clone()
            tensors[f"{key}.lora_B.weight"] = up.detach().float().cpu().t().contiguous()
        return dict(self.config), tensors
