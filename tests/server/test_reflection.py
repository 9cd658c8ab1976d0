"""Server reflection, v1 and v1alpha."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from framework import Service
from framework.server.server import Server
from tests.client.route import Tracked, generated, returning
from tests.client.test_connect import NOT_REGISTERED
from tests.client.test_dropin import service_of
from tests.invariants.echo import Echo

_Request: Any = reflection_pb2.ServerReflectionRequest

VERSIONS = ["v1", "v1alpha"]
EVERYTHING = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "tests.route.v1.Route",
]


@asynccontextmanager
async def routes() -> AsyncIterator[Server]:
    """A server of a service that has a proto."""
    async with service_of(returning(Tracked())).running() as server:
        yield server


async def reflect(server: Server, version: str, **request: str) -> reflection_pb2.ServerReflectionResponse:
    """What reflection answers to one request."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        method: Any = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=_Request.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        [response] = [response async for response in method([_Request(**request)])]
        assert isinstance(response, reflection_pb2.ServerReflectionResponse)
        return response


@pytest.mark.parametrize("version", VERSIONS)
async def test_services(version: str) -> None:
    """Every service is listed, health and reflection too."""
    async with routes() as server:
        response = await reflect(server, version, list_services="")
    assert sorted(service.name for service in response.list_services_response.service) == EVERYTHING


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("symbol", ["tests.route.v1.Note", *EVERYTHING])
async def test_symbols(version: str, symbol: str) -> None:
    """The file of a service or message can be had by its name."""
    async with routes() as server:
        response = await reflect(server, version, file_containing_symbol=symbol)
    [first, *_] = response.file_descriptor_response.file_descriptor_proto
    assert descriptor_pb2.FileDescriptorProto.FromString(first).package == symbol.rpartition(".")[0]


@pytest.mark.parametrize("version", VERSIONS)
async def test_unknown_symbol(version: str) -> None:
    """A name that is not there is NOT_FOUND, as an answer."""
    async with routes() as server:
        response = await reflect(server, version, file_containing_symbol="nothing")
    assert response.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_clients_of_reflection() -> None:
    """grpc's own client of reflection can make messages of what it finds."""

    def read(address: str) -> tuple[list[str], list[str]]:
        with grpc.insecure_channel(address) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            pool: Any = DescriptorPool(database)
            service = pool.FindServiceByName("tests.route.v1.Route")
            return sorted(database.get_services()), [method.name for method in service.methods]

    async with routes() as server:
        names, methods = await asyncio.to_thread(read, server.address)
    assert names == EVERYTHING
    assert methods == [method.name for method in generated()[0].DESCRIPTOR.services_by_name["Route"].methods]


async def test_service_without_a_proto() -> None:
    """A service whose descriptors nobody has is listed all the same."""
    async with Service("echo", servicers=[Echo()], settings=NOT_REGISTERED).running() as server:
        response = await reflect(server, "v1", list_services="")
    assert "echo.v1.Echo" in [service.name for service in response.list_services_response.service]
