"""The HTTP side: ProtoJSON, routing, and a whole request to a handler in the same process."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc.error_details_pb2 import BadRequest

from bench.harness import Row, paired
from framework.call import Call, Handler, Method
from framework.http.app import HttpApp
from framework.http.json import Json
from framework.http.routes import Router
from framework.http.rules import Rule, Template


def _message(size: int) -> BadRequest:
    message = BadRequest()
    for number in range(max(1, size // 80)):
        message.field_violations.add(field=f"book.authors[{number}].given_name", description="some words on what it is")
    return message


def _block(work: Callable[[], Any], count: int) -> Callable[[], Awaitable[float]]:
    async def block() -> float:
        start = time.process_time()
        for _ in range(count):
            work()
        return (time.process_time() - start) / count * 1e6

    return block


def _parsed(text: bytes) -> BadRequest:
    return json_format.Parse(text, BadRequest())


async def codec() -> AsyncIterator[Row]:
    """CPU of JSON one way, against json_format; goals are of the ratio."""
    files: Any = [BadRequest.DESCRIPTOR.file]
    ours = Json(files).codec(BadRequest)
    for size in (80, 5000):
        message = _message(size)
        text = ours.write(message)
        count = 2000 if size < 1000 else 100
        yield await paired(
            f"json out, {len(text)} bytes",
            "us",
            _block(partial(ours.write, message), count),
            "json_format",
            _block(partial(json_format.MessageToJson, message, indent=None), count // 4),
            "<= 0.4",
        )
        yield await paired(
            f"json in, {len(text)} bytes",
            "us",
            _block(partial(ours.parse, text), count),
            "json_format",
            _block(partial(_parsed, text), count // 4),
            "<= 0.4",
        )


class _Route:
    def __init__(self, text: str, name: str) -> None:
        method = Method[Any, Any]("bench.v1.Routes", name, StringValue, StringValue)
        self.rule = Rule(method, "GET", Template.parse(text))


def _router(size: int) -> Router[_Route]:
    return Router([_Route(f"/v1/kind{n // 10}/{{id}}/part{n % 10}/{{part}}", f"M{n}") for n in range(size)])


async def routing() -> AsyncIterator[Row]:
    """CPU of finding a route among a thousand, against among ten."""
    small, large = _router(10), _router(1000)
    path = "/v1/kind0/77/part9/1"
    yield await paired(
        "route among 1000",
        "us",
        _block(lambda: large.find("GET", path), 20_000),
        "among 10",
        _block(lambda: small.find("GET", path), 20_000),
        "<= 1.5",
    )


def _application() -> HttpApp:
    file = descriptor_pb2.FileDescriptorProto(
        name="bench/http.proto", package="bench.v1", syntax="proto3", dependency=["google/rpc/error_details.proto"]
    )
    kind = ".google.rpc.BadRequest"
    file.service.add(name="Http").method.add(name="Echo", input_type=kind, output_type=kind)
    pool: Any = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())

    def bind(method: Method[Any, Any]) -> Handler:
        async def echo(call: Call) -> Any:
            return call.request

        return echo

    return HttpApp([pool.FindServiceByName("bench.v1.Http")], bind)


async def _bare(scope: Any, receive: Any, send: Any) -> None:
    """What a person writes by hand: a body, json_format, a handler, json_format."""
    body = (await receive())["body"]
    request = json_format.Parse(body, BadRequest())
    reply = json_format.MessageToJson(request, indent=None).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(reply))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": reply})


def _requests(app: Any, body: bytes, count: int) -> Callable[[], Awaitable[float]]:
    scope = {
        "type": "http",
        "method": "POST",
        "scheme": "http",
        "path": "/bench.v1.Http/Echo",
        "raw_path": b"/bench.v1.Http/Echo",
        "query_string": b"",
        "headers": [
            *((b"host", b"127.0.0.1"), (b"accept", b"*/*"), (b"user-agent", b"bench")),
            *((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))),
        ],
        "client": ("127.0.0.1", 1),
    }

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        pass

    async def block() -> float:
        start = time.process_time()
        for _ in range(count):
            await app(scope, receive, send)
        return (time.process_time() - start) / count * 1e6

    return block


async def requests() -> AsyncIterator[Row]:
    """CPU of a request in JSON to a handler in this process, against an ASGI application by hand; no server counts."""
    app = _application()
    for size, goal in ((80, "<= 1"), (10_000, "<= 0.3")):
        body = json.dumps(json_format.MessageToDict(_message(size))).encode()
        count = 1000 if size < 1000 else 50
        yield await paired(
            f"http request, {len(body)} bytes",
            "us",
            _requests(app, body, count),
            "json_format by hand",
            _requests(_bare, body, count // 2),
            goal,
        )


async def http() -> AsyncIterator[Row]:
    """All of them."""
    for part in (codec, routing, requests):
        async for row in part():
            yield row
        await asyncio.sleep(0)
