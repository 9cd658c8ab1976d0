"""The servers that `connectconformance` tests: told over standard input what to be, they say where they listen.

    python -m tests.http.conformance.server http|grpc

Source: https://github.com/connectrpc/conformance/blob/main/docs/testing_servers.md
"""

from __future__ import annotations

import asyncio
import base64
import os
import sys
from collections.abc import AsyncIterator, Iterable
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import uvicorn
from google.protobuf import any_pb2, message_factory

from framework import ServerSettings, Service, Settings
from framework.errors import error_for
from framework.http.app import HttpApp
from framework.http.methods import services_in
from framework.http.settings import HttpSettings
from framework.options import method_of
from framework.server.context import Context
from framework.server.local import Local
from framework.server.pipeline import Pipeline
from framework.server.servicer import Servicer
from tests.http import lab
from tests.http.driver import loopback

PACKAGE = "connectrpc.conformance.v1"
POOL = lab.compile_folder(Path(__file__).with_name("protos"), os.environ.get("CONFORMANCE_FILES"))
(SERVICE,) = services_in(POOL, [f"{PACKAGE}.ConformanceService"])

query: ContextVar[bytes] = ContextVar("query", default=b"")


def message(name: str) -> Any:
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))


Payload = message("ConformancePayload")
Info = Payload.RequestInfo


def metadata(headers: Iterable[Any]) -> tuple[tuple[str, str | bytes], ...]:
    found: list[tuple[str, str | bytes]] = []
    for header in headers:
        name = header.name.lower()
        for value in header.value:
            found.append((name, base64.b64decode(f"{value}==") if name.endswith("-bin") else value))
    return tuple(found)


def info(requests: Iterable[Any], context: Context, *, first: bool = True) -> Any:
    """What is answered about a request."""
    told = Info()
    for request in requests:
        told.requests.add().Pack(request)
    if not first:
        return told
    headers: dict[str, list[str]] = {}
    for key, value in context.invocation_metadata():
        text = base64.b64encode(value).decode().rstrip("=") if isinstance(value, bytes) else value
        headers.setdefault(key, []).append(text)
    for key, texts in headers.items():
        told.request_headers.add(name=key, value=texts)
    if (remaining := context.time_remaining()) is not None:
        told.timeout_ms = int(remaining * 1000)
    for key, values in parse_qs(query.get().decode(), keep_blank_values=True).items():
        told.connect_get_info.query_params.add(name=key, value=values)
    return told


def failure(error: Any, more: Iterable[Any] = ()) -> Exception:
    details: list[Any] = list(error.details)
    for one in more:
        packed = any_pb2.Any()
        packed.Pack(one)
        details.append(packed)
    return error_for(
        error.code, error.message, details=[any_pb2.Any.FromString(d.SerializeToString()) for d in details]
    )


class Conformance(Servicer):
    """Does what its requests say."""

    __methods__ = tuple(method_of(descriptor) for descriptor in SERVICE.methods)

    async def _one(self, definition: Any, requests: list[Any], context: Context, *, begun: bool = False) -> Any:
        told = info(requests, context)
        if not begun:
            await context.send_initial_metadata(metadata(definition.response_headers))
        context.set_trailing_metadata(metadata(definition.response_trailers))
        await asyncio.sleep(definition.response_delay_ms / 1000)
        if definition.WhichOneof("response") == "error":
            raise failure(definition.error, [told])
        return Payload(data=definition.response_data, request_info=told)

    async def Unary(self, request: Any, context: Context) -> Any:
        return message("UnaryResponse")(payload=await self._one(request.response_definition, [request], context))

    async def IdempotentUnary(self, request: Any, context: Context) -> Any:
        payload = await self._one(request.response_definition, [request], context)
        return message("IdempotentUnaryResponse")(payload=payload)

    async def Unimplemented(self, request: Any, context: Context) -> Any:
        raise error_for(12, "not here")

    async def ClientStream(self, requests: Any, context: Context) -> Any:
        seen: list[Any] = []
        definition = message("UnaryResponseDefinition")()
        async for request in requests:
            if not seen:  # headers are set before the end of the requests is read
                definition = request.response_definition
                await context.send_initial_metadata(metadata(definition.response_headers))
            seen.append(request)
        return message("ClientStreamResponse")(payload=await self._one(definition, seen, context, begun=True))

    async def ServerStream(self, request: Any, context: Context) -> AsyncIterator[Any]:
        definition = request.response_definition
        await context.send_initial_metadata(metadata(definition.response_headers))
        context.set_trailing_metadata(metadata(definition.response_trailers))
        for number, data in enumerate(definition.response_data):
            await asyncio.sleep(definition.response_delay_ms / 1000)
            told = info([request], context) if number == 0 else None
            yield message("ServerStreamResponse")(payload=Payload(data=data, request_info=told))
        if definition.HasField("error"):
            raise failure(definition.error, [] if definition.response_data else [info([request], context)])

    async def BidiStream(self, requests: Any, context: Context) -> AsyncIterator[Any]:
        reply = message("BidiStreamResponse")
        definition = message("StreamResponseDefinition")()
        seen: list[Any] = []
        sent, full_duplex, begun = 0, False, False
        async for request in requests:
            seen.append(request)
            if not begun:
                begun, full_duplex, definition = True, request.full_duplex, request.response_definition
                await context.send_initial_metadata(metadata(definition.response_headers))
                context.set_trailing_metadata(metadata(definition.response_trailers))
            if full_duplex:
                if sent >= len(definition.response_data):
                    break
                await asyncio.sleep(definition.response_delay_ms / 1000)
                told = info(seen, context, first=sent == 0)
                yield reply(payload=Payload(data=definition.response_data[sent], request_info=told))
                sent, seen = sent + 1, []
        for number in range(sent, len(definition.response_data)):
            await asyncio.sleep(definition.response_delay_ms / 1000)
            told = info(seen, context) if number == 0 else None
            yield reply(payload=Payload(data=definition.response_data[number], request_info=told))
            sent += 1
        if definition.HasField("error"):
            raise failure(definition.error, [] if sent else [info(seen, context)])


class Roomy(Service):
    """Whose replies may be larger than requests, which alone are limited here."""

    def assembled(self, settings: Settings | None = None) -> Any:
        assert settings is not None
        return super().assembled(replace(settings, server=replace(settings.server, max_message=4 << 20)))


def listens(port: int) -> None:
    """Say where, as the client expects it."""
    answer = message("ServerCompatResponse")(host="127.0.0.1", port=port).SerializeToString()
    sys.stdout.buffer.write(len(answer).to_bytes(4, "big") + answer)
    sys.stdout.buffer.flush()


async def serve_http(limit: int) -> None:
    """On uvicorn."""
    pipeline = Pipeline()
    pipeline.add(Conformance())
    served = HttpApp([SERVICE], Local(pipeline).bind, HttpSettings(max_message=limit, compress_above=1))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        query.set(scope.get("query_string", b"") if scope.get("method") == "GET" else b"")
        await served(scope, receive, send)

    listening = loopback()
    listens(listening.getsockname()[1])
    config = uvicorn.Config(app, log_level="error", lifespan="off")
    await uvicorn.Server(config).serve(sockets=[listening])


async def serve_grpc(limit: int) -> None:
    """On grpc.aio."""
    settings = Settings(registry="none", server=ServerSettings(max_message=limit))
    async with Roomy("conformance", servicers=[Conformance()]).running(settings) as server:
        listens(server.port)
        await asyncio.Event().wait()


def main() -> None:
    size = int.from_bytes(sys.stdin.buffer.read(4), "big")
    request = message("ServerCompatRequest").FromString(sys.stdin.buffer.read(size))
    serve = {"http": serve_http, "grpc": serve_grpc}[sys.argv[1]]
    asyncio.run(serve(request.message_receive_limit or 4 << 20))


if __name__ == "__main__":
    main()
