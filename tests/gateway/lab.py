"""Services that describe themselves, as protos given as text, and what it takes to put a gateway before them."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_reflection.v1alpha import reflection

from framework import Context, NotFound, Service
from framework.config import Drain, ServerSettings, Settings
from framework.discovery import Registry
from framework.discovery.local import LocalRegistry
from framework.gateway import Gateway
from framework.gateway.gateway import Running
from framework.http.methods import services_in
from framework.identity import Identity
from framework.options import method_of
from framework.server.reflection import METHODS
from framework.server.servicer import Servicer
from framework.web import GatewaySettings
from tests.http.lab import compile_text

AT_ONCE = Drain(delay=0.0, grace=0.5, streams=0.2)

SHOP = """
syntax = "proto3";
package lab;
import "google/api/annotations.proto";

service Shop {
  rpc Get(Thing) returns (Thing) { option (google.api.http) = { get: "/v1/things/{name}" }; }
  rpc Buy(Thing) returns (Thing) { option (google.api.http) = { post: "/v1/things" body: "*" }; }
  rpc Watch(Thing) returns (stream Thing) { option (google.api.http) = { get: "/v1/things/{name}:watch" }; }
  rpc Talk(stream Thing) returns (stream Thing) { option (google.api.http) = { post: "/v1/talk" body: "*" }; }
}

message Thing { string name = 1; int32 number = 2; }
"""

NEWER = SHOP.replace(
    "  rpc Buy",
    '  rpc Sell(Thing) returns (Thing) { option (google.api.http) = { post: "/v1/sold" body: "*" }; }\n  rpc Buy',
).replace("int32 number = 2;", "int32 number = 2; string color = 3;")

CONTRADICTING = SHOP.replace("int32 number = 2;", "string number = 2;")

OTHER = """
syntax = "proto3";
package other;
import "google/api/annotations.proto";

service Bank {
  rpc Pay(Money) returns (Money) { option (google.api.http) = { post: "/v1/payments" body: "*" }; }
}

message Money { int64 cents = 1; }
"""


@cache
def pool(proto: str) -> Any:
    """The pool of a proto file."""
    return compile_text(proto)


class Reflection(Servicer):
    """Server reflection of a pool of its own."""

    __methods__ = METHODS

    def __init__(self, names: Iterable[str], described: Any) -> None:
        self._servicer = reflection.aio.ReflectionServicer(tuple(names), pool=described)

    def ServerReflectionInfo(self, requests: Any, context: Any) -> Any:
        return self._servicer.ServerReflectionInfo(requests, context)


class Shop(Servicer):
    """Every method of a proto file, by what the requests are named."""

    def __init__(self, proto: str = SHOP, service: str = "lab.Shop") -> None:
        (descriptor,) = services_in(pool(proto), [service])
        vars(self)["__methods__"] = tuple(method_of(one) for one in descriptor.methods)
        self.service = service
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.go_on = asyncio.Event()
        self.metadata: dict[str, Any] = {}
        self.identity: Identity | None = None

    def __getattr__(self, name: str) -> Any:
        if name not in ("Sell", "Pay"):
            raise AttributeError(name)
        return self.Buy

    async def Get(self, request: Any, context: Context) -> Any:
        self.metadata = dict(context.invocation_metadata())
        self.identity = context.identity
        self.entered.set()
        if request.name == "nothing":
            raise NotFound("no such thing", details=[ErrorInfo(reason="LOST")])
        if request.name == "bug":
            raise ZeroDivisionError("secret")
        if request.name == "slow":
            try:
                await self.go_on.wait()
            finally:
                self.cancelled.set()
        request.number = 7
        return request

    async def Buy(self, request: Any, context: Context) -> Any:
        return request

    async def Watch(self, request: Any, context: Context) -> AsyncIterator[Any]:
        self.identity = context.identity
        try:
            request.number = 1
            yield request
            self.entered.set()
            await self.go_on.wait()
            request.number = 2
            yield request
        finally:
            self.cancelled.set()

    async def Talk(self, requests: Any, context: Context) -> AsyncIterator[Any]:
        async for request in requests:
            request.number += 1
            yield request


def service(name: str, servicer: Any, proto: str = SHOP, described: Any = None, **fields: Any) -> Service:
    """A service that describes itself with the pool of its proto, or another."""
    if not isinstance(described, Reflection):
        described = Reflection([servicer.service], described or pool(proto))
    return Service(name, servicers=[servicer, described], **fields)


class Town:
    """A registry, the instances in it, and gateways before it, as long as the block is entered."""

    def __init__(self, registry: Registry, exits: AsyncExitStack) -> None:
        self.registry = registry
        self._exits = exits

    async def add(
        self, name: str, proto: str = SHOP, servicer: Any = None, **fields: Any
    ) -> tuple[Any, AsyncExitStack]:
        """Start an instance; returns its servicer, and what ends it."""
        servicer = servicer or Shop(proto)
        exit = AsyncExitStack()
        settings = fields.pop("settings", None) or Settings()
        server = dataclasses.replace(settings.server, drain=AT_ONCE)
        settings = dataclasses.replace(settings, registry="none", server=server)
        await exit.enter_async_context(
            service(name, servicer, proto, **fields).running(settings, registry=self.registry)
        )
        self._exits.push_async_exit(exit)
        return servicer, exit

    async def gateway(self, *, gateway: Gateway | None = None, ready: bool = True, **settings: Any) -> Running:
        """Start a gateway."""
        drain, own = settings.pop("drain", AT_ONCE), settings.pop("settings", None) or Settings()
        web = GatewaySettings.parse({"port": 0, "refresh": 0.05, **settings}, "gateway")
        running = await self._exits.enter_async_context(
            (gateway or Gateway()).running(
                dataclasses.replace(own, gateway=web, server=ServerSettings(drain=drain)), registry=self.registry
            )
        )
        if ready:
            async with asyncio.timeout(10):
                await running.until_ready()
        return running

    async def client(self, running: Running, **options: Any) -> httpx.AsyncClient:
        """An HTTP client of a gateway."""
        return await self._exits.enter_async_context(
            httpx.AsyncClient(base_url=f"http://{running.address}", timeout=10, **options)
        )


@asynccontextmanager
async def town(path: Path) -> AsyncIterator[Town]:
    """An empty one."""
    registry = LocalRegistry(path / "registry.db")
    async with AsyncExitStack() as exits:
        exits.push_async_callback(registry.aclose)
        yield Town(registry, exits)


async def eventually(asked: Callable[[], Awaitable[bool]], seconds: float = 10.0) -> None:
    """Wait until the answer is yes; for what happens in another process, or has no event."""
    async with asyncio.timeout(seconds):
        while True:
            if await asked():
                return
            await asyncio.sleep(0.01)


async def until(
    client: httpx.AsyncClient, request: str, status: int, body: Any = None, headers: Any = None
) -> httpx.Response:
    """Repeat a request until it is answered like this."""
    method, _, path = request.partition(" ")
    responses: list[httpx.Response] = []

    async def asked() -> bool:
        responses[:] = [await client.request(method, path, json=body, headers=headers)]
        return responses[0].status_code == status

    await eventually(asked, 20.0)
    return responses[0]


async def logged(caplog: pytest.LogCaptureFixture, text: str) -> None:
    """Wait until the log has a line with this."""

    async def asked() -> bool:
        return text in caplog.text

    await eventually(asked)
