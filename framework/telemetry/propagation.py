"""Where a trace comes from and where it goes on: W3C `traceparent`, `tracestate` and `baggage`, over gRPC metadata,
HTTP headers and whatever else carries pairs of text, such as the headers of an event.

    inject(headers)                     # a publisher: the current trace goes along
    with continued(headers, "consume"): # a consumer: one span more of the same trace

Other formats are used when OTEL_PROPAGATORS names them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.baggage import get_all
from opentelemetry.context import Context
from opentelemetry.propagate import extract, get_global_textmap
from opentelemetry.propagate import inject as inject_all
from opentelemetry.propagators.textmap import Getter, TextMapPropagator
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, set_span_in_context

from framework.call import Metadata
from framework.telemetry.observer import CARRIED

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

TRACEPARENT = "traceparent"
_HEX = frozenset("0123456789abcdef")
_EMPTY = Context()

_KEY = r"[!#-'*+.0-9A-Z^-z|~-]++"
_VALUE = r"[!#-+\--:<-\[\]-~]*+"
_MEMBER = rf"[ \t]?{_KEY}[ \t]?=[ \t]?{_VALUE}[ \t]?(?:;[ \t]?{_KEY}[ \t]?(?:=[ \t]?{_VALUE}[ \t]?)?)*+"
_BAGGAGE = re.compile(rf"{_MEMBER}(?:,{_MEMBER}){{0,63}}+")
"""As much as W3C wants passed on. What is anything else takes the library a time that grows with its square, before
anybody knows who calls, and a line of the log for each member."""

LONGEST = {"baggage": 8192, "tracestate": 1024}
"""Characters of what is read, by its name."""


class _Pairs(Getter[Metadata]):
    def get(self, carrier: Metadata, key: str) -> list[str] | None:
        found = [value for name, value in carrier if name == key and isinstance(value, str)]
        return found or None

    def keys(self, carrier: Metadata) -> list[str]:
        return [name for name, _ in carrier]


_PAIRS = _Pairs()


def is_w3c(propagator: TextMapPropagator | None = None) -> bool:
    """Whether the formats in use are those that need no library to write."""
    return sorted((propagator or get_global_textmap()).fields) == sorted(CARRIED)


def span_context_of(traceparent: str) -> SpanContext | None:
    """What a `traceparent` says; None when it is none."""
    if len(traceparent) < 55 or traceparent[2] != "-" or traceparent[35] != "-" or traceparent[52] != "-":
        return None
    version, trace_id, span_id, flags = traceparent[:2], traceparent[3:35], traceparent[36:52], traceparent[53:55]
    if version == "ff" or (len(traceparent) > 55 and (version == "00" or traceparent[55] != "-")):
        return None
    if not _HEX.issuperset(version + trace_id + span_id + flags):
        return None
    found = SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(int(flags, 16)))
    return found if found.is_valid else None


def _read(name: str, value: Any) -> bool:
    """Whether something is worth reading; the rest is as if it had not come."""
    longest = LONGEST.get(name)
    if longest is None:
        return True
    return (
        isinstance(value, str)
        and len(value) <= longest
        and (name != "baggage" or _BAGGAGE.fullmatch(value) is not None)
    )


def incoming(metadata: Metadata, *, w3c: bool = True) -> Context:
    """The trace that a call belongs to, by its metadata; an empty context when it does not say."""
    said, more = "", False
    for key, value in metadata:
        if key == TRACEPARENT:
            said = str(value)
        elif key in CARRIED:
            more = True
    if more or not w3c:
        return extract(tuple(pair for pair in metadata if _read(*pair)), _EMPTY, _PAIRS)
    found = span_context_of(said) if said else None
    return _EMPTY if found is None else set_span_in_context(NonRecordingSpan(found), _EMPTY)


def traceparent_of(span: SpanContext) -> str:
    """A `traceparent` that says this."""
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags & 0x03:02x}"


def outgoing(metadata: Metadata, span: SpanContext, context: Context | None, *, w3c: bool = True) -> Metadata:
    """Metadata with the trace in it, of which it said something else before or nothing.

    Args:
        context: with the span in it, and baggage; None is the current one, whose baggage goes along.
    """
    if metadata:
        metadata = tuple(pair for pair in metadata if pair[0] != TRACEPARENT)
    baggage = get_all(context)
    if w3c and not baggage and not span.trace_state:
        return (*metadata, (TRACEPARENT, traceparent_of(span)))
    carrier: dict[str, str] = {}
    inject_all(carrier, set_span_in_context(NonRecordingSpan(span), context))
    return (*(pair for pair in metadata if pair[0] not in carrier), *carrier.items())


def inject(headers: MutableMapping[str, str]) -> None:
    """Say in these headers which trace what is sent with them belongs to; nothing when there is none."""
    inject_all(headers)


@contextlib.contextmanager
def continued(
    headers: Mapping[str, str],
    name: str,
    *,
    tracer: Tracer | None = None,
    kind: SpanKind = SpanKind.CONSUMER,
    attributes: Mapping[str, Any] | None = None,
) -> Iterator[Span]:
    """A span, current while the block runs, in the trace that these headers name, or in a new one.

    What the block raises is told by the span, and raised.

    Args:
        tracer: what makes the span; default: of the provider that the process has.
        kind, attributes: of the span.
    """
    tracer = tracer or trace.get_tracer("framework")
    carried = {key.lower(): value for key, value in headers.items()}
    parent = extract({key: value for key, value in carried.items() if _read(key, value)}, _EMPTY)
    with tracer.start_as_current_span(name, parent, kind, attributes) as span:
        yield span


def attach(context: Context) -> None:
    """Make a context that of this task for as long as it lasts; there is no way back, and no token to keep."""
    otel_context.attach(context)
