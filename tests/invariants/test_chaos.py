"""Everything at once: handlers and callers that do what they like, by chance, and the same every time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from framework import Context, NotFound, RpcError, Unavailable
from framework.rpc import StreamReply, UnaryReply
from tests.invariants.conftest import World, collect, until
from tests.invariants.echo import text

SIZES = (1, 1000, 70_000)


class Handler:
    """Each run does one of these, and then what a handler usually does."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    async def __call__(self, requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        rng = self._rng
        match rng.randrange(9):
            case 0:
                raise NotFound("gone")
            case 1:
                raise ValueError("a defect")
            case 2:
                raise asyncio.CancelledError
            case 3:
                await asyncio.sleep(rng.random() * 0.05)
            case 4:
                await context.send_initial_metadata((("early", "yes"),))
                await asyncio.sleep(rng.random() * 0.03)
            case 5:
                for _ in range(rng.randrange(20)):
                    yield text("x" * rng.choice(SIZES))
                if rng.random() < 0.3:
                    raise Unavailable("in the middle")
            case 6:
                yield text("without reading")
                return
            case 7:
                await anext(requests, None)
            case _:
                context.set_trailing_metadata((("late", "yes"),))
        async for request in requests:
            yield request
        yield text("end")


async def source(rng: random.Random) -> AsyncIterator[StringValue]:
    """Requests that come slowly, or break off."""
    for _ in range(rng.randrange(8)):
        yield text("x" * rng.choice(SIZES))
        if rng.random() < 0.3:
            await asyncio.sleep(rng.random() * 0.02)
    if rng.random() < 0.15:
        raise KeyError("the caller's own")
    if rng.random() < 0.15:
        await asyncio.sleep(0.5)


async def consume(reply: UnaryReply[StringValue] | StreamReply[StringValue], rng: random.Random) -> None:
    """Read all, or leave early in one way or another."""
    if isinstance(reply, StreamReply):
        match rng.randrange(6):
            case 0:
                async for _ in reply:
                    break
                return
            case 1:
                async with reply:
                    await anext(reply, None)
                return
            case 2:
                await reply.initial_metadata()
                await reply.aclose()
                return
    await collect(reply)


@pytest.mark.parametrize("seed", [1, 2])
async def test_chaos(world: World, seed: int) -> None:
    """Every call ends soon and once, with an error of the family or the caller's own, and nothing is left."""
    rng = random.Random(seed)
    world.serve(Handler(rng))

    async def call() -> BaseException | None:
        await asyncio.sleep(rng.random() * 0.3)
        reply = world.start(source=source(rng), timeout=rng.choice([0.02, 0.1, 5.0]))
        task = asyncio.ensure_future(consume(reply, rng))
        if rng.random() < 0.2:
            await asyncio.sleep(rng.random() * 0.1)
            task.cancel()
        await asyncio.wait([task])
        return None if task.cancelled() else task.exception()

    async with asyncio.timeout(30):
        errors = await asyncio.gather(*(call() for _ in range(150)))
    assert [error for error in errors if not isinstance(error, RpcError | KeyError | None)] == []
    await until(lambda: world.idle)
    assert len(world.called) == 150
    assert len(world.served) <= 150
