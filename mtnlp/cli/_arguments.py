"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe file, or the name of a shipped one.", metavar="RECIPE")
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(help="Keys of the recipe to change, such as train.lr=1e-4.", metavar="[key=value]..."),
]
RunArgument = Annotated[Path, typer.Argument(help="A run folder that `mtnlp finetune` wrote.", metavar="RUN")]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let the backbone's repository run its own Python.")
]
