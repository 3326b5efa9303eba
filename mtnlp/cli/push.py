"""`mtnlp push RUN DEST`: publish what a run learned."""

from __future__ import annotations

from typing import Annotated

import typer

from mtnlp.cli._arguments import TrustOption


def push(
    run: Annotated[
        str,
        typer.Argument(help="A run folder that `mtnlp finetune` wrote, or a bundle's folder.", metavar="RUN"),
    ],
    dest: Annotated[
        str,
        typer.Argument(help="owner/name on the model hub, a folder, or an address: s3://...", metavar="DEST"),
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Make the hub repository private, if it is new.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch of the hub repository. Default: main.")] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Propose the change as a pull request on the hub.")
    ] = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Publish a run as one bundle: adapters, heads, cards, scores. The same again changes nothing."""
    from mtnlp.runs import publish

    done = publish.push(
        run,
        dest,
        private=private,
        revision=revision,
        create_pr=create_pr,
        trust_remote_code=trust_remote_code,
    )
    where = done.url or done.address
    typer.echo(f"Pushed: {where}" if done.changed else f"Nothing changed: {where} holds this already.")
    if done.changed and not create_pr:
        typer.echo(f"Others fetch it with: mtnlp pull {done.address}")
