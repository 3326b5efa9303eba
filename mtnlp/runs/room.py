"""What a run needs of the memory, and whether there is so much."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from mtnlp import assemble, memory
from mtnlp.errors import MtnlpError

if TYPE_CHECKING:
    from mtnlp.config import Recipe
    from mtnlp.models.multitask import MultitaskModel

# Stored values per token, layer and unit of width; measured on a BERT-like encoder with adapters.
ACTIVATIONS = 22


def needed(recipe: Recipe, model: MultitaskModel) -> dict[str, int]:
    """Bytes of weights, of what training adds, and of the activations of one micro-batch, all in float32."""
    counts, backbone = assemble.parameter_counts(model), model.backbone
    rows = _rows(model)
    live = rows * min(len(model.tasks), recipe.train.examples_per_step) // len(model.tasks)
    tokens = max(recipe.train.max_tokens, recipe.model.max_length)
    values = {
        "weights": counts.network + counts.own,
        # Rows of absent tasks have moments and no gradient; live ones have a copy beside it.
        "gradients and moments": 3 * (counts.shared + counts.own - rows) + 2 * rows + 2 * live,
        "activations": ACTIVATIONS * len(backbone.blocks()) * backbone.width * tokens,
    }
    return {name: 4 * value for name, value in values.items()}


def require(recipe: Recipe, model: MultitaskModel) -> None:
    """Look whether a model can be trained where it will be trained.

    Activations are left out: a step that runs out of memory is cut into smaller parts. So are runs with
    sharded weights, which no process holds whole.

    Raises:
        MtnlpError: weights, gradients and moments do not fit.
    """
    device = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
    free = memory.free(device)
    if free is None or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        return
    parts, counts, tasks = needed(recipe, model), assemble.parameter_counts(model), len(model.tasks)
    total = parts["weights"] + parts["gradients and moments"]
    if device != "cpu" and recipe.train.bank_on_cpu:
        rows, left = 4 * _rows(model), memory.free()  # the rows are there already, their two moments not
        if left is not None and 2 * rows > left:
            raise MtnlpError(memory.too_many(tasks, _rows(model) // tasks, 2 * rows, "moments", left))
        total -= 3 * rows
    free += _there(model, device)
    if total <= free:
        return
    rest = 4 * (counts.network + 3 * counts.shared)
    if total - rest > rest:
        left = max(0, free - rest)
        raise MtnlpError(
            memory.too_many(tasks, counts.own // tasks, total - rest, "weights and moments", left)
        )
    raise MtnlpError(
        f"{recipe.model.backbone} with {counts.shared:,} trained parameters needs {memory.shown(total)} for "
        f"weights, gradients and moments, and {memory.shown(free)} are free. Train fewer of them "
        "(model.strategy=lora), or take a smaller backbone."
    )


def _rows(model: MultitaskModel) -> int:
    """Parameters in the bank."""
    return 0 if model.strategy.bank is None else model.strategy.bank.rows.numel()


def _there(model: MultitaskModel, device: str) -> int:
    """Bytes of the weights that lie on the device already, so that they are not free any more."""
    rows = [] if model.strategy.bank is None else [model.strategy.bank.rows]
    return sum(t.nbytes for t in (*model.parameters(), *rows) if t.device.type == device)
