"""One optimizer step with 16 live tasks, as tasks grow in number: ours, dense AdamW, an adapter per task.

Run:     python benchmarks/optimizer.py [--threads 2] [--json optimizer.json]
Cost:    two minutes and 5 GB of memory; with --quick (tiny rows) a few seconds
A task has the LoRA of rank 8 of all 36 linear layers of a 6 x 384 BERT: 331,776 parameters. Beside ours
(`RowAdamW`, given the gradients of the live rows): torch's fused AdamW over all rows as one tensor, with and
without making the gradient that autograd would give it (zeros but for the live rows); torch's fused AdamW
over 72 tensors per task, of which the live tasks' have gradients, as a peft model with an adapter per task
has them; and the limit, one bare call of torch's kernel on the live rows. The share of memory-copy bandwidth
counts 28 bytes per live parameter (weight and two moments read and written, gradient read) and compares with
a copy that reads 14 and writes 14; a pass in place over as many bytes is the harder limit. A whole update is
what the training loop does: norms, clipping of every task, AdamW of rows and heads, forgetting. Before
timing: all must have moved the live rows alike; else exit code 1.
"""

from __future__ import annotations

import gc
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from _kit import Row, arguments, compared, report, rounds
from torch import Tensor, nn

from mtnlp.strategies._bank import Bank
from mtnlp.train.optim import Optimizer, Schedule
from mtnlp.train.row_adamw import RowAdamW

LIVE, RANK, LR = 16, 8, 1e-3
WIDTH, LAYERS = 384, 6
DENSE, SEPARATE = "dense AdamW, gradient made", "a tensor of its own for each factor"
LIMIT = "limit: a bare call of torch's kernel on the live rows"
TARGETS = {DENSE: 50.0, SEPARATE: 4.0}  # at 256 tasks
STATM = Path("/proc/self/statm")


def shapes(width: int) -> list[tuple[int, int]]:
    """The 72 factors of one task."""
    linears = [(width, width)] * 4 + [(width, 4 * width), (4 * width, width)]
    return [(RANK, size) for linear in linears * LAYERS for size in linear]


def live_of(tasks: int) -> list[int]:
    """Up to 16 tasks, far from each other."""
    return [i * tasks // min(LIVE, tasks) for i in range(min(LIVE, tasks))]


class Setting:
    """T tasks, U of them live, each with the same gradients in every step."""

    def __init__(self, tasks: int, width: int) -> None:
        self.tasks, self.width, self.live = tasks, width, live_of(tasks)
        self.parameters = sum(a * b for a, b in shapes(width))
        draw = torch.Generator().manual_seed(0)
        self.grads = torch.randn(len(self.live), self.parameters, generator=draw) * 1e-2

    def bank(self) -> Bank:
        made = Bank()
        made.add("row", (self.parameters,), lambda piece, generator: piece.fill_(0.01))
        made.build([f"task{i}" for i in range(self.tasks)], seed=0)
        made.gather(self.live)
        return made

    def ours(self) -> tuple[Callable[[], None], Callable[[], Tensor]]:
        """A step, and the live rows as they are now; so do the others below."""
        bank = self.bank()
        optimizer = RowAdamW(bank, lr=LR)

        def step() -> None:
            bank.leaf.grad = self.grads
            optimizer.step()
            optimizer.zero_grad()

        return step, lambda: bank.rows[self.live]

    def dense(self, *, made: bool) -> tuple[Callable[[], None], Callable[[], Tensor]]:
        rows = nn.Parameter(torch.full((self.tasks, self.parameters), 0.01))
        optimizer = torch.optim.AdamW([rows], lr=LR, fused=True)
        index = torch.tensor(self.live)
        kept = None if made else torch.zeros_like(rows).index_copy_(0, index, self.grads)

        def step() -> None:
            rows.grad = torch.zeros_like(rows).index_copy_(0, index, self.grads) if kept is None else kept
            optimizer.step()
            optimizer.zero_grad()

        return step, lambda: rows.detach()[self.live]

    def separate(self) -> tuple[Callable[[], None], Callable[[], Tensor]]:
        sizes = shapes(self.width)
        own = [[nn.Parameter(torch.full(shape, 0.01)) for shape in sizes] for _ in range(self.tasks)]
        grads = [
            [part.reshape(shape).clone() for part, shape in zip(row.split([a * b for a, b in sizes]), sizes)]
            for row in self.grads
        ]
        optimizer = torch.optim.AdamW([p for task in own for p in task], lr=LR, fused=True)

        def step() -> None:
            for task, row in zip(self.live, grads):
                for parameter, grad in zip(own[task], row):
                    parameter.grad = grad
            optimizer.step()
            optimizer.zero_grad()

        return step, lambda: torch.stack(
            [torch.cat([p.detach().flatten() for p in own[task]]) for task in self.live]
        )

    def bare(self) -> tuple[Callable[[], None], Callable[[], Tensor]]:
        rows = [torch.full((self.parameters,), 0.01) for _ in self.live]
        moments = [[torch.zeros_like(row) for row in rows] for _ in range(2)]
        steps, grads = [torch.ones(()) for _ in rows], list(self.grads)

        def step() -> None:
            torch._fused_adamw_(
                rows, grads, *moments, [], steps, lr=LR, beta1=0.9, beta2=0.999, weight_decay=0.01,
                eps=1e-8, amsgrad=False, maximize=False,
            )  # fmt: skip
            torch._foreach_add_(steps, 1)

        return step, lambda: torch.stack(rows)

    def update(self) -> Callable[[], None]:
        """All that `Optimizer` does in a step of the loop, with a linear head of 3 classes for every task."""
        bank, device = self.bank(), torch.device("cpu")
        heads = [nn.Linear(self.width, 3) for _ in range(self.tasks)]
        model = SimpleNamespace(
            tasks=[f"task{i}" for i in range(self.tasks)],
            shared_parameters=dict,
            head_parameters=lambda task: dict(heads[task].named_parameters()),
            strategy=SimpleNamespace(bank=bank),
        )
        optimizer = Optimizer(model, nn.Module(), Schedule(LR, 10**6), max_norm=1.0)
        draw = torch.Generator().manual_seed(1)
        own = [parameter for task in self.live for parameter in heads[task].parameters()]
        grads = [torch.randn(parameter.shape, generator=draw) for parameter in own]
        grown = self.grads * 2  # longer than max_norm also after it was clipped

        def step() -> None:
            optimizer.zero_grad(self.live)
            for parameter, grad in zip(own, grads):
                parameter.grad = grad
            bank.leaf.grad = grown
            norms = optimizer.norms(self.live, SimpleNamespace(device=device))
            optimizer.clip(self.live, norms.tolist())
            optimizer.step(10**5, self.live)

        return step


def alike(steps: list[tuple[Callable[[], None], Callable[[], Tensor]]]) -> bool:
    """Whether all move the live rows by the same; one step each, from the same start."""
    for step, _ in steps:
        step()
    first = steps[0][1]()
    return all(torch.allclose(first, rows(), rtol=0, atol=1e-7) for _, rows in steps[1:])


def against_others(tasks: int, width: int, options: Namespace, count: int) -> tuple[list[Row], bool]:
    setting = Setting(tasks, width)
    sides = {
        "ours": setting.ours(),
        DENSE: setting.dense(made=True),
        "dense AdamW, the step alone": setting.dense(made=False),
        SEPARATE: setting.separate(),
        LIMIT: setting.bare(),
    }
    same = alike(list(sides.values()))
    times = rounds({name: step for name, (step, _) in sides.items()}, count=count, threads=options.threads)
    targets = TARGETS if tasks == 256 else {}
    others = [name for name in sides if name != "ours"]
    return [compared(times, name, "ours", target=targets.get(name), most=False) for name in others], same


def bandwidth(cases: dict[str, Setting], options: Namespace, count: int) -> list[Row]:
    """Time of ours at several numbers of tasks, and of moving as many bytes."""
    steps = {name: setting.ours()[0] for name, setting in cases.items()}
    moved = next(iter(cases.values())).grads.numel() * 7 // 2
    source, target, other = torch.zeros(moved), torch.zeros(moved), torch.zeros(moved)
    steps["copy"] = lambda: target.copy_(source)
    steps["in place"] = lambda: other.mul_(1.0001)
    times = rounds(steps, count=count, threads=options.threads, warmup=3)
    first = next(iter(cases))
    rows = [compared(times, name, first, name=f"{name} / {first}", target=1.1) for name in [*cases][1:]]
    for name in cases:
        speed = 8 * moved / sorted(times[name])[len(times[name]) // 2] / 1e9
        rows.append(compared(times, "copy", name, name=f"copy / {name}", target=0.9, most=False,
                             note=f"{speed:.0f} GB/s"))  # fmt: skip
    return [*rows, compared(times, "in place", first, name=f"pass in place / {first}", note="reported")]


def updates(cases: dict[str, Setting], options: Namespace, count: int) -> list[Row]:
    steps = {name: setting.update() for name, setting in cases.items()}
    times = rounds(steps, count=count, threads=options.threads, warmup=3)
    first, *rest = cases
    return [compared(times, name, first, name=f"{name} / {first}", target=1.1) for name in rest]


def memory(tasks: int, width: int) -> list[Row]:
    """What the moments take when few of many tasks were ever live."""
    if not STATM.exists():
        return []

    def resident() -> float:
        return int(STATM.read_text().split()[1]) * 4096 / 2**20

    setting = Setting(tasks, width)
    bank = setting.bank()
    bank.leaf.grad = setting.grads
    before = resident()
    optimizer = RowAdamW(bank)
    optimizer.step()
    whole = 8 * bank.rows.numel() / 2**20
    note = f"of {whole:.0f} when all were; rows {whole / 2:.0f}"
    taken = resident() - before
    what = f"moments of {tasks} tasks, {len(setting.live)} seen, MiB"
    return [Row(what, "-", taken, taken, taken, note=note)]


def main() -> int:
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    width, many = (16, 100) if options.quick else (WIDTH, 1_000)
    count = options.rounds or (3 if options.quick else 41)
    groups = {"memory": memory(many, width)}
    sizes = {f"T = {tasks}": Setting(tasks, width) for tasks in (64, 256, many)}
    groups["one step of ours, 16 live"] = bandwidth(sizes, options, count)
    gc.collect()
    groups["a whole update, 16 live"] = updates(sizes, options, count)
    gc.collect()
    single = {name: Setting(tasks, width) for name, tasks in (("T = 1", 1), (f"T = {many}", many))}
    single[f"T = {many}"].live, single[f"T = {many}"].grads = [many // 2], single["T = 1"].grads
    groups["a whole update, 1 live"] = updates(single, options, count)
    gc.collect()
    same = True
    for tasks in (64, 256):
        rows, right = against_others(tasks, width, options, max(3, count // 4))
        groups[f"others / ours, T = {tasks}"], same = rows, same and right
        gc.collect()
    report("Optimizer", groups, options, moved_alike=same)
    print(f"\nall moved the live rows alike: {same}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
