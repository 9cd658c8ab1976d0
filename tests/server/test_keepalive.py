"""Connections that have gone silent, and connections that have grown old."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from framework import Context, KeepaliveSettings, Method, ServerSettings, Service, Settings, Unavailable
from framework.call import Call
from framework.client.wire import GrpcTransport
from framework.server.pipeline import Pipeline
from framework.server.server import Server
from tests.invariants.conftest import NO_WAIT, PATIENCE, until
from tests.invariants.echo import Echo, EchoMethods, text

ROOT = Path(__file__).parents[2]


@contextlib.asynccontextmanager
async def transport(address: str, keepalive: KeepaliveSettings) -> AsyncIterator[GrpcTransport]:
    """A connection that is ready."""
    opened = GrpcTransport(address, connect_timeout=2.0, max_message=1 << 20, keepalive=keepalive)
    opened.connect()
    try:
        await until(lambda: opened.ready)
        yield opened
    finally:
        await opened.aclose()


async def call(on: GrpcTransport, value: str) -> Any:
    method: Method[Any, Any] = EchoMethods.UnaryUnary
    return await on.bind(method)(Call(method, text(value)))


async def test_a_server_that_is_frozen_is_found_out() -> None:
    """Within interval and timeout, while a call waits that has no deadline."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.server.program", '{"delay": 0, "grace": 0, "streams": 0}',
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert child.stderr is not None
    try:
        line = b""
        while b"serves on" not in line:
            line = await asyncio.wait_for(child.stderr.readline(), 20)
        address = line.split(b"serves on ")[1].split(b",")[0].decode()
        async with transport(address, KeepaliveSettings(interval=1.0, timeout=0.5)) as opened:
            assert await call(opened, "0") == text("0")
            waiting = asyncio.ensure_future(call(opened, "3600"))
            await asyncio.sleep(0.1)
            os.kill(child.pid, signal.SIGSTOP)
            start = time.monotonic()
            with pytest.raises(Unavailable):
                await asyncio.wait_for(waiting, 15)
            took = time.monotonic() - start
            await until(lambda: not opened.ready)
    finally:
        child.kill()  # works on a stopped process too
        await child.wait()
    assert took < 1.5 + 2.0  # a busy machine may be late


async def test_pings_of_clients_are_welcome() -> None:
    """The most frequent that a client may send, on a connection without calls: it is not told to go away."""
    settings = Settings(registry="none", server=ServerSettings(drain=NO_WAIT))
    async with (
        Service("echo", servicers=[Echo()]).running(settings) as server,
        transport(server.address, KeepaliveSettings(interval=1.0, timeout=0.5)) as opened,
    ):
        lost: list[bool] = []
        opened.changed = lambda: lost.append(opened.ready)
        await asyncio.sleep(5.0)  # grpc goes away at the third ping that comes too early
        assert lost == []
        assert await call(opened, "a") == text("a")


@pytest.mark.parametrize(
    ("ages", "shared"),
    [({"max_connection_age": 0.3}, False), ({"max_connection_age": 600.0, "connection_age": 0.3}, True)],
    ids=["old", "shared"],
)
async def test_a_connection_that_is_old_is_made_anew(ages: dict[str, float], shared: bool) -> None:
    """The client is told to go away, connects again from another port, and no call is lost; of two ages the lower."""
    peers = set[str]()

    async def noting(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        peers.add(context.peer())
        async for request in requests:
            yield request

    pipeline = Pipeline()
    pipeline.add(Echo(noting))
    settings = ServerSettings(drain=NO_WAIT, max_connection_age_grace=5.0, **ages)  # type: ignore[arg-type]  # all are numbers
    server = Server(pipeline, settings, shared=shared)
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        unary: Any = channel.unary_unary(EchoMethods.UnaryUnary.path)
        end = time.monotonic() + PATIENCE
        while len(peers) < 2 and time.monotonic() < end:
            assert await unary(text("a").SerializeToString()) == text("a").SerializeToString()
            await asyncio.sleep(0.02)
    await server.stop()
    assert len(peers) == 2


async def test_a_call_on_a_connection_that_others_are_to_have_goes_on() -> None:
    """Where a client has to connect anew for the sake of other workers, its calls last as long as they would have."""

    async def slow(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        await asyncio.sleep(1.0)
        async for request in requests:
            yield request

    pipeline = Pipeline()
    pipeline.add(Echo(slow))
    settings = ServerSettings(drain=NO_WAIT, connection_age=0.1, max_connection_age=30.0, max_connection_age_grace=0.1)
    server = Server(pipeline, settings, shared=True)
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        unary: Any = channel.unary_unary(EchoMethods.UnaryUnary.path)
        assert await unary(text("a").SerializeToString()) == text("a").SerializeToString()
    await server.stop()
