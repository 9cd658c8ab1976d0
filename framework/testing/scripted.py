"""A peer that follows a script: for testing how a client meets slow, failing and silent services.

    catalog = network.script("catalog")
    catalog.on(CatalogMethods.GetProduct).fail(Unavailable("busy")).reply(Product(id="p1")).hang()

One step a call, in order; the last one stays. What was called stands in `catalog.calls`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

from framework.call import Metadata, Method
from framework.errors import RpcError
from framework.server.context import Context
from framework.service import Service

Req = TypeVar("Req")
Res = TypeVar("Res")


@dataclass(frozen=True, slots=True)
class Received:
    """One call that a scripted peer was given.

    Attributes:
        method: what was called.
        requests: the request, or all requests of a client that streams.
        metadata: what came with it.
        time_remaining: seconds until the caller's deadline, or None.
    """

    method: Method[Any, Any]
    requests: tuple[Any, ...]
    metadata: Metadata
    time_remaining: float | None


class Script(Generic[Req, Res]):
    """What one method does, call by call."""

    def __init__(self) -> None:
        self._steps: deque[Callable[[Context], AsyncIterator[Res]]] = deque()

    def reply(self, *messages: Res, after: float = 0.0) -> Self:
        """Answer with this message, or these when the method streams, `after` seconds."""

        async def step(context: Context) -> AsyncIterator[Res]:
            await asyncio.sleep(after)
            for message in messages:
                yield message

        return self._then(step)

    def fail(self, error: Exception, *, after: float = 0.0, replies: tuple[Res, ...] = ()) -> Self:
        """Fail with an error, `after` seconds and after these replies of a stream."""

        async def step(context: Context) -> AsyncIterator[Res]:
            await asyncio.sleep(after)
            for message in replies:
                yield message
            raise error

        return self._then(step)

    def hang(self) -> Self:
        """Never answer."""

        async def step(context: Context) -> AsyncIterator[Res]:
            await asyncio.get_running_loop().create_future()
            yield  # type: ignore[misc]  # makes this a generator; never reached

        return self._then(step)

    def _then(self, step: Callable[[Context], AsyncIterator[Res]]) -> Self:
        self._steps.append(step)
        return self

    def next(self, context: Context) -> AsyncIterator[Res]:
        """The step for this call."""
        if not self._steps:
            raise RpcError("this scripted method has no steps")
        step = self._steps.popleft() if len(self._steps) > 1 else self._steps[0]
        return step(context)


class Scripted:
    """A service made of scripts. `Network.script` makes one.

    Attributes:
        calls: every call received, in order.
        service: what to add to a network, or to run.
    """

    def __init__(self, name: str) -> None:
        self.calls: list[Received] = []
        self._scripts: dict[Method[Any, Any], Script[Any, Any]] = {}
        self._pending: list[Method[Any, Any]] = []
        self._pipeline: Any = None
        self.service = Service(name, lifespan=self._lifespan)
        self.service.may_be_empty = True

    @asynccontextmanager
    async def _lifespan(self, service: Service) -> AsyncIterator[None]:
        self._pipeline = service._building()
        for method in self._pending:
            self._serve(method)
        yield

    def on(self, method: Method[Req, Res]) -> Script[Req, Res]:
        """The script of a method."""
        script = self._scripts.get(method)
        if script is None:
            script = self._scripts[method] = Script()
            if self._pipeline is None:
                self._pending.append(method)
            else:
                self._serve(method)
        return script

    def _serve(self, method: Method[Any, Any]) -> None:
        async def replies(request: Any, context: Context) -> AsyncIterator[Any]:
            requests = tuple([message async for message in request]) if method.client_streaming else (request,)
            self.calls.append(Received(method, requests, context.invocation_metadata(), context.time_remaining()))
            async for reply in self._scripts[method].next(context):
                yield reply

        async def reply(request: Any, context: Context) -> Any:
            async for message in replies(request, context):
                return message
            raise RpcError("a scripted method with one reply must reply with one message")

        function: Callable[..., AsyncIterator[Any] | Awaitable[Any]] = replies if method.server_streaming else reply
        self._pipeline.add_method(method, function)
