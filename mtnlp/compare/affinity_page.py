"""Affinities as one HTML page that needs nothing else: heat maps, groups, and what verifies them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from mtnlp.bench import page as bench_page
from mtnlp.compare.affinity import Matrix
from mtnlp.compare.affinity_found import Affinities, cell, remark, said, unit_of

CELL, HIGH, LETTER, LONGEST = 52, 30, 8, 22  # of a map: pixels of a cell and a letter; letters of a name
COLOURS = """
.helps { fill: var(--mark); } .hurts { fill: var(--base); } .none { fill: none; }
.cell { stroke: var(--line); }
svg.map { max-width: none; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; margin: .2rem 0 .8rem; }
@media print { svg.map { max-width: 100%; } .wide { overflow: visible; } svg, pre { break-inside: avoid; } }
"""
READING = (
    "Blue: above 0, the two go together. Orange: below 0, they do not. Cosine: of the gradients of two tasks "
    "on the parameters that they share. Affinity: the share of the column's loss that goes away when the "
    "shared parameters take one step for the row's task alone."
)


def page(found: Affinities) -> str:
    """The page."""
    title = f"{found.name}: which tasks go together"
    about = (
        f"{len(found.tasks)} tasks, strategy {found.strategy}, {found.measured} measurements on {found.rows} "
        f"rows of each task in {found.steps} steps"
    )
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(about)}</p>',
        *([bench_page.bullets(found.notes)] if found.notes else []),
        "<h2>Proposed groups</h2>",
        f"<p>{escape(said(found))}. The lines verify them.</p>",
        _groups(found),
        f'<p class="soft">{escape(READING)}</p>',
    ]
    for title_of, names, matrix in found.shown():
        told = remark(matrix, unit_of(matrix.mean)).removeprefix(", ")
        soft = [f'<p class="soft">{escape(told)}</p>'] if told else []
        parts += [f"<h2>{escape(title_of)}</h2>", *soft, heat_map(title_of, names, matrix)]
    parts += ["<h2>All pairs</h2>", bench_page.folded("Numbers", _pairs(found))]
    return bench_page.document(title, parts, COLOURS)


def heat_map(title: str, names: Sequence[str], matrix: Matrix) -> str:
    """A cell per pair, row onto column, in a colour that is the stronger the further it is from 0. The
    diagonal has none."""
    unit, size = unit_of(matrix.mean), len(names)
    others = np.abs(np.nan_to_num(matrix.mean))[~np.eye(size, dtype=bool)]
    far = float(others.max(initial=0.0)) or 1.0
    labels = [f"{i} {name}" for i, name in enumerate(names, start=1)]
    labels = [label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…" for label in labels]
    left = 12 + LETTER * max(map(len, labels))
    width, height, parts = left + CELL * size, HIGH * (size + 1), []
    for i, (name, label) in enumerate(zip(names, labels, strict=True)):
        x, y = left + CELL * i, HIGH * (i + 1)
        parts.append(f'<text class="soft" x="{x + CELL / 2}" y="20" text-anchor="middle">{i + 1}</text>')
        parts.append(f'<text x="{left - 8}" y="{y + 20}" text-anchor="end">{escape(label)}</text>')
        for j, other in enumerate(names):
            value, error = matrix.mean[i, j], matrix.error[i, j]
            kind = "none" if i == j or math.isnan(value) else "helps" if value > 0 else "hurts"
            strong = 0.0 if kind == "none" else round(0.6 * min(1.0, abs(value) / far), 3)
            at = left + CELL * j
            spread = "" if math.isnan(error) else f" ± {error / unit:.2f}"
            parts.append(
                f'<rect class="cell {kind}" x="{at}" y="{y}" width="{CELL}" height="{HIGH}" '
                f'fill-opacity="{strong}"><title>{escape(name)}, {escape(other)}: {cell(value, unit)}{spread}'
                f'</title></rect><text x="{at + CELL / 2}" y="{y + 20}" text-anchor="middle">'
                f"{cell(value, unit)}</text>"
            )
    return (
        f'<div class="wide"><svg class="map" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></div>'
    )


def _groups(found: Affinities) -> str:
    items = [
        f"<li>{escape(', '.join(tasks))}<pre>{escape(command)}</pre></li>"
        for tasks, command in zip(found.groups, found.commands, strict=True)
    ]
    return f"<ol>{''.join(items)}</ol>"


def _pairs(found: Affinities) -> str:
    rows = [
        (first, second, _spread(found.cosine, i, j, ".3f"), _spread(found.affinity, i, j, ".2e"))
        for i, first in enumerate(found.tasks)
        for j, second in enumerate(found.tasks)
        if i != j
    ]
    return bench_page.table(("from", "onto", "cosine", "affinity"), rows, frozenset((2, 3)))


def _spread(matrix: Matrix, i: int, j: int, form: str) -> str:
    value, error = matrix.mean[i, j], matrix.error[i, j]
    if math.isnan(value):
        return "-"
    return f"{value:+{form}}" + ("" if math.isnan(error) else f" ± {error:{form}}")
