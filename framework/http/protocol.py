"""uvicorn's HTTP/1.1 protocol, with the limits that it lacks: how long a request's head may take, and be.

A client that sends its head slowly, or nothing at all, would hold a connection for ever, and one that never ends a
header, or what comes behind a body in chunks, would fill the memory.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from framework.errors import Code
from framework.http.asgi import PEER
from framework.identity import Peer
from framework.interceptors.request_id import new_request_id
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
        HEAD      a head that others may read    closed, with 400, 501 for a coding that is not known here, or 505
                  in another way                 for what is no HTTP/1
        served    too much beside a body:        closed, with 431 when there is no answer yet
                  trailers, or words at chunks
        served    the next head                  HEAD
        any       what is no HTTP                closed, with 400
        any       a connection too many          closed, with 503

    The timer runs from the connection on, and from the first bytes of a head that did not come in one piece. Trailers
    are dropped: they come after those who check headers have looked.
    """

    limits = HttpLimits()
    leaving = False
    """The next answer is the last one. Of one connection, or of all when it is set on the class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._size = 0  # of the head so far; when it is over, of what came since that is neither body nor the next head
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
        self._size += self._part
        super().data_received(data)
        self._received()

    def _received(self) -> None:
        if self._over:
            return
        if self._size > self.limits.header:
            self._refuse_large()
        elif self._timer is None and (self._in_head or self._idle):
            self._start_timer()

    def on_message_begin(self) -> None:
        if not self._in_head:
            self._in_head = True
            self._size = self._part
        super().on_message_begin()
        self.scope[PEER] = self._peer  # type: ignore[literal-required]  # a key of our own

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._stop_timer()
        size, self._size = self._size, 0
        if size > self.limits.header:  # with what came behind the head in the same piece
            head = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if head > self.limits.header:
                self._refuse_large()
                return
        if mistake := self._mistake():
            self._refuse(*mistake)
            return
        before = self.cycle
        super().on_headers_complete()
        self._in_head = False
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle is before:  # a WebSocket
            return
        if self.leaving:
            cycle.keep_alive = False
        if self.scope["http_version"] == "1.0":
            cycle.send = _without_chunks(cycle)  # type: ignore[method-assign,assignment]  # read when the cycle runs

    def _mistake(self) -> tuple[int, bytes] | None:
        """What the parser lets pass though a proxy before this may have taken it for something else."""
        version: str = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            return 505, b"this speaks HTTP/1.1"
        hosts, host, coding = 0, b"", b""
        for name, value in self.headers:
            if name == b"host":
                hosts, host = hosts + 1, value
            elif name == b"transfer-encoding":
                coding = value.lower()
        if hosts > 1 or not _HOST.fullmatch(host) or (not hosts and version == "1.1"):
            return 400, b"a request has one Host header, with a name"
        if coding:
            if version == "1.0":
                return 400, b"a body of HTTP/1.0 has a length"
            if coding.rpartition(b",")[2].strip(b" \t") != b"chunked":
                return 400, b"nothing tells where the body ends"
            if coding != b"chunked":
                return 501, b"chunked is the only transfer coding that is known here"
        if self.parser.should_upgrade() and self._should_upgrade() and self._has_body():
            return 400, b"a WebSocket is opened without a body"
        return None

    def _has_body(self) -> bool:
        return any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)

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

    @property
    def _unanswered(self) -> bool:
        """What is written now is taken as the answer to what came last."""
        return self._idle or not (self._in_head or self.cycle.response_started or self.pipeline)

    def on_body(self, body: bytes) -> None:
        self._size = 0
        if not self._over:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._size = 0
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

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, b"this is no HTTP request that can be read")

    def _refuse_large(self) -> None:
        what = b"the head of the request" if self._in_head else b"what stands beside the body"
        self._refuse(431, b"%s is larger than %d bytes" % (what, self.limits.header))

    def _refuse(self, status: int, message: bytes) -> None:
        """Answer and close; when an answer is on its way, only close."""
        if self._over:
            return
        unanswered = self._unanswered
        self._over = True
        self._stop_timer()
        if unanswered:
            self.transport.write(refusal(status, message))
        self.transport.close()


_CODES = {
    400: Code.INVALID_ARGUMENT,
    408: Code.DEADLINE_EXCEEDED,
    501: Code.UNIMPLEMENTED,
    505: Code.INVALID_ARGUMENT,
}


def refusal(status: int, message: bytes) -> bytes:
    """The last answer on a connection, to what never became a request."""
    body = b'{"code":%d,"message":"%s"}' % (_CODES.get(status, Code.RESOURCE_EXHAUSTED), message)
    return (
        b"%scontent-type: application/json\r\ncontent-length: %d\r\nx-request-id: %s\r\nconnection: close\r\n\r\n%s"
        % (STATUS_LINE[status], len(body), new_request_id().encode(), body)
    )


def _without_chunks(cycle: RequestResponseCycle) -> Callable[[Any], Awaitable[None]]:
    """How an answer is sent to who speaks HTTP/1.0: the end of the connection ends a body without a length."""
    send = cycle.send
    endless = False

    async def sending(message: MutableMapping[str, Any]) -> None:
        nonlocal endless
        if message["type"] == "http.response.start":
            endless = all(name.lower() != b"content-length" for name, _ in message["headers"])
            if endless:
                cycle.chunked_encoding = False
        elif endless:
            cycle.expected_content_length = len(message.get("body", b""))  # so that uvicorn counts none missing
        await send(message)  # type: ignore[arg-type]  # uvicorn has a type for each

    return sending


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's, that knows who is at the other end, and ends what uvicorn's leaves open or piles up.

    Its handshake comes in one piece, when the head of the request is there: what is none by then becomes none.
    """

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.handshake_initiated and not self.close_sent:
            self.close_sent = self.handshake_complete = True
            large = any(self.conn.data_to_send())  # `websockets` has an answer for these alone
            status, message = (431, _LARGE_HANDSHAKE) if large else (400, b"this is no handshake of a WebSocket")
            self.transport.write(refusal(status, message))
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.transport.pause_reading()  # each ping would add a pong to what is not read

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.read_paused:
            self.transport.resume_reading()

    async def receive(self) -> Any:
        message = await super().receive()
        if not self.writable.is_set():  # and it has gone on reading
            self.transport.pause_reading()
        return message

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "bytes" or self.close_sent:
            super().send_receive_event_to_app()
            return
        frames, self.frames = self.frames, []
        try:
            said = (frames[0] if len(frames) == 1 else b"".join(frames)).decode()
        except UnicodeDecodeError:  # for which uvicorn would log a traceback
            self.conn.fail(1007)
            self.handle_parser_exception()
            return
        self.queue.put_nowait({"type": "websocket.receive", "text": said})
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    async def run_asgi(self) -> None:
        self.scope[PEER] = peer_of(self.transport)  # type: ignore[literal-required]  # a key of our own
        app = self.app

        async def served(scope: Any, receive: Any, send: Any) -> None:
            await app(scope, receive, send)
            if self.close_sent:  # a denial too completes the handshake
                self.handshake_complete = True

        self.app = served
        await super().run_asgi()


_LARGE_HANDSHAKE = b"a WebSocket is opened with at most 128 headers, and 8192 bytes in each line"


def peer_of(transport: asyncio.BaseTransport) -> Peer | None:
    """Who is at the other end, by a certificate that was verified; None for who has shown none."""
    certificate = transport.get_extra_info("peercert")
    if not certificate:
        return None
    said = certificate.get("subjectAltName", ())
    names = tuple(str(name) for _, name in said)
    # With a second URI of any kind it is no SPIFFE id, as gRPC has it.
    uris = [str(name) for kind, name in said if kind == "URI"]
    spiffe = uris[0] if len(uris) == 1 and uris[0].startswith("spiffe://") else ""
    subject = {key: str(value) for part in certificate.get("subject", ()) for key, value in part}
    return Peer(names, spiffe, subject.get("commonName", ""))


def limited(limits: HttpLimits) -> type[LimitedProtocol]:
    """The protocol with these limits."""
    return type("LimitedProtocol", (LimitedProtocol,), {"limits": limits})
