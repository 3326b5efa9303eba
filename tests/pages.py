"""The pages of the documentation, cut into blocks and command lines."""

from __future__ import annotations

import re
from pathlib import Path

import mtnlp

ROOT = Path(mtnlp.__file__).parents[1]
PAGES = sorted(path.relative_to(ROOT) for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
SHELL = ("console", "bash")


def blocks(page: Path, *languages: str) -> list[str]:
    """Bodies of the fenced blocks of a page in one of the languages; "" is a block that names none."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [body for language, body in fenced if language in languages]


def command_lines(page: Path) -> list[str]:
    """Every line that a page tells to type, without its `$ `; what goes on after a backslash is one line."""
    text = "".join(blocks(page, *SHELL)).replace("\\\n", " ")
    return re.findall(r"^\$ (.*)$", text, re.MULTILINE)
