"""The plan of a step at 1,000 tasks x 100,000 rows: how long it takes to make, and to make again anywhere.

Run:     python benchmarks/plan.py [--json plan.json]
Cost:    a minute; with --quick (20 tasks x 1,000 rows) a few seconds
A fresh Mixture is asked for the plan of one step, as a resumed run does: nothing may be replayed, so step
10^6 must cost what step 0 does. Draws are (task, row) pairs, 256 to a step, one step after the other. Sizes
differ from task to task; rates are those of the sampler `temperature`. Beside it
`datasets.interleave_datasets` (map-style) with the same rates on 1,000 of the rows of each task: what it
takes to build its list of indices, and to read rows by it one by one; and its iterable form, which can only
skip by drawing. Before timing: a plan must be the same from a Mixture that came there step by step; else
exit code 1.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from _kit import Row, arguments, middle, report

from mtnlp import samplers
from mtnlp.data.mixture import Mixture

EXAMPLES = 256
STEPS = (0, 1_000, 1_000_000)
RESUME_MS = 10.0


class Counted:
    """Stands in for a token store: a plan asks only how many rows there are."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows


def mixture(sizes: list[int]) -> Mixture:
    names = [f"task{i}" for i in range(len(sizes))]
    phases = samplers.get("temperature")().phases(names, sizes, 2_000_000, EXAMPLES)
    stores = [Counted(size) for size in sizes]
    settings = {"seed": 13, "examples_per_step": EXAMPLES, "max_tokens": 4096, "pad_id": 0, "form": "encoder"}
    return Mixture(names, stores, phases, **settings)


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def resumes(sizes: list[int], count: int) -> list[Row]:
    built = [seconds(lambda: mixture(sizes)) for _ in range(count)]
    rows = [Row("a fresh Mixture, ms", "-", *middle([1e3 * x for x in built]))]
    for step in STEPS:
        times = []
        for _ in range(count):
            fresh = mixture(sizes)
            times.append(1e3 * seconds(partial(fresh.plan, step)))
        rows.append(Row(f"its plan({step:,}), ms", "-", *middle(times), target=RESUME_MS))
    return rows


def draws(sizes: list[int], steps: int, count: int) -> Row:
    made = mixture(sizes)

    def run() -> None:
        for step in range(steps):
            made.plan(step)

    rates = [steps * EXAMPLES / seconds(run) for _ in range(count)]
    return Row("mtnlp: draws per CPU second", "-", *middle(rates), target=None, note=f"{EXAMPLES} to a step")


def interleaved(sizes: list[int], rows: int, read: int) -> list[Row]:
    """What datasets takes for the same: build, then read; and skip in the iterable form."""
    from datasets import Dataset, interleave_datasets

    names = [f"task{i}" for i in range(len(sizes))]
    rates = samplers.get("temperature")().phases(names, sizes, 2_000_000, EXAMPLES)[0].rates
    parts = [Dataset.from_dict({"row": np.arange(rows)}) for _ in sizes]
    start = time.process_time()
    mixed = interleave_datasets(parts, probabilities=list(rates / rates.sum()), seed=0)
    build = time.process_time() - start
    order = np.random.default_rng(0).integers(0, len(mixed), read).tolist()
    reading = read / seconds(lambda: [mixed[i] for i in order])
    stream = interleave_datasets(
        [part.to_iterable_dataset() for part in parts], probabilities=list(rates / rates.sum()), seed=0
    )
    skipped = seconds(lambda: next(iter(stream.skip(read)))) / read
    size = f"{len(sizes)} x {rows} rows"
    return [
        Row(
            "datasets: build an interleaved map, ms", "-", *[1e3 * build] * 3, note=f"{len(mixed)} of {size}"
        ),
        Row("datasets: rows read per CPU second", "-", *[reading] * 3),
        Row("datasets, iterable: skip one row, us", "-", *[1e6 * skipped] * 3, note="grows with the step"),
    ]


def stepwise_equals_fresh(sizes: list[int]) -> bool:
    walked = mixture(sizes)
    for step in range(50):
        walked.plan(step)
    a, b = walked.plan(50), mixture(sizes).plan(50)
    return a.tasks == b.tasks and all(np.array_equal(x, y) for x, y in zip(a.rows, b.rows))


def main() -> int:
    options = arguments(__doc__).parse_args()
    tasks, rows = (20, 1_000) if options.quick else (1_000, 100_000)
    count = options.rounds or (3 if options.quick else 11)
    draw = np.random.default_rng(0)
    sizes = (rows * draw.lognormal(0, 1, tasks)).astype(int)
    sizes = np.maximum(1, sizes * (rows * tasks / sizes.sum())).astype(int).tolist()
    same = stepwise_equals_fresh(sizes)
    groups = {f"{tasks} tasks, {sum(sizes):,} rows": resumes(sizes, count)}
    groups["drawing"] = [draws(sizes, 20 if options.quick else 500, count)]
    kept, read = (50, 200) if options.quick else (1_000, 5_000)
    groups["the same by datasets"] = interleaved(sizes, kept, read)
    report("Plans", groups, options, stepwise_equals_fresh=same)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
