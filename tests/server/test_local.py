"""Calls of a service in the same process, without a wire, on all four arities."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf.wrappers_pb2 import Int32Value

from framework import Call, Context, DeadlineExceeded, Internal, NotFound, Outcome, Unimplemented
from framework.call import current
from framework.config import ServerMethodSettings, ServerSettings
from framework.rpc import Method, StreamReply
from framework.server.local import Local
from framework.server.pipeline import Pipeline
from tests.invariants.conftest import ARITIES, Arity, arity, collect, recording, soon, streaming
from tests.invariants.echo import Blocked, Echo, EchoClient, EchoMethods, raising, text

__all__ = ["arity"]  # a fixture


class Echoes:
    """An echo service, and calls of one of its methods."""

    def __init__(self, arity: Arity, settings: ServerSettings | None = None) -> None:
        self.servicer = Echo()
        self.served: list[Outcome] = []
        self.pipeline = Pipeline([recording(self.served)], settings=settings)
        self.pipeline.add(self.servicer)
        self.arity = arity
        self._call = getattr(EchoClient(Local(self.pipeline)), arity.method)

    def start(self, *requests: str, **more: Any) -> Any:
        messages = [text(request) for request in requests or ("a",)]
        return self._call(messages if self.arity.client_streaming else messages[0], **more)

    @property
    def codes(self) -> list[str]:
        assert not self.pipeline.calls
        return [outcome.code.name for outcome in self.served]


@pytest_asyncio.fixture
async def local(arity: Arity) -> Echoes:
    return Echoes(arity)


async def test_a_call(local: Echoes) -> None:
    """The reply is there, the call has ended, and only the handler saw it as the one that is served."""
    seen: list[Any] = []

    async def behave(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        async for request in requests:
            seen.append(current.get() is context.call)
            yield request

    local.servicer.behave = behave
    reply = local.start("a")
    if isinstance(reply, StreamReply):
        assert [(message.value, current.get()) async for message in reply] == [("a", None)]
    else:
        assert (await reply).value == "a"
    assert (seen, local.codes, current.get()) == ([True], ["OK"], None)


async def test_a_failure(local: Echoes) -> None:
    """An error of the handler is the caller's, with the id of the request."""
    local.servicer.behave = raising(NotFound("nobody"))
    with pytest.raises(NotFound, match="nobody") as raised:
        await collect(local.start("a", metadata=(("x-request-id", "r1"),)))
    assert (raised.value.request_id, local.codes, current.get()) == ("r1", ["NOT_FOUND"], None)


async def test_a_bug(local: Echoes, caplog: pytest.LogCaptureFixture) -> None:
    """An exception is not told to the caller, as over a wire."""
    local.servicer.behave = raising(ZeroDivisionError("secret"))
    with pytest.raises(Internal) as raised:
        await collect(local.start("a"))
    assert "secret" not in str(raised.value)
    assert "secret" in caplog.text


async def test_a_reply_of_the_wrong_class(local: Echoes) -> None:
    """A handler that returns another message has a bug."""

    async def behave(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        yield Int32Value(value=1)

    local.servicer.behave = behave
    with pytest.raises(Internal):
        await collect(local.start("a"))
    assert local.codes == ["INTERNAL"]


async def test_metadata(local: Echoes) -> None:
    """What the caller sends is the handler's, and headers and trailers come back."""
    seen: list[Any] = []

    async def behave(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        seen.extend(context.invocation_metadata())
        await context.send_initial_metadata((("early", "yes"),))
        context.set_trailing_metadata((("late", "too"),))
        async for request in requests:
            yield request

    local.servicer.behave = behave
    reply = local.start("a", metadata=(("x-key", "v"),))
    await collect(reply)
    assert seen == [("x-key", "v")]
    assert (reply.call.header, reply.call.trailer) == ((("early", "yes"),), (("late", "too"),))


async def test_a_caller_that_gives_up(local: Echoes) -> None:
    """The handler is cancelled with the task of its caller."""
    local.servicer.behave = blocked = Blocked(read=None)
    task = asyncio.create_task(collect(local.start("a")))
    await soon(blocked.waits.wait())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert isinstance(blocked.error, asyncio.CancelledError)
    assert local.codes == ["CANCELLED"]


async def test_a_call_that_is_late_from_the_start(local: Echoes) -> None:
    """A call whose deadline has passed is not served."""
    reply = local.start("a")
    reply.call.deadline = asyncio.get_running_loop().time() - 1
    with pytest.raises(DeadlineExceeded):
        await collect(reply)
    assert local.codes == []


async def test_a_method_that_takes_too_long(arity: Arity) -> None:
    """The server's own timeout holds here too."""
    local = Echoes(arity, ServerSettings(methods={arity.method: ServerMethodSettings(timeout=0.01)}))
    local.servicer.behave = Blocked(read=None)
    with pytest.raises(DeadlineExceeded, match="took longer than"):
        await soon(collect(local.start("a")))
    assert local.codes == ["DEADLINE_EXCEEDED"]


async def test_a_stream_that_is_read_elsewhere() -> None:
    """A stream that takes too long ends for whoever reads it, and not for whoever has begun it."""
    arity = ARITIES["unary_stream"]
    local = Echoes(arity, ServerSettings(methods={arity.method: ServerMethodSettings(timeout=0.01)}))
    local.servicer.behave = Blocked(replies=1)
    reply: StreamReply[Any] = local.start("a")
    assert (await anext(reply)).value == "0"
    with pytest.raises(DeadlineExceeded, match="took longer than"):
        await asyncio.create_task(soon(collect(reply)))
    await asyncio.sleep(0)  # a cancellation of this task would arrive here
    assert local.codes == ["DEADLINE_EXCEEDED"]


@streaming
async def test_a_stream_that_is_closed(local: Echoes) -> None:
    """A reader that leaves ends the handler."""
    local.servicer.behave = blocked = Blocked(replies=2)
    reply: StreamReply[Any] = local.start("a")
    async with reply:
        async for _ in reply:
            break
    await soon(blocked.ended.wait())
    assert (local.codes, current.get()) == (["CANCELLED"], None)


async def test_a_method_that_is_not_served() -> None:
    """It is UNIMPLEMENTED when it is called, and not before."""
    method = Method[Any, Any]("no.Such", "Method", Int32Value, Int32Value)
    with pytest.raises(Unimplemented, match=r"no.Such/Method is not served here"):
        await Local(Pipeline()).bind(method)(Call(method, text("a")))
    assert EchoMethods.UnaryUnary.full_name == "echo.v1.Echo/UnaryUnary"
