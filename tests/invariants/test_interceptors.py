"""An interceptor is a function around a handler: the same one serves all arities, on either side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from framework import (
    Call,
    Code,
    Context,
    Handler,
    Internal,
    Method,
    NotFound,
    PermissionDenied,
    Reply,
    Service,
    Unavailable,
)
from framework.call import OK, Interceptor, Outcome, Stream
from framework.testing import Network
from tests.client.test_connect import NOT_REGISTERED
from tests.invariants.conftest import Arity, World, collect, open_world, soon, streaming, until
from tests.invariants.echo import Blocked, Echo, EchoClient, raising, text


def around(function: Callable[[Call, Handler], Any]) -> Interceptor:
    """An interceptor out of an async function of call and next handler."""

    def interceptor(method: Method[Any, Any], next: Handler) -> Handler:
        async def handler(call: Call) -> Reply:
            return await function(call, next)

        return handler

    return interceptor


def client_of(world: World, *interceptors: Interceptor) -> World:
    """The same world through a channel with these interceptors as well."""
    world.channel._interceptors = (*interceptors, *world.channel._interceptors)
    world.channel._bound.clear()
    return world


@pytest.mark.parametrize("after", [0, 2])
async def test_failure_without_headers_is_raised_by_the_handler(world: World, after: int) -> None:
    """`await next(call)` raises what arrives instead of headers, on every arity; later failures are the stream's."""
    seen: list[str] = []

    async def watching(call: Call, next: Handler) -> Reply:
        try:
            return await next(call)
        except NotFound:
            seen.append("raised")
            raise

    world.serve(raising(NotFound("gone"), replies=after, read=False))
    with pytest.raises(NotFound):
        await collect(client_of(world, around(watching)).start())
    assert seen == ([] if after and world.arity.server_streaming else ["raised"])


async def test_retry_is_one_loop(world: World) -> None:
    """A retry around `next(call)` serves all arities."""
    runs: list[None] = []

    async def flaky(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        runs.append(None)
        if len(runs) < 3:
            raise Unavailable("not yet")
        async for request in requests:
            yield request

    async def retrying(call: Call, next: Handler) -> Reply:
        while True:
            try:
                return await next(call)
            except Unavailable:
                continue

    world.serve(flaky)
    assert await collect(client_of(world, around(retrying)).start("a")) == ["a"]
    assert len(runs) == 3


@pytest.mark.parametrize("side", ["client", "server"])
async def test_order(wire: str, arity: Arity, side: str) -> None:
    """The first interceptor is outermost."""
    order: list[str] = []

    def noting(name: str) -> Interceptor:
        async def note(call: Call, next: Handler) -> Reply:
            order.append(f"{name} in")
            reply = await next(call)
            order.append(f"{name} out")
            return reply

        return around(note)

    both = (noting("first"), noting("second"))
    async with open_world(wire, arity, interceptors=both if side == "server" else ()) as world:
        await collect((client_of(world, *both) if side == "client" else world).start())
    assert order == ["first in", "second in", "second out", "first out"]


async def test_bound_once(wire: str, arity: Arity) -> None:
    """An interceptor is bound once for each method, not for each call."""
    bound: list[str] = []

    def counting(method: Method[Any, Any], next: Handler) -> Handler:
        if method.service == "echo.v1.Echo":
            bound.append(method.name)
        return next

    async with open_world(wire, arity, interceptors=(counting,)) as world:
        for _ in range(3):
            await world.call()
    assert sorted(bound) == ["StreamStream", "StreamUnary", "UnaryStream", "UnaryUnary"]


async def test_metadata_that_an_interceptor_adds(world: World) -> None:
    """What a client's interceptor adds to the metadata reaches the handler."""
    seen: list[Any] = []

    async def behave(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        seen.extend(tuple(pair) for pair in context.invocation_metadata() if pair[0] == "tenant")
        async for request in requests:
            yield request

    async def adding(call: Call, next: Handler) -> Reply:
        call.metadata = (*call.metadata, ("tenant", "t1"))
        return await next(call)

    world.serve(behave)
    await collect(client_of(world, around(adding)).start())
    assert seen == [("tenant", "t1")]


@pytest.mark.parametrize(
    ("error", "expected"), [(PermissionDenied("no"), PermissionDenied), (ValueError("secret"), Internal)], ids=repr
)
async def test_server_interceptor_that_refuses(
    wire: str, arity: Arity, error: Exception, expected: type[Exception]
) -> None:
    """What a server's interceptor raises is an answer like a handler's, and the handler does not run."""

    async def refusing(call: Call, next: Handler) -> Reply:
        raise error

    blocked = Blocked()
    async with open_world(wire, arity, behave=blocked, interceptors=(around(refusing),)) as world:
        with pytest.raises(expected, match=r"^(?!.*secret)") as caught:
            await soon(world.call())
        assert getattr(caught.value, "remote", None) is True
        await world.endings()
    assert not blocked.waits.is_set()


async def test_client_interceptor_that_answers_itself(world: World) -> None:
    """An interceptor may fail a call without making it."""

    async def refusing(call: Call, next: Handler) -> Reply:
        raise Unavailable("the breaker is open", sent=False, method=call.method.full_name)

    with pytest.raises(Unavailable, match="breaker"):
        await collect(client_of(world, around(refusing)).start())
    assert world.served == []


class Upper(Stream[Any]):
    """A stream around another."""

    __slots__ = ("_inner",)

    def __init__(self, inner: Stream[Any]) -> None:
        super().__init__()
        self._inner = inner

    def on_end(self, callback: Callable[[Outcome], None]) -> None:
        self._inner.on_end(callback)

    async def __anext__(self) -> Any:
        return text((await anext(self._inner)).value.upper())

    def cancel(self, reason: BaseException | None = None) -> None:
        self._inner.cancel(reason)


@streaming
@pytest.mark.parametrize("side", ["client", "server"])
async def test_stream_around_a_stream(wire: str, arity: Arity, side: str) -> None:
    """An interceptor may wrap the stream of replies; both sides still end once, in every way."""

    async def shouting(call: Call, next: Handler) -> Reply:
        return Upper(await next(call))

    interceptors = (around(shouting),)
    async with open_world(wire, arity, interceptors=interceptors if side == "server" else ()) as world:
        if side == "client":
            client_of(world, *interceptors)
        assert await collect(world.start("a")) == ["A"]
        world.serve(blocked := Blocked(replies=2))
        async for _ in world.start():  # type: ignore[union-attr]  # a stream
            break
        await soon(blocked.ended.wait())
        client, server = await world.endings(2)
    assert [code for code, _, _ in client] == [Code.OK, Code.CANCELLED]
    assert [code for code, _, _ in server] == [Code.OK, Code.CANCELLED]


@pytest.mark.parametrize("side", ["client", "server"])
async def test_callback_that_raises(wire: str, arity: Arity, side: str, caplog: pytest.LogCaptureFixture) -> None:
    """An exception in an `on_end` callback is logged; the call and the other callbacks do not notice."""
    told: list[Outcome] = []

    async def clumsy(call: Call, next: Handler) -> Reply:
        call.on_end(lambda outcome: 1 / 0)  # type: ignore[arg-type]  # never returns
        call.on_end(told.append)
        return await next(call)

    interceptors = (around(clumsy),)
    async with open_world(wire, arity, interceptors=interceptors if side == "server" else ()) as world:
        assert await collect((client_of(world, *interceptors) if side == "client" else world).start()) == ["a"]
        await until(lambda: told)
    assert told == [OK]
    assert "an on_end callback failed" in caplog.text


async def test_callback_that_comes_late(world: World) -> None:
    """A callback for a call that has ended is called at once."""
    reply = world.start()
    await collect(reply)
    told: list[Outcome] = []
    reply.call.on_end(told.append)
    assert [outcome.code for outcome in told] == [Code.OK]


async def test_what_a_server_interceptor_sees(wire: str, arity: Arity) -> None:
    """Method, peer, deadline, request id and the request itself, decoded."""
    seen: list[Any] = []

    async def looking(call: Call, next: Handler) -> Reply:
        seen.append((call.method.full_name, call.peer != "", call.deadline is not None, call.request_id != ""))
        seen.append(call.request.value if not arity.client_streaming else hasattr(call.request, "__anext__"))
        return await next(call)

    async with open_world(wire, arity, interceptors=(around(looking),)) as world:
        await world.call("x", timeout=30)
    expected = True if arity.client_streaming else "x"
    assert seen == [(f"echo.v1.Echo/{arity.method}", True, True, True), expected]


async def test_two_services_share_an_interceptor() -> None:
    """An interceptor keeps nothing of the method it was bound to first."""
    seen: list[str] = []

    def naming(method: Method[Any, Any], next: Handler) -> Handler:
        async def handler(call: Call) -> Reply:
            seen.append(method.name)
            assert call.method.name == method.name
            return await next(call)

        return handler

    async with Network() as network:
        network.add(Service("echo", servicers=[Echo()], interceptors=[naming], settings=NOT_REGISTERED))
        client = EchoClient(network.connect("echo", interceptors=[naming]))
        await asyncio.gather(collect(client.UnaryUnary(text("a"))), collect(client.UnaryStream(text("a"))))
    assert sorted(seen) == ["UnaryStream", "UnaryStream", "UnaryUnary", "UnaryUnary"]
