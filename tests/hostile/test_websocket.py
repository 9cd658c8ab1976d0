"""Hostile WebSockets: handshakes and frames written by hand."""

from __future__ import annotations

import asyncio
import logging
import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from tests.hostile.hall import Attacked, attacked, told_nothing, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

GREETING = (
    b"GET /v1/talk HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
CONTINUED, TEXT, BINARY, CLOSE, PING = 0, 1, 2, 8, 9
FIN, PACKED = 0x80, 0x40


def ws(kind: int, payload: bytes = b"", *, flags: int = FIN, masked: bool = True, length: int | None = None) -> bytes:
    """The bytes of a frame, masked with zeros as a client may."""
    size = len(payload) if length is None else length
    mask = 0x80 if masked else 0
    if size < 126:
        head = struct.pack(">BB", flags | kind, mask | size)
    elif size < 1 << 16:
        head = struct.pack(">BBH", flags | kind, mask | 126, size)
    else:
        head = struct.pack(">BBQ", flags | kind, mask | 127, size)
    return head + (bytes(4) if masked else b"") + payload


@asynccontextmanager
async def opened(
    port: int, extra: bytes = b"", greeting: bytes = GREETING
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]]:
    """A connection, and the head of the answer to the handshake."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(greeting + extra + b"\r\n")
        async with asyncio.timeout(5):
            head = await reader.readuntil(b"\r\n\r\n")
        yield reader, writer, head
    finally:
        writer.close()


async def rest(reader: asyncio.StreamReader) -> tuple[int | None, bytes]:
    """The code that the server closes with, and the messages before; None when it only breaks the connection off."""
    shown = b""
    async with asyncio.timeout(10):
        while True:
            try:
                kind, size = await reader.readexactly(2)
                if size > 125:
                    size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8), "big")
                payload = await reader.readexactly(size)
            except (asyncio.IncompleteReadError, ConnectionResetError):
                return None, shown
            if kind & 15 == CLOSE:
                return int.from_bytes(payload[:2], "big"), shown + payload[2:]
            shown += payload


HANDSHAKES = {
    "no key": GREETING.replace(b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n", b""),
    "a key that is none": GREETING.replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"!!"),
    "a version that nobody speaks": GREETING.replace(b"13", b"99"),
    "a page of elsewhere": GREETING + b"origin: https://evil.example\r\n",
    "a page of nowhere": GREETING + b"origin: null\r\n",
    "nothing there": GREETING.replace(b"/v1/talk", b"/v1/nothing"),
    "one answer only": GREETING.replace(b"/v1/talk", b"/v1/things/a"),
    "a timeout that is none": GREETING + b"grpc-timeout: -1S\r\n",
    "two hosts": GREETING + b"host: b\r\n",
    "a cookie of 10,000 letters": GREETING + b"cookie: " + b"c" * 10_000 + b"\r\n",
    "140 headers": GREETING + b"".join(b"x-%d: v\r\n" % number for number in range(140)),
    "a path of 9,000 letters": GREETING.replace(b"/v1/talk", b"/v1/talk?" + b"a" * 9000),
    "a body": GREETING + b"content-length: 2\r\n",
    "a body in chunks": GREETING + b"transfer-encoding: chunked\r\n",
}


@pytest.mark.parametrize("name", HANDSHAKES)
async def test_handshakes(hall: Attacked, log: pytest.LogCaptureFixture, name: str) -> None:
    """A status of HTTP that is a refusal, the end of the connection, and no WebSocket."""
    async with opened(hall.http_port, greeting=HANDSHAKES[name]) as (reader, _, head):
        assert head[:10] in (b"HTTP/1.1 4", b"HTTP/1.1 5")
        assert not head.startswith(b"HTTP/1.1 500")
        told_nothing(head.decode("latin-1"))
        await asyncio.wait_for(reader.read(), 5)
    assert hall.servicer.calls == 0
    assert errors(log) == []


def errors(log: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as if something were wrong here."""
    return [record.getMessage() for record in log.records if record.levelno >= logging.ERROR]


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, wbits=-15)
    return (packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]


BOMB = deflated(b" " * (100 << 20))
FRAMES = {
    "a frame that is not masked": (ws(TEXT, b"{}", masked=False), 1002),
    "bits that nobody agreed on": (ws(TEXT, b"{}", flags=FIN | 0x30), 1002),
    "a kind that does not exist": (ws(3, b"{}"), 1002),
    "a continuation of nothing": (ws(CONTINUED, b"{}"), 1002),
    "a message inside a message": (ws(TEXT, b"{", flags=0) + ws(TEXT, b"}"), 1002),
    "a ping in two parts": (ws(PING, b"a", flags=0), 1002),
    "a ping of 200 bytes": (ws(PING, b"a" * 200), 1002),
    "a close with half a code": (ws(CLOSE, b"\3"), 1002),
    "a close with a code of servers": (ws(CLOSE, struct.pack(">H", 1006)), 1002),
    "text that is no UTF-8": (ws(TEXT, b"\xc3\x28"), 1007),
    "a frame of 8 exabytes": (ws(BINARY, b"", length=2**62), 1009),
    "a frame a byte too large": (ws(TEXT, b"", length=(4 << 20) + 1), 1009),
    "parts that are too large together": (ws(TEXT, b"", flags=0) + ws(CONTINUED, b" " * (1 << 20), flags=0) * 5, 1009),
    "100,000 lists inside each other": (ws(TEXT, b"[" * 100_000), 4003),
    "no JSON": (ws(TEXT, b"{"), 4003),
    "a number for a text": (ws(TEXT, b'{"text":1}'), 4003),
    "a rule broken": (ws(TEXT, b'{"short":"xxxxxxxxxxx"}'), 4003),
}


@pytest.mark.parametrize("name", FRAMES)
async def test_frames(hall: Attacked, log: pytest.LogCaptureFixture, name: str) -> None:
    """The connection is closed with the code that says why, and the call is over."""
    raw, expected = FRAMES[name]
    async with opened(hall.http_port) as (reader, writer, head):
        assert head.startswith(b"HTTP/1.1 101 ")
        writer.write(raw)
        code, shown = await rest(reader)
        assert code in (expected, None if expected == 1009 else expected)  # which may be lost with what was not read
        told_nothing(shown.decode("latin-1"))
    await hall.idle()
    assert errors(log) == []


async def test_a_bomb(hall: Attacked) -> None:
    """A packed message is unpacked up to the limit, and not beyond."""
    async with opened(hall.http_port, b"sec-websocket-extensions: permessage-deflate\r\n") as (reader, writer, head):
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"permessage-deflate" in head.lower()
        writer.write(ws(TEXT, BOMB, flags=FIN | PACKED))
        assert (await rest(reader))[0] == 1009


async def test_a_message_in_ten_thousand_parts(hall: Attacked) -> None:
    """It is put together in time that grows with its length, or refused; others are served either way."""
    part = ws(CONTINUED, b" ", flags=0)
    async with opened(hall.http_port) as (reader, writer, _):
        writer.write(ws(TEXT, b"{", flags=0))
        for _ in range(10):
            writer.write(part * 1000)
            await writer.drain()
        writer.write(ws(CONTINUED, b"}") + ws(TEXT, b""))
        assert await rest(reader) == (1000, b"{}")
    assert hall.servicer.calls == 1


async def test_a_flood_of_pings(hall: Attacked) -> None:
    """They are answered as long as somebody reads the answers, and pile up nowhere."""
    async with opened(hall.http_port) as (_, writer, _):
        for _ in range(100):
            writer.write(ws(PING, b"a" * 100) * 100)
            await asyncio.sleep(0)
        await until(lambda: hall.servicer.calls)
    await hall.idle()


async def test_a_client_that_goes_without_a_word(hall: Attacked) -> None:
    """The call ends with its connection."""
    async with opened(hall.http_port) as (_, writer, _):
        await until(lambda: hall.servicer.calls)
        writer.transport.abort()
    await hall.idle()


async def test_more_sockets_than_connections() -> None:
    """They count as connections do."""
    async with AsyncExitStack() as exits:
        hall = await exits.enter_async_context(attacked(http={"port": 0, "limits": {"connections": 5}}))
        heads = [(await exits.enter_async_context(opened(hall.http_port)))[2] for _ in range(6)]
        assert [head[9:12] for head in heads] == [b"101"] * 5 + [b"503"]
