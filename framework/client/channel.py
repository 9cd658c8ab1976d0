"""A channel: binds every method, once, to one handler from interceptors to the wire."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, Self

from framework.call import Call, Handler, Interceptor, Method, Outcome, Reply, stack
from framework.client.balancer import FAILURES, Endpoint
from framework.client.pool import Pool
from framework.errors import Code, RpcError
from framework.interceptors.deadline import deadline
from framework.interceptors.request_id import request_id
from framework.policy import ClientSettings


class ServiceChannel:
    """Calls to one service, balanced over its instances.

    Args:
        pool: the endpoints.
        settings: timeouts and the like.
        interceptors: the user's, outermost first; inside them come deadline, request id and balancing.
        release: what to close after the pool, such as a registry that was opened for this channel.
    """

    def __init__(
        self,
        pool: Pool,
        settings: ClientSettings,
        interceptors: Iterable[Interceptor] = (),
        release: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.pool = pool
        self._settings = settings
        self._interceptors = (*interceptors, deadline(settings), request_id)
        self._release = release
        self._bound: dict[Method[Any, Any], Handler] = {}

    def bind(self, method: Method[Any, Any]) -> Handler:
        """The handler of a method, interceptors and all; the same one every time."""
        handler = self._bound.get(method)
        if handler is None:
            handler = self._bound[method] = stack(
                self._interceptors, method, _balanced(self.pool, method, self._settings.timeout)
            )
        return handler

    async def close(self, grace: float | None = None) -> None:
        """Close every connection; calls in flight are cancelled. `grace` is grpc.aio's, and not waited for."""
        await self.pool.aclose()
        if self._release is not None:
            await self._release()
            self._release = None

    async def __aenter__(self) -> Self:
        self.pool.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<Channel over {self.pool!r}>"


MOST_REFUSALS = 16
"""Connections that may turn out to be gone before a call gives up; more than a few means that nobody stays."""


def _balanced(pool: Pool, method: Method[Any, Any], patience: float) -> Handler:
    """Pick an endpoint and call it; a call that provably was not sent goes to another one.

    Args:
        patience: seconds that a failure counts as, for calls without a deadline.
    """

    async def unary(call: Call) -> Reply:
        loop = asyncio.get_running_loop()
        refused: tuple[Endpoint, ...] = ()
        while True:
            endpoint = pool.pick(loop.time(), refused) or await pool.wait(call)
            start = loop.time()
            endpoint.begin(start)
            try:
                reply = await endpoint.bind(method)(call)
            except RpcError as error:
                if error.sent:
                    _failed(endpoint, call, error.code, error.remote, start, loop.time(), patience)
                    raise
                pool.refused(endpoint)
                if call.attempt == MOST_REFUSALS:
                    raise
                call.attempt += 1
                refused = (*refused, endpoint)
            else:
                now = loop.time()
                endpoint.observe(now, now - start)
                return reply
            finally:
                pool.done(endpoint)

    async def stream(call: Call) -> Reply:
        loop = asyncio.get_running_loop()
        refused: tuple[Endpoint, ...] = ()
        while True:
            endpoint = pool.pick(loop.time(), refused) or await pool.wait(call)
            start = loop.time()
            endpoint.begin(start)
            try:
                replies = await endpoint.bind(method)(call)
            except BaseException as error:
                pool.done(endpoint)
                if not isinstance(error, RpcError):
                    raise
                if error.sent:
                    _failed(endpoint, call, error.code, error.remote, start, loop.time(), patience)
                    raise
                pool.refused(endpoint)
                if call.attempt == MOST_REFUSALS:
                    raise
                call.attempt += 1
                refused = (*refused, endpoint)
            else:
                now = loop.time()
                endpoint.observe(now, now - start)
                replies.on_end(_releasing(pool, endpoint, call, patience))
                return replies

    return stream if method.server_streaming else unary


def _releasing(pool: Pool, endpoint: Endpoint, call: Call, patience: float) -> Callable[[Outcome], None]:
    loop = asyncio.get_running_loop()
    start = loop.time()

    def ended(outcome: Outcome) -> None:
        if outcome.code in FAILURES:  # it died half way
            _failed(endpoint, call, outcome.code, outcome.remote, start, loop.time(), patience)
        pool.done(endpoint)

    return ended


def _failed(
    endpoint: Endpoint, call: Call, code: Code, remote: bool, start: float, now: float, patience: float
) -> None:
    waited = patience if call.deadline is None else call.deadline - start
    endpoint.observe_failure(now, now - start, code, remote, waited)
