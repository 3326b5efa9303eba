"""What the loop costs around the network: ours with Accelerate and logging against a bare PyTorch loop.

Run:     python benchmarks/loop_overhead.py [--threads 2] [--json loop.json]
Cost:    ten minutes on one core; under a minute with --quick
Both train the same model (a BERT-shaped encoder, strategy `lora`, four tasks of four labels, fp32) on the
same collated batches, for a step of about 30 ms and one of about 300 ms (network sizes are chosen so on a
core of 2024).

    bare    for batch: backward, torch.nn.utils.clip_grad_norm_, fused torch.optim.AdamW, LambdaLR, zero_grad
    loop    train.loop.fit with Accelerate, per-owner norms and clipping, checks for inf and nan, StepRecord,
            MetricsWriter and Progress, on those batches ready-made: the difference is the loop's own
    whole   the same with plan, cut and collation of every step

Before timing, both must end with the same weights without clipping (1e-5), else exit code 1.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _kit import Row, arguments, clock_for, compared, report, timed
from _parts import LABELS, bert, classified, our_run, random_tokens, settled

from mtnlp.train.callbacks import MetricsWriter, Progress
from mtnlp.train.loop import Run, fit

TASKS, LR, LIMIT = 4, 1e-4, 1.03
SIZES = {  # name -> layers, width, rows of 32 tokens
    "a small step": {"layers": 2, "width": 256, "rows": 10},
    "a large step": {"layers": 6, "width": 384, "rows": 32},
}


class Ready:
    """A mixture whose plans and batches have been made: what is left is the loop."""

    def __init__(self, run: Run) -> None:
        self.plans = [run.mixture.plan(step) for step in range(run.steps)]
        self.made = [run.mixture.batches(plan) for plan in self.plans]

    def plan(self, step: int):
        return self.plans[step]

    def batches(self, plan, **_):
        return self.made[plan.step]


def new_run(layers: int, width: int, rows: int, steps: int, max_norm: float = 1.0) -> Run:
    stores = [
        classified(random_tokens([32] * 64, seed=task), np.arange(64) % len(LABELS)) for task in range(TASKS)
    ]
    budget = {"steps": steps, "examples_per_step": rows, "lr": LR, "warmup": 0.0, "max_norm": max_norm}
    settings, _ = settled("lora", attention="eager", precision="fp32", **budget)
    return our_run(bert(layers=layers, width=width), stores, settings)


def our_loop(run: Run, folder: Path) -> None:
    writer = MetricsWriter(folder / "metrics.jsonl")
    progress = Progress(run.steps, tasks=run.tasks, enabled=False)
    fit(run, [writer, progress])
    writer.close()
    progress.close()


def bare_loop(run: Run, ready: Ready, max_norm: float = 1.0) -> None:
    model = run.model.train()
    own = [*model.shared_parameters().values()]
    own += [p for task in range(TASKS) for p in model.head_parameters(task).values()]
    decayed = [p for p in own if p.ndim > 1]
    plain = [p for p in own if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / run.steps)
    for plan, batches in zip(ready.plans, ready.made):
        counts = dict(zip(plan.tasks, plan.counts))
        model.begin(list(plan.tasks))
        for batch in batches:
            out = model(batch)
            share = torch.tensor([1.0 / counts[task] for task in out.tasks])
            (out.sums * share).sum().backward()
        torch.nn.utils.clip_grad_norm_(own, max_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)


def weights_differ() -> float:
    """Largest difference of a weight after the two loops; clipping by owner and by one norm would differ."""
    size = {**SIZES["a small step"], "rows": 8}
    runs = [new_run(**size, steps=4, max_norm=1e9) for _ in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        our_loop(runs[0], Path(folder))
    bare_loop(runs[1], Ready(runs[1]), max_norm=1e9)
    ours, bare = (run.model.trainable_state() for run in runs)
    return float(torch.stack([(ours[name] - bare[name]).abs().max() for name in ours]).max())


def cases_of(size: dict[str, int], steps: int, threads: int, folder: Path) -> dict[str, Callable[[], float]]:
    """Each trains a fresh model for `steps` steps and returns seconds per step, building not counted."""
    clock = clock_for(threads)

    def case(prepare: Callable[[Run], Callable[[], None]]) -> Callable[[], float]:
        def once() -> float:
            run = new_run(**size, steps=steps)
            train = prepare(run)
            start = clock()
            train()
            return (clock() - start) / steps

        return once

    def loop(run: Run) -> Callable[[], None]:
        run.mixture = Ready(run)
        return lambda: our_loop(run, folder)

    def bare(run: Run) -> Callable[[], None]:
        ready = Ready(run)
        return lambda: bare_loop(run, ready)

    return {"bare": case(bare), "loop": case(loop), "whole": case(lambda run: lambda: our_loop(run, folder))}


def main() -> int:
    options = arguments(__doc__).parse_args()
    _, engine = settled("lora", attention="eager", precision="fp32", threads=options.threads)
    with engine.applied(training=True):
        return measure(options, engine.line)


def measure(options, engine: str) -> int:
    count, steps = options.rounds or (2 if options.quick else 11), 3 if options.quick else 20
    difference = weights_differ()
    groups: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, size in SIZES.items():
            times = timed(cases_of(size, steps, options.threads, Path(folder)), count, warmup=1)
            groups[name] = [
                compared(times, "loop", "bare", target=LIMIT),
                compared(times, "whole", "bare"),
                compared(times, "bare", "bare"),
            ]
    report("Overhead of a step", groups, options, weights_differ=difference, engine=engine)
    return 0 if difference < 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())
