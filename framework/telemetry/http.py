"""What watches HTTP requests: a span for each and its duration, by the semantic conventions for HTTP servers.

The span is current while the request is served, so that the calls which are made for it are its children.

Source: https://opentelemetry.io/docs/specs/semconv/http/
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, TypeAlias

from framework.loop import exact_clock
from framework.telemetry.figures import Histogram
from framework.telemetry.names import HTTP_DURATION, OTHER
from framework.telemetry.telemetry import Telemetry

if TYPE_CHECKING:
    from framework.telemetry.tracing import HttpTracing

ROUTE = "framework.route"
"""Key of an ASGI scope under which an application says what it found at the path."""

METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"))
"""HTTP methods that are told apart."""

_STATUS_IN = frozenset(("http.response.start", "websocket.http.response.start"))
_BY_EVENT = {"websocket.accept": 101, "websocket.close": 403}

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


def trace_ids() -> dict[str, str]:
    """The ids of the span of the request that is being served, for the log."""
    from opentelemetry.trace import get_current_span

    context = get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


def watched(app: App, telemetry: Telemetry) -> App:
    """An ASGI application whose requests are watched; the same one when nobody wants to know."""
    tracer, metrics = telemetry.tracer, telemetry.settings.metrics
    if tracer is None and not metrics:
        return app
    tracing: HttpTracing | None = None
    if tracer is not None:
        from framework.telemetry.tracing import HttpTracing

        tracing = HttpTracing(tracer, telemetry.emitter)
    known: dict[tuple[str, str, str, int], Histogram] = {}

    def histogram(scope: Scope, method: str, status: int) -> Histogram:
        key = scope.get("scheme", "http"), method, scope.get(ROUTE, OTHER), status
        found = known.get(key)
        if found is None:
            labels = (("http.request.method", method), ("url.scheme", key[0]), ("http.route", key[2]))
            if status:
                labels = (*labels, ("http.response.status_code", str(status)))  # type: ignore[assignment]  # one more
            if status >= 500 or not status:
                labels = (*labels, ("error.type", str(status or OTHER)))  # type: ignore[assignment]  # one more
            found = known[key] = telemetry.figures.histogram(HTTP_DURATION, labels)
        return found

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        clock = exact_clock()
        began = clock()
        status = 0

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if not status:
                kind = message["type"]
                status = message["status"] if kind in _STATUS_IN else _BY_EVENT.get(kind, 0)
            await send(message)

        given = scope.get("method", "GET")
        method = given if given in METHODS else OTHER
        trace = tracing.begin(scope, method) if tracing is not None else None
        error: BaseException | None = None
        try:
            await app(scope, receive, sending)
        except BaseException as raised:
            error = raised
            raise
        finally:
            if metrics:
                histogram(scope, method, status).record(clock() - began)
            if trace is not None:
                trace.end(scope.get(ROUTE, ""), status, error)
            del error

    return serve
