"""Hostile requests over HTTP/1.1, written byte by byte: framing, heads, and clients that take their time."""

from __future__ import annotations

import asyncio
import json
import re
import socket

import pytest

from tests.hostile.hall import Attacked, attacked, told_nothing, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODY = b'{"text":"a"}'
HEAD = b"POST /v1/things HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\n"
GET = b"GET /v1/things/a HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
CHUNKS = b"c\r\n" + BODY + b"\r\n0\r\n\r\n"
LENGTH = b"content-length: 12\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"


async def exchange(port: int, raw: bytes, seconds: float = 5.0) -> tuple[list[int], str]:
    """Send bytes; the statuses that come back until the server closes, and all of it as text."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(raw)
        try:
            async with asyncio.timeout(seconds):
                back = await reader.read()
        except ConnectionResetError:
            back = b""
    finally:
        writer.close()
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", back)], back.decode("latin-1")


REFUSED = {
    # Smuggling: what another server in front may have framed in another way
    "a length and chunks": (HEAD + CHUNKED + b"content-length: 4\r\n\r\n" + CHUNKS, 400),
    "chunks and a length": (HEAD + b"content-length: 4\r\n" + CHUNKED + b"\r\n" + CHUNKS, 400),
    "two lengths": (HEAD + LENGTH + b"content-length: 5\r\n\r\n" + BODY, 400),
    "one length twice": (HEAD + LENGTH + LENGTH + b"\r\n" + BODY, 400),
    "a list of lengths": (HEAD + b"content-length: 12, 12\r\n\r\n" + BODY, 400),
    "a length with a sign": (HEAD + b"content-length: +12\r\n\r\n" + BODY, 400),
    "a length below nothing": (HEAD + b"content-length: -1\r\n\r\n" + BODY, 400),
    "a length in hexadecimal": (HEAD + b"content-length: 0xc\r\n\r\n" + BODY, 400),
    "a length with a gap": (HEAD + b"content-length: 1 2\r\n\r\n" + BODY, 400),
    "a length beyond 64 bits": (HEAD + b"content-length: 99999999999999999999999\r\n\r\n" + BODY, 400),
    "an empty length": (HEAD + b"content-length: \r\n\r\n" + BODY, 400),
    "a length beyond the limit": (HEAD + b"content-length: 9999999999\r\n\r\n" + BODY, 413),
    "nearly chunked": (HEAD + b"transfer-encoding: xchunked\r\n\r\n" + CHUNKS, 400),
    "chunked, and not": (HEAD + b"transfer-encoding: chunked, identity\r\n\r\n" + CHUNKS, 400),
    "packed, and in chunks": (HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n" + CHUNKS, 501),
    "chunked twice": (HEAD + CHUNKED + CHUNKED + b"\r\n" + CHUNKS, 400),
    "chunked behind a vertical tab": (HEAD + b"transfer-encoding: \x0bchunked\r\n\r\n" + CHUNKS, 400),
    "a space before the colon": (HEAD + b"transfer-encoding : chunked\r\n\r\n" + CHUNKS, 400),
    "chunks in HTTP/1.0": ((HEAD + CHUNKED + b"\r\n" + CHUNKS).replace(b"HTTP/1.1", b"HTTP/1.0"), 400),
    "a chunk below nothing": (HEAD + CHUNKED + b"\r\n-1\r\n", 400),
    "a chunk beyond 64 bits": (HEAD + CHUNKED + b"\r\nfffffffffffffffff\r\n" + BODY, 400),
    "a chunk of 0xc": (HEAD + CHUNKED + b"\r\n0x" + CHUNKS, 400),
    "chunks that end with LF": (HEAD + CHUNKED + b"\r\n" + CHUNKS.replace(b"\r\n", b"\n"), 400),
    "a chunk longer than it says": (HEAD + CHUNKED + b"\r\n5\r\n" + BODY + b"\r\n0\r\n\r\n", 400),
    "a length in the trailer": (HEAD + CHUNKED + b"\r\nc\r\n" + BODY + b"\r\n0\r\ncontent-length: 50\r\n\r\n", 400),
    # Heads
    "a header that is folded": (GET + b"x-a: b\r\n c: d\r\n\r\n", 400),
    "a header without a colon": (GET + b"x-a\r\n\r\n", 400),
    "a header without a name": (GET + b": v\r\n\r\n", 400),
    "a name with a space": (GET + b"x a: v\r\n\r\n", 400),
    "a CR in a value": (GET + b"x-a: a\rx-b: c\r\n\r\n", 400),
    "an LF for a line end": (GET + b"x-a: a\nx-b: c\r\n\r\n", 400),
    "a NUL in a value": (GET + b"x-a: a\0b\r\n\r\n", 400),
    "a NUL in a name": (GET + b"x\0a: b\r\n\r\n", 400),
    "letters with accents in a name": (GET + "x-\u00e9: b\r\n\r\n".encode(), 400),
    "no host": (b"GET /v1/things/a HTTP/1.1\r\n\r\n", 400),
    "two hosts": (GET + b"host: b\r\n\r\n", 400),
    "a host that is none": (GET.replace(b"host: a", b"host: a b/<script>") + b"\r\n", 400),
    "HTTP/0.9": (b"GET /v1/things/a\r\n\r\n", 505),
    "HTTP/2.0 in words": (GET.replace(b"HTTP/1.1", b"HTTP/2.0") + b"\r\n", 505),
    "HTTP/9.9": (GET.replace(b"HTTP/1.1", b"HTTP/9.9") + b"\r\n", 400),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "a tunnel": (b"CONNECT evil.example:443 HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    "TRACE with a cookie": (b"TRACE" + GET[3:] + b"cookie: hunter2\r\n\r\n", 405),
    "a method of 10,000 letters": (b"A" * 10_000 + GET[3:] + b"\r\n", 400),
    "a method with a brace": (b"G{T" + GET[3:] + b"\r\n", 400),
    "a path with a space": (GET.replace(b"/a ", b"/a b ") + b"\r\n", 400),
    "a path with a NUL": (GET.replace(b"/a ", b"/a\0b ") + b"\r\n", 400),
    "a path with a tab": (GET.replace(b"/a ", b"/a\tb ") + b"\r\n", 400),
    "a path that is not encoded": (GET.replace(b"/a ", "/\u00e9 ".encode()) + b"\r\n", 400),
    "noise": (bytes(range(256)) * 4, 400),
    "a TLS hello": (bytes.fromhex("16030100a5010000a10303") + bytes(160), 400),
    "mail": (b"EHLO evil.example\r\n", 400),
    "a path of 40,000 letters": (GET.replace(b"/a ", b"/" + b"a" * 40_000 + b" ") + b"\r\n", 431),
    "a header of 40,000 letters": (GET + b"x-a: " + b"a" * 40_000 + b"\r\n\r\n", 431),
    "10,000 headers": (GET + b"".join(b"x-%d: v\r\n" % number for number in range(10_000)) + b"\r\n", 431),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_refused(hall: Attacked, name: str) -> None:
    """One answer that says so, and the connection is closed: whatever comes behind is no request."""
    raw, expected = REFUSED[name]
    smuggled = b"GET /v1/things/smuggled HTTP/1.1\r\nhost: a\r\n\r\n"
    statuses, shown = await exchange(hall.http_port, raw + smuggled * (expected != 405))
    assert statuses == [expected]
    head, _, body = shown.partition("\r\n\r\n")
    assert json.loads(body)["message"]
    assert re.search(r"\r\nx-request-id: [!-~]+", head)
    told_nothing(shown)
    assert hall.servicer.calls == 0


SERVED = {
    "an upgrade to HTTP/2": GET + b"upgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n",
    "a value that is no ASCII": GET + b"x-a: \xff\xfe\r\n\r\n",
    "empty lines first": b"\r\n\r\n" + GET + b"\r\n",
    "a chunk with 20,000 letters beside it": HEAD + CHUNKED + b"\r\nc;" + b"x" * 20_000 + CHUNKS[1:],
    "an address of somebody else": GET.replace(b" /v1", b" http://evil.example/v1") + b"\r\n",
    "hop by hop what is not": HEAD.replace(b"close", b"close, content-length, host") + LENGTH + b"\r\n" + BODY,
}


@pytest.mark.parametrize("name", SERVED)
async def test_served_as_what_it_is(hall: Attacked, name: str) -> None:
    """What the standard allows is one request, and nothing more comes of it; odd values do not reach the service."""
    statuses, _ = await exchange(hall.http_port, SERVED[name])
    assert (statuses, hall.servicer.calls) == ([200], 1)
    assert "x-a" not in dict(hall.servicer.metadata)


async def test_trailers_are_no_headers(hall: Attacked) -> None:
    """They come when those who check headers have looked, and tell nothing."""
    reader, writer = await asyncio.open_connection("127.0.0.1", hall.http_port)
    writer.write(HEAD + CHUNKED + b"expect: 100-continue\r\n\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"  # so that it is being served
    writer.write(CHUNKS[:-2] + b"authorization: late\r\nx-forwarded-for: 6.6.6.6\r\nx-request-id: late\r\n\r\n")
    assert b" 200 OK\r\n" in await asyncio.wait_for(reader.read(), 5)
    writer.close()
    told = dict(hall.servicer.metadata)
    assert ("authorization" in told, told["x-forwarded-for"]) == (False, "127.0.0.1")
    assert "late" not in hall.servicer.ids


ENDLESS = {
    "trailers": (b"0\r\n", b"a: b\r\n" * 1000),
    "one trailer": (b"0\r\na: ", b"b" * 6000),
    "what is said of a chunk": (b"1;", b"c" * 6000),
}


@pytest.mark.parametrize("name", ENDLESS)
async def test_what_stands_beside_a_body_for_ever(hall: Attacked, name: str) -> None:
    """It ends with the connection, and is not kept."""
    begun, more = ENDLESS[name]
    _, writer = await asyncio.open_connection("127.0.0.1", hall.http_port)
    writer.write(HEAD + CHUNKED + b"\r\n" + CHUNKS[:-5] + begun)

    async def send() -> None:
        for _ in range(5000):
            writer.write(more)
            await writer.drain()

    with pytest.raises(ConnectionError):
        await asyncio.wait_for(send(), 10)
    writer.close()
    assert hall.servicer.calls == 0


FORGED = {
    "an id with a line end in code": ("x-request-id", "a%0aERROR"),
    "an id of 10,000 letters": ("x-request-id", "i" * 10_000),
    "an id with a space": ("x-request-id", "a b"),
    "an address in front of ours": ("x-forwarded-for", "127.0.0.1"),
    "metadata of gRPC": ("grpc-metadata-grpc-timeout", "1S"),
    "metadata of this framework": ("grpc-metadata-framework-origin", "server"),
    "an address as metadata": ("grpc-metadata-x-forwarded-for", "127.0.0.1"),
    "an address of a proxy as metadata": ("grpc-metadata-x-real-ip", "6.6.6.6"),
    "a chain of proxies as metadata": ("grpc-metadata-forwarded", "for=6.6.6.6"),
    "an id as metadata": ("grpc-metadata-x-request-id", "made up"),
    "a token as metadata": ("grpc-metadata-authorization", "Bearer made up"),
    "a key as metadata": ("Grpc-Metadata-X-Api-Key", "made up"),
    "a line end in metadata": ("grpc-metadata-x-a", "a\tb"),
}


@pytest.mark.parametrize("name", FORGED)
async def test_forged_headers(hall: Attacked, name: str) -> None:
    """What is ours to say is not taken from a caller."""
    header, value = FORGED[name]
    answer = await hall.http.get("/v1/things/a", headers={header: value})
    assert answer.status_code == 200
    told = {key: str(found) for key, found in hall.servicer.metadata if key != "user-agent"}
    forged = {"grpc-timeout", "framework-origin", "x-a", "x-real-ip", "forwarded", "authorization", "x-api-key"}
    assert forged & set(told) == set()
    assert [key for key, _ in hall.servicer.metadata].count("x-request-id") == 1
    assert told.pop("x-request-id") == answer.headers["x-request-id"] != "made up"
    assert told["x-forwarded-for"] == "127.0.0.1"  # the one that is true
    assert len(answer.headers["x-request-id"]) <= 128
    assert answer.headers["x-request-id"] != value or "%" in value


async def test_a_trace_that_is_none(hall: Attacked) -> None:
    """It is passed on or dropped, and the request is served."""
    trace = {"traceparent": "00-" + "z" * 500, "tracestate": "=" * 500, "baggage": "a=b;" * 100}
    assert (await hall.http.get("/v1/things/a", headers=trace)).status_code == 200


async def test_a_head_that_trickles() -> None:
    """Who takes longer than the time for a head is told so, and has no connection any more."""
    async with attacked(http={"port": 0, "limits": {"head_timeout": "300ms"}}) as hall:
        statuses, shown = await exchange(hall.http_port, GET + b"x-slow: ")
        assert statuses == [408]
        told_nothing(shown)


@pytest.mark.parametrize("raw", [HEAD + LENGTH + b"\r\n{", HEAD + CHUNKED + b"\r\nc\r\n{"], ids=["length", "chunks"])
async def test_a_body_that_trickles(raw: bytes) -> None:
    """The same for a body, whether or not its length is known."""
    async with attacked(http={"port": 0, "limits": {"body_timeout": "300ms"}}) as hall:
        statuses, shown = await exchange(hall.http_port, raw)
        assert (statuses, hall.servicer.calls) == ([408], 0)
        told_nothing(shown)


async def test_connections_that_say_nothing() -> None:
    """They are closed when the time for a head is over, and nobody was kept out by them for longer."""
    async with attacked(http={"port": 0, "limits": {"head_timeout": "300ms", "connections": 20}}) as hall:
        silent = [await asyncio.open_connection("127.0.0.1", hall.http_port) for _ in range(20)]
        statuses, _ = await exchange(hall.http_port, GET + b"\r\n")
        assert statuses == [503]
        for reader, writer in silent:
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the kernel does not watch that here")
async def test_a_client_that_reads_nothing() -> None:
    """It has no connection any more, and its call ends; one who waits for what there is not yet keeps both."""
    async with attacked(http={"port": 0, "limits": {"write_timeout": "200ms"}}) as hall:
        waiting, waiter = await asyncio.open_connection("127.0.0.1", hall.http_port)
        waiter.write(b"GET /v1/count?number=1&text=hang HTTP/1.1\r\nhost: a\r\n\r\n")
        await asyncio.wait_for(waiting.readuntil(b"\n\r\n"), 5)
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", hall.http_port))
            deaf.sendall(b"GET /v1/count?number=2000000000 HTTP/1.1\r\nhost: a\r\n\r\n")
            await until(lambda: hall.servicer.calls == 2)
            await until(lambda: len(hall.server.pipeline.calls) == 1)
        assert not waiting.at_eof()
        waiter.close()


async def test_a_hundred_requests_in_one_piece(hall: Attacked) -> None:
    """They are answered one after another."""
    once = b"GET /v1/things/a HTTP/1.1\r\nhost: a\r\n\r\n"
    statuses, _ = await exchange(hall.http_port, once * 100 + GET + b"\r\n")
    assert (statuses, hall.servicer.calls) == ([200] * 101, 101)


async def test_a_client_that_goes_in_mid_answer(hall: Attacked) -> None:
    """A stream that nobody reads ends when its reader has gone."""
    _, writer = await asyncio.open_connection("127.0.0.1", hall.http_port)
    writer.write(b"GET /v1/count?number=2000000000 HTTP/1.1\r\nhost: a\r\n\r\n")
    await until(lambda: hall.servicer.calls)
    await asyncio.sleep(0.1)  # in which the socket fills
    writer.transport.abort()
    await hall.idle()


@pytest.mark.parametrize("path", ["/v1/things/bug", "/v1/count?text=bug", "/openapi.json"])
async def test_what_goes_wrong_inside_stays_inside(hall: Attacked, path: str) -> None:
    """An id and a status; and the document tells nothing that is not in the proto."""
    answer = await hall.http.get(path)
    assert answer.status_code == (500 if path.endswith("things/bug") else 200)
    told_nothing(answer.text, str(answer.headers))
