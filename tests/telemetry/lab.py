"""Telemetry whose spans stay in this process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

from framework.observation import TelemetrySettings
from framework.telemetry.figures import Histogram, Instrument, Labels
from framework.telemetry.sdk import traced
from framework.telemetry.telemetry import Telemetry

MAKERS = ["framework", "sdk"]
"""Who makes the spans of clients: we, where the SDK was set up by us, or the SDK of the application."""


class Recorder:
    """Telemetry, and the spans that it has made.

    Args:
        share: of the traces that begin here that are recorded.
        maker: of MAKERS.
    """

    def __init__(self, share: float = 1.0, *, maker: str = "framework") -> None:
        self._exporter = InMemorySpanExporter()
        processor = SimpleSpanProcessor(self._exporter)
        if maker == "framework":
            self.provider, tracer, emitter = traced(processor, share)
            self.telemetry = Telemetry(TelemetrySettings(), tracer=tracer, emitter=emitter)
        else:
            self.provider = TracerProvider(ParentBasedTraceIdRatio(share), shutdown_on_exit=False)
            self.provider.add_span_processor(processor)
            self.telemetry = Telemetry(TelemetrySettings(), tracer=self.provider.get_tracer("application"))

    @property
    def spans(self) -> list[ReadableSpan]:
        """Those that have ended, the first that began first."""
        return sorted(self._exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def named(self, name: str) -> list[ReadableSpan]:
        """Those of a name."""
        return [span for span in self.spans if span.name == name]

    def value(self, instrument: Instrument, **wanted: str) -> float:
        """A figure, or the number of values of a histogram: of all whose labels are these."""
        points = self.telemetry.figures.read().get(instrument, {})
        found = [value for labels, value in points.items() if wanted.items() <= _plain(labels).items()]
        return sum(value.count if isinstance(value, Histogram) else value for value in found)


def _plain(labels: Labels) -> dict[str, str]:
    return {key.replace(".", "_"): value for key, value in labels}


def told(span: ReadableSpan) -> dict[str, Any]:
    """The attributes of a span."""
    return dict(span.attributes or {})


def ids(span: ReadableSpan) -> tuple[int, int]:
    """Its trace and its own id."""
    context = span.get_span_context()
    assert context is not None
    return context.trace_id, context.span_id


def lineage(spans: Iterable[ReadableSpan], root: int | None = None) -> list[str]:
    """Every span below one by its name and kind, indented below its parent, in the order in which they began."""
    spans = list(spans)
    lines: list[str] = []

    def show(parent: int | None, depth: int) -> None:
        for span in spans:
            own = None if span.parent is None else span.parent.span_id
            if own == parent:
                lines.append(f"{'  ' * depth}{span.kind.name} {span.name}")
                show(ids(span)[1], depth + 1)

    show(root, 0)
    return lines
