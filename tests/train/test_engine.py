"""What measurements decide, what they may not decide, and that torch is left as it was."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from mtnlp.kernels import grouped
from mtnlp.train import allocator, engine, timings
from mtnlp.train.engine import Engine, Wanted, choose


class Meter:
    """Answers with given gains, and notes what it was asked."""

    def __init__(self, medium=1.0, error=3e-7, bf16=1.0, eager=1.0, groups=None):
        self.gains, self.groups, self.asked = (medium, error, bf16, eager), groups or {}, []

    def medium_gain(self):
        self.asked.append("medium")
        return self.gains[:2]

    def bf16_gain(self, device, how):
        self.asked.append(("bf16", device, how))
        return self.gains[2]

    def eager_gain(self, bf16, how, length):
        self.asked.append(("eager", bf16, how, length))
        return self.gains[3]

    def grouped_gains(self, device):
        self.asked.append(("grouped", device))
        return self.groups


@pytest.mark.parametrize(
    ("gains", "chosen"),
    [
        ({"medium": 2.2, "bf16": 2.1, "eager": 3.5}, ("eager", "bf16", "medium")),
        ({}, ("eager", "fp32", "highest")),  # nothing is clearly faster
        ({"medium": 1.14, "bf16": 1.14, "eager": 0.88}, ("eager", "fp32", "highest")),
        ({"medium": 1.15, "bf16": 1.15, "eager": 0.86}, ("default", "bf16", "medium")),
        ({"medium": 5.0, "error": 2e-3}, ("eager", "fp32", "highest")),  # bfloat16 in disguise
        ({"medium": 0.2, "bf16": 0.05, "eager": 0.1}, ("default", "fp32", "highest")),
        ({"medium": 1.0, "error": float("nan"), "bf16": float("nan")}, ("eager", "fp32", "highest")),
    ],
)
def test_on_a_cpu_only_what_is_clearly_faster_and_as_exact_is_taken(gains, chosen):
    meter = Meter(**gains)

    made = choose(Wanted(), device="cpu", length=96, meter=meter)

    assert (made.attention, made.precision, made.matmul) == chosen
    bf16 = made.precision == "bf16"
    assert meter.asked == ["medium", ("bf16", "cpu", made.matmul), ("eager", bf16, made.matmul, 96)]


@pytest.mark.parametrize(
    ("wanted", "asked"),
    [
        (Wanted(attention="sdpa"), 2),
        (Wanted(precision="fp32"), 2),
        (Wanted(matmul="high"), 2),
        (Wanted("sdpa", "fp32", "high"), 0),
    ],
)
def test_what_the_recipe_says_is_not_measured(wanted, asked):
    meter = Meter(medium=9, bf16=9, eager=9)

    made = choose(wanted, device="cpu", length=96, meter=meter)

    assert len(meter.asked) == asked == len(made.reasons)
    for name in ("attention", "precision", "matmul"):
        if getattr(wanted, name) != "auto":
            assert getattr(made, name) == getattr(wanted, name) and name not in made.reasons


def test_other_devices_keep_their_own_ways_and_only_a_gpu_s_bfloat16_is_measured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    with timings.matmul("high"):
        gpu = choose(Wanted(), device="cuda", length=96, meter=(meter := Meter(bf16=8.0)))
    other = choose(Wanted(), device="mps", length=96, meter=Meter(bf16=8.0))

    assert (gpu.attention, gpu.precision, gpu.matmul) == ("default", "bf16", "high")
    assert meter.asked == [("bf16", "cuda", "high")]
    assert (other.attention, other.precision, other.matmul, other.reasons) == (
        "default",
        "fp32",
        "highest",
        {},
    )


def test_the_line_says_what_was_chosen_and_why(monkeypatch):
    monkeypatch.setattr(allocator, "tunable", lambda: True)
    monkeypatch.setattr(engine, "usable_threads", lambda: 2)
    fast = choose(Wanted(), device="cpu", length=128, meter=Meter(2.24, 4e-7, 2.06, 1.8))
    slow = choose(Wanted(), device="cpu", length=2048, meter=Meter(1.02, 3e-7, 0.4, 0.5))
    told = Engine("cuda", "flash_attention_2", "bf16", "highest", 1, {})

    assert fast.line.partition(" measured in")[0] == (
        "engine: bf16 (2.1x fp32), fp32 matmul medium (2.2x, error 4e-07), "
        "attention eager (1.8x sdpa up to 128), 2 threads, freed memory kept;"
    )
    assert slow.line.partition(", 2 threads")[0] == (
        "engine: fp32 (bf16 0.4x), fp32 matmul highest (medium 1.0x, error 3e-07), "
        "attention default (2.0x eager up to 2048)"
    )
    assert told.line == "engine: bf16, fp32 matmul highest, attention flash_attention_2, 1 thread."


@pytest.mark.parametrize(
    ("gains", "chosen", "said"),
    [
        ({64: 0.7, 256: 1.2, 1024: 2.0}, 256, "grouped products from 256 tokens of a task (1.2x batched)"),
        ({64: 9.0, 256: 1.1, 1024: 2.0}, 1024, "grouped products from 1024 tokens of a task (2.0x batched)"),
        ({64: 9.0, 256: 9.0, 1024: 1.14}, None, "batched products (grouped 1.1x)"),
        ({64: 9.0, 256: float("nan"), 1024: float("nan")}, None, "batched products (grouped nanx)"),
        ({}, None, ""),  # it cannot be done there
    ],
)
def test_a_gpu_multiplies_in_groups_from_where_they_stay_clearly_faster(gains, chosen, said):
    wanted, meter = Wanted("sdpa", "bf16", "high"), Meter(groups=gains)

    made = choose(wanted, device="cuda", length=96, grouped=True, meter=meter)

    assert meter.asked == [("grouped", "cuda")] and made.grouped_from == chosen
    assert made.line.partition(" thread")[2].partition("; measured")[0].strip("s., ") == said
    with grouped.using(7):
        with made.applied():
            assert grouped.faster_from == chosen
        assert grouped.faster_from == 7
    for never in (
        choose(wanted, device="cuda", length=96, meter=meter),  # another strategy
        choose(Wanted("sdpa", "fp32", "high"), device="cuda", length=96, grouped=True, meter=meter),
    ):
        assert never.grouped_from is None and never.reasons == {}


def test_groups_are_timed_only_where_their_values_are_right(monkeypatch):
    for name, value in {"MANY": 1024, "DRAWN": 256, "PER_TASK": (64, 256), "WIDTH": 32}.items():
        monkeypatch.setattr(timings, name, value)
    found, real = [], torch.nn.functional.grouped_mm
    for product in (real, lambda *args, **how: real(*args, **how) * 1.05, lambda *args, **how: args.missing):
        monkeypatch.setattr(torch.nn.functional, "grouped_mm", product)
        timings.grouped_gains.cache_clear()
        found.append(timings.grouped_gains("cpu"))
    timings.grouped_gains.cache_clear()

    assert found[0].keys() == {64, 256} and all(gain > 0 for gain in found[0].values())
    assert found[1:] == [{}, {}]


def settings():
    places = [place.matmul.fp32_precision for place in (torch.backends.mkldnn, torch.backends.cuda)]
    return [torch.get_float32_matmul_precision(), torch.get_num_threads(), *places]


def test_torch_computes_so_inside_and_as_before_afterwards():
    before = settings()
    made = Engine("cpu", "eager", "bf16", "medium", before[1] + 2, {})

    def fail():
        with made.applied(training=True):
            with made.applied():
                pass
            inside.extend(settings())
            raise KeyError

    inside = []
    with pytest.raises(KeyError):
        fail()

    assert inside[:2] == ["medium", before[1] + 2]
    assert settings() == before


def test_a_real_measurement_leaves_torch_as_it_was_and_finds_true_errors():
    before, state = settings(), torch.get_rng_state()

    made = choose(Wanted(), device="cpu", length=32)

    assert settings() == before and torch.equal(torch.get_rng_state(), state)
    assert set(made.reasons) == {"attention", "precision", "matmul"}
    _, error = timings.medium_gain()
    assert 0 < error < 1e-5 or made.matmul == "highest"


def test_the_best_round_counts(monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(timings.time, "thread_time", lambda: next(clock) * 1e-3)

    def work(*ticks):
        left = [100, *ticks] + [9] * 50  # the first call warms up
        return lambda: [next(clock) for _ in range(left.pop(0))]

    assert timings.race({"a": work(7, 3, 5), "b": work(2, 8, 4)}) == {
        "a": pytest.approx(4e-3), "b": pytest.approx(3e-3),
    }  # fmt: skip


def machine(monkeypatch, folder, *, allowed, siblings, quota):
    for cpu, core in siblings.items():
        place = folder / f"cpu{cpu}" / "topology"
        place.mkdir(parents=True)
        (place / "physical_package_id").write_text("0")
        (place / "core_id").write_text(str(core))
    (folder / "cpu.max").write_text(quota)
    monkeypatch.setattr(engine, "CPUS", folder)
    monkeypatch.setattr(engine, "QUOTA", folder / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed, raising=False)


@pytest.mark.parametrize(
    ("allowed", "siblings", "quota", "ranks", "told", "expected"),
    [
        ({0, 1, 2, 3}, {0: 0, 1: 1, 2: 2, 3: 3}, "max 100000", 1, 8, 4),
        ({0, 1, 2, 3}, {0: 0, 1: 1, 2: 0, 3: 1}, "max 100000", 1, 8, 2),  # two threads on a core
        ({0, 1, 2, 3}, {0: 0, 1: 1, 2: 2, 3: 3}, "250000 100000", 1, 8, 2),
        ({0, 1, 2, 3}, {0: 0, 1: 1, 2: 2, 3: 3}, "max 100000", 2, 8, 2),
        ({0, 1, 2, 3}, {0: 0, 1: 1, 2: 2, 3: 3}, "max 100000", 1, 1, 1),  # torch was told one
        ({0, 1}, {}, "50000 100000", 3, 8, 1),  # a machine that does not say
    ],
)
def test_a_process_takes_its_share_of_the_cores(
    monkeypatch, tmp_path, allowed, siblings, quota, ranks, told, expected
):
    machine(monkeypatch, tmp_path, allowed=allowed, siblings=siblings, quota=quota)
    monkeypatch.setattr(torch, "get_num_threads", lambda: told)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    assert engine.usable_threads() == expected
    monkeypatch.setenv("OMP_NUM_THREADS", str(told))
    assert engine.usable_threads() == told


@pytest.mark.skipif(not allocator.tunable(), reason="no glibc, or one that is set up otherwise")
def test_memory_that_was_freed_is_mostly_used_again_without_page_faults_and_afterwards_too():
    code = """
import resource, torch
from mtnlp.train import allocator
def faults(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
usual, small = faults(2**24), faults(2**20)
with allocator.keeping():
    kept = faults(2**24)
print(kept, usual, faults(2**20), small)
"""  # in a process of its own, whose heap no other test has grown
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kept, usual, small_afterwards, small_before = map(int, found.stdout.split())

    assert kept < usual / 2
    assert small_afterwards < max(2 * small_before, 4096)  # 20 x 1,024 pages with the limits of a new process


def test_who_set_up_the_allocator_is_left_alone(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000")
    monkeypatch.setattr(allocator, "_libc", lambda: pytest.fail("called"))

    assert not allocator.tunable.__wrapped__()
    monkeypatch.setattr(allocator, "tunable", allocator.tunable.__wrapped__)
    with allocator.keeping():
        pass
