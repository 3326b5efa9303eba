"""`mtnlp export RUN --merge TASK`: one task as a plain folder of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mtnlp.cli._arguments import BackboneOption, RunArgument, TrustOption


def export(
    run: RunArgument,
    merge: Annotated[str, typer.Option(help="The task whose adapter is merged into the weights.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it must be new or empty.")],
    backbone: BackboneOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Merge a task's adapter into the backbone and write it as a folder that transformers loads."""
    from mtnlp.runs import publish

    how = publish.export(run, merge, out, backbone=backbone, trust_remote_code=trust_remote_code)
    typer.echo(f"{out}: load it with transformers.{how}.from_pretrained.")
    if (out / "head.safetensors").exists():
        typer.echo("No class of transformers has its head, which is in head.safetensors; README.md says how.")
