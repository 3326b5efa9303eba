"""Tables that stay whole: only names give way where there is little room, and a file has room enough."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH = 160  # of lines that go to a file or a pipe


def console() -> Console:
    """The standard output, as wide as its terminal."""
    from rich.console import Console

    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=WIDTH)


def table(columns: Sequence[str], numbers: Collection[str]) -> Table:
    """An empty table. The first column holds names and may be folded; `numbers` stand on the right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, name in enumerate(columns):
        side = "right" if name in numbers else "left"
        made.add_column(name, justify=side, no_wrap=i > 0, overflow="fold", min_width=16 if i == 0 else None)
    return made
