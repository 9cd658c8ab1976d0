"""The network in memory: instances come, fail and go, and lifespans are entered and left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from framework import ClientSettings, Context, FrameworkError, RpcError, Service, Settings, Unavailable
from framework.call import Call, Handler, Method, Reply
from framework.testing import Network, run_virtual
from tests.invariants.echo import Behaviour, Blocked, Echo, EchoClient, EchoMethods, never, text

ROUND_ROBIN = ClientSettings(balancer="round_robin")


def saying(value: str) -> Behaviour:
    """Answers this to everything."""

    async def behave(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        yield text(value)

    return behave


def echo(behave: Behaviour | str = "hello") -> Service:
    """An instance of the service `echo`."""
    return Service("echo", servicers=[Echo(saying(behave) if isinstance(behave, str) else behave)])


Lifespan = Callable[[Service], AbstractAsyncContextManager[None]]


def telling(log: list[str], name: str = "", behave: Behaviour | None = None) -> Lifespan:
    """A lifespan that writes down when it is entered and left."""

    @asynccontextmanager
    async def lifespan(service: Service) -> AsyncIterator[None]:
        log.append(f"enter {name}".strip())
        service.add(Echo(behave or saying("hello")))
        yield
        log.append(f"leave {name}".strip())

    return lifespan


async def say(client: EchoClient, times: int = 1) -> str:
    """What is answered to so many calls, joined."""
    return "".join([(await client.UnaryUnary(text("x"), timeout=5)).value for _ in range(times)])


def open_database() -> None:
    """What a lifespan may fail with."""
    raise LookupError("no database")


async def test_call(network: Network) -> None:
    """A client reaches a servicer, and the peer is the instance's name."""
    hosted = network.add(echo())
    reply = EchoClient(network.connect("echo")).UnaryUnary(text("x"))
    assert (await reply).value == "hello"
    assert reply.call.peer == hosted.name == "memory:echo-1"


async def test_two_instances_share_the_calls(network: Network) -> None:
    """A second Service of the same name is a second instance of it."""
    network.add(echo("a"))
    network.add(echo("b"))
    network.add(Service("other", servicers=[Echo(saying("c"))]))
    client = EchoClient(network.connect("echo", settings=ROUND_ROBIN))
    assert sorted(await say(client, 8)) == list("aaaabbbb")


async def test_one_service_is_one_instance(network: Network) -> None:
    """The same object twice is refused where it is served, with the reason."""
    service = echo()
    network.add(service)
    twin = network.add(service)
    await asyncio.sleep(0)
    with pytest.raises(FrameworkError, match="echo is running already in this process"):
        await twin.stop()


async def test_nobody(network: Network) -> None:
    """A service without instances is UNAVAILABLE at once, and the message names it and the network."""
    with pytest.raises(Unavailable) as caught:
        await say(EchoClient(network.connect("echo")))
    assert caught.value.message == "no instance of echo in the network in memory"
    assert caught.value.sent is False


async def test_client_before_its_service(network: Network) -> None:
    """Connecting does not need an instance; calling does."""
    client = EchoClient(network.connect("echo"))
    network.add(echo())
    assert await say(client) == "hello"


async def test_instance_added_later(network: Network) -> None:
    """A service that has come up is there for the next call."""
    client = EchoClient(network.connect("echo"))
    with pytest.raises(Unavailable):
        await say(client)
    network.add(echo())
    assert await say(client) == "hello"


async def test_stopped_instance_is_gone(network: Network) -> None:
    """The others have the calls from then on; after the last there is nobody."""
    first, second = network.add(echo("a")), network.add(echo("b"))
    client = EchoClient(network.connect("echo"))
    await say(client, 4)
    await first.stop()
    assert await say(client, 4) == "bbbb"
    await second.stop()
    with pytest.raises(Unavailable, match="no instance of echo"):
        await say(client)


async def test_disconnected_instance_comes_back(network: Network) -> None:
    """Calls go to the other one meanwhile, and to both when it is back; its lifespan is not left in between."""
    log: list[str] = []
    network.add(echo("b"))
    hosted = network.add(Service("echo", lifespan=telling(log, behave=saying("a"))))
    client = EchoClient(network.connect("echo", settings=ROUND_ROBIN))
    assert sorted(await say(client, 4)) == list("aabb")
    hosted.disconnect()
    assert repr(hosted) == "<Hosted memory:echo-2 unreachable>"
    assert await say(client, 4) == "bbbb"
    hosted.reconnect()
    assert sorted(await say(client, 4)) == list("aabb")
    assert log == ["enter"]


async def test_disconnection_ends_calls_in_flight(network: Network) -> None:
    """At once, with UNAVAILABLE: it was sent, nobody knows what became of it; the handler is cancelled."""
    blocked = Blocked()
    hosted = network.add(echo(blocked))
    call = asyncio.create_task(say(EchoClient(network.connect("echo"))))
    await blocked.waits.wait()
    hosted.disconnect()
    with pytest.raises(Unavailable) as caught:
        await call
    assert (caught.value.sent, caught.value.remote) == (True, False)
    await asyncio.wait_for(blocked.ended.wait(), 5)
    assert isinstance(blocked.error, asyncio.CancelledError)


async def test_nobody_reachable(network: Network) -> None:
    """When the only instance cannot be reached, a call fails without being sent."""
    network.add(echo()).disconnect()
    with pytest.raises(Unavailable) as caught:
        await say(EchoClient(network.connect("echo")))
    assert caught.value.sent is False


async def test_lifespans_are_entered_and_left() -> None:
    """Each is entered before the first call to it is served, and left with the network, even one that fails."""
    log: list[str] = []

    async def main() -> None:
        async with Network() as network:
            network.add(Service("echo", lifespan=telling(log, "a")))
            network.add(Service("other", lifespan=telling(log, "b")))
            log.append(await say(EchoClient(network.connect("echo"))))
            raise LookupError("the test failed")

    with pytest.raises(LookupError, match="the test failed"):
        await main()
    assert log[:3] == ["enter a", "enter b", "hello"]
    assert sorted(log[3:]) == ["leave a", "leave b"]


@pytest.mark.virtual_time
async def test_call_waits_for_a_slow_lifespan(network: Network) -> None:
    """An instance that takes a minute to start serves a call that has the time to wait for it."""

    @asynccontextmanager
    async def lifespan(service: Service) -> AsyncIterator[None]:
        await asyncio.sleep(60)
        service.add(Echo(saying("at last")))
        yield

    network.add(Service("echo", lifespan=lifespan))
    reply = await EchoClient(network.connect("echo")).UnaryUnary(text("x"), timeout=90)
    assert (reply.value, asyncio.get_running_loop().time()) == ("at last", 60.0)


async def test_error_of_a_lifespan_is_raised_where_it_shows() -> None:
    """By a call to the service, and at the end of the network: as it is, so a test shows the cause."""

    @asynccontextmanager
    async def lifespan(service: Service) -> AsyncIterator[None]:
        open_database()
        yield

    network = Network()
    hosted = network.add(Service("echo", lifespan=lifespan))
    with pytest.raises(LookupError, match="no database"):
        await say(EchoClient(network.connect("echo")))
    assert repr(hosted.error) == repr(LookupError("no database"))
    with pytest.raises(LookupError, match="no database"):
        await network.aclose()


async def test_error_of_one_lifespan_leaves_no_other_open() -> None:
    """One that cannot be left does not keep the rest from being left."""
    log: list[str] = []

    @asynccontextmanager
    async def failing(service: Service) -> AsyncIterator[None]:
        service.add(Echo(saying("a")))
        yield
        raise LookupError("cannot close")

    network = Network()
    network.add(Service("echo", lifespan=failing))
    network.add(Service("echo", lifespan=telling(log)))
    await say(EchoClient(network.connect("echo", settings=ROUND_ROBIN)), 2)
    with pytest.raises(LookupError, match="cannot close"):
        await network.aclose()
    assert log == ["enter", "leave"]


async def test_lifespan_is_left_after_the_calls(network: Network) -> None:
    """What a handler needs to clean up with is open until it has."""
    log: list[str] = []
    started = asyncio.Event()

    async def behave(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        try:
            started.set()
            await never()
            yield text("")
        finally:
            await asyncio.sleep(0)
            log.append("clean up")

    hosted = network.add(Service("echo", lifespan=telling(log, behave=behave)))
    call = asyncio.create_task(say(EchoClient(network.connect("echo"))))
    await started.wait()
    await hosted.stop()
    await asyncio.wait([call])
    assert isinstance(call.exception(), RpcError)
    assert log == ["enter", "clean up", "leave"]


def test_same_seed_same_calls() -> None:
    """In virtual time, a test does the same every time; with another seed it may do something else."""

    async def main(seed: int) -> str:
        async with Network(seed) as network:
            for name in "abcd":
                network.add(echo(name))
            client = EchoClient(network.connect("echo"))
            return "".join(await asyncio.gather(*(say(client) for _ in range(50))))

    runs = [[run_virtual(main(seed)) for _ in range(3)] for seed in range(4)]
    assert [len(set(same)) for same in runs] == [1, 1, 1, 1]
    assert len({same[0] for same in runs}) > 1


async def test_service_that_calls_another(network: Network) -> None:
    """A channel of the network is handed to the servicer; the deadline travels along."""
    inner = network.script("inner")
    inner.on(EchoMethods.UnaryUnary).reply(text("inside"))
    client = EchoClient(network.connect("inner"))

    async def behave(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        yield await client.UnaryUnary(text("from outer"))

    network.add(Service("outer", servicers=[Echo(behave)]))
    reply = await EchoClient(network.connect("outer")).UnaryUnary(text("x"), timeout=3)
    assert reply.value == "inside"
    [received] = inner.calls
    assert received.requests == (text("from outer"),)
    assert received.time_remaining is not None
    assert 2 < received.time_remaining < 3


async def test_settings_and_interceptors_of_a_client(network: Network) -> None:
    """`connect` takes what the real one takes: interceptors, and settings for all services or for this one."""
    called: list[str] = []

    def noting(method: Method[StringValue, StringValue], next: Handler) -> Handler:
        async def handler(call: Call) -> Reply:
            called.append(method.name)
            return await next(call)

        return handler

    script = network.script("echo")
    script.on(EchoMethods.UnaryUnary).reply(text("x"))
    everything = Settings(clients={"echo": ClientSettings(timeout=77)})
    for settings in (everything, ClientSettings(timeout=77)):
        await EchoClient(network.connect("echo", interceptors=[noting], settings=settings)).UnaryUnary(text("x"))
    assert called == ["UnaryUnary", "UnaryUnary"]
    assert [round(call.time_remaining or 0) for call in script.calls] == [77, 77]
