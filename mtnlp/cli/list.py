"""`mtnlp list ROOM`: what can be named in a recipe."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mtnlp.errors import MtnlpError, did_you_mean, shown

METHODS = ("strategies", "samplers", "balancers", "heads")
ROOMS = ("tasks", *METHODS, "recipes", "metrics")


def list_names(
    room: Annotated[str, typer.Argument(help=f"One of: {', '.join(ROOMS)}.", metavar="ROOM")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """List what can be named in a recipe."""
    if room not in ROOMS:
        raise MtnlpError(f"There is no list of {shown(room)}. {did_you_mean(room, ROOMS)}")
    rows = (
        _methods(room)
        if room in METHODS
        else {"tasks": _tasks, "recipes": _recipes, "metrics": _metrics}[room]()
    )
    if as_json:
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        typer.echo(f"{row['name']:<{width}}  {row['about']}".rstrip())


def _methods(room: str) -> list[dict[str, Any]]:
    package = importlib.import_module(f"mtnlp.{room}")
    return [{"name": name, "about": package.summary(name)} for name in package.names()]


def _tasks() -> list[dict[str, Any]]:
    from mtnlp import tasks

    specs = [tasks.get(name) for name in tasks.names()]
    return [
        {"name": spec.name, "kind": spec.kind, "source": str(spec.source), "licence": spec.licence,
         "about": f"{spec.kind:<10}  {spec.source}"}
        for spec in specs
    ]  # fmt: skip


def _recipes() -> list[dict[str, Any]]:
    from mtnlp.config import shipped

    return [{"name": name, "file": str(path), "about": _heading(path)} for name, path in shipped().items()]


def _heading(path: Path) -> str:
    """The first comment of a recipe, which says what it is."""
    comments = (line for line in path.read_text("utf-8").splitlines() if line.startswith("#"))
    return next(comments, "").lstrip("# ").removeprefix(f"recipes/{path.name}:").strip()


def _metrics() -> list[dict[str, Any]]:
    from mtnlp import metrics
    from mtnlp.tasks.spec import KINDS

    rows = []
    for name in metrics.names():
        kinds = [kind for kind in KINDS if name in metrics.names(kind)]  # of all metrics of that name
        more = metrics.get(name).greater_is_better
        better = "higher is better" if more else "lower is better"
        about = f"{better:<16}  {', '.join(kinds)}"
        rows.append({"name": name, "greater_is_better": more, "kinds": kinds, "about": about})
    return rows
