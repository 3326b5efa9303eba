"""`mtnlp report RUN`: all that is known of a finished run, as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mtnlp.cli._arguments import TrustOption

RunFolderArgument = Annotated[
    str, typer.Argument(help="A folder that `mtnlp finetune` wrote.", metavar="RUN")
]
OutOption = Annotated[Path | None, typer.Option(help="The file. Default: report.html in the run folder.")]
SplitOption = Annotated[
    str | None, typer.Option(help="Score these rows. Default: those that the run ended with.")
]
CompareOption = Annotated[
    Path | None, typer.Option(help="Folder of `mtnlp compare`, to be shown too. Default: the run's own.")
]
AffinityOption = Annotated[
    Path | None, typer.Option(help="Folder of `mtnlp affinity`, to be shown too. Default: the run's own.")
]


def report(
    run: RunFolderArgument,
    out: OutOption = None,
    split: SplitOption = None,
    compare: CompareOption = None,
    affinity: AffinityOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Write one page that needs no network: scores with intervals, losses, shares, leaks, wrong answers."""
    from mtnlp.bench import ranks
    from mtnlp.runs import report as room

    place = room.write(
        run,
        out,
        split=split,
        compare=compare,
        affinity=affinity,
        trust_remote_code=trust_remote_code,
        progress=lambda line: typer.echo(line, err=True) if ranks.rank() == 0 else None,
    )
    if ranks.rank() == 0:
        typer.echo(place)
