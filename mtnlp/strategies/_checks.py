"""What is looked at before a strategy edits a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from mtnlp.errors import MtnlpError
from mtnlp.strategies._lora import features

if TYPE_CHECKING:
    from mtnlp.models.backbone import Backbone


def check_rank(strategy: str, rank: int, linears: Mapping[str, nn.Module], *, key: str = "rank") -> None:
    """MtnlpError if a layer has fewer inputs or outputs than an update of it would have ranks. key: of
    the option that says how many."""
    sizes = {name: features(module) for name, module in linears.items()}
    small = [name for name, size in sizes.items() if min(size) < rank]
    if small:
        inputs, outputs = sizes[small[0]]
        more = f", and than {len(small) - 1} other layers" if len(small) > 1 else ""
        raise MtnlpError(
            f"{strategy}: rank={rank} is larger than the layer {small[0]} ({inputs} inputs, {outputs} "
            f"outputs){more}. Lower model.strategy.{key} to {min(map(min, sizes.values()))} or less."
        )


def check_own(strategy: str, backbone: Backbone, linears: Mapping[str, nn.Module]) -> None:
    """MtnlpError if the layer that scores words is to have parameters per task: it is given the scored tokens
    of all sequences in one row, not sequence by sequence."""
    head = backbone.net.get_output_embeddings()
    if found := [name for name, module in linears.items() if module is head]:
        raise MtnlpError(
            f"{strategy}: targets match {found[0]}, which scores words and cannot be adapted task by task. "
            "Use targets=auto, or a regex that leaves it out."
        )
