"""Telemetry of a process, or of a service in it: what watches its calls, and what is told to whom.

It is found through a context variable, as settings are: what a service connects to belongs to the service. Whatever has
none shares that of the process.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from framework.call import Method
from framework.errors import Code, ConfigError
from framework.logs import CallLines
from framework.observation import TelemetrySettings
from framework.telemetry.figures import Figures, Labels
from framework.telemetry.names import CLIENT_DURATION, SERVER_DURATION
from framework.telemetry.observer import Begin, Durations, Line, Observer, observer, pass_on
from framework.telemetry.process import Process, lag_watched
from framework.telemetry.text import exposition

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer, TracerProvider

    from framework.telemetry.sdk import Sending
    from framework.telemetry.tracing import Emitter

log = logging.getLogger("framework.telemetry")

Lines: TypeAlias = Callable[[Literal["client", "server"], Method[Any, Any], str], Line | None]
"""What writes a line in the log for every call of a method: on which side, and for a client of which service."""

FAILURES = frozenset(Code) - {Code.OK}
BROKEN = frozenset(
    {Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.UNIMPLEMENTED, Code.INTERNAL, Code.UNAVAILABLE, Code.DATA_LOSS}
)
"""Codes that are errors of a server; the others are answers. On a client every failure is an error."""


class Telemetry:
    """What is known of the calls of a process.

    Args:
        settings: what is wanted.
        tracer: makes spans; default: of the provider that the process has, if it has one.
        emitter: takes spans that the tracer need not make.
        lines: what writes lines in the log.

    Attributes:
        figures: all that is counted.
        lines: as given; may be set before methods are bound.
        emitter: as given, or that of what is sent.
        resource: what is told of the process itself, for `target_info`.
    """

    def __init__(
        self,
        settings: TelemetrySettings | None = None,
        *,
        tracer: Tracer | None = None,
        emitter: Emitter | None = None,
        lines: Lines | None = None,
    ) -> None:
        self.settings = settings or TelemetrySettings()
        self.figures = Figures()
        self.lines = lines
        self.resource: Labels = ()
        self._tracer = tracer
        self._provider: TracerProvider | None = None
        self.emitter = emitter
        self._process = Process()  # figures know it weakly
        self.figures.add(self._process)

    @property
    def tracer(self) -> Tracer | None:
        """What makes spans; None when there is no SDK, or spans are made by others."""
        if self.settings.instrumentation != "framework":
            return None
        return self._tracer or _tracer()

    def client(self, method: Method[Any, Any], service: str) -> Observer | None:
        """What watches the calls of a method to a service."""
        tracer = self.tracer
        begin: Begin | None = pass_on if self.settings.instrumentation == "framework" else None
        if tracer is not None:
            from framework.telemetry.tracing import ClientTracing

            begin = ClientTracing(tracer, method, service, self.emitter).begin
        durations = None
        if self.settings.metrics:
            told = self.figures.target(service)
            host, colon, port = told.rpartition(":")
            address: Labels = (("server.address", told),)
            if colon and port.isdecimal() and "," not in told:
                address = (("server.address", host), ("server.port", port))
            labels = (("rpc.system.name", "grpc"), ("rpc.method", method.full_name), *address)
            durations = Durations(self.figures, CLIENT_DURATION, labels, FAILURES)
        return observer(begin, durations, self.lines and self.lines("client", method, service))

    def server(self, method: Method[Any, Any], *, inside: bool = False) -> Observer | None:
        """What watches the calls of a method that is served.

        Args:
            inside: calls are made by requests of another protocol to the same process.
        """
        tracer = self.tracer
        begin: Begin | None = None
        if tracer is not None and not method.service.startswith("grpc."):  # health checks would bury what is of use
            from framework.telemetry.tracing import ServerTracing

            begin = ServerTracing(tracer, method, self.emitter, inside=inside).begin
        labels = (("rpc.system.name", "grpc"), ("rpc.method", method.full_name))
        durations = Durations(self.figures, SERVER_DURATION, labels, BROKEN) if self.settings.metrics else None
        return observer(begin, durations, self.lines and self.lines("server", method, ""))

    def grpc_client_interceptors(self) -> tuple[Any, ...]:
        """What grpc is to make spans with on channels, when others' are wanted.

        Raises:
            ConfigError: they are not installed.
        """
        if self.settings.instrumentation != "contrib":
            return ()
        from framework.telemetry import contrib

        return contrib.client_interceptors(self._provider)

    def grpc_server_interceptors(self) -> tuple[Any, ...]:
        """The same on servers."""
        if self.settings.instrumentation != "contrib":
            return ()
        from framework.telemetry import contrib

        return (contrib.server_interceptor(self._provider),)

    def text(self) -> bytes:
        """All figures as Prometheus reads them."""
        return exposition(self.figures.read(), self.resource)

    @asynccontextmanager
    async def running(self, name: str) -> AsyncIterator[Telemetry]:
        """Measure the process, and send what is to be sent, while the block runs.

        Raises:
            ConfigError: something is to be sent, and what sends it is not installed.
        """
        self.resource = (("service_name", name),)
        sending = self.send(name)
        before = active.get()
        active.set(self)
        try:
            with lag_watched(self.figures):
                yield self
        finally:
            active.set(before)
            if sending is not None:
                await sending.stop(self.settings.flush)

    def send(self, name: str) -> Sending | None:
        """Send spans and figures from now on, if they are to be sent.

        Raises:
            ConfigError: something is to be sent, and what sends it is not installed.
        """
        from framework.telemetry import sdk

        if not sdk.wanted(self.settings):
            return None
        try:
            sending = sdk.Sending(name, self.settings, self.figures)
        except ConfigError as error:
            if self.settings.endpoint:
                raise
            log.warning("%s; nothing is sent, though OTEL_EXPORTER_OTLP_ENDPOINT says where to", error)
            return None
        self._provider = self._provider or sending.provider
        if self._tracer is None:
            self._tracer, self.emitter = sending.tracer, sending.emitter
        self.resource = tuple((key, str(value)) for key, value in sorted(sending.resource.attributes.items()))
        return sending

    def __repr__(self) -> str:
        return f"<Telemetry {dict(self.resource).get('service_name', 'of this process')}>"


def _tracer() -> Tracer | None:
    """Of the provider that the process has. Nobody has set one who has not imported what sets it."""
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry import trace

    provider = trace.get_tracer_provider()
    return None if isinstance(provider, trace.ProxyTracerProvider) else provider.get_tracer("framework")


active: ContextVar[Telemetry | None] = ContextVar("framework.telemetry", default=None)
"""That of the service that runs in this context."""

_of_process: Telemetry | None = None


def telemetry(settings: TelemetrySettings | None = None) -> Telemetry:
    """That of the service that runs here, or of the process, which the first who asks makes with these settings."""
    global _of_process
    found = active.get()
    if found is not None:
        return found
    if _of_process is None:
        _of_process = Telemetry(settings)
        sending = _of_process.send(os.path.basename(sys.argv[0]) or "python")
        if sending is not None:
            atexit.register(sending.finish, _of_process.settings.flush)
    return _of_process


def telemetry_for(settings: TelemetrySettings, *, passes_on: bool = False) -> Telemetry:
    """For a service that begins to run: what it was given, or its own.

    Args:
        passes_on: the calls that it makes are those that it serves, as a gateway's are.
    """
    return active.get() or Telemetry(settings, lines=CallLines(settings.logs, passes_on=passes_on))


def prometheus_text() -> bytes:
    """All figures of the service that runs here, or of the process, as Prometheus reads them."""
    return telemetry().text()
