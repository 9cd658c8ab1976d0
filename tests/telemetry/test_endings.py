"""However a call ends, its spans say so: on the client, for the attempt and on the server, once each."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from framework import DeadlineExceeded, Internal, NotFound
from framework.rpc import StreamReply
from framework.telemetry.names import CLIENT_DURATION, SERVER_DURATION, SERVER_IN_FLIGHT
from framework.telemetry.telemetry import active
from tests.invariants.conftest import ARITIES, Arity, World, collect, open_world, soon, until
from tests.invariants.echo import text
from tests.telemetry.lab import Recorder, told

pytestmark = pytest.mark.parametrize(
    ("wire", "maker"), [("grpc", "framework"), ("memory", "framework"), ("memory", "sdk")], indirect=["maker"]
)


@pytest.fixture(params=ARITIES)
def arity(request: pytest.FixtureRequest) -> Arity:
    """How the method streams."""
    return ARITIES[request.param]


@asynccontextmanager
async def world_of(recorder: Recorder, wire: str, arity: Arity) -> AsyncIterator[World]:
    """A service that is watched, and a client of it."""
    active.set(recorder.telemetry)
    async with open_world(wire, arity) as world:
        yield world


async def three(recorder: Recorder, world: World) -> tuple[ReadableSpan, ReadableSpan, ReadableSpan]:
    """The spans of the only call: of the client, the attempt, and the server. There are no others."""
    await until(lambda: len(recorder.spans) >= 3)
    await world.endings()
    client, attempt, server = recorder.spans
    assert client.parent is None
    assert (attempt.parent and attempt.parent.span_id) == (client.context and client.context.span_id)
    assert (server.parent and server.parent.span_id) == (attempt.context and attempt.context.span_id)
    assert [span.kind.name for span in (client, attempt, server)] == ["CLIENT", "INTERNAL", "SERVER"]
    return client, attempt, server


def ending(span: ReadableSpan) -> tuple[StatusCode, Any, Any]:
    """Its status, code and type of error."""
    attributes = told(span)
    return span.status.status_code, attributes.get("rpc.response.status_code"), attributes.get("error.type")


async def test_ok(recorder: Recorder, wire: str, arity: Arity) -> None:
    """A call that succeeds leaves the status unset, and is counted."""
    async with world_of(recorder, wire, arity) as world:
        await world.call("a")
        client, attempt, server = await three(recorder, world)
        assert ending(client) == (StatusCode.UNSET, "OK", None)
        assert ending(attempt) == (StatusCode.UNSET, None, None)
        assert ending(server) == (StatusCode.UNSET, "OK", None)
        assert told(client)["rpc.method"] == client.name == told(server)["rpc.method"]
        assert "network.peer.address" in told(attempt)
        assert (
            recorder.value(CLIENT_DURATION, rpc_response_status_code="OK"),
            recorder.value(SERVER_DURATION, rpc_response_status_code="OK"),
        ) == (1, 1)
        assert recorder.value(SERVER_IN_FLIGHT) == 0


async def test_an_answer_that_is_no_success(recorder: Recorder, wire: str, arity: Arity) -> None:
    """NOT_FOUND is an error to who asked, and none of the server."""
    async with world_of(recorder, wire, arity) as world:

        async def behave(requests: Any, context: Any) -> AsyncIterator[Any]:
            if requests is not None:
                raise NotFound("no such thing")
            yield text("")

        world.serve(behave)
        with pytest.raises(NotFound):
            await world.call("a")
        client, attempt, server = await three(recorder, world)
        assert (StatusCode.ERROR, "NOT_FOUND", "NOT_FOUND") == ending(client) == ending(attempt)
        assert client.status.description == "no such thing"
        assert ending(server) == (StatusCode.UNSET, "NOT_FOUND", None)


async def test_an_unhandled_error(recorder: Recorder, wire: str, arity: Arity) -> None:
    """What a handler does not catch is an error of the server, which knows what it was."""
    async with world_of(recorder, wire, arity) as world:

        async def behave(requests: Any, context: Any) -> AsyncIterator[Any]:
            if requests is not None:
                raise ValueError("boom")
            yield text("")

        world.serve(behave)
        with pytest.raises(Internal):
            await world.call("a")
        client, _, server = await three(recorder, world)
        assert ending(client) == (StatusCode.ERROR, "INTERNAL", "INTERNAL")
        assert ending(server) == (StatusCode.ERROR, "INTERNAL", "ValueError")
        assert [event.name for event in server.events] == ["exception"]
        assert "boom" not in str(client.status.description)


async def test_a_deadline(recorder: Recorder, wire: str, arity: Arity) -> None:
    """A deadline is told on both sides."""
    async with world_of(recorder, wire, arity) as world:
        world.serve(forever)
        with pytest.raises(DeadlineExceeded):
            await world.call("a", timeout=0.1)
        client, attempt, server = await three(recorder, world)
        assert (StatusCode.ERROR, "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED") == ending(client) == ending(attempt)
        passed = (StatusCode.ERROR, "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
        gone = (StatusCode.UNSET, "CANCELLED", None)  # its caller's clock was first, and by more than is made up for
        assert ending(server) in (passed, gone)


async def test_a_cancelled_call(recorder: Recorder, wire: str, arity: Arity) -> None:
    """A call that its caller cancels is CANCELLED, which is no error of the server."""
    async with world_of(recorder, wire, arity) as world:
        entered = asyncio.Event()

        async def behave(requests: Any, context: Any) -> AsyncIterator[Any]:
            entered.set()
            await asyncio.Event().wait()
            yield text("")

        world.serve(behave)
        task = asyncio.create_task(collect(world.start("a")))
        await soon(entered.wait())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(task)
        client, attempt, server = await three(recorder, world)
        assert (StatusCode.ERROR, "CANCELLED", "CANCELLED") == ending(client) == ending(attempt)
        assert ending(server) == (StatusCode.UNSET, "CANCELLED", None)


@pytest.mark.parametrize("arity", ["unary_stream", "stream_stream"], indirect=True)
async def test_an_abandoned_stream(recorder: Recorder, wire: str, arity: Arity) -> None:
    """A stream whose reader goes is CANCELLED on both sides, when it is dropped."""
    async with world_of(recorder, wire, arity) as world:
        world.serve(one_and_more)
        reply = world.start("a")
        assert isinstance(reply, StreamReply)
        assert (await anext(reply)).value == "one"
        assert recorder.spans == []
        del reply
        gc.collect()
        client, attempt, server = await three(recorder, world)
        assert (StatusCode.ERROR, "CANCELLED", "CANCELLED") == ending(client) == ending(attempt)
        assert ending(server) == (StatusCode.UNSET, "CANCELLED", None)


async def test_what_a_handler_adds(recorder: Recorder, wire: str, arity: Arity) -> None:
    """The span of the call is current in its handler, before and after it waits, and in nobody else's context."""
    async with world_of(recorder, wire, arity) as world:

        async def behave(requests: Any, context: Any) -> AsyncIterator[Any]:
            trace.get_current_span().set_attribute("before", True)
            await asyncio.sleep(0)
            trace.get_current_span().set_attribute("after", True)
            yield text("one")

        world.serve(behave)
        await world.call("a")
        *_, server = await three(recorder, world)
        assert (told(server)["before"], told(server)["after"]) == (True, True)
        assert trace.INVALID_SPAN is trace.get_current_span()


async def forever(requests: Any, context: Any) -> AsyncIterator[Any]:
    """Never answers."""
    await asyncio.Event().wait()
    yield text("")


async def one_and_more(requests: Any, context: Any) -> AsyncIterator[Any]:
    """Answers once, and keeps the stream open."""
    yield text("one")
    await asyncio.Event().wait()
