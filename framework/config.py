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
import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self, get_args

from framework.errors import ConfigError

Balancer = Literal["peak_ewma", "round_robin"]

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_NONE = "none"


def duration(value: Any, where: str = "duration") -> float:
    """Seconds of `"500ms"`, `"30s"`, `"5m"`, `"1h"` or a plain number of seconds.

    Raises:
        ConfigError: it is none of these, or negative.
    """
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h)?\s*", value)):
        return float(match[1]) * _UNITS[match[2] or "s"]
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(value)
    raise ConfigError(f'{where} is {value!r}, which is no duration; write for example "500ms", "30s" or "5m"')


def _optional_duration(value: Any, where: str) -> float | None:
    return None if value in (None, _NONE) else duration(value, where)


def _duration_or_ever(value: Any, where: str) -> float:
    return math.inf if value == _NONE else duration(value, where)


def _methods(value: Any, where: str) -> Mapping[str, MethodSettings]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is {value!r}; it must be a table")
    return {name: MethodSettings.parse(table, f"{where}.{name}") for name, table in value.items()}


def _integer(low: int, high: int) -> Callable[[Any, str], int]:
    def parse(value: Any, where: str) -> int:
        try:
            number = int(value) if not isinstance(value, bool | float) else None
        except (TypeError, ValueError):
            number = None
        if number is None or not low <= number <= high:
            raise ConfigError(f"{where} is {value!r}; it must be a whole number from {low} to {high}")
        return number

    return parse


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{where} is {value!r}; it must be text")
    return value


def _choice(*choices: str) -> Callable[[Any, str], str]:
    def parse(value: Any, where: str) -> str:
        if value not in choices:
            raise ConfigError(f"{where} is {value!r}; choose one of {', '.join(choices)}")
        return str(value)

    return parse


_balancer = _choice(*get_args(Balancer))


def _setting(default: Any, parse: Callable[[Any, str], Any]) -> Any:
    return field(default=default, metadata={"parse": parse})


class _Table:
    """A frozen dataclass whose fields know how to parse themselves."""

    def __post_init__(self) -> None:
        """Settings made in code are held to the same rules. Raises ConfigError."""
        for f in dataclasses.fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = getattr(self, f.name)
            if "parse" in f.metadata and value != f.default and not isinstance(value, _Table | Mapping):
                f.metadata["parse"](value, f"{type(self).__name__}.{f.name}")

    @classmethod
    def parse(cls, table: Any, where: str, base: Self | None = None) -> Self:
        """Settings from a TOML table over `base`.

        Raises:
            ConfigError: a name that does not exist, or a value that cannot be used.
        """
        if not isinstance(table, Mapping):
            raise ConfigError(f"{where} is {table!r}; it must be a table")
        parsers = {f.name: f.metadata["parse"] for f in dataclasses.fields(cls) if "parse" in f.metadata}  # type: ignore[arg-type]  # every subclass is a dataclass
        values: dict[str, Any] = {}
        for name, value in table.items():
            path = f"{where}.{name}" if where else name
            if name not in parsers:
                raise ConfigError(f"{path} is not a setting.{_suggest(name, parsers)}")
            values[name] = parsers[name](value, path)
        return dataclasses.replace(base, **values) if base is not None else cls(**values)  # type: ignore[type-var]  # as above


def _suggest(name: str, known: Mapping[str, Any]) -> str:
    close = get_close_matches(name, known, 1)
    return f" Did you mean {close[0]}?" if close else f" There are: {', '.join(sorted(known))}"


@dataclass(frozen=True, slots=True)
class Drain(_Table):
    """How a server stops.

    Attributes:
        delay: seconds in which it still accepts after it deregistered, so that every client has heard of it.
        grace: seconds that calls in flight may take after that.
        streams: seconds that streams may take; they then end with UNAVAILABLE and the client goes elsewhere.
    """

    delay: float = _setting(1.0, duration)
    grace: float = _setting(30.0, duration)
    streams: float = _setting(5.0, duration)


QUICK_DRAIN = Drain(delay=0.0, grace=1.0, streams=0.2)
"""For Ctrl-C on a terminal, where a person waits."""


@dataclass(frozen=True, slots=True)
class ServerSettings(_Table):
    """`[server]`.

    Attributes:
        host: address to listen on.
        port: 0 is any free port.
        advertise: `host:port` or `host` that clients are told to dial; empty is what the server listens on.
        max_message: bytes a message may have, in and out.
        drain: how it stops.
    """

    host: str = _setting("127.0.0.1", _text)
    port: int = _setting(0, _integer(0, 65535))
    advertise: str = _setting("", _text)
    max_message: int = _setting(4 << 20, _integer(1024, 2**31 - 1))
    drain: Drain = field(default=Drain(), metadata={"parse": lambda value, where: Drain.parse(value, where)})


@dataclass(frozen=True, slots=True)
class MethodSettings(_Table):
    """`[client.NAME.methods.METHOD]`; None leaves it to the service's settings.

    Attributes:
        timeout: seconds until a unary reply must be there.
        idle: seconds a stream may be silent; math.inf ("none" in a file) is for ever.
    """

    timeout: float | None = _setting(None, duration)
    idle: float | None = _setting(None, _duration_or_ever)


@dataclass(frozen=True, slots=True)
class ClientSettings(_Table):
    """`[client]` for every client and `[client.NAME]` for clients of one service.

    Attributes:
        timeout: seconds until a unary reply must be there, where the call, the method's proto and its own settings
            say nothing.
        idle: seconds a stream may be silent while its reader waits; None ("none" in a file) is for ever.
        balancer: `peak_ewma` (power of two choices over peak-EWMA latency) or `round_robin`.
        connect_timeout: seconds an attempt to connect may take.
        max_message: bytes a message may have, in and out.
        methods: what differs for single methods, by name.
    """

    timeout: float = _setting(10.0, duration)
    idle: float | None = _setting(30.0, _optional_duration)
    balancer: Balancer = _setting("peak_ewma", _balancer)
    connect_timeout: float = _setting(2.0, duration)
    max_message: int = _setting(4 << 20, _integer(1024, 2**31 - 1))
    methods: Mapping[str, MethodSettings] = field(
        default_factory=lambda: MappingProxyType({}),
        metadata={"parse": _methods},
    )


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
                raise ConfigError(f"{name} is not a setting.{_suggest(name, known)}")
        own, services = _split_client(tables.get("client", {}))
        client = ClientSettings.parse(own, "client")
        return cls(
            registry=_text(tables.get("registry", "local"), "registry"),
            server=ServerSettings.parse(tables.get("server", {}), "server"),
            client=client,
            clients={name: ClientSettings.parse(table, f"client.{name}", client) for name, table in services.items()},
        )

    def _with_environment(self, environ: Mapping[str, str]) -> Settings:
        _refuse_unknown(environ)
        parts: dict[str, Any] = {"server": self.server, "client": self.client, "drain": self.server.drain}
        clients = dict(self.clients)
        for part, prefix in (
            ("drain", "FRAMEWORK_SERVER_DRAIN_"),
            ("server", "FRAMEWORK_SERVER_"),
            ("client", "FRAMEWORK_CLIENT_"),
        ):
            for f in dataclasses.fields(parts[part]):
                name = prefix + f.name.upper()
                if name in environ and f.name not in ("drain", "methods"):
                    value = {f.name: f.metadata["parse"](environ[name], name)}
                    parts[part] = dataclasses.replace(parts[part], **value)
                    if part == "client":
                        clients = {n: dataclasses.replace(c, **value) for n, c in clients.items()}
        return Settings(
            registry=environ.get("FRAMEWORK_REGISTRY") or self.registry,
            server=dataclasses.replace(parts["server"], drain=parts["drain"]),
            client=parts["client"],
            clients=clients,
        )


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    """A misspelt variable would be ignored without a word."""
    known = {
        prefix + f.name.upper()
        for prefix, kind in (
            ("FRAMEWORK_SERVER_DRAIN_", Drain),
            ("FRAMEWORK_SERVER_", ServerSettings),
            ("FRAMEWORK_CLIENT_", ClientSettings),
        )
        for f in dataclasses.fields(kind)
        if f.name not in ("drain", "methods")
    }
    for name in environ:
        if name.startswith(("FRAMEWORK_SERVER_", "FRAMEWORK_CLIENT_")) and name not in known:
            raise ConfigError(f"{name} in the environment is not a setting.{_suggest(name, dict.fromkeys(known))}")


active: ContextVar[Settings | None] = ContextVar("framework.settings", default=None)
"""The settings of the service that runs in this context; what it connects to inherits them."""


def _split_client(table: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """`[client]` holds settings of its own and one table per service; a table that is no setting is a service."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"client is {table!r}; it must be a table")
    settings = {f.name for f in dataclasses.fields(ClientSettings)}
    own = {n: v for n, v in table.items() if not isinstance(v, Mapping) or n in settings}
    return own, {n: v for n, v in table.items() if n not in own}
