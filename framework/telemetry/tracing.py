"""Spans of calls and of their attempts, by the semantic conventions for gRPC.

    call      CLIENT     `shop.orders.v1.Orders/PlaceOrder`, from the call to the end of its reply or stream
    attempt   INTERNAL   its child: one for each time that the call is sent, with the endpoint; the server's parent
    call      SERVER     `shop.orders.v1.Orders/PlaceOrder`, from its arrival; current in the task of its handler

Whether a trace is recorded is decided where it begins; a call in a trace that is not costs the decision, and its
attempts nothing. A span ends when its call or stream does, once, whatever the ending.

Spans of clients are not made by the SDK where it was set up here, but when they end, out of what is known then: nobody
else ever sees one, and it takes 4 µs instead of 30.

Source: https://opentelemetry.io/docs/specs/semconv/rpc/grpc/
"""

from __future__ import annotations

import asyncio
import os
import random
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from time import time_ns
from typing import Any, Protocol

from opentelemetry import trace
from opentelemetry.baggage import get_all
from opentelemetry.context import Context, get_current
from opentelemetry.trace import (
    INVALID_SPAN_CONTEXT,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
)

from framework.call import Call, Metadata, Method, Outcome
from framework.errors import Code, RpcError
from framework.telemetry.propagation import TRACEPARENT, attach, incoming, is_w3c, outgoing, traceparent_of

_BROKEN = frozenset(
    {Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.UNIMPLEMENTED, Code.INTERNAL, Code.UNAVAILABLE, Code.DATA_LOSS}
)
"""Codes that are errors of a server; the others are answers."""

_ADDRESS = re.compile(r"\[?(.+?)\]?:(\d+)")
_GRPC_PEER = re.compile(r"ipv[46]:")
_UNSAMPLED, _SAMPLED = TraceFlags(0x02), TraceFlags(0x03)  # of traces that begin here, whose ids are random
_STATE = trace.TraceState()
_UNSET = Status(StatusCode.UNSET)
_random = random.Random()
_bits = _random.getrandbits
_LOW = 2**64 - 1
BATCH = 64
"""Traces that are made ready at a time: in a loop each costs a third."""

MOST_PLACES = 1000
"""Endpoints whose attributes are kept."""


def place_of(address: str, key: str) -> dict[str, Any]:
    """`host:port` as attributes `KEY.address` and `KEY.port`; anything else as an address."""
    found = _ADDRESS.fullmatch(_GRPC_PEER.sub("", address.replace("%5B", "[").replace("%5D", "]"), count=1))
    if found is None:
        return {f"{key}.address": address}
    return {f"{key}.address": found[1], f"{key}.port": int(found[2])}


def failure_of(outcome: Outcome) -> tuple[str, str]:
    """The `error.type` of a failure, and its description."""
    error = outcome.error
    if error is None or isinstance(error, RpcError | asyncio.CancelledError | GeneratorExit):
        said = error.inside or error.message if isinstance(error, RpcError) else ""
        return outcome.code.name, said or outcome.code.name
    return f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins."), str(error)


_ready: list[tuple[int, Metadata]] = []
"""Traces that may begin: the ids of trace and span in one, and the metadata of a call when it is not recorded."""


def _make_ready() -> tuple[int, Metadata]:
    """More of them, and one to take."""
    made: list[tuple[int, Metadata]] = []
    for _ in range(BATCH):
        ids = _bits(192)
        made.append((ids, ((TRACEPARENT, f"00-{ids.to_bytes(24, 'big').hex('-', -16)}-02"),)))
    taken = made.pop()
    _ready.extend(made)
    return taken


def _differ() -> None:
    """A process that was forked makes other ids."""
    _random.seed()
    _ready.clear()


os.register_at_fork(after_in_child=_differ)


class Emitter(Protocol):
    """What takes spans that are made when they end, and decides which traces are recorded."""

    def decide(self, trace_id: int) -> bool:
        """Whether a trace that begins here is recorded."""

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


class ClientTrace(Protocol):
    """The span of a call that is recorded; makes those of its attempts."""

    context: SpanContext

    def attempt(self, call: Call, address: str, kind: str) -> Callable[[Outcome], None]:
        """A span for an attempt that begins, in whose name the call goes on; ended by calling what is returned."""

    def end(self, call: Call, outcome: Outcome) -> None:
        """The call has ended."""


class ClientTracing:
    """Begins the spans of calls of one method.

    Args:
        tracer: makes spans.
        service: the group of instances that is called; or the address of the only one.
        emitter: takes spans that the tracer need not make; None when the tracer is somebody else's.
    """

    def __init__(self, tracer: Tracer, method: Method[Any, Any], service: str, emitter: Emitter | None = None) -> None:
        self.tracer = tracer
        self.emit: Emitter = emitter  # type: ignore[assignment]  # used by those who have one
        self.w3c = is_w3c()
        self.name = method.full_name
        self.attempt_name = f"Attempt {method.full_name}"
        self.attributes = {"rpc.system.name": "grpc", "rpc.method": method.full_name, **place_of(service, "server")}
        self.ok = {**self.attributes, "rpc.response.status_code": "OK"}
        self.begin = self._direct if emitter is not None else self._by_sdk
        self._places: dict[tuple[str, str, int], dict[str, Any]] = {}

    def place(self, address: str, kind: str, number: int) -> dict[str, Any]:
        """The attributes of an attempt."""
        key = address, kind, number
        found = self._places.get(key)
        if found is None:
            if len(self._places) >= MOST_PLACES:
                self._places.clear()
            found = self._places[key] = place_of(address, "network.peer")
            if number > 1:  # what every attribute costs to be sent is paid by every call, and this goes without saying
                found |= {"framework.attempt": number, "framework.attempt.kind": kind}
        return found

    def _around(self, call: Call) -> tuple[Context, SpanContext]:
        """Where a call is made: the current span, or the one that the caller names in its metadata."""
        context = get_current()
        parent = trace.get_current_span(context).get_span_context()
        if parent is INVALID_SPAN_CONTEXT and call.metadata and call.get(TRACEPARENT) is not None:
            context = incoming(call.metadata, w3c=self.w3c)
            parent = trace.get_current_span(context).get_span_context()
        return context, parent

    def _by_sdk(self, call: Call) -> ClientTrace | None:
        """A call begins: its span; None when the trace is not recorded, which the call then says itself."""
        context, _ = self._around(call)
        span = self.tracer.start_span(self.name, context, SpanKind.CLIENT, self.attributes)
        if span.is_recording():
            call.trace = found = _SdkTrace(self, span, context)
            return found
        call.metadata = outgoing(call.metadata, span.get_span_context(), context, w3c=self.w3c)
        return None

    def _direct(self, call: Call) -> ClientTrace | None:
        """The same where the spans need not be made by the SDK."""
        context = get_current()
        if not (context or call.metadata) and self.w3c:  # nobody has said anything: as most calls begin
            try:
                ids, unsampled = _ready.pop()
            except IndexError:
                ids, unsampled = _make_ready()
            if not self.emit.decide(ids >> 64):
                call.metadata = unsampled
                return None
            own = SpanContext(ids >> 64, ids & _LOW, False, _SAMPLED, _STATE)
            call.trace = begun = _DirectTrace(self, own, None, context, plain=True)
            return begun
        context, parent = self._around(call)
        if parent.trace_id:
            trace_id = parent.trace_id
            if not parent.trace_flags & 1:
                call.metadata = outgoing(call.metadata, parent, context, w3c=self.w3c)
                return None
            plain = not parent.trace_state and not get_all(context)
        else:
            trace_id = _bits(128)
            plain = not context or not get_all(context)
            if not self.emit.decide(trace_id):
                own = SpanContext(trace_id, _bits(64), False, _UNSAMPLED, _STATE)
                call.metadata = outgoing(call.metadata, own, context, w3c=self.w3c)
                return None
        flags = parent.trace_flags if parent.trace_id else _SAMPLED
        own = SpanContext(trace_id, _bits(64), False, flags, parent.trace_state)
        call.trace = found = _DirectTrace(self, own, parent if parent.trace_id else None, context, plain and self.w3c)
        return found


class _DirectTrace:
    """See `ClientTrace`; its spans are made when they end."""

    __slots__ = ("_around", "_began", "_number", "_parent", "_plain", "_tracing", "context")

    def __init__(
        self, tracing: ClientTracing, context: SpanContext, parent: SpanContext | None, around: Context, plain: bool
    ) -> None:
        self.context = context
        self._tracing = tracing
        self._parent = parent
        self._around = around
        self._plain = plain  # nothing travels but the traceparent
        self._number = 0
        self._began = time_ns()

    def attempt(self, call: Call, address: str, kind: str) -> Callable[[Outcome], None]:
        tracing, parent = self._tracing, self.context
        self._number = number = self._number + 1
        context = SpanContext(parent.trace_id, _bits(64), False, parent.trace_flags, parent.trace_state)
        if self._plain and (number == 1 and (not call.metadata or call.get(TRACEPARENT) is None)):
            call.metadata = (*call.metadata, (TRACEPARENT, traceparent_of(context)))
        else:
            call.metadata = outgoing(call.metadata, context, self._around, w3c=tracing.w3c)
        began = time_ns()

        def ended(outcome: Outcome) -> None:
            attributes, status = tracing.place(address, kind, number), _UNSET
            if outcome.code is not Code.OK:
                attributes, status = _failed(attributes, outcome)
            tracing.emit(tracing.attempt_name, context, parent, SpanKind.INTERNAL, attributes, status, began)

        return ended

    def end(self, call: Call, outcome: Outcome) -> None:
        tracing = self._tracing
        attributes, status = tracing.ok, _UNSET
        if outcome.code is not Code.OK:
            attributes, status = _failed(tracing.attributes, outcome)
        tracing.emit(tracing.name, self.context, self._parent, SpanKind.CLIENT, attributes, status, self._began)


def _failed(attributes: dict[str, Any], outcome: Outcome) -> tuple[dict[str, Any], Status]:
    kind, message = failure_of(outcome)
    failed = {**attributes, "rpc.response.status_code": outcome.code.name, "error.type": kind}
    return failed, Status(StatusCode.ERROR, message)


class _SdkTrace:
    """See `ClientTrace`; its spans are made by the SDK."""

    __slots__ = ("_around", "_number", "_span", "_tracing", "context")

    def __init__(self, tracing: ClientTracing, span: Span, around: Context) -> None:
        self.context = span.get_span_context()
        self._tracing = tracing
        self._span = span
        self._around = trace.set_span_in_context(span, around)
        self._number = 0

    def attempt(self, call: Call, address: str, kind: str) -> Callable[[Outcome], None]:
        tracing = self._tracing
        self._number += 1
        attributes = tracing.place(address, kind, self._number)
        span = tracing.tracer.start_span(tracing.attempt_name, self._around, attributes=attributes)
        call.metadata = outgoing(call.metadata, span.get_span_context(), self._around, w3c=tracing.w3c)

        def ended(outcome: Outcome) -> None:
            if outcome.code is not Code.OK:
                _fail(span, outcome)
            span.end()

        return ended

    def end(self, call: Call, outcome: Outcome) -> None:
        if outcome.code is Code.OK:
            self._span.set_attribute("rpc.response.status_code", "OK")
        else:
            _fail(self._span, outcome)
        self._span.end()


def _fail(span: Span, outcome: Outcome) -> None:
    kind, message = failure_of(outcome)
    span.set_attributes({"rpc.response.status_code": outcome.code.name, "error.type": kind})
    span.set_status(Status(StatusCode.ERROR, message))


class ServerTrace:
    """The span of a call being served.

    Attributes:
        context: of the span.
    """

    __slots__ = ("_around", "_before", "_span", "context")

    def __init__(self, span: Span, around: Context, before: Context) -> None:
        self._span = span
        self._around = around
        self._before = before
        self.context = span.get_span_context()

    def enter(self) -> None:
        """Whoever is not the task of the call works for it from now on, until `leave`."""
        self._before = get_current()
        attach(self._around)

    def leave(self) -> None:
        """The span is current no more where it was made so."""
        attach(self._before)

    def end(self, call: Call, outcome: Outcome) -> None:
        """The call has ended."""
        span = self._span
        if not span.is_recording():
            return
        attributes = {"rpc.response.status_code": outcome.code.name, "client.address": _client(call.peer)}
        if outcome.code in _BROKEN:
            attributes["error.type"], message = failure_of(outcome)
            span.set_status(Status(StatusCode.ERROR, message))
            error = outcome.error
            if error is not None and not isinstance(error, RpcError | asyncio.CancelledError):
                span.record_exception(error)
        span.set_attributes(attributes)
        span.end()


class ServerTracing:
    """Begins the spans of calls of one method that is served.

    Args:
        emitter: decides which traces are recorded, and the tracer records all; None is the sampler of the tracer.
        inside: calls are made in this process, by requests whose spans are current.
    """

    def __init__(
        self, tracer: Tracer, method: Method[Any, Any], emitter: Emitter | None = None, *, inside: bool = False
    ) -> None:
        self._emitter = emitter
        self._inside = inside
        self._kind = SpanKind.INTERNAL if inside else SpanKind.SERVER
        self._tracer = tracer
        self._w3c = is_w3c()
        self._name = method.full_name
        self._attributes = {"rpc.system.name": "grpc", "rpc.method": method.full_name}

    def begin(self, call: Call) -> ServerTrace:
        """A call begins to be served in this task: its span, which is current from now on."""
        before = get_current()
        context = before if self._inside else incoming(call.metadata, w3c=self._w3c)
        span = unrecorded(context, self._emitter) or self._tracer.start_span(
            self._name, context, self._kind, self._attributes
        )
        around = trace.set_span_in_context(span, context)
        attach(around)
        call.trace = found = ServerTrace(span, around, before)
        return found


def unrecorded(context: Context, emitter: Emitter | None) -> Span | None:
    """A span in a trace that is not recorded, which the SDK need not make; None where the tracer is to make it."""
    if emitter is None:
        return None
    parent = trace.get_current_span(context)
    said = parent.get_span_context()
    if said.trace_id:
        return None if said.trace_flags & 1 else parent
    trace_id = _bits(128)
    if emitter.decide(trace_id):
        return None
    return NonRecordingSpan(SpanContext(trace_id, _bits(64), False, _UNSAMPLED, _STATE))


class HttpTrace:
    """The span of an HTTP request being served."""

    __slots__ = ("_before", "_method", "_span")

    def __init__(self, span: Span, method: str, before: Context) -> None:
        self._span = span
        self._method = method
        self._before = before

    def end(self, route: str, status: int, error: BaseException | None) -> None:
        """The response has been sent, or nobody waits for it; status 0 is none."""
        attach(self._before)
        span = self._span
        if not span.is_recording():
            return
        if route:
            span.update_name(f"{self._method} {route}")
            span.set_attribute("http.route", route)
        if status:
            span.set_attribute("http.response.status_code", status)
        if error is not None and not isinstance(error, asyncio.CancelledError):
            span.set_attribute("error.type", type(error).__qualname__)
            span.set_status(Status(StatusCode.ERROR, str(error)))
            span.record_exception(error)
        elif status >= 500 or not status:
            span.set_attribute("error.type", str(status) if status else "disconnected")
            span.set_status(Status(StatusCode.ERROR))
        span.end()


class HttpTracing:
    """Begins the spans of HTTP requests.

    Args:
        emitter: see `ServerTracing`.
    """

    def __init__(self, tracer: Tracer, emitter: Emitter | None = None) -> None:
        self._tracer = tracer
        self._emitter = emitter
        self._w3c = is_w3c()

    def begin(self, scope: Mapping[str, Any], method: str) -> HttpTrace:
        """A request of ASGI begins to be served in this task: its span, which is current until it ends.

        Args:
            method: of HTTP, or `_OTHER`.
        """
        before = context = get_current()
        if trace.get_current_span(context).get_span_context() is INVALID_SPAN_CONTEXT:
            carried = [(key.decode("latin-1"), value.decode("latin-1")) for key, value in scope["headers"]]
            context = incoming(tuple(carried), w3c=self._w3c)
        if (span := unrecorded(context, self._emitter)) is not None:
            attach(trace.set_span_in_context(span, context))
            return HttpTrace(span, method, before)
        attributes = {
            "http.request.method": method,
            "url.scheme": scope.get("scheme", "http"),
            "url.path": scope["path"],
            "network.protocol.version": scope.get("http_version", "1.1"),
        }
        if scope.get("client"):
            attributes["client.address"] = scope["client"][0]
        span = self._tracer.start_span(method, context, SpanKind.SERVER, attributes)
        attach(trace.set_span_in_context(span, context))
        return HttpTrace(span, method, before)


@lru_cache(MOST_PLACES)
def _client(peer: str) -> str:
    """The address of a peer, without the port, which tells nobody anything."""
    return str(place_of(peer, "client")["client.address"])
