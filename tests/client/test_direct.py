"""Calls past grpc, against real servers: when they go that way, and when through grpc."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from google.protobuf.wrappers_pb2 import BytesValue

from framework import Method, Settings, connect
from framework.client.direct import PAUSE, Direct
from framework.client.dropin import Channel
from framework.policy import ClientSettings, KeepaliveSettings
from framework.rpc import UnaryReply

SAY = Method("direct.v1.Direct", "Say", BytesValue, BytesValue)


class Server:
    """A plain server of grpc.aio that notes who called.

    Attributes:
        agents: of the calls, in order.
    """

    def __init__(self) -> None:
        self.agents: list[str] = []
        self.wait: asyncio.Event | None = None
        self.waiting = asyncio.Event()

    async def say(self, request: BytesValue, context: Any) -> BytesValue:
        self.agents.append(str(dict(context.invocation_metadata())["user-agent"]))
        if self.wait is not None:
            self.waiting.set()
            await self.wait.wait()
        return request

    @property
    def ways(self) -> list[str]:
        """Which way the calls came."""
        return ["direct" if agent.startswith("grpc-python-framework/") else "grpc" for agent in self.agents]


@asynccontextmanager
async def serving(
    compression: grpc.Compression | None = None, age: int = 1_000_000, **settings: Any
) -> AsyncIterator[tuple[Server, Channel, grpc.aio.Server]]:
    """A server, and a channel to it that is connected both ways."""
    server = Server()
    handler = grpc.unary_unary_rpc_method_handler(server.say, BytesValue.FromString, BytesValue.SerializeToString)
    options = (
        *(("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)),
        *(("grpc.max_connection_age_ms", age), ("grpc.max_connection_age_grace_ms", 5000)),
    )
    bare = grpc.aio.server(options=options, compression=compression)
    bare.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SAY.service, {"Say": handler}),))
    port = bare.add_insecure_port("127.0.0.1:0")
    await bare.start()
    try:
        own = Settings(registry="none", client=ClientSettings(**settings))
        async with connect(f"127.0.0.1:{port}", settings=own) as channel:
            await channel.channel_ready()
            if own.client.direct:
                await until(lambda: way(channel).connection)
            yield server, channel, bare
    finally:
        await bare.stop(0)


def way(channel: Channel) -> Direct:
    """The direct way of a channel to one instance."""
    transport: Any = channel.pool.endpoints[0].transport
    assert isinstance(transport.direct, Direct)
    return transport.direct


async def until(condition: Callable[[], Any]) -> None:
    """Return once the condition holds, which it is about to."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(0.002)


def say(channel: Channel, size: int = 10, timeout: float = 10.0) -> UnaryReply[BytesValue]:
    return UnaryReply(channel.bind(SAY), SAY, BytesValue(value=bytes(size)), timeout)


async def test_a_call_goes_past_grpc() -> None:
    """Once there is a connection for that."""
    async with serving() as (server, channel, _):
        assert len((await say(channel)).value) == 10
        assert server.ways == ["direct"]


async def test_connections_that_age_lose_no_call() -> None:
    """A server that ends its connections again and again answers every call, once."""
    async with serving(age=100) as (server, channel, _):
        direct, ends, made = way(channel), 0, 0

        async def calls() -> None:
            nonlocal ends, made
            while ends < 5:
                before = direct.connection
                direct._again = 0.0  # a second has passed
                await say(channel)
                made += 1
                ends += before is not None and direct.connection is not before

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(calls())
        assert made == len(server.ways)
        assert "direct" in server.ways


async def test_it_can_be_turned_off() -> None:
    """`direct` in the settings of a client."""
    async with serving(direct=False) as (server, channel, _):
        await say(channel)
        assert server.ways == ["grpc"]


@pytest.mark.parametrize("direct", [True, False])
async def test_a_timeout_may_be_as_long_as_anybody_likes(direct: bool) -> None:
    """grpc itself takes one that is very long for one that has passed."""
    async with serving(direct=direct) as (server, channel, _):
        for timeout in (1e9, 1e30, 1e300, math.inf):
            assert len((await say(channel, timeout=timeout)).value) == 10
        assert server.ways == ["direct" if direct else "grpc"] * 4


async def test_a_large_request_goes_through_grpc() -> None:
    """What the server does not let be sent at once is not for this; the reply is just the same."""
    async with serving(max_message=16 << 20) as (server, channel, _):
        assert [len((await say(channel, size)).value) for size in (100_000, 12_000_000)] == [100_000, 12_000_000]
        assert server.ways == ["direct", "grpc"]


async def test_calls_go_through_grpc_while_there_is_no_connection() -> None:
    """And past it again when there is a new one."""
    async with serving() as (server, channel, _):
        direct = way(channel)
        assert direct.connection is not None
        direct.connection.close()
        await say(channel)
        direct._again = 0.0  # a second has passed
        await say(channel)
        await until(lambda: direct.connection)
        await say(channel)
        assert server.ways == ["grpc", "grpc", "direct"]


async def test_a_server_that_goes_finishes_what_it_has() -> None:
    """It says that it goes; the call that is out has its answer."""
    async with serving() as (server, channel, bare):
        server.wait = asyncio.Event()
        call = asyncio.ensure_future(say(channel))
        await server.waiting.wait()
        stopping = asyncio.ensure_future(bare.stop(5))
        await until(lambda: way(channel).connection is None)
        server.wait.set()
        assert len((await call).value) == 10
        await stopping
        assert server.ways == ["direct"]


@pytest.mark.parametrize(
    ("address", "reached"),
    [
        *(("127.0.0.1:1", True), ("[::1]:1", True), ("catalog.local:1", True)),
        *(("dns:///catalog:1", False), ("unix:/tmp/a", False), ("ipv4:127.0.0.1:1", False), ("catalog", False)),
    ],
)
def test_only_one_address_is_reached(address: str, reached: bool) -> None:
    """What grpc resolves by itself may be many."""
    assert Direct.reaches(address) == reached


async def test_a_server_may_pack_its_replies() -> None:
    """One of grpc's own that was told to does so whoever calls."""
    async with serving(compression=grpc.Compression.Gzip) as (server, channel, _):
        assert len((await say(channel, 10_000)).value) == 10_000
        assert server.ways == ["direct"]


class Silent:
    """What takes connections and says what it is told to; `greeting` are the bytes that it begins with."""

    def __init__(self, greeting: bytes) -> None:
        self.greeting = greeting
        self.taken: list[asyncio.StreamWriter] = []
        self.closed = 0

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.taken.append(writer)
        writer.write(self.greeting)
        with contextlib.suppress(ConnectionError):
            while await reader.read(1000):
                pass
        writer.close()
        self.closed += 1


@asynccontextmanager
async def silent(greeting: bytes, **more: Any) -> AsyncIterator[tuple[Silent, Direct]]:
    """Such a server, and what connects to it."""
    server = Silent(greeting)
    async with await asyncio.start_server(server.take, "127.0.0.1", 0) as listening:
        address = f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        more = {"connect_timeout": 0.05, "max_message": 1000, "keepalive": KeepaliveSettings(), **more}
        direct = Direct(address, **more)
        try:
            yield server, direct
        finally:
            await direct.aclose()
            await until(lambda: server.closed == len(server.taken))


SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
GOING = bytes((0, 0, 8, 7, 0, 0, 0, 0, 0))


async def test_a_server_that_says_nothing_gets_one_connection_at_a_time() -> None:
    """It is given up after the time to connect, and tried less and less often."""
    async with silent(b"") as (server, direct):
        direct.connect()
        await until(lambda: server.taken)
        for _ in range(10):
            direct._again = 0.0  # a long time has passed
            direct.connect()
        await until(lambda: server.closed)
        assert (len(server.taken), direct.connection, direct._connections) == (1, None, set())
        assert direct._pause == 2 * PAUSE
        await until(lambda: direct._task is not None and direct._task.done())
        direct._again = 0.0
        direct.connect()
        await until(lambda: len(server.taken) == 2)
        assert direct._pause == 4 * PAUSE


async def test_closing_closes_connections_that_only_finish_their_calls() -> None:
    """Whoever waits there is told, too."""
    async with silent(SETTINGS) as (server, direct):
        direct.connect()
        await until(lambda: direct.connection)
        leaving = direct.connection
        assert leaving is not None
        answer = leaving.begin(b"\x83", (), b"", None)
        assert answer is not None
        server.taken[0].write(GOING + (2**31 - 1).to_bytes(4, "big") + bytes(4))
        await until(lambda: direct.connection is None)
        direct._again = 0.0
        direct.connect()
        await until(lambda: direct.connection)
        await direct.aclose()
        await until(lambda: server.closed == 2)
        assert (answer.arrived.cancelled(), direct._connections) == (True, set())


async def test_a_server_that_is_asked_too_often_is_asked_half_as_often() -> None:
    """On the next connection; calls go this way still."""
    async with silent(SETTINGS + GOING + bytes(4) + (11).to_bytes(4, "big")) as (server, direct):
        before = direct._interval
        direct.connect()
        await until(lambda: server.closed)
        await until(lambda: not direct._connections)
        assert direct._interval == 2 * before
        server.greeting = SETTINGS
        direct._again = 0.0
        direct.connect()
        await until(lambda: direct.connection)


async def test_a_server_that_speaks_something_else_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """For good, and the log says so once."""
    async with silent(b"HTTP/1.1 400 Bad Request\r\n\r\n") as (server, direct):
        direct.connect()
        await until(lambda: server.closed)
        direct._again = 0.0
        direct.connect()
        await asyncio.sleep(0)
        assert (len(server.taken), direct.connection) == (1, None)
        ((_, _, text),) = caplog.record_tuples
        assert text.endswith("go through grpc from now on: a frame is too large")
