"""What a client may take up, crossed limit by limit on real connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import websockets

from tests.gateway.lab import OTHER, Shop, Town, logged

LIMITS = {"header": 2048, "body": 4096, "connections": 4, "head_timeout": 0.3, "body_timeout": 0.3, "keep_alive": 0.3}


class Raw:
    """A connection on which bytes are written by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, text: str) -> None:
        self.writer.write(text.encode())

    async def end(self, seconds: float = 5.0) -> str:
        """All that comes until the other side closes."""
        async with asyncio.timeout(seconds):
            return (await self.reader.read()).decode()

    async def head(self) -> str:
        """The head of a response."""
        async with asyncio.timeout(5):
            return (await self.reader.readuntil(b"\r\n\r\n")).decode()


@asynccontextmanager
async def raw(port: int) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Raw(reader, writer)
    finally:
        writer.close()


@pytest.fixture
async def port(town: Town) -> int:
    """Of a gateway with low limits."""
    await town.add("shop")
    return (await town.gateway(limits=LIMITS)).server.port


async def test_a_connection_without_a_request(port: int) -> None:
    """It is closed without a word."""
    async with raw(port) as connection:
        start = time.monotonic()
        assert await connection.end() == ""
        assert time.monotonic() - start >= 0.25


@pytest.mark.parametrize("before", ["", "GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n"])
async def test_a_head_that_comes_slowly(port: int, before: str) -> None:
    """Bytes that trickle do not help, on a new connection or on one that was used."""
    async with raw(port) as connection:
        connection.send(before)
        if before:
            assert (await connection.head()).startswith("HTTP/1.1 200 ")
            await connection.reader.readexactly(20)
        start = time.monotonic()

        async def trickle() -> None:
            connection.send("GET /v1/things/lamp HTTP/1.1\r\n")
            while True:
                connection.send("x-a: b\r\n")
                await asyncio.sleep(0.05)

        trickling = asyncio.create_task(trickle())
        assert (await connection.end()).startswith("HTTP/1.1 408 ")
        assert 0.25 <= time.monotonic() - start < 3
        trickling.cancel()


async def test_empty_lines_for_ever(port: int) -> None:
    """What is no head yet does not keep a used connection open either."""
    async with raw(port) as connection:
        connection.send("GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
        await connection.head()
        await connection.reader.readexactly(20)

        async def trickle() -> None:
            while True:
                connection.send("\r\n")
                await asyncio.sleep(0.05)

        trickling = asyncio.create_task(trickle())
        await connection.end()
        trickling.cancel()


@pytest.mark.parametrize("header", ["x-a: " + "a" * 3000 + "\r\n", "x-a: " + "a" * 3000, "x-a: b\r\n" * 400])
async def test_a_head_that_is_too_large(port: int, header: str) -> None:
    """One header or many, ended or not."""
    async with raw(port) as connection:
        connection.send(f"GET /v1/things/lamp HTTP/1.1\r\nhost: a\r\n{header}\r\n")
        answer = await connection.end()
        assert answer.startswith("HTTP/1.1 431 ")
        assert "larger than 2048 bytes" in answer


async def test_a_head_that_is_not_too_large(port: int) -> None:
    """A body in the same piece does not count."""
    async with raw(port) as connection:
        body = '{"name": "%s"}' % ("a" * 3000)
        connection.send(f"POST /v1/things HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n{body}")
        assert (await connection.head()).startswith("HTTP/1.1 200 ")


@pytest.mark.parametrize("length", ["content-length: 5000", "transfer-encoding: chunked"])
async def test_a_body_that_is_too_large(port: int, length: str) -> None:
    """Refused by what it says of itself, or when it is."""
    async with raw(port) as connection:
        connection.send(f"POST /v1/things HTTP/1.1\r\nhost: a\r\n{length}\r\n\r\n")
        if "chunked" in length:
            connection.send(f"{5000:x}\r\n{' ' * 5000}\r\n0\r\n\r\n")
        else:
            connection.send(" " * 5000)
        head = await connection.head()
        assert head.startswith("HTTP/1.1 413 ")


async def test_a_body_that_comes_slowly(port: int) -> None:
    """It has to be there in time as well."""
    async with raw(port) as connection:
        connection.send("POST /v1/things HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{")
        assert (await connection.head()).startswith("HTTP/1.1 408 ")


async def test_a_request_that_takes_longer(town: Town) -> None:
    """The limits are of what the client does; an answer may take its time, a WebSocket be silent."""
    shop, _ = await town.add("shop")
    running = await town.gateway(limits=LIMITS)
    async with (
        raw(running.server.port) as connection,
        websockets.connect(f"ws://{running.address}/v1/talk") as socket,
    ):
        connection.send("GET /v1/things/slow HTTP/1.1\r\nhost: a\r\n\r\nGET /v1/things/lamp HTTP/1.1\r\n")
        await shop.entered.wait()
        await asyncio.sleep(0.7)
        await socket.send("{}")
        assert await socket.recv() == '{"number":1}'
        shop.go_on.set()
        assert (await connection.head()).startswith("HTTP/1.1 200 ")


async def test_too_many_connections(port: int) -> None:
    """One more than allowed is told so; the others go on."""
    first = [raw(port) for _ in range(4)]
    held = [await one.__aenter__() for one in first]
    held[0].send("GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
    await held[0].head()
    async with raw(port) as connection:
        assert (await connection.end()).startswith("HTTP/1.1 503 ")
    for one in first:
        await one.__aexit__(None, None, None)
    async with asyncio.timeout(5):
        while True:
            async with raw(port) as connection:
                connection.send("GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
                if (await connection.end()).startswith("HTTP/1.1 200 "):
                    break


async def test_keep_alive_ends(port: int) -> None:
    """A used connection that stays silent is closed."""
    async with raw(port) as connection:
        connection.send("GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
        assert (await connection.end()).startswith("HTTP/1.1 200 ")


async def test_what_is_no_http(port: int) -> None:
    """400, and no traceback."""
    async with raw(port) as connection:
        connection.send("\x16\x03\x01 hello\r\n\r\n")
        assert (await connection.end()).startswith("HTTP/1.1 400 ")


async def test_a_large_frame(town: Town) -> None:
    """A WebSocket whose message is too large is closed."""
    await town.add("shop")
    running = await town.gateway(limits=LIMITS)
    async with websockets.connect(f"ws://{running.address}/v1/talk") as socket:
        await socket.send(" " * 5000)
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


async def test_rate_limits(town: Town) -> None:
    """Each caller has a bucket, and single methods have their own; Retry-After says when to come back."""
    await town.add("shop")
    running = await town.gateway(
        rate_limit={"rate": 0.01, "burst": 3}, rate_limits={"lab.Shop/Buy": {"rate": 0.01}}, rate_key="x-api-key"
    )
    client = await town.client(running)
    ada, eve = {"x-api-key": "ada"}, {"x-api-key": "eve"}
    assert [(await client.post("/v1/things", json={}, headers=ada)).status_code for _ in range(2)] == [200, 429]
    assert (await client.get("/v1/things/lamp", headers=ada)).status_code == 200
    refused = await client.get("/v1/things/lamp", headers=ada)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "100")
    assert refused.json()["message"].startswith("too many requests: the limit is 0.01 a second; try again in ")
    assert (await client.get("/v1/things/lamp", headers=eve)).status_code == 200
    connect = await client.post("/lab.Shop/Get", json={}, headers={**ada, "connect-protocol-version": "1"})
    assert (connect.status_code, connect.json()["code"]) == (429, "resource_exhausted")
    assert connect.headers["retry-after"] == "100"


async def test_names_that_are_made_up(town: Town) -> None:
    """A new name for every call helps no more than ten callers at the address would have; nobody else is hurt."""
    await town.add("shop")
    running = await town.gateway(rate_limit={"rate": 0.001, "burst": 2}, rate_key="x-tenant", trusted=["127.0.0.1"])
    client = await town.client(running)

    async def status(name: str, address: str = "1.1.1.1") -> int:
        headers = {"x-tenant": name, "x-forwarded-for": address}
        return (await client.get("/v1/things/lamp", headers=headers)).status_code

    assert [await status("hasty") for _ in range(30)] == [200, 200, *[429] * 28]
    assert [await status("n" * number) for number in range(300, 320)] == [*[200] * 18, 429, 429]
    assert [await status("ada", "2.2.2.2") for _ in range(3)] == [200, 200, 429]


async def test_limits_of_what_is_not_there(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    """A misspelt method of a service that is served is named once; what may still come is not doubted."""
    names = ("lab.Shop/Gett", "lab.Shop.Buy", "lab.Shop/*", "lab.Shop", "lab.Shop/Get", "other.Bank/Pey", "Watch")
    await town.add("shop")
    await town.gateway(rate_limits={name: {"rate": 100} for name in names})
    await town.add("bank", OTHER, Shop(OTHER, "other.Bank"))
    await logged(caplog, "other.Bank/Pey")
    assert [record.getMessage() for record in caplog.records if "rate limit" in record.message] == [
        "there is a rate limit for lab.Shop/Gett, which lab.Shop does not have. Did you mean Get?",
        "there is a rate limit for lab.Shop.Buy, which is no service. Did you mean lab.Shop/Buy?",
        "there is a rate limit for other.Bank/Pey, which other.Bank does not have. Did you mean Pay?",
    ]


async def test_a_limit_of_all_that_a_service_has(town: Town) -> None:
    """It may be written as a rule of access is."""
    await town.add("shop")
    client = await town.client(await town.gateway(rate_limits={"lab.Shop/*": {"rate": 0.001}}))
    assert [(await client.get(f"/v1/things/{name}")).status_code for name in "ab"] == [200, 429]
