"""The SDK of OpenTelemetry, set up to send spans and figures to an OTLP receiver, and to stop within a bound.

Nothing of this is imported before something is to be sent. A provider that the application has set up itself stays;
only what has none is given one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from framework.errors import ConfigError
from framework.observation import TelemetrySettings
from framework.telemetry.figures import Figures, Histogram, Instrument, Points
from framework.telemetry.names import UPTIME

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Observation
    from opentelemetry.sdk.metrics import export
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import SpanContext, SpanKind, Status, Tracer

    from framework.telemetry.tracing import Emitter

log = logging.getLogger("framework.telemetry")

_ENDPOINTS = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
)


def wanted(settings: TelemetrySettings, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether anything is to be sent."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    return bool(settings.endpoint) or any(environ.get(name) for name in _ENDPOINTS)


class Sending:
    """What is sent: the providers of a process, and how they stop.

    Args:
        name: of the service.
        settings: where to.
        figures: what is sent as metrics, beside those of the application.
        spans: the exporter of spans; default: OTLP, as the settings say.
        metrics: the same of metrics.

    Raises:
        ConfigError: it cannot be sent there, or what sends it is not installed.
    """

    def __init__(
        self,
        name: str,
        settings: TelemetrySettings,
        figures: Figures,
        *,
        spans: SpanExporter | None = None,
        metrics: MetricExporter | None = None,
    ) -> None:
        try:
            from opentelemetry.sdk.resources import Resource
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{error.name} is not installed; to send telemetry takes: pip install framework-grpc[otel]"
            ) from None
        said = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        own = {"service.instance.id": str(uuid.uuid4())} | ({} if said else {"service.name": name})
        self.resource: Resource = Resource.create(own)
        self._stops: list[Callable[[], object]] = []
        self.provider: TracerProvider | None = None
        self.tracer: Tracer | None = None
        self.emitter: Emitter | None = None
        if os.environ.get("OTEL_TRACES_EXPORTER", "otlp") != "none":
            self._send_spans(settings, spans)
        if settings.metrics and os.environ.get("OTEL_METRICS_EXPORTER", "otlp") != "none":
            self._send_metrics(settings, figures, metrics)

    def _send_spans(self, settings: TelemetrySettings, exporter: SpanExporter | None) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        given = trace.get_tracer_provider()
        if not isinstance(given, trace.ProxyTracerProvider) and given is not _ours.get("spans"):
            return  # the application's own, which sends what it is to send
        self.provider, self.tracer, self.emitter = traced(
            BatchSpanProcessor(exporter or _exporter("trace", settings)), settings.sample, self.resource
        )
        if given is not _ours.get("spans"):
            trace.set_tracer_provider(self.provider)  # for the spans of the application
            _ours["spans"] = self.provider
        self._stops.append(self.provider.shutdown)

    def _send_metrics(self, settings: TelemetrySettings, figures: Figures, exporter: MetricExporter | None) -> None:
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

        exporter = exporter or _exporter("metric", settings)
        reader = PeriodicExportingMetricReader(with_figures(exporter, figures), settings.interval * 1000)
        provider = MeterProvider([reader], self.resource, shutdown_on_exit=False)
        began = time.monotonic()

        def uptime(options: CallbackOptions) -> Iterable[Observation]:
            return [metrics.Observation(time.monotonic() - began)]

        # One instrument of the SDK's: a reader that has none does not export at all.
        meter = provider.get_meter("framework.process")  # another scope: of two alike the exporter sends one
        meter.create_observable_gauge(UPTIME.name, [uptime], UPTIME.unit, UPTIME.description)
        if "metrics" not in _ours:
            metrics.set_meter_provider(provider)
            _ours["metrics"] = provider
        self._stops.append(provider.shutdown)

    async def stop(self, within: float) -> None:
        """Send what is left, for so many seconds at most; what is left then is lost, and the log says so."""
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def told() -> None:
            if not done.done():
                done.set_result(None)

        def work() -> None:
            self._stop()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waited so long
                loop.call_soon_threadsafe(told)

        # A thread of its own, which the process need not wait for when it ends.
        threading.Thread(target=work, name="framework-telemetry", daemon=True).start()
        try:
            async with asyncio.timeout(within):
                await done
        except TimeoutError:
            log.warning("telemetry was not sent within %g s: what was left of it is lost", within)

    def finish(self, within: float) -> None:
        """The same at the end of a process, where there is no loop."""
        thread = threading.Thread(target=self._stop, name="framework-telemetry", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # newer versions of Python begin no thread that late
            self._stop()
        else:
            thread.join(within)

    def _stop(self) -> None:
        for stop in self._stops:
            try:
                stop()
            except Exception:
                log.exception("telemetry could not be sent")


_ours: dict[str, Any] = {}
"""Providers that were made here and are those of the process, which it can be given once."""


def _exporter(signal: str, settings: TelemetrySettings) -> Any:
    """An OTLP exporter.

    Raises:
        ConfigError: it cannot be sent there, or what sends it is not installed.
    """
    endpoint = settings.endpoint
    protocol = settings.protocol
    if not endpoint:
        protocol = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)  # type: ignore[assignment]  # checked below
    elif urlsplit(endpoint).scheme not in ("http", "https"):
        raise ConfigError(f"telemetry.endpoint is {endpoint!r}; write a URL, for example http://127.0.0.1:4317")
    try:
        if protocol == "grpc":
            if signal == "trace":
                from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpans

                return GrpcSpans(endpoint=endpoint or None)
            from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetrics

            return GrpcMetrics(endpoint=endpoint or None)
        if signal == "trace":
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpans

            return HttpSpans(endpoint=f"{endpoint.rstrip('/')}/v1/traces" if endpoint else None)
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetrics

        return HttpMetrics(endpoint=f"{endpoint.rstrip('/')}/v1/metrics" if endpoint else None)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed; to send telemetry takes: pip install framework-grpc[otel]"
        ) from None


class Spans:
    """See `Emitter`: hands spans to the processors of a provider of the SDK.

    Args:
        tracer: of that provider.
        share: of the traces that begin here that are recorded.
    """

    def __init__(self, tracer: Any, share: float) -> None:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self._span = ReadableSpan
        self._take = tracer.span_processor.on_end
        self._resource = tracer.resource
        self._scope = InstrumentationScope("framework")
        self._bound = round(share * 2**64)

    def decide(self, trace_id: int) -> bool:
        """As TraceIdRatioBased does, by the 64 bits that are random in every trace id."""
        return trace_id & 0xFFFF_FFFF_FFFF_FFFF < self._bound

    def __call__(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        attributes: dict[str, Any],
        status: Status,
        began: int,
    ) -> None:
        """A span has ended just now."""
        self._take(
            self._span(
                name=name,
                context=context,
                parent=parent,
                resource=self._resource,
                attributes=attributes,
                kind=kind,
                status=status,
                start_time=began,
                end_time=time.time_ns(),
                instrumentation_scope=self._scope,
            )
        )


def traced(
    processor: SpanProcessor, share: float | None, resource: Resource | None = None
) -> tuple[TracerProvider, Tracer, Spans | None]:
    """A provider for the spans of the application, and for those of calls a tracer and what decides for it.

    Args:
        processor: takes the spans.
        share: of the traces that begin here that are recorded; None is what OTEL_TRACES_SAMPLER says, or all.
    """
    from opentelemetry.sdk.trace import SynchronousMultiSpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.sampling import DEFAULT_ON, ParentBasedTraceIdRatio

    processors = SynchronousMultiSpanProcessor()  # type: ignore[no-untyped-call]  # its constructor has no types
    processors.add_span_processor(processor)
    sampler = None if share is None else ParentBasedTraceIdRatio(share)
    provider = TracerProvider(sampler, resource, False, processors)
    if share is None and os.environ.get("OTEL_TRACES_SAMPLER", "parentbased_always_on") != "parentbased_always_on":
        return provider, provider.get_tracer("framework"), None  # its sampler decides by what nobody here knows
    tracer = TracerProvider(DEFAULT_ON, resource, False, processors).get_tracer("framework")
    return provider, tracer, Spans(tracer, 1.0 if share is None else share)


def with_figures(exporter: MetricExporter, figures: Figures) -> MetricExporter:
    """An exporter that exports the figures of the framework too, for a MeterProvider of the application's own."""
    from opentelemetry.sdk.metrics import export
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    began = time.time_ns()
    scope = InstrumentationScope("framework")

    class WithFigures(export.MetricExporter):
        """See `with_figures`."""

        def export(
            self, metrics_data: export.MetricsData, timeout_millis: float = 10_000, **kwargs: Any
        ) -> export.MetricExportResult:
            now = time.time_ns()
            read = figures.read()
            mine = [
                export.Metric(one.name, one.description, one.unit, _data(one, points, began, now))
                for one, points in read.items()
                if one is not UPTIME
            ]
            first, *others = metrics_data.resource_metrics
            scopes = [*first.scope_metrics, export.ScopeMetrics(scope, mine, "")]
            whole = export.ResourceMetrics(first.resource, scopes, first.schema_url)
            return exporter.export(export.MetricsData([whole, *others]), timeout_millis, **kwargs)

        def force_flush(self, timeout_millis: float = 10_000) -> bool:
            return exporter.force_flush(timeout_millis)

        def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
            exporter.shutdown(timeout_millis, **kwargs)

    return WithFigures(exporter._preferred_temporality, exporter._preferred_aggregation)


def _data(instrument: Instrument, points: Points, began: int, now: int) -> Any:
    from opentelemetry.sdk.metrics import export

    cumulative = export.AggregationTemporality.CUMULATIVE
    if instrument.kind == "histogram":
        histograms = [
            export.HistogramDataPoint(
                dict(labels), began, now, one.count, one.sum, list(one.counts), one.bounds, 0.0, one.bounds[-1]
            )
            for labels, one in points.items()
            if isinstance(one, Histogram)
        ]
        return export.Histogram(histograms, cumulative)
    numbers = [
        export.NumberDataPoint(dict(labels), began, now, value)
        for labels, value in points.items()
        if not isinstance(value, Histogram)
    ]
    if instrument.kind == "gauge":
        return export.Gauge(numbers)
    return export.Sum(numbers, cumulative, instrument.kind == "counter")
