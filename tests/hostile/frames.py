"""HTTP/2 by hand: what no client of gRPC would send."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
PATIENCE = 5.0


def frame(kind: int, payload: bytes = b"", stream: int = 0, flags: int = 0) -> bytes:
    """The bytes of a frame, whatever its kind."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def message(payload: bytes, *, packed: bool = False, length: int | None = None) -> bytes:
    """A message as gRPC frames it."""
    return struct.pack(">BI", packed, len(payload) if length is None else length) + payload


class Answer:
    """What came back on a stream.

    Attributes:
        headers: of the response and of its end, together.
        reset: the code of RST_STREAM, None when there was none.
    """

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.data = b""
        self.reset: int | None = None
        self.ended = False

    @property
    def status(self) -> int | None:
        """Of gRPC."""
        found = self.headers.get("grpc-status")
        return None if found is None else int(found)

    @property
    def shown(self) -> str:
        """All that the caller can read."""
        return f"{self.headers} {self.data!r}"


class Frames:
    """A connection to a gRPC server. `read` until something has happened; `write` sends bytes as they are.

    Attributes:
        away: what the server said with GOAWAY: the code and its text.
        closed: the server has closed the connection.
        settings: what it said of itself, by number.
        acks: pings that it has answered.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        config = h2.config.H2Configuration(
            header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.h2 = h2.connection.H2Connection(config)
        self.reader = reader
        self.writer = writer
        self.answers: dict[int, Answer] = {}
        self.away: tuple[int, bytes] | None = None
        self.closed = False
        self.settings: dict[int, int] = {}
        self.acks = 0

    def greet(self) -> None:
        """Say what a client says first."""
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(1 << 30)
        self.flush()

    def flush(self) -> None:
        self.write(self.h2.data_to_send())

    def write(self, raw: bytes) -> None:
        """Send bytes; a connection that is lost is seen by whoever reads."""
        if not self.writer.is_closing():
            self.writer.write(raw)

    async def drain(self) -> None:
        """Wait until what was written has left, or cannot any more."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self.writer.drain()
        except OSError:
            self.closed = True

    def open(self, path: str, headers: Iterable[tuple[Any, Any]] = (), *, end: bool = False, **changes: Any) -> int:
        """Begin a call; returns its stream. `changes` replace pseudo headers and others, None leaves one out."""
        usual: dict[str, Any] = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "localhost",
            "content-type": "application/grpc",
            "te": "trailers",
        }
        usual.update({f":{name}" if f":{name}" in usual else name.replace("_", "-"): v for name, v in changes.items()})
        stream = self.h2.get_next_available_stream_id()
        given = [pair for pair in usual.items() if pair[1] is not None]
        self.h2.send_headers(stream, [*given, *headers], end_stream=end)
        self.flush()
        return stream

    def force(self, path: str, stream: int, *more: bytes, flags: int = 4) -> None:
        """Begin a call, whatever the server has said of limits; `more` is what its head goes on with."""
        head = ((":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost"))
        block = hpack.Encoder().encode((*head, ("te", "trailers"), ("content-type", "application/grpc")))
        self.write(frame(HEADERS, block, stream, flags))
        for part in more:
            self.write(frame(CONTINUATION, part, stream))

    def send(self, stream: int, data: bytes, *, end: bool = True) -> None:
        """Data on a stream, in frames that are small enough, whatever the server's window."""
        size = 16384
        parts = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
        for number, part in enumerate(parts):
            self.write(frame(DATA, part, stream, 1 if end and number == len(parts) - 1 else 0))

    async def call(self, path: str, data: bytes, headers: Iterable[tuple[Any, Any]] = (), **changes: Any) -> Answer:
        """A whole call, and how it ended."""
        stream = self.open(path, headers, **changes)
        self.send(stream, data)
        return await self.answer(stream)

    async def answer(self, stream: int) -> Answer:
        """What comes back on a stream, when it has ended or the connection has."""
        await self.until(lambda: self.answers.get(stream, Answer()).ended)
        return self.answers.get(stream, Answer())

    async def until(self, condition: Any, seconds: float = PATIENCE) -> bool:
        """Read until the condition holds or the connection has ended; whether it holds."""
        async with asyncio.timeout(seconds):
            while not condition() and not self.closed:
                await self._read()
        return bool(condition())

    async def end(self, seconds: float = PATIENCE) -> None:
        """Read until the server has closed the connection."""
        await self.until(lambda: False, seconds)

    async def _read(self) -> None:
        try:
            raw = await self.reader.read(1 << 16)
        except OSError:
            raw = b""
        if not raw:
            self.closed = True
            return
        try:
            events = self.h2.receive_data(raw)
        except h2.exceptions.ProtocolError:  # it answered to what this side does not know it has sent
            return
        for event in events:
            self._take(event)
        self.flush()

    def _take(self, event: Any) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            self.away = (int(event.error_code or 0), event.additional_data or b"")
        elif isinstance(event, h2.events.RemoteSettingsChanged):
            self.settings.update({int(key): one.new_value for key, one in event.changed_settings.items()})
        elif isinstance(event, h2.events.PingAckReceived):
            self.acks += 1
        elif (stream := getattr(event, "stream_id", None)) is not None:
            answer = self.answers.setdefault(stream, Answer())
            if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                answer.headers.update((str(key), str(value)) for key, value in event.headers or ())
            elif isinstance(event, h2.events.DataReceived):
                answer.data += event.data or b""
                self.h2.acknowledge_received_data(event.flow_controlled_length or 0, stream)
            elif isinstance(event, h2.events.StreamReset):
                answer.reset, answer.ended = int(event.error_code), True
            elif isinstance(event, h2.events.StreamEnded):
                answer.ended = True


@asynccontextmanager
async def frames(port: int, *, greet: bool = True, rude: bool = False) -> AsyncIterator[Frames]:
    """A connection to a gRPC server of this machine; a rude one does not listen to what the server says of limits."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    connection = Frames(reader, writer)
    try:
        if greet:
            connection.greet()
            if not rude:
                await connection.until(lambda: connection.settings)
        yield connection
    finally:
        writer.close()
