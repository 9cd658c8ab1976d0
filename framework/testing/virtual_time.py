"""An event loop whose clock jumps: when nothing is left to do, time moves to the next timer at once.

A test of a 30-second timeout takes no time, and every moment in it is exact. For code that does no I/O: sockets and
threads work, but the clock does not wait for them.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

STUCK = 5.0
"""Real seconds to wait for a thread or a socket when no timer is left, before the test is called stuck."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`asyncio.SelectorEventLoop` with a clock of its own, which starts at 0."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_Selector(self))

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move the clock; what falls due runs when the loop is next free."""
        self._now += seconds


class _Selector(selectors.DefaultSelector):
    """Looks at real sockets without waiting, and lets virtual time pass instead."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or timeout == 0:
            return events
        if timeout is not None:
            self._loop.advance(timeout)
            return events
        events = super().select(STUCK)
        if not events:
            raise RuntimeError("every task waits and no timer is set: in virtual time this would last for ever")
        return events


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
