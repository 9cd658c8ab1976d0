"""Serving until a signal: SIGTERM and SIGINT drain, a second one stops at once."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from framework.config import QUICK_DRAIN, Drain

log = logging.getLogger("framework")

AT_ONCE = 0.5
"""Seconds that a second signal leaves for closing what can be closed."""


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
    received: list[signal.Signals] = []
    serving = False

    def on_signal(number: signal.Signals) -> None:
        received.append(number)
        if len(received) > 1:
            log.warning("%s stops at once", name)
            _exit_soon(128 + number)
            task.cancel()
        elif serving:
            stop.set()
        else:
            log.info("%s stops before it serves", name)
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
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
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _exit_soon(code: int) -> None:
    """End the process in a moment, whatever threads and tasks that do not listen still do."""
    timer = threading.Timer(AT_ONCE, os._exit, (code,))
    timer.daemon = True
    timer.start()
