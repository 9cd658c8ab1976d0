"""One HTTP/2 connection for calls with one request and one reply, on asyncio's own transport.

Each call of grpc.aio wakes two or three threads; here one write and one read make a call. It knows no more of HTTP/2
than such calls need: a request goes out whole or is not taken, and who is not taken goes through grpc. Nothing of a
header block depends on blocks before it, since the peer is told to keep no table, so that heads are read once and
remembered.

Sources: RFC 9113; https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
import re
import struct
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

import hpack

from framework.call import Metadata
from framework.errors import Code

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITIZED = 0x1, 0x1, 0x4, 0x8, 0x20
CANCEL, REFUSED_STREAM, ENHANCE_YOUR_CALM, INADEQUATE_SECURITY = 8, 7, 11, 12
TABLE_SIZE, ENABLE_PUSH, MOST_STREAMS, INITIAL_WINDOW, FRAME_SIZE = 1, 2, 3, 4, 5

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME = 16_384
"""Bytes of the payload of a frame, at most: what every peer takes."""

WINDOW = 65_535
"""Bytes that may be sent before the peer says more."""

LARGEST_WINDOW = 2**31 - 1
LAST_STREAM = 2**31 - 1
LARGEST_HEAD = 65_536
"""Bytes of a header block."""

CONFIRMED = 1 << 20
"""Bytes received after which the peer may send as many more."""

REMEMBERED = 1000
"""Header blocks, and names of metadata, that are remembered."""

LONGEST_REMEMBERED = 512
"""Bytes of a header block that is remembered."""

_FRAME = struct.Struct(">BHBBI")  # the length in two parts, the kind, the flags, the stream
_SETTING = struct.Struct(">HI")
_NUMBER = struct.Struct(">I")
_PREFIX = struct.Struct(">BI")  # of a message: whether it is packed, and its length
_KEY = re.compile(r"[0-9a-z_.-]+")
_TIMEOUT = b"\x00\x0cgrpc-timeout"
_OWN = frozenset(
    (b"grpc-status", b"grpc-message", b"grpc-encoding", b"grpc-accept-encoding", b"content-type", b"te", b"user-agent")
)

_FROM_HTTP = {
    400: Code.INTERNAL,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.UNIMPLEMENTED,
    **dict.fromkeys((429, 502, 503, 504), Code.UNAVAILABLE),
}
_FROM_RESET = {
    CANCEL: Code.CANCELLED,
    ENHANCE_YOUR_CALM: Code.RESOURCE_EXHAUSTED,
    INADEQUATE_SECURITY: Code.PERMISSION_DENIED,
}


class Head(NamedTuple):
    """What a header block says.

    Attributes:
        http: the HTTP status; 0 in trailers.
        grpc: it is of a response of gRPC.
        code: the status of the call, None where there is none.
        message: that comes with it.
        metadata: all else.
    """

    http: int
    grpc: bool
    code: Code | None
    message: str
    metadata: Metadata


_heads: dict[bytes, Head] = {}


def head_of(block: bytes) -> Head:
    """Read a header block, or remember what it said.

    Raises:
        hpack.HPACKError, ValueError: it is none.
    """
    found = _heads.get(block)
    if found is None:
        found = _read(block)
        if len(block) <= LONGEST_REMEMBERED:
            if len(_heads) >= REMEMBERED:
                _heads.clear()
            _heads[block] = found
    return found


def _read(block: bytes) -> Head:
    http, grpc, code, message = 0, False, None, ""
    metadata: list[tuple[str, str | bytes]] = []
    for name, value in hpack.Decoder(LARGEST_HEAD).decode(block, raw=True):
        if name == b":status":
            http = int(value)
        elif name == b"content-type":
            grpc = value.startswith(b"application/grpc")
        elif name == b"grpc-status":
            code = Code(int(value)) if value.isdigit() and int(value) < len(Code) else Code.UNKNOWN
        elif name == b"grpc-message":
            message = unquote_to_bytes(value).decode("utf-8", "replace")
        elif name.endswith(b"-bin"):
            key = name.decode("ascii")
            metadata += ((key, _unpacked(part)) for part in value.split(b","))
        elif name not in _OWN:
            metadata.append((name.decode("ascii"), value.decode("utf-8", "replace")))
    return Head(http, grpc, code, message, tuple(metadata))


def _unpacked(value: bytes) -> bytes:
    try:
        return base64.b64decode(value.strip() + b"=" * (-len(value.strip()) % 4))
    except binascii.Error:
        return b""


# Writing header blocks


def _number(value: int, bits: int, first: int = 0) -> bytes:
    most = (1 << bits) - 1
    if value < most:
        return bytes((first | value,))
    out = bytearray((first | most,))
    value -= most
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _text(value: bytes) -> bytes:
    return _number(len(value), 7) + value


def opening(path: str, authority: str, agent: str) -> bytes:
    """The part of a header block that all calls of a method have in common."""
    block = b"\x83\x86\x04" + _text(path.encode()) + b"\x01" + _text(authority.encode())  # POST, http
    for name, value in ((b"te", b"trailers"), (b"content-type", b"application/grpc"), (b"user-agent", agent.encode())):
        block += b"\x00" + _text(name) + _text(value)
    return block


def _timeout(seconds: float) -> bytes:
    count, unit = math.ceil(seconds * 1e6), b"u"
    for larger in (b"m", b"S"):
        if count >= 100_000_000:
            count, unit = -(-count // 1000), larger
    text = b"%d%s" % (min(max(count, 1), 99_999_999), unit)
    return b"%s%c%s" % (_TIMEOUT, len(text), text)


_names: dict[str, bytes] = {}


def _pairs(metadata: Metadata) -> bytes | None:
    """Metadata as a part of a header block; None for what gRPC cannot send."""
    parts = []
    for key, value in metadata:
        name = _names.get(key)
        if name is None:
            if not _KEY.fullmatch(key):
                return None
            name = b"\x00" + _text(key.encode())
            if len(_names) >= REMEMBERED:
                _names.clear()
            _names[key] = name
        if isinstance(value, bytes):
            if not key.endswith("-bin"):
                return None
            raw = base64.b64encode(value).rstrip(b"=")
        elif not (value.isascii() and value.isprintable()) or key == "user-agent":  # grpc says that itself
            if key == "user-agent":
                continue
            return None
        else:
            raw = value.encode()
        parts.append(name)
        parts.append(bytes((len(raw),)) if len(raw) < 127 else _number(len(raw), 7))
        parts.append(raw)
    return b"".join(parts)


class Answer:
    """What has come of one call.

    Attributes:
        arrived: done when nothing more will come; cancelled by whoever gives the call up.
        head: of the response.
        tail: its trailers.
        code, message: how the call ended.
        sent: False when the peer certainly has not looked at it.
    """

    __slots__ = ("arrived", "code", "head", "message", "parts", "sent", "size", "stream", "tail", "timer")

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

    def give_up(self) -> None:
        """Wait no more."""
        self.arrived.cancel()

    def body(self) -> bytes:
        """The message, once the call has ended with OK."""
        return self.parts[0][5:] if len(self.parts) == 1 else b"".join(self.parts)[5:]

    def judge(self) -> None:
        """The response is complete: what it means."""
        head, tail = self.head, self.tail
        assert tail is not None
        first = head or tail
        if tail.code is None or not first.grpc:
            if first.http == 200 and first.grpc:
                self.code, self.message = Code.UNKNOWN, "the response has no grpc-status"
            else:
                self.code = _FROM_HTTP.get(first.http, Code.UNKNOWN)
                self.message = f"the response is no gRPC, but HTTP {first.http}"
        elif tail.code is not Code.OK:
            self.code, self.message = tail.code, tail.message
        else:
            start = (self.parts[0] if len(self.parts) == 1 else b"".join(self.parts))[:5]
            if len(start) < 5 or start[0] or _PREFIX.unpack(start)[1] != self.size - 5:
                self.code, self.message = Code.INTERNAL, "the response is not one message that is not compressed"


class Connection(asyncio.Protocol):
    """One connection.

    Args:
        max_message: bytes that a reply may have.
        interval, timeout: seconds of silence after which a ping is sent, and that its answer may take.
        changed: called when `open` has changed.

    Attributes:
        open: calls are taken.
        broken: the peer does not speak as it should.
    """

    def __init__(self, max_message: int, interval: float, timeout: float, changed: Callable[[], None]) -> None:
        self.open = False
        self.broken = False
        self._max_message = max_message
        self._interval = interval
        self._timeout = timeout
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._answers: dict[int, Answer] = {}
        self._next = 1
        self._buffer = b""
        self._out: list[bytes] = []
        self._block: tuple[int, int, bytes] | None = None  # a header block that is not complete
        self._window = WINDOW
        self._initial = WINDOW
        self._most = LAST_STREAM
        self._paused = False
        self._leaving = False
        self._unconfirmed = 0
        self._heard = True
        self._timer: asyncio.TimerHandle | None = None

    # Calls

    def begin(self, start: bytes, metadata: Metadata, request: bytes, timeout: float | None) -> Answer | None:
        """Make a call; None when it has to go another way.

        Args:
            start: what `opening` gave for its method.
        """
        size = len(request) + 5
        if (
            not self.open
            or self._paused
            or size > self._window
            or size > self._initial
            or len(self._answers) >= self._most
        ):
            return None
        block = start if timeout is None else start + _timeout(timeout)
        if metadata:
            pairs = _pairs(metadata)
            if pairs is None:
                return None
            block += pairs
        length = len(block)
        if length > FRAME:
            return None
        stream = self._next
        self._next += 2
        self._window -= size
        answer = self._answers[stream] = Answer(stream, self._loop.create_future())
        if timeout is not None:
            answer.timer = self._loop.call_later(timeout, self._late, answer)
        body = _PREFIX.pack(0, len(request)) + request
        parts = [_FRAME.pack(0, length, HEADERS, END_HEADERS, stream), block]
        for at in range(0, size - FRAME, FRAME):
            parts += (_FRAME.pack(0, FRAME, DATA, 0, stream), body[at : at + FRAME])
        rest = size % FRAME or FRAME
        parts += (_FRAME.pack(0, rest, DATA, END_STREAM, stream), body[-rest:] if size > FRAME else body)
        self._write(b"".join(parts))
        if self._next > LAST_STREAM:
            self._leave()
        return answer

    def cancel(self, answer: Answer) -> None:
        """Nobody waits for this answer any more; harmless when it is there."""
        if self._answers.get(answer.stream) is answer:
            self._reset(answer.stream)
            self._done(answer)

    def _reset(self, stream: int) -> None:
        self._write(_FRAME.pack(0, 4, RST_STREAM, 0, stream) + _NUMBER.pack(CANCEL))

    def _late(self, answer: Answer) -> None:
        self._reset(answer.stream)
        self._fail(answer, Code.DEADLINE_EXCEEDED, "no answer before the deadline")

    def _fail(self, answer: Answer, code: Code, message: str, *, sent: bool = True) -> None:
        answer.code, answer.message, answer.sent = code, message, sent
        answer.tail = None
        self._done(answer)

    def _done(self, answer: Answer) -> None:
        del self._answers[answer.stream]
        if answer.timer is not None:
            answer.timer.cancel()
        if not answer.arrived.done():
            answer.arrived.set_result(None)
        if self._leaving and not self._answers:
            self._hang_up()

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # over TCP it is one
        self._transport = transport
        settings = ((TABLE_SIZE, 0), (ENABLE_PUSH, 0), (INITIAL_WINDOW, LARGEST_WINDOW))
        told = b"".join(_SETTING.pack(*one) for one in settings)
        self._write(
            b"".join(
                (
                    *(PREFACE, _FRAME.pack(0, len(told), SETTINGS, 0, 0), told),
                    *(_FRAME.pack(0, 4, WINDOW_UPDATE, 0, 0), _NUMBER.pack(LARGEST_WINDOW - WINDOW)),
                )
            )
        )
        self._timer = self._loop.call_later(self._interval, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        for answer in list(self._answers.values()):
            self._fail(answer, Code.UNAVAILABLE, "the connection was lost")

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False

    def close(self) -> None:
        """Close; calls in flight are cancelled."""
        self._leave()
        for answer in list(self._answers.values()):
            answer.give_up()
            self.cancel(answer)
        self._hang_up()

    def _hang_up(self) -> None:
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def _write(self, data: bytes) -> None:
        """Send it, together with whatever else is written in this turn of the loop: each send is a system call."""
        self._out.append(data)
        if len(self._out) == 1:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if out and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(out))

    def _leave(self) -> None:
        """Take no more calls; close when the last has ended."""
        self._leaving = True
        if self.open:
            self.open = False
            self._changed()
        if not self._answers:
            self._hang_up()

    def _look(self) -> None:
        """Whether the peer is still there: it is asked when it has said nothing for a while."""
        if self._heard:
            self._heard = False
            self._timer = self._loop.call_later(self._interval, self._look)
        else:
            self._write(_FRAME.pack(0, 8, PING, 0, 0) + bytes(8))
            self._timer = self._loop.call_later(self._timeout, self._silent)

    def _silent(self) -> None:
        if self._heard:
            self._look()
        elif self._transport is not None:
            self._transport.abort()

    # Frames

    def data_received(self, data: bytes) -> None:
        self._heard = True
        if self._buffer:
            data = self._buffer + data
        at, length = 0, len(data)
        try:
            while length - at >= 9:
                high, low, kind, flags, stream = _FRAME.unpack_from(data, at)
                if high or low > FRAME:
                    raise ValueError("a frame is too large")
                end = at + 9 + low
                if end > length:
                    break
                self._frame(kind, flags, stream & LAST_STREAM, data[at + 9 : end])
                at = end
        except (ValueError, IndexError, struct.error, hpack.HPACKError):
            self.broken = True
            if self._transport is not None:
                self._transport.abort()
            return
        self._buffer = data[at:]

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if self._block is not None and kind != CONTINUATION:
            raise ValueError("a header block is broken off")
        if kind == DATA:
            self._confirm(len(payload))
            answer = self._answers.get(stream)
            if answer is not None:
                self._data(answer, _unpadded(payload) if flags & PADDED else payload, flags)
        elif kind == HEADERS:
            if flags & PADDED:
                payload = _unpadded(payload)
            if flags & PRIORITIZED:
                payload = payload[5:]
            if flags & END_HEADERS:
                self._headers(stream, flags, payload)
            else:
                self._block = stream, flags, payload
        elif kind == CONTINUATION:
            if self._block is None or self._block[0] != stream or len(self._block[2]) > LARGEST_HEAD:
                raise ValueError("a header block is continued that has not begun, or without end")
            began, block = self._block[1], self._block[2] + payload
            self._block = (stream, began, block)
            if flags & END_HEADERS:
                self._block = None
                self._headers(stream, began, block)
        elif kind == WINDOW_UPDATE:
            if not stream:
                self._window += _NUMBER.unpack(payload)[0]
        elif kind == PING:
            if len(payload) != 8:
                raise ValueError("a ping has eight bytes")
            if not flags & ACK:
                self._write(_FRAME.pack(0, 8, PING, ACK, 0) + payload)
        elif kind == SETTINGS:
            if not flags & ACK:
                self._settings(payload)
        elif kind == RST_STREAM:
            answer = self._answers.get(stream)
            if answer is not None:
                self._was_reset(answer, _NUMBER.unpack(payload)[0])
        elif kind == GOAWAY:
            self._goes_away(*struct.unpack_from(">II", payload))
        elif kind == PUSH_PROMISE:
            raise ValueError("nothing may be pushed")

    def _settings(self, payload: bytes) -> None:
        for key, value in _SETTING.iter_unpack(payload):
            if key == MOST_STREAMS:
                self._most = value
            elif key == INITIAL_WINDOW:
                self._initial = value
        self._write(_FRAME.pack(0, 0, SETTINGS, ACK, 0))
        if not self.open and not self._leaving:
            self.open = True
            self._changed()

    def _confirm(self, size: int) -> None:
        self._unconfirmed += size
        if self._unconfirmed >= CONFIRMED:
            self._write(_FRAME.pack(0, 4, WINDOW_UPDATE, 0, 0) + _NUMBER.pack(self._unconfirmed))
            self._unconfirmed = 0

    def _data(self, answer: Answer, payload: bytes, flags: int) -> None:
        answer.parts.append(payload)
        answer.size += len(payload)
        if answer.size > self._max_message + 5:
            length = _PREFIX.unpack(b"".join(answer.parts)[:5])[1]
            self._reset(answer.stream)
            message = f"CLIENT: Received message larger than max ({length} vs. {self._max_message})"
            self._fail(answer, Code.RESOURCE_EXHAUSTED, message)
        elif flags & END_STREAM:
            self._fail(answer, Code.INTERNAL, "the response has no trailers")

    def _headers(self, stream: int, flags: int, block: bytes) -> None:
        answer = self._answers.get(stream)
        if answer is None:
            return
        head = head_of(block)
        if flags & END_STREAM:
            answer.tail = head
            answer.judge()
            self._done(answer)
        elif answer.head is not None:
            self._reset(stream)
            self._fail(answer, Code.INTERNAL, "the response has two heads")
        elif head.http >= 200:
            answer.head = head

    def _was_reset(self, answer: Answer, reason: int) -> None:
        if reason == REFUSED_STREAM:
            self._fail(answer, Code.UNAVAILABLE, "the peer did not take the call", sent=False)
        else:
            self._fail(answer, _FROM_RESET.get(reason, Code.INTERNAL), f"the peer broke the call off (error {reason})")

    def _goes_away(self, last: int, reason: int) -> None:
        if reason == ENHANCE_YOUR_CALM:
            self.broken = True  # it does not like to be asked so often
        self._leave()
        for stream, answer in list(self._answers.items()):
            if stream > last:
                self._fail(answer, Code.UNAVAILABLE, "the peer goes away", sent=False)


def _unpadded(payload: bytes) -> bytes:
    padding = payload[0]
    if padding >= len(payload):
        raise ValueError("there is more padding than payload")
    return payload[1 : len(payload) - padding]
