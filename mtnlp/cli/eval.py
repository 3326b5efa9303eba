"""`mtnlp eval TARGET...`: score runs and models, on their own tasks or on a suite, and compare them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mtnlp.cli._arguments import BackboneOption, TrustOption

SuiteOption = Annotated[
    str | None,
    typer.Option(help="A suite by name, a YAML file, or a folder of tasks. Default: a run's own tasks."),
]
AdapterOption = Annotated[
    list[str] | None,
    typer.Option(help="An adapter in peft's format for a plain model; may be given many times."),
]
TasksOption = Annotated[
    str | None, typer.Option(help="Some of the tasks, or patterns over their names: a,b/*. Default: all.")
]
SplitOption = Annotated[
    str | None, typer.Option(help="Which split to score. Default: as the suite says, else test.")
]
RootOption = Annotated[Path | None, typer.Option(help="Folder in which a suite's own folders of tasks lie.")]
CompareOption = Annotated[
    bool, typer.Option("--compare", help="Compare the first target (or adapter) with each other one.")
]
OverlapOption = Annotated[
    bool, typer.Option("--overlap", help="Also look for the rows in what the run was trained on.")
]
OutOption = Annotated[
    Path | None,
    typer.Option(help="Folder for results.json, samples and report.html; or a .json file of scores."),
]


def evaluate(
    targets: Annotated[
        list[str],
        typer.Argument(
            help="Run folders, bundles, or models: folder, address or hub id.", metavar="TARGET..."
        ),
    ],
    suite: SuiteOption = None,
    adapter: AdapterOption = None,
    tasks: TasksOption = None,
    split: SplitOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many rows per task.")] = None,
    root: RootOption = None,
    compare: CompareOption = False,
    overlap: OverlapOption = False,
    out: OutOption = None,
    backbone: BackboneOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Score runs and models on their own tasks or on a suite. What was answered before is not asked again."""
    from mtnlp.bench import ranks
    from mtnlp.runs import judge

    if out is not None:
        judge.check_out(out)
    verdict = judge.judge(
        targets,
        suite,
        adapters=adapter or [],
        tasks=tasks,
        split=split,
        limit=limit,
        root=root,
        compare=compare,
        overlap=overlap,
        backbone=backbone,
        trust_remote_code=trust_remote_code,
        progress=lambda line: typer.echo(line, err=True) if ranks.rank() == 0 else None,
    )
    if ranks.rank() == 0:
        verdict.print()
        if out is not None and out.suffix == ".json":
            verdict.evaluations[0].report.save(out)
        elif out is not None:
            judge.save(verdict, out)
    if not verdict.whole:
        raise typer.Exit(1)
