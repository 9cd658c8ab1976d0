"""uvicorn's HTTP/1.1 protocol, with the limits that it lacks: how long a request's head may take, and be.

A client that sends its head slowly, or nothing at all, would hold a connection for ever, and one that never ends a
header would fill the memory.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from framework.errors import Code
from framework.http.asgi import PEER
from framework.identity import Peer
from framework.web import HttpLimits

_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*")


class Joined:
    """A transport that sends together what is written in one turn of the loop: uvicorn writes a head and a body."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._out: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Send this soon."""
        self._out.append(data)
        if len(self._out) == 1:
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send what there is."""
        out, self._out = self._out, []
        if out and not self._transport.is_closing():
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def close(self) -> None:
        """Send what there is, and close."""
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:  # all else is as it was
        return getattr(self._transport, name)


class LimitedProtocol(HttpToolsProtocol):
    """One connection. `limited` makes a class of it that knows the limits.

        state     what arrives                   becomes
        HEAD      a part of a head               HEAD; too much of it is answered with 431, too late with 408
        HEAD      the end of the head            served; the timer stops
        HEAD      a head that others may read    closed, with 400, or 505 for what is no HTTP/1
                  in another way
        served    the next head                  HEAD
        any       a connection too many          closed, with 503

    The timer runs from the connection on, and from the first bytes of a head that did not come in one piece.
    """

    limits = HttpLimits()
    leaving = False
    """The next answer is the last one. Of one connection, or of all when it is set on the class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._size = 0
        self._part = 0
        self._over = False  # answered for good, or no longer HTTP
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._peer = peer_of(transport)
        self.transport = Joined(transport, self.loop)  # type: ignore[assignment]  # it does what uvicorn needs of one
        if len(self.connections) > self.limits.connections:
            self._refuse(503, b"there are too many connections; try again later")
            return
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._over = True
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._over:
            return
        self._part = len(data)
        if self._in_head:
            self._size += len(data)
        super().data_received(data)
        self._received()

    def _received(self) -> None:
        if self._over:
            return
        if self._in_head and self._size > self.limits.header:
            self._refuse_large()
        elif self._timer is None and (self._in_head or self._idle):
            self._start_timer()

    def on_message_begin(self) -> None:
        if not self._in_head:
            self._in_head = True
            self._size = self._part
        super().on_message_begin()
        self.scope[PEER] = self._peer  # type: ignore[literal-required]  # a key of our own

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        if self._size > self.limits.header:  # with what came behind the head in the same piece
            head = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if head > self.limits.header:
                self._refuse_large()
                return
        if mistake := self._mistake():
            self._refuse(*mistake)
            return
        super().on_headers_complete()
        if self.leaving and self.cycle is not None:
            self.cycle.keep_alive = False

    def _mistake(self) -> tuple[int, bytes] | None:
        """What the parser lets pass though a proxy before this may have taken it for something else."""
        version: str = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            return 505, b"this speaks HTTP/1.1"
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or (hosts and not _HOST.fullmatch(hosts[0])) or (not hosts and version == "1.1"):
            return 400, b"a request has one Host header, with a name"
        if version == "1.0" and any(name == b"transfer-encoding" for name, _ in self.headers):
            return 400, b"a body of HTTP/1.0 has a length"
        return None

    def shutdown(self) -> None:
        """Close when nothing is being answered or asked, and after the next answer at the latest."""
        self.leaving = True
        if not (self._idle and self._in_head and self._size):
            super().shutdown()

    @property
    def _idle(self) -> bool:
        """No request is being served."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    def on_body(self, body: bytes) -> None:
        if not self._over:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._over:
            super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        if self._over:
            return
        self._over = True
        self._stop_timer()
        super().handle_websocket_upgrade()

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self.limits.head_timeout, self._late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if not self._idle:
            self._start_timer()  # a head behind a request that is still served
        elif self._size:
            self._refuse(408, b"the head of the request did not arrive in time")
        else:
            self._over = True
            self.transport.close()

    def _refuse_large(self) -> None:
        self._refuse(431, b"the head of the request is larger than %d bytes" % self.limits.header)

    def _refuse(self, status: int, message: bytes) -> None:
        """Answer and close; when a request is being served, only close."""
        self._over = True
        self._stop_timer()
        if self._idle:
            code = _CODES.get(status, Code.RESOURCE_EXHAUSTED)
            body = b'{"code":%d,"message":"%s"}' % (code, message)
            self.transport.write(
                b"%scontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"
                % (STATUS_LINE[status], len(body), body)
            )
        self.transport.close()


_CODES = {400: Code.INVALID_ARGUMENT, 408: Code.DEADLINE_EXCEEDED, 505: Code.INVALID_ARGUMENT}


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's, that knows who is at the other end."""

    async def run_asgi(self) -> None:
        self.scope[PEER] = peer_of(self.transport)  # type: ignore[literal-required]  # a key of our own
        await super().run_asgi()


def peer_of(transport: asyncio.BaseTransport) -> Peer | None:
    """Who is at the other end, by a certificate that was verified; None for who has shown none."""
    certificate = transport.get_extra_info("peercert")
    if not certificate:
        return None
    names = tuple(str(name) for kind, name in certificate.get("subjectAltName", ()))
    spiffe = [name for name in names if name.startswith("spiffe://")]
    subject = {key: str(value) for part in certificate.get("subject", ()) for key, value in part}
    return Peer(names, spiffe[0] if len(spiffe) == 1 else "", subject.get("commonName", ""))


def limited(limits: HttpLimits) -> type[LimitedProtocol]:
    """The protocol with these limits."""
    return type("LimitedProtocol", (LimitedProtocol,), {"limits": limits})
