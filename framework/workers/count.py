"""How many workers there are to be."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

from framework.config import Settings


def usable_cpus(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """How many CPUs this process may use: those it is bound to, or what its container has of them."""
    cpus = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):  # no limit is written as "max"
        limit, period = map(int, quota.read_text().split())
        cpus = min(cpus, math.ceil(limit / period))
    return max(1, cpus)


def count(settings: Settings) -> int:
    """How many workers these settings mean."""
    workers = settings.server.workers
    return usable_cpus() if workers == "auto" else workers
