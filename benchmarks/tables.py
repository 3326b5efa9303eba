"""The JSON files that the benchmarks write, as tables in Markdown: what docs/benchmarks.md shows.

Run:     python benchmarks/tables.py step.json plan.json [--into docs/benchmarks.md]
Cost:    nothing
--into puts the table of step.json between the lines `<!-- step -->` and `<!-- end -->` of the page.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from _kit import number


def line(row: dict[str, Any]) -> str:
    target = "" if row["target"] is None else f"{'≤' if row['most'] else '≥'} {row['target']:.3g}"
    spread = "" if row["low"] == row["high"] else f"{number(row['low'])} to {number(row['high'])}"
    reached = {None: "", True: "yes", False: "no"}[row["ok"]]
    cells = (row["what"], number(row["value"]), spread, target, reached, row["note"])
    return f"| {' | '.join(cells)} |"


def markdown(data: dict[str, Any]) -> str:
    """One table, its groups one after the other, under a line that says where and when."""
    about = ", ".join(f"{key} {value}" for key, value in data["environment"].items())
    lines = [f"{about}.{' Quick run: the numbers mean nothing.' if data['quick'] else ''}"]
    lines += [data["engine"]] if data.get("engine") else []
    lines += [
        "",
        "| case | median | quartiles | target | reached | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for group, rows in data["groups"].items():
        lines += [f"| **{group}** | | | | | |", *map(line, rows)]
    return "\n".join(lines)


def insert(page: str, name: str, table: str) -> str:
    """The page with the table in its place.

    Raises:
        SystemExit: the page has no such place.
    """
    place = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not place.search(page):
        sys.exit(f"the page has no line <!-- {name} -->")
    return place.sub(lambda found: f"{found[1]}\n{table}\n\n{found[2]}", page)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", type=Path, nargs="+", help="what the benchmarks wrote with --json")
    parser.add_argument("--into", type=Path, help="a page with a place for each")
    options = parser.parse_args()
    for path in options.files:
        data = json.loads(path.read_text("utf-8"))
        if options.into:
            page = options.into.read_text("utf-8")
            options.into.write_text(insert(page, path.stem, markdown(data)), "utf-8")
        else:
            print(f"\n## {data['title']}\n\n{markdown(data)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
