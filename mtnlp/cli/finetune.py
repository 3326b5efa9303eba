"""`mtnlp finetune RECIPE [key=value ...]`: train."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from mtnlp.cli._arguments import OverridesArgument, RecipeArgument, TrustOption

INTERRUPTED = 130  # what a shell calls a process that Ctrl-C ended


def finetune(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/<name of the recipe>.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the folder's last checkpoint.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a run folder that exists.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, then stop.")] = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Train one backbone on all tasks of a recipe."""
    overrides = overrides or []
    try:
        from mtnlp.runs import train

        train.finetune(
            recipe,
            overrides,
            out=out,
            resume=resume,
            force=force,
            dry_run=dry_run,
            trust_remote_code=trust_remote_code,
        )
    except KeyboardInterrupt:
        again = ["mtnlp", "finetune", recipe, *overrides, *(["--out", str(out)] if out else [])]
        again += ["--trust-remote-code"] if trust_remote_code else []
        typer.echo(f"mtnlp: interrupted. {_how_to_go_on(again, recipe, overrides, out)}", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _how_to_go_on(again: list[str], recipe: str, overrides: list[str], out: Path | None) -> str:
    from mtnlp import config
    from mtnlp.runs.folder import RunFolder

    read, _ = config.read(recipe, overrides)
    folder = RunFolder(out or Path("runs", read.name if read else ""))
    if not folder.holds_run():
        return f"Nothing was written yet; start again with: {shlex.join(again)}"
    return f"To go on from the last checkpoint: {shlex.join([*again, '--resume'])}"
