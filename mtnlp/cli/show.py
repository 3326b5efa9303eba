"""`mtnlp show task NAME`: a task's definition, and rows as a model sees them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mtnlp.errors import MtnlpError, did_you_mean, shown

if TYPE_CHECKING:
    from mtnlp.tasks.spec import TaskSpec

SHOWN = (
    *(
        "kind",
        "source",
        "splits",
        "fields",
        "labels",
        "words",
        "instruction",
        "metrics",
        "score_range",
        "limit",
    ),
    *("language", "licence", "citation", "notes"),
)
LABELS = 20  # label names printed of a long list
INDENT = "    "


def show(
    what: Annotated[str, typer.Argument(help="task", metavar="task")],
    name: Annotated[
        str, typer.Argument(help="A task's name, or a file or folder that defines one.", metavar="NAME")
    ],
    split: Annotated[str, typer.Option(help="Where the rendered rows come from.")] = "train",
    rows: Annotated[int, typer.Option(min=0, help="How many rows to render.")] = 3,
) -> None:
    """Show a task's definition and some rendered rows."""
    if what != "task":
        raise MtnlpError(f"Nothing is known about {shown(what)} to show. {did_you_mean(what, ['task'])}")
    from mtnlp.tasks import load

    for spec in load.load(name, Path.cwd()):
        typer.echo("\n".join([spec.name, *_definition(spec)]))
        for line in _rendered(spec, split, rows) if rows else ():
            typer.echo(line)


def _definition(spec: TaskSpec) -> Iterator[str]:
    for key in SHOWN:
        if value := getattr(spec, key):
            yield f"  {key + ':':<13}{_text(value)}"
    for name, template in spec.templates.items():
        yield f"  template {name}:"
        yield _indented(f"{template.prompt}\n=> {template.target}")


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        more = f", ... ({len(value)} in all)" if len(value) > LABELS else ""
        return ", ".join(map(str, value[:LABELS])) + more
    if isinstance(value, dict):
        rows = (
            f"{key} = {f'{len(item)} rows' if isinstance(item, list) else item}"
            for key, item in value.items()
        )
        return ", ".join(rows)
    return str(value)


def _rendered(spec: TaskSpec, split: str, count: int) -> Iterator[str]:
    """The first rows as prompt and target; a source out of reach is a line, not an error."""
    from mtnlp.data.task_data import TaskData
    from mtnlp.runs.session import shots_of
    from mtnlp.tasks.templates import render

    try:
        data = TaskData.open(spec)
    except MtnlpError as error:
        yield f"  No rows to show: {error}"
        return
    for i in range(min(count, len(data.rows(split)))):
        made = render(data.spec, data.example(split, i), shots=shots_of(data.spec))
        yield f"  {split} {i}:"
        yield _indented(made.prompt)
        yield _indented(f"=> {made.target}")


def _indented(text: str) -> str:
    return "\n".join(INDENT + line for line in text.splitlines())
