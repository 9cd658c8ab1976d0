"""Handlers that fail: what the caller is told, and what only the server's log has."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import Int32Value, StringValue
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo

from framework import Code, Context, Internal, InvalidArgument, NotFound, RpcError, Unavailable, connect
from framework.errors import BY_CODE
from tests.invariants.conftest import Arity, World, collect, only, open_world, soon, streaming, uploading
from tests.invariants.echo import EchoClient, raising, text


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK], ids=lambda code: code.name)
@only(client_streaming=False, server_streaming=False)
async def test_whole_family(world: World, code: Code) -> None:
    """Each error that a handler raises is raised by the call."""
    world.serve(raising(BY_CODE[code]("because")))
    with pytest.raises(BY_CODE[code]) as caught:
        await world.call()
    assert (type(caught.value), caught.value.message) == (BY_CODE[code], "because")
    assert await world.endings() == ([(code, True, True)], [(code, False, True)])


async def test_everything_an_error_carries(world: World) -> None:
    """Message, details and trailing metadata arrive; the error says that the peer sent it, and in which call."""
    details = [ErrorInfo(reason="gone", domain="echo"), BadRequest()]
    metadata = (("why", "it was eaten"), ("proof-bin", b"\x00\xff"))
    world.serve(raising(NotFound("no product ü9", details=details, metadata=metadata)))
    with pytest.raises(NotFound) as caught:
        await world.call()
    error = caught.value
    assert (error.code, error.message, list(error.details)) == (Code.NOT_FOUND, "no product ü9", details)
    assert error.metadata == metadata
    assert (error.remote, error.sent, error.attempts) == (True, True, 1)
    assert error.method == f"echo.v1.Echo/{world.arity.method}"
    assert await world.endings() == ([(Code.NOT_FOUND, True, True)], [(Code.NOT_FOUND, False, True)])


@only(client_streaming=False)
@pytest.mark.parametrize(
    "error",
    [
        NotFound("m" * 10_000),
        NotFound("m" * 100_000),
        NotFound("mm", details=[ErrorInfo(reason="x" * 100_000)]),
        NotFound("mm", metadata=(("why", "x" * 100_000),)),
    ],
    ids=["10 kB", "100 kB", "details", "metadata"],
)
async def test_error_that_is_too_large(world: World, error: NotFound) -> None:
    """An error that does not fit into the trailers of a call keeps its code and the beginning of its message."""
    world.serve(raising(error))
    for _ in range(5):
        with pytest.raises(NotFound, match="mm"):
            await world.call()


async def test_details_of_a_type_of_ones_own(world: World) -> None:
    """A detail may be any message."""
    world.serve(raising(NotFound("gone", details=[text("mine")])))
    with pytest.raises(NotFound) as caught:
        await world.call()
    assert list(caught.value.details) == [text("mine")]


async def test_trailing_metadata_of_context_and_error(world: World) -> None:
    """What the handler set before it failed arrives with what its error carries."""

    async def behave(requests: Any, context: Context) -> AsyncIterator[StringValue]:
        context.set_trailing_metadata((("cost", "7"),))
        yield text("not seen when there is one reply")
        raise NotFound("gone", metadata=(("why", "eaten"),))

    world.serve(behave)
    with pytest.raises(NotFound) as caught:
        await world.call()
    assert caught.value.metadata == (("cost", "7"), ("why", "eaten"))


async def test_abort(world: World) -> None:
    """`context.abort` is the way of grpc.aio to say the same."""

    async def behave(requests: Any, context: Context) -> AsyncIterator[StringValue]:
        yield text("not seen when there is one reply")
        await context.abort(Code.NOT_FOUND, "gone", (("why", "eaten"),))

    world.serve(behave)
    with pytest.raises(NotFound) as caught:
        await world.call()
    assert (caught.value.message, caught.value.metadata) == ("gone", (("why", "eaten"),))
    assert await world.endings() == ([(Code.NOT_FOUND, True, True)], [(Code.NOT_FOUND, False, True)])


async def test_status_set_and_returned(world: World) -> None:
    """`context.set_code` and a return are the other way of grpc.aio to fail."""

    async def behave(requests: Any, context: Context) -> AsyncIterator[StringValue]:
        context.set_code(Code.NOT_FOUND)
        context.set_details("gone")
        yield text("not seen when there is one reply")

    world.serve(behave)
    with pytest.raises(NotFound) as caught:
        await world.call()
    assert caught.value.message == "gone"
    assert await world.endings() == ([(Code.NOT_FOUND, True, True)], [(Code.NOT_FOUND, False, True)])


async def test_unexpected_exception(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The caller gets INTERNAL with an id; the text stands only in the log of the server, under the same id."""
    world.serve(raising(ValueError("the password is 1234")))
    with caplog.at_level(logging.ERROR, "framework"), pytest.raises(Internal) as caught:
        await world.call()
    [record] = [r for r in caplog.records if r.levelno >= logging.ERROR and r.name == "framework.server"]
    error_id = record.getMessage().split()[-1]
    assert len(error_id) >= 8
    assert error_id in caught.value.message
    assert "1234" not in repr((caught.value.message, caught.value.details, caught.value.metadata))
    assert record.exc_info is not None
    assert repr(record.exc_info[1]) == "ValueError('the password is 1234')"
    assert await world.endings() == ([(Code.INTERNAL, True, True)], [(Code.INTERNAL, False, True)])


@pytest.mark.parametrize("remote", [True, False])
async def test_downstream_error_that_escapes(world: World, remote: bool, caplog: pytest.LogCaptureFixture) -> None:
    """An error of a call that the handler made itself is no answer to its caller: INTERNAL, the text in the log."""
    downstream = NotFound("no secret 7", remote=remote, attempts=1, method="other.v1.Other/Get")
    world.serve(raising(downstream))
    with caplog.at_level(logging.ERROR, "framework"), pytest.raises(Internal) as caught:
        await world.call()
    assert "secret" not in caught.value.message
    assert "secret" in caplog.text
    assert await world.endings() == ([(Code.INTERNAL, True, True)], [(Code.INTERNAL, False, True)])


async def test_real_downstream_failure(world: World) -> None:
    """The error of a real client inside a handler is INTERNAL too, whatever it was."""

    async def behave(requests: Any, context: Context) -> AsyncIterator[StringValue]:
        async with connect("static://127.0.0.1:1") as channel:
            await channel.unary_unary("/other.v1.Other/Get")(b"")
            yield text("never")

    world.serve(behave)
    with pytest.raises(Internal):
        await world.call()


async def test_mapped_exception(wire: str, arity: Arity) -> None:
    """A table says which error an exception of the user's own becomes; subclasses follow their base."""

    class Missing(LookupError):
        pass

    async with open_world(wire, arity, behave=raising(Missing("p9")), errors={LookupError: NotFound}) as world:
        with pytest.raises(NotFound) as caught:
            await world.call()
        assert (caught.value.message, caught.value.remote) == ("p9", True)
        assert await world.endings() == ([(Code.NOT_FOUND, True, True)], [(Code.NOT_FOUND, False, True)])


@pytest.mark.parametrize("read", [True, False])
async def test_handler_raises_cancelled_error(world: World, read: bool) -> None:
    """A cancellation that the handler made up itself is a failure of the server: the caller does not wait for ever."""
    world.serve(raising(asyncio.CancelledError(), read=read))
    with pytest.raises(Internal) as caught:
        await soon(world.call())
    assert caught.value.remote
    assert await world.endings() == ([(Code.INTERNAL, True, True)], [(Code.INTERNAL, False, True)])


async def test_handler_awaits_a_cancelled_task(world: World) -> None:
    """The usual way to make one up: a task of the handler's was cancelled by somebody else."""

    async def behave(requests: Any, context: Context) -> AsyncIterator[StringValue]:
        task = asyncio.create_task(asyncio.sleep(3600))
        asyncio.get_running_loop().call_soon(task.cancel)
        await task
        yield text("never")

    world.serve(behave)
    with pytest.raises(Internal):
        await soon(world.call())


async def test_timeout_error_in_a_handler(world: World) -> None:
    """A TimeoutError of the handler's own is unexpected like any other: not the caller's deadline."""
    world.serve(raising(TimeoutError("database")))
    with pytest.raises(Internal):
        await world.call()


@streaming
async def test_failure_after_some_messages(world: World) -> None:
    """What was sent before a stream failed arrives, then the error."""
    world.serve(raising(Unavailable("restarting", metadata=(("after", "3"),)), replies=3))
    got: list[str] = []
    with pytest.raises(Unavailable) as caught:
        await collect(world.start(), got)
    assert got == ["0", "1", "2"]
    assert (caught.value.message, caught.value.remote, caught.value.metadata) == ("restarting", True, (("after", "3"),))
    assert await world.endings() == ([(Code.UNAVAILABLE, True, True)], [(Code.UNAVAILABLE, False, True)])


@streaming
async def test_unexpected_exception_after_some_messages(world: World) -> None:
    """The text of an exception does not leak in the middle of a stream either."""
    world.serve(raising(ValueError("secret"), replies=2))
    with pytest.raises(Internal, match=r"^(?!.*secret)"):
        await world.call()


@uploading
async def test_failure_before_the_requests_are_read(world: World) -> None:
    """A handler that fails at once ends an upload that is still going on."""
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[StringValue]:
        try:
            while True:
                yield text("x" * 1000)
        finally:
            closed.set()

    world.serve(raising(InvalidArgument("no"), read=False))
    with pytest.raises(InvalidArgument):
        await soon(world.call(source=endless()))
    await soon(closed.wait())
    assert await world.endings() == ([(Code.INVALID_ARGUMENT, True, True)], [(Code.INVALID_ARGUMENT, False, True)])


async def test_wrong_type_of_reply(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A reply of another class is INTERNAL to the caller; the log names the method and both classes."""

    async def behave(requests: Any, context: Context) -> AsyncIterator[Any]:
        yield Int32Value(value=1)

    world.serve(behave)
    with caplog.at_level(logging.ERROR, "framework"), pytest.raises(Internal):
        await world.call()
    for word in (world.arity.method, "StringValue", "Int32Value"):
        assert word in caplog.text
    assert await world.endings() == ([(Code.INTERNAL, True, True)], [(Code.INTERNAL, False, True)])


@only(server_streaming=False)
async def test_no_reply_at_all(world: World) -> None:
    """A handler that forgets to return its reply is INTERNAL."""

    async def behave(requests: Any, context: Context) -> AsyncIterator[Any]:
        for _ in ():
            yield

    world.serve(behave)
    with pytest.raises(Internal):
        await world.call()


async def test_wrong_type_of_request(world: World) -> None:
    """A request of another class is a TypeError of the caller's, naming the method and both classes."""
    wrong: Any = Int32Value(value=1)
    argument = [text("a"), wrong] if world.arity.client_streaming else wrong
    with pytest.raises(TypeError) as caught:
        await soon(collect(getattr(EchoClient(world.channel), world.arity.method)(argument)))
    for word in (world.arity.method, "StringValue", "Int32Value"):
        assert word in str(caught.value)
    assert [outcome.remote for outcome in world.called] == [False]


async def test_attempts_and_text_of_an_error(world: World) -> None:
    """An error reads well in a traceback."""
    world.serve(raising(NotFound("no product p9")))
    with pytest.raises(RpcError) as caught:
        await world.call()
    assert str(caught.value) == f"NOT_FOUND: no product p9 [echo.v1.Echo/{world.arity.method}]"
    assert repr(caught.value) == "<NotFound 'no product p9' remote sent=True attempts=1>"
