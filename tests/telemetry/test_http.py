"""Spans and durations of HTTP requests, at the gateway and beside gRPC in one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan

from framework import Call, Context
from framework.http.app import HttpApp
from framework.http.methods import services_in
from framework.server.local import Local
from framework.server.pipeline import Pipeline
from framework.telemetry.names import HTTP_DURATION, OTHER, SERVER_DURATION
from tests.gateway.lab import SHOP, Shop, pool
from tests.invariants.conftest import until
from tests.telemetry.lab import Recorder, lineage, told


class Nested(Shop):
    """Makes spans of its own."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.tracer = recorder.provider.get_tracer("shop")

    async def Buy(self, request: Any, context: Context) -> Any:
        with self.tracer.start_as_current_span("work"):
            await asyncio.sleep(0)
        return request

    async def Watch(self, request: Any, context: Context) -> AsyncIterator[Any]:
        for number in range(2):
            with self.tracer.start_as_current_span(f"part {number}"):
                request.number = number
            yield request


@pytest.fixture
def recorder() -> Recorder:
    """One maker is enough: no client takes part."""
    return Recorder()


def client_of(recorder: Recorder, servicer: Any = None) -> httpx.AsyncClient:
    """A client of the shop, in this process."""
    pipeline = Pipeline(telemetry=recorder.telemetry)
    pipeline.add(servicer or Nested(recorder))
    services = services_in(pool(SHOP), ["lab.Shop"])
    app = HttpApp(services, Local(pipeline).bind, telemetry=recorder.telemetry)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app, raise_app_exceptions=False), base_url="http://shop")


async def test_one_process(recorder: Recorder) -> None:
    """HTTP to a handler in the same process: what the handler makes is below its call, and that below the request."""
    async with client_of(recorder) as client:
        assert (await client.post("/v1/things", json={"name": "p1"})).status_code == 200
    assert lineage(recorder.spans) == ["SERVER POST /v1/things", "  INTERNAL lab.Shop/Buy", "    INTERNAL work"]
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_a_stream_in_one_process(recorder: Recorder) -> None:
    """The parts of a stream, which its reader asks for, are below the call; nothing is current afterwards."""
    async with client_of(recorder) as client:
        assert (await client.get("/v1/things/p1:watch")).status_code == 200
    assert lineage(recorder.spans) == [
        "SERVER GET /v1/things/{name}:watch",
        "  INTERNAL lab.Shop/Watch",
        "    INTERNAL part 0",
        "    INTERNAL part 1",
    ]
    assert trace.get_current_span() is trace.INVALID_SPAN
    assert recorder.value(SERVER_DURATION, rpc_method="lab.Shop/Watch", rpc_response_status_code="OK") == 1


def ending(span: ReadableSpan) -> tuple[str, Any, Any, bool]:
    """Its name, status and type of error, and whether it failed."""
    attributes = told(span)
    return (
        span.name,
        attributes.get("http.response.status_code"),
        attributes.get("error.type"),
        not span.status.is_unset,
    )


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/things/nothing", ("GET /v1/things/{name}", 404, None, False)),
        ("/v1/things/bug", ("GET /v1/things/{name}", 500, "500", True)),
        ("/v1/nowhere", ("GET", 404, None, False)),
    ],
)
async def test_endings(recorder: Recorder, path: str, expected: tuple[str, Any, Any, bool]) -> None:
    """A failure of the server is an error, one of the client is none; what is nowhere has no route."""
    async with client_of(recorder, Shop()) as client:
        assert (await client.get(path)).status_code == expected[1]
    assert ending(recorder.spans[0]) == expected


async def test_labels_are_bounded(recorder: Recorder) -> None:
    """Paths and methods that nobody has declared make no series of their own."""
    async with client_of(recorder) as client:
        for number in range(20):
            await client.request(f"X{number}", f"/v1/{number}")
    assert recorder.value(HTTP_DURATION, http_route=OTHER, http_request_method=OTHER) == 20
    assert len(recorder.telemetry.figures.read()[HTTP_DURATION]) == 1


async def test_a_client_that_goes(recorder: Recorder) -> None:
    """A request that nobody waits for any more ends its span all the same."""
    shop = Shop()
    async with client_of(recorder, shop) as client:
        request = asyncio.create_task(client.get("/v1/things/slow"))
        await shop.entered.wait()
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
    await until(lambda: len(recorder.spans) == 2)
    http, call = recorder.spans
    assert told(call)["rpc.response.status_code"] == "CANCELLED"
    assert "http.response.status_code" not in told(http)


async def test_between_the_messages(recorder: Recorder) -> None:
    """A call in the task of its caller is current there while the handler works, and at no other time."""
    pipeline = Pipeline(telemetry=recorder.telemetry)
    shop = Nested(recorder)
    pipeline.add(shop)
    methods = {method.name: method for method in shop.__methods__}
    thing = methods["Buy"].request(name="p1")
    await Local(pipeline).bind(methods["Buy"])(Call(methods["Buy"], thing))
    current = [trace.get_current_span()]
    async for _ in await Local(pipeline).bind(methods["Watch"])(Call(methods["Watch"], thing)):
        current.append(trace.get_current_span())
    assert [*current, trace.get_current_span()] == [trace.INVALID_SPAN] * 4
    assert [span.name for span in recorder.spans] == ["lab.Shop/Buy", "work", "lab.Shop/Watch", "part 0", "part 1"]
