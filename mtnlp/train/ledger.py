"""The ledger: what each task of a run was really given, beside what the sampler was asked for.

    entries = ledger.of(mixture, steps)      # no need to have watched: a plan is a pure function of its step
    ledger.write(path, entries)

Rows and tokens are counted over all ranks, once per drawing. Torch-free.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mtnlp.samplers.base import Phase

if TYPE_CHECKING:
    from mtnlp.data.mixture import Mixture
    from mtnlp.data.store import TokenStore

AT_ONCE = 1 << 20  # rows whose tokens are looked up in one go


@dataclass(frozen=True)
class Entry:
    """One task.

    Args:
        rows: training rows that it has.
        drawn: examples of it in all steps so far. epochs: drawn / rows.
        repeats: rows that were drawn more than once.
        tokens: real tokens of the drawn examples, those of separate targets among them.
        asked: the sampler's rate, the mean over the steps so far; 0..1.
        achieved: share of all drawn examples; 0..1.
        first: the first step that drew it, counted from 1 as in metrics.jsonl; None = none did.
        ended: the step after which it was drawn no more, because it was finished; None = it was not.
        kept: the step whose weights the run keeps of it; None = of an unknown one.
    """

    task: str
    rows: int
    drawn: int
    epochs: float
    repeats: int
    tokens: int
    asked: float
    achieved: float
    first: int | None
    ended: int | None = None
    kept: int | None = None


def of(
    mixture: Mixture,
    steps: int,
    *,
    ended: Mapping[str, int] | None = None,
    kept: Mapping[str, int] | None = None,
) -> list[Entry]:
    """The ledger after so many steps, in the order of the tasks.

    Args:
        ended: task -> step after which it was drawn no more; those of later steps do not count yet.
        kept: task -> step of its kept weights.
    """
    drawn, first = mixture.drawn(steps), mixture.first(steps)
    rates = asked(mixture.phases, steps)
    total = max(1, int(drawn.sum()))
    return [
        Entry(
            task=name,
            rows=(rows := int(mixture.sizes[i])),
            drawn=(count := int(drawn[i])),
            epochs=count / rows,
            repeats=min(max(count - rows, 0), rows),
            tokens=tokens_of(mixture, i, count),
            asked=float(rates[i]),
            achieved=count / total,
            first=int(first[i]) + 1 if count else None,
            ended=step if (step := (ended or {}).get(name)) is not None and step <= steps else None,
            kept=(kept or {}).get(name),
        )
        for i, name in enumerate(mixture.names)
    ]


def asked(phases: Sequence[Phase], steps: int) -> np.ndarray:
    """(T,) float64 mean rates of the sampler over the steps 0..steps-1, as if no task had ended early."""
    starts = [phase.start for phase in phases if phase.start < steps]
    lengths = np.diff([*starts, steps])
    return sum(
        (length * phase.rates for length, phase in zip(lengths, phases, strict=False)),
        np.zeros_like(phases[0].rates),
    ) / max(1, steps)


def tokens_of(mixture: Mixture, task: int, drawn: int) -> int:
    """Real tokens of the first `drawn` examples of a task: of whole epochs, then of the rows of the last."""
    if not drawn:
        return 0
    each = per_row(mixture.stores[task])
    whole = drawn // len(each)
    bounds = [*range(whole * len(each), drawn, AT_ONCE), drawn]
    last = [
        int(each[mixture.rows(np.full(high - low, task), np.arange(low, high))].sum())
        for low, high in pairwise(bounds)
    ]
    return whole * int(each.sum()) + sum(last)


def per_row(store: TokenStore) -> np.ndarray:
    """(N,) int64 real tokens of every example, of all its sequences and of their separate targets."""
    found = store.token_offsets[store.seq_offsets]
    if "target_counts" in store:
        found = found + store.target_offsets[store.seq_offsets]
    return np.diff(found)


def write(path: Path, entries: Sequence[Entry]) -> None:
    """`entries` as JSON: {"tasks": [{"task": ..., "rows": ..., ...}, ...]}."""
    path.write_text(json.dumps({"tasks": [asdict(entry) for entry in entries]}, indent=1) + "\n", "utf-8")


def read(path: Path) -> list[Entry]:
    """The inverse of `write`."""
    return [Entry(**item) for item in json.loads(path.read_text("utf-8"))["tasks"]]
