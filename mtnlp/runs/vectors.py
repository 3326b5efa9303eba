"""Task vectors of finished runs: the low-rank update that each task has learned, and how alike they are.

Only adapters are read, no model is built.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mtnlp.compare import affinity
from mtnlp.compare.affinity import Adapter
from mtnlp.errors import MtnlpError
from mtnlp.hub import bundle
from mtnlp.models.places import digest_of, folder_of
from mtnlp.runs import trained
from mtnlp.runs.folder import RunFolder
from mtnlp.runs.trained import Trained

PREFIX, DOWN, UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"  # in the names of peft


def similarities(places: Sequence[str], *, backbone: str | None = None) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and (V, V) cosines of what the tasks of runs and bundles have learned.

    Args:
        backbone: a folder or hub id to take in place of the one that a bundle names.

    Raises:
        MtnlpError: no finished run; no LoRA, or one of several tasks; runs on different backbones; fewer than
            two vectors.
    """
    found = {}
    for place in places:
        own = None if RunFolder(Path(place)).holds_run() else backbone
        found[place] = trained.find(place, backbone=own)
    _one_backbone(found)
    vectors = [
        (place, task, adapter) for place, run in found.items() for task, adapter in adapters_of(run).items()
    ]
    if len(vectors) < 2:
        raise MtnlpError(f"--runs: expected adapters of at least two tasks, found {len(vectors)}. Name more.")
    count = Counter(task for _, task, _ in vectors)
    names = tuple(task if count[task] == 1 else f"{task} ({place})" for place, task, _ in vectors)
    return names, affinity.similarity([adapter for _, _, adapter in vectors])


def adapters_of(run: Trained) -> dict[str, Adapter]:
    """Task -> layer -> (down (R, I), up (R, O)).

    Raises:
        MtnlpError: it was not trained with LoRA, or with one for several tasks; a damaged file.
    """
    strategy, tasks = run.recipe.model.strategy.name, [spec.name for spec in run.specs]
    if strategy == "lora" and len(tasks) > 1:
        raise MtnlpError(
            f"--runs: {run.name} trained one lora for {len(tasks)} tasks together, so no vector of it is a "
            "single task's. Name runs of one task each, or of lora-per-task."
        )
    files = {task: _file(run, task) for task in tasks}
    if not all(path.exists() for path, _ in files.values()):
        raise MtnlpError(
            f"--runs: {run.name} was trained with {strategy}, which leaves no LoRA. Name runs of lora or "
            "lora-per-task."
        )
    return {task: _read(path, prefix) for task, (path, prefix) in files.items()}


def _file(run: Trained, task: str) -> tuple[Path, str]:
    """The file of a task's adapter, and what stands before the names of layers in it: an adapter with its
    head is for a class of transformers that has the network as a part."""
    if run.given is None:
        return RunFolder(run.where).adapters / task.replace("/", "--") / bundle.ADAPTER, PREFIX
    about = next(about for about in run.given.tasks if about["spec"]["name"] == task)
    part = f"{about['peft']['prefix']}." if about["peft"]["prefix"] else ""
    return run.given.of(task) / bundle.ADAPTER, PREFIX + part


def _read(path: Path, prefix: str) -> Adapter:
    """Of tensors in peft's names, lora_A (R, I) and lora_B (O, R); a head beside them is left out."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise MtnlpError(f"{path}: damaged ({error}).") from None
    layers = [name.removesuffix(DOWN) for name in tensors if name.endswith(DOWN)]
    return {layer.removeprefix(prefix): (tensors[layer + DOWN], tensors[layer + UP].T) for layer in layers}


def _one_backbone(found: dict[str, Trained]) -> None:
    """MtnlpError if the runs were trained on different networks: their layers mean different things."""
    first: tuple[str, str] | None = None
    for place, run in found.items():
        name, revision = run.recipe.model.backbone, run.recipe.model.revision
        folder = folder_of(name, revision)
        own = digest_of(folder) if folder else f"{name}@{revision}"
        first = first or (place, own)
        if own != first[1]:
            raise MtnlpError(
                f"--runs: {place} was trained on another backbone than {first[0]} ({name}), so what they "
                "learned cannot be compared."
            )
