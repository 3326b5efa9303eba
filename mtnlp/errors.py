"""The error tree: everything a user can fix is an MtnlpError and prints as one line, without a traceback.

MtnlpError            exit code 2: a recipe, a name, a file, a row
├── RecipeError       several problems of one recipe, reported together
├── DataError         a source, a row, a label: names file, line and field
└── TrainingError     exit code 1: a run that had to stop (non-finite loss, out of memory)
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class MtnlpError(Exception):
    """Something the user can mend. The message names what was found, what was expected and the fix."""

    exit_code = 2


class RecipeError(MtnlpError):
    """Every problem of one recipe at once.

    Args:
        path: the recipe's file, or any name for where it came from.
        problems: one sentence per problem, each starting with the key it is about.
    """

    def __init__(self, path: object, problems: Iterable[str]) -> None:
        self.path = path
        self.problems = tuple(problems)
        super().__init__("\n".join([f"{path}:", *(f"  {problem}" for problem in self.problems)]))


class DataError(MtnlpError):
    """A source, row or label that cannot be used."""


class TrainingError(MtnlpError):
    """A run that had to stop; everything saved before it is whole."""

    exit_code = 1


def shown(value: object, most: int = 60) -> str:
    """`value` in a message: its repr, cut to `most` characters."""
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."


def did_you_mean(name: str, known: Iterable[str], *, shown: int = 12) -> str:
    """The end of an "unknown name" message: the nearest known names, then some or all of them."""
    known = sorted(known)
    listed = ", ".join(known[:shown]) + (f", ... ({len(known)} in all)" if len(known) > shown else "")
    return f"{nearest(name, known)}Known: {listed}." if known else "None is known."


def nearest(name: str, known: Iterable[str]) -> str:
    """A question with the nearest known names, to go before another sentence; empty where none is near."""
    lowered = {k.lower(): k for k in known}
    close = [lowered[match] for match in get_close_matches(str(name).lower(), lowered, n=3, cutoff=0.6)]
    return f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
