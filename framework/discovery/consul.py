"""Consul: the registry for more than one machine. Talks to the local agent, through py-consul.

    Service   ID, Name, Address, Port, Tags, Weights
    Meta      version, zone, weight, protocol; the instance's own metadata; lease, which tells two owners of an id apart
    Check     gRPC health, which the agent asks for; or a TTL that this process renews, for what serves no gRPC health

An instance is registered as passing: its server listens and serves before it registers, and to wait for the agent's
first look would cost up to an interval. When the agent has forgotten it (a restart), it is registered again.

A watch is a chain of blocking queries. What they get wrong, and what is done: an index that goes backwards or is
missing starts again at 0; answers that come without waiting are asked for more and more slowly; an agent that is away
leaves the last answer in place; an answer that lacks instances after that, or has none any more, is believed once the
servers confirm it (see `LastGood`).

Reading order: ConsulRegistry, ConsulLease, ConsulWatch, then Consul's JSON and errors in our terms.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Self, TypeVar, get_args
from urllib.parse import parse_qsl, urlsplit

import aiohttp
import consul.aio
import consul.base
import consul.callback
import consul.exceptions

from framework.discovery import Instance, Snapshot, validate
from framework.discovery.watching import LastGood, PushedWatch
from framework.errors import ConfigError

log = logging.getLogger("framework.discovery")

T = TypeVar("T")
Kind = Literal["grpc", "grpc-tls", "ttl"]

ANSWER = 2.0  # seconds in which an agent answers what needs no waiting
PATIENCE = 5.0  # seconds in which an agent must take a registration
WAIT = 30.0  # seconds that a blocking query lasts; Consul adds up to a sixteenth
FLOOR = 0.05  # seconds between queries: doubled, up to the next, while they return nothing new and do not wait
SLOW = 1.0  # seconds: the longest pause between queries, or tries


@dataclass(frozen=True, slots=True)
class Check:
    """How Consul finds out that an instance is healthy.

    Attributes:
        kind: `grpc`: the agent asks grpc.health.v1 at the instance's address; `grpc-tls`: over TLS, trusting what its
            own configuration trusts; `ttl`: this process tells the agent.
        interval: seconds between two questions; or between two signs of life, of which two may be missed.
        timeout: seconds in which the instance must answer a question.
        deregister_after: seconds after which an instance that stays critical is forgotten; Consul's least is 60.
        host: what the agent dials, when that is not what clients dial.
    """

    kind: Kind = "grpc"
    interval: float = 2.0
    timeout: float = 2.0
    deregister_after: float = 60.0
    host: str = ""

    def definition(self, host: str, port: int) -> dict[str, Any]:
        """The check in Consul's JSON; py-consul's helpers have keys that some versions refuse, and lack others."""
        common = {"Status": "passing", "DeregisterCriticalServiceAfter": f"{self.deregister_after:g}s"}
        if self.kind == "ttl":
            return common | {"TTL": f"{3 * self.interval:g}s"}
        asked = {"GRPC": _join(self.host or host, port), "GRPCUseTLS": self.kind == "grpc-tls"}
        return common | asked | {"Interval": f"{self.interval:g}s", "Timeout": f"{self.timeout:g}s"}


class ConsulRegistry:
    """Instances in Consul, by way of one agent.

    Args:
        host, port: the agent's HTTP address.
        token: ACL token; None takes CONSUL_HTTP_TOKEN from the environment. Only ever sent as a header.
        tls: what to trust and to present when the agent speaks HTTPS; None is plain HTTP.
        datacenter: where to look for services; empty is the agent's own. One always registers with the agent.
        check: how Consul finds out that an instance is healthy.
        hold: seconds for which instances that Consul may have forgotten are kept before its servers are asked to
            confirm; longer than it takes them to register again.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8500,
        *,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        datacenter: str = "",
        check: Check | None = None,
        hold: float = 3.0,
    ) -> None:
        self.check = check or Check()
        self.hold = hold
        self.url = f"{'https' if tls else 'http'}://{_join(host, port)}"
        self._name = f"consul://{_join(host, port)}" + (f"?dc={datacenter}" if datacenter else "")
        self._options = {"host": f"[{host}]" if ":" in host else host, "port": port, "dc": datacenter or None}
        self._token = token
        self._tls = tls
        self._opened: _Client | None = None
        self._leases: set[ConsulLease] = set()
        self._watches: set[PushedWatch] = set()

    @classmethod
    def at(cls, url: str, *, token: str | None = None) -> Self:
        """The registry at `consul://host:8500?...`; port 8500 may be left out. After the `?`, joined by `&`:

            dc=NAME                   look for services in this datacenter
            tls=true                  the agent speaks HTTPS; implied by the next four
            ca=FILE                   what signed its certificate, when the system does not know it
            cert=FILE, key=FILE       what to present to it
            verify=false              do not check its certificate
            check=grpc|grpc-tls|ttl   how instances are checked; see `Check`
            interval=SECONDS          how often

        Raises:
            ConfigError: an unknown word, a value that cannot be, a file that cannot be read.
        """
        parts = urlsplit(url)
        words = dict(parse_qsl(parts.query, keep_blank_values=True))
        unknown = words.keys() - {"dc", "tls", "ca", "cert", "key", "verify", "check", "interval"}
        if unknown:
            raise ConfigError(
                f"{url!r}: {min(unknown)!r} is not one of dc, tls, ca, cert, key, verify, check, interval."
            )
        kind = words.get("check", "grpc")
        if kind not in get_args(Kind):
            raise ConfigError(f"{url!r}: check is one of {', '.join(get_args(Kind))}.")
        try:
            interval = float(words.get("interval", Check().interval))
            if not 0.1 <= interval <= 3600:
                raise ValueError
        except ValueError:
            raise ConfigError(f"{url!r}: interval is a number of seconds between 0.1 and 3600.") from None
        return cls(
            parts.hostname or "127.0.0.1",
            parts.port or 8500,
            token=token,
            tls=_tls(url, words),
            datacenter=words.get("dc", ""),
            check=Check(kind, interval),
        )

    async def register(self, instance: Instance) -> ConsulLease:
        """Make an instance known to the agent and keep it so; whoever had its id before has lost it.

        Raises:
            ConfigError: the instance is not valid or has no host:port; the agent refuses, or does not answer in 5 s.
        """
        lease = ConsulLease(validate(instance), self)
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
        return lease

    def watch(self, service: str) -> ConsulWatch:
        """Watch the passing instances of a service."""
        return ConsulWatch(service, self)

    async def services(self) -> Mapping[str, Snapshot]:
        """Every service but Consul itself, with its passing instances.

        Raises:
            ConfigError: the agent does not answer or refuses.
        """
        few = asyncio.Semaphore(16)

        async def healthy(service: str) -> Snapshot:
            async with few:
                _, entries = await self.health(service)
                return MappingProxyType(_instances(entries, service))

        try:
            _, names = await self.ask(lambda client: client.catalog.services())
            names = sorted(set(names) - {"consul"})
            return dict(zip(names, await asyncio.gather(*map(healthy, names)), strict=True))
        except _Trouble as trouble:
            raise self._advice(trouble, "list services", "service:read and node:read") from trouble

    async def aclose(self) -> None:
        """End watches, deregister what is still registered, and close the connections."""
        for watch in tuple(self._watches):
            await watch.aclose()
        await asyncio.gather(*(lease.close() for lease in tuple(self._leases)))
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    def __str__(self) -> str:
        return self._name

    def __repr__(self) -> str:
        return f"<ConsulRegistry {self}>"

    async def ask(self, question: Callable[[Any], Awaitable[T]], timeout: float = ANSWER) -> T:
        """Put one question to the agent: the one place where foreign exceptions become ours.

        Raises:
            _Trouble: there is no answer within `timeout` seconds, or it is a refusal.
        """
        if self._opened is None:
            self._opened = _Client(**self._options, tls=self._tls)
            if self._token is not None:  # py-consul lets the environment win over an explicit one
                self._opened.token = self._token
        try:
            async with asyncio.timeout(timeout):
                return await question(self._opened)
        except TimeoutError:
            raise _Trouble(f"no answer in {timeout:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _Trouble(_cause(error)) from error
        except consul.exceptions.ACLPermissionDenied as error:
            raise _Trouble(f"403 {_line(error)}", final=True, denied=True) from error
        except (consul.exceptions.BadRequest, consul.exceptions.ClientError) as error:
            raise _Trouble(_line(error), final=True) from error
        except (consul.exceptions.ConsulException, ValueError) as error:
            raise _Trouble(_line(error)) from error

    async def health(
        self, service: str, index: int = 0, wait: float = 0.0, *, consistent: bool = False
    ) -> tuple[int, list[Any]]:
        """The index and the passing entries of a service; with an index, once it is passed or after `wait` seconds."""
        # py-consul's own health.service has no consistency and fails without an index.
        params = [("passing", "1")]
        if self._options["dc"]:
            params.append(("dc", self._options["dc"]))
        if consistent:
            params.append(("consistent", "1"))
        if index:
            params += [("index", str(index)), ("wait", f"{max(1, round(wait * 1000))}ms")]
        path = f"/v1/health/service/{service}"
        timeout = ANSWER + wait * 17 / 16 if index else ANSWER
        return await self.ask(
            lambda client: client.http.get(
                _indexed, path, params=params, headers=client.prepare_headers(), connections_timeout=timeout + 1
            ),
            timeout,
        )

    def _advice(self, trouble: _Trouble, doing: str, permission: str) -> ConfigError:
        if trouble.denied:
            return ConfigError(f"Consul at {self.url} refuses to {doing}: the token lacks {permission} ({trouble}).")
        if trouble.final:
            return ConfigError(f"Consul at {self.url} refuses to {doing}: {trouble}.")
        return ConfigError(
            f"Consul at {self.url} does not answer ({trouble}). Start it, or choose another registry with --registry "
            "or FRAMEWORK_REGISTRY."
        )


class ConsulLease:
    """See `Lease`. Asks the agent every second or less whether it still knows the instance."""

    def __init__(self, instance: Instance, registry: ConsulRegistry) -> None:
        self.instance = instance
        self._registry = registry
        self._owner = secrets.token_hex(8)
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False
        host, port = _host_port(instance)
        meta = {"version": instance.version, "zone": instance.zone, "protocol": instance.protocol}
        meta |= {"weight": str(instance.weight), "lease": self._owner}
        self._definition = {
            "service_id": instance.id,
            "address": host,
            "port": port,
            "tags": list(instance.tags),
            "meta": {**instance.metadata, **meta},
            "weights": {"Passing": instance.weight, "Warning": 1},
            "check": registry.check.definition(host, port),
            "replace_existing_checks": True,
        }
        registry._leases.add(self)

    async def put(self) -> None:
        """Register, whoever had the id."""
        name, definition = self.instance.service, self._definition
        await self._registry.ask(lambda client: client.agent.service.register(name, **definition))

    def keep(self) -> None:
        """Keep the registration from now on, until `close`."""
        self._keeper = asyncio.create_task(self._keep(), name=f"keep {self.instance.id}")

    async def close(self) -> None:
        """Deregister, unless the id is somebody else's by now. Takes a few seconds at most; never raises."""
        if self._closed:
            return
        self._closed = True
        self._registry._leases.discard(self)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        try:
            if await self._find_owner() == self._owner:
                await self._registry.ask(lambda client: client.agent.service.deregister(self.instance.id))
        except _Trouble as trouble:
            log.warning("%s is not deregistered from %s: %s", self.instance.id, self._registry, trouble)

    def __repr__(self) -> str:
        return f"<ConsulLease {self.instance.service} {self.instance.id} in {self._registry}>"

    async def _find_owner(self) -> str | None:
        """Who has the id: None when the agent does not know it, empty when that was not one of us."""
        # py-consul's own service_definition sends no token.
        path, read = f"/v1/agent/service/{self.instance.id}", consul.callback.CB.json()
        found = await self._registry.ask(lambda client: client.http.get(read, path, headers=client.prepare_headers()))
        return None if found is None else str((found.get("Meta") or {}).get("lease", ""))

    async def _keep(self) -> None:
        instance, check = self.instance, self._registry.check
        away = False
        while True:
            await asyncio.sleep(min(SLOW, check.interval) * random.uniform(0.8, 1.0))
            try:
                owner = await self._find_owner()
                if owner is None:
                    log.warning("%s does not know %s any more; registering it again", self._registry, instance.id)
                    await self.put()
                elif owner != self._owner:
                    log.warning("%s was registered again by somebody else, who has it now", instance.id)
                    return
                elif check.kind == "ttl":
                    await self._registry.ask(lambda client: client.agent.check.ttl_pass(f"service:{instance.id}"))
                if away:
                    log.info("%s answers again; %s is registered", self._registry, instance.id)
                away = False
            except _Trouble as trouble:
                if not away:
                    log.warning("%s cannot be asked about %s: %s", self._registry, instance.id, trouble)
                away = True


class ConsulWatch(PushedWatch):
    """See `Watch`."""

    def __init__(self, service: str, registry: ConsulRegistry) -> None:
        super().__init__(service, str(registry), registry._watches)
        self._consul = registry
        self._good = LastGood(registry.hold)
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
        good, index, pause, forgot = self._good, 0, FLOOR, False
        while True:
            asked_at, before = loop.time(), good.shown or {}
            confirm = good.due(asked_at) and not forgot
            try:
                answered, entries = await self._consul.health(
                    self.service, 0 if confirm else index, self._wait(asked_at), consistent=confirm
                )
                answer = _instances(entries, self.service, before)
            except Exception as error:
                if not isinstance(error, _Trouble):  # an answer that nobody thought of must not end the watch
                    log.exception("%s: an answer about %s is not understood", self._consul, self.service)
                self.trouble(str(error))
                index, forgot, pause = 0, True, min(2 * pause, SLOW)
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                continue
            forgot |= answered < index
            doubtful = forgot or (not answer and good.until is None)
            holding = good.until is not None
            shown = good.accept(answer, loop.time(), doubtful=doubtful, confirmed=confirm and not forgot)
            self._tell(holding, confirm, len(shown) - len(answer))
            self.show(shown)
            index, forgot = (0 if forgot else answered), False
            waited = loop.time() - asked_at
            pause = FLOOR if shown != before or waited > pause else min(2 * pause, SLOW)
            await asyncio.sleep(max(0.0, pause - waited))

    def _wait(self, now: float) -> float:
        """Seconds for the next query to block: not past the moment when an answer is to be confirmed."""
        wait = WAIT * random.uniform(0.8, 1.0)
        return wait if self._good.until is None else min(wait, max(0.0, self._good.until - now))

    def _tell(self, was_holding: bool, confirmed: bool, missing: int) -> None:
        if missing and not was_holding:
            log.warning(
                "%s answers without %d instance(s) of %s that were there; keeping them until that is confirmed",
                self._consul, missing, self.service,
            )  # fmt: skip
        elif was_holding and self._good.until is None:
            how = "confirmed what is left" if confirmed else "has them again"
            log.info("%s %s of %s: %d instance(s)", self._consul, how, self.service, len(self._good.shown or ()))


class _Trouble(Exception):
    """No answer, or a refusal. `final`: asking again will not help; `denied`: for want of a permission."""

    def __init__(self, reason: str, *, final: bool = False, denied: bool = False) -> None:
        super().__init__(reason)
        self.final = final
        self.denied = denied


class _Http(consul.aio.HTTPClient):  # type: ignore[misc]  # py-consul has no types
    """py-consul's client with a session made here. Its own drops a client certificate when it does not verify, reads
    the system's certificates for plain HTTP, and has a hundred connections: one watch occupies one."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        consul.base.HTTPClient.__init__(self, host, port, "https" if tls else "http")
        connector = aiohttp.TCPConnector(limit=0, ssl=tls if tls else True)
        self._session = aiohttp.ClientSession(connector=connector)


class _Client(consul.aio.Consul):  # type: ignore[misc]  # py-consul has no types
    def __init__(self, host: str, port: int, dc: str | None, tls: ssl.SSLContext | None) -> None:
        self._tls = tls
        super().__init__(host, port, scheme="https" if tls else "http", dc=dc)

    def http_connect(self, host: str, port: int, scheme: str, verify: object = True, cert: object = None) -> _Http:
        return _Http(host, port, self._tls)


def _indexed(response: Any) -> tuple[int, list[Any]]:
    """What py-consul is to make of an answer about health: its index, 0 when it has none, and its entries."""
    entries = consul.callback.CB.json(allow_404=False)(response)
    if not entries and response.headers.get("X-Consul-Results-Filtered-By-ACLs") == "true":
        raise consul.exceptions.ACLPermissionDenied("the token lacks service:read or node:read")
    index = response.headers.get("X-Consul-Index", "")
    return int(index) if index.isdecimal() else 0, entries


def _instances(entries: list[Any], service: str, known: Snapshot | None = None) -> dict[str, Instance]:
    """The instances in an answer about health, whoever registered them; the one object while nothing changes.

    Ids are unique on one agent only: of two instances with the same, the later is called after its node as well.
    """
    found: dict[str, Instance] = {}
    for entry in sorted(entries, key=lambda entry: entry["Service"].get("CreateIndex", 0)):
        node, entry = entry.get("Node") or {}, entry["Service"]
        host, port = entry.get("Address") or node.get("Address"), entry.get("Port")
        if not host or not port:
            continue  # nothing to dial
        id = entry.get("ID") or service
        if id in found:
            id = f"{id}@{node.get('Node', host)}"
        meta = {str(key): str(value) for key, value in (entry.get("Meta") or {}).items()}
        meta.pop("lease", None)
        weight = str((entry.get("Weights") or {}).get("Passing") or meta.get("weight", ""))
        meta.pop("weight", None)
        one = Instance(
            id=id,
            service=service,
            address=_join(host, port),
            version=meta.pop("version", ""),
            zone=meta.pop("zone", ""),
            weight=min(max(int(weight), 1), 100) if weight.isdecimal() else 1,
            protocol=meta.pop("protocol", "grpc"),
            tags=tuple(entry.get("Tags") or ()),
            metadata=MappingProxyType(meta),
        )
        found[id] = known[id] if known and known.get(id) == one else one
    return found


def _host_port(instance: Instance) -> tuple[str, int]:
    host, _, port = instance.address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(
            f"{instance.service} cannot be registered in Consul at {instance.address!r}: that is not host:port."
        )
    return host.strip("[]"), int(port)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _tls(url: str, words: Mapping[str, str]) -> ssl.SSLContext | None:
    files = {word: words[word] for word in ("ca", "cert", "key") if words.get(word)}
    verify = words.get("verify", "true") != "false"
    if words.get("tls", "false") == "false" and verify and not files:
        return None
    try:
        context = ssl.create_default_context(cafile=files.get("ca"))
        if "cert" in files:
            context.load_cert_chain(files["cert"], files.get("key"))
    except (OSError, ssl.SSLError) as error:
        named = " or ".join(files.values())
        raise ConfigError(f"{url!r}: {named} cannot be used: {error.strerror or error}.") from error
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _cause(error: Exception) -> str:
    """In a few words why there was no connection, or no answer on it."""
    inner = getattr(error, "os_error", None) or getattr(error, "certificate_error", None) or error
    number = getattr(inner, "errno", None)
    if isinstance(number, int) and not isinstance(inner, ssl.SSLError) and number > 0:
        return os.strerror(number).lower()
    return _line(inner) or type(inner).__name__


def _line(error: object) -> str:
    return " ".join(str(error).split())[:200]
