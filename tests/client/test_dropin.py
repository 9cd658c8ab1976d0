"""Stubs and servicers of grpc's own plugin: each pair of their channel or ours, their server or ours, does the same."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from framework import NotFound, RpcError, Service, Settings, connect
from framework.testing import Network
from tests.client.route import Tracked, generated, note, returning, writing
from tests.client.test_connect import NOT_REGISTERED
from tests.invariants.conftest import complaints, soon, until

SIDES = ["plain", "ours"]
STYLES = {"returning": returning, "writing": writing}


@dataclass
class Pair:
    """A stub of grpc's own, and the handlers at the other end."""

    stub: Any
    tracked: Tracked
    ours: bool
    memory: bool = False


def service_of(servicer: Any, **options: Any) -> Service:
    """Our service with a servicer of grpc's own."""

    @asynccontextmanager
    async def lifespan(service: Service) -> AsyncIterator[None]:
        generated()[1].add_RouteServicer_to_server(servicer, service.grpc_server)
        yield

    return Service("route", lifespan=lifespan, settings=NOT_REGISTERED, **options)


@asynccontextmanager
async def served(side: str, servicer: Any) -> AsyncIterator[str]:
    """The address of a server of theirs or ours."""
    if side == "ours":
        async with service_of(servicer).running() as server:
            yield server.address
        return
    plain = grpc.aio.server()
    generated()[1].add_RouteServicer_to_server(servicer, plain)
    port = plain.add_insecure_port("127.0.0.1:0")
    await plain.start()
    yield f"127.0.0.1:{port}"
    await plain.stop(0)


def channel_to(side: str, address: str) -> Any:
    return connect(address, settings=Settings()) if side == "ours" else grpc.aio.insecure_channel(address)


PAIRS = [f"{client} {server} {style}" for client in SIDES for server in SIDES for style in STYLES]
PAIRS += [f"memory {style}" for style in STYLES]
ours = pytest.mark.parametrize("pair", [pair for pair in PAIRS if not pair.startswith("plain")], indirect=True)


@pytest_asyncio.fixture(params=PAIRS)
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    """Every channel with every server, with handlers of either style."""
    *sides, style = request.param.split()
    servicer = STYLES[style](tracked := Tracked())
    async with AsyncExitStack() as stack:
        if sides == ["memory"]:
            network = await stack.enter_async_context(Network())
            network.add(service_of(servicer))
            channel: Any = network.connect("route")
        else:
            address = await stack.enter_async_context(served(sides[1], servicer))
            channel = await stack.enter_async_context(channel_to(sides[0], address))
        yield Pair(generated()[1].RouteStub(channel), tracked, sides[0] != "plain", sides == ["memory"])


async def notes(*texts: str) -> AsyncIterator[Any]:
    for text in texts:
        yield note(text)


def check_gone(pair: Pair, error: grpc.aio.AioRpcError) -> None:
    """The error of a handler that aborted."""
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "gone")
    assert ("why", "eaten") in [tuple(item) for item in error.trailing_metadata() or ()]
    if pair.ours:
        assert isinstance(error.__cause__, NotFound)
        assert (error.__cause__.message, error.__cause__.metadata) == ("gone", (("why", "eaten"),))


async def test_unary_unary(pair: Pair) -> None:
    """A call is awaited, and knows its status."""
    call = pair.stub.Get(note("a"), timeout=5)
    assert (await call).text == "a"
    assert (await call).text == "a"
    assert (await call.code(), await call.details()) == (grpc.StatusCode.OK, "")
    assert (call.done(), call.cancelled(), call.cancel()) == (True, False, False)


async def test_unary_stream(pair: Pair) -> None:
    """Replies are iterated over."""
    call = pair.stub.List(note("a"))
    assert [reply.text async for reply in call] == ["a 0", "a 1", "a 2"]
    assert (await call.code(), call.done()) == (grpc.StatusCode.OK, True)


async def test_unary_stream_by_read(pair: Pair) -> None:
    """Replies are read one by one, up to EOF, again and again."""
    call = pair.stub.List(note("a"))
    assert [(await call.read()).text for _ in range(3)] == ["a 0", "a 1", "a 2"]
    assert [await call.read() for _ in range(2)] == [grpc.aio.EOF] * 2


@pytest.mark.parametrize("kind", ["async", "list"])
async def test_stream_unary(pair: Pair, kind: str) -> None:
    """Requests come from an iterable."""
    requests = notes("a", "b") if kind == "async" else [note("a"), note("b")]
    call = pair.stub.Record(requests)
    assert (await call).text == "a b"
    assert await call.code() is grpc.StatusCode.OK


async def test_stream_unary_by_write(pair: Pair) -> None:
    """Requests are written one by one."""
    call = pair.stub.Record()
    for text in "abc":
        await call.write(note(text))
    await call.done_writing()
    assert (await call).text == "a b c"


async def test_stream_stream(pair: Pair) -> None:
    """Requests from an iterable, replies by iteration."""
    call = pair.stub.Chat(notes("a", "b"))
    assert [reply.text async for reply in call] == ["a", "b"]
    assert await call.code() is grpc.StatusCode.OK


async def test_stream_stream_by_read_and_write(pair: Pair) -> None:
    """A conversation: each request after the reply to the one before."""
    call = pair.stub.Chat()
    for text in "abc":
        await call.write(note(text))
        assert (await call.read()).text == text
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_metadata(pair: Pair) -> None:
    """Headers and trailers, by key and as pairs."""
    call = pair.stub.Get(note("metadata"), metadata=(("my-key", "1"),))
    header = await call.initial_metadata()
    trailer = await call.trailing_metadata()
    assert (header["early"], trailer["cost"]) == ("yes", "7")
    assert ("early", "yes") in [tuple(item) for item in header]
    assert (await call).text == "metadata"


async def test_metadata_of_a_stream(pair: Pair) -> None:
    """The same for a stream, the trailers at its end."""
    call = pair.stub.Chat(notes("metadata"))
    assert (await call.initial_metadata())["early"] == "yes"
    assert [reply.text async for reply in call] == ["metadata"]
    assert (await call.trailing_metadata())["cost"] == "7"


@pytest.mark.parametrize("method", ["Get", "Record"])
async def test_abort(pair: Pair, method: str) -> None:
    """A failure is a real AioRpcError, and ours is its cause."""
    request = note("abort") if method == "Get" else notes("abort")
    call = getattr(pair.stub, method)(request)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    check_gone(pair, caught.value)
    assert (await call.code(), await call.details()) == (grpc.StatusCode.NOT_FOUND, "gone")
    assert (await call.trailing_metadata())["why"] == "eaten"
    assert (call.done(), call.cancelled()) == (True, False)


@pytest.mark.parametrize("method", ["List", "Chat"])
async def test_abort_of_a_stream(pair: Pair, method: str) -> None:
    """So it is after some replies."""
    call = pair.stub.List(note("abort")) if method == "List" else pair.stub.Chat(notes("a", "abort"))
    got: list[str] = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _collect(call, got)
    assert len(got) == (3 if method == "List" else 1)
    check_gone(pair, caught.value)
    assert await call.code() is grpc.StatusCode.NOT_FOUND


async def _collect(call: Any, got: list[str]) -> None:
    async for reply in call:
        got.append(reply.text)


async def _collect_by_read(call: Any) -> list[str]:
    got = []
    while (reply := await call.read()) is not grpc.aio.EOF:
        got.append(reply.text)
    return got


async def test_abort_by_read(pair: Pair) -> None:
    """`read` raises it, too."""
    call = pair.stub.Chat(notes("abort"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    check_gone(pair, caught.value)


async def test_code_that_was_set(pair: Pair) -> None:
    """`context.set_code` and `set_details` fail the call."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await pair.stub.Get(note("code"))
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.NOT_FOUND, "gone")


@pytest.mark.parametrize("method", ["Missing", "MissingStream"])
async def test_method_that_was_not_written(pair: Pair, method: str) -> None:
    """A method that the servicer inherits from generated code is UNIMPLEMENTED."""
    call = pair.stub.Missing(note("a")) if method == "Missing" else pair.stub.MissingStream(notes("a"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (call if method == "Missing" else call.read())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("method", ["Get", "Record"])
async def test_cancel(pair: Pair, method: str) -> None:
    """`cancel()` ends the call and the handler; whoever awaits it is told by CancelledError."""
    call = getattr(pair.stub, method)(note("hang") if method == "Get" else notes("hang"))
    waiter = asyncio.ensure_future(_await(call))
    await soon(pair.tracked.waits.wait())
    assert (call.done(), call.cancelled()) == (False, False)
    assert call.cancel()
    await soon(pair.tracked.ended.wait())
    with pytest.raises(asyncio.CancelledError):
        await soon(waiter)
    await until(call.done)
    assert (call.cancelled(), await call.code(), call.cancel()) == (True, grpc.StatusCode.CANCELLED, False)


async def _await(call: Any) -> Any:
    return await call


@pytest.mark.parametrize("method", ["List", "Chat"])
async def test_cancel_of_a_stream(pair: Pair, method: str) -> None:
    """So it is in the middle of a stream."""
    call = pair.stub.List(note("hang")) if method == "List" else pair.stub.Chat(notes("a", "hang"))
    await call.read()
    await soon(pair.tracked.waits.wait())
    assert call.cancel()
    await soon(pair.tracked.ended.wait())
    assert (call.cancelled(), await call.code()) == (True, grpc.StatusCode.CANCELLED)
    with pytest.raises(asyncio.CancelledError):
        await soon(_collect_by_read(call))


@pytest.mark.parametrize("method", ["Get", "List", "Record", "Chat"])
async def test_cancelling_the_task(pair: Pair, method: str) -> None:
    """Cancelling the task that awaits or reads cancels the call."""
    request = note("hang") if method in ("Get", "List") else notes("hang")
    call = getattr(pair.stub, method)(request)
    got: list[str] = []
    task = asyncio.ensure_future(_await(call) if method in ("Get", "Record") else _collect(call, got))
    await soon(pair.tracked.waits.wait())
    task.cancel()
    await soon(pair.tracked.ended.wait())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await soon(call.code()) is grpc.StatusCode.CANCELLED


async def test_deadline(pair: Pair) -> None:
    """`timeout` is a deadline."""
    call = pair.stub.Get(note("hang"), timeout=0.3)
    remaining = call.time_remaining()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await soon(call)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert remaining is None or 0 < remaining <= 0.3
    await soon(pair.tracked.ended.wait())


async def test_done_callback(pair: Pair) -> None:
    """Callbacks are called with the call when it is over."""
    call = pair.stub.Get(note("a"))
    called: list[Any] = []
    call.add_done_callback(called.append)
    await call
    await until(lambda: called)
    assert called == [call]


@pytest.mark.parametrize("method", ["Record", "Chat"])
async def test_writing_after_the_end(pair: Pair, method: str) -> None:
    """A write after `done_writing`, or after the call has ended, is an InvalidStateError."""
    call = getattr(pair.stub, method)()
    await call.write(note("a"))
    await call.done_writing()
    with pytest.raises(asyncio.InvalidStateError):
        await call.write(note("b"))
    if method == "Record":
        await call
    else:
        assert [reply.text async for reply in call] == ["a"]
    with pytest.raises(asyncio.InvalidStateError):
        await call.write(note("c"))


async def test_writing_to_a_server_that_has_ended(pair: Pair) -> None:
    """A writer whose server ends the call is told, and does not wait for ever."""
    call = pair.stub.Chat()
    await call.write(note("end"))

    async def write_on() -> None:
        while True:
            await call.write(note("more"))

    with pytest.raises((asyncio.InvalidStateError, grpc.aio.AioRpcError)):
        await soon(write_on())


async def test_call_that_nobody_awaits(pair: Pair) -> None:
    """A call starts when it is made, as those of grpc.aio do, and nobody has to await it."""
    call = pair.stub.Get(note("hang"))
    await soon(pair.tracked.waits.wait())
    call.cancel()
    await soon(pair.tracked.ended.wait())


async def test_failure_that_nobody_awaits(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    """A failure nobody asks for disturbs nobody."""
    call = pair.stub.Get(note("abort"))
    await until(call.done)
    del call
    assert complaints(caplog, logging.ERROR) == []


@ours
@pytest.mark.parametrize("method", ["List", "Chat"])
async def test_leaving_a_stream(pair: Pair, method: str) -> None:
    """Breaking out of a stream and dropping it cancels the call on our channel; grpc.aio's own never does."""
    call = pair.stub.List(note("hang")) if method == "List" else pair.stub.Chat(notes("a", "hang"))
    async for _ in call:
        break
    await soon(pair.tracked.waits.wait())
    del call
    await soon(pair.tracked.ended.wait())


async def test_nobody_there() -> None:
    """What keeps a call from being made is an AioRpcError like any other, and says that it was not sent."""
    async with connect("static://127.0.0.1:1", settings=Settings()) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await soon(generated()[1].RouteStub(channel).Get(note("a")))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert isinstance(caught.value.__cause__, RpcError)
    assert not caught.value.__cause__.sent


@ours
async def test_requests_from_nowhere(pair: Pair) -> None:
    """`write` on a call whose requests come from an iterator is a mistake, as with grpc.aio."""
    call = pair.stub.Chat(notes("a"))
    with pytest.raises(grpc.aio.UsageError):
        await call.write(note("b"))
    assert [reply.text async for reply in call] == ["a"]


async def test_our_channel_is_theirs() -> None:
    """Our channel is a `grpc.aio.Channel` by type, for code that asks."""
    async with connect("static://127.0.0.1:1", settings=Settings()) as channel:
        assert isinstance(channel, grpc.aio.Channel)


@pytest.fixture(autouse=True)
def no_complaints(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nobody logs an error, except grpc's own server when a method is missing."""
    yield
    assert [line for line in complaints(caplog, logging.ERROR) if "NotImplementedError" not in line] == []


async def test_interceptors_of_grpc_on_the_server() -> None:
    """A user's own grpc.aio server interceptors see every call, ours of health and reflection too."""
    seen: list[str] = []

    class Noting(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation: Any, details: Any) -> Any:
            seen.append(details.method)
            return await continuation(details)

    service = service_of(returning(Tracked()), grpc_interceptors=[Noting()])
    async with service.running() as server, grpc.aio.insecure_channel(server.address) as channel:
        assert (await generated()[1].RouteStub(channel).Get(note("a"))).text == "a"
    assert seen == ["/tests.route.v1.Route/Get"]


async def test_server_is_only_for_registration() -> None:
    """What `add_XServicer_to_server` is given cannot be started or given a port: that is the service's own work."""

    @asynccontextmanager
    async def lifespan(service: Service) -> AsyncIterator[None]:
        server = service.grpc_server
        assert isinstance(server, grpc.aio.Server)
        generated()[1].add_RouteServicer_to_server(returning(Tracked()), server)
        with pytest.raises(RuntimeError, match="the service's own work"):
            server.add_insecure_port("127.0.0.1:0")
        with pytest.raises(RuntimeError, match="add_XServicer_to_server"):
            await server.start()
        yield

    async with Service("route", lifespan=lifespan, settings=NOT_REGISTERED).running():
        pass
