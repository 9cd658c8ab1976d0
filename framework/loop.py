"""One event loop per process, as grpc.aio needs it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from framework.errors import FrameworkError

_loop: asyncio.AbstractEventLoop | None = None


def guard_loop() -> None:
    """Call before grpc.aio is used; a second loop that runs beside the first would hang or crash.

    Raises:
        FrameworkError: grpc.aio is in use on another running loop of this process.
    """
    global _loop
    loop = asyncio.get_running_loop()
    if _loop is not None and _loop is not loop and _loop.is_running():
        raise FrameworkError("grpc.aio is in use on another event loop of this process; use one loop per process")
    _loop = loop


def exact_clock() -> Callable[[], float]:
    """The running loop's clock, to the microsecond: that of uvloop, which is the monotonic one, has milliseconds."""
    loop = asyncio.get_running_loop()
    return time.monotonic if type(loop).__module__.startswith("uvloop") else loop.time
