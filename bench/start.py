"""How long it takes to start: the import, and the command line."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator

from bench.harness import Row, single


async def _timed(*command: str) -> float:
    start = time.perf_counter()
    child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    if await child.wait() != 0:
        raise RuntimeError(f"{' '.join(command)} failed")
    return time.perf_counter() - start


async def start() -> AsyncIterator[Row]:
    """Seconds of a fresh interpreter, its own start included."""
    for name, command, goal in (
        ("import framework", ("-c", "from framework import Service, connect"), "<= 0.3"),
        ("framework --help", ("-m", "framework", "--help"), "<= 0.5"),
    ):
        samples = [await _timed(sys.executable, *command) for _ in range(11)]
        yield single(name, "s", samples[1:], goal)
