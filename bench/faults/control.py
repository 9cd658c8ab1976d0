"""What the processes of the lab share: commands as lines of JSON, and a wall clock that can be set."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio  # its modules must be there before the clock is replaced


async def commands() -> AsyncIterator[dict[str, Any]]:
    """What the lab says on standard input, until it closes it or is gone."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield json.loads(line)


def tell(**what: Any) -> None:
    """Answer the lab."""
    print(json.dumps(what), flush=True)


def uses(pid: int | str = "self") -> tuple[int, int]:
    """Bytes of memory and file descriptors that a process uses. Raises OSError when there is none."""
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resident, len(os.listdir(f"/proc/{pid}/fd"))


class WallClock:
    """`time.time` of this process, set as by an administrator: everything but grpc sees it jump.

    grpc's Python half adds timeouts to `time.time` and hands the sum to its core, which reads the system's own clock. A
    real jump moves both, so here neither is moved.
    """

    def __init__(self) -> None:
        self.offset = 0.0
        self._time, self._time_ns = time.time, time.time_ns

    def install(self) -> None:
        """Replace the clock, once, before anybody reads it."""
        real = type(time)("time")
        real.__dict__.update(time.__dict__)
        for name, module in tuple(sys.modules.items()):
            if name.startswith("grpc") and getattr(module, "time", None) is time:
                module.time = real  # type: ignore[attr-defined]  # it has one, as was just seen
        time.time = lambda: self._time() + self.offset
        time.time_ns = lambda: self._time_ns() + int(self.offset * 1e9)


def clock() -> WallClock:
    """The wall clock of this process, which can be set from now on."""
    assert grpc.aio is not None
    wall = WallClock()
    wall.install()
    return wall
