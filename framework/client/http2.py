"""One HTTP/2 connection for calls with one request and one reply, on asyncio's own transport.

Each call of grpc.aio wakes two or three threads; here one write and one read make a call. It knows no more of HTTP/2
than such calls need: a request goes out whole or is not taken, and who is not taken goes through grpc. What is wrong
with one response ends that call; what is wrong with the connection ends the connection, for good (`broken`).

Sources: RFC 9113; https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

from __future__ import annotations

import asyncio
import contextvars
import struct
from collections.abc import Callable

import hpack

from framework.call import Metadata
from framework.client.answers import PREFIX, Answer
from framework.client.heads import LARGEST_HEAD, NO_TABLE, SPARE, Head, TooLarge, head_of, limit, written
from framework.errors import Code

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITIZED = 0x1, 0x1, 0x4, 0x8, 0x20
PROTOCOL_ERROR, REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM, INADEQUATE_SECURITY = 1, 7, 8, 11, 12
TABLE_SIZE, ENABLE_PUSH, MOST_STREAMS, INITIAL_WINDOW, FRAME_SIZE, HEAD_SIZE = 1, 2, 3, 4, 5, 6

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME = 16_384
"""Bytes of the payload of a frame, at most: what every peer takes."""

WINDOW = 65_535
"""Bytes that may be sent before the peer says more."""

LARGEST_WINDOW = 2**31 - 1
LAST_STREAM = 2**31 - 1

CONFIRMED = 1 << 20
"""Bytes received after which the peer may send as many more."""

LARGEST_BLOCK = 4 * LARGEST_HEAD
"""Bytes of a header block that are waited for, whatever they say."""

CONTINUED = 64
"""Bytes that a frame of it counts as besides: there may not be any number of empty ones."""

UNREAD = 1 << 20
"""Bytes of answers to pings that a peer may leave unread."""

_FRAME = struct.Struct(">BHBBI")  # the length in two parts, the kind, the flags, the stream
_SETTING = struct.Struct(">HI")
_NUMBER = struct.Struct(">I")

_FROM_RESET = {
    CANCEL: Code.CANCELLED,
    ENHANCE_YOUR_CALM: Code.RESOURCE_EXHAUSTED,
    INADEQUATE_SECURITY: Code.PERMISSION_DENIED,
}


class Connection(asyncio.Protocol):
    """One connection.

    Args:
        max_message: bytes that a reply may have.
        interval, timeout: seconds of silence after which a ping is sent, and that its answer may take.
        changed: called with this when `open` or `lost` has changed.

    Attributes:
        open: calls are taken.
        lost: it is gone.
        greeted: done when it has become one of them.
        broken: in what the peer does not speak as it should; empty while it does.
        calm: the peer does not like to be asked so often.
    """

    def __init__(
        self, max_message: int, interval: float, timeout: float, changed: Callable[[Connection], None]
    ) -> None:
        self.open = False
        self.lost = False
        self.broken = ""
        self.calm = False
        self._max_message = max_message
        self._interval = interval
        self._timeout = timeout
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self.greeted = self._loop.create_future()
        self._context = contextvars.Context()  # of timers, or each would keep the context of its call
        self._transport: asyncio.Transport | None = None
        self._answers: dict[int, Answer] = {}
        self._next = 1
        self._gone = 1  # the first stream of which nothing has left yet
        self._buffer = b""
        self._out: list[bytes] = []
        self._block: bytearray | None = None  # a header block that is not complete
        self._begun = (0, 0)  # its stream and flags
        self._spent = 0
        self._window = WINDOW
        self._initial = WINDOW
        self._most = LAST_STREAM
        self._largest_head = LAST_STREAM
        self._paused = False
        self._leaving = False
        self._unconfirmed = 0
        self._heard = self._asked = self._loop.time()
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
            or (timeout is not None and timeout <= 0)
        ):
            return None
        block = start if timeout is None else start + limit(timeout)
        if metadata:
            pairs = written(metadata)
            if pairs is None:
                return None
            block += pairs
        stream = self._next
        if stream == 1:
            block = NO_TABLE + block
        length = len(block)
        if length > FRAME or length + SPARE + 32 * len(metadata) > self._largest_head:
            return None
        self._next += 2
        self._window -= size
        answer = self._answers[stream] = Answer(stream, self._loop.create_future())
        if timeout is not None:
            answer.timer = self._loop.call_later(timeout, self._late, answer, context=self._context)
        body = PREFIX.pack(0, len(request)) + request
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
        """Nobody waits for this answer any more; harmless when it is there, or the loop is gone."""
        if self._answers.get(answer.stream) is answer and not self._loop.is_closed():
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
        secured = transport.get_extra_info("ssl_object")
        if secured is not None and secured.selected_alpn_protocol() != "h2":
            transport.abort()
            return
        settings = (
            *((TABLE_SIZE, 0), (ENABLE_PUSH, 0), (INITIAL_WINDOW, LARGEST_WINDOW)),
            (HEAD_SIZE, LARGEST_HEAD),
        )
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

    def eof_received(self) -> None:
        self._leave()  # what came before has been read, and nothing more may be sent
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()  # or one of TLS would take what it does not send

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        for answer in list(self._answers.values()):
            self._fail(answer, Code.UNAVAILABLE, "the connection was lost", sent=answer.stream < self._gone)
        self.lost = True
        if not self.greeted.done():
            self.greeted.set_result(None)
        self._changed(self)

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
        if self._transport is not None and not self._transport.is_closing():
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
            self._gone = self._next

    def _reply(self, data: bytes) -> None:
        """Write what the peer has asked for, unless it asks and asks and does not read."""
        if self._paused and self._transport is not None and self._transport.get_write_buffer_size() > UNREAD:
            raise ValueError("it reads no answers")
        self._write(data)

    def _leave(self) -> None:
        """Take no more calls; close when the last has ended."""
        self._leaving = True
        if self.open:
            self.open = False
            self._changed(self)
        if not self._answers:
            self._hang_up()

    def _look(self) -> None:
        """Whether the peer is still there: it is asked when it has said nothing for a while."""
        left = self._heard + self._interval - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._asked = self._loop.time()
            self._write(_FRAME.pack(0, 8, PING, 0, 0) + bytes(8))
            self._timer = self._loop.call_later(self._timeout, self._silent)

    def _silent(self) -> None:
        if self._heard >= self._asked:
            self._look()
        else:
            self.abort()

    def abort(self) -> None:
        """Close, whatever has not been sent; calls in flight fail."""
        self._leave()
        if self._transport is not None:
            self._transport.abort()

    # Frames

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
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
        except (ValueError, IndexError, struct.error, hpack.HPACKError) as error:
            self.broken = str(error) or "a header block is none"
            self._write(_FRAME.pack(0, 8, GOAWAY, 0, 0) + bytes(4) + _NUMBER.pack(PROTOCOL_ERROR))
            self._flush()
            self.abort()
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
            else:
                self._had_call(stream)
        elif kind == HEADERS:
            if flags & PADDED:
                payload = _unpadded(payload)
            if flags & PRIORITIZED:
                payload = payload[5:]
            if flags & END_HEADERS:
                self._headers(stream, flags, payload)
            else:
                self._block, self._begun, self._spent = bytearray(payload), (stream, flags), 0
        elif kind == CONTINUATION:
            self._continued(flags, stream, payload)
        elif kind == WINDOW_UPDATE:
            more = _NUMBER.unpack(payload)[0] & LARGEST_WINDOW
            if not stream:
                self._window += more
                if not more or self._window > LARGEST_WINDOW:
                    raise ValueError("the window is not updated by anything, or is too large")
        elif kind == PING:
            if len(payload) != 8:
                raise ValueError("a ping has eight bytes")
            if not flags & ACK:
                self._reply(_FRAME.pack(0, 8, PING, ACK, 0) + payload)
        elif kind == SETTINGS:
            if stream:
                raise ValueError("settings are of the connection")
            if not flags & ACK:
                self._settings(payload)
        elif kind == RST_STREAM:
            reason = _NUMBER.unpack(payload)[0]
            answer = self._answers.get(stream)
            if answer is not None:
                self._was_reset(answer, reason)
            else:
                self._had_call(stream)
        elif kind == GOAWAY:
            self._goes_away(*struct.unpack_from(">II", payload))
        elif kind == PUSH_PROMISE:
            raise ValueError("nothing may be pushed")

    def _had_call(self, stream: int) -> None:
        """What comes late for a call that has ended is of no interest; but it must have been one."""
        if not stream & 1 or stream >= self._next:
            raise ValueError("a response to no request")

    def _continued(self, flags: int, stream: int, payload: bytes) -> None:
        block = self._block
        if block is None or stream != self._begun[0]:
            raise ValueError("a header block is continued that has not begun")
        block += payload
        self._spent += CONTINUED
        if len(block) + self._spent > LARGEST_BLOCK:
            raise ValueError("a header block has no end")
        if flags & END_HEADERS:
            self._block = None
            self._headers(*self._begun, bytes(block))

    def _settings(self, payload: bytes) -> None:
        for key, value in _SETTING.iter_unpack(payload):
            if key == MOST_STREAMS:
                self._most = value
            elif key == INITIAL_WINDOW:
                if value > LARGEST_WINDOW:
                    raise ValueError("the window is too large")
                self._initial = value
            elif key == HEAD_SIZE:
                self._largest_head = value
        self._reply(_FRAME.pack(0, 0, SETTINGS, ACK, 0))
        if not self.open and not self._leaving:
            self.open = True
            if not self.greeted.done():  # whoever waited for it may have cancelled it
                self.greeted.set_result(None)
            self._changed(self)

    def _confirm(self, size: int) -> None:
        self._unconfirmed += size
        if self._unconfirmed >= CONFIRMED:
            self._write(_FRAME.pack(0, 4, WINDOW_UPDATE, 0, 0) + _NUMBER.pack(self._unconfirmed))
            self._unconfirmed = 0

    def _data(self, answer: Answer, payload: bytes, flags: int) -> None:
        if answer.head is None:
            self._give_up(answer, Code.INTERNAL, "the response has no head")
            return
        if payload:
            answer.parts.append(payload)
            answer.size += len(payload)
        if answer.size > self._max_message + 5:
            answer.too_large(PREFIX.unpack(b"".join(answer.parts)[:5])[1], self._max_message)
            self._give_up(answer, answer.code, answer.message)
        elif flags & END_STREAM:
            self._fail(answer, Code.INTERNAL, "the response has no trailers")

    def _headers(self, stream: int, flags: int, block: bytes) -> None:
        answer = self._answers.get(stream)
        if answer is None:
            self._had_call(stream)
            return
        try:
            head = head_of(block)
        except TooLarge:
            message = f"the metadata of the response has more than {LARGEST_HEAD} bytes"
            self._give_up(answer, Code.RESOURCE_EXHAUSTED, message)
            return
        if flags & END_STREAM:
            self._judge(answer, head)
        elif answer.head is not None:
            self._give_up(answer, Code.INTERNAL, "the response has two heads")
        elif head.http == 200 and head.grpc:
            answer.head = head
        elif not 100 <= head.http < 200:
            self._reset(stream)  # what a proxy says of itself, for people
            self._judge(answer, head)

    def _judge(self, answer: Answer, tail: Head) -> None:
        answer.tail = tail
        answer.judge(self._max_message)
        self._done(answer)

    def _give_up(self, answer: Answer, code: Code, message: str) -> None:
        """Want no more of a response."""
        self._reset(answer.stream)
        self._fail(answer, code, message)

    def _was_reset(self, answer: Answer, reason: int) -> None:
        if reason == REFUSED_STREAM:
            self._refused(answer, "the peer did not take the call")
        else:
            self._fail(answer, _FROM_RESET.get(reason, Code.INTERNAL), f"the peer broke the call off (error {reason})")

    def _refused(self, answer: Answer, message: str) -> None:
        self._fail(answer, Code.UNAVAILABLE, message, sent=answer.head is not None)  # who answers has looked at it

    def _goes_away(self, last: int, reason: int) -> None:
        if reason == ENHANCE_YOUR_CALM:
            self.calm = True
        self._leave()
        for stream, answer in list(self._answers.items()):
            if stream > last & LAST_STREAM:
                self._refused(answer, "the peer goes away")


def _unpadded(payload: bytes) -> bytes:
    padding = payload[0]
    if padding >= len(payload):
        raise ValueError("there is more padding than payload")
    return payload[1 : len(payload) - padding]
