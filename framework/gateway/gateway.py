"""The gateway: what is registered, on one HTTP port.

    gateway = Gateway()
    gateway.run()

The application is made anew, beside the one that serves, whenever a service comes, goes or changes, and then takes its
place; calls in flight are finished by the one that they began with.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from framework.admin import Effective, Watched, admin_pages
from framework.call import Call, Handler, Interceptor, Method
from framework.certificates import TlsFiles
from framework.client.connect import connect
from framework.client.dropin import Channel
from framework.config import Drain, Settings, active
from framework.discovery import Registry
from framework.discovery.targets import open_registry
from framework.errors import ConfigError
from framework.gateway.backend import Application, Backend, Generation, named
from framework.gateway.description import Checked, Description, check, collision
from framework.http.admission import Admission
from framework.http.app import HttpApp
from framework.http.conduct import Conduct
from framework.http.front import Front
from framework.http.pages import docs_pages, health_pages
from framework.http.rates import Rates
from framework.http.server import HttpServer
from framework.http.settings import HttpSettings
from framework.interceptors.identity import signer
from framework.parsing import suggest
from framework.reload import watch
from framework.security.authentication import Authenticator
from framework.security.guard import Guard, guarded
from framework.security.rules import has_rules
from framework.security.validation import validating
from framework.signals import serve_until_signal
from framework.telemetry.telemetry import telemetry_for
from framework.tls import refuse_plain_text
from framework.workers import program
from framework.workers.worker import Worker

log = logging.getLogger("framework.gateway")

NAME = "the gateway"

SERVICE = "gateway"
"""What services are told who calls them."""

FIRST = 10.0
"""Seconds that the first of several workers waits until it knows what to serve; one that replaces another waits on."""

PATIENCE = 2.0
"""Seconds that the first application waits for services that are slow to say what they serve."""

ABSENT = 5.0
"""Seconds after which it is said that a service that the settings name has not been seen."""


class Gateway:
    """Serves the methods of registered services over HTTP.

    Args:
        settings: default: `Settings.load()` when it starts. What concerns it is in `settings.gateway`.
        authenticators: say who callers are, before those of the settings are asked.
        rates: where it is kept how often callers call; default: in this process.
        interceptors: around every call, the first outermost.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        authenticators: Iterable[Authenticator] = (),
        rates: Rates | None = None,
        interceptors: Iterable[Interceptor] = (),
    ) -> None:
        self.settings = settings
        self._authenticators = tuple(authenticators)
        self._rates = rates
        self._interceptors = tuple(interceptors)

    @asynccontextmanager
    async def running(
        self,
        settings: Settings | None = None,
        *,
        registry: Registry | None = None,
        drain: Drain | None = None,
        worker: Worker | None = None,
        admin: bool = False,
    ) -> AsyncIterator[Running]:
        """Serve while the block runs; drains at its end.

        Args:
            settings: default: the gateway's own, or `Settings.load()`.
            registry: where services are found, left open; default: what the settings name.
            drain: how to stop at the end of the block; default: the server's in the settings.
            worker: this process is one of several workers behind a port.
            admin: serve the admin pages too, if the settings have a port for them.

        Raises:
            FrameworkError: it cannot start; the message says why and what to do.
        """
        settings = settings or self.settings or Settings.load()
        active.set(settings)
        outside = signer.get()
        async with contextlib.AsyncExitStack() as exits:
            telemetry = telemetry_for(settings.telemetry, passes_on=True)
            await exits.enter_async_context(telemetry.running("gateway"))
            effective = Effective(settings)
            exits.callback(watch(settings, effective.changed))
            if registry is None:
                registry = open_registry(settings.registry)
                exits.push_async_callback(registry.aclose)
            guard = await exits.enter_async_context(guarded(SERVICE, settings, self._authenticators))
            running = Running(self, settings, registry, guard, shared=worker is not None)
            if worker is None:  # before anything is said to be there: the port may be another's
                await running.server.start()
                exits.push_async_callback(running.server.stop)
            if admin:
                watched = Watched("gateway", effective, running.unready, running.calls, telemetry.text)
                pages = admin_pages(settings.admin, watched, shared=worker is not None)
                running.admin = await exits.enter_async_context(pages)
            if worker is None:
                await exits.enter_async_context(running.following())
                log.info("the gateway serves on %s, from %s", running.server.url, registry)
            else:  # it gets its share of the calls from the first moment on, and has to know by then what to do
                await exits.enter_async_context(running.following())
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(running.until_informed(), FIRST if worker.first else None)
                await running.server.start()
                exits.push_async_callback(running.server.stop)
            signer.set(outside)  # what the gateway calls is told by it; what the block calls is not
            yield running
            running.leave()
            await running.server.drain(drain or running.drain)
        if worker is None:
            log.info("the gateway has stopped")

    async def serve(self, settings: Settings | None = None, *, interactive: bool | None = None) -> None:
        """Serve until SIGTERM or SIGINT, then drain; a second signal stops at once.

        Args:
            settings: default: the gateway's own, or `Settings.load()`.
            interactive: drain quickly on SIGINT, for a person who waits; default: whether a terminal is attached.
        """
        settings = settings or self.settings or Settings.load()
        await serve_until_signal(
            NAME, self.running(settings, admin=True), settings.server.drain, interactive=interactive
        )

    def launch(self, settings: Settings, worker: Worker | None, command: Sequence[str]) -> None:
        """Serve until a signal, as the settings say: in this process, or in workers of it.

        Args:
            worker: this process is one of them.
            command: what to run for each of them.

        Raises:
            FrameworkError: it cannot start; the message says why and what to do.
        """
        web = settings.gateway

        def shared(worker: Worker) -> Coroutine[Any, Any, None]:
            placed = dataclasses.replace(settings, gateway=dataclasses.replace(web, host=worker.host, port=worker.port))
            return worker.serve(self.running(placed, worker=worker, admin=True), placed, web.workers)

        where, logs = (web.host, web.port or 0), settings.telemetry.logs
        program.launch(NAME, web.workers, where, worker, command, lambda: self.serve(settings), shared, logs=logs)

    def run(self, settings: Settings | None = None) -> None:
        """Serve until a signal, on an event loop of its own. A mistake in the setup ends the process with one line.

        With `workers` in the settings, the program is run once more for each of them.
        """
        program.run(lambda worker, command: self.launch(settings or self.settings or Settings.load(), worker, command))


class Running:
    """A gateway that serves.

    Attributes:
        front: the application that the server has.
        server: what listens.
        backends: the services, by name, in the order in which they were accepted.
        drain: how it will stop.
        admin: `host:port` of the admin pages; empty without.
    """

    def __init__(
        self,
        gateway: Gateway,
        settings: Settings,
        registry: Registry,
        security: Guard | None = None,
        *,
        shared: bool = False,
    ) -> None:
        web = settings.gateway
        self.settings = settings
        self.backends: dict[str, Backend] = {}
        self.drain = settings.server.drain
        self.admin = ""
        self._leaves = False
        self._registry = registry
        self._http = HttpSettings.of(web)
        rules = (validating(required=False),) if web.validate else ()
        self._interceptors = (*rules, *gateway._interceptors)
        self._blind = not gateway._interceptors
        # Services that are told who calls, signed, do not get what the caller has shown for it.
        told = security is not None and security.signer is not None
        admission = Admission(web, security, gateway._rates, hide=told)
        self._security = security
        self._guard = admission if admission.needed else None
        self._doubts = admission.doubts
        self._live: set[Conduct] = set()
        self._changed = asyncio.Event()
        self._swapped = asyncio.Event()
        self._answered = False
        self._began = asyncio.get_running_loop().time()
        self._reported: set[str] = set()
        self._missed = False
        self._followers: dict[str, asyncio.Task[None]] = {}
        self._checked: dict[str, Checked | str] = {}
        self._app = Application([], self._application)
        docs = docs_pages(lambda: self._app.http.services, "Gateway", self._http, security)
        self.front = Front(self._app, web, health_pages(self.unready), docs, admission.known)
        assert web.port is not None  # its parser allows no other
        age = settings.server.connection_age if shared else None
        if not web.tls and not web.plaintext:
            refuse_plain_text("the gateway", web.host, "gateway")
        tls = TlsFiles(web.tls, "gateway.tls") if web.tls else None
        self.server = HttpServer(self.front, web.host, web.port, web.limits, self._live, connection_age=age, tls=tls)

    @property
    def address(self) -> str:
        """`host:port` that it listens on."""
        return self.server.address

    @property
    def port(self) -> int:
        """That it listens on."""
        return self.server.port

    @property
    def listening(self) -> list[tuple[int, Callable[[], None] | None]]:
        """The port, with what closes it."""
        return [(self.server.port, self.server.close)]

    def leave(self, *, others: bool = False) -> None:
        """Answer that no calls should come, unless `others` serve at the same address, and go on."""
        self._leaves = not others

    def stop_as(self, drain: Drain) -> None:
        """Drain like this, when the time comes."""
        self.drain = drain

    def calls(self) -> list[Call]:
        """Those in flight."""
        return [one.call for one in self._live]

    def unready(self) -> str:
        """Why no calls should be sent here now; empty when they should."""
        if self._leaves:
            return "the gateway is shutting down"
        if not self._answered:
            return "the registry has not answered yet"
        if not any(one.callable for one in self.backends.values()):
            return "no service can be called"
        return ""

    async def until_ready(self) -> None:
        """Return once there is something to call."""
        while self.unready():
            await self._news()

    async def until_informed(self) -> None:
        """Return once it is known what can be called, if anything."""
        while self.unready() and not (self._answered and all(one.tried for one in self.backends.values())):
            await self._news()

    async def _news(self) -> None:
        self._swapped.clear()
        await self._swapped.wait()

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Follow the registry while the block runs."""
        tasks = [asyncio.create_task(self._discover()), asyncio.create_task(self._rebuild())]
        try:
            yield
        finally:
            tasks += self._followers.values()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*(one.aclose() for one in self._app.generations), return_exceptions=True)

    # Which services there are

    async def _discover(self) -> None:
        trouble = ""
        while True:
            for backend in self.backends.values():
                backend.read()
            try:
                self._compare(set(self.settings.gateway.services) or set(await self._registry.names()))
                await self._miss()
                trouble = ""
            except ConfigError as error:
                if str(error) != trouble:
                    trouble = str(error)
                    log.warning("%s", trouble)
            except Exception:
                log.exception("the gateway could not look for services; it tries again")
            await asyncio.sleep(self.settings.gateway.refresh)

    def _compare(self, names: set[str]) -> None:
        """Take over which services there are."""
        web = self.settings.gateway
        self._answered = self._answered or not web.services
        for name in sorted(names - set(self.backends)):
            self._add(name)
        for backend in list(self.backends.values()):
            if not web.services and self._is_gone(backend):
                log.info("%s is forgotten: it has had no instance for %g s", backend.name, web.linger)
                self._remove(backend)
        if not self._generations():
            self._changed.set()

    async def _miss(self) -> None:
        """Say which of the services that the settings name are not there."""
        if self._missed or asyncio.get_running_loop().time() < self._began + ABSENT:
            return
        missing = [one.name for one in self.backends.values() if not one.seen]
        if self.settings.gateway.services and missing:
            there = dict.fromkeys(await self._registry.names())
            for name in missing:
                hint = suggest(name, there) if there else " Nothing is."
                log.warning("%s is not registered in %s.%s", name, self._registry, hint)
        self._missed = True

    def _add(self, name: str) -> None:
        file = self.settings.gateway.descriptors.get(name, "")
        backend = Backend(name, self._registry, self._changed.set, self.settings, file)
        self.backends[name] = backend
        self._followers[name] = asyncio.create_task(backend.run())

    def _is_gone(self, backend: Backend) -> bool:
        since = backend.empty_since
        return since is not None and asyncio.get_running_loop().time() - since >= self.settings.gateway.linger

    def _remove(self, backend: Backend) -> None:
        del self.backends[backend.name]
        self._followers.pop(backend.name).cancel()
        self._changed.set()

    # What is served

    async def _rebuild(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._build()
            except Exception:
                log.exception("the gateway could not take over what has changed; it goes on with what it has")
            self._swapped.set()

    async def _build(self) -> None:
        """Take over what has changed: check it beside what serves, then serve it."""
        backends = list(self.backends.values())
        self._answered = self._answered or any(one.versions.instances or one.tried for one in backends)
        early = asyncio.get_running_loop().time() < self._began + PATIENCE
        if early and not self._generations() and not all(one.tried for one in backends):
            return  # of services that collide the first in the order of names is taken, and not the quickest
        accepted = {one.name: one.generation.checked for one in backends if one.generation is not None}
        new: dict[Backend, Checked] = {}
        for backend in sorted(backends, key=lambda one: (one.generation is None, one.name)):
            found = await self._choose(backend, accepted)
            if found is not None:
                new[backend] = accepted[backend.name] = found
        opened: dict[Backend, Generation] = {}
        try:
            for backend, checked in new.items():
                opened[backend] = Generation(checked, await self._open(backend.name))
            await self._serve(opened)
        except BaseException:
            await asyncio.gather(*(one.aclose() for one in opened.values()), return_exceptions=True)
            raise

    async def _serve(self, opened: Mapping[Backend, Generation]) -> None:
        """Put what has been opened into the place of what is served of the same backends, if they are there still."""

        def wanted() -> list[Generation]:
            found = (opened.get(one, one.generation) for one in self.backends.values())
            return [one for one in found if one is not None]

        while (generations := wanted()) != list(self._app.generations):
            app = await asyncio.to_thread(Application, generations, self._application)
            if generations == wanted():  # services may have been forgotten meanwhile
                self._swap(app)
        for backend, generation in opened.items():
            if self.backends.get(backend.name) is backend:
                backend.generation = generation
                described = ", ".join(generation.checked.description.services)
                log.info("%s serves %s (%d routes)", backend.name, described, len(generation.checked.routes))
        for generation in opened.values():
            if generation not in self._app.generations:
                await generation.aclose()

    async def _choose(self, backend: Backend, accepted: dict[str, Checked]) -> Checked | None:
        """The newest description of a service that can be served beside the others; None to leave it as it is."""
        now = "" if backend.generation is None else backend.generation.checked.description.digest
        for description, against in backend.choices():
            if description.digest == now:
                return None
            if not description.services:
                continue
            checked = await self._check(description)
            reason = against or (checked if isinstance(checked, str) else "")
            if not reason and not isinstance(checked, str):
                others = ((name, one) for name, one in accepted.items() if name != backend.name)
                reason = next((f"{hit}, of {name}" for name, one in others if (hit := collision(checked, one))), "")
                if not reason:
                    return checked
            stays = "what it said before stays" if now else "it is not served"
            backend.say_once(f"what {backend.name} says of itself cannot be used, {stays}: {reason}")
        return None

    async def _check(self, description: Description) -> Checked | str:
        """A description that was checked; or why it cannot be served."""
        found = self._checked.get(description.digest)
        if found is None:
            try:
                found = await asyncio.to_thread(check, description, self._http)
            except ConfigError as error:
                found = str(error)
            if len(self._checked) > 100:
                self._checked.clear()
            self._checked[description.digest] = found
        return found

    async def _open(self, name: str) -> Channel:
        channel = connect(name, settings=self.settings, registry=self._registry, interceptors=self._interceptors)
        return await channel.__aenter__()

    def _generations(self) -> list[Generation]:
        return [one.generation for one in self.backends.values() if one.generation is not None]

    def _swap(self, app: Application) -> None:
        if self._security is not None:
            for rpc in app.http.methods.values():  # a rule of one closes the others, before anybody calls it
                self._security.access.held(rpc.method)
        app.hold()
        before, self._app = self._app, app
        self.front.app = app
        before.retire()

    def _relays(self, method: Method[Any, Any]) -> bool:
        """Nothing here looks into its messages."""
        return self._blind and not (self.settings.gateway.validate and has_rules(method.request.DESCRIPTOR))

    def _application(
        self, services: Iterable[ServiceDescriptor], bind: Callable[[Method[Any, Any]], Handler]
    ) -> HttpApp:
        app = HttpApp(services, bind, self._http, guard=self._guard, live=self._live, report=False, relays=self._relays)
        doubts = self._doubts(rpc.method for rpc in app.methods.values())
        for level, lines in (
            (logging.WARNING, (*app.router.ambiguous, *doubts)),
            (logging.INFO, app.router.overlaps()),
        ):
            for line in lines:
                if line not in self._reported:
                    self._reported.add(line)
                    log.log(level, "%s", line)
        return app

    def __repr__(self) -> str:
        return f"<Gateway on {self.address} for {named(self.backends.values())}>"
