"""LoRA adapters in peft's own file format, read into rows of a bank.

What differs between adapters and layers (alpha, rslora, patterns) is multiplied into B, and ranks are padded
with zeros, so that all rows have one rank and one scale. Whole modules that were saved beside the factors,
such as a head, stay each adapter's own: see _peft_heads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mtnlp.errors import MtnlpError, shown
from mtnlp.strategies import _peft_heads
from mtnlp.strategies.lora_per_task import LoraPerTask

if TYPE_CHECKING:
    from mtnlp.models.backbone import Backbone

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE = "base_model.model."  # what peft puts before every name
KEY = re.compile(r"(.+)\.lora_([AB])\.weight")
REFUSED = {  # settings of peft's LoRA that are no plain low-rank update
    "use_dora": "DoRA", "lora_bias": "a bias in B", "trainable_token_indices": "trained tokens",
    "alora_invocation_tokens": "activated LoRA", "layer_replication": "repeated layers",
    "target_parameters": "parameters outside layers", "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA", "arrow_config": "a router", "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}  # fmt: skip
TYPES = {"lora_alpha": (int, float), "alpha_pattern": dict, "modules_to_save": list}
STARTS = ("gaussian", "eva", "orthogonal")  # other named ones change the backbone's own weights first


@dataclass(frozen=True)
class Adapter:
    """What an adapter's folder holds, in float32.

    Args:
        rows: layer -> (A (R, I), B (R, O) times alpha / rank).
        saved: module -> its tensors, by their names in it; of modules that were trained whole.
    """

    rows: Mapping[str, tuple[Tensor, Tensor]]
    saved: Mapping[str, Mapping[str, Tensor]]


def read(folder: Path) -> Adapter:
    """An adapter.

    Raises:
        MtnlpError: none is there, another method than LoRA, unreadable or unpaired tensors, NaN.
    """
    config, place = _config(folder), folder / WEIGHTS
    found: dict[str, dict[str, Tensor]] = {}
    saved: dict[str, dict[str, Tensor]] = {}
    for key, value in _tensors(place).items():
        if not value.isfinite().all():
            raise MtnlpError(f"{place}: {key} holds values that are no numbers.")
        name = key.removeprefix(BASE)
        if match := KEY.fullmatch(name):
            found.setdefault(match[1], {})[match[2]] = value.float()
        elif name != key and (module := _saved(name, config.get("modules_to_save") or ())):
            saved.setdefault(module, {})[name.removeprefix(f"{module}.")] = value.float()
        else:
            raise MtnlpError(
                f"{place}: {shown(key)} is no LoRA weight of a linear layer, nor of a module named in "
                "modules_to_save; only these are read."
            )
    for name, pair in found.items():
        if len(pair) < 2:
            raise MtnlpError(f"{place}: {name} has a lora_A or a lora_B, but not both.")
        shapes = tuple(pair["A"].shape), tuple(pair["B"].shape)
        if any(len(shape) != 2 for shape in shapes) or not shapes[0][0] == shapes[1][1] > 0:
            raise MtnlpError(
                f"{place}: {name}: lora_A is {shapes[0]} and lora_B {shapes[1]}, expected (rank, inputs) and "
                "(outputs, rank)."
            )
    if not found:
        raise MtnlpError(f"{place}: it holds no LoRA weight.")
    return Adapter({name: _scaled(config, name, **pair) for name, pair in found.items()}, saved)


def _saved(name: str, modules: Collection[str]) -> str | None:
    """The outermost module around a parameter whose name ends as peft's modules_to_save says; None = none."""
    parts = name.split(".")
    outer = (".".join(parts[:i]) for i in range(1, len(parts)))
    return next((module for module in outer if module.endswith(tuple(map(str, modules)))), None)


def attach(backbone: Backbone, adapters: Mapping[str, Adapter]) -> LoraPerTask:
    """Put adapters into a backbone: one row of the bank each, in their order, and copies of the modules that
    they hold whole. With such modules, a batch must be of one adapter.

    Raises:
        MtnlpError: a layer or module that the backbone lacks, or that has another size.
    """
    layers = list(dict.fromkeys(name for adapter in adapters.values() for name in adapter.rows))
    modules = dict(backbone.net.named_modules())
    for name, adapter in adapters.items():
        _check(name, adapter.rows, modules, backbone)
    rank = max(down.shape[0] for adapter in adapters.values() for down, _ in adapter.rows.values())
    targets = "^(" + "|".join(map(re.escape, layers)) + ")$"
    strategy = LoraPerTask(rank=rank, alpha=rank, targets=targets)
    strategy.attach(backbone, list(adapters), seed=0)
    strategy.bank.rows.zero_()
    for row, adapter in enumerate(adapters.values()):
        pieces = strategy.bank.named(row)
        for layer, (down, up) in adapter.rows.items():
            pieces[f"{layer}.down"][: len(down)] = down
            pieces[f"{layer}.up"][: len(up)] = up
    _peft_heads.place(backbone, strategy, {name: adapter.saved for name, adapter in adapters.items()})
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
    for key, wanted in TYPES.items():
        if config.get(key) is not None and not isinstance(config[key], wanted):
            kind = "a number" if key == "lora_alpha" else f"a {wanted.__name__}"
            raise MtnlpError(f"{folder / CONFIG}: {key}: expected {kind}, found {shown(config[key])}.")
    for key, what in REFUSED.items():
        if config.get(key):
            raise MtnlpError(f"{folder / CONFIG}: {key} is set, and {what} cannot be read.")
    if isinstance(start := config.get("init_lora_weights"), str) and start not in STARTS:
        raise MtnlpError(
            f"{folder / CONFIG}: init_lora_weights is {shown(start)}, which changes the backbone's own "
            "weights before training, and cannot be read. save_pretrained of peft makes a plain adapter of "
            "it, with path_initial_model_for_weight_conversion."
        )
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


def _scaled(config: Mapping[str, Any], name: str, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """A as it is and B (R, O), times the scale that peft gives this layer."""
    rank = A.shape[0]
    alpha = _of_layer(config.get("alpha_pattern"), name, config.get("lora_alpha", 8))
    return A, B.t() * (alpha / (sqrt(rank) if config.get("use_rslora") else rank))


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
