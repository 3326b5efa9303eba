"""Arguments that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe file, or the name of a shipped one.", metavar="RECIPE")
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(help="Keys of the recipe to change, such as train.lr=1e-4.", metavar="[key=value]..."),
]
RunArgument = Annotated[
    str, typer.Argument(help="A run folder, or a bundle: folder, address, or owner/name.", metavar="RUN")
]
BackboneOption = Annotated[
    str | None,
    typer.Option(help="Folder or hub id of a bundle's backbone, where the bundle's own is not here."),
]


def _warn(trusted: bool) -> bool:
    if trusted:
        typer.echo(
            "mtnlp: warning: --trust-remote-code lets Python from the backbone's repository run here, with "
            "your rights.",
            err=True,
        )
    return trusted


TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", callback=_warn, help="Let the backbone's repository run its own Python."
    ),
]


def listed(given: list[str] | tuple[str, ...]) -> list[str]:
    """The names in an option that may be given many times, or once with commas."""
    return [name.strip() for part in given for name in part.split(",") if name.strip()]
