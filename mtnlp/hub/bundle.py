"""A bundle: one folder with everything that a run learned, made to be given away.

    mtnlp_bundle.json           the manifest: backbone and its digests, settings, tasks, a hash of every file
    shared.safetensors          what the tasks share; none where they share nothing
    tasks/TASK/mtnlp_task.json  kind, labels, templates, digests, scores
               head.safetensors               the head; none where the backbone writes text
               adapter_config.json, adapter_model.safetensors   peft's own format, where peft can express it
               own.safetensors                the task's own parameters, where peft cannot
               README.md                      the card of this task
    README.md, .eval_results/TASK.yaml        the card of the bundle; scores as hubs read them

What a model is built from is listed in the manifest with its SHA-256, and the manifest ends with its own:
whatever was changed, cut or added since is refused here, before torch is loaded. Cards are for people, may be
edited, and are never read. Nothing in a bundle is code, and no pickle is ever opened.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mtnlp import strict_yaml
from mtnlp.errors import MtnlpError, shown
from mtnlp.hub.addresses import MANIFEST, check_name
from mtnlp.hub.folder import digest as file_digest
from mtnlp.hub.folder import listed

FORMAT = 1
SHARED, TASK = "shared.safetensors", "mtnlp_task.json"
HEAD, OWN = "head.safetensors", "own.safetensors"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
TASKS, RESULTS, CARD = "tasks", ".eval_results", "README.md"
KEYS = {
    "format": int, "name": str, "seed": int, "backbone": dict, "model": dict, "train": dict, "tasks": list,
    "files": dict, "digest": str,
}  # fmt: skip
BACKBONE = {"name": str, "local": bool, "fresh": bool, "family": str, "digest": str, "tokenizer": str}
ABOUT = {"spec": dict, "peft": dict, "metrics": dict}
PEFT = {"adapter": bool, "head": list}

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
FILES = 20_000  # of one bundle
TEXT_BYTES = 4 << 20  # of a JSON or YAML file
TENSOR_BYTES = 64 << 30  # of a file of tensors


@dataclass(frozen=True)
class Bundle:
    """A bundle that has been checked; `tasks` are what their mtnlp_task.json hold, in the model's order."""

    folder: Path
    manifest: Mapping[str, Any]
    tasks: tuple[Mapping[str, Any], ...]

    @property
    def digest(self) -> str:
        """Of all that a model is built from."""
        return self.manifest["digest"]

    def of(self, task: str) -> Path:
        """The folder of a task."""
        return self.folder / TASKS / folder_name(task)


def folder_name(task: str) -> str:
    """What the folder of a task is called."""
    return task.replace("/", "--")


def is_bundle(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def owned(name: str) -> bool:
    """Whether a file of a place is a bundle's, so that a later push may take it away."""
    return PurePosixPath(name).parts[0] in (MANIFEST, SHARED, TASKS, RESULTS, CARD)


def seal(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of a folder whose other files are all there."""
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}
        for name in listed(folder)
        if _is_part(name)
    }
    whole = {"format": FORMAT, **manifest, "files": files}
    (folder / MANIFEST).write_text(_text({**whole, "digest": _digest(whole)}), "utf-8")


def check_names(files: Sequence[tuple[str, int]]) -> None:
    """Whether files with these names and sizes in bytes may be fetched at all.

    Raises:
        MtnlpError: a name that leaves the folder, a pickle, too many files or bytes.
    """
    if len(files) > FILES:
        raise MtnlpError(f"it holds {len(files):,} files, and a bundle at most {FILES:,}.")
    for name, size in files:
        check_name(name)
        if PurePosixPath(name).suffix.lower() in PICKLES:
            raise MtnlpError(f"{name} is in a format that can run code (pickle); bundles hold none.")
        most = TENSOR_BYTES if name.endswith(".safetensors") else TEXT_BYTES
        if size > most:
            raise MtnlpError(f"{name} has {size:,} bytes; at most {most:,} are read.")


def read(folder: Path) -> Bundle:
    """A bundle, each of whose files is as it was when it was written.

    Raises:
        MtnlpError: it is none, or anything in it is missing, added, changed, cut, or no number.
    """
    try:
        return _read(folder)
    except MtnlpError as error:
        fix = "Pull it again, or ask who published it."
        raise MtnlpError(f"{folder}: this bundle is refused: {error} {fix}") from None
    except OSError as error:
        raise MtnlpError(f"{folder}: this bundle cannot be read ({error.strerror or error}).") from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise MtnlpError(
            f"{folder}: this bundle is refused: {MANIFEST} is not as it must be ({error})."
        ) from None


def _read(folder: Path) -> Bundle:
    sizes = listed(folder)
    check_names(list(sizes.items()))
    there = {name: folder / name for name in sizes}
    if MANIFEST not in there:
        raise MtnlpError(f"it has no {MANIFEST}.")
    manifest = _manifest(there[MANIFEST])
    files = manifest["files"]
    check_names([(name, about["bytes"]) for name, about in files.items()])
    for name in files:
        if name not in there:
            raise MtnlpError(f"{shown(name)} is missing.")
    for name, path in there.items():
        if _is_part(name) and name not in files:
            raise MtnlpError(f"{shown(name)} does not belong to it.")
        if name in files:
            _check_file(name, path, files[name])
        elif name.startswith(f"{RESULTS}/"):
            strict_yaml.read(path)
    tasks = tuple(_task(there, task, manifest) for task in manifest["tasks"])
    return Bundle(folder, manifest, tasks)


def _is_part(name: str) -> bool:
    """Whether a model is built from a file: all but cards, and what hubs put beside them."""
    return name.rpartition("/")[2] != CARD and (name.startswith(f"{TASKS}/") or name == SHARED)


def _manifest(path: Path) -> dict[str, Any]:
    text = path.read_bytes()
    found = _json(text, MANIFEST)
    if found.get("format") != FORMAT:
        other = shown(found.get("format"))
        raise MtnlpError(f"{MANIFEST} is of format {other}, and this mtnlp reads {FORMAT}. Update mtnlp.")
    _typed(found, KEYS, f"{MANIFEST}: ")
    _typed(found["backbone"], BACKBONE, f"{MANIFEST}: backbone.")
    whole = {key: value for key, value in found.items() if key != "digest"}
    if _text(found).encode() != text or found["digest"] != _digest(whole):
        raise MtnlpError(f"{MANIFEST} has been changed: it is not what its own digest says.")
    names = found["tasks"]
    if not names or not all(isinstance(name, str) for name in names) or len({*names}) < len(names):
        raise MtnlpError(f"{MANIFEST}: tasks: expected names, each once, found {shown(names)}.")
    return found


def _typed(found: Mapping[str, Any], types: Mapping[str, type], where: str) -> None:
    """MtnlpError unless all keys are there, each with a value of its type."""
    for key, wanted in types.items():
        if type(found.get(key)) is not wanted:
            kind = f"a value of type {wanted.__name__}"
            raise MtnlpError(f"{where}{key}: expected {kind}, found {shown(found.get(key))}.")


def _check_file(name: str, path: Path, listed: Mapping[str, Any]) -> None:
    size = path.stat().st_size
    if size != listed["bytes"]:
        raise MtnlpError(f"{name} has {size:,} bytes; it had {listed['bytes']:,} when it was published.")
    if _sha256(path) != listed["sha256"]:
        raise MtnlpError(f"{name} is not what was published: its SHA-256 differs.")
    if name.endswith(".safetensors"):
        _check_tensors(name, path)


def _check_tensors(name: str, path: Path) -> None:
    """A header that fits the file, and numbers only."""
    import numpy as np
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            for key in file.keys():  # noqa: SIM118
                if not np.isfinite(file.get_tensor(key)).all():
                    raise MtnlpError(f"{name}: {key} holds values that are no numbers (NaN or infinite).")
    except (SafetensorError, TypeError, ValueError) as error:
        raise MtnlpError(f"{name}: damaged ({error}).") from None


def _task(there: Mapping[str, Path], task: str, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a task's own file says; it must agree with the manifest and with the head beside it."""
    place = f"{TASKS}/{folder_name(task)}"
    if f"{place}/{TASK}" not in there:
        raise MtnlpError(f"{place}/{TASK} is missing.")
    found, backbone = _json(there[f"{place}/{TASK}"].read_bytes(), f"{place}/{TASK}"), manifest["backbone"]
    _typed(found, ABOUT, f"{place}/{TASK}: ")
    _typed(found["peft"], PEFT, f"{place}/{TASK}: peft.")
    _typed(found["metrics"], dict.fromkeys(found["metrics"], float), f"{place}/{TASK}: metrics.")
    wanted = {"name": task, "backbone": backbone["digest"], "tokenizer": backbone["tokenizer"]}
    for key, value in wanted.items():
        if found.get(key) != value:
            raise MtnlpError(
                f"{place}/{TASK}: {key} is {shown(found.get(key))}, and the manifest has {shown(value)}."
            )
    head = there.get(f"{place}/{HEAD}")
    if head is not None and (labels := _labels(head)) != found["spec"]["labels"]:
        raise MtnlpError(
            f"{place}/{TASK}: the labels are {shown(found['spec']['labels'])}, and the head beside it was "
            f"trained with {shown(labels)}."
        )
    return found


def _labels(head: Path) -> list[str] | None:
    """The labels that a head's own file names, in the order of its scores."""
    from safetensors import safe_open

    with safe_open(head, "numpy") as file:
        return json.loads((file.metadata() or {}).get("labels", "null"))


def _json(text: bytes, name: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MtnlpError(f"{name}: damaged ({error}).") from None
    if not isinstance(found, dict):
        raise MtnlpError(f"{name}: expected keys and values, found {shown(found)}.")
    return found


def _text(manifest: Mapping[str, Any]) -> str:
    return json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(manifest).encode()).hexdigest()


def _sha256(path: Path) -> str:
    return file_digest(path, hashlib.sha256())
