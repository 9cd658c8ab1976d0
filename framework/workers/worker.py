"""One of several workers: what it is told, and what it tells."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from framework.config import QUICK_DRAIN, Drain, Settings
from framework.discovery import Instance
from framework.errors import mistakes
from framework.workers.count import count
from framework.workers.port import connections, stop_listening

VARIABLE = "FRAMEWORK_WORKER"
"""Tells a process that it is a worker: the descriptor of its end of the socket pair, and where to listen."""

LONGEST_MESSAGE = 1 << 17

LEAVE = "leave"
"""Answer NOT_SERVING, and go on."""

DRAIN = "drain"
"""Stop as the settings say."""

DRAIN_QUICKLY = "drain quickly"
"""Stop while a person waits."""

RETIRE = "retire"
"""Stop while others go on: let the connections move to them first."""

STOP = "stop"
"""Stop at once."""

ORPHANED = ""
"""What the end of the socket pair means: stop by yourself, nobody waits for clients to hear of it."""

LOOK = 0.1
"""Seconds between two looks at how many clients a worker has that retires."""

LAGGARDS = 2.0
"""Seconds that clients have to follow once they are told to connect anew, on a machine where nobody gets a processor at
once. Those that are there afterwards have calls that last; a call that reaches the worker after that may be lost."""

STRAYED = 2.0
"""Seconds beyond its grace after which a worker whose supervisor is gone ends, whatever it does."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker that serves tells about itself.

    Attributes:
        workers: how many there are to be, by the settings that it read.
        registry: where to register.
        instance: what to register; None for nothing.
        drain: how it stops.
        connection_age: seconds that a connection to it lasts.
    """

    workers: int
    registry: str
    instance: Instance | None
    drain: Drain
    connection_age: float

    def encode(self) -> dict[str, Any]:
        """For JSON."""
        one = self.instance
        instance = None if one is None else dataclasses.replace(one, metadata=dict(one.metadata))
        return dataclasses.asdict(dataclasses.replace(self, instance=instance))

    @classmethod
    def decode(cls, fields: dict[str, Any]) -> Report:
        """From JSON."""
        told = fields["instance"]
        instance = None if told is None else Instance(**told | {"tags": tuple(told["tags"])})
        return cls(**fields | {"instance": instance, "drain": Drain(**fields["drain"])})


class Served(Protocol):
    """What a worker serves."""

    @property
    def port(self) -> int:
        """That it listens on."""

    @property
    def listening(self) -> Sequence[tuple[int, Callable[[], None] | None]]:
        """Its ports, each with what stops to listen there; None where nothing but the kernel can."""

    def leave(self, *, others: bool) -> None:
        """Answer that no calls should come here, and go on. `others` serve at the same address."""

    def stop_as(self, drain: Drain) -> None:
        """Drain like this, when the time comes."""


class Worker:
    """This process, as a worker.

    Args:
        control: its end of the socket pair.
        host, port: where to listen, beside the other workers; it stays when a settings file changes.
        first: no other serves yet.
    """

    def __init__(self, control: socket.socket, host: str, port: int, *, first: bool) -> None:
        self.host = host
        self.port = port
        self.first = first
        self._control = control
        self._told: Callable[[str], object] | None = None
        self._patience = 0.0

    @classmethod
    def claim(cls) -> Worker | None:
        """This process as a worker, if it was started as one. Its own children are none."""
        told = os.environ.pop(VARIABLE, None)
        if told is None:
            return None
        where = json.loads(told)
        try:
            control = socket.socket(fileno=where["control"])
        except OSError:  # a child of a worker, started before that one claimed to be one
            return None
        control.set_inheritable(False)
        worker = cls(control, where["host"], where["port"], first=where["first"])
        # A thread, so that a handler that blocks the loop does not outlive the supervisor.
        threading.Thread(target=worker._listen, name="framework-worker", daemon=True).start()
        return worker

    async def serve(
        self,
        running: AbstractAsyncContextManager[Served],
        settings: Settings,
        workers: int | Literal["auto"],
        describe: Callable[[int], Instance] | None = None,
    ) -> None:
        """Serve until the supervisor says how to stop.

        Args:
            running: the server, around the time that it serves; drains at its end.
            settings: how to drain, and where to register.
            workers: how many there are to be.
            describe: what to register for a port.
        """
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        orders: asyncio.Queue[str] = asyncio.Queue()
        served: Served | None = None
        stopped = False

        def told(order: str) -> None:
            nonlocal stopped
            if served is None or order == STOP:
                stopped = True
                task.cancel()
            else:
                served.leave(others=order == RETIRE)
                self._say({"leaves": True})
                if order != LEAVE:
                    orders.put_nowait(order)

        age, drain = settings.server.connection_age, settings.server.drain
        self._patience = drain.grace + STRAYED
        self._told = lambda order: loop.call_soon_threadsafe(told, order)
        loop.add_signal_handler(signal.SIGTERM, told, DRAIN)
        loop.add_signal_handler(signal.SIGINT, lambda: None)  # is for the supervisor
        try:
            async with running as served:
                instance = None if describe is None else describe(served.port)
                report = Report(count(workers), settings.registry, instance, drain, age)
                self._say({"serves": report.encode()})
                order = await orders.get()
                if order == RETIRE:
                    await asyncio.gather(*(stop_listening(port, close) for port, close in served.listening))
                    order = await _emptied([port for port, _ in served.listening], age, orders)
                served.stop_as(_drain(order, drain))
        except asyncio.CancelledError:
            if not stopped:
                raise
            task.uncancel()

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """A mistake of the user in this block is for the supervisor to say, once for all workers; exit code 2."""
        try:
            yield
        except Exception as error:
            if not (found := mistakes(error)):
                raise
            self._say({"mistakes": [str(mistake) for mistake in found]})
            sys.exit(2)

    def _say(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the supervisor is gone, which the thread notices
            self._control.send(json.dumps(message).encode())

    def _listen(self) -> None:
        while True:
            try:
                order = self._control.recv(LONGEST_MESSAGE).decode()
            except OSError:
                order = ORPHANED
            if self._told is None:
                os._exit(0)  # it has not begun
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends already
                self._told(order)
            if order == ORPHANED:
                time.sleep(self._patience)
                os._exit(1)


def _drain(order: str, drain: Drain) -> Drain:
    """How a worker drains that was told so. Only when all of them do has it to become known among clients."""
    if order == DRAIN:
        return drain
    return QUICK_DRAIN if order == DRAIN_QUICKLY else dataclasses.replace(drain, delay=0.0)


async def _emptied(ports: Iterable[int], connection_age: float, orders: asyncio.Queue[str]) -> str:
    """Wait until the clients of a worker that retires have gone elsewhere, or there is another order; returns it."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + connection_age * 1.1 + LAGGARDS  # gRPC makes some last a tenth longer
    while any(map(connections, ports)) and loop.time() < give_up:
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(orders.get(), LOOK)
    return RETIRE
