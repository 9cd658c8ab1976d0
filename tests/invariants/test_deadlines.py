"""Deadlines: enforced on both sides, refused when they have passed, and told from everything else."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from framework import ClientSettings, Code, Context, DeadlineExceeded, Internal, MethodSettings, RpcError
from framework.rpc import Method, UnaryReply
from framework.testing.virtual_time import VirtualTimeLoop
from tests.invariants.conftest import Arity, World, collect, ending, only, open_world, soon, streaming, until, uploading
from tests.invariants.echo import Blocked, never, repeat, text

SHORT = 0.25
LATE = (Code.DEADLINE_EXCEEDED, False, True)
GAVE_UP = (Code.CANCELLED, True, True)
in_memory = pytest.mark.parametrize("wire", ["memory"], indirect=True)


async def both_know(world: World, count: int = 1) -> None:
    """The calls ended as late at the client, and at the server.

    On a busy machine the client's own timer may run out, and its cancellation arrive, before the server's: a network
    does not tell these apart.
    """
    client, server = await world.endings(count)
    assert client == [LATE] * count
    assert set(server) <= ({LATE} if world.in_memory else {LATE, GAVE_UP})


async def ended_late(world: World, blocked: Blocked, source: Any = None) -> DeadlineExceeded:
    """Call a handler that outlives the deadline; the error, once the handler has ended."""
    world.serve(blocked)
    with pytest.raises(DeadlineExceeded) as caught:
        await soon(world.call(source=source, timeout=SHORT))
    await soon(blocked.ended.wait())
    return caught.value


async def test_handler_that_outlives_its_deadline(world: World) -> None:
    """The caller gets DEADLINE_EXCEEDED, made in its own process, and the handler is cancelled; both know why."""
    error = await ended_late(world, blocked := Blocked())
    assert (error.remote, error.sent, error.attempts) == (False, True, 1)
    assert error.method == f"echo.v1.Echo/{world.arity.method}"
    assert isinstance(blocked.error, asyncio.CancelledError)
    await both_know(world)


async def test_after_headers(world: World) -> None:
    """The same once response headers have arrived."""
    await ended_late(world, Blocked(header=True))
    await both_know(world)


@streaming
async def test_in_mid_stream(world: World) -> None:
    """The same in the middle of the replies, which arrive."""
    world.serve(blocked := Blocked(replies=3))
    got: list[str] = []
    with pytest.raises(DeadlineExceeded):
        await soon(collect(world.start(timeout=SHORT), got))
    await soon(blocked.ended.wait())
    assert got == ["0", "1", "2"]
    await both_know(world)


@uploading
async def test_in_mid_upload(world: World) -> None:
    """The same while requests are still to come, and the caller's iterator is closed."""
    closed = asyncio.Event()

    async def silent() -> AsyncIterator[StringValue]:
        try:
            yield text("a")
            await never()
        finally:
            closed.set()

    await ended_late(world, Blocked(read=None), silent())
    await soon(closed.wait())
    await both_know(world)


@uploading
async def test_while_sending(world: World) -> None:
    """A deadline that passes while the caller sends is a deadline too, whatever grpc calls it."""

    async def endless() -> AsyncIterator[StringValue]:
        while True:
            yield text("x" * 50_000)
            await asyncio.sleep(0)

    async def slow(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        async for _ in requests:
            await asyncio.sleep(0.001)
        yield text("never")

    world.serve(slow)
    replies = [collect(world.start(source=endless(), timeout=SHORT)) for _ in range(20)]
    errors = await soon(asyncio.gather(*replies, return_exceptions=True))
    assert {(type(error), getattr(error, "remote", None)) for error in errors} == {(DeadlineExceeded, False)}


@uploading
async def test_upload_that_ends_at_the_deadline(world: World) -> None:
    """An upload that comes to its end in the moment of its deadline is late or complete, and nothing else."""
    rng = random.Random(1)

    async def ending_late() -> AsyncIterator[StringValue]:
        yield text("a")
        await asyncio.sleep(0.1 + rng.uniform(-0.002, 0.004))

    for _ in range(4):
        replies = [collect(world.start(source=ending_late(), timeout=0.1)) for _ in range(100)]
        errors = await asyncio.gather(*replies, return_exceptions=True)
        assert {type(error) for error in errors if error != ["a"]} <= {DeadlineExceeded}


async def test_handler_that_waits_for_its_own_deadline(world: World) -> None:
    """`context.time_remaining()` and `context.deadline` tell the handler how long it has."""
    seen: list[float | None] = []

    async def behave(requests: Any, context: Context) -> AsyncIterator[StringValue]:
        assert context.deadline is not None
        seen.extend([context.time_remaining(), context.deadline - asyncio.get_running_loop().time()])
        yield text("a")

    world.serve(behave)
    await world.call(timeout=30)
    assert seen == [pytest.approx(30, abs=5)] * 2


@pytest.mark.parametrize("timeout", [0.0, -1.0])
async def test_no_time_at_all(world: World, timeout: float) -> None:
    """A call without time left is not sent."""
    with pytest.raises(DeadlineExceeded) as caught:
        await world.call(timeout=timeout)
    assert (caught.value.remote, caught.value.sent) == (False, False)
    assert world.served == []
    assert [(outcome.code, outcome.sent) for outcome in world.called] == [(Code.DEADLINE_EXCEEDED, False)]


async def test_deadline_that_the_handler_reports_itself(world: World) -> None:
    """A DEADLINE_EXCEEDED that the handler raises is an answer of the peer's: remote."""

    async def behave(requests: Any, context: Context) -> AsyncIterator[StringValue]:
        yield text("a")
        raise DeadlineExceeded("the database is slow")

    world.serve(behave)
    with pytest.raises(DeadlineExceeded) as caught:
        await world.call()
    assert (caught.value.message, caught.value.remote) == ("the database is slow", True)


async def test_failure_just_before_the_deadline(world: World) -> None:
    """What the handler raises in time is what the caller gets, however little time is left."""

    async def behave(requests: Any, context: Context) -> AsyncIterator[StringValue]:
        yield text("a")
        raise ValueError("mine")

    world.serve(behave)
    with pytest.raises(Internal):
        await world.call(timeout=5)


async def test_expired_in_the_queue(world: World) -> None:
    """A call whose deadline passes before its turn never reaches the handler."""
    runs: list[float | None] = []

    async def behave(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        runs.append(context.time_remaining())
        async for request in requests:
            yield request

    world.serve(behave)
    calls = [asyncio.ensure_future(world.call(timeout=0.1)) for _ in range(20)]
    for _ in range(5):
        await asyncio.sleep(0)
    time.sleep(0.3)  # noqa: ASYNC251  # the loop is busy with something else
    done, _ = await asyncio.wait(calls)
    assert 0.0 not in runs
    assert all(isinstance(call.exception(), DeadlineExceeded) or call.result() == ["a"] for call in done)


@only(server_streaming=False)
async def test_default_of_one_reply(world: World) -> None:
    """A call with one reply always has a deadline: the setting, when nothing else says."""
    assert await _time_given(world) == pytest.approx(10.0, abs=5.0)


@streaming
async def test_no_default_of_streams(world: World) -> None:
    """A stream of replies has none."""
    assert await _time_given(world) is None


async def test_order_of_say(wire: str, arity: Arity) -> None:
    """A method's own settings stand above those of the service, and the call's `timeout` above both."""
    settings = ClientSettings(timeout=100, methods={arity.method: MethodSettings(timeout=200)})
    async with open_world(wire, arity, settings=settings) as world:
        assert await _time_given(world) == pytest.approx(200, abs=20)
        assert await _time_given(world, timeout=300) == pytest.approx(300, abs=20)


@only(client_streaming=False, server_streaming=False)
@pytest.mark.parametrize(("own", "expected"), [(None, 50.0), (MethodSettings(timeout=200), 200.0)])
async def test_timeout_of_the_proto(wire: str, arity: Arity, own: MethodSettings | None, expected: float) -> None:
    """What the proto says stands between the settings of the service and those of the method."""
    proto = Method("echo.v1.Echo", "UnaryUnary", StringValue, StringValue, timeout=50.0)
    settings = ClientSettings(timeout=100, methods={"UnaryUnary": own} if own else {})
    async with open_world(wire, arity, settings=settings) as world:
        seen = _watch_time(world)
        await UnaryReply(world.channel.bind(proto), proto, text("a"))
        assert seen == [pytest.approx(expected, abs=20)]


def _watch_time(world: World) -> list[float | None]:
    seen: list[float | None] = []

    async def behave(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        seen.append(context.time_remaining())
        async for request in requests:
            yield request

    world.serve(behave)
    return seen


async def _time_given(world: World, timeout: float | None = None) -> float | None:
    seen = _watch_time(world)
    await world.call(timeout=timeout)
    return seen[0]


@streaming
async def test_idle_stream(wire: str, arity: Arity) -> None:
    """A stream that is silent for too long while somebody reads ends with DEADLINE_EXCEEDED, and its handler too."""
    blocked = Blocked(replies=2)
    async with open_world(wire, arity, behave=blocked, settings=ClientSettings(idle=0.2)) as world:
        got: list[str] = []
        with pytest.raises(DeadlineExceeded, match=r"no message for 0\.2 s") as caught:
            await soon(collect(world.start(), got))
        assert (got, caught.value.remote) == (["0", "1"], False)
        await soon(blocked.ended.wait())
        assert await world.endings() == ([(Code.DEADLINE_EXCEEDED, False, True)], [(Code.CANCELLED, True, True)])


@streaming
async def test_idle_before_the_first_message(wire: str, arity: Arity) -> None:
    """So does one that never says anything."""
    blocked = Blocked()
    async with open_world(wire, arity, behave=blocked, settings=ClientSettings(idle=0.2)) as world:
        with pytest.raises(DeadlineExceeded, match="idle"):
            await soon(world.call())
        await soon(blocked.ended.wait())


@streaming
async def test_slow_reader_is_not_an_idle_stream(wire: str, arity: Arity) -> None:
    """Time in which nobody waits for a message does not count."""
    async with open_world(wire, arity, behave=Blocked(replies=3), settings=ClientSettings(idle=0.2)) as world:
        got: list[str] = []
        async with world.start() as replies:  # type: ignore[union-attr]  # a stream
            async for reply in replies:
                got.append(reply.value)
                await asyncio.sleep(0.3)
                if len(got) == 3:
                    break
    assert got == ["0", "1", "2"]


@pytest.mark.virtual_time
@in_memory
@streaming
async def test_idle_for_days(wire: str, arity: Arity) -> None:
    """Without an idle timeout a stream may be silent for ever; with one, each message starts it again."""

    async def daily(requests: Any, context: Context) -> AsyncIterator[StringValue]:
        for day in range(3):
            await asyncio.sleep(86_400)
            yield text(str(day))

    for idle in (None, 90_000.0):
        async with open_world(wire, arity, behave=daily, settings=ClientSettings(idle=idle)) as world:
            assert await world.call() == ["0", "1", "2"]


@pytest.mark.virtual_time
@in_memory
async def test_exact_moment(wire: str, arity: Arity) -> None:
    """In virtual time both sides end at the very moment of the deadline."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    blocked = Blocked()
    async with open_world(wire, arity, behave=blocked) as world:
        start = loop.time()
        with pytest.raises(DeadlineExceeded):
            await world.call(timeout=20)
        assert loop.time() - start == pytest.approx(20)
        await asyncio.sleep(0)
        assert blocked.ended.is_set()


@pytest.mark.virtual_time
@in_memory
@only(server_streaming=False)
async def test_exact_default(wire: str, arity: Arity) -> None:
    """The default holds: a silent peer costs ten seconds, not for ever."""
    async with open_world(wire, arity, behave=Blocked()) as world:
        start = asyncio.get_running_loop().time()
        with pytest.raises(DeadlineExceeded):
            await world.call()
        assert asyncio.get_running_loop().time() - start == pytest.approx(10.0)


async def test_handler_that_swallows_the_deadline(world: World) -> None:
    """A handler that carries on past its deadline has nobody to answer; the call has ended as late, not as OK."""

    async def stubborn(requests: Any, context: Context) -> AsyncIterator[StringValue]:
        try:
            await never()
        except asyncio.CancelledError:
            yield text("too late")

    world.serve(stubborn)
    with pytest.raises(DeadlineExceeded):
        await soon(world.call(timeout=SHORT))
    await both_know(world)


async def test_many_at_once(world: World) -> None:
    """Of many calls that all run out of time each ends once on both sides, none as anything else."""
    world.serve(_forever)
    replies = [world.start(timeout=SHORT + number / 1000) for number in range(100)]
    errors = await asyncio.gather(*(collect(reply) for reply in replies), return_exceptions=True)
    assert {type(error) for error in errors} == {DeadlineExceeded}
    assert {error.remote for error in errors if isinstance(error, RpcError)} == {False}
    await until(lambda: world.idle)
    assert [ending(outcome) for outcome in world.called] == [LATE] * 100
    assert {ending(outcome) for outcome in world.served} <= {LATE, GAVE_UP}


async def _forever(requests: Any, context: Context) -> AsyncIterator[StringValue]:
    await never()
    yield text("never")


async def test_call_that_is_in_time(world: World) -> None:
    """A deadline that is met leaves no trace."""
    world.serve(repeat)
    assert await world.call(timeout=5) == ["a"]
    assert await world.endings() == ([(Code.OK, True, True)], [(Code.OK, True, True)])
