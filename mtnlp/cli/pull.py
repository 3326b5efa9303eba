"""`mtnlp pull SRC`: fetch a bundle."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer


def pull(
    source: Annotated[
        str,
        typer.Argument(help="owner/name on the model hub, a folder, or an address: s3://...", metavar="SRC"),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder to put it in. Default: its name.")] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the hub repository. Default: main.")
    ] = None,
) -> None:
    """Fetch a bundle, check every file of it, and say what it holds."""
    from mtnlp.runs import publish

    folder, found = publish.pull(source, out, revision=revision)
    for spec, about in zip(found.specs, found.given.tasks, strict=True):
        scores = ", ".join(f"{name} {value:.3f}" for name, value in about["metrics"].items())
        typer.echo(f"{spec.name}  {spec.kind}  {scores}".rstrip())
    backbone = found.given.manifest["backbone"]
    more = " --backbone FOLDER" if backbone["local"] else ""
    typer.echo(f"{len(found.specs)} tasks on {backbone['name']}, in {folder}")
    task = shlex.quote(found.specs[0].name)
    typer.echo(f"Try: mtnlp predict {shlex.quote(str(folder))} --task {task}{more}")
