"""Modules that adapters hold whole, such as heads: each adapter's copy in the place of the network's own.

The network is one of transformers' classes with a head, so that whatever lies around a module (pooling, a
dense layer, activations) is what it was in training. Only the number of scores may differ from adapter to
adapter.
Source of the format: `modules_to_save` of peft.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mtnlp.errors import MtnlpError
from mtnlp.strategies._lora import Replacement, replace

if TYPE_CHECKING:
    from mtnlp.models.backbone import Backbone
    from mtnlp.strategies.base import Strategy

Saved = Mapping[str, Mapping[str, Tensor]]  # module -> its tensors, by their names in it
OUTPUTS = ("classifier", "score", "out_proj")  # what classes of transformers call their last layer


class Copies(nn.Module):
    """Stands for a module: what it does is done by the copy of the adapter whose batch is in the network."""

    def __init__(self, copies: list[nn.Module], strategy: Strategy) -> None:
        super().__init__()
        self.copies = nn.ModuleList(copies)
        self.__dict__["strategy"] = strategy  # not a submodule

    def forward(self, *args: Any, **options: Any) -> Any:
        position = self.strategy.routing.only
        assert position is not None, "a batch must be of one adapter"
        return self.copies[self.strategy.bank.live[position]](*args, **options)


def scores(saved: Saved) -> int | None:
    """How many scores the head among saved modules gives; None = none of them has a last layer."""
    for module, tensors in saved.items():
        for name, value in tensors.items():
            if _is_output(f"{module}.{name}"):
                return len(value)
    return None


def _is_output(name: str) -> bool:
    return name.split(".")[-2:] in [[layer, "weight"] for layer in OUTPUTS]


def place(backbone: Backbone, strategy: Strategy, adapters: Mapping[str, Saved]) -> None:
    """Put the modules of adapters into a network. An adapter without a copy of one has the network's own.

    Args:
        strategy: attached already; adapters: in the order of its tasks.

    Raises:
        MtnlpError: a module that the network lacks, in which another adapter adapts layers, or with other
            tensors.
    """
    for module in dict.fromkeys(name for saved in adapters.values() for name in saved):
        holder = next(name for name, saved in adapters.items() if module in saved)
        try:
            whole = backbone.net.get_submodule(module)
        except AttributeError:
            raise MtnlpError(
                f"{holder}: it holds {module}, and {type(backbone.net).__name__} has no such module. Was it "
                "trained on another backbone?"
            ) from None
        if any(isinstance(part, Replacement) for part in whole.modules()):
            raise MtnlpError(
                f"{holder}: it holds {module} whole, and an adapter beside it changes layers in there. "
                "Evaluate them apart."
            )
        copies = [
            _copy(name, module, whole, saved[module]) if module in saved else whole
            for name, saved in adapters.items()
        ]
        replace(backbone.net, module, Copies(copies, strategy))


def _copy(adapter: str, module: str, whole: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A module with an adapter's values, and with as many scores as these are for."""
    own = nn.ModuleDict({"it": copy.deepcopy(whole)})
    for name, value in tensors.items():
        path = f"it.{name}".rpartition(".")[0]
        layer = dict(own.named_modules()).get(path)
        if _is_output(f"{module}.{name}") and isinstance(layer, nn.Linear) and value.ndim == 2:
            replace(own, path, nn.Linear(layer.in_features, len(value), bias=layer.bias is not None))
    expected = {name: tuple(value.shape) for name, value in own["it"].state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise MtnlpError(
                f"{adapter}: {module}.{name} is {found.get(name, 'missing')}, expected "
                f"{expected.get(name, 'nothing there')}. Was it trained on another backbone?"
            )
    own["it"].load_state_dict(dict(tensors))
    return own["it"]
