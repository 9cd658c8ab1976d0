"""Settings: frozen, validated when made, read once: a TOML file first, then the environment over it.

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
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from framework.errors import ConfigError
from framework.parsing import Table, duration, integer, leaves, replaced, setting, suggest, table, text
from framework.policy import ClientSettings


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


@dataclass(frozen=True, slots=True)
class ServerSettings(Table):
    """`[server]`.

    Attributes:
        host: address to listen on.
        port: 0 is any free port.
        advertise: `host:port` or `host` that clients are told to dial; empty is what the server listens on.
        max_message: bytes a message may have, in and out.
        drain: how it stops.
    """

    host: str = setting("127.0.0.1", text)
    port: int = setting(0, integer(0, 65535))
    advertise: str = setting("", text)
    max_message: int = setting(4 << 20, integer(1024, 2**31 - 1))
    drain: Drain = table(Drain(), Drain)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set without code.

    Attributes:
        registry: URL of the registry for services named without one; `local` is the file shared by this machine.
        server: the server of this process.
        client: the client settings of every service not named in `clients`.
        clients: settings by service name, complete.
    """

    registry: str = "local"
    server: ServerSettings = ServerSettings()
    client: ClientSettings = ClientSettings()
    clients: Mapping[str, ClientSettings] = field(default_factory=lambda: MappingProxyType({}))

    def client_for(self, service: str) -> ClientSettings:
        """The settings of clients of a service."""
        return self.clients.get(service, self.client)

    @classmethod
    def load(cls, path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read the file, then the environment over it.

        Raises:
            ConfigError: a file that is named but missing, is no TOML, or a setting that cannot be used.
        """
        named = path or (Path(environ["FRAMEWORK_CONFIG"]) if environ.get("FRAMEWORK_CONFIG") else None)
        file = named or Path("framework.toml")
        tables: dict[str, Any] = {}
        try:
            tables = tomllib.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if named:
                raise ConfigError(f"there is no settings file {file}") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{file}: {error}") from None
        try:
            settings = cls._from_tables(tables)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from None
        return settings._with_environment(environ)

    @classmethod
    def _from_tables(cls, tables: Mapping[str, Any]) -> Settings:
        known = {"registry": None, "server": None, "client": None}
        for name in tables:
            if name not in known:
                raise ConfigError(f"{name} is not a setting.{suggest(name, known)}")
        own, services = _split_client(tables.get("client", {}))
        client = ClientSettings.parse(own, "client")
        return cls(
            registry=text(tables.get("registry", "local"), "registry"),
            server=ServerSettings.parse(tables.get("server", {}), "server"),
            client=client,
            clients={name: ClientSettings.parse(table, f"client.{name}", client) for name, table in services.items()},
        )

    def _with_environment(self, environ: Mapping[str, str]) -> Settings:
        known = {name: (kind, path, f) for name, kind, path, f in _variables()}
        server, client, clients = self.server, self.client, dict(self.clients)
        for name, value in environ.items():
            if not name.startswith(("FRAMEWORK_SERVER_", "FRAMEWORK_CLIENT_")):
                continue
            if name not in known:  # a misspelt variable would be ignored without a word
                raise ConfigError(f"{name} in the environment is not a setting.{suggest(name, known)}")
            kind, path, f = known[name]
            parsed = f.metadata["parse"](value, name)
            if kind is ServerSettings:
                server = replaced(server, path, parsed)
            else:
                client = replaced(client, path, parsed)
                clients = {one: replaced(settings, path, parsed) for one, settings in clients.items()}
        return Settings(environ.get("FRAMEWORK_REGISTRY") or self.registry, server, client, clients)


def _variables() -> Iterator[tuple[str, type[Table], tuple[str, ...], dataclasses.Field[Any]]]:
    """The environment's name of every setting, the table that it belongs to, its path there and its field."""
    for kind, prefix in ((ServerSettings, "FRAMEWORK_SERVER_"), (ClientSettings, "FRAMEWORK_CLIENT_")):
        for path, f in leaves(kind):
            yield prefix + "_".join(path).upper(), kind, path, f


active: ContextVar[Settings | None] = ContextVar("framework.settings", default=None)
"""The settings of the service that runs in this context; what it connects to inherits them."""


def _split_client(table: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """`[client]` holds settings of its own and one table per service; a table that is no setting is a service."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"client is {table!r}; it must be a table")
    settings = {f.name for f in dataclasses.fields(ClientSettings)}
    own = {n: v for n, v in table.items() if not isinstance(v, Mapping) or n in settings}
    return own, {n: v for n, v in table.items() if n not in own}
