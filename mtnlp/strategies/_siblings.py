"""Which linear layers of a network read the same tensor, seen by running it once on two tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from mtnlp.models.backbone import Backbone


def siblings(backbone: Backbone, linears: Mapping[str, nn.Module], *, dropout: float) -> list[list[str]]:
    """The names of `linears` in groups: children of one module that are given the same tensor (query, key and
    value of self-attention; gate and up), in the order in which they are asked. Every name is in one group.

    Groups are of one where each layer draws a dropout mask of its own, and in a network that two tokens
    cannot be put through.
    """
    if dropout:
        return [[name] for name in linears]
    read: dict[str, Tensor] = {}  # kept until the end, so that no two tensors have the same identity
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: _note(read, name, args[0]))
        for name, module in linears.items()
    ]
    try:
        _run(backbone)
    except Exception:  # whatever a network does on odd input: groups only save time
        read = {}
    finally:
        for handle in handles:
            handle.remove()
    groups: dict[tuple[str, int], list[str]] = {}
    for name, x in read.items():
        groups.setdefault((name.rpartition(".")[0], id(x)), []).append(name)
    return [*groups.values(), *([name] for name in linears if name not in read)]


def _note(read: dict[str, Tensor], name: str, x: Tensor) -> None:
    read.setdefault(name, x)


@torch.no_grad()
def _run(backbone: Backbone) -> None:
    device = next(backbone.net.parameters()).device
    ids = torch.zeros(1, 2, dtype=torch.long, device=device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if backbone.family == "encoder-decoder":
        inputs["decoder_input_ids"] = ids
    with torch.random.fork_rng(devices=[]):  # dropout, where the network is in training mode
        backbone.net(**inputs)
