"""`mtnlp compare RECIPE [key=value ...]`: is joint training worth it, task by task."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from mtnlp.cli._arguments import OverridesArgument, RecipeArgument, TrustOption, listed
from mtnlp.cli.finetune import INTERRUPTED

StrategiesOption = Annotated[
    list[str] | None, typer.Option(help="Strategies to sweep over: a,b, or given many times.")
]
SamplersOption = Annotated[list[str] | None, typer.Option(help="Samplers to sweep over.")]
BalancersOption = Annotated[list[str] | None, typer.Option(help="Balancers to sweep over.")]


def compare(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    seeds: Annotated[int, typer.Option(help="Runs of everything, each with a seed of its own.")] = 3,
    strategies: StrategiesOption = None,
    samplers: SamplersOption = None,
    balancers: BalancersOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for runs and results. Default: runs/<name>-compare.")
    ] = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Train every task alone and all together, at equal budget, and say which tasks joint training helped or
    hurt. What was trained before is not trained again."""
    swept = {"strategies": strategies, "samplers": samplers, "balancers": balancers}
    axes = {axis: listed(given or ()) for axis, given in swept.items()}
    try:
        from mtnlp.runs import compare as room

        room.compare(
            recipe,
            overrides or [],
            seeds=seeds,
            axes=axes,
            out=out,
            trust_remote_code=trust_remote_code,
        ).print()
    except KeyboardInterrupt:
        again = ["mtnlp", "compare", recipe, *(overrides or []), "--seeds", str(seeds)]
        again += [word for axis, names in axes.items() if names for word in (f"--{axis}", ",".join(names))]
        again += ["--out", str(out)] if out else []
        again += ["--trust-remote-code"] if trust_remote_code else []
        typer.echo(f"mtnlp: interrupted. What is done is kept; to go on: {shlex.join(again)}", err=True)
        raise typer.Exit(INTERRUPTED) from None
