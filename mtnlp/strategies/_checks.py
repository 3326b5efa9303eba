"""What is looked at before a strategy edits a network."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from mtnlp.errors import MtnlpError
from mtnlp.strategies._lora import features


def check_rank(strategy: str, rank: int, linears: Mapping[str, nn.Module]) -> None:
    """MtnlpError if a layer has fewer inputs or outputs than an update of it would have ranks."""
    sizes = {name: features(module) for name, module in linears.items()}
    small = [name for name, size in sizes.items() if min(size) < rank]
    if small:
        inputs, outputs = sizes[small[0]]
        more = f", and than {len(small) - 1} other layers" if len(small) > 1 else ""
        raise MtnlpError(
            f"{strategy}: rank={rank} is larger than the layer {small[0]} ({inputs} inputs, {outputs} "
            f"outputs){more}. Lower model.strategy.rank to {min(map(min, sizes.values()))} or less."
        )
