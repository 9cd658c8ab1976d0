"""HTTP on a port: uvicorn in the loop of this process, with our limits and our way to stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from framework.certificates import ServerContext, TlsFiles
from framework.config import Drain
from framework.errors import ConfigError, Unavailable
from framework.http.conduct import Conduct
from framework.http.front import App
from framework.http.protocol import LimitedProtocol, WebSocketProtocol, limited
from framework.web import HttpLimits

log = logging.getLogger("framework.http")

POLL = 0.02
"""Seconds between two looks at what is left, while the server stops."""

LAST = 1.0
"""Seconds that calls have to end, and clients to read, after they were told that the server goes."""

BACKLOG = 2048


class _Uvicorn(uvicorn.Server):
    """Signals are not for this server; whoever runs it stops it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """Serves an ASGI application.

    Args:
        app: the application.
        host, port: where to listen; port 0 is any free one.
        limits: what a client may take up.
        live: the calls in flight, which this ends when it stops.
        option: what a person changes the port with, for messages.
        connection_age: seconds after which a client is to connect anew, because other processes listen on the same
            port and are to have their share; None when there are none.
        tls: certificates to serve with; None is plain text.

    Attributes:
        port: that it listens on.
    """

    def __init__(
        self,
        app: App,
        host: str,
        port: int,
        limits: HttpLimits,
        live: set[Conduct],
        *,
        option: str = "--port",
        connection_age: float | None = None,
        tls: TlsFiles | None = None,
    ) -> None:
        self.host = host.strip("[]")
        self.port = port
        self._live = live
        self._option = option
        self._age = connection_age
        self._aging: asyncio.TimerHandle | None = None
        self._tls = tls
        self._context = None if tls is None else ServerContext.of(tls)
        self._unfollow: Callable[[], None] | None = None
        self._protocol = limited(limits)
        self._write_timeout = limits.write_timeout
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                app,
                http=self._protocol,
                ws=WebSocketProtocol,
                ws_max_size=limits.body,
                interface="asgi3",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=limits.keep_alive,  # type: ignore[arg-type]  # it goes to call_later
            )
        )
        self._task: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """`host:port` that this server listens on."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """What clients call, without a path."""
        return f"{'http' if self._tls is None else 'https'}://{self.address}"

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: the address cannot be had.
        """
        sock = self._listen()
        self.port = sock.getsockname()[1]
        config = self._uvicorn.config
        config.load()
        config.ssl = self._context  # it makes one of files only, which it would never read again
        if self._tls is not None:
            self._unfollow = self._tls.follow()
        self._task = asyncio.create_task(self._uvicorn.serve(sockets=[sock]))
        while not self._uvicorn.started:  # a turn or two of the loop
            if self._task.done():
                await self._task
            await asyncio.sleep(0)
        if self._age is not None:
            self._grow_old(frozenset())

    def _grow_old(self, before: frozenset[Any]) -> None:
        """Let connections end with their next answer that were there a while ago already."""
        assert self._age is not None
        now = frozenset(self._connections())
        for connection in now & before:
            connection.leaving = True  # which means nothing to a WebSocket
        self._aging = asyncio.get_running_loop().call_later(self._age, self._grow_old, now)

    def close(self) -> None:
        """Accept no more connections; those that there are end with their next answer."""
        self._protocol.leaving = True
        self._close_listeners()

    def _listen(self) -> socket.socket:
        try:
            family, _, _, _, address = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
        except OSError:
            raise ConfigError(f"cannot listen on {self.host}: it is no address of this machine.") from None
        try:
            listening = socket.create_server(
                address[:2], family=family, backlog=BACKLOG, reuse_port=self._age is not None
            )
            # Accepted sockets inherit these. asyncio would set the first only on sockets that were made with their
            # protocol's name, and without it the body of an answer waits 40 ms for the client to confirm the headers.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # the kernel knows what is read, under TLS and after a close too
                timeout = math.ceil(self._write_timeout * 1000)
                listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout)
            return listening
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise ConfigError(f"cannot listen on {self.host}: it is no address of this machine.") from None
            if self.port:
                raise ConfigError(
                    f"port {self.port} on {self.host} is in use or may not be used. "
                    f"Choose another with {self._option}, or 0 for any free one."
                ) from None
            raise ConfigError(f"cannot listen on {self.host}: {error.strerror or error}") from None

    async def drain(self, drain: Drain) -> None:
        """Stop without losing a call: keep accepting for `delay`, then let calls end.

        Streams are ended with UNAVAILABLE after `streams` seconds, and told so, and whatever is left after `grace`.
        """
        if self._task is None:
            return
        self._protocol.leaving = True
        try:
            await asyncio.sleep(drain.delay)
            self._close_listeners()
            loop = asyncio.get_running_loop()
            start = loop.time()
            steps: tuple[tuple[float, Callable[[Conduct], bool]], ...] = (
                (min(drain.streams, drain.grace), lambda one: one.streams),
                (drain.grace, lambda one: True),
            )
            for seconds, which in steps:
                if await self._quiet(start + seconds):
                    break
                self._expel(which)
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Stop now; calls in flight end with UNAVAILABLE."""
        if self._unfollow is not None:
            self._unfollow()
        task, self._task = self._task, None
        if task is None:
            return
        if self._aging is not None:
            self._aging.cancel()
        self._close_listeners()
        self._expel(lambda one: True)
        try:
            await self._quiet(asyncio.get_running_loop().time() + (LAST if self._connections() else 0))
        finally:
            for serving in list(self._uvicorn.server_state.tasks):
                serving.cancel()
            for connection in self._connections():
                connection.transport.abort()
            self._uvicorn.should_exit = self._uvicorn.force_exit = True
            await asyncio.wait([task])
            task.result()

    def _close_listeners(self) -> None:
        for server in self._uvicorn.servers:
            server.close()

    def _expel(self, which: Callable[[Conduct], bool]) -> None:
        for conduct in list(self._live):
            if which(conduct):
                conduct.expel(Unavailable(f"{self.address} is shutting down"))

    def _connections(self) -> list[Any]:
        return list(self._uvicorn.server_state.connections)

    async def _quiet(self, until: float) -> bool:
        """Wait until nothing is left, or for so long; connections without a request are closed."""
        loop = asyncio.get_running_loop()
        while connections := self._connections():
            for connection in connections:
                if isinstance(connection, LimitedProtocol):  # a WebSocket's would be broken off
                    connection.shutdown()
            if loop.time() >= until:
                return False
            await asyncio.sleep(min(POLL, max(0.0, until - loop.time())))
        return True

    def __repr__(self) -> str:
        return f"<HttpServer on {self.address}>"
