"""The cosines of gradients that a run has recorded (see mtnlp.train.conflicts), as a section of its page."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from mtnlp.bench import page as bench_page
from mtnlp.compare import affinity as maths
from mtnlp.compare import affinity_page
from mtnlp.errors import MtnlpError
from mtnlp.runs.folder import RunFolder

if TYPE_CHECKING:
    from mtnlp.runs.report import Found

MAPPED, PAIRS = 30, 12  # tasks that a map is drawn of, and pairs that are listed
TITLE = "Cosine of gradients while training"
READING = (
    "Orange, below 0: what one of the two asks of the parameters that they share, the other resists. Few "
    "rows pull cosines towards 0."
)


def section(found: Found) -> list[str]:
    """A map of all pairs and the worst of them; or why there is none. Nothing for a single task."""
    names = [spec.name for spec in found.run.specs]
    if len(names) < 2:
        return []
    folder = RunFolder(found.run.where)
    more = shlex.join(["mtnlp", "affinity", str(folder.recipe)])
    if found.conflicts:
        lines = found.conflicts
        try:
            cosines = [_placed(line, names) for line in lines]
            rows = sorted({int(line["rows"]) for line in lines})
        except (KeyError, TypeError, ValueError) as error:
            raise MtnlpError(
                f"{folder.metrics}: a line of kind conflicts cannot be read ({error}). Restore the file, or "
                "remove the line."
            ) from None
        return _shown(names, cosines, f"{_when(lines)}, on {rows[0]} rows of each task.", more)
    if not _shares(folder):
        method = found.run.recipe.model.strategy.name
        told = f"With {method} tasks share no trained parameter, so that their gradients cannot conflict."
        return [f"<p>{escape(told)}</p>"]
    told = "This run has recorded none. A short run that measures them, and how tasks help each other:"
    return [f"<p>{told}</p><pre>{escape(more)}</pre>"]


def _shown(names: Sequence[str], cosines: Sequence[np.ndarray], when: str, more: str) -> list[str]:
    matrix = maths.averaged(cosines)
    parts = [f'<p class="soft">{escape(f"{when} {READING}")}</p>']
    if len(names) <= MAPPED:
        parts.append(affinity_page.heat_map(TITLE, names, matrix))
    pairs = _pairs(names, cosines, matrix)
    worst = [pair for pair in pairs if pair[2].startswith("-")]
    known = f"{len(worst):,} of {len(pairs):,} measured pairs are below 0 on average"
    parts.append(f"<p>{known}{'; the lowest:' if len(worst) > 1 else ':' if worst else '.'}</p>")
    if worst:
        head = ("task", "and", "cosine", "below 0")
        parts.append(bench_page.table(head, worst[:PAIRS], frozenset((2, 3))))
    told = "With more rows, and what tasks do to each other's losses:"
    return [*parts, f'<p class="soft">{told}</p><pre>{escape(more)}</pre>']


def _pairs(
    names: Sequence[str], cosines: Sequence[np.ndarray], matrix: maths.Matrix
) -> list[tuple[str, str, str, str]]:
    """Those that were measured, lowest mean first: two tasks, mean and standard error, how often below 0."""
    stack, found = np.stack(cosines), []
    for i, j in zip(*np.triu_indices(len(names), 1), strict=True):
        values = stack[:, i, j][~np.isnan(stack[:, i, j])]
        if values.size:
            error = matrix.error[i, j]
            spread = "" if np.isnan(error) else f" ± {error:.2f}"
            often = f"{(values < 0).sum()} of {values.size}"
            found.append((matrix.mean[i, j], names[i], names[j], f"{matrix.mean[i, j]:+.2f}{spread}", often))
    return [tuple(pair[1:]) for pair in sorted(found, key=lambda pair: pair[0])]


def _placed(line: Mapping[str, Any], names: Sequence[str]) -> np.ndarray:
    """(T, T) cosines of one measurement; NaN where a task was not in it."""
    at = [names.index(name) for name in line["tasks"]]
    full = np.full((len(names), len(names)), np.nan)
    full[np.ix_(at, at)] = maths.cosines(np.array(line["gram"], dtype=float).reshape(len(at), len(at)))
    return full


def _when(lines: Sequence[Mapping[str, Any]]) -> str:
    first, last = lines[0]["step"], lines[-1]["step"]
    if len(lines) == 1:
        return f"One measurement, after step {first:,}, so even signs may be chance"
    return f"{len(lines)} measurements, after steps {first:,} to {last:,}"


def _shares(folder: RunFolder) -> bool:
    """Whether tasks share a trained parameter: by the names of what was trained."""
    from safetensors import safe_open

    with safe_open(folder.weights, "np") as file:
        return any(name.startswith("shared/") for name in file.keys())  # noqa: SIM118
