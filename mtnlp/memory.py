"""How much memory is left, to say what does not fit before it is tried."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mtnlp.errors import MtnlpError

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def free(device: str = "cpu") -> int | None:
    """Bytes that can still be allocated; None = the system does not say.

    Args:
        device: "cpu": the system's own estimate, or what the process's control groups (cgroup v2) leave it,
            if that is less. "cuda": what its driver says of the current one.
    """
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0]
    return min([*_system(), *_groups()], default=None) if device == "cpu" else None


def check_rows(tasks: int, own: int) -> None:
    """MtnlpError unless T rows of P float32 can be made on the CPU. T: tasks; P: a task's own parameters."""
    needed, left = 4 * tasks * own, free()
    if left is not None and needed > left:
        raise MtnlpError(too_many(tasks, own, needed, "weights", left))


def too_many(tasks: int, own: int, needed: float, what: str, left: float) -> str:
    """The message for tasks that do not fit: bytes that are needed for `what`, and bytes that are free."""
    return (
        f"{tasks:,} tasks x {own:,} own parameters need {shown(needed)} for {what}, and {shown(left)} are "
        "free. Give each task fewer (model.strategy: a lower rank, fewer targets, a higher reduction), or "
        "train fewer tasks."
    )


def shown(size: float) -> str:
    """Bytes in a message: "3.7 GiB"."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _system() -> Iterator[int]:
    """Linux counts caches that it would give back as free; elsewhere all memory is the only bound known."""
    for line in _lines(PROC / "meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024
            return
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _groups() -> Iterator[int]:
    """What is left in every group that this process is in and that has a limit."""
    for line in _lines(PROC / "self" / "cgroup"):
        if line.startswith("0::/"):
            own = CGROUPS / line[len("0::/") :]
            for group in (own, *(parent for parent in own.parents if parent.is_relative_to(CGROUPS))):
                most, used = (_lines(group / name) for name in ("memory.max", "memory.current"))
                if most and used and most[0] != "max":
                    stat = dict(entry.split() for entry in _lines(group / "memory.stat"))
                    yield max(0, int(most[0]) - int(used[0]) + int(stat.get("inactive_file", 0)))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except OSError:
        return []
