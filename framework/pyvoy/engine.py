"""Starts Envoy with the service inside, registers it, and stops it at a signal."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from framework.config import Drain, ServerSettings, Settings
from framework.discovery.targets import NO_REGISTRY, open_registry
from framework.errors import ConfigError, FrameworkError
from framework.server.wire import unusable
from framework.service import Service
from framework.signals import serve_until_signal
from framework.tls import refuse_plain_text
from framework.workers.program import run_until_complete

try:
    import pyvoy

    from framework.pyvoy.embedded import Order
except ModuleNotFoundError as error:
    raise ConfigError(
        f"{error.name} is not installed; --engine pyvoy takes: pip install framework-grpc[pyvoy]"
    ) from None

log = logging.getLogger("framework")

APPLICATION = "framework.cli.embedded:app"

WINDOW = 1 << 20
"""Bytes of a stream that a client may send before they are taken; Envoy answers 413 when it holds more than it may."""


@dataclasses.dataclass(slots=True)
class Running:
    """A service inside Envoy.

    Attributes:
        port: that it listens on.
        drain: how to stop.
    """

    port: int
    drain: Drain

    def stop_as(self, drain: Drain) -> None:
        self.drain = drain


def launch(service: Service, settings: Settings, arguments: Sequence[str]) -> None:
    """Serve until a signal.

    Args:
        arguments: of `framework run`, for the same once more inside Envoy.

    Raises:
        FrameworkError: it cannot start; the message says why and what to do.
    """
    server = settings.server
    if server.workers != 1:
        raise ConfigError("the engine pyvoy has no workers; leave --workers out, or run it several times")
    if server.http.port is not None:
        raise ConfigError("the engine pyvoy serves HTTP on the port of gRPC; leave --http out")
    if server.tls:
        raise ConfigError("the engine pyvoy serves plain text; leave [server.tls] out, or the engine")
    if not server.plaintext:
        refuse_plain_text("the server", server.host, "server")
    if service.grpc_interceptors:
        raise ConfigError(f"{service.name} has grpc_interceptors, which need grpc's own server, and not pyvoy")
    running = _running(service, settings, arguments)
    fields = {"service": service.name}
    run_until_complete(serve_until_signal(service.name, running, server.drain), settings.telemetry.logs, fields)


@contextlib.asynccontextmanager
async def _running(service: Service, settings: Settings, arguments: Sequence[str]) -> AsyncIterator[Running]:
    async with contextlib.AsyncExitStack() as exits:
        report = Path(exits.enter_context(tempfile.TemporaryDirectory()), "report")
        order = Order([*arguments], str(report), os.getpid())
        envoy = Envoy(settings.server, order)
        try:
            await envoy.start()
        except pyvoy.StartupError:
            raise FrameworkError(_told(report)) from None
        exits.push_async_callback(envoy.stop)
        running = Running(envoy.listener_port, settings.server.drain)
        instance = service.instance(settings.server, running.port)
        lease = None
        if settings.registry == NO_REGISTRY:
            log.info("%s serves on %s, not registered", service.name, instance.address)
        else:
            registry = open_registry(settings.registry)
            exits.push_async_callback(registry.aclose)
            lease = await registry.register(instance)
            exits.push_async_callback(lease.close)
            log.info("%s serves on %s, registered in %s as %s", service.name, instance.address, registry, instance.id)
        ended = asyncio.create_task(envoy.wait())
        ended.add_done_callback(lambda task: None if task.cancelled() else signal.raise_signal(signal.SIGTERM))
        yield running
        if ended.done():
            raise FrameworkError(f"Envoy has ended by itself, with {ended.result()}; calls in flight are lost")
        ended.cancel()
        if lease is not None:
            await lease.close()
        await asyncio.sleep(running.drain.delay)
    log.info("%s has stopped", service.name)


class Envoy(pyvoy.PyvoyServer):  # type: ignore[misc]  # it is not there to be checked
    """Envoy as this framework wants it; its threads serve one Python thread, so one does."""

    def __init__(self, settings: ServerSettings, order: Order) -> None:
        self._settings = settings
        super().__init__(
            APPLICATION,
            address=_address(settings.host.strip("[]"), settings.port),
            port=settings.port,
            log_level="off",
            lifespan=True,
            additional_envoy_args=["--concurrency", "1"],
            env=order.written(),
            stdout=None,
            stderr=None,
        )

    def get_envoy_config(self) -> dict[str, Any]:
        """Its configuration."""
        config: dict[str, Any] = super().get_envoy_config()
        (listener,) = config["static_resources"]["listeners"]
        listener["enable_reuse_port"] = False  # two servers would share a port silently
        listener["per_connection_buffer_limit_bytes"] = 4 * WINDOW
        manager = listener["filter_chains"][0]["filters"][-1]["typed_config"]
        manager["stream_idle_timeout"] = "0s"  # a stream may be silent
        manager["use_remote_address"] = True  # the client's own, whatever it says about itself
        manager["skip_xff_append"] = True
        keepalive = self._settings.keepalive
        manager["http2_protocol_options"] = {
            "initial_stream_window_size": WINDOW,
            "connection_keepalive": {"interval": f"{keepalive.interval}s", "timeout": f"{keepalive.timeout}s"},
        }
        if self._settings.max_connection_age is not None:
            manager["common_http_protocol_options"] = {
                "max_connection_duration": f"{self._settings.max_connection_age}s"
            }
        return config


def _told(report: Path) -> str:
    """Why the service could not start."""
    said = report.read_text() if report.exists() else ""
    return said or "the service could not start inside Envoy; what it said stands above"


def _address(host: str, port: int) -> str:
    """The address of a host, where the port can be had. Raises ConfigError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        socket.create_server(address[:2], family=family).close()
    except OSError:
        raise unusable(host, port) from None
    return str(address[0])
