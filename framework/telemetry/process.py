"""Figures of the process itself: CPU, memory, files, uptime, and how late its event loop is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator

from framework.certificates import expiry
from framework.loop import exact_clock
from framework.telemetry.figures import Figures, Sample
from framework.telemetry.names import CERTIFICATE_EXPIRY, CPU_TIME, LOOP_LAG, MEMORY, OPEN_FILES, UPTIME

EVERY = 0.25
"""Seconds between two looks at how late the loop is."""

_began = time.monotonic()


class Process:
    """The figures that the operating system knows of this process."""

    def figures(self) -> Iterable[Sample]:
        """What they are now."""
        times = os.times()
        yield CPU_TIME, (("cpu.mode", "user"),), times.user
        yield CPU_TIME, (("cpu.mode", "system"),), times.system
        yield UPTIME, (), time.monotonic() - _began
        for name, end in expiry().items():
            yield CERTIFICATE_EXPIRY, (("file", name),), end
        if sys.platform == "linux":
            with contextlib.suppress(OSError, ValueError, IndexError):
                with open("/proc/self/statm", "rb") as file:
                    pages = int(file.read().split()[1])
                yield MEMORY, (), float(pages * os.sysconf("SC_PAGESIZE"))
            with contextlib.suppress(OSError):
                yield OPEN_FILES, (), float(len(os.listdir("/proc/self/fd")) - 1)  # the one that lists them is no more


@contextlib.contextmanager
def lag_watched(figures: Figures, every: float = EVERY) -> Iterator[None]:
    """Measure, while the block runs, how much later than asked for the running loop calls."""
    loop = asyncio.get_running_loop()
    clock = exact_clock()
    lag = figures.histogram(LOOP_LAG, ())
    due = clock() + every
    timer: asyncio.TimerHandle

    def look() -> None:
        nonlocal due, timer
        now = clock()
        lag.record(max(0.0, now - due))
        due = now + every
        timer = loop.call_later(every, look)

    timer = loop.call_later(every, look)
    try:
        yield
    finally:
        timer.cancel()
