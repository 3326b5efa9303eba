"""What is free, read off systems that are made up."""

from __future__ import annotations

import pytest

from mtnlp import memory
from mtnlp.errors import MtnlpError

MIB = 2**20


@pytest.fixture
def system(tmp_path, monkeypatch):
    """system({file: content}) makes the files; names start with proc/ or cgroup/."""
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")

    def make(files):
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)

    return make


def group(name, most, used, cache=0):
    inside = {"memory.max": most, "memory.current": used, "memory.stat": f"anon 5\ninactive_file {cache}"}
    return {f"cgroup/{name}{file}": f"{content}\n" for file, content in inside.items()}


MEMINFO = {"proc/meminfo": f"MemTotal: {900 * 1024} kB\nMemFree: 1024 kB\nMemAvailable: {600 * 1024} kB\n"}
INSIDE = {"proc/self/cgroup": "4:memory:/old\n0::/job/step\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (MEMINFO, 600),
        (MEMINFO | INSIDE | group("job/step/", "max", 7 * MIB), 600),
        (MEMINFO | INSIDE | group("job/step/", 500 * MIB, 200 * MIB, cache=50 * MIB), 350),
        (MEMINFO | INSIDE | group("job/step/", "max", 0) | group("job/", 90 * MIB, 20 * MIB), 70),
        (MEMINFO | {"proc/self/cgroup": "0::/\n"} | group("", 90 * MIB, 95 * MIB), 0),
        (MEMINFO | INSIDE | group("job/step/", 900 * MIB, 0), 600),
    ],
    ids=["system", "group without a limit", "group", "group around it", "above the limit", "larger group"],
)
def test_the_least_of_what_the_system_and_the_groups_leave_is_free(files, expected, system):
    system(files)

    assert memory.free() == expected * MIB


def test_a_system_that_says_nothing_is_not_guessed_about(system, monkeypatch):
    monkeypatch.setattr(memory.os, "sysconf_names", {})

    assert memory.free() is None
    assert memory.free("mps") is None


def test_sizes_read_well():
    assert [memory.shown(n) for n in (3.7 * 2**30, 2**30, 5 * MIB, 0)] == [
        "3.7 GiB",
        "1.0 GiB",
        "5.0 MiB",
        "0.0 MiB",
    ]


def test_rows_that_do_not_fit_are_told_by_their_numbers(monkeypatch):
    monkeypatch.setattr(memory, "free", lambda: 4 * 1000 * 5000)
    memory.check_rows(1000, 5000)

    with pytest.raises(
        MtnlpError, match=r"^1,001 tasks x 5,000 own parameters need 19\.1 MiB for weights, and "
    ):
        memory.check_rows(1001, 5000)

    monkeypatch.setattr(memory, "free", lambda: None)
    memory.check_rows(10**9, 10**9)
