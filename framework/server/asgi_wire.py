"""One call of ASGI below the pipeline: requests in frames, replies in frames, and the status in trailers.

A server's futures are never cancelled, which some of them do not survive: whoever may be cancelled waits for a future
of ours.
"""

from __future__ import annotations

import asyncio
import base64
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, TypeAlias
from urllib.parse import quote

from framework.call import ABANDONED, OK, Metadata, Outcome, Stream
from framework.details import ORIGIN
from framework.errors import Code, Internal, MessageTooLarge, RpcError, Unimplemented, error_for
from framework.identity import Peer
from framework.server.context import ServerCall
from framework.server.pipeline import Broken, internal, status_of
from framework.server.presence import Receive

Scope: TypeAlias = MutableMapping[str, Any]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Pairs: TypeAlias = list[tuple[bytes, bytes]]

AHEAD = 64 << 10
"""Bytes of requests up to which more are read before the handler asks for them, to notice that the client goes."""

BEHIND = 16 << 10
"""Bytes of replies that are collected while those before them are being sent."""

ACCEPTED = b"identity,deflate,gzip"
_WINDOW = {b"gzip": 31, b"deflate": 15}

_SAFE = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"

_TYPE_HEADER = (b"content-type", b"application/grpc")
START: MutableMapping[str, Any] = {
    "type": "http.response.start",
    "status": 200,
    "headers": [_TYPE_HEADER],
    "trailers": True,
}
"""How the response of most calls begins."""

FINE: MutableMapping[str, Any] = {"type": "http.response.trailers", "headers": [(b"grpc-status", b"0")]}
"""How it ends."""


class Gone(Exception):
    """The client has gone before its call began."""


def _encoded(metadata: Metadata) -> Pairs:
    return [
        (key.encode(), base64.b64encode(value).rstrip(b"=") if isinstance(value, bytes) else value.encode("latin-1"))
        for key, value in metadata
    ]


def trailers_of(code: int, message: str, metadata: Metadata) -> MutableMapping[str, Any]:
    """The end of a call, as ASGI sends it."""
    headers: Pairs = [(b"grpc-status", b"%d" % code)]
    if message:
        headers.append((b"grpc-message", quote(message, safe=_SAFE, errors="replace").encode()))
    headers += _encoded(metadata)
    return {"type": "http.response.trailers", "headers": headers}


class AsgiWire:
    """One call of ASGI as a `Wire`. What most calls have no use for is an attribute of the class until it is set.

    Attributes:
        call: once it has begun.
        complete: all of the request has arrived.
        started: the response has begun.
        packing: replies are compressed.
        buffer: of requests that stream, what was read.
    """

    complete = False
    started = False
    buffer: bytearray
    packing = False
    _plain = False  # the next message is sent as it is
    _gone = False
    _reading = False
    _out = b""  # replies to be sent when those before them are
    _sending: asyncio.Future[Any] | None = None
    _waiter: asyncio.Future[None] | None = None  # of who reads
    _room: asyncio.Future[None] | None = None  # of who writes
    call: ServerCall | None = None

    def __init__(self, scope: Scope, receive: Receive, send: Send, limit: int, encoding: bytes | None) -> None:
        self.receive = receive
        self._scope = scope
        self._send = send
        self._limit = limit
        self._encoding = encoding

    def peer(self) -> str:
        """The address of the other side, as gRPC writes it."""
        client = self._scope.get("client")
        if not client:
            return ""
        return f"ipv6:[{client[0]}]:{client[1]}" if ":" in client[0] else f"ipv4:{client[0]}:{client[1]}"

    # The request

    def check_encoding(self) -> None:
        """Raises Unimplemented for a compression that is not known here."""
        encoding = self._encoding
        if encoding == b"identity":
            self._encoding = None
        elif encoding is not None and encoding not in _WINDOW:
            named = encoding[:40].decode("latin-1")
            raise Unimplemented(f"compression {named!r} is not known here; there are {ACCEPTED.decode()}")

    async def only(self, message: MutableMapping[str, Any]) -> bytes:
        """The one request of a method that takes one, of which this is the first piece.

        Raises:
            RpcError: it is none, or not the only one.
            Gone: the client has gone.
        """
        parts: list[bytes] = []
        size = 0
        while True:
            if message["type"] == "http.disconnect" or self._gone:
                raise Gone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if not message.get("more_body", False) or size > self._limit + 5:
                break
            message = await self.receive()
        body = b"".join(parts)
        self.complete = True
        if not body:
            raise Unimplemented("a request is missing")
        size = int.from_bytes(body[1:5], "big")
        if size > self._limit:
            raise self._too_large(size)
        if size + 5 != len(body):
            if 5 <= size + 5 < len(body):
                raise Unimplemented("this method takes one request, and more have come")
            raise Internal("the request ends in the middle of a message")
        return self._unpacked(body[0], body[5:]) if body[0] else body[5:]

    def _unpacked(self, flags: int, payload: bytes) -> bytes:
        if flags != 1:
            raise Internal(f"a message has the flags 0x{flags:02x}, which are not known here")
        if self._encoding is None:
            raise Internal("a message is marked as compressed, and no compression was named")
        unpacker = zlib.decompressobj(_WINDOW[self._encoding])
        try:
            unpacked = unpacker.decompress(payload, self._limit + 1)
        except zlib.error as error:
            raise Internal(f"a message cannot be unpacked: {error}") from None
        if len(unpacked) > self._limit:
            raise self._too_large(None)
        if not unpacker.eof:
            raise Internal("a compressed message is cut off")
        return unpacked

    def _too_large(self, size: int | None) -> MessageTooLarge:
        told = "more than that once it is unpacked" if size is None else f"{size} bytes"
        return MessageTooLarge(
            f"{MessageTooLarge.PREFIX}the request has {told}, the server takes up to {self._limit}"
            " (`max_message` in its settings)"
        )

    def _read(self) -> None:
        self._reading = True
        asyncio.ensure_future(self.receive()).add_done_callback(self._arrived)

    def _arrived(self, future: asyncio.Future[Any]) -> None:
        self._reading = False
        if future.cancelled() or future.exception() is not None or future.result()["type"] == "http.disconnect":
            self.left()
            return
        message = future.result()
        self.buffer += message.get("body", b"")
        self.complete = not message.get("more_body", False)
        self._wake()

    def look(self) -> None:
        """Read ahead, so that the client's going is noticed while the handler does something else."""
        if not (self.complete or self._reading or self._gone) and len(self.buffer) < AHEAD:
            self._read()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> bytes | None:
        """The next of many requests, None at the end. Raises RpcError, and Broken when the client has gone."""
        buffer = self.buffer
        while True:
            if len(buffer) >= 5:
                size = int.from_bytes(buffer[1:5], "big")
                if size > self._limit:
                    raise self._too_large(size)
                if len(buffer) >= size + 5:
                    flags, payload = buffer[0], bytes(buffer[5 : size + 5])
                    del buffer[: size + 5]
                    return self._unpacked(flags, payload) if flags else payload
            if self._gone:
                raise Broken
            if self.complete:
                if buffer:
                    raise Internal("the requests end in the middle of a message")
                return None
            if not self._reading:
                self._read()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    # The client's going

    def over(self) -> bool:
        """The call has ended."""
        return self.call is None or self.call.outcome is not None

    def left(self) -> None:
        """The client has gone: nobody waits for an answer."""
        self._gone = True
        call = self.call
        if call is not None and call.outcome is None and call.task is not None:
            call.task.cancel()
        else:
            self._wake()

    # The response

    async def send_header(self, metadata: Metadata) -> None:
        """Send response headers now; with a piece of body that is empty, since a server may wait for one."""
        await self._begin(metadata)
        self._flush()
        self._check()

    async def _begin(self, metadata: Metadata) -> None:
        self.started = True
        if not metadata and not self.packing:
            await self._send(START)
            return
        headers = [_TYPE_HEADER, *_encoded(metadata)]
        if self.packing:
            headers.append((b"grpc-encoding", b"gzip"))
        await self._send({**START, "headers": headers})

    def _framed(self, reply: bytes) -> bytes:
        if self.packing and not self._plain:
            packer = zlib.compressobj(wbits=31)
            packed = packer.compress(reply) + packer.flush()
            return b"\1" + len(packed).to_bytes(4, "big") + packed
        self._plain = False
        return b"\0" + len(reply).to_bytes(4, "big") + reply

    async def write(self, reply: bytes) -> None:
        """Send one reply of many; waits while the client does not read. Raises Broken when it has gone."""
        if not self.started:
            call = self.call
            assert call is not None
            call.header_sent = True
            await self._begin(call.header)
        self._out += self._framed(reply)
        if self._sending is None:
            self._flush()
        elif len(self._out) > BEHIND:
            self._room = asyncio.get_running_loop().create_future()
            await self._room
        self._check()

    def _check(self) -> None:
        if self._gone:
            raise Broken

    def _flush(self) -> None:
        out, self._out = self._out, b""
        self._sending = asyncio.ensure_future(
            self._send({"type": "http.response.body", "body": out, "more_body": True})
        )
        self._sending.add_done_callback(self._sent)

    def _sent(self, future: asyncio.Future[Any]) -> None:
        self._sending = None
        if future.cancelled() or future.exception() is not None:
            self.left()
        elif self._out and not self.over():
            self._flush()
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    async def _settle(self) -> None:
        """Let what is being sent go before what comes; a server that has given a future has taken it in its order."""
        while isinstance(self._sending, asyncio.Task):
            await asyncio.wait([self._sending])

    async def finish(self, call: ServerCall, reply: bytes | None = None) -> None:
        """Send the end of a call, and its one reply before that."""
        try:
            if not self.started:
                await self._begin(call.header)
            await self._settle()
            out = self._out if reply is None else self._out + self._framed(reply)
            await self._send({"type": "http.response.body", "body": out})
            await self._send(trailers_of(0, "", call.trailer))
        except OSError:
            pass  # the client has gone, and the call has ended all the same

    async def fail(self, call: ServerCall, error: RpcError) -> None:
        """Send how a call failed."""
        try:
            message, trailer = status_of(call, error)
            sent = trailers_of(error.code, message, trailer)
        except Exception as defect:  # details that are no messages, metadata that is no text
            error = internal(call, defect)
            sent = trailers_of(error.code, error.message, ())
        await self._end(call.header, sent)

    async def overdue(self, call: ServerCall, error: RpcError) -> None:
        """Answer a call whose request has not come in time; whoever reads it is to stop with the next piece."""
        self._gone = True
        await self.fail(call, error)

    async def refuse(self, error: RpcError) -> None:
        """Send why there is no call."""
        sent = trailers_of(error.code, error.message, ())
        if isinstance(error, Unimplemented):
            sent["headers"].append((b"grpc-accept-encoding", ACCEPTED))
        await self._end((), sent)

    async def break_off(self, call: ServerCall) -> None:
        """Nobody waits for an answer; a client that is there all the same gets one."""
        if self._gone:
            return
        outcome = call.outcome
        code = Code.CANCELLED if outcome is None else outcome.code
        await self.fail(call, error_for(code, "the call broke off"))

    async def _end(self, header: Metadata, trailers: MutableMapping[str, Any]) -> None:
        trailers["headers"].append((ORIGIN.encode(), b"server"))
        try:
            if header and not self.started:
                await self._begin(header)
            if self.started:
                await self._settle()
                await self._send({"type": "http.response.body", "body": self._out})
                await self._send(trailers)
                return
            self.started = True
            headers = [_TYPE_HEADER, *trailers["headers"]]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
            await self._send({"type": "http.response.body", "body": b""})
        except OSError:
            pass

    # What a context asks for

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return {}

    def peer_identity(self) -> Peer | None:
        return None  # the certificate is the server's, and ASGI has no word for it

    def set_compression(self, compression: Any) -> None:
        if self.started:
            return
        asked = next((value for key, value in self._scope["headers"] if key == b"grpc-accept-encoding"), b"")
        accepted = b"gzip" in [name.strip() for name in asked.split(b",")]
        self.packing = accepted and getattr(compression, "name", "") == "Gzip"

    def disable_next_message_compression(self) -> None:
        self._plain = True


class Requests(Stream[Any]):
    """The requests of a client that streams."""

    __slots__ = ("_decode", "_wire")

    def __init__(self, wire: AsgiWire, decode: Callable[[bytes], Any]) -> None:
        super().__init__()
        self._wire = wire
        self._decode = decode
        wire.buffer = bytearray()

    async def __anext__(self) -> Any:
        if self.outcome is not None:
            raise StopAsyncIteration
        raw = await self._wire.next()
        if raw is not None:
            return self._decode(raw)
        self.end(OK)
        raise StopAsyncIteration

    def cancel(self, reason: BaseException | None = None) -> None:
        self.end(ABANDONED if reason is None else Outcome.of(reason))

    def __del__(self) -> None:
        pass  # not reading to the end is the servicer's right; the call's end ends the upload
