"""`mtnlp finetune RECIPE [key=value ...]`: train. `mtnlp finetune --add RUN TASK ...`: train more tasks."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtnlp.cli._arguments import BackboneOption, OverridesArgument, RecipeArgument, TrustOption
from mtnlp.errors import MtnlpError

if TYPE_CHECKING:
    from mtnlp.config import Source
    from mtnlp.runs.start import Start

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
    add: Annotated[
        str | None,
        typer.Option(
            help="Add tasks to this run or bundle instead; the arguments are then tasks and key=value.",
            metavar="RUN",
        ),
    ] = None,
    backbone: BackboneOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Train one backbone on all tasks of a recipe; or, with --add, further tasks of a trained model."""
    words, start = [recipe, *(overrides or [])], {}
    source, overrides = recipe, overrides or []
    if add is not None:
        source, overrides, start = _adding(add, words, backbone)
    elif backbone is not None:
        raise MtnlpError("--backbone goes with --add. A recipe names its own: model.backbone=...")
    try:
        from mtnlp.runs.start import trainer

        trainer(source, overrides)(
            source,
            overrides,
            out=out,
            resume=resume,
            force=force,
            dry_run=dry_run,
            trust_remote_code=trust_remote_code,
            **start,
        )
    except KeyboardInterrupt:
        options = {"--add": add, "--backbone": backbone, "--out": out}
        given = [word for name, value in options.items() if value for word in (name, str(value))]
        again = ["mtnlp", "finetune", *words, *given]
        again += ["--trust-remote-code"] if trust_remote_code else []
        typer.echo(f"mtnlp: interrupted. {_how_to_go_on(again, source, overrides, out)}", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _adding(run: str, words: list[str], backbone: str | None) -> tuple[Source, list[str], dict[str, Start]]:
    """The recipe of the new tasks, its overrides, and what their run begins with."""
    from mtnlp.runs import adding

    tasks, overrides = ([word for word in words if ("=" in word) is wanted] for wanted in (False, True))
    start = adding.prepare(run, tasks, overrides, backbone=backbone)
    return start.recipe, overrides, {"start": start}


def _how_to_go_on(again: list[str], recipe: Source, overrides: list[str], out: Path | None) -> str:
    from mtnlp import config
    from mtnlp.runs.folder import RunFolder

    read, _ = config.read(recipe, overrides)
    folder = RunFolder(out or Path("runs", read.name if read else ""))
    if not folder.holds_run():
        return f"Nothing was written yet; start again with: {shlex.join(again)}"
    return f"To go on from the last checkpoint: {shlex.join([*again, '--resume'])}"
