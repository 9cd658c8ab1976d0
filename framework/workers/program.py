"""A program that serves until a signal: in this process, or in workers of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Literal

from framework import hangup
from framework.errors import FrameworkError, mistakes
from framework.logs import configure_logging
from framework.observation import LogSettings
from framework.workers.supervisor import Supervisor
from framework.workers.worker import Worker

Work = Coroutine[Any, Any, None]

ALLOCATIONS = 20_000
"""Objects that are made between two looks for garbage: a large message alone is many, and none of them is."""


def launch(
    name: str,
    workers: int | Literal["auto"],
    where: tuple[str, int],
    worker: Worker | None,
    command: Sequence[str],
    alone: Callable[[], Work],
    shared: Callable[[Worker], Work],
    http_port: int = 0,
    *,
    logs: LogSettings | None = None,
) -> None:
    """Serve until a signal.

    Args:
        name: of what serves, for messages.
        workers: how many processes there are to be.
        where: the host and the port that they listen on.
        worker: this process is one of them.
        command: what to run for each of them.
        alone: serves in this process, with no others.
        shared: serves as one of them.
        http_port: where they serve HTTP beside it; 0 for nowhere.
        logs: what is logged, and how.

    Raises:
        FrameworkError: it cannot start; the message says why and what to do.
    """
    service = {"service": name.removeprefix("the ")}
    if worker is not None or workers == 1:
        hangup.release()
    if worker is not None:
        run_until_complete(shared(worker), logs, {**service, "pid": os.getpid()})
    elif workers == 1:
        run_until_complete(alone(), logs, service)
    elif len(command) == 1:
        raise FrameworkError(f"workers run the program of {name} again, and here is none; use `framework run`")
    else:
        interactive = sys.stderr.isatty()
        supervisor = Supervisor(name, where, workers, command, http_port=http_port, interactive=interactive)
        run_until_complete(supervisor.run(), logs, service)


def run(launch: Callable[[Worker | None, Sequence[str]], None]) -> None:
    """Launch the program of this process. A mistake in the setup ends the process with one line.

    Args:
        launch: is given this process as a worker, if it is one, and what to run for each of them.
    """
    worker = Worker.claim()
    try:
        with hangup.holding(), worker.reporting() if worker is not None else contextlib.nullcontext():
            launch(worker, [sys.executable, *sys.orig_argv[1:]])
    except Exception as error:
        if not (found := mistakes(error)):
            raise
        sys.exit("\n".join(f"framework: {mistake}" for mistake in found))


def run_until_complete(coroutine: Any, logs: LogSettings | None = None, fields: Mapping[str, Any] | None = None) -> Any:
    """Run a coroutine on a new event loop, uvloop's when it is installed.

    Args:
        logs: what is logged, and how.
        fields: what every line of the log says besides.
    """
    configure_logging(logs, fields=fields)
    gc.freeze()  # what is loaded by now stays, and need not be looked at again and again
    first, *others = gc.get_threshold()
    if first:
        gc.set_threshold(max(first, ALLOCATIONS), *others)
    try:
        import uvloop
    except ImportError:
        factory = None
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(coroutine)
