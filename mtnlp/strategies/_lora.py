"""Low-rank updates of linear layers: finding the layers, the update, and the layer that takes their place.

    y = x W^T + b + (alpha / R) * dropout(x) A^T B      A (R, I) random, B (R, O) zero: an exact identity

Source: Hu et al. 2021, arXiv:2106.09685. B is kept as (R, O), the transpose of the paper's and of peft's, so
that a gathered batch of it goes into bmm as it lies.
Shapes: S sequences, L tokens of each, I inputs, O outputs, R rank, U live tasks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mtnlp.errors import MtnlpError, shown
from mtnlp.kernels import grouped
from mtnlp.strategies._bank import Bank
from mtnlp.strategies._fused import LowRank, Update
from mtnlp.strategies.base import Part, Routing, Runs, compute_dtype, require

if TYPE_CHECKING:
    from mtnlp.models.backbone import Backbone

LINEAR = (nn.Linear, Conv1D)
MASKED = 256  # columns; see `at_once`


class Replacement(nn.Module):
    """Takes the place of a linear layer, which stays inside as `base`. Reads as that layer from outside.

    Attributes:
        keeps_cast: whether a frozen weight is kept in the type that is computed in, beside its own. Autocast
            casts it again in every forward. False where weights are sharded.
    """

    def __init__(self, base: nn.Module, routing: Routing) -> None:
        super().__init__()
        self.base = base
        self.routing = routing
        self.keeps_cast = True
        self._cast: tuple[Any, Tensor, Tensor | None] | None = None

    @property
    def weight(self) -> Tensor:
        return self.base.weight  # T5 looks at its dtype

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    @property
    def trained(self) -> bool:
        """Whether the layer's own weights learn too."""
        return any(p.requires_grad for p in (self.base.weight, self.base.bias) if p is not None)

    def frozen(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """The layer's own (O, I) weight and (O,) bias in `dtype`, without gradient."""
        weight, bias = self.base.weight.detach(), self.base.bias
        weight = weight.t() if isinstance(self.base, Conv1D) else weight
        bias = None if bias is None else bias.detach()
        if weight.dtype == dtype:
            return weight, bias
        state = (dtype, weight.device, weight._version)
        if self._cast is not None and self._cast[0] == state:
            return self._cast[1:]
        with torch.inference_mode(False):  # made in an evaluation, it must serve training too
            cast = weight.to(dtype), None if bias is None else bias.to(dtype)
        self._cast = (state, *cast) if self.keeps_cast else None
        return cast


class BankLayer(Replacement):
    """A replacement whose parameters are pieces of the bank, with gradients by autograd."""

    def __init__(self, base: nn.Module, routing: Routing, bank: Bank) -> None:
        super().__init__(base, routing)
        self.__dict__["bank"] = bank  # not a submodule: the strategy owns it, once

    def pieces(self, *indices: int, dtype: torch.dtype) -> list[Tensor]:
        """The live rows' pieces, (U, ...) each; (1, ...) when all sequences are of one task."""
        only, found = self.routing.only, [self.bank.piece(index, dtype) for index in indices]
        return (
            found if only is None or len(self.bank.live) == 1 else [piece[only : only + 1] for piece in found]
        )

    def by_part(self, of: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """of(rows (n,), *parts (n, l, ...)) for every part of tensors (..., K), put together. If all tokens
        take the first (and only) row of `pieces`: of(None, *tensors (1, N, ...))."""
        shape = tensors[0].shape[:-1]
        flat = [tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors]
        if self.routing.only is not None:
            return of(None, *(tensor.unsqueeze(0) for tensor in flat)).view(*shape, -1)
        found = [
            of(rows, *(tensor[start:stop].unflatten(0, (len(rows), -1)) for tensor in flat)).flatten(0, 1)
            for start, stop, rows, _ in self.routing.parts(tensors[0])
        ]
        return (found[0] if len(found) == 1 else torch.cat(found)).view(*shape, -1)


class LoraLayer(Replacement):
    """A linear layer with a low-rank update, computed together with others that read the same input.

    The first of a group that is asked computes all; the others find theirs in `routing.joined`.
    """

    def __init__(self, base: nn.Module, routing: Routing, scale: float | Tensor, dropout: float) -> None:
        super().__init__(base, routing)
        self.scale, self.dropout = scale, dropout
        self.__dict__["group"] = (self,)

    def join(self, others: Sequence[LoraLayer]) -> None:
        """Compute with `others`, which are children of the same module and read the same tensor."""
        for layer in (group := (self, *others)):
            layer.__dict__["group"] = group

    def forward(self, x: Tensor) -> Tensor:
        group, joined = self.group, self.routing.joined
        if len(group) == 1:
            return self._with_base(x, self._compute(x)[0])
        found = joined.get(id(group))
        if found is None or found[0] is not x or id(self) not in found[1]:
            found = joined[id(group)] = (x, dict(zip(map(id, group), self._compute(x), strict=True)))
        y = found[1].pop(id(self))
        if not found[1]:
            del joined[id(group)]
        return self._with_base(x, y)

    def _with_base(self, x: Tensor, y: Tensor) -> Tensor:
        return self.base(x) + y if self.trained else y

    @torch.compiler.disable
    def _compute(self, x: Tensor) -> tuple[Tensor, ...]:
        x = x.to(dtype := compute_dtype(x))
        own = [(None, None) if layer.trained else layer.frozen(dtype) for layer in self.group]
        factors = self.factors(x)
        update = Update(
            weights=[weight for weight, _ in own],
            biases=[bias for _, bias in own],
            parts=factors.parts,
            only=factors.only,
            scale=factors.scale,
            dropout=self.dropout if self.training else 0.0,
            sinks=factors.sinks,
            gate=factors.gate,
            runs=factors.runs,
        )
        with torch.autocast(x.device.type, enabled=False):
            return LowRank.apply(x, factors.down, update, factors.anchor, *factors.ups)

    def factors(self, x: Tensor) -> Factors:
        """Those of the whole group for x (..., I), which has the type that is computed in."""
        raise NotImplementedError


class Factors(NamedTuple):
    """The factors of a group of n layers in the type of their products, and where their gradients go."""

    down: Tensor  # (U, n R, I)
    ups: list[Tensor]  # n x (U, R, O_i)
    scale: float | Tensor  # alpha / rank; (U,) where the rows differ
    only: int | None  # the row that all tokens take
    anchor: Tensor  # requires a gradient if the factors learn
    parts: Sequence[Part] = ()  # which tokens take which row, where not all take `only`
    sinks: Callable[[], list[Tensor]] | None = None  # see Update
    gate: Tensor | None = None  # see Update
    runs: Runs | None = None  # see Update


class SharedLora(LoraLayer):
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
        super().__init__(base, routing, scale, dropout)
        inputs, outputs = features(base)
        self.down = nn.Parameter(torch.empty(rank, inputs))
        self.up = nn.Parameter(torch.zeros(rank, outputs))
        draw_down(self.down.data, generator)

    def factors(self, x: Tensor) -> Factors:
        down = torch.cat([layer.down for layer in self.group]) if len(self.group) > 1 else self.down
        ups = [layer.up.to(x.dtype).unsqueeze(0) for layer in self.group]
        return Factors(down.to(x.dtype).unsqueeze(0), ups, self.scale, 0, anchor=down)


class TaskLora(LoraLayer):
    """One update per task: two pieces of the bank, named like the layer; see `add_to`."""

    def __init__(
        self, base: nn.Module, routing: Routing, bank: Bank, scale: float | Tensor, dropout: float
    ) -> None:
        super().__init__(base, routing, scale, dropout)
        self.__dict__["bank"] = bank  # not a submodule: the strategy owns it, once

    def add_to(self, bank: Bank, names: Sequence[str], rank: int) -> None:
        """Reserve the pieces of the group, `names` in its order: all downs side by side, then ups."""
        self.rank, sizes = rank, [features(layer.base) for layer in self.group]
        for layer, name, (inputs, _) in zip(self.group, names, sizes, strict=True):
            layer.down = bank.add(f"{name}.down", (rank, inputs), draw_down)
        for layer, name, (_, outputs) in zip(self.group, names, sizes, strict=True):
            layer.up = bank.add(f"{name}.up", (rank, outputs), zeros)

    def factors(self, x: Tensor) -> Factors:
        bank, scale, only = self.bank, self.scale, self.routing.only
        parts = () if only is not None else self.routing.parts(x)
        scale = scale[list(bank.live)].to(bank.device) if isinstance(scale, Tensor) else scale
        runs = self._runs(x) if parts else None
        masked = runs is None and at_once(x, len(parts), columns=len(bank.live) * self.rank)
        # Parts of many lengths are as many shapes, and for bfloat16 oneDNN compiles every new one.
        wide = runs is None and not masked and len(parts) > 1 and x.device.type == "cpu"
        dtype = torch.promote_types(x.dtype, torch.float32) if wide else x.dtype
        downs, ups = [layer.down for layer in self.group], [[layer.up] for layer in self.group]
        return Factors(
            bank.columns(downs, dtype),
            [bank.columns(up, dtype) for up in ups],
            scale,
            only,
            anchor=bank.leaf,
            parts=parts,
            sinks=lambda: [bank.grad(downs), *(bank.grad(up) for up in ups)],
            gate=self.routing.gate(x, len(bank.live), self.rank, scale) if masked else None,
            runs=runs,
        )

    def _runs(self, x: Tensor) -> Runs | None:
        """The runs of tokens of x (..., I) where they are multiplied as groups."""
        if (runs := self.routing.runs(x)) is None:
            return None
        widths = (self.rank, x.shape[-1], *(features(layer.base)[1] for layer in self.group))
        return runs if grouped.applies(x, len(runs.rows), widths) else None


def at_once(x: Tensor, parts: int, columns: int) -> bool:
    """Whether one product of all tokens with the factors of all rows (`columns` = rows x rank), masked, is
    faster than one for each part: by measurement where bfloat16 has fast large products, on CPUs."""
    return parts > 1 and columns <= MASKED and x.dtype == torch.bfloat16 and x.device.type == "cpu"


def add_up(y: Tensor, low: Tensor, up: Tensor, rows: Tensor | None, scale: float) -> Tensor:
    """(n, l, O) y + scale * low up[t], with low (n, l, R), up (U, R, O); rows = None: row 0 for all."""
    if rows is None:
        return torch.addmm(y.flatten(0, -2), low.flatten(0, -2), up[0], alpha=scale).view(y.shape)
    return torch.baddbmm(y, low, up.index_select(0, rows), alpha=scale)


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

    def pairs(self, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """The inverse: layer name -> (down (R, I), up (R, O)), of tensors in peft's names.

        Raises:
            MtnlpError: tensors that are missing, belong to no adapted layer, or are no matrices.
        """
        found = {}
        for name in self.config["target_modules"]:
            keys = [f"base_model.model.{name}.lora_{part}.weight" for part in "AB"]
            if missing := [key for key in keys if key not in tensors]:
                raise MtnlpError(f"{missing[0]} is missing.")
            if odd := [key for key in keys if tensors[key].ndim != 2]:
                raise MtnlpError(f"{odd[0]} is {tuple(tensors[odd[0]].shape)}, which is no matrix.")
            found[name] = tensors[keys[0]], tensors[keys[1]].t()
        if more := sorted(
            set(tensors) - {f"base_model.model.{name}.lora_{part}.weight" for name in found for part in "AB"}
        ):
            raise MtnlpError(f"{more[0]} belongs to no layer that is adapted.")
        return found
