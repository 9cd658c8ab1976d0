"""Serving until a signal: SIGTERM and SIGINT drain, a second one stops at once.

Whoever blocks the loop keeps it from hearing of signals. So what ends the process by force does not need the loop, and
begins in Python's own signal handler.
"""

from __future__ import annotations

import _thread
import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import FrameType
from typing import Any, Protocol

from framework.config import QUICK_DRAIN, Drain

log = logging.getLogger("framework")

AT_ONCE = 0.5
"""Seconds that a second signal leaves for closing what can be closed."""

PATIENCE = 10.0
"""Seconds that a process may take longer to drain than its settings say before it is killed."""


class Stoppable(Protocol):
    """What serves while a block runs."""

    def stop_as(self, drain: Drain) -> None:
        """Drain like this at the end of the block."""


async def serve_until_signal(
    name: str,
    running: AbstractAsyncContextManager[Stoppable],
    drain: Drain,
    *,
    interactive: bool | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain.

    Args:
        name: of what serves, for the log.
        running: serves while it is entered, and drains when it is left.
        drain: how, as a rule.
        interactive: drain quickly on SIGINT, for a person who waits; default: whether a terminal is attached.
    """
    interactive = sys.stderr.isatty() if interactive is None else interactive
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    task = asyncio.current_task()
    assert task is not None
    received: list[signal.Signals] = []  # as the loop knows them
    arrived = 0
    serving = over = False

    def at_once(number: int) -> None:
        nonlocal arrived
        arrived += 1
        if arrived == 1:
            how = QUICK_DRAIN if interactive and number == signal.SIGINT else drain
            _end_in(
                how.delay + how.grace + PATIENCE, 1, lambda: over or arrived > 1, f"{name} does not end, and is killed"
            )
        else:
            _end_in(AT_ONCE, 128 + number)

    def on_signal(number: signal.Signals) -> None:
        received.append(number)
        if len(received) > 1:
            log.warning("%s stops at once", name)
            task.cancel()
        elif serving:
            stop.set()
        else:
            log.info("%s stops before it serves", name)
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
        _hear_first(number, at_once)
    try:
        async with running as it:
            serving = True
            await stop.wait()
            how = QUICK_DRAIN if interactive and received[0] is signal.SIGINT else drain
            it.stop_as(how)
            log.info(
                "%s drains: it accepts for %g s more, then calls have %g s and streams %g s",
                name,
                how.delay,
                how.grace,
                how.streams,
            )
    except asyncio.CancelledError:
        if not received:
            raise
        task.uncancel()
    finally:
        over = True
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _hear_first(number: signal.Signals, told: Callable[[int], None]) -> None:
    """Be told of a signal that the loop handles even while the loop is blocked."""
    loops: Any = signal.getsignal(number)

    def handler(arrived: int, frame: FrameType | None) -> None:
        told(arrived)
        loops(arrived, frame)

    signal.signal(number, handler)
    signal.siginterrupt(number, False)  # as the loop has it


def _end_in(seconds: float, code: int, spared: Callable[[], bool] = bool, told: str = "") -> None:
    """End the process in so many seconds, whatever threads and tasks that do not listen still do.

    Args:
        spared: whether it need not be ended after all.
        told: what to log then.
    """

    def end() -> None:
        time.sleep(seconds)
        if spared():
            return
        if told:
            _end_in(AT_ONCE, code)  # who blocks may hold what a log needs
            log.error(told)
        os._exit(code)

    _thread.start_new_thread(end, ())  # threading has locks, which whom the signal interrupted may hold
