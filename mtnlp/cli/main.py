"""The command `mtnlp`: its list of commands, and how errors leave it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from mtnlp import __version__
from mtnlp.cli.affinity import affinity
from mtnlp.cli.check import check
from mtnlp.cli.compare import compare
from mtnlp.cli.eval import evaluate
from mtnlp.cli.export import export
from mtnlp.cli.finetune import finetune
from mtnlp.cli.list import list_names
from mtnlp.cli.predict import predict
from mtnlp.cli.pull import pull
from mtnlp.cli.push import push
from mtnlp.cli.report import report
from mtnlp.cli.show import show
from mtnlp.errors import MtnlpError

# Plain text instead of rich panels: it halves the time of --help, and errors stay lines that grep can find.
app = typer.Typer(
    name="mtnlp",
    help="Fine-tune one backbone on many NLP tasks at once. Start with: mtnlp finetune quickstart",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("finetune")(finetune)
app.command("eval")(evaluate)
app.command("compare")(compare)
app.command("affinity")(affinity)
app.command("report")(report)
app.command("predict")(predict)
app.command("push")(push)
app.command("pull")(pull)
app.command("export")(export)
app.command("check")(check)
app.command("list")(list_names)
app.command("show")(show)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mtnlp {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Options that belong to no command."""


def main(args: Sequence[str] | None = None) -> None:
    """Run one command line (default: the process's own) and exit.

    Exit codes: 0 done, 1 training had to stop, 2 wrong input, 130 interrupted. A traceback is a bug.
    """
    try:
        app(args=args, prog_name="mtnlp")
    except MtnlpError as error:
        typer.echo(f"mtnlp: {error}", err=True)
        raise SystemExit(error.exit_code) from None
    except SystemExit as end:
        if isinstance(getattr(end.__context__, "__cause__", None), KeyboardInterrupt):  # typer's own exit
            typer.echo("mtnlp: interrupted. What was finished is kept; run the same command again.", err=True)
        raise
