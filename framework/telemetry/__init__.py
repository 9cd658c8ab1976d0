"""What a process tells of itself: spans of its calls when there is an OpenTelemetry SDK, and figures always.

Reading order: `figures` (accumulators, and one look at all of them), `names` (what is measured), `observer` (what
watches a call), `tracing` and `propagation` (spans, and how a trace travels), `text` (for Prometheus), `telemetry`
(what puts them together for a process), `sdk` (exporters), `process` (CPU, memory, loop), `contrib` (others' spans).

Only what makes spans imports OpenTelemetry, and only `sdk` and `contrib` more than its API.
"""
