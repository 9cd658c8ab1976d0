"""What a `traceparent` says, and how a context travels."""

from __future__ import annotations

import time

import pytest
from opentelemetry import baggage, trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState, set_span_in_context

from framework.call import Metadata
from framework.telemetry.propagation import continued, incoming, is_w3c, outgoing, span_context_of, traceparent_of

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"00-{TRACE}-{SPAN}-01", (TRACE, SPAN, 1)),
        (f"00-{TRACE}-{SPAN}-00", (TRACE, SPAN, 0)),
        (f"00-{TRACE}-{SPAN}-03", (TRACE, SPAN, 3)),
        (f"cc-{TRACE}-{SPAN}-01-what-comes-later", (TRACE, SPAN, 1)),
        (f"cc-{TRACE}-{SPAN}-01.what-comes-later", None),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{TRACE[:-1]}_-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}", None),
        (f"00-{TRACE}-{SPAN}-0x", None),
        ("", None),
        ("x" * 5000, None),
    ],
)
def test_traceparent(text: str, expected: tuple[str, str, int] | None) -> None:
    """A traceparent is read as W3C has it; whatever is none says nothing."""
    found = span_context_of(text)
    shown = None if found is None else (f"{found.trace_id:032x}", f"{found.span_id:016x}", found.trace_flags)
    assert expected == shown


def context_of(metadata: Metadata) -> SpanContext:
    return trace.get_current_span(incoming(metadata)).get_span_context()


def test_what_is_sent_is_what_arrives() -> None:
    """Ids, flags, state and baggage arrive as they were sent, in place of what the metadata said before."""
    span = SpanContext(int(TRACE, 16), int(SPAN, 16), False, TraceFlags(1), TraceState([("vendor", "1")]))
    around = baggage.set_baggage("tenant", "a", set_span_in_context(NonRecordingSpan(span)))
    before: Metadata = (("x-id", "1"), ("traceparent", "old"), ("tracestate", "old=1"), ("baggage", "old=1"))
    sent = outgoing(before, span, around)
    assert sorted(key for key, _ in sent) == ["baggage", "traceparent", "tracestate", "x-id"]
    arrived = context_of(sent)
    assert (arrived.trace_id, arrived.span_id, arrived.is_remote) == (span.trace_id, span.span_id, True)
    assert arrived.trace_state == span.trace_state
    assert baggage.get_all(incoming(sent)) == {"tenant": "a"}


def test_what_is_no_trace() -> None:
    """Metadata that says nothing, or something that is no trace, begins a new one."""
    nothing: list[Metadata] = [(), (("traceparent", "x"),), (("traceparent", "x"), ("tracestate", "a=1"))]
    assert [context_of(one).is_valid for one in nothing] == [False] * 3


def test_formats() -> None:
    """The formats in use are W3C's unless OTEL_PROPAGATORS says another; what was written is read again."""
    assert is_w3c()
    span = SpanContext(1, 2, False, TraceFlags(1))
    assert span_context_of(traceparent_of(span)) == SpanContext(1, 2, True, TraceFlags(1))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tenant=a", {"tenant": "a"}),
        ("tenant = a ; ttl=5;public , user=a%20b", {"tenant": "a ; ttl=5;public", "user": "a b"}),
        (",".join(f"k{n}={n}" for n in range(64)), {f"k{n}": str(n) for n in range(64)}),
        (",".join(f"k{n}={n}" for n in range(65)), {}),
        (f"a={'b' * 4000},b=c,c={'d' * 4000}", {"a": "b" * 4000, "b": "c", "c": "d" * 4000}),
        (f"a={'b' * 4000},b=c,c={'d' * 4190}", {}),
        (f"a{' ' * 5000}b", {}),
        (f"a=1;{' ' * 5000}b", {}),
        ("!," * 4000, {}),
        ("tenant=a,b", {}),
        ('tenant="a"', {}),
    ],
)
def test_baggage(text: str, expected: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """As much is read as W3C wants passed on; what is more, or no baggage, is as if it had not come, without a word."""
    found = baggage.get_all(incoming((("traceparent", f"00-{TRACE}-{SPAN}-01"), ("baggage", text))))
    assert expected == found
    with continued({"Baggage": text}, "consume"):
        pass
    assert not caplog.records


@pytest.mark.parametrize("around", ["a{}b", "a={}b", "a=1;{}b", "a=1{},", "a=b,{}"])
def test_baggage_that_somebody_made_up_to_be_slow(around: str) -> None:
    """Anybody may send it: it takes no time worth speaking of."""
    text = around.format(" " * 8000)
    start = time.thread_time()
    for _ in range(10):
        incoming((("baggage", text),))
    assert time.thread_time() - start < 0.1


def test_tracestate_that_is_too_long() -> None:
    """It is as if it had not come; the trace stays."""
    for members, expected in ((20, 20), (31, 0)):
        state = ",".join(f"k{n:02d}={'x' * 40}" for n in range(members))
        found = context_of((("traceparent", f"00-{TRACE}-{SPAN}-01"), ("tracestate", state)))
        assert (found.trace_id, len(found.trace_state)) == (int(TRACE, 16), expected)
