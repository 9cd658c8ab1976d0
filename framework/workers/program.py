"""A program that serves until a signal: in this process, or in workers of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal

from framework.errors import FrameworkError, mistakes
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

    Raises:
        FrameworkError: it cannot start; the message says why and what to do.
    """
    if worker is not None:
        configure_logging("%(asctime)s %(levelname)-7s [%(process)d] %(name)s: %(message)s")
        run_until_complete(shared(worker))
    elif workers == 1:
        run_until_complete(alone())
    elif len(command) == 1:
        raise FrameworkError(f"workers run the program of {name} again, and here is none; use `framework run`")
    else:
        interactive = sys.stderr.isatty()
        supervisor = Supervisor(name, where, workers, command, http_port=http_port, interactive=interactive)
        run_until_complete(supervisor.run())


def run(launch: Callable[[Worker | None, Sequence[str]], None]) -> None:
    """Launch the program of this process. A mistake in the setup ends the process with one line.

    Args:
        launch: is given this process as a worker, if it is one, and what to run for each of them.
    """
    worker = Worker.claim()
    try:
        with worker.reporting() if worker is not None else contextlib.nullcontext():
            launch(worker, [sys.executable, *sys.orig_argv[1:]])
    except Exception as error:
        if not (found := mistakes(error)):
            raise
        sys.exit("\n".join(f"framework: {mistake}" for mistake in found))


def run_until_complete(coroutine: Any) -> Any:
    """Run a coroutine on a new event loop, uvloop's when it is installed."""
    configure_logging()
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


def configure_logging(form: str = "%(asctime)s %(levelname)-7s %(name)s: %(message)s") -> None:
    """Readable lines on standard error, unless the application has set up logging itself."""
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO, format=form)
