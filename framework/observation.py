"""Settings of what a process tells of itself: `[telemetry]`.

[telemetry]
endpoint = "http://127.0.0.1:4317"      # of a collector; default: what OTEL_EXPORTER_OTLP_ENDPOINT says, or none
sample = 0.1                            # of the traces that begin here
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from framework.parsing import Table, boolean, choice, number, optional, period, setting, span, text


@dataclass(frozen=True, slots=True)
class TelemetrySettings(Table):
    """`[telemetry]`.

    Attributes:
        instrumentation: whose spans of calls: `framework`, `contrib` for those of opentelemetry-instrumentation-grpc,
            or `off` for none.
        metrics: count calls and what becomes of them.
        endpoint: URL of the OTLP receiver that spans and metrics go to; empty is what OTEL_EXPORTER_OTLP_ENDPOINT says,
            or none. What else the SDK reads from OTEL_* holds too: headers, certificates, resource attributes.
        protocol: of OTLP; `grpc` or `http/protobuf`.
        sample: share of the traces that begin here that are recorded; of others their beginning has decided. None
            ("none") is what OTEL_TRACES_SAMPLER says, or all.
        interval: seconds between two exports of metrics.
        flush: seconds that are spent at most, at the end, on what has not been sent.
    """

    instrumentation: Literal["framework", "contrib", "off"] = setting(
        "framework", choice("framework", "contrib", "off")
    )
    metrics: bool = setting(True, boolean)
    endpoint: str = setting("", text)
    protocol: Literal["grpc", "http/protobuf"] = setting("grpc", choice("grpc", "http/protobuf"))
    sample: float | None = setting(None, optional(number(0.0, 1.0)))
    interval: float = setting(30.0, period)
    flush: float = setting(5.0, span(0.0, 60.0))
