"""Settings: frozen, validated when made, read from a TOML file first, then from the environment over it.

    registry = "consul://127.0.0.1:8500"
    [server]
    drain = { delay = "1s", grace = "30s", streams = "5s" }
    [client]                        # every client
    timeout = "5s"
    [client.catalog]                # clients of one service
    timeout = "1s"
    [client.catalog.methods.GetProduct]
    timeout = "200ms"

The environment names a setting by its path: `FRAMEWORK_REGISTRY`, `FRAMEWORK_SERVER_PORT`, `FRAMEWORK_CLIENT_TIMEOUT`.
The file is `framework.toml` in the working directory, or what `FRAMEWORK_CONFIG` names.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self

from framework.access import AccessSettings, AuthSettings
from framework.errors import ConfigError
from framework.observation import AdminSettings, TelemetrySettings
from framework.parsing import (
    Table,
    boolean,
    duration,
    duration_or_ever,
    integer,
    leaves,
    optional,
    parse_field,
    period,
    replaced,
    setting,
    split_methods,
    suggest,
    table,
    text,
    workers,
)
from framework.policy import NO_LIMITER, ClientSettings, KeepaliveSettings, LimiterSettings
from framework.tls import NO_TLS, ServerTls
from framework.web import GatewaySettings, WebSettings


@dataclass(frozen=True, slots=True)
class Drain(Table):
    """How a server stops.

    Attributes:
        delay: seconds in which it still accepts after it deregistered, so that every client has heard of it.
        grace: seconds that calls in flight may take after that.
        streams: seconds that streams may take; they then end with UNAVAILABLE and the client goes elsewhere.
    """

    delay: float = setting(1.0, duration)
    grace: float = setting(30.0, duration)
    streams: float = setting(5.0, duration)


QUICK_DRAIN = Drain(delay=0.0, grace=1.0, streams=0.2)
"""For Ctrl-C on a terminal, where a person waits."""


def _age(value: Any, where: str) -> float:
    if (age := duration(value, where)) < 0.1:
        raise ConfigError(f"{where} is {value!r}; it must be at least 100ms")
    return age


@dataclass(frozen=True, slots=True)
class ServerMethodSettings(Table):
    """`[server.methods.METHOD]`.

    Attributes:
        timeout: seconds that a call may take, whatever its caller says; None is what the server says of all, and
            math.inf ("none" in a file) as long as the caller says.
    """

    timeout: float | None = setting(None, duration_or_ever)


@dataclass(frozen=True, slots=True)
class ServerLimits(Table):
    """`[server] limits`: what clients of gRPC may take up. `max_message` and `limiter` are beside it, HTTP has its own.

    Attributes:
        metadata: bytes of a call's metadata, 32 for each pair included.
        streams: calls at a time on one connection; a client opens no more.
        open_streams: calls that stream, of all connections together, over HTTP too; more are refused.
        connections: open at the same time; more are turned away.
        handshake: seconds in which a new connection has to speak HTTP/2.
    """

    metadata: int = setting(16 << 10, integer(1024, 2**24))
    streams: int = setting(1000, integer(1, 2**31 - 1))
    open_streams: int = setting(10_000, integer(1, 2**31 - 1))
    connections: int = setting(10_000, integer(1, 2**31 - 1))
    handshake: float = setting(10.0, period)


@dataclass(frozen=True, slots=True)
class ServerSettings(Table):
    """`[server]`.

    Attributes:
        host: address to listen on.
        port: 0 is any free port.
        advertise: `host:port` or `host` that clients are told to dial; empty is what the server listens on.
        max_message: bytes a message may have, in and out.
        timeout: seconds that a call with one reply may take, whatever its caller says; None ("none") is no limit.
        keepalive: how a dead connection is found out; what clients may ask for is at least a second.
        max_connection_age: seconds after which a client is asked to connect again, so that it finds new instances and
            certificates; None ("none") is never.
        max_connection_age_grace: seconds that calls on such a connection may take.
        limits: what clients may take up.
        limiter: how many calls it works on at a time.
        drain: how it stops.
        workers: processes that serve; "auto" is one for each CPU that can be used.
        connection_age: seconds after which a client of one of several workers is told to connect anew, so that every
            worker gets its share, and one that leaves loses no call.
        validate: refuse requests that break the rules of their proto.
        http: HTTP beside gRPC, on the same host; without a port there is none.
        tls: certificates; without any, plain text is served.
        plaintext: plain text may be served beyond this machine, over gRPC and HTTP.
        methods: what differs for single methods, by name.
    """

    host: str = setting("127.0.0.1", text)
    port: int = setting(0, integer(0, 65535))
    advertise: str = setting("", text)
    max_message: int = setting(4 << 20, integer(1024, 2**31 - 1))
    timeout: float | None = setting(None, optional(period))
    keepalive: KeepaliveSettings = table(KeepaliveSettings(), KeepaliveSettings)
    max_connection_age: float | None = setting(None, optional(period))
    max_connection_age_grace: float = setting(30.0, duration)
    limits: ServerLimits = table(ServerLimits(), ServerLimits)
    limiter: LimiterSettings = table(LimiterSettings(), LimiterSettings, off=NO_LIMITER)
    drain: Drain = table(Drain(), Drain)
    workers: int | Literal["auto"] = setting(1, workers)
    connection_age: float = setting(30.0, _age)
    validate: bool = setting(True, boolean)
    http: WebSettings = table(WebSettings(), WebSettings)
    tls: ServerTls = table(ServerTls(), ServerTls, off=NO_TLS)
    plaintext: bool = setting(False, boolean)
    methods: Mapping[str, ServerMethodSettings] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def parse(cls, given: Any, where: str, base: Self | None = None) -> Self:
        own, methods = split_methods(given, where)
        settings = super(ServerSettings, cls).parse(own, where, base)
        parsed = {name: ServerMethodSettings.parse(value, f"{where}.methods.{name}") for name, value in methods.items()}
        return dataclasses.replace(settings, methods=MappingProxyType({**settings.methods, **parsed}))


@dataclass(frozen=True, slots=True)
class Stamp:
    """By what a file tells that it has changed; an editor that replaces it makes another inode."""

    modified: int
    size: int
    inode: int

    @classmethod
    def of(cls, stat: os.stat_result) -> Stamp:
        return cls(stat.st_mtime_ns, stat.st_size, stat.st_ino)

    @classmethod
    def now(cls, path: Path) -> Stamp | None:
        """Of a file as it is; None when it cannot be reached."""
        try:
            return cls.of(path.stat())
        except OSError:
            return None


@dataclass(frozen=True, slots=True)
class Source:
    """Where settings were read from.

    Attributes:
        file: the file as it was named.
        path: the same, wherever the process has gone since.
        stamp: what the file looked like then; None when there was none.
        environ: the variables that were read over it.
        read: the settings as they were read, before code changed any.
    """

    file: Path
    path: Path
    stamp: Stamp | None
    environ: Mapping[str, str]
    read: Settings


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set without code.

    Attributes:
        registry: URL of the registry for services named without one; `local` is the file shared by this machine.
        server: the server of this process.
        client: the client settings of every service not named in `clients`.
        clients: settings by service name, complete.
        gateway: what `framework gateway` does; it drains as `server` says.
        telemetry: what the process tells of itself.
        admin: the pages for those who run it.
        auth: how callers prove who they are, to a server and to the gateway.
        access: who may call what.
        source: where they were read from; None for settings made in code.
    """

    registry: str = "local"
    server: ServerSettings = ServerSettings()
    client: ClientSettings = ClientSettings()
    clients: Mapping[str, ClientSettings] = field(default_factory=lambda: MappingProxyType({}))
    gateway: GatewaySettings = field(default_factory=GatewaySettings)
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)
    admin: AdminSettings = field(default_factory=AdminSettings)
    auth: AuthSettings = field(default_factory=AuthSettings)
    access: AccessSettings = field(default_factory=AccessSettings)
    source: Source | None = field(default=None, compare=False, repr=False)

    def client_for(self, service: str) -> ClientSettings:
        """The settings of clients of a service."""
        return self.clients.get(service, self.client)

    def in_plaintext(self) -> Settings:
        """The same, with plain text allowed beyond this machine on every side."""

        def allowed(settings: Any) -> Any:
            return dataclasses.replace(settings, plaintext=True)

        return dataclasses.replace(
            self,
            server=allowed(self.server),
            client=allowed(self.client),
            clients=MappingProxyType({name: allowed(client) for name, client in self.clients.items()}),
            gateway=allowed(self.gateway),
        )

    @classmethod
    def load(cls, path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read the file, then the environment over it.

        Raises:
            ConfigError: a file that is named but missing, is no TOML, or a setting that cannot be used.
        """
        named = path or (Path(environ["FRAMEWORK_CONFIG"]) if environ.get("FRAMEWORK_CONFIG") else None)
        file = named or Path("framework.toml")
        tables: dict[str, Any] = {}
        stamp = None
        try:
            with file.open("rb") as opened:
                stamp = Stamp.of(os.fstat(opened.fileno()))
                tables = tomllib.loads(opened.read().decode("utf-8"))
        except FileNotFoundError:
            if named:
                raise ConfigError(f"there is no settings file {file}") from None
        except (OSError, ValueError, RecursionError) as error:  # ValueError: no text, no TOML, or a number too long
            raise ConfigError(f"{file}: {error}") from None
        variables = list(_variables_in(environ))
        try:
            settings = cls._from_tables(tables, variables)
        except (ConfigError, ValueError) as error:  # ValueError: a number too long to be told of
            raise ConfigError(f"{file}: {error}") from None
        if environ.get("FRAMEWORK_REGISTRY"):
            settings = dataclasses.replace(settings, registry=environ["FRAMEWORK_REGISTRY"])
        return dataclasses.replace(settings, source=Source(file, Path.cwd() / file, stamp, environ, settings))

    @classmethod
    def _from_tables(cls, tables: Mapping[str, Any], variables: Sequence[_Variable]) -> Settings:
        known = dict.fromkeys(("registry", "server", "client", "gateway", "telemetry", "admin", "auth", "access"))
        for name in tables:
            if name not in known:
                raise ConfigError(f"{name} is not a setting.{suggest(name, known)}")
        own, services = _split_client(tables.get("client", {}))

        def over(settings: Any) -> Any:
            for variable in variables:
                if isinstance(settings, variable.kind):
                    settings = replaced(settings, variable.path, variable.value, variable.name)
            return settings

        client = ClientSettings.parse(own, "client", over=over)
        return cls(
            registry=text(tables.get("registry", "local"), "registry"),
            server=over(ServerSettings.parse(tables.get("server", {}), "server")),
            client=client,
            clients={
                name: ClientSettings.parse(table, f"client.{name}", client, over=over)
                for name, table in services.items()
            },
            gateway=over(GatewaySettings.parse(tables.get("gateway", {}), "gateway")),
            telemetry=over(TelemetrySettings.parse(tables.get("telemetry", {}), "telemetry")),
            admin=over(AdminSettings.parse(tables.get("admin", {}), "admin")),
            auth=over(AuthSettings.parse(tables.get("auth", {}), "auth")),
            access=over(AccessSettings.parse(tables.get("access", {}), "access")),
        )


@dataclass(frozen=True, slots=True)
class _Variable:
    """What a variable of the environment says: its name, the table and the path there that it stands for, its value."""

    name: str
    kind: type[Table]
    path: tuple[str, ...]
    value: Any


_PREFIXES: Mapping[str, type[Table]] = {
    "FRAMEWORK_SERVER_": ServerSettings,
    "FRAMEWORK_CLIENT_": ClientSettings,
    "FRAMEWORK_GATEWAY_": GatewaySettings,
    "FRAMEWORK_TELEMETRY_": TelemetrySettings,
    "FRAMEWORK_ADMIN_": AdminSettings,
    "FRAMEWORK_AUTH_": AuthSettings,
    "FRAMEWORK_ACCESS_": AccessSettings,
}


def _variables_in(environ: Mapping[str, str]) -> Iterator[_Variable]:
    known = {
        prefix + "_".join(path).upper(): (kind, path, f)
        for prefix, kind in _PREFIXES.items()
        for path, f in leaves(kind, switches=True)
    }
    for name, value in sorted(environ.items()):  # what turns a table off comes before what is in it
        if not name.startswith(tuple(_PREFIXES)):
            end = name.removeprefix("FRAMEWORK")
            meant = [each for each in known if each.endswith(end)] if end != name else []
            if meant:
                raise ConfigError(f"{name} in the environment is not a setting. Did you mean {' or '.join(meant)}?")
            continue
        if name not in known:  # a misspelt variable would be ignored without a word
            raise ConfigError(f"{name} in the environment is not a setting.{suggest(name, known)}")
        kind, path, f = known[name]
        yield _Variable(name, kind, path, parse_field(f, value, name))


active: ContextVar[Settings | None] = ContextVar("framework.settings", default=None)
"""The settings of the service that runs in this context; what it connects to inherits them."""


def _split_client(table: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """`[client]` holds settings of its own and one table per service; a table that is no setting is a service."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"client is {table!r}; it must be a table")
    settings = {f.name for f in dataclasses.fields(ClientSettings)}
    own = {n: v for n, v in table.items() if not isinstance(v, Mapping) or n in settings}
    return own, {n: v for n, v in table.items() if n not in own}
