"""What telemetry costs: beside the same stack without, and beside opentelemetry-instrumentation-grpc on grpc.aio."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import grpc.aio
import uvloop
from google.protobuf.empty_pb2 import Empty
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.grpc import aio_client_interceptors, aio_server_interceptor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from bench.calls import CALLS, Bare, Ours, own_cpu, peer_cpu, process
from bench.echo import Echo, bare_handlers
from bench.harness import Row, paired
from framework import Drain, ServerSettings, Service, Settings, connect
from framework.observation import TelemetrySettings
from framework.telemetry.sdk import traced
from framework.telemetry.telemetry import Telemetry, active

PAIRS = 61
OFF = TelemetrySettings(instrumentation="off", metrics=False)

KINDS = ("off", "metrics", "unsampled", "sampled", "bare", "contrib")

Measure = Callable[[], Awaitable[float]]


def sending_to(collector: str) -> BatchSpanProcessor:
    """What sends spans to a collector; they wait in a queue that none is lost from."""
    return BatchSpanProcessor(OTLPSpanExporter(endpoint=f"http://{collector}"), max_queue_size=100_000)


def provider_of(collector: str) -> TracerProvider:
    """A provider for the rival."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(sending_to(collector))
    return provider


@contextlib.contextmanager
def watched(telemetry: Telemetry) -> Iterator[None]:
    """What is made in this block is watched by this."""
    before = active.get()
    active.set(telemetry)
    try:
        yield
    finally:
        active.set(before)


def telemetry_of(kind: str, processor: BatchSpanProcessor) -> Telemetry:
    """`off`, `metrics`, `unsampled` or `sampled`, set up as `[telemetry]` does it."""
    if kind in ("off", "metrics"):
        return Telemetry(OFF if kind == "off" else None)
    _, tracer, emitter = traced(processor, 1.0 if kind == "sampled" else 0.0)
    return Telemetry(tracer=tracer, emitter=emitter)


def added(by: Measure, to: Measure) -> Callable[[], Awaitable[float]]:
    """What the one costs more than the other."""

    async def measure() -> float:
        without = await to()
        return await by() - without

    return measure


async def client() -> AsyncIterator[Row]:
    """On the client, in this process."""
    async with (
        process("bare") as address,
        process("collector", module="bench.telemetry") as collector,
        contextlib.AsyncExitStack() as exits,
    ):
        measures: dict[str, Any] = {}
        for kind in ("off", "metrics", "unsampled", "sampled"):
            processor = sending_to(collector)
            with watched(telemetry_of(kind, processor)):
                channel = await exits.enter_async_context(connect(address, settings=Settings()))
                ours = Ours(channel)
            measures[kind] = own_cpu(_flushed(ours.unary, processor), CALLS)
        provider = provider_of(collector)
        contrib = aio_client_interceptors(tracer_provider=provider)  # type: ignore[no-untyped-call]  # it has no types
        raw = await exits.enter_async_context(grpc.aio.insecure_channel(address))
        traced = await exits.enter_async_context(grpc.aio.insecure_channel(address, interceptors=contrib))
        measures["bare"] = own_cpu(Bare(raw).unary, CALLS)
        measures["contrib"] = own_cpu(_flushed(Bare(traced).unary, provider), CALLS)
        async for row in rows("client", measures):
            yield row


async def server() -> AsyncIterator[Row]:
    """On the server: all kinds in one process, since two processes differ more than what is measured."""
    async with process("collector", module="bench.telemetry") as collector, contextlib.AsyncExitStack() as exits:
        first = await exits.enter_async_context(process(f"servers@{collector}", module="bench.telemetry"))
        asked = await exits.enter_async_context(grpc.aio.insecure_channel(first))
        ask: Any = asked.unary_unary("/bench.Ports/Ports", None, None)
        ports: bytes = await ask(b"")
        measures: dict[str, Any] = {}
        for kind, port in zip(KINDS, ports.split(), strict=True):
            channel = await exits.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port.decode()}"))
            measures[kind] = peer_cpu(Bare(channel).unary, channel, CALLS)
        async for row in rows("server", measures):
            yield row


async def rows(side: str, measures: dict[str, Any]) -> AsyncIterator[Row]:
    """The figures of one side."""
    off = measures["off"]
    for kind, goal in (("metrics", "<= 1.04"), ("unsampled", "<= 1.06")):
        yield await paired(f"telemetry.{side}.{kind}.cpu", "us/call", measures[kind], "without", off, goal, pairs=PAIRS)
    sampled = added(measures["sampled"], off)
    contrib = added(measures["contrib"], measures["bare"])
    rival = "instrumentation-grpc"
    yield await paired(f"telemetry.{side}.sampled.added", "us/call", sampled, rival, contrib, "<= 0.85", pairs=PAIRS)


def _flushed(block: Any, sending: BatchSpanProcessor | TracerProvider) -> Any:
    """A block, and the sending of its spans."""

    async def measured() -> None:
        await block()
        sending.force_flush()

    return measured


async def telemetry() -> AsyncIterator[Row]:
    """All of it."""
    async for row in client():
        yield row
    async for row in server():
        yield row


async def serve(collector: str) -> None:
    """A server of each kind; prints the port of one that tells theirs, and stops when standard input ends."""
    ports: list[int] = []
    async with contextlib.AsyncExitStack() as exits:
        for kind in KINDS:
            if kind in ("bare", "contrib"):
                rival = []
                if kind == "contrib":
                    provider = provider_of(collector)
                    rival = [aio_server_interceptor(tracer_provider=provider)]  # type: ignore[no-untyped-call]  # it has no types
                ports.append(await _start(exits, bare_handlers(), rival))
                continue
            with watched(telemetry_of(kind, sending_to(collector))):
                settings = Settings(registry="none", server=ServerSettings(drain=Drain(0, 0.1, 0.1)))
                served = await exits.enter_async_context(Service("echo", servicers=[Echo()]).running(settings))
                ports.append(served.port)

        async def tell(request: bytes, context: Any) -> bytes:
            return b" ".join(b"%d" % port for port in ports)

        handler: Any = grpc.unary_unary_rpc_method_handler(tell, None, None)
        told = grpc.method_handlers_generic_handler("bench.Ports", {"Ports": handler})
        print(await _start(exits, told), flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def _start(exits: contextlib.AsyncExitStack, handlers: Any, interceptors: Any = ()) -> int:
    """Serve with grpc.aio alone."""
    bare = grpc.aio.server(options=(("grpc.so_reuseport", 0),), interceptors=interceptors)
    bare.add_generic_rpc_handlers((handlers,))
    port = bare.add_insecure_port("127.0.0.1:0")
    await bare.start()
    exits.push_async_callback(bare.stop, 0)
    return port


async def collect() -> None:
    """A collector that takes everything and keeps nothing; prints its port, and stops when standard input ends."""

    async def take(request: bytes, context: Any) -> Empty:
        return Empty()

    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    handler: Any = grpc.unary_unary_rpc_method_handler(take, None, Empty.SerializeToString)
    for service in ("trace.v1.TraceService", "metrics.v1.MetricsService"):
        name = f"opentelemetry.proto.collector.{service}"
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"Export": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


if __name__ == "__main__":
    kind, _, collector = sys.argv[1].partition("@")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(collect() if kind == "collector" else serve(collector))
