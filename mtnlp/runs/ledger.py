"""The ledger of a run (see mtnlp.train.ledger) in its folder, in its metrics and on the screen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtnlp.bench import tables

if TYPE_CHECKING:
    from rich.table import Table

    from mtnlp.train.callbacks import MetricsWriter
    from mtnlp.train.ledger import Entry
    from mtnlp.train.loop import Run

MANY = 10.0  # epochs beyond which more of the same rows seldom teach anything
SHOWN, NAMED = 40, 8  # tasks in the table, and in a warning
STEPS = {"first": "first step", "ended": "last step", "kept": "kept step"}


def keep(run: Run, path: Path, writer: MetricsWriter, *, kept: bool) -> list[Entry]:
    """Write the ledger of the steps done; unless the run is only interrupted, also as its last metrics.

    Args:
        kept: whether the weights are those of the best evaluation.
    """
    from mtnlp.train import apart, ledger, loop

    entries = ledger.of(
        run.mixture, run.step, ended=run.memory.get("ended"), kept=apart.kept_steps(run) if kept else None
    )
    if run.accelerator.is_main_process:
        ledger.write(path, entries)
    if run.stopped != loop.INTERRUPTED:
        writer.write("ledger", step=run.step, tasks=[asdict(entry) for entry in entries])
    return entries


def tell(entries: Sequence[Entry], say: Callable[[Any], None]) -> None:
    """Print the table, and a sentence on tasks that were seen more than MANY times."""
    say(table(entries))
    if len(entries) > SHOWN:
        say(f"and {len(entries) - SHOWN} more tasks, in ledger.json.")
    if often := [f"{entry.task} ({entry.epochs:.1f})" for entry in entries if entry.epochs > MANY]:
        more = f" and {len(often) - NAMED} more" if len(often) > NAMED else ""
        say(
            f"warning: more than {MANY:g} epochs over the same rows: {', '.join(often[:NAMED])}{more}. Draw "
            "them less (sampler: proportional, or unimax, which bounds epochs), or train fewer steps."
        )


def table(entries: Sequence[Entry]) -> Table:
    """The ledger for people; a column of steps that says nothing of any task is left out."""
    steps = [name for name in STEPS if any(getattr(entry, name) is not None for entry in entries)]
    counts = ("rows", "drawn", "epochs", "repeats", "tokens", "asked", "achieved")
    columns = (*counts, *(STEPS[name] for name in steps))
    made = tables.table(("task", *columns), columns)
    for entry in entries[:SHOWN]:
        numbers = [entry.rows, entry.drawn, entry.repeats, entry.tokens]
        rows, drawn, repeats, tokens = (f"{number:,}" for number in numbers)
        shares = (f"{share:.1%}" for share in (entry.asked, entry.achieved))
        when = ["" if (step := getattr(entry, name)) is None else f"{step:,}" for name in steps]
        made.add_row(entry.task, rows, drawn, f"{entry.epochs:.2f}", repeats, tokens, *shares, *when)
    return made
