"""`connect`: from a target's text to calls on real connections."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from framework import (
    Cancelled,
    ClientSettings,
    ConfigError,
    Context,
    Drain,
    RpcError,
    ServerSettings,
    Service,
    Settings,
    Unavailable,
    connect,
)
from framework.server.server import Server
from framework.testing import Network
from tests.invariants.conftest import ARITIES, NO_WAIT, Arity, collect, open_world, soon, until
from tests.invariants.echo import Blocked, Echo, EchoClient, text

NOT_REGISTERED = Settings(registry="none", server=ServerSettings(drain=NO_WAIT))
DEAD = "127.0.0.1:1"


@asynccontextmanager
async def serving(name: str = "echo", **options: Any) -> AsyncIterator[tuple[Server, list[str]]]:
    """A server, and the requests it was sent."""
    received: list[str] = []

    async def behave(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        async for request in requests:
            received.append(request.value)
            yield text(f"{name} {request.value}")

    service = Service(name, servicers=[Echo(behave)], settings=NOT_REGISTERED, **options)
    async with service.running() as server:
        yield server, received


async def ask(channel: Any, request: str = "a", timeout: float = 5.0) -> str:
    return (await EchoClient(channel).UnaryUnary(text(request), timeout=timeout)).value


@pytest.mark.parametrize(
    "target", ["127.0.0.1:{port}", "localhost:{port}", "static://127.0.0.1:{port}", "dns:///localhost:{port}"]
)
async def test_targets(target: str) -> None:
    """An address, a list of addresses, and names that grpc itself resolves."""
    async with serving() as (server, _), connect(target.format(port=server.port), settings=Settings()) as channel:
        assert await ask(channel) == "echo a"


async def test_list_of_addresses() -> None:
    """Calls go to every instance of a list."""
    async with (
        serving("one") as (one, first),
        serving("two") as (two, second),
        connect(f"static://{one.address},{two.address}", settings=Settings()) as channel,
    ):
        for _ in range(40):
            await ask(channel)
    assert (len(first) + len(second), bool(first), bool(second)) == (40, True, True)


@pytest.mark.parametrize("balancer", ["peak_ewma", "round_robin"])
async def test_dead_instance_among_two(balancer: Any) -> None:
    """A dead instance beside a living one costs no call."""
    settings = Settings(client=ClientSettings(balancer=balancer))
    async with (
        serving() as (server, received),
        connect(f"static://{DEAD},{server.address}", settings=settings) as channel,
    ):
        for number in range(30):
            assert await ask(channel, str(number)) == f"echo {number}"
    assert received == [str(number) for number in range(30)]


async def test_instance_that_stops_between_calls() -> None:
    """An instance that goes away costs no call, when none was in flight on it."""
    async with serving("two") as (two, _):
        async with serving("one") as (one, _):
            channel = connect(f"static://{one.address},{two.address}", settings=Settings())
            first = Counter([await ask(channel) for _ in range(40)])
        after = Counter([await ask(channel) for _ in range(40)])
        await channel.close()
    assert set(first) == {"one a", "two a"}
    assert after == {"two a": 40}


async def test_all_dead() -> None:
    """Only dead instances: UNAVAILABLE soon, with their addresses, and provably not sent."""
    async with connect(f"static://{DEAD},127.0.0.1:2", settings=Settings()) as channel:
        with pytest.raises(Unavailable) as caught:
            await soon(ask(channel, timeout=30))
    assert DEAD in caught.value.message
    assert "127.0.0.1:2" in caught.value.message
    assert (caught.value.remote, caught.value.sent) == (False, False)


async def test_instance_that_comes_up_later() -> None:
    """A channel that found nobody finds the instance once it is there."""
    port = _free_port()
    async with connect(f"127.0.0.1:{port}", settings=Settings()) as channel:
        with pytest.raises(Unavailable):
            await ask(channel)
        settings = ServerSettings(port=port, drain=NO_WAIT)
        async with Service("echo", servicers=[Echo()]).running(Settings(registry="none", server=settings)):
            async with asyncio.timeout(8):
                while True:
                    try:
                        assert await ask(channel) == "a"
                    except Unavailable:
                        await asyncio.sleep(0.05)
                    else:
                        break


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


async def test_default_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare name is looked up in the default registry: that of the settings, or of FRAMEWORK_REGISTRY."""
    registry = f"sqlite:///{tmp_path}/registry.db"
    settings = Settings(registry=registry, server=ServerSettings(drain=NO_WAIT))
    async with Service("echo", servicers=[Echo()]).running(settings):
        async with connect("echo", settings=settings) as channel:
            assert await ask(channel) == "a"
        async with connect(f"{registry}#echo", settings=Settings()) as channel:
            assert await ask(channel) == "a"
        monkeypatch.setenv("FRAMEWORK_REGISTRY", registry)
        async with connect("echo") as channel:
            assert await ask(channel) == "a"


async def test_nobody_in_the_registry(tmp_path: Path) -> None:
    """A name that nobody has registered is UNAVAILABLE, and says which service in which registry."""
    registry = f"sqlite:///{tmp_path}/registry.db"
    async with connect("nobody", settings=Settings(registry=registry)) as channel:
        with pytest.raises(Unavailable, match=r"no instance of nobody in .*registry\.db"):
            await ask(channel)


async def test_instances_come_and_go(tmp_path: Path) -> None:
    """A channel follows the registry."""
    settings = Settings(registry=f"sqlite:///{tmp_path}/registry.db", server=ServerSettings(drain=NO_WAIT))

    async def answered(channel: Any, expected: set[str]) -> None:
        async with asyncio.timeout(8):
            while {await ask(channel) for _ in range(20)} != expected:  # noqa: ASYNC110  # nothing tells a client
                await asyncio.sleep(0.05)

    async with _instance("one").running(settings), connect("echo", settings=settings) as channel:
        await answered(channel, {"one"})
        async with _instance("two").running(settings):
            await answered(channel, {"one", "two"})
        await answered(channel, {"one"})


def _instance(name: str) -> Service:
    async def behave(requests: Any, context: Context) -> AsyncIterator[StringValue]:
        yield text(name)

    return Service("echo", servicers=[Echo(behave)])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("", "Target '' is not understood. Write catalog (in the default registry), host:port, "),
        ("http://catalog", "Target 'http://catalog' is not understood. Write catalog"),
        ("consul://127.0.0.1:8500", "Target 'consul://127.0.0.1:8500' is not understood. The name of the service is"),
        ("static://", "'static://' lists no address: write static://host:port,host:port."),
        ("static://here", "'here' in 'static://here' is not an address: write host:port or [v6]:port."),
    ],
)
async def test_target_that_cannot_be_understood(target: str, message: str) -> None:
    """A mistake in a target says what can be written."""
    with pytest.raises(ConfigError) as caught:
        connect(target, settings=Settings())
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("wire", ["grpc", "memory"])
@pytest.mark.parametrize("arity", ARITIES.values(), ids=ARITIES)
async def test_closing_cancels_what_is_in_flight(wire: str, arity: Arity) -> None:
    """Closing a channel ends its calls at once, here and at the server."""
    blocked = Blocked(replies=1 if arity.server_streaming else 0)
    async with open_world(wire, arity, behave=blocked) as world:
        call = asyncio.ensure_future(world.call())
        await soon(blocked.waits.wait())
        await soon(world.channel.close())
        await asyncio.wait([call], timeout=5)
        assert call.done()
        assert isinstance(call.exception(), Cancelled)
        await soon(blocked.ended.wait())


class Proxy:
    """Passes a TCP connection on until it is cut."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []
        self._server: Any = None

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()
        self._server.close()
        await self._server.wait_closed()

    async def die(self) -> None:
        """Break every connection, and take no new ones."""
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """Break every connection, as when the machine dies."""
        for writer in self._writers:
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, other_writer]
        await asyncio.gather(_copy(reader, other_writer), _copy(other_reader, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("arity", ARITIES.values(), ids=ARITIES)
async def test_connection_that_breaks_in_mid_call(arity: Arity) -> None:
    """A call that loses its connection is UNAVAILABLE: not an answer of the peer's, and perhaps received."""
    blocked = Blocked(replies=1 if arity.server_streaming else 0)
    service = Service("echo", servicers=[Echo(blocked)], settings=NOT_REGISTERED)
    async with (
        service.running() as server,
        Proxy(server.port) as proxy,
        connect(f"127.0.0.1:{proxy.port}", settings=Settings()) as channel,
    ):
        argument: Any = [text("a")] if arity.client_streaming else text("a")
        call = asyncio.ensure_future(collect(getattr(EchoClient(channel), arity.method)(argument)))
        await soon(blocked.waits.wait())
        proxy.cut()
        with pytest.raises(Unavailable) as caught:
            await soon(call)
        await soon(blocked.ended.wait())
    assert (caught.value.remote, caught.value.sent, caught.value.attempts) == (False, True, 1)


@pytest.mark.parametrize("arity", ARITIES.values(), ids=ARITIES)
async def test_machine_that_dies_in_memory(arity: Arity) -> None:
    """`Hosted.disconnect` does what a dying machine does on a real network."""
    blocked = Blocked(replies=1 if arity.server_streaming else 0)
    async with Network() as network:
        hosted = network.add(Service("echo", servicers=[Echo(blocked)]))
        client = EchoClient(network.connect("echo"))
        argument: Any = [text("a")] if arity.client_streaming else text("a")
        call = asyncio.ensure_future(collect(getattr(client, arity.method)(argument)))
        await soon(blocked.waits.wait())
        hosted.disconnect()
        with pytest.raises(Unavailable) as caught:
            await soon(call)
        await soon(blocked.ended.wait())
        assert (caught.value.remote, caught.value.sent, caught.value.attempts) == (False, True, 1)
        with pytest.raises(Unavailable) as again:
            await soon(client.UnaryUnary(text("a")))
        assert not again.value.sent


async def test_rolling_restart(tmp_path: Path) -> None:
    """Two instances are replaced one after the other while calls are made: none fails."""
    drain = Drain(delay=0.4, grace=5.0, streams=1.0)
    settings = Settings(registry=f"sqlite:///{tmp_path}/registry.db", server=ServerSettings(drain=drain))
    answers: Counter[str] = Counter()
    stop = asyncio.Event()

    async def calling(channel: Any) -> None:
        while not stop.is_set():
            try:
                answers[await ask(channel)] += 1
            except RpcError as error:
                answers[repr(error)] += 1
            await asyncio.sleep(0.002)

    async with AsyncExitStack() as first, AsyncExitStack() as second:
        await first.enter_async_context(_instance("old 1").running(settings))
        await second.enter_async_context(_instance("old 2").running(settings))
        async with connect("echo", settings=settings) as channel:
            callers = [asyncio.create_task(calling(channel)) for _ in range(4)]
            await until(lambda: len(answers) == 2)
            await first.aclose()
            async with _instance("new 1").running(settings):
                await until(lambda: len(answers) == 3)
                await second.aclose()
                async with _instance("new 2").running(settings):
                    await until(lambda: len(answers) == 4)
                    stop.set()
                    await asyncio.gather(*callers)
    assert set(answers) == {"old 1", "old 2", "new 1", "new 2"}


async def test_interceptors_of_grpc() -> None:
    """A user's own grpc.aio client interceptors are called, for every call, and see its metadata."""
    seen: list[bytes | str] = []

    class Noting(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
            seen.append(details.method)
            details.metadata.add("my-key", "1")
            return await continuation(details, request)

    metadata: list[Any] = []

    async def behave(requests: Any, context: Context) -> AsyncIterator[StringValue]:
        metadata.extend(pair for pair in context.invocation_metadata() if pair[0] == "my-key")
        yield text("a")

    service = Service("echo", servicers=[Echo(behave)], settings=NOT_REGISTERED)
    async with (
        service.running() as server,
        connect(server.address, settings=Settings(), grpc_interceptors=[Noting()]) as channel,
    ):
        assert await ask(channel) == "a"
    assert [path.decode() if isinstance(path, bytes) else path for path in seen] == ["/echo.v1.Echo/UnaryUnary"]
    assert [tuple(pair) for pair in metadata] == [("my-key", "1")]


async def test_lost_call_is_not_sent_again() -> None:
    """A call whose connection breaks is not made again elsewhere: it may have been received."""
    blocked = Blocked()
    service = Service("echo", servicers=[Echo(blocked)], settings=NOT_REGISTERED)
    async with (
        service.running() as server,
        serving() as (other, received),
        Proxy(server.port) as proxy,
        connect(f"static://127.0.0.1:{proxy.port},{other.address}", settings=Settings()) as channel,
    ):
        calls: list[asyncio.Future[str]] = []
        while not blocked.waits.is_set():
            calls.append(asyncio.ensure_future(ask(channel, str(len(calls)))))
            await asyncio.wait(calls[-1:], timeout=0.2)
        proxy.cut()
        await soon(asyncio.wait(calls))
    [lost] = [str(number) for number, call in enumerate(calls) if isinstance(call.exception(), Unavailable)]
    assert received == [str(number) for number in range(len(calls)) if str(number) != lost]


async def test_machine_that_dies_under_load() -> None:
    """Of two instances one dies while many call: only calls in flight on it fail, and nobody is served twice."""
    received: Counter[str] = Counter()

    async def slow(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        async for request in requests:
            received[request.value] += 1
            await asyncio.sleep(0.01)
            yield request

    def service() -> Service:
        return Service("echo", servicers=[Echo(slow)], settings=NOT_REGISTERED)

    failed: list[RpcError] = []
    stop = asyncio.Event()

    async def calling(channel: Any, name: int) -> int:
        count = 0
        while not stop.is_set():
            count += 1
            try:
                await ask(channel, f"{name} {count}")
            except RpcError as error:
                failed.append(error)
        return count

    async with (
        service().running() as one,
        service().running() as two,
        Proxy(one.port) as proxy,
        connect(f"static://127.0.0.1:{proxy.port},{two.address}", settings=Settings()) as channel,
    ):
        callers = [asyncio.create_task(calling(channel, name)) for name in range(20)]
        await until(lambda: len(one.pipeline.calls) > 1 and len(two.pipeline.calls) > 1)
        await proxy.die()
        await asyncio.sleep(0.5)
        stop.set()
        made = sum(await asyncio.gather(*callers))
    assert {type(error) for error in failed} <= {Unavailable}
    assert len(failed) <= 20
    assert set(received.values()) == {1}
    assert made > 100


async def test_state_of_the_channel() -> None:
    """The channel tells its state as grpc's own does."""
    async with serving() as (server, _), connect(server.address, settings=Settings()) as channel:
        assert channel.get_state() is grpc.ChannelConnectivity.IDLE
        changed = asyncio.ensure_future(channel.wait_for_state_change(grpc.ChannelConnectivity.IDLE))
        await asyncio.sleep(0)
        channel.get_state(try_to_connect=True)
        await soon(channel.channel_ready())
        await soon(changed)
        assert channel.get_state() is grpc.ChannelConnectivity.READY
