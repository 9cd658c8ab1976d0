"""Consul: the registry for more than one machine. Talks to the local agent, through py-consul.

A lease asks the agent every second whether it still knows the instance, and registers it again if it does not.

A watch is a chain of blocking queries. What they get wrong, and what is done: an index that goes backwards or is
missing starts again at 0; answers that come without waiting are asked for more and more slowly; an agent that is away
leaves the last answer in place; an agent that comes back has forgotten instances, or not yet looked at them, and for a
while nobody is taken away; nor when an answer is suddenly empty, before the servers confirm it (see `LastGood`).

Reading order: `consul_terms` (settings, JSON), ConsulRegistry, ConsulLease, ConsulWatch, _Agent (py-consul's edge).
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import ssl
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import aiohttp
import consul.aio
import consul.base
import consul.callback
import consul.exceptions

from framework.discovery import Instance, Snapshot, validate
from framework.discovery.consul_terms import ConsulSettings, instances, registration
from framework.discovery.watching import LastGood, PushedWatch
from framework.errors import ConfigError

log = logging.getLogger("framework.discovery")

T = TypeVar("T")

ANSWER = 2.0  # seconds in which an agent answers what needs no waiting
PATIENCE = 5.0  # seconds in which it must take a registration
WAIT = 30.0  # seconds that a blocking query lasts; Consul adds up to a sixteenth
FLOOR = 0.05  # seconds between queries: doubled, up to the next, while they return nothing new and do not wait
SLOW = 1.0  # seconds: the longest pause between two queries, or two tries
ALIVE = "the instance says that it lives"  # in the output of a check by TTL


class ConsulRegistry:
    """Instances in Consul, by way of one agent.

    Args:
        settings: which agent, and how to talk to it.
        token: ACL token; None takes CONSUL_HTTP_TOKEN from the environment. Only ever sent as a header.

    Raises:
        ConfigError: a file that the settings name cannot be used.
    """

    def __init__(self, settings: ConsulSettings | None = None, *, token: str | None = None) -> None:
        self.settings = settings or ConsulSettings()
        self._agent = _Agent(self.settings, token)
        self._leases: set[ConsulLease] = set()
        self._watches: set[PushedWatch] = set()

    async def register(self, instance: Instance) -> ConsulLease:
        """Make an instance known to the agent and keep it so; whoever had its id before has lost it.

        Raises:
            ConfigError: the instance is not valid or has no host:port; the agent refuses, or does not answer in 5 s.
        """
        owner = secrets.token_hex(8)
        alive = self.settings.check.kind_for(instance.protocol) == "ttl"
        lease = ConsulLease(registration(validate(instance), self.settings.check, owner), self, alive=alive)
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + PATIENCE
        try:
            while True:
                try:
                    await lease.put()
                    break
                except _Trouble as trouble:
                    if trouble.final or loop.time() > give_up_at:
                        raise self._advice(trouble, f"register {instance.service}", "service:write") from trouble
                await asyncio.sleep(SLOW / 4)
        except asyncio.CancelledError:
            await lease.close()  # it may have reached the agent
            raise
        lease.keep()
        self._leases.add(lease)
        return lease

    def watch(self, service: str) -> ConsulWatch:
        """Watch the passing instances of a service."""
        return ConsulWatch(service, self)

    async def services(self) -> Mapping[str, Snapshot]:
        """Every service but Consul itself, with its passing instances.

        Raises:
            ConfigError: the agent does not answer, or refuses.
        """
        try:
            names = await self._agent.services()
            return {name: MappingProxyType((await self._agent.health(name))[1]) for name in names}
        except _Trouble as trouble:
            raise self._advice(trouble, "list services", "service:read and node:read") from trouble

    async def names(self) -> Iterable[str]:
        """The names of every service but Consul itself. Raises ConfigError like `services`."""
        try:
            return await self._agent.services()
        except _Trouble as trouble:
            raise self._advice(trouble, "list services", "service:read and node:read") from trouble

    async def aclose(self) -> None:
        """End watches, deregister what is still registered, and close the connections."""
        for watch in tuple(self._watches):
            await watch.aclose()
        await asyncio.gather(*(lease.close() for lease in tuple(self._leases)))
        await self._agent.close()

    def __str__(self) -> str:
        return str(self.settings)

    def __repr__(self) -> str:
        return f"<ConsulRegistry {self}>"

    def _advice(self, trouble: _Trouble, doing: str, permission: str) -> ConfigError:
        where = f"Consul at {self.settings.url}"
        if trouble.denied:
            return ConfigError(f"{where} refuses to {doing}: the token lacks {permission} ({trouble}).")
        if trouble.final:
            return ConfigError(f"{where} refuses to {doing}: {trouble}.")
        return ConfigError(
            f"{where} does not answer ({trouble}). Start it, or choose another registry with --registry or "
            "FRAMEWORK_REGISTRY."
        )


class ConsulLease:
    """See `Lease`. The lease's own id in the entry tells it from a later registration of the same instance id.

    Args:
        registration: what is registered.
        registry: where.
        alive: the agent is to be told that the instance lives.
    """

    def __init__(self, registration: dict[str, Any], registry: ConsulRegistry, *, alive: bool) -> None:
        self._alive = alive
        self.id: str = registration["service_id"]
        self._registration = registration
        self._owner = registration["meta"]["lease"]
        self._registry = registry
        self._agent = registry._agent
        self._putting: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False

    async def put(self) -> None:
        """Register, whoever had the id. A request that is on its way is not called back: `close` comes after it."""
        self._putting = asyncio.create_task(self._agent.register(self._registration), name=f"register {self.id}")
        await asyncio.shield(self._putting)

    def keep(self) -> None:
        """Keep it registered from now on, until `close`."""
        self._keeper = asyncio.create_task(self._keep(), name=f"keep {self.id}")

    async def close(self) -> None:
        """Deregister, unless the id is somebody else's by now. Takes 6 seconds at most; never raises."""
        if self._closed:
            return
        self._closed = True
        self._registry._leases.discard(self)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self._putting is not None:
            await asyncio.gather(self._putting, return_exceptions=True)
        try:
            if await self._agent.owner(self.id) == self._owner:
                await self._agent.deregister(self.id)
        except _Trouble as trouble:
            log.warning("%s is not deregistered from %s: %s", self.id, self._registry, trouble)

    def __repr__(self) -> str:
        return f"<ConsulLease {self.id} in {self._registry}{' closed' if self._closed else ''}>"

    async def _keep(self) -> None:
        check = self._registry.settings.check
        away = False
        while True:
            await asyncio.sleep(min(SLOW, check.interval) * random.uniform(0.8, 1.0))
            try:
                owner = await self._agent.owner(self.id)
                if owner is None:
                    log.warning("%s does not know %s any more; registering it again", self._registry, self.id)
                    await self.put()
                elif owner != self._owner:
                    log.warning("%s was registered again by somebody else, who has it now", self.id)
                    return
                if self._alive:
                    await self._agent.show_life(self.id)
                if away:
                    log.info("%s answers again; %s is registered", self._registry, self.id)
                away = False
            except _Trouble as trouble:
                if not away:
                    log.warning("%s cannot be asked about %s: %s", self._registry, self.id, trouble)
                away = True


class ConsulWatch(PushedWatch):
    """See `Watch`. A task follows the service from the first `__anext__` on."""

    def __init__(self, service: str, registry: ConsulRegistry) -> None:
        super().__init__(service, str(registry), registry._watches)
        self._agent = registry._agent
        self._good = LastGood(registry.settings.hold)
        self._missing = 0  # how many are shown that the last answer lacked
        self._task: asyncio.Task[None] | None = None

    def _start(self) -> None:
        self._task = asyncio.create_task(self._follow(), name=f"watch {self.service}")

    async def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _follow(self) -> None:
        """Ask, show, ask again: for ever."""
        loop = asyncio.get_running_loop()
        index, forgot, pause = 0, False, FLOOR
        while True:
            asked_at, known = loop.time(), self._good.shown or {}
            confirm = self._good.due(asked_at) and not forgot
            try:
                answered, answer = await self._agent.health(
                    self.service, 0 if confirm else index, self._wait(asked_at), consistent=confirm, known=known
                )
            except _Trouble as trouble:
                self.trouble(str(trouble))
                index, forgot, pause = 0, True, min(2 * pause, SLOW)
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                continue
            forgot |= answered < index
            shown = self._judge(answer, loop.time(), forgot, confirm)
            self.show(shown)
            index, forgot = (0 if forgot else answered), False
            waited = loop.time() - asked_at
            pause = FLOOR if shown != known or waited > pause else min(2 * pause, SLOW)
            await asyncio.sleep(max(0.0, pause - waited))

    def _wait(self, now: float) -> float:
        """Seconds for the next query to block: not past the moment when an answer is to be confirmed."""
        wait = WAIT * random.uniform(0.8, 1.0)
        return wait if self._good.until is None else min(wait, max(0.0, self._good.until - now))

    def _judge(self, answer: Snapshot, now: float, forgot: bool, confirm: bool) -> Snapshot:
        doubtful = forgot or (not answer and self._good.until is None)
        shown = self._good.accept(answer, now, doubtful=doubtful, confirmed=confirm and not forgot)
        where, missing = f"{self.service} in {self.registry}", len(shown) - len(answer)
        if missing and not self._missing:
            log.warning("%s: %d of %d instances are missing; kept until that is confirmed", where, missing, len(shown))
        elif self._missing and not missing:
            log.info("%s: %s: %d instances", where, "confirmed" if confirm else "none is missing any more", len(shown))
        self._missing = missing
        return shown


class _Trouble(Exception):
    """No answer, or a refusal. `final`: asking again will not help; `denied`: for want of a permission."""

    def __init__(self, reason: str, *, final: bool = False, denied: bool = False) -> None:
        super().__init__(reason)
        self.final = final
        self.denied = denied


class _Agent:
    """The questions we put to the agent. Every method may raise _Trouble and nothing else.

    When the files of TLS have changed, what is asked from then on is asked over new connections; the answers that are
    awaited on the old ones still come.

    py-consul's own calls are used where they do what they should. Its `health.service` has no consistency and fails
    without an index, and its `service_definition` sends no token.
    """

    def __init__(self, settings: ConsulSettings, token: str | None) -> None:
        self._settings = settings
        self._token = token
        self._files = settings.tls_files()
        self._leave: Callable[[], None] = lambda: None
        self._client: _Client | None = None

    async def register(self, registration: dict[str, Any]) -> None:
        """Add a service, or replace the one of this id."""
        await self._ask(lambda client: client.agent.service.register(**registration))

    async def deregister(self, id: str) -> None:
        """Take a service away."""
        await self._ask(lambda client: client.agent.service.deregister(id))

    async def show_life(self, id: str) -> None:
        """Renew the TTL of a service."""
        await self._ask(lambda client: client.agent.check.ttl_pass(f"service:{id}", ALIVE))

    async def owner(self, id: str) -> str | None:
        """The lease that an id belongs to: None when the agent does not know it, empty when it was not one of us."""

        def read(response: consul.base.Response) -> str | None:
            found = consul.callback.CB.json()(response)
            return None if found is None else str((found.get("Meta") or {}).get("lease", ""))

        return await self._ask(
            lambda client: client.http.get(read, f"/v1/agent/service/{id}", headers=client.prepare_headers())
        )

    async def services(self) -> list[str]:
        """The names of all services but Consul's own."""
        _, names = await self._ask(lambda client: client.catalog.services())
        return sorted(set(names) - {"consul"})

    async def health(
        self,
        service: str,
        index: int = 0,
        wait: float = 0.0,
        *,
        consistent: bool = False,
        known: Snapshot | None = None,
    ) -> tuple[int, dict[str, Instance]]:
        """The passing instances of a service, and the index that they have, or 0.

        With an `index`, answers when it is passed or after `wait` seconds. `consistent` lets the servers make sure that
        they are right. Instances in `known` are used again where nothing changed.
        """
        params = [("passing", "1")]
        if self._settings.datacenter:
            params.append(("dc", self._settings.datacenter))
        if consistent:
            params.append(("consistent", "1"))
        if index:
            params += [("index", str(index)), ("wait", f"{max(1, round(wait * 1000))}ms")]

        def read(response: consul.base.Response) -> tuple[int, dict[str, Instance]]:
            entries = consul.callback.CB.json(allow_404=False)(response)
            if not entries and response.headers.get("X-Consul-Results-Filtered-By-ACLs") == "true":
                raise consul.exceptions.ACLPermissionDenied("the token lacks service:read or node:read")
            index = response.headers.get("X-Consul-Index", "")
            return int(index) if index.isdecimal() else 0, instances(entries, service, known)

        path = f"/v1/health/service/{service}"
        return await self._ask(
            lambda client: client.http.get(read, path, params=params, headers=client.prepare_headers()),
            wait=wait * 17 / 16 if index else 0.0,
        )

    async def close(self) -> None:
        """Close the connections."""
        self._leave()
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def _ask(self, question: Callable[[_Client], Awaitable[T]], wait: float = 0.0) -> T:
        client = None
        try:
            client = await self._current()
            client.questions += 1
            async with asyncio.timeout(ANSWER + wait):
                return await question(client)
        except TimeoutError:
            raise _Trouble(f"no answer in {ANSWER + wait:.3g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _Trouble(_cause(error)) from error
        except consul.exceptions.ACLPermissionDenied as error:
            raise _Trouble(f"403 {_line(error)}", final=True, denied=True) from error
        except (consul.exceptions.BadRequest, consul.exceptions.ClientError) as error:
            raise _Trouble(_line(error), final=True) from error
        except consul.exceptions.ConsulException as error:
            raise _Trouble(_line(error)) from error
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise _Trouble(f"an answer that cannot be read: {_line(repr(error))}") from error
        finally:
            if client is not None:
                client.questions -= 1
                if client is not self._client and not client.questions:
                    await client.close()

    async def _current(self) -> _Client:
        """The client that asks with the files as they are. Raises OSError when they cannot be used at this moment."""
        tls = None
        if self._files is not None:
            tls = self._files.context("http/1.1")
            if not self._settings.verify:
                tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        client = self._client
        if client is not None and client.tls is tls:
            return client
        self._client = fresh = _Client(self._settings, tls)
        if self._token is not None:  # py-consul lets the environment win over it
            fresh.token = self._token
        if client is None and self._files is not None:
            self._leave = self._files.follow()
        if client is not None and not client.questions:
            await client.close()
        return fresh


class _Http(consul.aio.HTTPClient):  # type: ignore[misc]  # py-consul has no types
    """py-consul's client with a session made here. Its own drops a client certificate when it does not verify, reads
    the system's certificates for plain HTTP, and has a hundred connections: one watch occupies one."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        consul.base.HTTPClient.__init__(self, host, port, "https" if tls else "http")
        connector = aiohttp.TCPConnector(
            limit=0,
            ssl=tls if tls else True,
            # else the connection of a question that is given up outlives the session: it waits for the agent's goodbye
            enable_cleanup_closed=sys.version_info < (3, 12),
        )
        self._session = aiohttp.ClientSession(connector=connector)


class _Client(consul.aio.Consul):  # type: ignore[misc]  # py-consul has no types
    """py-consul's client of one agent.

    Attributes:
        tls: what it connects with.
        questions: that are not answered yet.
    """

    def __init__(self, settings: ConsulSettings, tls: ssl.SSLContext | None) -> None:
        self.tls = tls
        self.questions = 0
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        super().__init__(host, settings.port, scheme="https" if tls else "http", dc=settings.datacenter or None)

    def http_connect(self, host: str, port: int, scheme: str, verify: object = True, cert: object = None) -> _Http:
        return _Http(host, port, self.tls)


def _cause(error: Exception) -> str:
    """In a few words why there was no connection, or no answer on it."""
    inner = getattr(error, "os_error", None) or getattr(error, "certificate_error", None) or error
    if isinstance(error.__cause__, ssl.SSLError):  # in an OSError with a number that is OpenSSL's own
        inner = error.__cause__
    number = getattr(inner, "errno", None)
    if isinstance(number, int) and number > 0 and not isinstance(inner, ssl.SSLError):
        return os.strerror(number).lower()
    return _line(inner) or type(inner).__name__


def _line(error: object) -> str:
    return " ".join(str(error).split())[:200]
