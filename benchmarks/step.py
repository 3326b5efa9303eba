"""Forward and backward of one step with a LoRA per task, against ONE shared peft LoRA on the same rows.

Run:     python benchmarks/step.py [--threads 2] [--peers none|shared|all] [--json step.json]
Cost:    30 minutes on one core with --peers all (256 peft adapters alone take a minute to add), 15 with
         shared, under a minute with --quick
A BERT-shaped encoder (6 layers, width 384, random weights), LoRA of rank 8 on its 36 linear layers, 2,048
real tokens, no padding, mean pooling and a linear head of four labels. All cases have the same rows,
precision, eager attention, matmul settings and memory allocator: those of an mtnlp run. T tasks are in the
bank, U of them have rows in the step; their heads differ too.

    mtnlp               a run as assemble makes it: begin, forward, backward on the mixture's batches
    peft shared         the 1.00: one LoRA and one head for all rows
    limit               frozen network, forward and gradient of the inputs, nothing else
    peft set_adapter    each live task's rows in turn, gradients accumulated
    peft adapter_names  one mixed batch, in eval mode with requires_grad forced: peft refuses to train it

Before anything is timed, our gradients are compared with peft's for one task (fp32, 1e-4); a difference
ends the script with exit code 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from _kit import Row, Times, arguments, compared, doing, report, rounds
from _parts import LABELS, autocast, bert, classified, our_run, pooled_loss, random_tokens, settled, with_peft
from torch import Tensor, nn

from mtnlp.data.mixture import StepPlan
from mtnlp.train.loop import Run

TOKENS = 2048
BANKS = {  # live tasks -> tasks in the bank
    1: (1, 1000), 4: (4, 1000), 8: (16, 1000), 16: (16, 64, 256, 1000), 32: (64, 1000), 64: (64, 256, 1000),
}  # fmt: skip
LIVE = {32: (1, 4, 16, 32, 64), 128: (1, 4, 16), 256: (1, 4, 8)}  # length -> live tasks
TARGETS = {1: 0.85, 4: 0.85, 8: 0.85, 16: 0.85, 32: 0.95, 64: 1.0}
MANY = {16: (2.0, 3.5), 64: (3.0, 6.0), 256: (None, 8.0)}  # tasks -> wanted over set_adapter, adapter_names
FLAT = 1.05  # most that 1,000 tasks in the bank may cost over as many as are live
SHARED, LIMIT = "peft shared", "limit: frozen, inputs' gradient"
Case = Callable[[], None]


class Rows:
    """The rows of a step: so many of `length` tokens, and the task of each, ascending."""

    def __init__(self, length: int, of_task: np.ndarray, total: int) -> None:
        self.length, self.of_task, self.total = length, of_task, total
        self.live, self.counts = np.unique(of_task, return_counts=True)

    @classmethod
    def even(cls, length: int, live: int, total: int, tokens: int) -> Rows:
        """`live` of `total` tasks, spread over the bank, with equally many rows."""
        tasks = np.linspace(0, total - 1, live).astype(int)
        return cls(length, np.repeat(tasks, tokens // length // live), total)

    @classmethod
    def drawn(cls, length: int, total: int, tokens: int) -> Rows:
        """The task of every row drawn at random."""
        draw = np.random.default_rng(5).integers(0, total, tokens // length)
        return cls(length, np.sort(draw), total)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, mask and labels: what the peers read."""
        tokens, labels = rows_of(self.length)
        ids = torch.from_numpy(np.stack(tokens[: len(self.of_task)]))
        return ids, torch.ones_like(ids), torch.from_numpy(labels[: len(self.of_task)])

    def plan(self) -> StepPlan:
        """The same rows for ours, whose tasks all have the store that `run_of` makes."""
        first = sum(TOKENS // length for length in LIVE if length < self.length)
        rows = [first + np.flatnonzero(self.of_task == task) for task in self.live]
        return StepPlan(0, tuple(self.live.tolist()), tuple(rows))


@cache
def rows_of(length: int) -> tuple[list[np.ndarray], np.ndarray]:
    count = TOKENS // length
    return random_tokens([length] * count), np.random.default_rng(1).integers(0, len(LABELS), count)


@cache
def run_of(total: int, precision: str) -> Run:
    """Ours, with the rows of all lengths in one store that every task has.

    One run for each precision, should it keep copies of weights in it.
    """
    tokens = [row for length in LIVE for row in rows_of(length)[0]]
    labels = np.concatenate([rows_of(length)[1] for length in LIVE])
    settings, _ = settled("lora-per-task", attention="eager", precision="fp32")
    run = our_run(bert(), [classified(tokens, labels)] * total, settings)
    run.model.train()
    return run


def ours(rows: Rows, precision: str) -> Case:
    run, plan = run_of(rows.total, precision), rows.plan()
    batches, live = run.mixture.batches(plan), list(plan.tasks)

    def step() -> None:
        run.optimizer.zero_grad(live)
        run.model.begin(live)
        for batch in batches:
            with autocast(precision):
                out = run.model(batch)
            (out.sums.sum() / len(rows.of_task)).backward()

    return step


def heads_of(rows: Rows) -> dict[int, nn.Linear]:
    torch.manual_seed(1)
    return {int(task): nn.Linear(384, len(LABELS)) for task in rows.live}


def clear(*modules: nn.Module) -> None:
    for module in modules:
        for parameter in module.parameters():
            parameter.grad = None


@cache
def peft_of(adapters: int, weights: torch.dtype = torch.float32) -> nn.Module:
    return with_peft(bert().to(weights), adapters, autocast_adapter_dtype=False)


def shared(rows: Rows, precision: str, weights: torch.dtype = torch.float32) -> Case:
    net, head, (ids, mask, labels) = peft_of(1, weights), nn.Linear(384, len(LABELS)), rows.tensors()
    trained = [p for p in net.parameters() if p.requires_grad] + list(head.parameters())

    def step() -> None:
        with autocast(precision):
            hidden = net(input_ids=ids, attention_mask=mask).last_hidden_state
        (pooled_loss(head, hidden, mask, labels) / len(labels)).backward()
        for parameter in trained:
            parameter.grad = None

    return step


def limit(rows: Rows, precision: str) -> Case:
    net, head, (ids, mask, labels) = bert(), nn.Linear(384, len(LABELS)), rows.tensors()
    net.requires_grad_(False)

    def step() -> None:
        inputs = net.embeddings.word_embeddings(ids).requires_grad_()
        with autocast(precision):
            hidden = net(inputs_embeds=inputs, attention_mask=mask).last_hidden_state
        (pooled_loss(head, hidden, mask, labels) / len(labels)).backward()

    return step


def set_adapter(rows: Rows, precision: str, weights: torch.dtype = torch.float32) -> Case:
    net, heads, (ids, mask, labels) = peft_of(rows.total, weights), heads_of(rows), rows.tensors()
    parts = [(task, torch.from_numpy(np.flatnonzero(rows.of_task == task))) for task in heads]
    trained = [p for name, p in net.named_parameters() if "lora_" in name]
    trained += [p for head in heads.values() for p in head.parameters()]

    def step() -> None:
        net.train()
        for task, own in parts:
            net.set_adapter(f"a{task}")
            with autocast(precision):
                hidden = net(input_ids=ids[own], attention_mask=mask[own]).last_hidden_state
            (pooled_loss(heads[task], hidden, mask[own], labels[own]) / len(labels)).backward()
        for parameter in trained:
            parameter.grad = None

    return step


def adapter_names(rows: Rows, precision: str) -> Case:
    net, heads, (ids, mask, labels) = peft_of(rows.total), heads_of(rows), rows.tensors()
    names = [f"a{task}" for task in rows.of_task]
    parts = [(task, torch.from_numpy(np.flatnonzero(rows.of_task == task))) for task in heads]
    trained = [p for name, p in net.named_parameters() if "lora_" in name]

    def step() -> None:
        net.eval()
        for parameter in trained:
            parameter.requires_grad_(True)
        with autocast(precision):
            hidden = net(input_ids=ids, attention_mask=mask, adapter_names=names).last_hidden_state
        losses = [pooled_loss(heads[task], hidden[own], mask[own], labels[own]) for task, own in parts]
        (torch.stack(losses).sum() / len(labels)).backward()
        clear(net, *heads.values())

    return step


def gradients_agree(length: int = 32) -> float:
    """Largest relative difference between our gradients and peft's over the 72 factors of one task.

    Our row's gradient is put where the row was, so that it comes out under peft's names.
    """
    rows = Rows.even(length, 1, 1, 512)
    run, plan = run_of(1, "checked"), rows.plan()
    model = run.model
    bank, head = model.strategy.bank, nn.Linear(384, len(LABELS))
    bank.rows.copy_(0.05 * torch.randn(bank.rows.shape, generator=torch.Generator().manual_seed(0)))
    head.load_state_dict(model.head(0).out.state_dict())
    net = with_peft(bert())
    named = {name.replace(".a0.", "."): p for name, p in net.named_parameters() if "lora_" in name}
    for name, value in model.strategy.export("task0")[1].items():
        named[name].data.copy_(value)
    model.begin(list(plan.tasks))
    sum(model(batch).sums.sum() for batch in run.mixture.batches(plan)).backward()
    ids, mask, labels = rows.tensors()
    pooled_loss(head, net(input_ids=ids, attention_mask=mask).last_hidden_state, mask, labels).backward()
    bank.rows.copy_(bank.leaf.grad)
    found = model.strategy.export("task0")[1]
    relative = [(found[name] - p.grad).norm() / p.grad.norm() for name, p in named.items()]
    return float(torch.stack(relative).max())


def against_shared(options, length: int, live: int, precision: str, tokens: int) -> list[Row]:
    """Ours for several sizes of the bank, and the limit, over one shared LoRA."""
    banks = BANKS[live][:1] if options.quick else BANKS[live]
    layouts = {f"mtnlp T={total}": Rows.even(length, live, total, tokens) for total in banks}
    some = next(iter(layouts.values()))
    cases = {name: ours(rows, precision) for name, rows in layouts.items()}
    if options.peers == "none":
        times = rounds(cases, count=options.rounds, threads=options.threads)
        return [compared(times, name, next(iter(cases))) for name in cases]
    cases |= {SHARED: shared(some, precision), LIMIT: limit(some, precision)}
    if precision == "bf16":
        cases["peft shared, its weights in bf16"] = shared(some, "weights", torch.bfloat16)
    times = rounds(cases, count=options.rounds, threads=options.threads)
    found = [compared(times, name, SHARED, target=TARGETS[live]) for name in layouts]
    found += [compared(times, name, SHARED) for name in cases if name not in layouts]
    return found + flatness(times, list(layouts))


def flatness(times: Times, banks: list[str]) -> list[Row]:
    if len(banks) < 2:
        return []
    few, many = banks[0], banks[-1]
    return [compared(times, many, few, name=f"{many} / T={few.partition('=')[2]}", target=FLAT)]


def against_many(options, total: int, precision: str, tokens: int) -> list[Row]:
    """How many times longer than ours peft takes with an adapter per task."""
    rows = Rows.drawn(32, total, tokens)
    cases = {"mtnlp": ours(rows, precision), SHARED: shared(rows, precision)}
    over_set, over_names = MANY[total]
    wanted = {"peft adapter_names": over_names}
    cases["peft adapter_names"] = adapter_names(rows, precision)
    if over_set:
        wanted["peft set_adapter"] = over_set
        cases["peft set_adapter"] = set_adapter(rows, precision)
        if precision == "bf16":
            wanted["peft set_adapter, its weights in bf16"] = over_set
            cases["peft set_adapter, its weights in bf16"] = set_adapter(rows, "weights", torch.bfloat16)
    times = rounds(cases, count=max(3, options.rounds // 2), threads=options.threads)
    found = [compared(times, name, "mtnlp", target=goal, most=False) for name, goal in wanted.items()]
    return [*found, compared(times, "mtnlp", SHARED, name="mtnlp / peft shared")]


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--peers", choices=("none", "shared", "all"), default="all")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="only this one")
    parser.add_argument("--lengths", type=int, nargs="*", help="only these")
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 9)
    _, engine = settled("lora-per-task", attention="eager", precision="fp32", threads=options.threads)
    with engine.applied(training=True):
        return measure(options, engine.line)


def measure(options, engine: str) -> int:
    tokens = 256 if options.quick else TOKENS
    difference = gradients_agree()
    print(f"largest relative difference of a gradient to peft's, one task, fp32: {difference:.1e}")
    groups: dict[str, list[Row]] = {}
    for precision in [options.precision] if options.precision else ["fp32", "bf16"]:
        for length, lives in LIVE.items():
            if (options.quick and length != 32) or (options.lengths and length not in options.lengths):
                continue
            for live in lives[1:2] if options.quick else lives:
                if tokens // length >= live:
                    title = f"{precision}, {tokens // length} rows of {length}, {live} live"
                    doing(title)
                groups[title] = against_shared(options, length, live, precision, tokens)
        for total in MANY if options.peers == "all" else ():
            if not (options.quick and total > 16):
                title = f"{precision}, {tokens // 32} rows of 32, each of one of {total} tasks"
                doing(title)
                groups[title] = against_many(options, total, precision, tokens)
                peft_of.cache_clear()
    report("Forward and backward of one step", groups, options, gradient_difference=difference, engine=engine)
    return 0 if difference < 1e-4 else 1


if __name__ == "__main__":
    sys.exit(main())
