"""HTTP/2 that no library writes: floods, broken frames, and connections that take up room."""

from __future__ import annotations

import asyncio
import re
import struct

import pytest

from framework import Code
from tests.hostile.frames import (
    CONTINUATION,
    DATA,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)
from tests.hostile.hall import Attacked, attacked, frames, message, thing, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

ECHO, TALK = "/hall.Hall/Echo", "/hall.Hall/Talk"
OK = message(thing()(text="a").SerializeToString())
HANG = message(thing()(text="hang").SerializeToString())
PRIORITY, PUSH_PROMISE = 2, 5


async def test_rapid_reset(hall: Attacked) -> None:
    """Two thousand calls that are cancelled as soon as they are made: none is left, and others are served meanwhile."""
    async with frames(hall.port) as hostile, frames(hall.port) as other:
        for number in range(2000):
            stream = 2 * number + 1
            hostile.force(ECHO, stream)
            hostile.write(frame(DATA, HANG, stream, 1) + frame(RST_STREAM, struct.pack(">I", 8), stream))
            if number % 100 == 0:
                await hostile.drain()
                assert (await other.call(ECHO, OK)).status == Code.OK
    await hall.idle()


async def test_a_flood_of_pings(hall: Attacked) -> None:
    """Who pings without end is cut off."""
    async with frames(hall.port) as connection:
        for _ in range(2000):
            connection.write(frame(PING, b"12345678"))
        await connection.end()
        assert connection.closed


async def test_a_flood_of_settings_that_nobody_reads(hall: Attacked) -> None:
    """Each would have to be confirmed; the confirmations do not pile up."""
    async with frames(hall.port) as connection:
        for _ in range(200):
            connection.write(frame(SETTINGS, struct.pack(">HI", 4, 65535)) * 500)
            await asyncio.sleep(0)


@pytest.mark.parametrize("kind", [DATA, HEADERS, WINDOW_UPDATE, 99], ids=["data", "trailers", "window", "unknown"])
async def test_a_flood_of_small_frames(hall: Attacked, kind: int) -> None:
    """Frames with nothing in them cost nobody else anything."""
    payload = {WINDOW_UPDATE: struct.pack(">I", 1)}.get(kind, b"")
    async with frames(hall.port) as connection:
        stream = connection.open(TALK)
        for _ in range(50):
            connection.write(frame(kind, payload, stream) * 400)
            await connection.drain()


async def test_more_calls_than_a_connection_may_have() -> None:
    """Those beyond are refused with the code that says they were not begun; so it is for a client that cannot count."""
    async with attacked(limits={"streams": 20}) as hall, frames(hall.port) as connection:
        assert connection.settings[3] == 20
        for stream in range(1, 81, 2):
            connection.force(TALK, stream)
            connection.send(stream, OK, end=False)
        await until(lambda: len(hall.server.pipeline.calls) == 20)
        refused = re.compile(rb"\x00\x00\x04\x03\x00....\x00\x00\x00\x07", re.DOTALL)  # RST_STREAM, REFUSED_STREAM
        raw = b""
        while len(refused.findall(raw)) < 20:
            raw += await asyncio.wait_for(connection.reader.read(65536), 5)
        assert len(hall.server.pipeline.calls) == 20


async def test_more_calls_from_a_client_that_never_listens() -> None:
    """The limit holds before it is confirmed, too, and the connection is closed when it never is."""
    async with (
        attacked(limits={"streams": 20, "handshake": "500ms"}) as hall,
        frames(hall.port, greet=False) as connection,
    ):
        connection.write(PREFACE + frame(SETTINGS))
        for stream in range(1, 121, 2):
            connection.force(TALK, stream)
        await until(lambda: len(hall.server.pipeline.calls) == 20)
        while await asyncio.wait_for(connection.reader.read(65536), 5):
            pass
        await hall.idle()


async def test_more_connections_than_allowed() -> None:
    """Those beyond are closed; when one of the others goes there is room again."""
    async with attacked(limits={"connections": 4}) as hall:
        async with frames(hall.port) as one, frames(hall.port), frames(hall.port), frames(hall.port):
            async with frames(hall.port) as fifth:
                await fifth.end()
                assert fifth.closed
            assert (await one.call(ECHO, OK)).status == Code.OK
        async with asyncio.timeout(5):
            while True:  # grpc counts down a moment after a connection is closed
                async with frames(hall.port) as again:
                    if not again.closed and (await again.call(ECHO, OK)).status == Code.OK:
                        break


GREETINGS = {
    "nothing": b"",
    "half a preface": PREFACE[:12],
    "the preface alone": PREFACE,
    "HTTP/1.1": b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "a TLS hello": bytes.fromhex("16030100a5010000a10303") + bytes(160),
    "noise": bytes(range(256)) * 8,
    "a proxy": b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n",
}


@pytest.mark.parametrize("name", GREETINGS)
async def test_connections_that_do_not_speak_http2(name: str) -> None:
    """They are closed, at once or when the time for a greeting is over."""
    async with attacked(limits={"handshake": "300ms"}) as hall:
        async with frames(hall.port, greet=False) as connection:
            connection.write(GREETINGS[name])
            while await asyncio.wait_for(connection.reader.read(65536), 5):
                pass
        assert hall.servicer.calls == 0


BROKEN = {
    "data on the connection": frame(DATA, OK, 0),
    "data on a stream that was never opened": frame(DATA, OK, 99),
    "a head on an even stream": frame(HEADERS, b"\x82", 2, 4),
    "a head on the connection": frame(HEADERS, b"\x82", 0, 4),
    "a frame of 16 MB": frame(DATA, b"", 1)[:0] + b"\xff\xff\xff\0\0\0\0\0\1" + bytes(20_000),
    "a head that goes on where none began": frame(CONTINUATION, b"\x82", 1, 4),
    "padding longer than the frame": frame(HEADERS, b"\xff\x82", 1, 4 | 8),
    "an index beyond the table": frame(HEADERS, b"\xff\xff\xff\xff\x0f", 1, 4),
    "a number without an end": frame(HEADERS, b"\x7f" + b"\xff" * 20, 1, 4),
    "a table of 4 GB": frame(HEADERS, b"\x3f\xe1\xff\xff\xff\x0f", 1, 4),
    "a string longer than its head": frame(HEADERS, b"\0\x7f\xff\xff\x07abc", 1, 4),
    "settings of five bytes": frame(SETTINGS, bytes(5)),
    "settings on a stream": frame(SETTINGS, b"", 1),
    "a window of 4 GB in the settings": frame(SETTINGS, struct.pack(">HI", 4, 2**32 - 1)),
    "frames of no size in the settings": frame(SETTINGS, struct.pack(">HI", 5, 0)),
    "a ping of three bytes": frame(PING, b"abc"),
    "a ping on a stream": frame(PING, b"12345678", 1),
    "a window that grows by nothing": frame(WINDOW_UPDATE, struct.pack(">I", 0), 0),
    "a window that overflows": frame(WINDOW_UPDATE, struct.pack(">I", 2**31 - 1), 0) * 4,
    "a reset of no stream": frame(RST_STREAM, struct.pack(">I", 8), 0),
    "a goodbye that is too short": frame(GOAWAY, b"abc"),
    "a stream that depends on itself": frame(PRIORITY, struct.pack(">IB", 1, 0), 1),
    "a promise of a client": frame(PUSH_PROMISE, struct.pack(">I", 2) + b"\x82", 1, 4),
    "another head before the first has ended": frame(HEADERS, b"\x82", 1) + frame(HEADERS, b"\x82", 3, 4),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_broken_frames(hall: Attacked, name: str) -> None:
    """No handler runs, and the connection ends or goes on; whichever, others are served and nothing is left."""
    async with frames(hall.port) as connection, frames(hall.port) as other:
        connection.write(BROKEN[name])
        await connection.drain()
        assert (await other.call(ECHO, OK)).status == Code.OK
    assert hall.servicer.calls == 1


async def test_data_behind_the_end(hall: Attacked) -> None:
    """What comes after a stream's last frame is not read; the call before it is answered."""
    async with frames(hall.port) as connection:
        stream = connection.open(ECHO)
        connection.send(stream, OK)
        connection.write(frame(DATA, OK, stream) * 10)
        await connection.answer(stream)
    assert hall.servicer.calls <= 1


async def test_a_frame_that_comes_byte_by_byte(hall: Attacked) -> None:
    """It is a call like any other."""
    async with frames(hall.port) as connection:
        stream = connection.open(ECHO)
        for byte in frame(DATA, OK, stream, 1):
            connection.write(bytes([byte]))
            await connection.drain()
        assert (await connection.answer(stream)).status == Code.OK
