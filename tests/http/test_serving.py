"""Over real sockets: uvicorn in front, and a service over real gRPC behind."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import pytest_asyncio
import uvicorn
import websockets

from framework import Settings, connect
from framework.config import ServerSettings
from framework.http.app import HttpApp
from framework.http.server import HttpServer
from framework.server.pipeline import Pipeline
from framework.server.wire import listen
from framework.web import HttpLimits
from tests.http.driver import loopback
from tests.http.library import SERVICE, Library, application

SOON = 5.0
"""Seconds after which something that should happen at once is said not to happen."""


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """The address of uvicorn with an application."""
    listening = loopback()
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    task = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def gateway(library: Library) -> AsyncIterator[HttpApp]:
    """An application in front of a service over gRPC."""
    pipeline = Pipeline()
    pipeline.add(library)
    server, port = await listen(pipeline, ServerSettings())
    try:
        async with connect(f"127.0.0.1:{port}", settings=Settings()) as channel:
            yield HttpApp([SERVICE], channel.bind)
    finally:
        await server.stop(None)


@pytest_asyncio.fixture(params=["local", "grpc"])
async def address(request: pytest.FixtureRequest, library: Library) -> AsyncIterator[str]:
    if request.param == "local":
        async with serving(application(library)) as where:
            yield where
    else:
        async with gateway(library) as app, serving(app) as where:
            yield where


async def test_a_call(address: str) -> None:
    """A request and its answer, and one after another on the same connection."""
    async with httpx.AsyncClient(base_url=f"http://{address}") as client:
        for _ in range(3):
            response = await client.post("/v1/shelves/1/books", json={"title": "Café"})
            assert response.json() == {"name": "shelves/1/books/new", "title": "Café"}
        missing = await client.get("/v1/books/fail")
        assert (missing.status_code, missing.json()["details"][0]["reason"]) == (404, "LOST")
        assert missing.headers["grpc-trailer-x-why"] == "fire"
        assert (await client.head("/v1/books/x")).headers["content-type"] == "application/json"


async def test_compression(address: str) -> None:
    """What a client says that it accepts is what it gets, and can read."""
    async with httpx.AsyncClient(base_url=f"http://{address}", headers={"accept-encoding": "br"}) as client:
        response = await client.get("/v1/books/x?big=true")
        assert response.headers["content-encoding"] == "br"


async def test_a_stream_is_read_as_it_comes(library: Library, address: str) -> None:
    """The first message is there while the handler waits, and leaving cancels it."""
    async with (
        httpx.AsyncClient() as client,
        client.stream("GET", f"http://{address}/v1/shelves/slow:watch") as response,
    ):
        first = await anext(response.aiter_lines())
        assert json.loads(first)["title"] == "book 1"
        assert not library.cancelled.is_set()
    await asyncio.wait_for(library.cancelled.wait(), SOON)


async def test_the_client_goes(library: Library, address: str) -> None:
    """A call is cancelled when its client closes the connection."""
    reader, writer = await asyncio.open_connection(*address.split(":"))
    writer.write(f"GET /v1/books/hang HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
    await asyncio.wait_for(library.entered.wait(), SOON)
    writer.close()
    await asyncio.wait_for(library.cancelled.wait(), SOON)
    del reader


async def test_a_client_that_does_not_read(library: Library, address: str) -> None:
    """A client that does not read holds the handler up, and what is kept for it stays small."""
    reader, writer = await asyncio.open_connection(*address.split(":"), limit=1024)
    writer.write(f"GET /v1/shelves/{'x' * 1000}:watch?count=1000000 HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
    await asyncio.wait_for(library.entered.wait(), SOON)
    before = -1
    while before != len(library.seen):  # it comes to rest
        before = len(library.seen)
        await asyncio.sleep(0.3)
    assert 0 < before < 50_000
    writer.close()
    await asyncio.wait_for(library.cancelled.wait(), SOON)
    del reader


async def test_an_upload_is_served_as_it_comes(library: Library, address: str) -> None:
    """The handler has the first message before the second is sent, and breaking off is no end."""
    head = f"POST /v1/rooms/r1/lines HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
    reader, writer = await asyncio.open_connection(*address.split(":"))
    writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + b'd\r\n{"text": "a"}\r\n')
    await asyncio.wait_for(library.entered.wait(), SOON)
    writer.write(b'd\r\n{"text": "b"}\r\n0\r\n\r\n')
    answer = await asyncio.wait_for(reader.readuntil(b"}"), SOON)
    assert answer.endswith(b'{"texts":["a","b"],"room":"r1"}')
    writer.close()
    library.seen.clear()
    library.entered.clear()
    reader, writer = await asyncio.open_connection(*address.split(":"))
    writer.write(f"{head}Content-Length: 1000\r\n\r\n".encode() + b'{"text": "a"}')
    await asyncio.wait_for(library.entered.wait(), SOON)
    writer.close()
    for _ in range(20):
        await asyncio.sleep(0.01)
    assert library.seen == ["a"]


async def test_a_websocket(library: Library, address: str) -> None:
    """Both directions, a failure with its code, and leaving."""
    async with websockets.connect(f"ws://{address}/v1/rooms/r1:chat") as socket:
        await socket.send('{"text": "a"}')
        assert json.loads(await socket.recv()) == {"room": "r1", "text": "A", "number": 1}
        await socket.send('{"text": "boom"}')
        assert json.loads(await socket.recv())["error"]["code"] == 3
        with pytest.raises(websockets.ConnectionClosed):
            await socket.recv()
        assert (socket.close_code, socket.close_reason) == (4003, "no such word")
    library.cancelled.clear()
    async with websockets.connect(f"ws://{address}/v1/rooms/r1:chat") as socket:
        await socket.send('{"text": "a"}')
        await socket.recv()
    await asyncio.wait_for(library.cancelled.wait(), SOON)
    with pytest.raises(websockets.InvalidStatus) as refused:
        await websockets.connect(f"ws://{address}/nope").__aenter__()
    assert refused.value.response.status_code == 404


async def test_a_deadline(address: str) -> None:
    """The deadline of a caller holds from end to end."""
    async with httpx.AsyncClient(base_url=f"http://{address}") as client:
        response = await client.get("/v1/books/hang", headers={"x-server-timeout": "0.1"})
        assert (response.status_code, response.json()["code"]) == (504, 4)


async def test_a_body_that_is_too_large(library: Library) -> None:
    """The answer arrives although the client still sends."""
    async with serving(application(library, max_message=100_000)) as address, httpx.AsyncClient() as client:
        response = await client.post(f"http://{address}/v1/shelves/1/books", json={"title": "x" * 10_000_000})
        assert (response.status_code, response.json()["code"]) == (413, 8)


async def test_an_answer_in_parts_is_sent_at_once(library: Library) -> None:
    """Nagle's delay is off, whichever loop serves: no part waits for the client to confirm the one before."""
    with HttpServer(application(library), "127.0.0.1", 0, HttpLimits(), set())._listen() as listening:
        assert listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


async def test_who_speaks_http_1_0_gets_no_chunks(library: Library) -> None:
    """The end of the connection ends a stream; an answer with a length has one."""
    server = HttpServer(application(library), "127.0.0.1", 0, HttpLimits(), set())
    await server.start()
    try:
        for path, expected in (
            ("/v1/shelves/1:watch?count=2", 2),
            ("/v1/books/x", 1),
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(f"GET {path} HTTP/1.0\r\nconnection: keep-alive\r\n\r\n".encode())
            head, _, body = (await asyncio.wait_for(reader.read(), SOON)).partition(b"\r\n\r\n")
            writer.close()
            assert (b"transfer-encoding" in head, b"\r\nconnection: close" in head) == (False, True)
            assert [bool(json.loads(line)) for line in body.splitlines()] == [True] * expected
    finally:
        await server.stop()
