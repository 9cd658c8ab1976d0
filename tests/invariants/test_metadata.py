"""Response headers and trailers, on success."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from framework import Context, Internal, NotFound
from framework.rpc import StreamReply, UnaryReply
from tests.invariants.conftest import World, collect, only, soon, streaming, uploading
from tests.invariants.echo import Behaviour, raising, text


async def with_metadata(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
    """Headers first, then the replies, then trailers."""
    await context.send_initial_metadata((("early", "yes"), ("proof-bin", b"\x00\xff")))
    async for request in requests:
        yield request
    context.set_trailing_metadata((("cost", "7"), ("twice", "1"), ("twice", "2")))


@only(server_streaming=False)
async def test_of_one_reply(world: World) -> None:
    """Headers and trailers of a reply can be asked for, before or after awaiting it."""
    world.serve(with_metadata)
    reply = world.start()
    assert isinstance(reply, UnaryReply)
    assert await reply.initial_metadata() == (("early", "yes"), ("proof-bin", b"\x00\xff"))
    assert (await reply).value == "a"
    assert await reply.trailing_metadata() == (("cost", "7"), ("twice", "1"), ("twice", "2"))
    assert len(world.called) == len((await world.endings())[1]) == 1


@streaming
async def test_of_a_stream(world: World) -> None:
    """Headers can be had before the first message, trailers after the last."""
    world.serve(with_metadata)
    reply = world.start()
    assert isinstance(reply, StreamReply)
    assert await reply.initial_metadata() == (("early", "yes"), ("proof-bin", b"\x00\xff"))
    assert reply.trailing_metadata() == ()
    assert await collect(reply) == ["a"]
    assert reply.trailing_metadata() == (("cost", "7"), ("twice", "1"), ("twice", "2"))


@streaming
async def test_header_long_before_the_first_message(world: World) -> None:
    """Headers arrive when the handler sends them, not with the first message."""
    go = asyncio.Event()

    async def behave(requests: Any, context: Context) -> AsyncIterator[StringValue]:
        await context.send_initial_metadata((("early", "yes"),))
        await go.wait()
        yield text("late")

    world.serve(behave)
    reply = world.start()
    assert isinstance(reply, StreamReply)
    assert await soon(reply.initial_metadata()) == (("early", "yes"),)
    go.set()
    assert await collect(reply) == ["late"]


async def test_none(world: World) -> None:
    """A handler that sends none leaves both empty: nothing of grpc's own or of ours shows."""
    reply = world.start()
    await collect(reply)
    header = await reply.initial_metadata()
    trailer = reply.trailing_metadata() if isinstance(reply, StreamReply) else await reply.trailing_metadata()
    assert (header, trailer) == ((), ())


async def test_of_the_request(world: World) -> None:
    """What the caller sends is what the handler sees, text and bytes."""
    seen: list[tuple[str, str | bytes]] = []

    async def behave(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        seen.extend(pair for pair in context.invocation_metadata() if pair[0].startswith("my-"))
        async for request in requests:
            yield request

    world.serve(behave)
    await collect(world.start(metadata=(("my-key", "1"), ("my-key", "2"), ("my-bin", b"\x00\xff"))))
    assert seen == [("my-key", "1"), ("my-key", "2"), ("my-bin", b"\x00\xff")]


async def test_header_twice(world: World) -> None:
    """Headers are sent once; a second time is a mistake of the handler's."""
    raised: list[str] = []

    async def behave(requests: Any, context: Context) -> AsyncIterator[StringValue]:
        await context.send_initial_metadata(())
        try:
            await context.send_initial_metadata(())
        except RuntimeError as error:
            raised.append(str(error))
        yield text("a")

    world.serve(behave)
    assert await world.call() == ["a"]
    assert raised == ["response headers are sent already; set them before the end of the requests is read"]


@streaming
async def test_header_set_by_nobody_comes_with_the_first_message(world: World) -> None:
    """Without a word of the handler's, headers come with the first message."""
    reply = world.start()
    assert await reply.initial_metadata() == ()
    assert await collect(reply) == ["a"]


Pair = tuple[str, Any]
WRONG: list[Pair] = [("bad key", "x"), ("key", "ü"), ("key", 7), ("key", b"x")]


def with_header(pair: Pair) -> Behaviour:
    """Sends it before the first reply."""

    async def behave(requests: Any, context: Context) -> AsyncIterator[StringValue]:
        await context.send_initial_metadata((pair,))
        yield text("a")

    return behave


def with_trailer(pair: Pair) -> Behaviour:
    """Sends it with the status."""

    async def behave(requests: Any, context: Context) -> AsyncIterator[StringValue]:
        context.set_trailing_metadata((pair,))
        yield text("a")

    return behave


def with_error(pair: Pair) -> Behaviour:
    """Sends it with a failure."""
    return raising(NotFound("gone", metadata=(pair,)), read=False)


@only(client_streaming=False)
@pytest.mark.parametrize("pair", WRONG, ids=repr)
@pytest.mark.parametrize("where", [with_header, with_trailer, with_error])
async def test_metadata_that_cannot_be_sent(
    world: World, where: Callable[[Pair], Behaviour], pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler's key or value that no wire takes is INTERNAL with an id, and the log names the key."""
    world.serve(where(pair))
    with caplog.at_level(logging.ERROR, "framework"), pytest.raises(Internal, match=r"internal error [0-9a-f]{8}"):
        await world.call()
    assert pair[0] in caplog.text


@uploading
async def test_context_of_an_upload(world: World) -> None:
    """The context knows caller, deadline and request id, in an upload as anywhere."""
    seen: list[Any] = []

    async def behave(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        async for _ in requests:
            pass
        seen.extend([context.peer() != "", context.request_id != "", context.cancelled(), context.done()])
        seen.append(context.time_remaining())
        yield text("a")

    world.serve(behave)
    await world.call(timeout=30)
    assert seen == [True, True, False, False, pytest.approx(30, abs=5)]


@pytest.mark.parametrize("count", [0, 1, 2])
async def test_awaited_or_asked_twice(world: World, count: int) -> None:
    """Whatever is asked of one call object, and how often, it is one call."""
    reply = world.start()
    await collect(reply)
    for _ in range(count):
        await reply.initial_metadata()
        if isinstance(reply, UnaryReply):
            await reply.trailing_metadata()
            assert (await reply).value == "a"
    assert len((await world.endings())[1]) == 1


async def test_asked_by_two_tasks(world: World) -> None:
    """Two tasks that ask one call object at the same time make one call: no handler runs twice."""
    runs: list[None] = []

    async def behave(requests: Any, context: Context) -> AsyncIterator[StringValue]:
        runs.append(None)
        await asyncio.sleep(0.01)
        yield text("a")

    world.serve(behave)
    reply = world.start()
    header, replies = await asyncio.gather(reply.initial_metadata(), collect(reply))
    assert (header, replies, len(runs)) == ((), ["a"], 1)
