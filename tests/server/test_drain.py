"""Going down without losing a call."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from framework import Code, Context, Drain, RpcError, Service, Unavailable, connect
from framework.server.server import Server
from tests.client.test_connect import NOT_REGISTERED, ask
from tests.invariants.conftest import collect, recording, soon, until
from tests.invariants.echo import Behaviour, Blocked, Echo, EchoClient, repeat, text
from tests.server.test_start import Recording, settings

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def serving(behave: Behaviour, outcomes: list[Any] | None = None) -> AsyncIterator[tuple[Server, EchoClient]]:
    """A server, and a client of it."""
    service = Service("echo", servicers=[Echo(behave)], interceptors=[recording([] if outcomes is None else outcomes)])
    async with service.running(settings()) as server, connect(server.address, settings=NOT_REGISTERED) as channel:
        yield server, EchoClient(channel)


def sleeping(seconds: float, started: list[float] | None = None) -> Behaviour:
    """Every reply takes this long."""

    async def behave(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        async for request in requests:
            if started is not None:
                started.append(time.monotonic())
            await asyncio.sleep(seconds)
            yield request

    return behave


async def test_two_hundred_calls_in_flight() -> None:
    """All calls that are in flight when the drain begins are answered."""
    started: list[float] = []
    async with serving(sleeping(1.0, started)) as (server, client):
        calls = [
            asyncio.ensure_future(collect(client.UnaryUnary(text(str(number)), timeout=30))) for number in range(200)
        ]
        await until(lambda: len(started) == 200)
        await server.drain(Drain(delay=0.1, grace=20.0, streams=0.2))
        assert await asyncio.gather(*calls) == [[str(number)] for number in range(200)]


async def test_drain_ends_when_the_last_call_does() -> None:
    """The grace is a limit, not a time to wait."""
    async with serving(sleeping(0.3)) as (server, client):
        call = asyncio.ensure_future(collect(client.UnaryUnary(text("a"))))
        await until(lambda: server.pipeline.calls)
        await asyncio.wait_for(server.drain(Drain(delay=0.0, grace=60.0, streams=60.0)), 10)
        assert await call == ["a"]


async def test_calls_are_accepted_during_the_delay() -> None:
    """Until every client has heard of it, a draining server still serves, new connections too."""
    async with serving(repeat) as (server, _):
        draining = asyncio.create_task(server.drain(Drain(delay=1.0, grace=5.0, streams=1.0)))
        await asyncio.sleep(0.2)
        async with connect(server.address, settings=NOT_REGISTERED) as channel:
            assert await ask(channel) == "a"
        assert not draining.done()
        await draining
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", server.port)


@pytest.mark.parametrize("method", ["UnaryStream", "StreamUnary", "StreamStream"])
async def test_streams_have_less_time(method: str) -> None:
    """A stream is ended with UNAVAILABLE after its time, long before the grace of other calls is over."""
    blocked = Blocked(replies=1)
    outcomes: list[Any] = []
    async with serving(blocked, outcomes) as (server, client):
        argument: Any = text("a") if method == "UnaryStream" else _endless()
        got: list[str] = []
        call = asyncio.ensure_future(collect(getattr(client, method)(argument), got))
        await soon(blocked.waits.wait())
        began = time.monotonic()
        draining = asyncio.create_task(server.drain(Drain(delay=0.0, grace=30.0, streams=0.3)))
        with pytest.raises(Unavailable, match="is shutting down") as caught:
            await soon(call)
        assert time.monotonic() - began >= 0.25
        assert caught.value.remote
        assert isinstance(blocked.error, asyncio.CancelledError)
        assert blocked.ended.is_set()
        await soon(draining)
    assert got == ([] if method == "StreamUnary" else ["0"])
    assert [outcome.code for outcome in outcomes] == [Code.UNAVAILABLE]


async def _endless() -> AsyncIterator[StringValue]:
    yield text("a")
    await asyncio.get_running_loop().create_future()


async def test_stream_that_ends_in_its_time() -> None:
    """A stream that ends by itself in that time is not disturbed."""
    async with serving(sleeping(0.3)) as (server, client):
        call = asyncio.ensure_future(collect(client.UnaryStream(text("a"))))
        await until(lambda: server.pipeline.calls)
        await server.drain(Drain(delay=0.0, grace=30.0, streams=10.0))
        assert await call == ["a"]


async def test_stragglers() -> None:
    """What is left after the grace is cancelled, with UNAVAILABLE, and no later because streams had their time."""
    blocked = Blocked()
    async with serving(blocked) as (server, client):
        call = asyncio.ensure_future(collect(client.UnaryUnary(text("a"), timeout=60)))
        await soon(blocked.waits.wait())
        began = time.monotonic()
        await server.drain(Drain(delay=0.0, grace=1.2, streams=1.1))
        took = time.monotonic() - began
        with pytest.raises(Unavailable, match="is shutting down") as caught:
            await soon(call)
        assert caught.value.remote
        assert blocked.ended.is_set()
        assert 1.1 < took < 2.1


async def test_handler_that_does_not_listen() -> None:
    """A handler that swallows its cancellation does not keep the server from stopping."""
    release = asyncio.Event()
    waits = asyncio.Event()

    async def stubborn(requests: Any, context: Context) -> AsyncIterator[StringValue]:
        waits.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        yield text("at last")

    async with serving(stubborn) as (server, client):
        call = asyncio.ensure_future(collect(client.UnaryUnary(text("a"), timeout=30)))
        await soon(waits.wait())
        await asyncio.wait_for(server.drain(Drain(delay=0.0, grace=0.2, streams=0.1)), 10)
        with pytest.raises(RpcError):
            await soon(call)
        release.set()
        await until(lambda: not server.pipeline.calls)


async def test_order_of_a_drain() -> None:
    """NOT_SERVING, then deregistered, then still served, then GOAWAY, and the lifespan is left after the last call."""
    events: list[str] = []
    registry = Recording(events)

    async def behave(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        async for request in requests:
            await asyncio.sleep(0.5)
            events.append(f"answered {request.value}")
            yield request

    @asynccontextmanager
    async def lifespan(service: Service) -> AsyncIterator[None]:
        service.add(Echo(behave))
        yield
        events.append("lifespan left")

    async def follow(client: EchoClient) -> None:
        await until(lambda: events[-1].startswith("deregistered"))
        await client.UnaryUnary(text("after it was deregistered"))

    service = Service("echo", lifespan=lifespan)
    drain = Drain(delay=0.4, grace=10.0, streams=1.0)
    running = service.running(settings(), registry=registry, drain=drain)
    server = await running.__aenter__()
    async with connect(server.address, settings=NOT_REGISTERED) as channel:
        client = EchoClient(channel)
        call = asyncio.ensure_future(collect(client.UnaryUnary(text("before"))))
        await until(lambda: server.pipeline.calls)
        following = asyncio.create_task(follow(client))
        await running.__aexit__(None, None, None)
        await asyncio.gather(call, following)
    assert events == [
        "registered while SERVING",
        "deregistered while NOT_SERVING",
        "answered before",
        "answered after it was deregistered",
        "lifespan left",
    ]


async def test_drained_twice() -> None:
    """A second drain has nothing to do."""
    async with serving(repeat) as (server, _):
        await server.drain(Drain(0.0, 0.0, 0.0))
        await server.drain(Drain(60.0, 60.0, 60.0))
        await server.stop()


class Process:
    """`tests.server.program` in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.words: list[str] = []

    @property
    def pid(self) -> int:
        return self.process.pid

    async def until(self, word: str) -> None:
        """Read what it prints up to this word."""
        assert self.process.stdout is not None
        while not self.words or self.words[-1] != word:
            line = await asyncio.wait_for(self.process.stdout.readline(), 15)
            assert line, f"it ended after {self.words}"
            self.words.append(line.decode().strip())

    async def ended(self) -> int:
        """Its exit code."""
        assert self.process.stdout is not None
        rest = await asyncio.wait_for(self.process.stdout.read(), 15)
        self.words += rest.decode().split()
        return await asyncio.wait_for(self.process.wait(), 15)


@asynccontextmanager
async def program(port: int, **drain: float) -> AsyncIterator[Process]:
    """The program, once it has come up."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.server.program", json.dumps(drain), "none", str(port),
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield Process(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


async def called(port: int, seconds: str) -> str:
    """A call of the program, made once it can be reached."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        say: Any = channel.unary_unary(
            "/echo.v1.Echo/UnaryUnary", StringValue.SerializeToString, StringValue.FromString
        )
        reply = await say(text(seconds), timeout=30, wait_for_ready=True)
        return str(reply.value)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_signal(number: signal.Signals) -> None:
    """A signal drains: the call in flight is answered, the lifespan left, and the exit code is 0."""
    port = _free_port()
    async with program(port, delay=0.1, grace=20.0, streams=0.2) as running:
        call = asyncio.create_task(called(port, "0.6"))
        await running.until("call")
        os.kill(running.pid, number)
        assert await call == "0.6"
        assert await running.ended() == 0
        assert running.words == ["entered", "call", "answer", "left"]


async def test_second_signal() -> None:
    """A second signal does not wait for anything."""
    port = _free_port()
    async with program(port, delay=30.0, grace=60.0, streams=60.0) as running:
        call = asyncio.create_task(called(port, "60"))
        await running.until("call")
        os.kill(running.pid, signal.SIGTERM)
        await asyncio.sleep(0.3)
        began = time.monotonic()
        os.kill(running.pid, signal.SIGTERM)
        await running.ended()
        assert time.monotonic() - began < 3.0
        with pytest.raises(grpc.aio.AioRpcError):
            await call
        assert "answer" not in running.words


async def test_signal_while_idle() -> None:
    """Without calls a drain takes its delay, and no more."""
    port = _free_port()
    async with program(port, delay=0.0, grace=60.0, streams=60.0) as running:
        await called(port, "0")
        began = time.monotonic()
        os.kill(running.pid, signal.SIGTERM)
        assert await running.ended() == 0
        assert time.monotonic() - began < 5.0
