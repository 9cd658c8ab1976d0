"""Calls with one request and one reply past grpc, on a connection of this process's own: a third of the CPU.

grpc stays in charge: its channel tells whether the instance is there, and takes every call that this does not, while
the connection is being made, say, or for a request that is too large for what the peer lets be sent at once. So this
needs no case that is rare.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import re
import ssl
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

from framework.call import Call, Method, Reply
from framework.client.ending import given_up, status
from framework.client.heads import opening
from framework.client.http2 import Connection
from framework.errors import Code, Internal
from framework.policy import KeepaliveSettings

PAUSE = 1.0
"""Seconds between two attempts to connect; each that is in vain doubles them."""

LONGEST_PAUSE = 60.0

SHUTDOWN = 1.0
"""Seconds that a peer has to say goodbye when a connection of TLS is closed."""

log = logging.getLogger("framework.client")


@cache
def agent() -> str:
    """The name that clients give themselves."""
    from importlib.metadata import version

    return f"grpc-python-framework/{version('framework-grpc')}"


_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[^:/\[\]]+)):(?P<port>\d+)")


class Direct:
    """The connection to one instance.

    Args:
        address: `host:port`.
        connect_timeout: seconds an attempt to connect may take.
        max_message: bytes a message may have, in and out.
        keepalive: how a dead connection is found out.
        secure: gives what to speak TLS with; None is plain text.
        server_name: that the server's certificate has to have; empty is the host of the address.

    Attributes:
        connection: takes calls; None while there is none.
    """

    def __init__(
        self,
        address: str,
        *,
        connect_timeout: float,
        max_message: int,
        keepalive: KeepaliveSettings,
        secure: Callable[[], ssl.SSLContext] | None = None,
        server_name: str = "",
    ) -> None:
        match = _ADDRESS.fullmatch(address)
        assert match is not None
        self._host, self._port = match["six"] or match["host"], int(match["port"])
        self._address = address
        self._connect_timeout = connect_timeout
        self._max_message = max_message
        self._secure = secure
        self._server_name = server_name or self._host
        self._authority = server_name if secure is not None and server_name else address
        self._interval, self._timeout = keepalive.interval, keepalive.timeout
        self.connection: Connection | None = None
        self._connections: set[Connection] = set()  # those that only finish their calls, too
        self._task: asyncio.Task[None] | None = None
        self._pause = PAUSE
        self._again = 0.0
        self._closed = False

    @staticmethod
    def reaches(address: str) -> bool:
        """Whether an address is one that it can connect to."""
        return _ADDRESS.fullmatch(address) is not None

    def connect(self) -> None:
        """Connect, unless that was tried a moment ago; does not wait."""
        loop = asyncio.get_running_loop()
        busy = self._task is not None and not self._task.done()
        if self._closed or busy or self.connection is not None or loop.time() < self._again:
            return
        self._again = loop.time() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        # A context of its own, or the call that it is opened for would be kept alive by it.
        self._task = loop.create_task(self._open(loop), name=f"connect {self._address}", context=contextvars.Context())

    async def _open(self, loop: asyncio.AbstractEventLoop) -> None:
        connection: Connection | None = None
        try:
            async with asyncio.timeout(self._connect_timeout):
                shown: dict[str, Any] = {}
                if self._secure is not None:
                    shown = {"ssl": self._secure(), "server_hostname": self._server_name}
                    shown["ssl_shutdown_timeout"] = SHUTDOWN
                _, connection = await loop.create_connection(
                    lambda: Connection(self._max_message, self._interval, self._timeout, self._changed),
                    self._host,
                    self._port,
                    **shown,
                )
                if not connection.lost:
                    self._connections.add(connection)
                await asyncio.shield(connection.greeted)
        except ssl.SSLCertVerificationError as error:
            if not self._closed:
                self._closed = True  # until there are other certificates, and then there is another of this
                log.warning("calls to %s go through grpc: %s", self._address, error.verify_message)
        except (OSError, TimeoutError, ValueError, OverflowError):  # the last two: no host, or no port
            if connection is not None:
                connection.abort()

    def _changed(self, connection: Connection) -> None:
        if connection.open:
            self.connection = connection
            self._pause = PAUSE
            return
        if self.connection is connection:
            self.connection = None
        if connection.broken and not self._closed:
            self._closed = True  # the next connection would be no better
            log.warning("calls to %s go through grpc from now on: %s", self._address, connection.broken)
        if connection.lost:
            self._connections.discard(connection)
            if connection.calm:
                self._interval *= 2  # as grpc does, gRFC A8

    async def aclose(self) -> None:
        """Close; calls in flight are cancelled."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for connection in tuple(self._connections):
            connection.close()

    def bind(
        self,
        method: Method[Any, Any],
        encode: Callable[[Any], bytes],
        decode: Callable[[bytes], Any],
        otherwise: Callable[[Call, bytes], Awaitable[Reply]],
        time: Callable[[], float],
    ) -> Callable[[Call], Awaitable[Reply]]:
        """What makes calls of a method while there is a connection.

        Args:
            otherwise: makes a call through grpc.
            time: the loop's clock, in seconds.
        """
        start = opening(method.path, self._authority, agent(), secure=self._secure is not None)
        longest = self._max_message

        async def unary(call: Call) -> Any:
            request = encode(call.request)
            connection = self.connection
            if connection is None or len(request) > longest:
                return await otherwise(call, request)
            left = None if call.deadline is None else call.deadline - time()
            answer = connection.begin(start, call.metadata, request, left)
            if answer is None:
                return await otherwise(call, request)
            call.peer = self._address
            call.give_up = answer.give_up
            try:
                await answer.arrived
            except BaseException as error:
                connection.cancel(answer)
                raise given_up(call, error) from None
            if answer.code:
                if not answer.sent:
                    return await otherwise(call, request)
                if answer.head is not None:
                    call.header = answer.head.metadata
                raise status(call, answer.code, answer.message, () if answer.tail is None else answer.tail.metadata)
            call.header = () if answer.head is None else answer.head.metadata
            call.trailer = answer.tail.metadata  # type: ignore[union-attr]  # it is OK, so it has one
            try:
                return decode(answer.body)
            except Internal as error:
                raise status(call, Code.INTERNAL, error.message, ()) from None

        return unary
