"""grpc.health.v1, asked with grpc's own stub."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from grpc_health.v1 import health, health_pb2_grpc
from grpc_health.v1 import health_pb2 as _health_pb2
from grpc_reflection.v1alpha import reflection

from framework import Drain, Service
from framework.server.server import Server
from tests.client.test_connect import NOT_REGISTERED
from tests.invariants.conftest import soon
from tests.invariants.echo import Echo

health_pb2: Any = _health_pb2  # its types do not know List and the asynchronous stub

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    """A server with one service."""
    async with Service("echo", servicers=[Echo()], settings=NOT_REGISTERED).running() as server:
        yield server


@pytest_asyncio.fixture
async def stub(server: Server) -> AsyncIterator[Any]:
    """grpc's own stub of its health."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield health_pb2_grpc.HealthStub(channel)


def ask(service: str = "") -> Any:
    return health_pb2.HealthCheckRequest(service=service)


@pytest.mark.parametrize("service", ["", "echo.v1.Echo"])
async def test_check(stub: Any, service: str) -> None:
    """The server as a whole, and each service by its full name."""
    assert (await stub.Check(ask(service))).status == SERVING


async def test_check_of_nothing(stub: Any) -> None:
    """A service that is not served is NOT_FOUND."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(ask("nothing"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "nothing" in (caught.value.details() or "")


async def test_list(server: Server) -> None:
    """Every service with its status."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        listed: Any = channel.unary_unary(
            "/grpc.health.v1.Health/List", response_deserializer=health_pb2.HealthListResponse.FromString
        )
        statuses = (await listed(b"")).statuses
    assert {name: response.status for name, response in statuses.items()} == {"": SERVING, "echo.v1.Echo": SERVING}


async def test_status_of_one_service(server: Server, stub: Any) -> None:
    """A service may be down while the server is up, and come back."""
    server.health.set("echo.v1.Echo", NOT_SERVING)
    assert (await stub.Check(ask("echo.v1.Echo"))).status == NOT_SERVING
    assert (await stub.Check(ask())).status == SERVING
    server.health.set("echo.v1.Echo", SERVING)
    assert (await stub.Check(ask("echo.v1.Echo"))).status == SERVING


async def test_watch(server: Server, stub: Any) -> None:
    """A watch tells the status now, and then every change, once."""
    watch = stub.Watch(ask("echo.v1.Echo")).__aiter__()
    seen = [(await soon(anext(watch))).status]
    for status in (NOT_SERVING, NOT_SERVING, SERVING):
        server.health.set("echo.v1.Echo", status)
        await asyncio.sleep(0.05)
    seen += [(await soon(anext(watch))).status for _ in range(2)]
    assert seen == [SERVING, NOT_SERVING, SERVING]


async def test_watch_of_nothing(stub: Any) -> None:
    """A service that is not served is SERVICE_UNKNOWN, and the watch goes on."""
    watch = stub.Watch(ask("nothing")).__aiter__()
    assert (await soon(anext(watch))).status == UNKNOWN


async def test_drain(server: Server, stub: Any) -> None:
    """A drain makes everything NOT_SERVING at once and for good; watches are told, and then end with UNAVAILABLE."""
    watch = stub.Watch(ask()).__aiter__()
    assert (await soon(anext(watch))).status == SERVING
    draining = asyncio.create_task(server.drain(Drain(delay=0.3, grace=5.0, streams=2.0)))
    assert (await soon(anext(watch))).status == NOT_SERVING
    server.health.set("", SERVING)
    server.health.serving()
    assert (await stub.Check(ask())).status == NOT_SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await soon(anext(watch))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await soon(draining)


async def test_servicer_of_grpcs_own() -> None:
    """A service that brings grpc's own health and reflection, as those written for grpc.aio do, keeps them."""
    servicer = health.aio.HealthServicer()
    await servicer.set("mine", SERVING)

    @asynccontextmanager
    async def lifespan(service: Service) -> AsyncIterator[None]:
        service.add(Echo())
        health_pb2_grpc.add_HealthServicer_to_server(servicer, service.grpc_server)
        reflection.enable_server_reflection(["echo.v1.Echo"], service.grpc_server)
        yield

    async with (
        Service("echo", lifespan=lifespan, settings=NOT_REGISTERED).running() as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        assert (await stub.Check(ask("mine"))).status == SERVING
        watch = stub.Watch(ask("mine"))
        assert (await soon(watch.read())).status == SERVING
        await servicer.set("mine", NOT_SERVING)
        assert (await soon(watch.read())).status == NOT_SERVING
        watch.cancel()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.List(health_pb2.HealthListRequest())
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
