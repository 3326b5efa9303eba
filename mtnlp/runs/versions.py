"""With what a run was trained: versions and machine, in versions.json of its folder.

    [{"step": 0, "made": {"mtnlp": "0.1.0", "Python": "3.11.2", "torch": ..., "machine": ...}}, ...]

An entry holds from the first step after `step` on; a run that was resumed with the same has one.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtnlp import __version__
from mtnlp.errors import MtnlpError

if TYPE_CHECKING:
    from mtnlp.train.loop import Run

LIBRARIES = ("torch", "transformers", "tokenizers", "peft", "accelerate", "datasets", "numpy")
CPUS = Path("/proc/cpuinfo")


def note(path: Path, run: Run) -> None:
    """Write down what a run is now trained with; it may have begun with something else. On the first rank."""
    if not run.accelerator.is_main_process:
        return
    entries = [dict(entry) for entry in read(path) if entry["step"] < run.step]
    made = {**_libraries(), "machine": _machine(run)}
    if not entries or entries[-1]["made"] != made:
        entries.append({"step": run.step, "made": made})
    path.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", "utf-8")


def read(path: Path) -> list[Mapping[str, Any]]:
    """The entries, by ascending step; none of a run that has kept none. MtnlpError if they are damaged."""
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_text("utf-8"))
        for entry in entries:
            entry["step"], entry["made"].items()
        return entries
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MtnlpError(f"{path}: damaged ({error}). Restore the file, or remove it.") from None


def told(entries: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Name -> its value, and where it changed, the later ones with their first step."""
    found: dict[str, list[str]] = {}
    last: dict[str, str] = {}
    for entry in entries:
        for name, value in entry["made"].items():
            if last.get(name) != value:
                since = f" from step {entry['step'] + 1:,}" if entry["step"] else ""
                found.setdefault(name, []).append(f"{value}{since}")
        last = {**last, **entry["made"]}
    return {name: ", ".join(values) for name, values in found.items()}


def _libraries() -> dict[str, str]:
    """Ours, Python's, and those of the libraries that are installed."""
    found = {"mtnlp": __version__, "Python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _machine(run: Run) -> str:
    """What kind of device computes, how many processes and threads; no name of the machine."""
    import torch

    kind, count = run.accelerator.device.type, run.accelerator.num_processes
    name = torch.cuda.get_device_name() if kind == "cuda" else _cpu()
    threads = torch.get_num_threads()
    return f"{count} x {kind} ({name}), {threads} thread{'s' * (threads != 1)}, {platform.system()}"


def _cpu() -> str:
    """What the processor is called, else its architecture."""
    try:
        lines = CPUS.read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
