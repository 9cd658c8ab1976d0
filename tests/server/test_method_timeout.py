"""How long a server lets a call take, whatever its caller says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from framework import ConfigError, Context, DeadlineExceeded, ServerSettings, Service, Settings, connect
from framework.testing import Network
from tests.invariants.conftest import NO_WAIT, collect, until
from tests.invariants.echo import Echo, EchoClient, text


class Slow:
    """Takes a while, and notes how long it had."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.remaining: list[float | None] = []

    async def __call__(self, requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        self.remaining.append(context.time_remaining())
        await asyncio.sleep(self.seconds)
        async for request in requests:
            yield request


def server(given: dict[str, Any]) -> Settings:
    return Settings(registry="none", server=ServerSettings.parse(given, "server", ServerSettings(drain=NO_WAIT)))


ONE = {"methods": {"UnaryUnary": {"timeout": "50ms"}}}


async def test_the_server_ends_a_call_that_takes_too_long() -> None:
    """The caller is told by the server, and which setting it was; the handler is cancelled."""
    service = Service("echo", servicers=[Echo(Slow(3600))], settings=server(ONE))
    async with service.running() as running, connect(running.address, settings=server({})) as channel:
        with pytest.raises(DeadlineExceeded) as caught:
            await collect(EchoClient(channel).UnaryUnary(text("a"), timeout=10))
        await until(lambda: not running.pipeline.calls)
    assert caught.value.remote
    assert caught.value.message == (
        "echo.v1.Echo/UnaryUnary took longer than 0.05 s (`timeout` in the settings of the server)"
    )


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    ("given", "timeout", "expected"),
    [
        ({}, 10, 10),
        (ONE, 10, 0.05),
        (ONE, 0.01, 0.01),
        ({"timeout": "2s"}, 10, 2),
        ({"timeout": "2s", "methods": {"UnaryUnary": {"timeout": "5s"}}}, 10, 5),
        ({"timeout": "2s", "methods": {"UnaryUnary": {"timeout": "none"}}}, 10, 10),
        ({"timeout": "2s", "methods": {"UnaryUnary": {}}}, 10, 2),
    ],
)
async def test_the_earlier_of_both_holds(
    network: Network, given: dict[str, Any], timeout: float, expected: float
) -> None:
    """The caller's and the server's; what the method says goes before what the server says of all."""
    network.add(Service("echo", servicers=[Echo(slow := Slow(0.0))], settings=server(given)))
    await collect(EchoClient(network.connect("echo")).UnaryUnary(text("a"), timeout=timeout))
    assert slow.remaining == [pytest.approx(expected, rel=1e-6)]


@pytest.mark.virtual_time
async def test_streams_have_only_their_own(network: Network) -> None:
    """`timeout` of the server is for calls with one reply; a stream may take as long as it likes."""
    network.add(Service("echo", servicers=[Echo(Slow(10.0))], settings=server({"timeout": "2s"})))
    assert await collect(EchoClient(network.connect("echo")).UnaryStream(text("a"))) == ["a"]


async def test_a_method_that_is_not_served() -> None:
    """Settings of a method that does not exist are a mistake."""
    service = Service("echo", servicers=[Echo(Slow(0))], settings=server({"methods": {"UnaryUnry": {"timeout": "1s"}}}))
    with pytest.raises(ConfigError) as caught:
        async with service.running():
            pass
    assert str(caught.value) == "server.methods.UnaryUnry is no method that is served. Did you mean UnaryUnary?"
