"""One task of a model as a plain folder of transformers: its adapter is added to the backbone's weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from mtnlp.errors import MtnlpError
from mtnlp.hub.cards import TEXT_CLASSES, own_head
from mtnlp.hub.contents import BASE, save, under
from mtnlp.hub.plain import plain, whole
from mtnlp.models._load import quiet

if TYPE_CHECKING:
    from mtnlp.models.backbone import Backbone
    from mtnlp.models.multitask import MultitaskModel
    from mtnlp.tasks.spec import TaskSpec

CANNOT = (
    "what it learned is no change of the backbone's weights, so it cannot be merged. Merge a run with lora, "
    "lora-per-task, heads or full."
)


def write(out: Path, model: MultitaskModel, index: int, spec: TaskSpec, base: Backbone) -> str:
    """Write the folder.

    Args:
        model: with trained weights; index: of the task in it.
        base: the same backbone as it was before training; it is changed.

    Returns:
        The class of transformers that loads the folder. Where none has the task's head, that of the bare
        network; head.safetensors then lies beside it, and README.md says how to use it.

    Raises:
        MtnlpError: the strategy puts more into a network than a change of its weights.
    """
    merge(model, spec.name, base.net)
    net, auto = base.net, TEXT_CLASSES.get(base.family, "AutoModel")
    out.mkdir(parents=True, exist_ok=True)
    if model.heads:
        head = model.head(index)
        names = [name for name, _ in net.named_parameters()]
        if (form := plain(net.config, names, spec, head)) is not None:
            net, auto = whole(net, form), form.auto
        else:
            save(out / "head.safetensors", dict(head.named_parameters()))
            (out / "README.md").write_text(own_head(spec.kind, head.pooling, spec.score_scale), "utf-8")
    with quiet():
        net.save_pretrained(out)
    base.tokenizer.save_pretrained(out)
    return auto


def merge(model: MultitaskModel, task: str, net: nn.Module) -> None:
    """Add what a task learned to the weights of its backbone as it was before training, in place.

    Raises:
        MtnlpError: the strategy puts more into a network than a change of its weights.
    """
    exported = model.strategy.export(task)
    if exported is None and model.strategy.bank is not None:
        raise MtnlpError(f"{task}: {CANNOT}")
    modules, parameters = dict(net.named_modules()), dict(net.named_parameters())
    with torch.no_grad():
        for name, value in under("shared/net.", model.trainable_state()).items():
            name = name.replace(".base.", ".")  # a layer that was wrapped
            if name in parameters:
                parameters[name].copy_(value)
            elif exported is None:
                raise MtnlpError(f"{task}: {CANNOT}")
        config, tensors = exported or ({}, {})
        for key, down in tensors.items():
            if key.endswith(".lora_A.weight"):
                up = tensors[key.replace("lora_A", "lora_B")]
                change = up @ down * (config["lora_alpha"] / config["r"])  # (O, I)
                module = modules[key.removeprefix(BASE).removesuffix(".lora_A.weight")]
                module.weight.add_(change if isinstance(module, nn.Linear) else change.t())
