"""A server: listen, say that it is healthy, drain."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from framework.certificates import TlsFiles
from framework.config import Drain, ServerSettings
from framework.errors import ConfigError, Unavailable
from framework.server import wire
from framework.server.health import Health
from framework.server.pipeline import Pipeline
from framework.server.reflection import add_reflection
from framework.tls import refuse_plain_text

log = logging.getLogger("framework.server")


class Beside(Protocol):
    """What serves the same methods by another protocol."""

    port: int

    def close(self) -> None:
        """Accept no more connections."""


class Server:
    """Serves a pipeline over gRPC, with health and reflection beside the user's services.

    Args:
        pipeline: what to serve; complete before `start`.
        settings: where to listen and how to drain.
        grpc_interceptors: a user's own grpc.aio server interceptors.
        shared: other processes listen on the same port.

    Attributes:
        port: that it listens on.
        beside: HTTP, when that is served too.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        settings: ServerSettings | None = None,
        *,
        grpc_interceptors: Iterable[Any] = (),
        shared: bool = False,
    ) -> None:
        self.pipeline = pipeline
        self.settings = settings or ServerSettings()
        self.health = Health(pipeline.services)
        self.port = 0
        self.beside: Beside | None = None
        self._interceptors = tuple(grpc_interceptors)
        self._shared = shared
        self._server: Any = None
        self._unfollow: Callable[[], None] | None = None

    @property
    def address(self) -> str:
        """`host:port` that this server listens on."""
        host = self.settings.host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def http_port(self) -> int:
        """Of HTTP beside it; 0 without."""
        return 0 if self.beside is None else self.beside.port

    @property
    def listening(self) -> list[tuple[int, Callable[[], None] | None]]:
        """The ports, each with what closes it; grpc has nothing for that."""
        http = [] if self.beside is None else [(self.beside.port, self.beside.close)]
        return [(self.port, None), *http]

    def leave(self, *, others: bool = False) -> None:
        """Answer that no calls should come here, and go on: a client is to connect anew, to `others` or not."""
        self.health.shut_down()

    def stop_as(self, drain: Drain) -> None:
        """Drain like this, when the time comes."""
        self.settings = dataclasses.replace(self.settings, drain=drain)

    async def start(self) -> None:
        """Listen, and answer SERVING.

        Raises:
            ConfigError: the address cannot be had, or certificates cannot be used.
        """
        tls = self._tls()
        self.complete()
        self._server, self.port = await wire.listen(
            self.pipeline,
            self.settings,
            interceptors=self._interceptors,
            shared_for=self.settings.connection_age if self._shared else None,
            tls=tls,
        )
        if tls is not None:
            self._unfollow = tls.follow()
        self.health.serving()

    def _tls(self) -> TlsFiles | None:
        settings = self.settings
        if settings.tls:
            if settings.tls.clients != "required" or settings.tls.minimum != "1.2":
                what, can = (
                    (f"minimum is {settings.tls.minimum}", "speaks TLS 1.2 and 1.3, whatever is asked of it")
                    if settings.tls.clients == "required"
                    else ("clients is optional", "asks every client for a certificate, or none")
                )
                raise ConfigError(f"server.tls.{what}, and gRPC in Python {can}; for HTTP say so in [server.http.tls]")
            return TlsFiles(settings.tls, "server.tls")
        if not settings.plaintext:
            refuse_plain_text("the server", settings.host, "server")
        return None

    def complete(self) -> None:
        """Have health and reflection beside the user's services. Raises ConfigError for settings that fit no method."""
        for method in self.health.__methods__:
            if self.pipeline.find(method.path) is None:
                self.pipeline.add_method(method, getattr(self.health, method.name))
            else:
                log.warning("%s is the service's own: it has to say itself that it drains", method.full_name)
        add_reflection(self.pipeline)
        self.pipeline.complete()

    async def drain(self, drain: Drain | None = None) -> None:
        """Stop without losing a call: keep accepting for `delay`, then refuse new calls and let those in flight end.

        Health answers NOT_SERVING from the first moment on. Streams are ended with UNAVAILABLE after `streams` seconds
        and whatever is left after `grace` seconds.
        """
        if self._server is None:
            return
        drain = drain or self.settings.drain
        self.health.shut_down()
        await asyncio.sleep(drain.delay)
        loop = asyncio.get_running_loop()
        start = loop.time()
        stopping = asyncio.create_task(self._server.stop(drain.grace + 1.0))
        try:
            self._expel(lambda call: call.method.service.startswith("grpc."))
            for seconds, which in sorted(
                ((drain.streams, _streams), (drain.grace, _everything)), key=lambda step: step[0]
            ):
                await asyncio.wait([stopping], timeout=max(0.0, start + min(seconds, drain.grace) - loop.time()))
                if stopping.done():
                    break
                self._expel(which)
            await stopping
        finally:
            if not stopping.done():  # a second signal
                stopping.cancel()
                await self.stop()
        self._server = None
        self._forget_tls()

    def _forget_tls(self) -> None:
        if self._unfollow is not None:
            self._unfollow()
            self._unfollow = None

    async def stop(self) -> None:
        """Stop now; calls in flight end with UNAVAILABLE."""
        self._forget_tls()
        if self._server is not None:
            self.health.shut_down()
            self._expel(_everything)
            await self._server.stop(0.1)
            self._server = None

    def _expel(self, which: Any) -> None:
        for call in list(self.pipeline.calls):
            if which(call):
                call.expel(Unavailable(f"{self.address} is shutting down"))


def _streams(call: Any) -> bool:
    return bool(call.method.client_streaming or call.method.server_streaming)


def _everything(call: Any) -> bool:
    return True
