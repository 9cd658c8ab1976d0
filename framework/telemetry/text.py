"""Figures as Prometheus reads them, with the names that OpenTelemetry's own exporter gives.

Source: https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import accumulate

from framework.telemetry.figures import Histogram, Instrument, Labels, Points

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_UNITS = {"s": "seconds", "By": "bytes", "ms": "milliseconds", "1": "ratio"}
_WRONG = re.compile(r"[^a-zA-Z0-9_:]")
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def name_of(instrument: Instrument) -> str:
    """The name of a figure: `rpc.server.call.duration` in `s` is `rpc_server_call_duration_seconds`."""
    name = _WRONG.sub("_", instrument.name)
    unit = "" if instrument.unit == "1" and instrument.kind != "gauge" else _UNITS.get(instrument.unit, "")
    if unit and not name.endswith(f"_{unit}"):
        name = f"{name}_{unit}"
    return f"{name}_total" if instrument.kind == "counter" else name


def exposition(figures: Mapping[Instrument, Points], resource: Labels = ()) -> bytes:
    """All figures as text.

    Args:
        resource: attributes of the process, which `target_info` tells.
    """
    lines = []
    if resource:
        lines += ["# HELP target_info Target metadata", "# TYPE target_info gauge"]
        lines.append(f"target_info{_labels(resource)} 1")
    for instrument in sorted(figures, key=lambda one: one.name):
        name = name_of(instrument)
        kind = "gauge" if instrument.kind == "updown" else instrument.kind
        lines += [f"# HELP {name} {instrument.description.translate(_ESCAPES)}", f"# TYPE {name} {kind}"]
        for labels, value in sorted(figures[instrument].items(), key=lambda point: point[0]):
            if isinstance(value, Histogram):
                lines += _histogram(name, labels, value)
            else:
                lines.append(f"{name}{_labels(labels)} {_number(value)}")
    return ("\n".join(lines) + "\n").encode()


def _histogram(name: str, labels: Labels, histogram: Histogram) -> Iterable[str]:
    counts = list(accumulate(histogram.counts))
    for bound, count in zip([*map(_number, histogram.bounds), "+Inf"], counts, strict=True):
        yield f"{name}_bucket{_labels((*labels, ('le', bound)))} {count}"
    yield f"{name}_sum{_labels(labels)} {_number(histogram.sum)}"
    yield f"{name}_count{_labels(labels)} {counts[-1]}"


def _labels(labels: Labels) -> str:
    told = ",".join(f'{_WRONG.sub("_", key)}="{str(value).translate(_ESCAPES)}"' for key, value in labels)
    return f"{{{told}}}" if told else ""


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))
