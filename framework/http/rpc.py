"""What Connect and gRPC-Web share: a method ready to be called, and messages in frames of five bytes and a payload."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from framework.call import Call, Handler, Method
from framework.errors import (
    Cancelled,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    RpcError,
    Unimplemented,
)
from framework.http import compression
from framework.http.conduct import Conduct, Gone
from framework.http.exchange import Exchange
from framework.http.headers import Incoming
from framework.http.json import Codec, Json, JsonError
from framework.http.relay import is_relayed
from framework.http.replies import Output
from framework.http.settings import HttpSettings
from framework.http.status import Details, Headers, HttpError
from framework.http.unknown import explained

COMPRESSED = 0x01


@dataclass(frozen=True, slots=True)
class Coding:
    """How the messages of a method are sent. `decode` raises InvalidArgument, `encode` Internal."""

    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]


class RpcMethod:
    """One method, ready to be called by its path.

    Attributes:
        proto, json: the two codings.
    """

    def __init__(
        self,
        method: Method[Any, Any],
        handler: Handler,
        codecs: Json,
        settings: HttpSettings,
        incoming: Incoming,
        details: Details,
    ) -> None:
        self.method = method
        self.handler = handler
        self.settings = settings
        self.incoming = incoming
        self.details = details
        reply = codecs.codec(method.reply)
        relay = is_relayed(method)
        self.proto = Coding(
            _decode(method.request), _checked(method.reply) if relay else method.reply.SerializeToString
        )
        self.json = _json(codecs.codec(method.request), reply.unpack if relay else reply.write)
        self.streaming = method.client_streaming or method.server_streaming
        self.timed = not (method.client_streaming and method.server_streaming)


def _decode(kind: Any) -> Callable[[bytes], Any]:
    parse = kind.FromString

    def decode(raw: bytes) -> Any:
        try:
            return parse(raw)
        except DecodeError:
            raise InvalidArgument(f"these bytes are no {kind.DESCRIPTOR.full_name}") from None

    return decode


def _checked(kind: Any) -> Callable[[bytes], bytes]:
    """What passes bytes on that are a message."""
    parse = kind.FromString

    def checked(raw: bytes) -> bytes:
        try:
            parse(raw)
        except DecodeError:
            raise Internal(f"the reply is no {kind.DESCRIPTOR.full_name}") from None
        return raw

    return checked


def _json(request: Codec, write: Callable[[Any], bytes]) -> Coding:
    def decode(raw: bytes) -> Any:
        try:
            return request.parse(raw)
        except JsonError as error:
            told = explained(error, request.kind.DESCRIPTOR)
            raise InvalidArgument(f"{error.field}: {told}" if error.field else told) from None

    def encode(message: Any) -> bytes:
        try:
            return write(message)
        except JsonError as error:
            raise Internal(error.message) from None

    return Coding(decode, encode)


def frame(flags: int, payload: bytes) -> bytes:
    """A frame."""
    return bytes((flags,)) + len(payload).to_bytes(4, "big") + payload


class Frames:
    """The frames in a body.

    Args:
        exchange: whose body.
        encoding: how frames with the flag are packed; empty when none may be.
        timed: each part of the body has to arrive soon, because no replies are sent meanwhile.
        as_text: the body is base64.
    """

    def __init__(self, exchange: Exchange, encoding: str, *, timed: bool, as_text: bool = False) -> None:
        self._exchange = exchange
        self._timed = timed
        self._encoding = encoding
        self._buffer = bytearray()
        self._text = b"" if as_text else None

    async def next(self) -> bytes | None:
        """The next message, None at the end.

        Raises:
            RpcError: this is none, or it is too large.
            Gone: the client has gone.
        """
        limit = self._exchange.settings.max_message
        if not await self._fill(5):
            return None
        flags, size = self._buffer[0], int.from_bytes(self._buffer[1:5], "big")
        if flags & ~COMPRESSED:
            raise InvalidArgument(f"a frame with flags 0x{flags:02x} cannot be a request")
        if size > limit:
            raise ResourceExhausted(f"the message is larger than {limit} bytes")
        await self._fill(5 + size)
        payload = bytes(self._buffer[5 : 5 + size])
        del self._buffer[: 5 + size]
        if not flags:
            return payload
        if not self._encoding:
            raise Internal("a frame is marked as compressed, and no encoding was named")
        try:
            return self._exchange.unpacked(self._encoding, payload) if payload else payload
        except HttpError as error:
            raise error.error from None

    async def _fill(self, size: int) -> bool:
        """Have so many bytes; False when there is nothing more. Raises InvalidArgument for too little."""
        while len(self._buffer) < size:
            try:
                part = await self._exchange.part(timed=self._timed)
            except HttpError as error:
                raise error.error from None
            if part is None:
                if self._buffer or self._text:
                    raise InvalidArgument("the body ends in the middle of a frame")
                return False
            self._buffer += part if self._text is None else self._decoded(part)
        return True

    def _decoded(self, part: bytes) -> bytes:
        """Base64, which may have been encoded in several pieces, each padded."""
        assert self._text is not None
        text = self._text + b"".join(part.split())
        whole = len(text) - len(text) % 4
        self._text = text[whole:]
        try:
            pieces = re.split(rb"(?<==)(?=[^=])", text[:whole])
            return b"".join(base64.b64decode(piece, validate=True) for piece in pieces)
        except binascii.Error:
            raise InvalidArgument("the body is no base64") from None


class FrameRequests:
    """The requests of a client that streams, read as the call asks for them."""

    def __init__(self, frames: Frames, decode: Callable[[bytes], Any]) -> None:
        self._frames = frames
        self._decode = decode

    def __aiter__(self) -> FrameRequests:
        return self

    async def __anext__(self) -> Any:
        try:
            raw = await self._frames.next()
        except Gone:
            raise Cancelled("the client has gone") from None
        if raw is None:
            raise StopAsyncIteration
        return self._decode(raw)

    async def only(self) -> Any:
        """The one request of a method that takes one. Raises Unimplemented when it is none, or not the only one."""
        first = await self._frames.next()
        if first is None:
            raise Unimplemented("a request is missing")
        if await self._frames.next() is not None:
            raise Unimplemented("this method takes one request, and more have come")
        return self._decode(first)


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a protocol answers in frames.

    Attributes:
        headers: of the response; they are asked for when the call's own are there.
        end: the frame that ends the response of a call.
        encoding: how to pack frames; empty for not at all.
        as_text: send base64.
    """

    headers: Callable[[Call | None], Headers]
    end: Callable[[Call | None, RpcError | None], bytes]
    encoding: str = ""
    as_text: bool = False


async def converse(
    rpc: RpcMethod, exchange: Exchange, coding: Coding, requests: FrameRequests, timeout: float | None, dialect: Dialect
) -> None:
    """Serve a call whose messages are frames. The response always begins with 200, and its last frame tells the rest.

    Raises:
        Gone: nobody waits for an answer.
    """
    call: Call | None = None
    output = Output(exchange, None)
    failure: RpcError | None = None
    output.headers = lambda: dialect.headers(call)
    try:
        if not rpc.method.client_streaming:
            request = await requests.only()
        else:
            request = requests
        call = exchange.call(rpc.method, request, rpc.incoming.metadata(exchange.scope), timeout)
        output.watch()
        await Conduct(call, exchange.inbox).run(_replies, rpc, call, coding, output, dialect)
    except RpcError as error:
        failure = error
        exchange.failed(error)
    finally:
        output.close()
    last = dialect.end(call, failure)
    await output.finish(base64.b64encode(last) if dialect.as_text else last)


async def _replies(rpc: RpcMethod, call: Call, coding: Coding, output: Output, dialect: Dialect) -> None:
    encode = coding.encode

    async def send(reply: Any) -> None:
        payload = encode(reply)
        if dialect.encoding and len(payload) >= rpc.settings.compress_above:
            sent = frame(COMPRESSED, compression.pack(dialect.encoding, payload))
        else:
            sent = frame(0, payload)
        await output.message(base64.b64encode(sent) if dialect.as_text else sent)

    replies = await rpc.handler(call)
    if not rpc.method.server_streaming:
        await received(call)
        await send(replies)
        return
    async with replies:
        async for reply in replies:
            await send(reply)


async def received(call: Call) -> None:
    """Fetch the metadata of a reply, where that has to be asked for."""
    if call.received is not None:
        call.header, call.trailer = await call.received()


def known_encoding(name: bytes | None) -> str:
    """A compression that a header names; empty for none. Raises Unimplemented, which names those that are known."""
    text = b"" if name is None else name.strip().lower()
    if text in (b"", b"identity"):
        return ""
    encoding = text.decode("latin-1")
    if encoding not in compression.NAMES:
        raise Unimplemented(
            f"compression {encoding[:40]!r} is not known here; there are {', '.join(compression.NAMES)}"
        )
    return encoding
