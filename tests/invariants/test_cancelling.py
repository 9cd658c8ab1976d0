"""Callers that stop waiting: the handler is told at once, and nothing is left of the call."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from framework import Code, Context
from framework.rpc import StreamReply
from tests.invariants.conftest import World, collect, only, soon, streaming, until, uploading
from tests.invariants.echo import Blocked, never, repeat, text

CANCELLED = ([(Code.CANCELLED, False, True)], [(Code.CANCELLED, True, True)])


async def by_task(call: Awaitable[Any], now: asyncio.Event) -> None:
    """`task.cancel()`."""
    task = asyncio.ensure_future(call)
    await soon(now.wait())
    task.cancel()
    await task


async def by_timeout(call: Awaitable[Any], now: asyncio.Event) -> None:
    """`asyncio.timeout` around the await."""

    async def expire(scope: asyncio.Timeout) -> None:
        await now.wait()
        scope.reschedule(asyncio.get_running_loop().time())

    async with asyncio.timeout(30) as scope:
        expiring = asyncio.create_task(expire(scope))
        await call
        expiring.cancel()


async def by_wait_for(call: Awaitable[Any], now: asyncio.Event) -> None:
    """`asyncio.wait_for`."""
    await asyncio.wait_for(call, 0.4)


async def by_group(call: Awaitable[Any], now: asyncio.Event) -> None:
    """A sibling in a TaskGroup fails."""

    async def fail() -> None:
        await now.wait()
        raise LookupError

    async with asyncio.TaskGroup() as group:
        group.create_task(fail())
        await call


Way = Callable[[Awaitable[Any], asyncio.Event], Awaitable[None]]


async def cancelled(world: World, blocked: Blocked, way: Way, source: Any = None) -> None:
    """Make a call, have it cancelled where it blocks, and see the handler end."""
    world.serve(blocked)
    with pytest.raises((asyncio.CancelledError, TimeoutError, ExceptionGroup)):
        await way(world.call(source=source), blocked.waits)
    await soon(blocked.ended.wait())
    assert await world.endings() == CANCELLED


@pytest.mark.parametrize("way", [by_task, by_timeout, by_wait_for, by_group])
async def test_before_headers(world: World, way: Way) -> None:
    """A call cancelled before anything came back cancels its handler, whose `finally` runs."""
    blocked = Blocked()
    await cancelled(world, blocked, way)
    assert isinstance(blocked.error, asyncio.CancelledError)


@pytest.mark.parametrize("way", [by_task, by_timeout])
async def test_after_headers(world: World, way: Way) -> None:
    """The same once response headers are there."""
    await cancelled(world, Blocked(header=True), way)


@pytest.mark.parametrize("way", [by_task, by_timeout])
@streaming
async def test_in_mid_stream(world: World, way: Way) -> None:
    """The same in the middle of the replies."""
    await cancelled(world, Blocked(replies=3), way)


@pytest.mark.parametrize("way", [by_task, by_timeout])
@uploading
async def test_in_mid_upload(world: World, way: Way) -> None:
    """The same while requests are still to come; the caller's iterator is closed."""
    closed = asyncio.Event()

    async def silent() -> AsyncIterator[StringValue]:
        try:
            yield text("a")
            await never()
        finally:
            closed.set()

    await cancelled(world, Blocked(read=1), way, source=silent())
    await soon(closed.wait())


@uploading
async def test_under_back_pressure(world: World) -> None:
    """The same while the upload waits because the handler does not read."""
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[StringValue]:
        try:
            while True:
                yield text("x" * 100_000)
        finally:
            closed.set()

    await cancelled(world, Blocked(read=0), by_task, source=endless())
    await soon(closed.wait())


@streaming
async def test_handler_that_waits_to_send(world: World) -> None:
    """A handler whose replies nobody reads waits in its `yield`; the cancel reaches it there."""
    closed = asyncio.Event()

    async def endless(requests: Any, context: Context) -> AsyncIterator[StringValue]:
        try:
            while True:
                yield text("x" * 100_000)
        finally:
            closed.set()

    world.serve(endless)
    async with world.start() as replies:  # type: ignore[union-attr]  # a stream
        await anext(replies)
        await asyncio.sleep(0.05)
    await soon(closed.wait())
    assert await world.endings() == CANCELLED


async def test_at_once(world: World) -> None:
    """A call cancelled in the turn of the loop in which it began leaves nothing."""
    task = asyncio.ensure_future(world.call())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: len(world.called) == 1 and world.idle)
    assert world.called[0].code is Code.CANCELLED


@streaming
async def test_stream_never_started(world: World) -> None:
    """A stream that nobody iterates over is nothing: no call, and nothing left."""
    reply = world.start()
    del reply
    assert await world.call() == ["a"]
    assert len(world.served) == 1


@only(server_streaming=False)
async def test_reply_never_awaited(world: World) -> None:
    """A forgotten `await` makes no call, and says so as a coroutine would."""
    reply = world.start()
    with pytest.warns(RuntimeWarning, match=f"a call of echo.v1.Echo/{world.arity.method} was never awaited"):
        del reply
    assert await world.call() == ["a"]
    assert len(world.served) == 1


@streaming
async def test_closed_before_it_started(world: World) -> None:
    """A stream that is closed before it was iterated over never becomes a call; iterating ends at once."""
    reply = world.start()
    assert isinstance(reply, StreamReply)
    await reply.aclose()
    assert await collect(reply) == []
    assert reply.call.outcome is not None
    assert (reply.call.outcome.code, reply.call.outcome.sent) == (Code.CANCELLED, False)
    assert world.served == []


@streaming
async def test_break_and_drop(world: World) -> None:
    """Breaking out of the loop and dropping the stream cancels the call."""
    world.serve(blocked := Blocked(replies=3))
    async for _ in world.start():  # type: ignore[union-attr]  # a stream
        break
    await soon(blocked.ended.wait())
    assert await world.endings() == CANCELLED


@streaming
async def test_aclose(world: World) -> None:
    """`aclose()` cancels the call; reading on finds the end, and closing again does nothing."""
    world.serve(blocked := Blocked(replies=3))
    reply = world.start()
    assert isinstance(reply, StreamReply)
    assert (await anext(reply)).value == "0"
    await reply.aclose()
    await reply.aclose()
    assert await collect(reply) == []
    await soon(blocked.ended.wait())
    assert await world.endings() == CANCELLED


@streaming
async def test_async_with(world: World) -> None:
    """Leaving `async with` cancels what is left of the stream, whatever the reason."""
    world.serve(blocked := Blocked(replies=3))

    async def read() -> None:
        async with world.start() as reply:  # type: ignore[union-attr]  # a stream
            async for _ in reply:
                raise LookupError

    with pytest.raises(LookupError):
        await read()
    await soon(blocked.ended.wait())
    assert await world.endings() == CANCELLED


@streaming
async def test_async_with_to_the_end(world: World) -> None:
    """A stream that was read to its end has ended well; leaving `async with` changes nothing."""
    async with world.start() as reply:  # type: ignore[union-attr]  # a stream
        assert [message.value async for message in reply] == ["a"]
    assert await world.endings() == ([(Code.OK, True, True)], [(Code.OK, True, True)])


@streaming
async def test_drop_after_headers(world: World) -> None:
    """A stream that was dropped after its headers, without reading a message, is cancelled."""
    world.serve(blocked := Blocked(header=True))
    reply = world.start()
    assert await reply.initial_metadata() == (("early", "yes"),)
    del reply
    await soon(blocked.ended.wait())
    assert await world.endings() == CANCELLED


@streaming
async def test_close_while_another_task_reads(world: World) -> None:
    """A reader that waits is told when somebody else closes the stream."""
    world.serve(blocked := Blocked(replies=1))
    reply = world.start()
    assert isinstance(reply, StreamReply)
    await anext(reply)
    reader = asyncio.ensure_future(collect(reply))
    await soon(blocked.waits.wait())
    await reply.aclose()
    await soon(asyncio.wait([reader]))
    assert reader.done()
    if not reader.cancelled() and reader.exception() is None:
        assert reader.result() == []
    assert await world.endings() == CANCELLED


async def test_handler_that_swallows_its_cancellation(world: World) -> None:
    """A handler that returns all the same has nobody to answer; the call still ends, and as cancelled."""
    waits, swallowed = asyncio.Event(), asyncio.Event()

    async def stubborn(requests: Any, context: Context) -> AsyncIterator[StringValue]:
        try:
            waits.set()
            await never()
        except asyncio.CancelledError:
            swallowed.set()
        yield text("too late")

    world.serve(stubborn)
    with pytest.raises(asyncio.CancelledError):
        await by_task(world.call(), waits)
    await soon(swallowed.wait())
    assert await world.endings() == CANCELLED


async def test_handler_that_fails_while_it_cleans_up(world: World) -> None:
    """An exception in a cancelled handler's `finally` goes nowhere and harms nothing."""
    waits = asyncio.Event()

    async def clumsy(requests: Any, context: Context) -> AsyncIterator[StringValue]:
        try:
            waits.set()
            await never()
        finally:
            raise ValueError("clumsy")
        yield text("never")  # type: ignore[unreachable]  # what makes this a generator

    world.serve(clumsy)
    with pytest.raises(asyncio.CancelledError):
        await by_task(world.call(), waits)
    await until(lambda: len(world.served) == 1)
    assert world.called[0].code is Code.CANCELLED
    world.serve(repeat)
    assert await world.call() == ["a"]


async def test_cleaning_up_may_take_time(world: World) -> None:
    """A cancelled handler may await in its `finally`."""
    waits, cleaned = asyncio.Event(), asyncio.Event()

    async def tidy(requests: Any, context: Context) -> AsyncIterator[StringValue]:
        try:
            waits.set()
            await never()
        finally:
            await asyncio.sleep(0.02)
            cleaned.set()
        yield text("never")

    world.serve(tidy)
    with pytest.raises(asyncio.CancelledError):
        await by_task(world.call(), waits)
    await soon(cleaned.wait())
    assert await world.endings() == CANCELLED


async def test_many_at_random_moments(world: World) -> None:
    """Of many calls cancelled at any moment each ends exactly once on both sides."""
    rng = random.Random(7)
    handlers: list[Blocked] = []

    async def behave(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        handlers.append(blocked := Blocked(replies=rng.randrange(3)))
        async for reply in blocked(requests, context):
            yield reply

    world.serve(behave)

    async def one() -> None:
        task = asyncio.ensure_future(world.call())
        await asyncio.sleep(rng.random() * 0.02)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    await asyncio.gather(*(one() for _ in range(60)))
    await until(lambda: world.idle and all(handler.ended.is_set() for handler in handlers))
    assert len(world.called) == 60
    assert {outcome.code for outcome in world.called} == {Code.CANCELLED}
    assert len(world.served) >= len(handlers)
