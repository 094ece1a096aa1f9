"""What this machine lets us use: cores and memory, also inside a container."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
CPUS = Path("/sys/devices/system/cpu")


def usable_cores(cgroup: Path = CGROUP, cpus: Path = CPUS) -> int:
    """Physical cores that this process may run on, at most the container's quota: the threads worth having.

    Hyper-threads share the arithmetic units, which one thread can fill.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = set()
    for cpu in allowed:
        listed = cpus / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        siblings.add(listed.read_text().strip() if listed.exists() else str(cpu))
    return max(1, min(len(siblings), _quota(cgroup)))


def _quota(cgroup: Path) -> int:
    """Whole cores of cgroup v2's cpu.max ("200000 100000"), or more than any machine has."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        return max(1, round(int(quota) / int(period)))
    except (OSError, ValueError):  # no such file, or "max 100000"
        return 1 << 20


def memory_bytes(cgroup: Path = CGROUP) -> int:
    """Main memory, at most the container's limit."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        total = 8 << 30
    try:
        return min(total, int((cgroup / "memory.max").read_text()))
    except (OSError, ValueError):
        return total
