"""Streamed requests: a truncated upload is never taken for a complete one, and no iterator is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc.aio
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from framework import Code, Context, InvalidArgument, RpcError
from tests.invariants.conftest import ARITIES, Arity, World, collect, open_world, soon, until
from tests.invariants.echo import EchoClient, never, repeat, text

OK = (Code.OK, True, True)
HOW_MANY = 300


@pytest.fixture(params=[name for name, arity in ARITIES.items() if arity.client_streaming])
def arity(request: pytest.FixtureRequest) -> Arity:
    """Those in which the client streams."""
    return ARITIES[request.param]


class Store:
    """A servicer's usual upload: collect all requests, then commit."""

    def __init__(self, *, header: bool = False, answer: bool = False) -> None:
        self._header = header
        self._answer = answer
        self.commits: list[int] = []

    async def __call__(self, requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        if self._header:
            await context.send_initial_metadata(())
        count = 0
        async for request in requests:
            count += 1
            if self._answer:
                yield request
        self.commits.append(count)
        yield text(str(count))


async def truncated(total: int, pause: float) -> AsyncIterator[StringValue]:
    """Messages that never come to their end."""
    for number in range(total):
        yield text(str(number))
        await asyncio.sleep(pause)
    await never()


async def truncate_many(world: World, rng: random.Random, *, by_deadline: bool) -> None:
    """Hundreds of uploads at the same time that all break off, with others that end well between them."""

    async def broken() -> None:
        reply = world.start(
            source=truncated(rng.randrange(1, 6), rng.random() * 0.004),
            timeout=0.02 + rng.random() * 0.3 if by_deadline else None,
        )
        task = asyncio.ensure_future(collect(reply))
        if not by_deadline:
            await asyncio.sleep(rng.random() * 0.3)
            task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() or isinstance(task.exception(), RpcError)

    async def complete() -> None:
        await asyncio.sleep(rng.random() * 0.3)
        await world.call(*"abcdefgh")

    await asyncio.gather(*(broken() for _ in range(HOW_MANY)), *(complete() for _ in range(20)))
    await until(lambda: world.idle)


@pytest.mark.parametrize("by_deadline", [True, False], ids=["deadline", "cancel"])
async def test_truncated_uploads_are_not_committed(world: World, by_deadline: bool) -> None:
    """A handler that commits after its `async for requests` commits complete uploads, and not one of the others."""
    world.serve(store := Store())
    await truncate_many(world, random.Random(11), by_deadline=by_deadline)
    assert store.commits == [8] * 20


@pytest.mark.parametrize("by_deadline", [True, False], ids=["deadline", "cancel"])
async def test_truncated_uploads_with_headers_sent(world: World, by_deadline: bool) -> None:
    """Nor when it has sent its response headers before it reads, so that nothing is left to send at the end."""
    world.serve(store := Store(header=True))
    await truncate_many(world, random.Random(12), by_deadline=by_deadline)
    assert store.commits == [8] * 20


@pytest.mark.parametrize("by_deadline", [True, False], ids=["deadline", "cancel"])
@pytest.mark.parametrize("arity", ["stream_stream"], indirect=True)
async def test_truncated_uploads_with_replies_sent(world: World, by_deadline: bool) -> None:
    """Nor when it answers while it reads."""
    world.serve(store := Store(answer=True))
    await truncate_many(world, random.Random(13), by_deadline=by_deadline)
    assert store.commits == [8] * 20


@pytest.mark.parametrize("error", [ValueError("mine"), KeyError("mine"), TimeoutError("mine")], ids=repr)
async def test_request_iterator_that_raises(world: World, error: Exception) -> None:
    """What the caller's own iterator raises reaches the caller, the very object; the server is told of a cancel."""
    world.serve(store := Store())

    async def broken() -> AsyncIterator[StringValue]:
        yield text("a")
        raise error

    with pytest.raises(type(error)) as caught:
        await soon(world.call(source=broken()))
    assert caught.value is error
    await until(lambda: len(world.called) == 1 and world.idle)
    assert [(outcome.error, outcome.remote) for outcome in world.called] == [(error, False)]
    assert {outcome.code for outcome in world.served} <= {Code.CANCELLED}
    assert store.commits == []


async def test_request_iterator_that_raises_while_the_handler_waits(world: World) -> None:
    """The handler is cancelled where it reads, in mid-upload."""
    reading = asyncio.Event()

    async def behave(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        await anext(requests)
        reading.set()
        async for request in requests:
            yield request

    async def broken() -> AsyncIterator[StringValue]:
        yield text("a")
        await reading.wait()
        raise ValueError("mine")

    world.serve(behave)
    with pytest.raises(ValueError, match="mine"):
        await soon(world.call(source=broken()))
    client, server = await world.endings()
    assert [code for code, _, _ in server] == [Code.CANCELLED]
    assert [remote for _, remote, _ in client] == [False]


async def test_request_iterator_that_raises_a_grpc_error(world: World) -> None:
    """An iterator over another call's replies may raise grpc's own error: it reaches the caller like any other."""
    error = grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), grpc.aio.Metadata(), "elsewhere")

    async def broken() -> AsyncIterator[StringValue]:
        yield text("a")
        raise error

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await soon(world.call(source=broken()))
    assert caught.value is error


async def test_request_iterator_that_raises_an_error_of_the_family(world: World) -> None:
    """So does the error of another call of ours."""
    error = RpcError("elsewhere", method="other.v1.Other/Get")

    async def broken() -> AsyncIterator[StringValue]:
        yield text("a")
        raise error

    with pytest.raises(RpcError) as caught:
        await soon(world.call(source=broken()))
    assert caught.value is error


async def test_request_iterator_that_raises_cancelled_error(world: World) -> None:
    """A cancellation that the caller's iterator makes up ends the call at once; nobody waits for the deadline."""

    async def broken() -> AsyncIterator[StringValue]:
        yield text("a")
        raise asyncio.CancelledError

    with pytest.raises((asyncio.CancelledError, RpcError)):
        await soon(world.call(source=broken()))
    await until(lambda: world.idle)


async def test_request_iterator_that_raises_at_once(world: World) -> None:
    """An iterator that raises before its first message is no different."""

    async def broken() -> AsyncIterator[StringValue]:
        for _ in ():
            yield text("never")
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await soon(world.call(source=broken()))


async def test_request_iterator_that_raises_without_a_reader(world: World) -> None:
    """The caller is told even while the handler reads nothing and the connection is full."""

    async def behave(requests: Any, context: Context) -> AsyncIterator[StringValue]:
        await never()
        yield text("never")

    async def broken() -> AsyncIterator[StringValue]:
        yield text("a")
        raise ValueError("mine")

    world.serve(behave)
    with pytest.raises(ValueError, match="mine"):
        await soon(world.call(source=broken()))


async def test_blocked_request_iterator_is_closed_when_the_call_ends(world: World) -> None:
    """A call that ends early closes the iterator that still waits for its next request."""
    closed = asyncio.Event()

    async def behave(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        yield await anext(requests)

    async def blocked() -> AsyncIterator[StringValue]:
        try:
            yield text("a")
            await never()
        finally:
            closed.set()

    world.serve(behave)
    assert await soon(world.call(source=blocked())) == ["a"]
    await soon(closed.wait())
    assert await world.endings() == ([OK], [OK])


async def test_server_that_returns_before_it_has_read_everything(world: World) -> None:
    """A reply that comes before the end of the requests is a success; the rest of them is not sent."""
    sent: list[int] = []

    async def behave(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        yield await anext(requests)

    async def many() -> AsyncIterator[StringValue]:
        for number in range(100_000):
            sent.append(number)
            yield text(str(number))

    world.serve(behave)
    assert await soon(world.call(source=many())) == ["0"]
    assert len(sent) < 100_000
    assert await world.endings() == ([OK], [OK])


async def many() -> AsyncIterator[StringValue]:
    """More requests than anybody will read."""
    for number in range(100_000):
        yield text(str(number))


async def test_server_that_answers_early_is_believed(world: World) -> None:
    """An early reply is a success every time, whatever the upload is doing at that moment."""

    async def behave(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        yield await anext(requests)

    world.serve(behave)
    assert [await soon(world.call(source=many())) for _ in range(50)] == [["0"]] * 50


async def test_server_that_fails_early_is_believed(world: World) -> None:
    """An early failure arrives with its own code every time, whatever the upload is doing at that moment."""

    async def behave(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        yield await anext(requests)
        raise InvalidArgument("no")

    async def code() -> Code:
        try:
            await soon(world.call(source=many()))
        except RpcError as error:
            return error.code
        return Code.OK

    world.serve(behave)
    assert [await code() for _ in range(50)] == [Code.INVALID_ARGUMENT] * 50


async def test_synchronous_iterables(world: World) -> None:
    """Requests may come from a list, a tuple or a generator that is not asynchronous; it is closed like any other."""
    closed: list[bool] = []

    def generator() -> Iterator[StringValue]:
        try:
            yield from [text("a"), text("b")]
        finally:
            closed.append(True)

    expected = ["a", "b"] if world.arity.server_streaming else ["b"]
    for source in ([text("a"), text("b")], (text("a"), text("b")), generator()):
        assert await world.call(source=source) == expected
    assert closed == [True]


async def test_synchronous_iterable_that_raises(world: World) -> None:
    """What it raises reaches the caller."""

    def broken() -> Iterator[StringValue]:
        yield text("a")
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await soon(world.call(source=broken()))


async def test_iterator_that_is_no_generator(world: World) -> None:
    """Any object with `__aiter__` will do: no `aclose` is asked of it."""

    class Three:
        def __init__(self) -> None:
            self.left = 3

        def __aiter__(self) -> Three:
            return self

        async def __anext__(self) -> StringValue:
            if self.left == 0:
                raise StopAsyncIteration
            self.left -= 1
            return text(str(self.left))

    assert (await world.call(source=Three()))[-1] == "0"


async def test_something_that_cannot_be_iterated_over(world: World) -> None:
    """A message where an iterable belongs is a TypeError of the caller's."""
    with pytest.raises(TypeError):
        await soon(world.call(source=text("a")))


async def test_no_requests(world: World) -> None:
    """An empty upload is complete."""
    world.serve(store := Store())
    assert await world.call(source=_nothing()) == ["0"]
    assert store.commits == [0]


async def _nothing() -> AsyncIterator[StringValue]:
    for _ in ():
        yield text("never")


@pytest.mark.parametrize("arity", ["stream_stream"], indirect=True)
async def test_neither_requests_nor_replies(world: World) -> None:
    """Two empty streams are a call that ends well."""
    assert await world.call(source=_nothing()) == []
    assert await world.endings() == ([OK], [OK])


async def test_reading_on_after_the_end(world: World) -> None:
    """A handler that iterates over the requests again finds them at their end."""
    again: list[StringValue] = []

    async def behave(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        async for _ in requests:
            pass
        again.extend([request async for request in requests])
        yield text("done")

    world.serve(behave)
    assert await world.call("a", "b") == ["done"]
    assert again == []


@pytest.mark.parametrize("arity", ["stream_stream"], indirect=True)
async def test_question_and_answer(world: World) -> None:
    """A caller may decide its next request by the last reply."""
    answers: asyncio.Queue[str] = asyncio.Queue()

    async def questions() -> AsyncIterator[StringValue]:
        yield text("0")
        while int(answer := await answers.get()) < 5:
            yield text(str(int(answer) + 1))

    async for reply in world.start(source=questions()):  # type: ignore[union-attr]  # a stream
        answers.put_nowait(reply.value)
    assert await world.endings() == ([OK], [OK])


@pytest.mark.parametrize("arity", ["stream_stream"], indirect=True)
async def test_reading_and_replying_in_two_tasks(world: World) -> None:
    """A handler may read in one task and reply in another; the end of the requests disturbs no reply."""

    async def behave(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        queue: asyncio.Queue[StringValue | None] = asyncio.Queue()

        async def read() -> None:
            async for request in requests:
                queue.put_nowait(request)
            queue.put_nowait(None)

        reader = asyncio.create_task(read())
        while (request := await queue.get()) is not None:
            yield request
        await reader

    world.serve(behave)
    for count in range(50):
        sent = [str(number) for number in range(count % 4)]
        assert await soon(world.call(source=[text(one) for one in sent])) == sent


@pytest.mark.parametrize("arity", ["stream_stream"], indirect=True)
async def test_replying_without_reading(world: World) -> None:
    """A handler may begin to reply, and to send headers, whatever has become of the requests at that moment."""

    async def behave(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        reader = asyncio.create_task(_all(requests))
        await asyncio.sleep(0.0005)
        for number in range(3):
            yield text(str(number))
        yield text(" ".join(await reader))

    world.serve(behave)
    for _ in range(50):
        assert await soon(world.call("a", "b")) == ["0", "1", "2", "a b"]


async def _all(requests: AsyncIterator[StringValue]) -> list[str]:
    return [request.value async for request in requests]


async def test_large_upload(wire: str, arity: Arity) -> None:
    """Back pressure: a handler that reads slowly makes the caller's iterator wait."""
    ahead: list[int] = []
    sent = 0

    async def slow(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        read = 0
        async for _ in requests:
            read += 1
            ahead.append(sent - read)
            await asyncio.sleep(0)
        yield text(str(read))

    async def megabytes() -> AsyncIterator[StringValue]:
        nonlocal sent
        for _ in range(200):
            sent += 1
            yield text("x" * 100_000)

    async with open_world(wire, arity, behave=slow) as world:
        assert await world.call(source=megabytes()) == ["200"]
    assert max(ahead) < 100


async def test_message_that_is_changed_after_it_was_sent(world: World) -> None:
    """A caller may reuse one message object for all its requests."""
    seen: list[str] = []

    async def behave(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        async for request in requests:
            seen.append(request.value)
        yield text("done")

    async def reused() -> AsyncIterator[StringValue]:
        message = text("")
        for value in "abc":
            message.value = value
            yield message

    world.serve(behave)
    await collect(EchoClient(world.channel).StreamUnary(reused()))
    assert seen == ["a", "b", "c"]


async def test_no_reader_left(world: World) -> None:
    """A caller that goes away while its iterator waits in its own `finally` does not disturb the next call."""

    async def slow_to_close() -> AsyncIterator[StringValue]:
        try:
            yield text("a")
            await never()
        finally:
            await asyncio.sleep(0.02)

    task = asyncio.ensure_future(world.call(source=slow_to_close()))
    await asyncio.sleep(0.01)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    world.serve(repeat)
    assert (await world.call("b"))[-1] == "b"
