"""A calls B calls C: deadline, cancellation and request id travel along without a word of the handlers."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from framework import Call, Code, Context, DeadlineExceeded, Internal, NotFound
from framework.call import current
from tests.invariants.conftest import ARITIES, Arity, World, collect, only, open_world, soon, streaming, until
from tests.invariants.echo import Behaviour, Blocked, EchoClient, text

in_memory = pytest.mark.parametrize("wire", ["memory"], indirect=True)


def relaying(to: World, *, pause: float = 0.0, timeout: float | None = None) -> Behaviour:
    """B: does something of its own, and then asks C."""

    async def behave(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        await asyncio.sleep(pause)
        for reply in await collect(to.start(timeout=timeout)):
            yield text(reply)

    return behave


class Last:
    """C: notes what it was given."""

    def __init__(self) -> None:
        self.remaining: float | None = -1.0
        self.request_ids: list[str] = []

    async def __call__(self, requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        self.remaining = context.time_remaining()
        self.request_ids.append(context.request_id)
        async for request in requests:
            yield request


@asynccontextmanager
async def chain(
    wire: str, arity: Arity, last: Behaviour, *, pause: float = 0.0, timeout: float | None = None, inner: str = ""
) -> AsyncIterator[World]:
    """B in front of C; the caller is A. `inner` is the arity of the call from B to C, if it is another."""
    async with (
        open_world(wire, ARITIES[inner] if inner else arity, behave=last) as c,
        open_world(wire, arity, behave=relaying(c, pause=pause, timeout=timeout)) as b,
    ):
        yield b


@pytest.mark.virtual_time
@in_memory
async def test_deadline(wire: str, arity: Arity) -> None:
    """Of 300 ms, of which B spends 100, C has at most 200, and B keeps a little to answer with."""
    async with chain(wire, arity, last := Last(), pause=0.1) as b:
        assert await b.call(timeout=0.3) == ["a"]
    assert last.remaining is not None
    assert 0.15 < last.remaining <= 0.2


async def test_deadline_on_both_wires(wire: str, arity: Arity) -> None:
    """The same in real time."""
    async with chain(wire, arity, last := Last(), pause=0.2) as b:
        assert await b.call(timeout=3.0) == ["a"]
    assert last.remaining is not None
    assert 1.0 < last.remaining <= 2.8


async def test_longer_timeout_is_capped(wire: str, arity: Arity) -> None:
    """A timeout of B's own does not outlast what it has itself."""
    async with chain(wire, arity, last := Last(), timeout=100) as b:
        await b.call(timeout=20)
    assert last.remaining is not None
    assert 10 < last.remaining <= 20


async def test_shorter_timeout_holds(wire: str, arity: Arity) -> None:
    """One that is shorter is used."""
    async with chain(wire, arity, last := Last(), timeout=20) as b:
        await b.call(timeout=100)
    assert last.remaining is not None
    assert 10 < last.remaining <= 20.1


@streaming
async def test_no_incoming_deadline(wire: str, arity: Arity) -> None:
    """When A gave none, C gets the default, not nothing and not zero."""
    async with chain(wire, arity, last := Last(), inner="unary_unary") as b:
        await b.call()
    assert last.remaining is not None
    assert 5 < last.remaining <= 10.1


async def test_inherited_deadline_that_passes(wire: str, arity: Arity, caplog: pytest.LogCaptureFixture) -> None:
    """When C outlives what A allowed, A gets DEADLINE_EXCEEDED, never INTERNAL; no failure is logged."""
    blocked = Blocked()
    async with chain(wire, arity, blocked) as b:
        with pytest.raises(DeadlineExceeded):
            await soon(b.call(timeout=0.3))
        await soon(blocked.ended.wait())
        assert {code for code, _, _ in (await b.endings())[1]} <= {Code.DEADLINE_EXCEEDED, Code.CANCELLED}
    assert "internal error" not in caplog.text


@pytest.mark.virtual_time
@in_memory
async def test_inherited_deadline_is_answered_in_time(wire: str, arity: Arity) -> None:
    """B's answer reaches A before A's own deadline: it comes from the peer, and says who was waited for."""
    async with chain(wire, arity, Blocked()) as b:
        with pytest.raises(DeadlineExceeded) as caught:
            await b.call(timeout=1.0)
    assert caught.value.remote
    assert f"echo.v1.Echo/{arity.method}" in caught.value.message


async def test_timeout_of_ones_own_that_passes(wire: str, arity: Arity) -> None:
    """When B gave C too little, that is B's failure: INTERNAL."""
    blocked = Blocked()
    async with chain(wire, arity, blocked, timeout=0.2) as b:
        with pytest.raises(Internal):
            await soon(b.call(timeout=30))
        await soon(blocked.ended.wait())


async def test_no_time_left_for_the_next_call(wire: str, arity: Arity) -> None:
    """B, which has used up everything, does not call C at all."""
    async with chain(wire, arity, last := Last(), pause=0.5) as b:
        with pytest.raises(DeadlineExceeded):
            await soon(b.call(timeout=0.2))
        await until(lambda: b.idle)
    assert last.request_ids == []


async def test_cancellation(wire: str, arity: Arity) -> None:
    """A cancels, and C's handler ends."""
    blocked = Blocked()
    async with chain(wire, arity, blocked) as b:
        task = asyncio.ensure_future(b.call())
        await soon(blocked.waits.wait())
        task.cancel()
        await soon(blocked.ended.wait())
        assert isinstance(blocked.error, asyncio.CancelledError)
        assert await b.endings() == ([(Code.CANCELLED, False, True)], [(Code.CANCELLED, True, True)])


async def test_request_id(wire: str, arity: Arity) -> None:
    """One id along the whole chain, another one for the next request."""
    seen: list[str] = []
    last = Last()
    async with open_world(wire, arity, behave=last) as c:
        relay = relaying(c)

        async def noting(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
            seen.append(context.request_id)
            async for reply in relay(requests, context):
                yield reply

        async with open_world(wire, arity, behave=noting) as b:
            await b.call()
            await b.call()
    assert last.request_ids == seen
    assert len(set(seen)) == 2
    assert "" not in seen


async def test_error_that_is_passed_on(wire: str, arity: Arity) -> None:
    """B may turn C's failure into one of its own, and only then does A see it."""
    async with open_world(wire, arity) as c:

        async def missing(requests: Any, context: Context) -> AsyncIterator[StringValue]:
            yield text("a")
            raise NotFound("no product")

        async def translating(requests: Any, context: Context) -> AsyncIterator[StringValue]:
            yield text("a")
            try:
                await collect(c.start())
            except NotFound as error:
                raise NotFound(f"C says: {error.message}") from error

        c.serve(missing)
        async with open_world(wire, arity, behave=translating) as b:
            with pytest.raises(NotFound) as caught:
                await b.call()
    assert (caught.value.message, caught.value.remote) == ("C says: no product", True)


@streaming
async def test_stream_in_a_stream(wire: str, arity: Arity) -> None:
    """A handler may hand on the replies of its own call one by one; giving the outer stream up ends the inner one."""
    async with open_world(wire, arity, behave=(blocked := Blocked(replies=2))) as c:

        async def handing_on(requests: Any, context: Context) -> AsyncIterator[StringValue]:
            async for reply in c.start():  # type: ignore[union-attr]  # a stream
                yield reply

        async with open_world(wire, arity, behave=handing_on) as b:
            async with b.start() as replies:  # type: ignore[union-attr]  # a stream
                assert [(await anext(replies)).value for _ in range(2)] == ["0", "1"]
            await soon(blocked.ended.wait())


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")


async def test_context_variables(world: World) -> None:
    """The handler's context variables are its own: neither side sees what the other sets."""
    seen: list[str] = []

    async def behave(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        seen.append(variable.get())
        variable.set("the server's")
        async for request in requests:
            seen.append(variable.get())
            yield request

    world.serve(behave)
    variable.set("the client's")
    await world.call()
    await world.call()
    assert variable.get() == "the client's"
    assert current.get() is None
    assert seen == ["nothing", "the server's"] * 2


@only(client_streaming=True)
async def test_request_iterator_runs_in_the_context_of_the_caller(world: World) -> None:
    """An iterator of requests sees the caller's variables, and no call that is being served."""
    seen: list[tuple[str, Call | None]] = []

    async def source() -> AsyncIterator[StringValue]:
        seen.append((variable.get(), current.get()))
        yield text("a")

    variable.set("the client's")
    await world.call(source=source())
    assert seen == [("the client's", None)]


async def test_calls_outside_of_a_handler_inherit_nothing(wire: str, arity: Arity) -> None:
    """After a call with a short deadline the next one, in the same task, has its own."""
    async with open_world(wire, arity, behave=(last := Last())) as world:
        await world.call(timeout=5)
        await EchoClient(world.channel).UnaryUnary(text("a"))
    assert last.remaining is not None
    assert 5 < last.remaining <= 10.1
