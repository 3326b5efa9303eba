"""How every benchmark here measures and reports.

Cases run one after the other in rounds, in an order drawn anew each round, so that what else happens on the
machine meets all of them alike. Within a round, each case is divided by the case it is compared with; a row
of the table is the median of these ratios with their quartiles. With one thread (the default) a time is the
CPU time of the process, which hardly feels a busy machine; with more it is the wall clock.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import multiprocessing
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

Times = dict[str, list[float]]  # case -> seconds of each round


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        what: the case; against: what it is divided by.
        value, low, high: median and quartiles; low = high = value where there is only one number.
        target: what is to be reached; `most` says on which side. None = only reported.
        note: whatever else a reader should see.
    """

    what: str
    against: str
    value: float
    low: float
    high: float
    target: float | None = None
    most: bool = True
    note: str = ""

    @property
    def ok(self) -> bool | None:
        if self.target is None:
            return None
        return self.value <= self.target if self.most else self.value >= self.target


def arguments(doc: str) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: only to see whether it runs")
    parser.add_argument("--threads", type=int, default=1, help="1 = CPU time, more = wall clock")
    parser.add_argument("--rounds", type=int, help="rounds of each comparison")
    return parser


def apart() -> ProcessPoolExecutor:
    """One fresh process, in which nothing has been set; an error if the system ends it (out of memory)."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def clock_for(threads: int) -> Callable[[], float]:
    return time.process_time if threads == 1 else time.perf_counter


def rounds(
    cases: Mapping[str, Callable[[], Any]], *, count: int, threads: int = 1, warmup: int = 1, seed: int = 0
) -> Times:
    """Seconds of every case in `count` interleaved rounds."""
    return timed({name: stopwatch(case, threads) for name, case in cases.items()}, count, warmup, seed)


def timed(cases: Mapping[str, Callable[[], float]], count: int, warmup: int = 0, seed: int = 0) -> Times:
    """The same for cases that return their own seconds."""
    order, draw = list(cases), random.Random(seed)
    times: Times = {name: [] for name in cases}
    for turn in range(-warmup, count):
        draw.shuffle(order)
        for name in order:
            seconds = cases[name]()
            if turn >= 0:
                times[name].append(seconds)
    return times


def stopwatch(case: Callable[[], Any], threads: int) -> Callable[[], float]:
    clock = clock_for(threads)

    def run() -> float:
        start = clock()
        case()
        return clock() - start

    return run


def middle(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return median(values), low, high


def compared(times: Times, what: str, against: str, **more: Any) -> Row:
    """`what` as a multiple of `against`, round by round."""
    ratios = [a / b for a, b in zip(times[what], times[against])]
    note = more.pop("note", f"{1e3 * median(times[what]):.1f} ms")
    return Row(more.pop("name", what), against, *middle(ratios), note=note, **more)


def environment(threads: int) -> dict[str, Any]:
    """What the numbers depend on; nothing that names the machine."""
    versions = {}
    for name in ("torch", "transformers", "peft", "accelerate", "adapters"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    cpu = platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        found = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        found = {key.strip(): value.strip() for key, value in found.items()}
        flags = found.get("flags", "").split()
        known = " ".join(flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags)
        kind = f"family {found.get('cpu family')} model {found.get('model')}"
        cpu = f"{found.get('model name', cpu)} {kind} {known}"
    clock = "CPU time" if threads == 1 else "wall"
    return {"date": datetime.date.today().isoformat(), "python": platform.python_version(), **versions,
            "cpu": cpu, "cores": os.cpu_count(), "threads": threads, "clock": clock,
            "load": round(os.getloadavg()[0], 2)}  # fmt: skip


def doing(what: str) -> None:
    """Say what is being measured."""
    print(what, file=sys.stderr, flush=True)


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"


def report(title: str, groups: Mapping[str, Sequence[Row]], options: argparse.Namespace, **more: Any) -> None:
    """Print one table, and write the JSON file if asked."""
    about = environment(options.threads)
    rows = [(group, row) for group, found in groups.items() for row in found]
    wide = max([len(row.what) for _, row in rows] + [len(f"## {group}") for group in groups] + [4])
    print(f"\n{title}{' (QUICK: the numbers mean nothing)' if options.quick else ''}")
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    for group, found in groups.items():
        print(f"\n{'## ' + group:{wide}} {'median':>8} {'quartiles':>17} {'target':>9}")
        for row in found:
            goal = "" if row.target is None else f"{'<=' if row.most else '>='} {row.target:g}"
            verdict = {None: "", True: "ok  ", False: "MISS"}[row.ok]
            spread = "" if row.low == row.high else f"{number(row.low)} {number(row.high)}"
            print(f"{row.what:{wide}} {number(row.value):>8} {spread:>17} {goal:>9} {verdict:4} {row.note}")
    if options.json:
        tables = {group: [{**asdict(row), "ok": row.ok} for row in found] for group, found in groups.items()}
        data = {"title": title, "quick": options.quick, "environment": about, **more, "groups": tables}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
