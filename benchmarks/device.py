"""A step, memory, the optimizer and flat batches on a GPU: LoRAs per task against ONE shared peft LoRA.

Run:     python benchmarks/device.py [--json device.json] [--budget 400] [--only encoder] [--rounds 10]
Cost:    about seven minutes on a GPU of 80 GB, 40 GB of main memory; `--device cpu --quick` one minute
An encoder (BERT, 12 x 768) and a decoder (Llama, 16 x 2048, 32 heads, 8 of keys, MLP 8192: 0.99 B), random
weights made on the device, LoRA of rank 8 on all linear layers of the blocks. The weights are float32 and a
step runs under bf16 autocast, as in a run of mtnlp, which keeps bf16 copies of the frozen ones; attention is
eager or SDPA, whichever is faster, on both sides. The decoder learns the last eighth of each row.

    mtnlp T=..          T tasks in the bank; products batched or grouped as the engine measured
    .. batched, grouped the same where only these are used
    peft shared         the 1.00: one LoRA (and head) for all rows; also with its network in bf16
    limit               frozen network, forward and gradient of the inputs, nothing else
    peft set_adapter    each live task's rows in turn, gradients accumulated
    peft adapter_names  one mixed batch, in eval mode with requires_grad forced: peft refuses to train it

A note says: time, tokens (of many lengths: real tokens) per second, share of the measured peak of bf16
products (counted as in peak.py, LoRA in all; causal attention half), and memory: weights, what the case keeps
(bank, moments, bf16 copies) and the most that a step adds. Times are the wall clock between synchronisations.
A bank that does not fit with its moments is left out; "rows on the CPU" is train.bank_on_cpu. "Flat" are the
streams that a run takes on a CPU, "padded" the batches that it takes on a GPU.

First our gradients are compared with peft's for one task (fp32, 1e-4), and those of grouped with those of
batched products for 16 (fp32, 1e-4; bf16: at most 1.5 times as far from fp32; a GPU groups bf16 only). A
difference, or a check that fails, makes exit code 1; no accelerator, 2. The most telling groups come first;
after --budget seconds none begins. Each is printed and written as it ends, and what fails says so in its row.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from _device import CUTS, ROOM, Device, Network, Rows, build
from _device_sides import Peer, Side, adapter_names, dense, limit, ours, set_adapter, shared, update
from _kit import Row, arguments, compared, doing, report
from _parts import settled

TITLE = "A step on a GPU"
BANKS = {1: (1, 1000), 4: (16, 1000), 16: (16, 64, 256, 1000), 32: (64, 1000), 64: (64, 256, 1000)}  # live: T
SHARED, BF16, LIMIT = "peft shared", "peft shared, its network in bf16", "limit: frozen, inputs' gradient"
PEAK_SHAPES = [
    (8192, 8192, 8192),
    (2048, 768, 3072),
    (2048, 3072, 768),
    (8192, 2048, 8192),
    (8192, 8192, 2048),
]


# What is compared.


def raced(
    network: Network, sides: Sequence[Side], against: str, lengths: np.ndarray, count: int | None = None
) -> list[Row]:
    """All sides in interleaved rounds as multiples of one; those that fail say why."""
    device, cases, memory, rows = network.device, {}, {}, []
    for side in sides:
        before, failure = device.held(), ""
        try:
            case = side.make()
            case()
            if side.keeps is not None:
                network.kept[side.keeps] = network.kept.get(side.keeps, 0) + device.held() - before
            kept = network.kept.get(side.keeps, 0) + (network.weights if side.shares else 0)
            memory[side.name], cases[side.name] = kept + device.added(case), case
        except Exception as error:  # also a device's own, out of memory
            failure = described(error)
        if failure:  # by now the traceback holds no tensors
            rows.append(nothing(side.name, failure))
            device.clean()
    times = device.rounds(cases, count)
    against = against if against in times else next(iter(times), "")
    work, tokens, found = network.work(lengths), int(lengths.sum()), []
    for name in times:
        seconds = median(times[name])
        share = work / seconds / device.peak
        note = f"{1e3 * seconds:.2f} ms, {tokens / seconds:,.0f} tokens/s, {share:.0%} of peak"
        note += f", {memory[name] / 2**30:.2f} GiB" if memory[name] > 0 and device.kind == "cuda" else ""
        found.append(compared(times, name, against, note=note))
    return found + rows


def described(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0][:120]}"


def nothing(what: str, why: str) -> Row:
    return Row(what, "-", *[math.nan] * 3, note=why)


def mine(rows: Rows, name: str = "", **how: Any) -> Side:
    """Ours; `how` as for `ours`."""
    keeps = ("ours", rows.total, how.get("on_cpu", False))
    return Side(name or f"mtnlp T={rows.total}", partial(ours, rows, **how), keeps)


def theirs(rows: Rows) -> list[Side]:
    made = [(SHARED, False), (BF16, True)]
    return [
        Side(name, partial(shared, rows, bf16=own), ("peft", 1, own), shares=not own) for name, own in made
    ]


def steps(network: Network, shape: tuple[int, int], live: int) -> list[Row]:
    """Ours for several sizes of the bank, and the limit, over one shared LoRA."""
    banks = list(dict.fromkeys(network.few(total) for total in BANKS[live]))
    layouts = [Rows(network, shape, live, total) for total in banks if network.fits(total)]
    sides = [mine(rows) for rows in layouts]
    if live > 1:
        first = layouts[0]
        sides += [
            mine(first, f"mtnlp T={first.total}, {name}", mode=mode)
            for name, mode in (("batched", None), ("grouped", 0))
        ]
    sides += [*theirs(layouts[0]), Side(LIMIT, partial(limit, network, layouts[0]))]
    left_out = [nothing(f"mtnlp T={total}", "too large") for total in banks if not network.fits(total)]
    return raced(network, sides, SHARED, layouts[0].lengths) + left_out


def from_main_memory(network: Network, shape: tuple[int, int], live: int) -> list[Row]:
    rows = Rows(network, shape, live, network.few(1000))
    sides = [mine(rows)] if network.fits(rows.total) else []
    sides += [mine(rows, f"mtnlp T={rows.total}, rows on the CPU", on_cpu=True), theirs(rows)[0]]
    found = raced(network, sides, SHARED, rows.lengths)
    sides = [updating(rows)] if network.fits(rows.total) else []
    sides.append(updating(rows, on_cpu=True))
    return found + moving(network, sides, live)


def updating(rows: Rows, *, on_cpu: bool = False) -> Side:
    name = f"update, T={rows.total}{', rows on the CPU' if on_cpu else ''}"
    return Side(name, partial(update, rows, on_cpu=on_cpu), ("ours", rows.total, on_cpu))


def optimizer(network: Network, shape: tuple[int, int], live: int) -> list[Row]:
    """A whole update for several sizes of the bank, over the smallest."""
    layouts = [Rows(network, shape, live, network.few(total)) for total in (64, 1000)]
    sides = [updating(rows) for rows in layouts if network.fits(rows.total)]
    sides.append(Side(f"dense AdamW, T={layouts[0].total}, gradient made", partial(dense, layouts[0])))
    return moving(network, sides, live)


def moving(network: Network, sides: Sequence[Side], live: int) -> list[Row]:
    """Updates over the first of them, and a copy of as many bytes: 28 for each live parameter."""
    moved, kind = live * network.own * 7 // 2, network.device.kind
    source, target = torch.ones(moved, device=kind), torch.empty(moved, device=kind)
    sides, rows = [*sides, Side("copy of as many bytes", lambda: lambda: target.copy_(source))], []
    cases = {}
    for side in sides:
        try:
            cases[side.name] = side.make()
        except Exception as error:
            rows.append(nothing(side.name, described(error)))
    times = network.device.rounds(cases)
    for name in times:
        seconds = median(times[name])
        note = f"{1e3 * seconds:.2f} ms, {8 * moved / seconds / 1e9:,.0f} GB/s"
        rows.append(compared(times, name, next(iter(times)), note=note))
    return rows


def many_lengths(network: Network, live: int) -> list[Row]:
    """Flat streams over padded batches, cut as a run cuts them."""
    rows, results = Rows(network, None, live, network.few(16)), {}
    sides = []
    for cut in CUTS:
        for flat in (False, True):
            name = f"{'flat' if flat else 'padded'}, micro-batches of {cut:,} tokens"
            sides.append(mine(rows, name, flat=flat, max_tokens=cut))
    found = raced(network, sides, sides[0].name, rows.lengths)
    for side in sides[:2]:
        with contextlib.suppress(Exception):  # it is in its row already
            results[side.name] = losses(side.make()(), rows.total)
    if len(results) == 2:
        one, other = results.values()
        apart = float(((one - other).abs() / one.abs().clamp(min=1)).max())
        found.append(
            Row("flat - padded, a task's loss", "-", *[apart] * 3, note=f"{apart:.0e}, relative, bf16")
        )
    return found


def losses(found: list[tuple[tuple[int, ...], Any]], total: int) -> torch.Tensor:
    """(T,) summed losses of the tasks, of what a step of ours gives."""
    sums = torch.zeros(total)
    for tasks, own in found:
        sums[list(tasks)] += own.cpu()
    return sums


def many_adapters(network: Network, shape: tuple[int, int], live: int, *, mixed: bool) -> list[Row]:
    """How many times longer than ours peft takes with an adapter per task."""
    rows = Rows(network, shape, live, network.few(live))
    keeps = ("peft", live, False)
    sides = [mine(rows, "mtnlp"), *theirs(rows), Side("peft set_adapter", partial(set_adapter, rows), keeps)]
    if mixed:
        sides.append(Side("peft adapter_names", partial(adapter_names, rows), keeps))
    return raced(network, sides, "mtnlp", rows.lengths, max(2, network.device.options.rounds // 2))


# Whether they compute the same.


def fill(run: Any) -> None:
    """Rows of a bank in which no factor is zero."""
    rows = run.model.strategy.bank.rows
    rows.copy_(0.05 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)))


def to_peft(network: Network, shape: tuple[int, int]) -> float:
    """Largest relative difference between our gradients and peft's over the factors of one task, fp32."""
    rows = Rows(network, shape, 1, 1)
    run, peer = network.run(1), Peer(rows, network.peft(1))
    bank, strategy = run.model.strategy.bank, run.model.strategy
    fill(run)
    if peer.heads:
        peer.heads[0].load_state_dict(run.model.head(0).out.state_dict())
    named = {name.replace(".a0.", "."): p for name, p in peer.net.named_parameters() if "lora_" in name}
    for name, value in strategy.export("task0")[1].items():
        named[name].data.copy_(value)
    ours(rows, precision="fp32")()
    (peer.loss(peer.states()) / len(rows.of_task)).backward()
    bank.rows.copy_(bank.leaf.grad)
    found = strategy.export("task0")[1]
    apart = [(found[name].to(p.grad) - p.grad).norm() / p.grad.norm() for name, p in named.items()]
    return float(torch.stack(apart).max())


def gradient(network: Network, shape: tuple[int, int], precision: str, mode: int | None) -> torch.Tensor:
    """(16, P) of 16 tasks in rows that `fill` made."""
    run = network.run(16)
    fill(run)
    ours(Rows(network, shape, 16, 16), precision=precision, mode=mode)()
    return run.model.strategy.bank.leaf.grad.clone()


def between_modes(network: Network, shape: tuple[int, int]) -> float:
    """Largest relative difference of a task's gradient by grouped products from that by batched, fp32."""
    batched, groups = (gradient(network, shape, "fp32", mode) for mode in (None, 0))
    return float(((groups - batched).norm(dim=1) / batched.norm(dim=1)).max())


def rounding(network: Network, shape: tuple[int, int]) -> float:
    """How far grouped products in bf16 are from fp32, as a multiple of how far batched ones are."""
    right = gradient(network, shape, "fp32", None)
    batched, groups = (gradient(network, shape, "bf16", mode) - right for mode in (None, 0))
    return float(groups.norm() / batched.norm())


def differences(network: Network, shape: tuple[int, int]) -> list[Row]:
    checks = {
        "mtnlp - peft shared, fp32": (to_peft, 1e-4),
        "grouped - batched, fp32": (between_modes, 1e-4),
        "grouped / batched, bf16 - fp32": (rounding, 1.5),
    }
    rows = []
    for name, (check, most) in checks.items():
        try:
            apart = check(network, shape)
            rows.append(Row(name, "-", *[apart] * 3, target=most, note=f"{apart:.0e}"))
        except Exception as error:
            rows.append(Row(name, "-", *[math.nan] * 3, target=most, note=described(error)))
        network.forget()  # its rows are not as they were, and its memory is not known
        network.device.clean()
    return rows


# What is measured, and in which order.


def choose_attention(network: Network) -> list[Row]:
    """Take the faster one from now on."""
    rows, cases = Rows(network, network.shapes[-1], 1, 1), {}
    for name in ("sdpa", "eager"):
        network.net.set_attn_implementation(name)
        cases[name] = limit(network, rows, network.copy())
    times = network.device.rounds(cases)
    best = min(times, key=lambda name: median(times[name]))
    network.net.set_attn_implementation(best)
    return [compared(times, name, best) for name in cases]


def agenda() -> Iterator[tuple[str, str, Callable[[Network], list[Row]]]]:
    """(network, what, its rows), the most telling first."""

    def on(family: str, what: str, of: Callable[..., list[Row]], at: int, *more: Any, **options: Any) -> Any:
        def rows(network: Network) -> list[Row]:
            return of(network, network.shapes[at], *more, **options)

        return family, what, rows

    names = "64 rows of 32", "16 rows of 128", "256 rows of 128"
    yield on("encoder", "gradients", differences, 0)
    for live, at in ((16, 0), (64, 0), (16, 2), (16, 1), (64, 2)):
        yield on("encoder", f"{names[at]}, {live} live", steps, at, live)
    yield on("encoder", "optimizer, 16 live", optimizer, 0, 16)
    yield on("encoder", f"{names[0]}, 16 live of 1,000", from_main_memory, 0, 16)
    yield "encoder", "rows of 8 to 512", partial(many_lengths, live=16)
    yield on("encoder", f"{names[0]}, 16 adapters", many_adapters, 0, 16, mixed=True)
    yield on("decoder", "gradients", differences, 0)
    for live in (16, 4, 1):
        yield on("decoder", f"16 rows of 512, {live} live", steps, 0, live)
    yield "decoder", "rows of 8 to 1,024", partial(many_lengths, live=16)
    yield on("decoder", "optimizer, 16 live", optimizer, 0, 16)
    yield on("decoder", "16 rows of 512, 16 adapters", many_adapters, 0, 16, mixed=True)
    yield on("decoder", "16 rows of 512, 16 live of 1,000", from_main_memory, 0, 16)
    for live, at in ((1, 0), (4, 0), (32, 0), (1, 1), (4, 1)):
        yield on("encoder", f"{names[at]}, {live} live", steps, at, live)
    yield on("encoder", f"{names[0]}, 64 adapters", many_adapters, 0, 64, mixed=False)


def show(groups: dict[str, list[Row]], options: Namespace, about: str) -> None:
    """Print the newest group, and write all of them."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        report(TITLE, groups, options, engine=about)
    head, _, table = text.getvalue().rpartition("\n## ")
    print(f"{head}{about}\n" if len(groups) == 1 else "", f"## {table}", sep="\n", end="", flush=True)


def measure(device: Device, about: str) -> bool:
    """All groups, as far as time allows; whether no check failed."""
    options, start, groups, network = device.options, time.perf_counter(), {}, None
    shapes = [(256, 256, 256)] if options.quick else PEAK_SHAPES
    groups["products in bf16, TFLOP/s"] = device.measure_peak(shapes)
    show(groups, options, about)
    for family, what, rows in agenda():
        if options.only not in (None, family):
            continue
        title, passed = f"{family}, {what}", time.perf_counter() - start
        if passed > options.budget:
            doing(f"{title}: not begun after {passed:.0f} s")
            continue
        doing(f"{title}, at {passed:.0f} s")
        try:
            if network is None or network.family != family:
                network = None  # first its memory
                device.clean()
                network = build(family, device)
                if (name := f"{family}, attention") not in groups:
                    groups[name] = choose_attention(network)
                    show(groups, options, about)
            groups[title] = rows(network)
        except Exception as error:
            groups[title] = [nothing(what, described(error))]
        if network is not None and device.spare() < 1.5 * ROOM:
            network.forget()
        device.clean()
        show(groups, options, about)
    return all(row.ok is not False for rows in groups.values() for row in rows)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--budget", type=float, default=400.0, help="seconds after which no group begins")
    parser.add_argument("--only", choices=("encoder", "decoder"), help="only this network")
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 10)
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not torch.cuda.is_available():
        print("benchmarks/device.py needs an accelerator (CUDA); --device cpu --quick shows whether it runs.")
        return 2
    else:  # the clock is on the wall
        options.threads = max(2, torch.get_num_threads())
    warnings.simplefilter("ignore")
    settings, engine = settled("lora-per-task", attention="default", precision="bf16", matmul="highest")
    device = Device(options, settings)
    with engine.applied(training=True):
        return 0 if measure(device, f"{device}. {engine.line}") else 1


if __name__ == "__main__":
    sys.exit(main())
