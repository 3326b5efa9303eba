"""`mtnlp predict RUN --task T`: rows in, one JSON object per row out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mtnlp.cli._arguments import BackboneOption, RunArgument, TrustOption
from mtnlp.errors import DataError, shown

if TYPE_CHECKING:
    from mtnlp.tasks.spec import TaskSpec

CHUNK = 256  # rows answered at a time, so that a long input streams


def predict(
    run: RunArgument,
    task: Annotated[
        str | None, typer.Option(help="Which of its tasks. May be left out if there is one.")
    ] = None,
    input: Annotated[Path | None, typer.Option(help="Read this file instead of standard input.")] = None,
    backbone: BackboneOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Answer rows of text or JSONL; writes JSONL.

    Rows are lines of plain text, or JSON objects with the task's fields or its source's columns. A pair task
    takes two texts separated by a tab, a tag task words separated by spaces. Blank lines are skipped.
    """
    with _opened(input) as lines:
        from mtnlp.runs import saved

        model = saved.load(run, backbone=backbone, trust_remote_code=trust_remote_code)
        spec = model.tasks[model.chosen(task)]
        if input is None and sys.stdin.isatty():
            typer.echo("Reading from the keyboard; end with Ctrl-D.", err=True)
        where = str(input or "standard input")
        rows = read_rows(lines, spec, where)
        while chunk := list(islice(rows, CHUNK)):
            places = [f"{where}:{number}" for number, _ in chunk]
            for answer in model.predict([row for _, row in chunk], task=spec.name, places=places):
                typer.echo(json.dumps(answer, ensure_ascii=False))


def read_rows(lines: Iterable[str], spec: TaskSpec, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, row) of each line that is not blank. JSON if the first starts with `{`, else text.

    Raises:
        DataError: a line that is not a JSON object, or text for a task that needs more; names the line.
    """
    reader = None
    for number, line in enumerate(_decoded(lines, where), start=1):
        if not line.strip():
            continue
        reader = reader or (_from_json if line.lstrip().startswith("{") else _from_text)
        try:
            yield number, reader(line.strip("\r\n"), spec)
        except ValueError as error:
            raise DataError(f"{where}:{number}: {error}") from None


def _decoded(lines: Iterable[str], where: str) -> Iterator[str]:
    """The lines, without a byte order mark before the first."""
    try:
        for number, line in enumerate(lines):
            yield line if number else line.removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text ({error.reason}). Convert the file first.") from None


def _from_json(line: str, spec: TaskSpec) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(
            f"not JSON ({error}). The first line is an object, so every line must be one."
        ) from None
    if not isinstance(row, dict):
        raise ValueError(f'expected an object like {{"{spec.parts.inputs[0]}": ...}}, found {shown(line)}.')
    return row


def _from_text(line: str, spec: TaskSpec) -> dict[str, Any]:
    if spec.parts.inputs == ("text",):
        return {"text": line}
    if spec.parts.inputs == ("tokens",):
        return {"tokens": line.split()}
    if spec.parts.inputs == ("text", "text_pair"):
        texts = line.split("\t")
        if len(texts) != 2:
            raise ValueError(f"{spec.name} needs two texts separated by one tab, found {len(texts)}.")
        return dict(zip(spec.parts.inputs, texts, strict=True))
    example = ", ".join(f'"{name}": ...' for name in spec.parts.inputs)
    raise ValueError(f"{spec.name} ({spec.kind}) needs more than a text; give JSONL like {{{example}}}.")


def _opened(path: Path | None) -> AbstractContextManager[Iterable[str]]:
    try:
        if path is not None:
            return path.open(encoding="utf-8")
        if hasattr(sys.stdin, "reconfigure"):  # whatever the locale says
            sys.stdin.reconfigure(encoding="utf-8", errors="strict")
        return nullcontext(sys.stdin)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}.") from None
