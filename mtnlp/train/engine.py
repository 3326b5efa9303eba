"""What a run computes with: precision, float32 products, attention, threads; what is left open is measured.

    engine = choose(Wanted(), device="cpu", length=128)
    print(engine.line)          # engine: bf16 (2.1x fp32), fp32 matmul medium (2.2x, error 4e-07), ...
    with engine.applied(): ...  # torch's settings for all of the process, put back at the end

A choice leaves what torch and transformers do by themselves only for something clearly faster, so that noise
seldom decides. A run keeps its choices in its recipe; only threads follow the machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mtnlp.kernels.grouped import using
from mtnlp.train import allocator, timings

AUTO = "auto"
MARGIN = 1.15  # times as fast as the usual way, or the usual way stays
ROUNDING = 1e-5  # relative error of a product in float32
CPUS, QUOTA = Path("/sys/devices/system/cpu"), Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Wanted:
    """What a recipe asks for; AUTO = as measured.

    attention: eager, default (as transformers chooses) or one of its implementations. precision: fp32, bf16.
    matmul: highest, high, medium, as for torch.set_float32_matmul_precision.
    """

    attention: str = AUTO
    precision: str = AUTO
    matmul: str = AUTO


@dataclass(frozen=True)
class Engine:
    """What was chosen.

    device: its kind. attention, precision, matmul: values of `Wanted`, none of them open. threads: of torch,
    in this process. reasons: the measurements that decided, by name. seconds: that all of it took.
    grouped_from: tokens of a task from which on products are grouped, see `kernels.grouped`; None = never.
    """

    device: str
    attention: str
    precision: str
    matmul: str
    threads: int
    reasons: dict[str, str]
    seconds: float = 0.0
    grouped_from: int | None = None

    @property
    def line(self) -> str:
        """One sentence that says it all."""

        def why(name: str) -> str:
            return f" ({self.reasons[name]})" if name in self.reasons else ""

        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        kept = ", freed memory kept" if self.device == "cpu" and allocator.tunable() else ""
        tokens = self.grouped_from
        products = f"grouped products from {tokens} tokens of a task" if tokens else "batched products"
        products = f", {products}{why('products')}" if "products" in self.reasons else ""
        measured = f"; measured in {self.seconds:.1f} s" if self.reasons else ""
        return (
            f"engine: {self.precision}{why('precision')}, fp32 matmul {self.matmul}{why('matmul')}, "
            f"attention {self.attention}{why('attention')}, {threads}{kept}{products}{measured}."
        )

    @contextmanager
    def applied(self, *, training: bool = False) -> Iterator[None]:
        """Inside, torch computes so in all of this process; afterwards as before.

        Args:
            training: on a CPU, also keep freed memory for the next step; see `allocator`.
        """
        with ExitStack() as stack:
            before = torch.get_num_threads()
            if before != self.threads:
                torch.set_num_threads(self.threads)
                stack.callback(torch.set_num_threads, before)
            stack.enter_context(timings.matmul(self.matmul))
            stack.enter_context(using(self.grouped_from))
            if training and self.device == "cpu":
                stack.enter_context(allocator.keeping())
            yield


def choose(
    wanted: Wanted, *, device: str, length: int, grouped: bool = False, meter: Any = timings
) -> Engine:
    """The engine for a device; only what is left open is measured.

    Args:
        device: "cpu", "cuda" ...
        length: tokens of the longest sequences.
        grouped: whether the strategy has products that can be grouped by task.
        meter: has medium_gain, bf16_gain, eager_gain and grouped_gains; see `timings`.
    """
    started, why = time.perf_counter(), {}
    matmul, precision, attention = wanted.matmul, wanted.precision, wanted.attention
    if matmul == AUTO:
        matmul = timings.matmul_setting()
        if device == "cpu":
            gain, error = meter.medium_gain()
            matmul = "medium" if gain >= MARGIN and error < ROUNDING else "highest"
            why["matmul"] = f"{_other(matmul, 'medium')}{gain:.1f}x, error {error:.0e}"
    if precision == AUTO:
        precision = "fp32"
        if device == "cpu" or (device == "cuda" and torch.cuda.is_bf16_supported()):
            gain = meter.bf16_gain(device, matmul)
            precision = "bf16" if gain >= MARGIN else "fp32"
            why["precision"] = f"{gain:.1f}x fp32" if precision == "bf16" else f"bf16 {gain:.1f}x"
    if attention == AUTO:
        attention = "default"
        if device == "cpu":
            gain = meter.eager_gain(precision == "bf16", matmul, length)
            attention = "eager" if gain > 1 / MARGIN else "default"
            faster = f"{gain:.1f}x sdpa" if attention == "eager" else f"{1 / gain:.1f}x eager"
            why["attention"] = f"{faster} up to {length}"
    grouped_from = None
    if grouped and device == "cuda" and precision == "bf16" and (gains := meter.grouped_gains(device)):
        grouped_from = _faster_from(gains)
        gain = gains[grouped_from or max(gains)]
        why["products"] = f"{gain:.1f}x batched" if grouped_from else f"grouped {gain:.1f}x"
    seconds = time.perf_counter() - started
    return Engine(device, attention, precision, matmul, usable_threads(), why, seconds, grouped_from)


def usable_threads() -> int:
    """Torch's threads for this process: its share of the cores, and never more than torch was told to take.

    OMP_NUM_THREADS counts as it is; without it, the ranks of one machine divide its cores.
    """
    told = torch.get_num_threads()
    if os.environ.get("OMP_NUM_THREADS"):
        return told
    return max(1, min(told, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def cores() -> int:
    """Physical cores that this process may use: by its affinity and the quota of its control group."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    try:
        names = ("physical_package_id", "core_id")
        own = {
            tuple((CPUS / f"cpu{cpu}" / "topology" / name).read_text() for name in names) for cpu in allowed
        }
    except OSError:
        own = allowed
    try:
        quota, period = QUOTA.read_text().split()
        return max(1, min(len(own), int(quota) // int(period)))
    except (OSError, ValueError):  # no such file; or "max", no quota
        return len(own)


def _faster_from(gains: Mapping[int, float]) -> int | None:
    """The smallest number with a gain of MARGIN, as all larger ones have."""
    found = None
    for tokens in sorted(gains, reverse=True):
        if not gains[tokens] >= MARGIN:
            break
        found = tokens
    return found


def _other(chosen: str, name: str) -> str:
    return "" if chosen == name else f"{name} "
