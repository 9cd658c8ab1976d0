"""The service inside Envoy: an ASGI application whose lifespan is the service's own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import traceback
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from framework.cohosting import http_front
from framework.config import Settings
from framework.errors import mistakes
from framework.http.asgi import Receive, Scope, Send
from framework.logs import configure_logging
from framework.server.asgi import GrpcApp
from framework.server.presence import Patient
from framework.server.server import Server
from framework.service import Service

log = logging.getLogger("framework")

ORDER = "FRAMEWORK_EMBEDDED"
"""The variable of the environment that says what to serve, and for whom: see `Order`."""

GARBAGE = 10_000
"""Objects after which garbage is looked for; Python's own 700 are what a few dozen calls in flight have."""

LOOK = 1.0
"""Seconds between two looks at whether the process that started this one is still there."""


class Order:
    """What the engine tells the process in which the service runs.

    Attributes:
        arguments: of `framework run`.
        report: the file in which it is said why the service cannot start.
        parent: the process that waits for this one.
    """

    def __init__(self, arguments: list[str], report: str, parent: int) -> None:
        self.arguments = arguments
        self.report = report
        self.parent = parent

    @classmethod
    def read(cls) -> Order:
        """From the environment."""
        return cls(**json.loads(os.environ[ORDER]))

    def written(self) -> dict[str, str]:
        """For the environment."""
        return {ORDER: json.dumps(vars(self))}


class Embedded:
    """An ASGI 3 application.

    Args:
        load: the service and its settings.
    """

    def __init__(self, load: Callable[[Order], tuple[Service, Settings]]) -> None:
        self._load = load
        self._app: Any = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of ASGI."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await self._app(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        os.setpgid(0, 0)  # Ctrl-C is for the engine, which stops this process in its time
        order = Order.read()
        try:
            async with self._serving(order) as app:
                self._app = app.__call__  # bound once
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except BaseException as error:
            if self._app is None:
                self._complain(order, error)
                await send({"type": "lifespan.startup.failed", "message": ""})
                return
            log.exception("the service did not end well")
        await send({"type": "lifespan.shutdown.complete"})

    def _complain(self, order: Order, error: BaseException) -> None:
        found = mistakes(error)
        if not found:
            traceback.print_exception(error)
        Path(order.report).write_text("\n".join(str(mistake) for mistake in found))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # Envoy would say that something could not start

    @contextlib.asynccontextmanager
    async def _serving(self, order: Order) -> AsyncIterator[GrpcApp]:
        service, settings = self._load(order)
        configure_logging(settings.telemetry.logs, fields={"service": service.name, "pid": os.getpid()})
        async with contextlib.AsyncExitStack() as exits:
            pipeline = await exits.enter_async_context(service.prepared(settings))
            server = Server(pipeline, settings.server)
            server.complete()
            front, _ = http_front(service.name, server, settings.server.http, service.guard)
            app = GrpcApp(pipeline, settings, _other(front, lambda: app))
            following = asyncio.create_task(_follow(order.parent))
            exits.callback(following.cancel)
            server.health.serving()
            gc.collect()
            gc.freeze()  # what is there now stays, and need not be looked at again and again
            gc.set_threshold(GARBAGE)
            yield app
            server.health.shut_down()


def _other(front: Any, app: Callable[[], GrpcApp]) -> Any:
    """HTTP, on a server that does not wait with `receive` and whose futures must not be cancelled."""

    async def other(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await front(scope, receive, send)
            return

        async def sending(message: Any) -> None:
            sent: Any = send(message)
            await (asyncio.shield(sent) if asyncio.isfuture(sent) else sent)

        await front(scope, Patient(receive, app().presence), sending)

    return other


async def _follow(parent: int) -> None:
    """Leave when the process is gone that would stop this one."""
    while os.getppid() == parent:  # noqa: ASYNC110  # of which nothing tells
        await asyncio.sleep(LOOK)
    os.kill(os.getpid(), signal.SIGTERM)
