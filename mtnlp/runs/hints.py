"""What to try after a run: commands that can be pasted, with a row of the run's own data."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtnlp.data.task_data import TaskData
    from mtnlp.tasks.spec import Example

SHORT = 70  # characters of a text in a command
PLAIN = ("text",), ("tokens",)  # inputs that `predict` reads as plain text


def next_steps(run: Path, tasks: Sequence[TaskData]) -> str:
    """Where the run is, and the commands for its first task that takes plain text, or its first."""
    data = next((data for data in tasks if data.spec.parts.inputs in PLAIN), tasks[0])
    split = next(name for name in ("test", "validation", "train") if name in data.splits)
    folder, row = shlex.quote(str(run)), shlex.quote(_line(data.example(split, 0)))
    lines = [
        f"\nThe run lies in {run}. Try next:",
        f"  echo {row} | mtnlp predict {folder} --task {data.spec.name}",
    ]
    kept = all(isinstance(other.spec.source, str) or _on_disk(other.spec.source) for other in tasks)
    judged = [name for name in ("validation", "test") if all(name in other.splits for other in tasks)]
    if kept and judged:
        lines.append(f"  mtnlp eval {folder} --split {judged[0]}")
    lines.append(f"  mtnlp report {folder}")
    return "\n".join(lines)


def _line(example: Example) -> str:
    """The inputs of a row as `predict` reads them: a text or words as they are, else a JSON object."""
    inputs = {name: _shortened(value) for name, value in example.inputs.items()}
    if set(inputs) == {"tokens"}:
        return " ".join(inputs["tokens"])
    if set(inputs) == {"text"} and not inputs["text"].startswith("{"):
        return inputs["text"]
    return json.dumps(inputs, ensure_ascii=False)


def _shortened(value: Any) -> Any:
    """Without line breaks, backslashes (which some shells' echo reads) and most of what is long."""
    if isinstance(value, str):
        text = " ".join(value.replace("\\", "/").split())
        return text if len(text) <= SHORT else text[:SHORT].rpartition(" ")[0] or text[:SHORT]
    kept, room = [], SHORT
    for item in map(_shortened, value):
        kept += [item] if len(item) < room or len(kept) < 2 else []
        room -= len(item) + 1
    return kept


def _on_disk(source: Any) -> bool:
    return isinstance(source, Mapping) and all(isinstance(part, str) for part in source.values())
