"""Messages that are too large: a clear RESOURCE_EXHAUSTED, and everybody else is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from framework import ClientSettings, Context, ResourceExhausted, ServerSettings, Service, Settings, connect
from framework.server.server import Server
from tests.invariants.conftest import ARITIES, NO_WAIT, Arity, collect, soon, until
from tests.invariants.echo import Echo, EchoClient, text

SMALL, LARGE = 2000, 1 << 20
limits = pytest.mark.parametrize("arity", ARITIES.values(), ids=ARITIES)


@asynccontextmanager
async def echo(client: int, server: int, size: int = 0) -> AsyncIterator[tuple[Server, EchoClient]]:
    """A server and a client with these limits; replies have the size given, or that of the request."""

    async def behave(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        async for request in requests:
            yield text("x" * size) if size else request

    settings = Settings(
        registry="none",
        server=ServerSettings(drain=NO_WAIT, max_message=server),
        client=ClientSettings(max_message=client),
    )
    service = Service("echo", servicers=[Echo(behave)], settings=settings)
    async with service.running() as running, connect(running.address, settings=settings) as channel:
        yield running, EchoClient(channel)


async def refused(arity: Arity, server: Server, client: EchoClient, size: int) -> str:
    """The message of the failure of a call with a request of this size, beside which another call goes well."""
    call = getattr(client, arity.method)
    argument: Any = [text("x" * size)] if arity.client_streaming else text("x" * size)
    waiting = asyncio.ensure_future(collect(client.UnaryUnary(text("a"))))
    with pytest.raises(ResourceExhausted) as caught:
        await soon(collect(call(argument)))
    await waiting
    await until(lambda: not server.pipeline.calls)
    return caught.value.message


@limits
async def test_request_that_is_too_large_for_the_server(arity: Arity) -> None:
    """The server refuses it, and the caller is told the limit."""
    async with echo(LARGE, SMALL) as (server, client):
        assert str(SMALL) in await refused(arity, server, client, 5000)


@limits
async def test_request_that_is_too_large_to_be_sent(arity: Arity) -> None:
    """The client does not send it, and tells the limit."""
    async with echo(SMALL, LARGE) as (server, client):
        assert str(SMALL) in await refused(arity, server, client, 5000)


@limits
async def test_reply_that_is_too_large_for_the_client(arity: Arity) -> None:
    """The client refuses it."""
    async with echo(SMALL, LARGE, size=5000) as (server, client):
        argument: Any = [text("a")] if arity.client_streaming else text("a")
        with pytest.raises(ResourceExhausted, match=str(SMALL)):
            await soon(collect(getattr(client, arity.method)(argument)))
        await until(lambda: not server.pipeline.calls)


@limits
async def test_reply_that_is_too_large_to_be_sent(arity: Arity) -> None:
    """The server does not send it, and the caller is told why."""
    async with echo(LARGE, SMALL, size=5000) as (server, client):
        argument: Any = [text("a")] if arity.client_streaming else text("a")
        with pytest.raises(ResourceExhausted, match=str(SMALL)):
            await soon(collect(getattr(client, arity.method)(argument)))
        await until(lambda: not server.pipeline.calls)


async def test_within_the_limits() -> None:
    """What is not too large passes."""
    async with echo(LARGE, LARGE) as (_, client):
        large = "x" * (LARGE - 100)
        assert await collect(client.UnaryUnary(text(large))) == [large]
