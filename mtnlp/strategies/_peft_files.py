"""LoRA adapters in peft's own file format, read into rows of a bank.

What differs between adapters and layers (alpha, rslora, patterns) is multiplied into B, and ranks are padded
with zeros, so that all rows have one rank and one scale.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mtnlp.errors import MtnlpError, shown
from mtnlp.strategies.lora_per_task import LoraPerTask

if TYPE_CHECKING:
    from mtnlp.models.backbone import Backbone

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
REFUSED = {  # settings of peft's LoRA that are no plain low-rank update
    "use_dora": "DoRA", "lora_bias": "a bias in B", "modules_to_save": "whole modules",
    "trainable_token_indices": "trained tokens", "alora_invocation_tokens": "activated LoRA",
}  # fmt: skip


def read(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer name -> (A (R, I), B (R, O) times alpha / rank), float32.

    Raises:
        MtnlpError: no adapter, another method than LoRA, unreadable or unpaired tensors, NaN.
    """
    config = _config(folder)
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in _tensors(folder / WEIGHTS).items():
        if not (match := KEY.fullmatch(key)):
            raise MtnlpError(
                f"{folder / WEIGHTS}: {shown(key)} is no LoRA weight of a linear layer; only these are read."
            )
        if not value.isfinite().all():
            raise MtnlpError(f"{folder / WEIGHTS}: {key} holds values that are no numbers.")
        found.setdefault(match[1], {})[match[2]] = value.float()
    if lone := next((name for name, pair in found.items() if len(pair) < 2), None):
        raise MtnlpError(f"{folder / WEIGHTS}: {lone} has a lora_A or a lora_B, but not both.")
    return {name: _scaled(config, name, pair["A"], pair["B"]) for name, pair in found.items()}


def attach(backbone: Backbone, adapters: Mapping[str, Mapping[str, tuple[Tensor, Tensor]]]) -> LoraPerTask:
    """Put adapters, as `read` gives them, into a backbone: one row of the bank each, in their order.

    Raises:
        MtnlpError: a layer that the backbone lacks, or that has another size.
    """
    layers = list(dict.fromkeys(name for adapter in adapters.values() for name in adapter))
    modules = dict(backbone.net.named_modules())
    for name, adapter in adapters.items():
        _check(name, adapter, modules, backbone)
    rank = max(down.shape[0] for adapter in adapters.values() for down, _ in adapter.values())
    targets = "^(" + "|".join(map(re.escape, layers)) + ")$"
    strategy = LoraPerTask(rank=rank, alpha=rank, targets=targets)
    strategy.attach(backbone, list(adapters), seed=0)
    strategy.bank.rows.zero_()
    for row, adapter in enumerate(adapters.values()):
        pieces = strategy.bank.named(row)
        for layer, (down, up) in adapter.items():
            pieces[f"{layer}.down"][: len(down)] = down
            pieces[f"{layer}.up"][: len(up)] = up
    return strategy


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
    except FileNotFoundError:
        raise MtnlpError(f"{folder} is no adapter: it has no {CONFIG}.") from None
    except (OSError, ValueError) as error:
        raise MtnlpError(f"{folder / CONFIG}: cannot be read ({error}).") from None
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise MtnlpError(f"{folder / CONFIG}: peft_type is {shown(kind)}; only LORA can be read.")
    for key, what in REFUSED.items():
        if config.get(key):
            raise MtnlpError(f"{folder / CONFIG}: {key} is set, and {what} cannot be read.")
    if config.get("bias", "none") != "none":
        raise MtnlpError(f"{folder / CONFIG}: bias is {shown(config['bias'])}; only none can be read.")
    return config


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise MtnlpError(f"{path} is missing. Weights in other formats (pickle) are never read.") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise MtnlpError(f"{path}: damaged ({error}).") from None


def _scaled(config: Mapping[str, Any], name: str, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """A as it is and B (R, O), times the scale that peft gives this layer."""
    rank = down.shape[0]
    alpha = _of_layer(config.get("alpha_pattern"), name, config.get("lora_alpha", 8))
    return down, up.t() * (alpha / (sqrt(rank) if config.get("use_rslora") else rank))


def _of_layer(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """The value of the first pattern that is the end of a layer's name, as peft matches them.

    Patterns are somebody else's: with brackets or many repetitions, matching could take for ever.
    """
    for pattern, value in (patterns or {}).items():
        if len(pattern) > 200 or re.search(r"[({]", pattern) or len(re.findall(r"[*+?]", pattern)) > 3:
            raise MtnlpError(f"{CONFIG}: alpha_pattern: {shown(pattern)} is not a simple pattern of names.")
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def _check(
    name: str, adapter: Mapping[str, Sequence[Tensor]], modules: Mapping[str, Any], backbone: Backbone
) -> None:
    from mtnlp.strategies._lora import LINEAR, features

    for layer, (down, up) in adapter.items():
        module = modules.get(layer)
        if not isinstance(module, LINEAR):
            raise MtnlpError(
                f"{name}: it adapts {layer}, which is no linear layer of {backbone.described}. "
                "Was it trained on another backbone?"
            )
        sizes, own = features(module), (down.shape[1], up.shape[1])
        if sizes != own:
            raise MtnlpError(
                f"{name}: {layer} reads {sizes[0]} and gives {sizes[1]} numbers in {backbone.described}, and "
                f"{own[0]} and {own[1]} in the adapter. Was it trained on another backbone?"
            )
