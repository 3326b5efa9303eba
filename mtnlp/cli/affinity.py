"""`mtnlp affinity RECIPE [key=value ...]`: which tasks go together, before the budget is spent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mtnlp.cli._arguments import BackboneOption, OverridesArgument, RecipeArgument, TrustOption, listed
from mtnlp.cli.finetune import INTERRUPTED


def affinity(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    steps: Annotated[int, typer.Option(help="Steps of the short joint run.")] = 50,
    groups: Annotated[
        int | None, typer.Option(help="Most groups to propose. Default: as many as are best.")
    ] = None,
    runs: Annotated[
        list[str] | None,
        typer.Option(help="Finished runs or bundles whose adapters to compare: a,b, or given many times."),
    ] = None,
    backbone: BackboneOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results. Default: runs/<name>-affinity.")
    ] = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Train all tasks together for a few steps, measure how they help and hurt each other, and propose which
    to train together."""
    try:
        from mtnlp.runs import affinity as room

        room.affinity(
            recipe,
            overrides or [],
            steps=steps,
            groups=groups,
            runs=listed(runs or ()),
            backbone=backbone,
            out=out,
            trust_remote_code=trust_remote_code,
        ).print()
    except KeyboardInterrupt:
        typer.echo("mtnlp: interrupted. Nothing was written.", err=True)
        raise typer.Exit(INTERRUPTED) from None
