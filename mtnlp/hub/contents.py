"""What a model learned as the files of a bundle, and back into a model, bit for bit."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from mtnlp.errors import MtnlpError
from mtnlp.hub import bundle
from mtnlp.hub.bundle import Bundle
from mtnlp.hub.plain import Plain, plain

if TYPE_CHECKING:
    from mtnlp.models.multitask import MultitaskModel
    from mtnlp.tasks.spec import TaskSpec

T = TypeVar("T")
BASE = "base_model.model."  # what peft puts before every name


def write(
    folder: Path, model: MultitaskModel, specs: Mapping[str, TaskSpec], names: Collection[str], base: str
) -> dict[str, Any]:
    """Write the tensors of a model, and adapters in peft's format.

    Args:
        folder: the bundle's, with nothing in it.
        model: with its trained weights.
        names: of the backbone's parameters, before the strategy edited it.
        base: what adapters call their backbone.

    Returns:
        task -> what is in peft's format: "adapter", whether there is one; "class" of transformers that it is
        for, None = that of the bare network; "prefix" of the network in it; "head", its tensors beside the
        adapter's.
    """
    state = model.trainable_state()
    if shared := under("shared/", state):
        save(folder / bundle.SHARED, shared)
    found = {}
    for index, task in enumerate(model.tasks):
        place = folder / bundle.TASKS / bundle.folder_name(task)
        place.mkdir(parents=True)
        head = under(f"head/{task}/", state)
        if head:
            save(
                place / bundle.HEAD,
                head,
                {"labels": json.dumps(specs[task].labels and list(specs[task].labels))},
            )
        form = plain(model.backbone.net.config, names, specs[task], model.head(index)) if head else None
        exported = model.strategy.export(task)
        if exported is not None:
            config, tensors = _adapter(*exported, form)
            config["base_model_name_or_path"] = base
            (place / bundle.ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
            save(place / bundle.ADAPTER, tensors)
        elif model.strategy.bank is not None:
            save(place / bundle.OWN, model.strategy.bank.named(index))
        form = form if form and form.task_type else None
        found[task] = {
            "adapter": exported is not None,
            "class": form and form.auto,
            "prefix": form and form.prefix,
            "head": sorted(form.tensors) if form else [],
        }
    return found


def check(outline: MultitaskModel, specs: Sequence[TaskSpec], names: Collection[str], given: Bundle) -> None:
    """Whether what a bundle holds has the names and sizes that its settings make, before room is made for it.

    Args:
        outline: the model that was built from the settings, without weights (on the device "meta").
        specs: its tasks; names: of the backbone's parameters, before the strategy edited it.

    Raises:
        MtnlpError: tensors that are missing, too many, or of another shape.
    """
    own = {name: tuple(value.shape) for name, value in outline.trainable_state().items()}
    expected = {bundle.SHARED: under("shared/", own)}
    largest = {}
    for index, (task, about) in enumerate(zip(outline.tasks, given.tasks, strict=True)):
        place = f"{bundle.TASKS}/{bundle.folder_name(task)}"
        expected[f"{place}/{bundle.HEAD}"] = under(f"head/{task}/", own)
        if about["peft"]["adapter"]:
            there = _shapes(given.folder / place / bundle.ADAPTER)
            lora = {name: shape for name, shape in there.items() if ".lora_" in name}
            form = None
            if outline.heads:
                form = plain(outline.backbone.net.config, names, specs[index], outline.head(index))
            expected[f"{place}/{bundle.ADAPTER}"] = lora | _head_of(form)
            largest[task] = sum(map(math.prod, lora.values()))
        elif outline.strategy.bank is not None:
            pieces = outline.strategy.bank.named(index)
            expected[f"{place}/{bundle.OWN}"] = {name: tuple(value.shape) for name, value in pieces.items()}
    for name, shapes in expected.items():
        if problem := _difference(shapes, _shapes(given.folder / name)):
            raise MtnlpError(f"{given.folder}: this bundle is refused: {name}: {problem}")
    bank = outline.strategy.bank
    if largest and bank is not None and max(largest.values()) != (made := bank.rows.shape[1]):
        raise MtnlpError(
            f"{given.folder}: this bundle is refused: its adapters hold at most {max(largest.values()):,} "
            f"numbers, and its settings make {made:,} for a task."
        )


def _head_of(form: Plain | None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a head in the file of its adapter."""
    if form is None or form.task_type is None:
        return {}
    return {f"{BASE}{name}": tuple(value.shape) for name, value in form.tensors.items()}


def _difference(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str:
    for name in expected.keys() - found.keys():
        return f"{name} is missing."
    for name in found.keys() - expected.keys():
        return f"{name} does not belong there."
    for name, shape in found.items():
        if shape != expected[name]:
            return f"{name} is {shape}, expected {expected[name]}."
    return ""


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import safe_open

    if not path.exists():
        return {}
    with safe_open(path, "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def fill(model: MultitaskModel, given: Bundle) -> None:
    """Put what a bundle holds into a model that was built for it.

    Raises:
        MtnlpError: tensors that are missing, too many, or of another shape.
    """
    state: dict[str, Tensor] = {}
    shared = given.folder / bundle.SHARED
    if shared.exists():
        state |= {f"shared/{name}": value for name, value in _load(shared).items()}
    for index, (task, about) in enumerate(zip(model.tasks, given.tasks, strict=True)):
        place = given.of(task)
        if (place / bundle.HEAD).exists():
            state |= {f"head/{task}/{name}": value for name, value in _load(place / bundle.HEAD).items()}
        if model.strategy.bank is not None:
            try:
                _fill_row(model, index, place, about["peft"])
            except MtnlpError as error:
                raise MtnlpError(f"{place}: {error} It was made for another backbone or strategy.") from None
            state[f"bank/{task}"] = model.strategy.bank.rows[index].clone()
    model.load_trainable_state(state)


def _fill_row(model: MultitaskModel, index: int, place: Path, peft: Mapping[str, Any]) -> None:
    if (place / bundle.ADAPTER).exists():
        prefix = f"{peft['prefix']}." if peft["prefix"] else ""
        head = {f"{BASE}{name}" for name in peft["head"]}
        tensors = {
            BASE + name.removeprefix(BASE).removeprefix(prefix): value
            for name, value in _load(place / bundle.ADAPTER).items()
            if name not in head
        }
        model.strategy.adopt(model.tasks[index], tensors)
        return
    own, found = model.strategy.bank.named(index), _load(place / bundle.OWN)
    if wrong := sorted(own.keys() ^ found.keys()):
        what = "is missing" if wrong[0] in own else "is unknown here"
        raise MtnlpError(f"{wrong[0]} {what}.")
    for name, value in found.items():
        if own[name].shape != value.shape:
            raise MtnlpError(f"{name} is {tuple(value.shape)}, expected {tuple(own[name].shape)}.")
        own[name].copy_(value)


def _adapter(
    config: dict[str, Any], tensors: Mapping[str, Tensor], form: Plain | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An adapter with its head, for the class of transformers that has such a head; else as it is."""
    if form is None or form.task_type is None:
        return config, dict(tensors)
    named = {f"{BASE}{form.prefix}.{name.removeprefix(BASE)}": value for name, value in tensors.items()}
    head = {f"{BASE}{name}": value for name, value in form.tensors.items()}
    return {**config, "task_type": form.task_type, "modules_to_save": form.modules}, {**named, **head}


def under(prefix: str, state: Mapping[str, T]) -> dict[str, T]:
    """The items whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def save(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as float32 in a safetensors file.

    Args:
        metadata: one entry at most, as the library writes several in any order, and equal tensors should make
            equal files; None = that others can read it.
    """
    from safetensors.torch import save_file

    kept = {name: value.detach().float().cpu().contiguous().clone() for name, value in tensors.items()}
    save_file(kept, path, metadata=metadata or {"format": "pt"})
    path.chmod(0o644)


def _load(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise MtnlpError(f"{path}: missing or damaged ({error}).") from None
