"""What has come of one call with one reply: its parts as they arrive, and what they mean together.

Source: https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md
"""

from __future__ import annotations

import asyncio
import struct
import zlib

from framework.client.heads import ENCODINGS, Head
from framework.errors import Code

PREFIX = struct.Struct(">BI")  # of a message: whether it is packed, and its length

_FROM_HTTP = {
    400: Code.INTERNAL,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.UNIMPLEMENTED,
    **dict.fromkeys((429, 502, 503, 504), Code.UNAVAILABLE),
}
_GZIP_OR_ZLIB = 47


class Answer:
    """What has come of one call.

    Attributes:
        arrived: done when nothing more will come; cancelled by whoever gives the call up.
        head: of the response.
        tail: its trailers.
        code, message: how the call ended.
        sent: False when the peer certainly has not looked at it.
        body: the reply, once the call has ended with OK.
    """

    __slots__ = ("arrived", "body", "code", "head", "message", "parts", "sent", "size", "stream", "tail", "timer")

    def __init__(self, stream: int, arrived: asyncio.Future[None]) -> None:
        self.stream = stream
        self.arrived = arrived
        self.timer: asyncio.TimerHandle | None = None
        self.parts: list[bytes] = []
        self.size = 0
        self.head: Head | None = None
        self.tail: Head | None = None
        self.code = Code.OK
        self.message = ""
        self.sent = True
        self.body = b""

    def give_up(self) -> None:
        """Wait no more."""
        self.arrived.cancel()

    def too_large(self, size: int, most: int) -> None:
        """The reply has `size` bytes, of which `most` are taken; told as grpc does, which errors are made of."""
        self.code = Code.RESOURCE_EXHAUSTED
        self.message = f"CLIENT: Received message larger than max ({size} vs. {most})"

    def judge(self, most: int) -> None:
        """The response is complete: what it means. A reply may have `most` bytes.

        A status of gRPC is believed whatever else the response says, as grpc does.
        """
        head, tail = self.head, self.tail
        assert tail is not None
        first = head or tail
        if tail.code is None:
            if first.http == 200 and first.grpc:
                self.code, self.message = Code.UNKNOWN, "the response has no grpc-status"
            else:
                self.code = _FROM_HTTP.get(first.http, Code.UNKNOWN)
                self.message = f"the response is no gRPC, but HTTP {first.http}"
        elif tail.code is not Code.OK:
            self.code, self.message = tail.code, tail.message
        elif not self.size:
            self.code, self.message = Code.UNIMPLEMENTED, "the response has no message"
        else:
            data = self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)
            packed, length = PREFIX.unpack_from(data) if self.size >= 5 else (0, self.size)
            if length > self.size - 5:
                self.code, self.message = Code.INTERNAL, "the message of the response is not complete"
            elif length < self.size - 5:
                self.code, self.message = Code.UNIMPLEMENTED, "the response has more than one message"
            elif packed:
                self._unpack(data, first.encoding, most)
            else:
                self.body = data[5:]

    def _unpack(self, data: bytes, encoding: bytes, most: int) -> None:
        if data[0] > 1 or encoding not in ENCODINGS:
            self.code, self.message = Code.INTERNAL, f"the message of the response is packed as {encoding!r}"
            return
        unpacking = zlib.decompressobj(_GZIP_OR_ZLIB)
        try:
            self.body = unpacking.decompress(data[5:], most + 1)
        except zlib.error:
            self.code, self.message = Code.INTERNAL, "the message of the response cannot be unpacked"
            return
        if len(self.body) > most:
            self.too_large(len(self.body), most)
        elif not unpacking.eof:
            self.code, self.message = Code.INTERNAL, "the message of the response cannot be unpacked"
