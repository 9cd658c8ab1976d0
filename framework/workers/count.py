"""How many workers there are to be."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from typing import Literal


def usable_cpus(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """How many CPUs this process may use: those it is bound to, or what its container has of them."""
    cpus = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):  # no limit is written as "max"
        limit, period = map(int, quota.read_text().split())
        cpus = min(cpus, math.ceil(limit / period))
    return max(1, cpus)


def count(workers: int | Literal["auto"]) -> int:
    """How many workers a setting means."""
    return usable_cpus() if workers == "auto" else workers
