"""An OTLP receiver that keeps what it is sent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
from aiohttp import web
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

COLLECTOR = "opentelemetry.proto.collector"


class Receiver:
    """What has arrived.

    Attributes:
        port: it listens there.
    """

    def __init__(self) -> None:
        self.port = 0
        self._traces: list[ExportTraceServiceRequest] = []
        self._metrics: list[ExportMetricsServiceRequest] = []

    @property
    def spans(self) -> list[tuple[str, str]]:
        """The service and the name of every span."""
        return [
            (_service(resource.resource), span.name)
            for request in self._traces
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    @property
    def metrics(self) -> dict[str, Any]:
        """Every metric by its name, as it was sent last."""
        return {
            metric.name: metric
            for request in self._metrics
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    async def take_traces(self, request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:
        """Over gRPC."""
        self._traces.append(request)
        return ExportTraceServiceResponse()

    async def take_metrics(self, request: ExportMetricsServiceRequest, context: Any) -> ExportMetricsServiceResponse:
        """Over gRPC."""
        self._metrics.append(request)
        return ExportMetricsServiceResponse()

    async def post_traces(self, request: web.Request) -> web.Response:
        """Over HTTP."""
        self._traces.append(ExportTraceServiceRequest.FromString(await request.read()))
        return web.Response(body=b"", content_type="application/x-protobuf")

    async def post_metrics(self, request: web.Request) -> web.Response:
        """Over HTTP."""
        self._metrics.append(ExportMetricsServiceRequest.FromString(await request.read()))
        return web.Response(body=b"", content_type="application/x-protobuf")


def _service(resource: Any) -> str:
    return next((one.value.string_value for one in resource.attributes if one.key == "service.name"), "")


@asynccontextmanager
async def receiver(protocol: str) -> AsyncIterator[Receiver]:
    """One that listens, for `grpc` or `http/protobuf`."""
    found = Receiver()
    if protocol == "grpc":
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        for name, take, kind in (
            ("trace.v1.TraceService", found.take_traces, ExportTraceServiceRequest),
            ("metrics.v1.MetricsService", found.take_metrics, ExportMetricsServiceRequest),
        ):
            handler = grpc.unary_unary_rpc_method_handler(take, kind.FromString, _encode)
            handlers = grpc.method_handlers_generic_handler(
                f"opentelemetry.proto.collector.{name}", {"Export": handler}
            )
            server.add_generic_rpc_handlers((handlers,))
        found.port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield found
        finally:
            await server.stop(None)
        return
    app = web.Application()
    app.router.add_post("/v1/traces", found.post_traces)
    app.router.add_post("/v1/metrics", found.post_metrics)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.port = runner.addresses[0][1]
    try:
        yield found
    finally:
        await runner.cleanup()


def _encode(message: Any) -> bytes:
    encoded: bytes = message.SerializeToString()
    return encoded
