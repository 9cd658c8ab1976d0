"""A service: the composition root that puts servicers, server, registry and signals together.

    service = Service("catalog", lifespan=lifespan)
    if __name__ == "__main__":
        service.run()

Up: lifespan, listen, health SERVING, register. Down, in order: health NOT_SERVING and deregister, keep accepting while
that becomes known, let calls end, leave the lifespan.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import logging
import re
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

from framework.call import Interceptor, Method
from framework.config import Drain, ServerSettings, Settings, active
from framework.discovery import Instance, Lease, Registry
from framework.discovery.targets import NO_REGISTRY, open_registry
from framework.errors import ConfigError, FrameworkError
from framework.interceptors.identity import signer
from framework.reload import watch
from framework.security.authentication import Authenticator
from framework.security.guard import Guard, guarded, warn_of_rules
from framework.security.validation import validating
from framework.server.dropin import DropInServer
from framework.server.pipeline import ErrorMap, Pipeline
from framework.server.server import Server
from framework.server.servicer import Servicer
from framework.signals import serve_until_signal
from framework.telemetry.telemetry import telemetry_for

if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

    from framework.http.server import HttpServer
    from framework.workers.worker import Worker

log = logging.getLogger("framework")

Lifespan = Callable[["Service"], AbstractAsyncContextManager[None]]


class Service:
    """One service: what it serves, and how it comes up and goes down.

    Args:
        name: what clients connect to, `catalog`.
        servicers: what to serve; more can be added in the lifespan.
        lifespan: async context manager around the time that the service serves; opens what servicers need.
        interceptors: around every call, the first outermost.
        errors: exceptions of your own, and the error of the family that each becomes.
        grpc_interceptors: grpc.aio server interceptors, handed to grpc.
        authenticators: say who callers are, before those of the settings are asked.
        settings: default: `Settings.load()` when it starts.
        version, zone, weight, tags, metadata: what the registry tells clients of every instance.
    """

    def __init__(
        self,
        name: str,
        *,
        servicers: Iterable[Servicer] = (),
        lifespan: Lifespan | None = None,
        interceptors: Iterable[Interceptor] = (),
        errors: ErrorMap | None = None,
        grpc_interceptors: Iterable[Any] = (),
        authenticators: Iterable[Authenticator] = (),
        settings: Settings | None = None,
        version: str = "",
        zone: str = "",
        weight: int = 1,
        tags: Iterable[str] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.settings = settings
        self.may_be_empty = False  # a scripted peer's methods come with the test
        if isinstance(cast(object, servicers), Servicer):
            raise FrameworkError(
                f"servicers of {name} is one servicer; write servicers=[{type(servicers).__name__}(...)]"
            )
        if inspect.isasyncgenfunction(lifespan) or inspect.iscoroutinefunction(lifespan):
            raise FrameworkError(f"the lifespan of {name} is no context manager; put @asynccontextmanager above it")
        self._servicers = tuple(servicers)
        self._lifespan = lifespan
        self._interceptors = tuple(interceptors)
        self._errors = errors
        self._grpc_interceptors = tuple(grpc_interceptors)
        self._authenticators = tuple(authenticators)
        self._described: dict[str, Any] = {
            "version": version,
            "zone": zone,
            "weight": weight,
            "tags": tuple(tags),
            "metadata": dict(metadata or {}),
        }
        self._pipeline: Pipeline | None = None
        self._guard: Guard | None = None

    @property
    def servicers(self) -> tuple[Servicer, ...]:
        """Those it was made with; more may come in the lifespan."""
        return self._servicers

    @property
    def grpc_interceptors(self) -> tuple[Any, ...]:
        """What is handed to grpc's own server."""
        return self._grpc_interceptors

    @property
    def grpc_server(self) -> DropInServer:
        """For generated code of grpc's own: `add_CatalogServicer_to_server(servicer, service.grpc_server)`."""
        return DropInServer(self._building())

    def add(self, *servicers: Servicer) -> None:
        """Serve these too; called in the lifespan.

        Raises:
            ServicerError: it cannot be served; the message says what to write.
        """
        for servicer in servicers:
            self._building().add(servicer)

    def _building(self) -> Pipeline:
        if self._pipeline is None:
            raise FrameworkError(
                f"servicers are added to {self.name} in its lifespan, or given as Service(servicers=[...])"
            )
        return self._pipeline

    @asynccontextmanager
    async def assembled(self, settings: Settings | None = None) -> AsyncIterator[Pipeline]:
        """Enter the lifespan; gives the pipeline with every servicer in it."""
        settings = settings or self.settings or Settings()
        if self._pipeline is not None:
            raise FrameworkError(f"{self.name} is running already in this process")
        try:
            async with guarded(self.name, settings, self._authenticators) as self._guard:
                own = () if self._guard is None else self._guard.interceptors
                rules = (validating(),) if settings.server.validate else ()
                around = (*own, *rules, *self._interceptors)
                pipeline = self._pipeline = Pipeline(around, self._errors, settings.server)
                try:
                    for servicer in self._servicers:
                        pipeline.add(servicer)
                    async with self._lifespan(self) if self._lifespan is not None else contextlib.nullcontext():
                        self._check(pipeline)
                        pipeline.observed()  # its lifespan may have set up a way to
                        yield pipeline
                finally:
                    pipeline.close()
        finally:
            self._pipeline = self._guard = None

    @property
    def guard(self) -> Guard | None:
        """What finds out who calls, and whether they may; None while the service is not up, or when all may."""
        return self._guard

    def _check(self, pipeline: Pipeline) -> None:
        """Raise FrameworkError unless what the lifespan has added can be served."""
        if not pipeline.methods and not self.may_be_empty:
            raise FrameworkError(
                f"{self.name} serves nothing. Add a servicer: `service.add(Catalog(...))` in the lifespan"
            )
        if self._guard is not None:
            self._guard.access.complete()
        else:
            warn_of_rules(self.name, (bound.method for bound in pipeline.methods))

    @asynccontextmanager
    async def prepared(self, settings: Settings) -> AsyncIterator[Pipeline]:
        """All but a server: lifespan, telemetry, and settings that are followed; gives the pipeline."""
        active.set(settings)  # `connect` in the lifespan, and in handlers, is to use the same
        async with contextlib.AsyncExitStack() as exits:
            await exits.enter_async_context(telemetry_for(settings.telemetry).running(self.name))
            exits.callback(watch(settings))  # the channels take what changes; a server stays as it was started
            yield await exits.enter_async_context(self.assembled(settings))

    @asynccontextmanager
    async def running(
        self,
        settings: Settings | None = None,
        *,
        registry: Registry | None = None,
        drain: Drain | None = None,
        shared: bool = False,
        admin: bool = False,
    ) -> AsyncIterator[Server]:
        """Serve while the block runs; drains at its end.

        Args:
            settings: default: the service's own, or `Settings.load()`.
            registry: where to register, left open; default: what the settings name.
            drain: how to stop at the end of the block; default: the settings'.
            shared: this is one of several workers behind a port, and another process registers them.
            admin: serve the admin pages too, if the settings have a port for them.

        Raises:
            FrameworkError: it cannot start; the message says why and what to do.
        """
        settings = settings or self.settings or Settings.load()
        outside = signer.get()
        async with contextlib.AsyncExitStack() as exits:
            pipeline = await exits.enter_async_context(self.prepared(settings))
            if registry is None and settings.registry != NO_REGISTRY and not shared:
                registry = open_registry(settings.registry)
                exits.push_async_callback(registry.aclose)
            user = (*pipeline.telemetry.grpc_server_interceptors(), *self._grpc_interceptors)
            server = Server(pipeline, settings.server, grpc_interceptors=user, shared=shared)
            await server.start()
            exits.push_async_callback(server.stop)
            beside = await self._beside(server, settings.server, shared=shared)
            if beside is not None:
                exits.push_async_callback(beside.stop)
            if admin and settings.admin.port is not None:
                from framework.admin import Effective, Watched, admin_pages

                effective = Effective(settings)
                exits.callback(watch(settings, effective.changed))
                watched = Watched(
                    self.name,
                    effective,
                    lambda: "" if server.health.is_serving else f"{server.address} does not serve",
                    lambda: pipeline.calls,
                    pipeline.telemetry.text,
                )
                await exits.enter_async_context(admin_pages(settings.admin, watched, shared=shared))
            lease: Lease | None = None
            if registry is not None:
                instance = self.instance(settings.server, server.port)
                lease = await registry.register(instance)
                exits.push_async_callback(lease.close)
                log.info("%s serves on %s, registered in %s as %s", self.name, server.address, registry, instance.id)
            elif not shared:
                log.info("%s serves on %s, not registered", self.name, server.address)
            signer.set(outside)  # lifespan and handlers call as this service; who has started it does not
            yield server
            server.health.shut_down()
            if lease is not None:
                await lease.close()
            if beside is None:
                await server.drain(drain)
            else:
                await asyncio.gather(server.drain(drain), beside.drain(drain or server.settings.drain))
            if not shared:
                log.info("%s has stopped", self.name)

    async def _beside(self, server: Server, settings: ServerSettings, *, shared: bool) -> HttpServer | None:
        """HTTP beside gRPC, when the settings have a port for it."""
        if settings.http.port is None:
            _doubt_http(bound.method for bound in server.pipeline.methods)
            return None
        try:
            from framework.cohosting import http_beside
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{error.name} is not installed; to serve HTTP takes: pip install framework-grpc[gateway]"
            ) from None
        beside = http_beside(self.name, server, settings, self._guard, shared=shared)
        await beside.start()
        server.beside = beside
        if not shared:
            log.info("%s serves HTTP on %s", self.name, beside.url)
        return beside

    def instance(self, settings: ServerSettings, port: int) -> Instance:
        """What is registered of this process, which listens on the port."""
        return Instance(
            id=f"{self.name}-{uuid.uuid4().hex[:12]}",
            service=self.name,
            address=_advertised(settings, port),
            protocol=settings.tls.protocol,
            **self._described,
        )

    async def serve(self, settings: Settings | None = None, *, interactive: bool | None = None) -> None:
        """Serve until SIGTERM or SIGINT, then drain; a second signal stops at once. In this process, with no workers.

        Args:
            settings: default: the service's own, or `Settings.load()`.
            interactive: drain quickly on SIGINT, for a person who waits; default: whether a terminal is attached.
        """
        settings = settings or self.settings or Settings.load()
        running = self.running(settings, admin=True)
        await serve_until_signal(self.name, running, settings.server.drain, interactive=interactive)

    def launch(self, settings: Settings, worker: Worker | None, command: Sequence[str]) -> None:
        """Serve until a signal, as the settings say: in this process, or in workers of it.

        Args:
            worker: this process is one of them.
            command: what to run for each of them.

        Raises:
            FrameworkError: it cannot start; the message says why and what to do.
        """
        from framework.workers import program  # with what only a process that serves needs

        server = settings.server

        def shared(worker: Worker) -> Coroutine[Any, Any, None]:
            placed = dataclasses.replace(
                settings, server=dataclasses.replace(server, host=worker.host, port=worker.port)
            )
            running = self.running(placed, shared=True, admin=True)
            return worker.serve(running, placed, server.workers, lambda port: self.instance(placed.server, port))

        program.launch(
            self.name,
            server.workers,
            (server.host, server.port),
            worker,
            command,
            lambda: self.serve(settings),
            shared,
            server.http.port or 0,
            logs=settings.telemetry.logs,
        )

    def run(self, settings: Settings | None = None) -> None:
        """Serve until a signal, on an event loop of its own. A mistake in the setup ends the process with one line.

        With `workers` in the settings, the program is run once more for each of them.
        """
        from framework.workers import program

        program.run(lambda worker, command: self.launch(settings or self.settings or Settings.load(), worker, command))

    def __repr__(self) -> str:
        return f"<Service {self.name}>"


_HOST = re.compile(r"\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


def _doubt_http(methods: Iterable[Method[Any, Any]]) -> None:
    """Tell of HTTP rules that cannot be served, though nobody serves them here: a gateway will not, either."""
    services: dict[str, ServiceDescriptor] = {}
    for method in methods:
        descriptor = getattr(method.request, "DESCRIPTOR", None)
        if descriptor is not None and method.service not in services:
            with contextlib.suppress(KeyError):
                services[method.service] = descriptor.file.pool.FindServiceByName(method.service)
    annotated = [one for one in services.values() if any(map(_has_http, one.methods))]
    if not annotated:
        return
    from framework.http.methods import mistakes_in

    for _, error in mistakes_in(annotated):
        log.warning("%s. HTTP cannot be served with this, neither here nor by a gateway", error)


def _has_http(method: MethodDescriptor) -> bool:
    return any(one.full_name in ("google.api.http", "framework.http") for one, _ in method.GetOptions().ListFields())


def _advertised(settings: ServerSettings, port: int) -> str:
    """`host:port` that clients are told to dial.

    Raises:
        ConfigError: `advertise` is none, or the server listens on every address and none of them can be found out.
    """
    given = settings.advertise
    if not given:
        host = settings.host.strip("[]")
        host = _own_address() if host in ("0.0.0.0", "::", "") else host
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if given.count(":") > 1 and not given.startswith("["):
        given = f"[{given}]"  # an IPv6 address alone
    head, colon, tail = given.rpartition(":")
    host, number = (head, tail) if colon and not given.endswith("]") else (given, str(port))
    if not _HOST.fullmatch(host) or not number.isdecimal() or not 0 < int(number) <= 65535:
        raise ConfigError(f"advertise is {settings.advertise!r}; write a host or host:port that clients can dial")
    return f"{host}:{number}"


def _own_address() -> str:
    """The address that this machine talks to others from; a UDP socket tells without sending anything."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError as error:
            raise ConfigError(
                "listening on every address, but this machine has none that others can dial; say which with --advertise"
            ) from error
        return str(probe.getsockname()[0])
