"""Candidates of safe mode as rows of one lora-per-task model: a task of the joint run, of its own run, or a
blend of both.

A blend of updates s = alpha / R is exact at rank 2 R, by its factors put together:

    (1 - g) s A1^T B1 + g s A2^T B2 = s [A1; A2]^T [(1 - g) B1; g B2]      A (R, I), B (R, O)

Of heads there is no blend: a task that is not wholly shared has the head of its own run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mtnlp import assemble, config, strategies
from mtnlp.bench.samples import key_of
from mtnlp.compare import choice
from mtnlp.config import Recipe, Slot
from mtnlp.models.places import content_of
from mtnlp.runs import train
from mtnlp.runs.folder import RunFolder
from mtnlp.runs.targets import RunTarget
from mtnlp.runs.trained import Trained
from mtnlp.runs.weights import owner

if TYPE_CHECKING:
    from torch import Tensor

    from mtnlp.bench.predict import Predictor
    from mtnlp.models.multitask import MultitaskModel
    from mtnlp.tasks.spec import TaskSpec


@dataclass(frozen=True)
class Learned:
    """What a run learned of one task: adapter, in peft's names: lora_A (R, I), lora_B (O, R) of every layer;
    head: by the names of its parameters, empty for text."""

    adapter: Mapping[str, Tensor]
    head: Mapping[str, Tensor]


@dataclass(frozen=True)
class Sources:
    """The finished runs that a model is made from: the joint run, and by task those of single tasks."""

    joint: RunFolder
    alone: Mapping[str, RunFolder]

    @cached_property
    def digest(self) -> str:
        """A hash of all their weights."""
        folders = [self.joint, *(self.alone[task] for task in sorted(self.alone))]
        return key_of([content_of(folder.weights).hex() for folder in folders])

    def blend(self, task: str, gate: float) -> Learned:
        """A task with this share of its private update: 0 = shared, 1 = private, and these bit for bit."""
        if gate in (0.0, 1.0):
            return _learned(self.alone[task] if gate else self.joint, task)
        return blended(_learned(self.joint, task), _learned(self.alone[task], task), gate)


def blended(shared: Learned, private: Learned, gate: float) -> Learned:
    """(1 - gate) * shared + gate * private as an update of twice the rank, with the private head."""
    import torch

    adapter = {}
    for name, mine in private.adapter.items():
        parts = [shared.adapter[name], mine]
        if ".lora_B." in name:
            parts = [(1 - gate) * parts[0], gate * parts[1]]
        adapter[name] = torch.cat(parts, dim=1 if ".lora_B." in name else 0)
    return Learned(adapter, private.head)


def _learned(folder: RunFolder, task: str) -> Learned:
    from mtnlp.train.checkpoint import read_table

    place = folder.adapters / task.replace("/", "--") / "adapter_model.safetensors"
    table = read_table(folder.weights)
    own = {name: tensor for name, tensor in table.items() if name.startswith("head/") and owner(name) == task}
    return Learned(read_table(place), {name.rpartition("/")[2]: tensor for name, tensor in own.items()})


def as_rows(recipe: Recipe, *, doubled: bool = False, gated: Collection[str] = ()) -> Recipe:
    """The recipe of the lora-per-task model that holds what a recipe with strategy lora trains.

    Args:
        doubled: whether all tasks have twice the rank. gated: tasks that have.
    """
    lora = config.build("model.strategy", recipe.model.strategy, strategies)
    times = 2 if doubled else 1
    options = {"rank": times * lora.rank, "alpha": times * lora.alpha}
    options |= {"dropout": lora.dropout, "targets": lora.targets}
    if gated:
        options |= {"ranks": dict.fromkeys(gated, 2 * lora.rank)}
        options |= {"alphas": dict.fromkeys(gated, 2 * lora.alpha)}
    model = recipe.model.model_copy(update={"strategy": Slot("lora-per-task", options)})
    return recipe.model_copy(update={"model": model})


def fill(model: MultitaskModel, found: Mapping[str, Learned]) -> None:
    """Put what was learned into the tasks of a lora-per-task model, by their names in it."""
    state = model.trainable_state()
    for task, learned in found.items():
        model.strategy.adopt(task, learned.adapter)
        for name, tensor in learned.head.items():
            state[f"head/{task}/{name}"].copy_(tensor)


class Candidates(RunTarget):
    """Some tasks by several candidates each, all of them asked together.

    Args:
        recipe: as `as_rows` gives it, with twice the rank where there are blends. specs: the tasks.
        gates: shares of the private update, one for each candidate.
    """

    def __init__(
        self,
        recipe: Recipe,
        specs: Sequence[TaskSpec],
        sources: Sources,
        gates: Sequence[float],
        *,
        trust_remote_code: bool = False,
    ) -> None:
        where = sources.joint.path
        super().__init__(
            Trained(str(where), where, recipe, tuple(specs)), trust_remote_code=trust_remote_code
        )
        self.sources, self.gates = sources, {choice.named(gate): gate for gate in gates}
        self.models = tuple(self.gates)

    def digest(self, model: str) -> str:
        return key_of(self._digest, self.sources.digest, self.gates[model])

    def index(self, model: str, spec: TaskSpec) -> int:
        return self.models.index(model) * len(self.tasks) + super().index(model, spec)

    def _load(self) -> Predictor:
        accelerator = assemble.build_accelerator(self.recipe)
        backbone = assemble.build_backbone(self.recipe, trust_remote_code=self.trust)
        encoder = assemble.encoder_for(self.recipe, backbone.tokenizer, backbone.family)
        found, specs = {}, []
        for candidate, gate in self.gates.items():
            for task, spec in self.tasks.items():
                specs.append(spec.replace(name=f"{candidate} {task}"))
                found[specs[-1].name] = self.sources.blend(task, gate)
        model = assemble.build_model(self.recipe, specs, backbone)
        fill(model, found)
        model.to(accelerator.device)
        return assemble.build_predictor(self.recipe, model, encoder, accelerator)


def ship(
    folder: RunFolder,
    recipe: Recipe,
    specs: Sequence[TaskSpec],
    found: Mapping[str, Learned],
    *,
    trust_remote_code: bool = False,
) -> None:
    """Write the weights and the adapters of the model that holds what was chosen of every task.

    Args:
        recipe: as `as_rows` gives it for the gated tasks.
    """
    from mtnlp.train.checkpoint import write_table

    backbone = assemble.build_backbone(recipe, trust_remote_code=trust_remote_code)
    model = assemble.build_model(recipe, specs, backbone)
    fill(model, found)
    state = {name: tensor.contiguous() for name, tensor in model.trainable_state().items()}
    part = Path(f"{folder.weights}.part")
    write_table(part, state, model.row_layout)
    part.replace(folder.weights)
    for task in model.tasks:
        train.write_adapter(folder, task, *model.strategy.export(task))
