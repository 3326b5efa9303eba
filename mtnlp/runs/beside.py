"""What other commands found about the tasks of a run, as sections of its page."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from html import escape
from typing import Any

import numpy as np

from mtnlp.bench import page as bench_page
from mtnlp.compare import affinity_found, affinity_page, outcome, page
from mtnlp.compare.affinity import Matrix
from mtnlp.compare.affinity_found import AFFINITY, COSINE
from mtnlp.compare.outcome import Costs, Variant
from mtnlp.compare.verdicts import TaskVerdict, Verdicts
from mtnlp.errors import MtnlpError

STYLE = affinity_page.COLOURS


def compare(data: Mapping[str, Any] | None, own: Collection[str]) -> list[str]:
    """The verdicts in a compare.json; none where there is none.

    Args:
        own: tasks of the run.

    Raises:
        MtnlpError: it is of other tasks, or not what `mtnlp compare` writes.
    """
    if data is None:
        return []
    try:
        variants, seeds = [_variant(one) for one in data["variants"]], len(data["seeds"])
    except (KeyError, TypeError, ValueError) as error:
        raise _strange("compare", error) from None
    _require(own, {task.task for variant in variants for task in variant.found.tasks}, "compare")
    over = f"rows and {seeds} seeds" if seeds > 1 else "rows"
    told = f"Joint minus single-task, with the 95 % interval over {over}. The bar across it: no difference."
    parts = [f'<p class="soft">{told}</p>']
    for variant in variants:
        tasks = variant.found.tasks
        parts += [
            f"<h3>{escape(outcome.title(variant))}</h3>",
            page.chart(tasks),
            bench_page.table(outcome.HEAD, map(outcome.row, tasks), frozenset(range(4, 11))),
            bench_page.bullets(outcome.remarks(variant)),
        ]
    return parts


def _variant(data: Mapping[str, Any]) -> Variant:
    tasks = tuple(TaskVerdict(**task) for task in data["found"]["tasks"])
    found = Verdicts(**{**data["found"], "tasks": tasks})
    return Variant(data["name"], found, Costs(**data["costs"]), Costs(**data["alone"]))


def affinity(data: Mapping[str, Any] | None, own: Collection[str]) -> list[str]:
    """The cosines, affinities and groups in an affinity.json; as `compare`."""
    if data is None:
        return []
    try:
        names, measured = data["tasks"], [data[key] for key in ("measured", "rows", "steps", "strategy")]
        maps = [
            (title, _matrix(data[key], len(names)))
            for title, key in ((COSINE, "cosine"), (AFFINITY, "affinity"))
        ]
        groups = [(", ".join(group["tasks"]), group["verify"]) for group in data["groups"]]
        notes = list(data["notes"])
    except (KeyError, TypeError, ValueError) as error:
        raise _strange("affinity", error) from None
    _require(own, names, "affinity")
    about = "{} measurements on {} rows of each task in {} steps with {}.".format(*measured)
    parts = [f'<p class="soft">{escape(f"{about} {affinity_page.READING}")}</p>']
    for title, matrix in maps:
        told = affinity_found.remark(matrix, affinity_found.unit_of(matrix.mean))
        parts.append(f"<h3>{escape(title + told)}</h3>")
        parts.append(affinity_page.heat_map(title, names, matrix))
    items = "".join(f"<li>{escape(tasks)}<pre>{escape(command)}</pre></li>" for tasks, command in groups)
    parts += ["<h3>Groups to try, with what verifies them</h3>", f"<ol>{items}</ol>"]
    return [*parts, *([bench_page.bullets(notes)] if notes else [])]


def _matrix(data: Mapping[str, Any], size: int) -> Matrix:
    """ValueError if it is not (size, size)."""
    return Matrix(*(np.array(data[key], dtype=float).reshape(size, size) for key in ("mean", "error")))


def _strange(what: str, error: Exception) -> MtnlpError:
    return MtnlpError(
        f"{what}.json: not what this version of `mtnlp {what}` writes ({error}). Make it again."
    )


def _require(own: Collection[str], names: Collection[str], what: str) -> None:
    if not set(own) & set(names):
        raise MtnlpError(
            f"{what}.json: its tasks ({', '.join(sorted(names)[:3])} ...) are none of the run's. Name "
            "another folder."
        )
