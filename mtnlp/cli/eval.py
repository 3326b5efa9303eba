"""`mtnlp eval RUN`: score a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mtnlp.cli._arguments import RunArgument, TrustOption
from mtnlp.errors import MtnlpError


def evaluate(
    run: RunArgument,
    tasks: Annotated[
        str | None, typer.Option(help="Some of its tasks, or patterns over their names: a,b/*. Default: all.")
    ] = None,
    split: Annotated[str, typer.Option(help="Which split to score.")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many rows per task.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the scores to this JSON file.")] = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Score a run on a split of its tasks."""
    from mtnlp.runs import saved

    if out is not None and out.is_dir():
        raise MtnlpError(f"--out {out} is a folder; name a file, such as {out / 'scores.json'}.")
    report = saved.evaluate_run(run, tasks, split, limit, trust_remote_code=trust_remote_code)
    report.print()
    if out is not None:
        report.save(out)
