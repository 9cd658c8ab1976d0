"""How HTTP is served, by the gateway and by a service beside its gRPC: what a settings file may say about it.

    [gateway]                       # what `framework gateway` does; [server.http] takes the same for one service
    port = 8080
    cors = { origins = ["https://shop.example.com"] }
    rate_limit = { rate = 50, burst = 100 }

`framework.http` does what is said here.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Self

from framework.errors import ConfigError
from framework.parsing import (
    OFF,
    Parse,
    Table,
    boolean,
    choice,
    duration,
    duration_or_ever,
    integer,
    number,
    optional,
    period,
    setting,
    span,
    table,
    text,
    workers,
)
from framework.tls import NO_TLS, ServerTls

NO_RATE_LIMIT = {"rate": OFF, "burst": 0}
"""What `"off"` means."""

AUTHENTICATED = "authenticated"
"""Who sees `docs`: whoever is known."""

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^\s/?#]+")


def words(pattern: re.Pattern[str], what: str) -> Parse:
    """A parser of a list of texts, or one text with commas, as a tuple."""

    def parse(value: Any, where: str) -> tuple[str, ...]:
        given = [one.strip() for one in value.split(",") if one.strip()] if isinstance(value, str) else value
        if not isinstance(given, list | tuple):
            raise ConfigError(f"{where} is {value!r}; it must be a list of texts")
        for one in given:
            if not isinstance(one, str) or not pattern.fullmatch(one):
                raise ConfigError(f"{where} has {one!r}, which is no {what}")
        return tuple(given)

    return parse


def networks(value: Any, where: str) -> tuple[str, ...]:
    """Addresses and networks, `10.0.0.0/8`."""
    found: tuple[str, ...] = words(re.compile(r"\S+"), "network")(value, where)
    for one in found:
        try:
            ipaddress.ip_network(one)
        except ValueError as error:
            raise ConfigError(f"{where} has {one!r}, which is no address or network: {error}") from None
    return found


def _docs(value: Any, where: str) -> bool | Literal["authenticated"]:
    if value == AUTHENTICATED:
        return "authenticated"
    try:
        return boolean(value, where)
    except ConfigError as error:
        raise ConfigError(f'{error}, or "{AUTHENTICATED}"') from None


@dataclass(frozen=True, slots=True)
class CorsSettings(Table):
    """Which pages of other origins may call.

    Attributes:
        origins: `https://shop.example.com`; `https://*.example.com` is every name below, and `*` everybody.
        methods: HTTP methods that they may use.
        headers: request headers that they may send; `*` is any.
        expose: response headers that they may read.
        credentials: cookies and `authorization` may be sent along; never with the origin `*`.
        max_age: seconds that a browser remembers this.
    """

    origins: tuple[str, ...] = setting((), words(_ORIGIN, "origin; write for example https://shop.example.com"))
    methods: tuple[str, ...] = setting(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"), words(_TOKEN, "HTTP method"))
    headers: tuple[str, ...] = setting(("*",), words(_TOKEN, "header"))
    expose: tuple[str, ...] = setting(
        ("x-request-id", "retry-after", "etag", "location", "grpc-status", "grpc-message", "grpc-status-details-bin"),
        words(_TOKEN, "header"),
    )
    credentials: bool = setting(False, boolean)
    max_age: float = setting(600.0, duration)

    def __post_init__(self) -> None:
        super(CorsSettings, self).__post_init__()
        if self.credentials and "*" in self.origins:
            raise ConfigError(
                'cors.credentials with the origin "*" would let every page act for the user; name origins'
            )


def _rate(value: Any, where: str) -> float:
    if value == OFF:
        return 0.0
    found = number(0, 1_000_000)(value, where)
    if found == 0:
        raise ConfigError(f'{where} is {value!r}; it must be more than 0; for no limit write "{OFF}"')
    return found


@dataclass(frozen=True, slots=True)
class RateSettings(Table):
    """How often each caller may call.

    Attributes:
        rate: calls a second, in the long run; 0 ("off" in a file) is no limit.
        burst: calls that may come at once after a pause; 0 is a second's worth, at least 1.
    """

    rate: float = setting(0.0, _rate)
    burst: int = setting(0, integer(0, 1_000_000))

    @classmethod
    def parse(cls, given: Any, where: str, base: Self | None = None) -> Self:
        """Settings from a table of a file over `base`. Raises ConfigError: it would limit nothing, and not say so."""
        parsed = super(RateSettings, cls).parse(given, where, base)
        if not parsed.rate and "rate" not in given:
            raise ConfigError(f'{where} has no rate, as in {{ rate = 50, burst = 100 }}; for no limit write "{OFF}"')
        return parsed


@dataclass(frozen=True, slots=True)
class HttpLimits(Table):
    """What a client may take up.

    Attributes:
        body: bytes of a message or a whole body, after it is unpacked.
        header: bytes of a request's head.
        connections: open at the same time; more are turned away.
        head_timeout: seconds in which a request's head has to arrive.
        body_timeout: seconds in which the rest of a body has to arrive; of an upload, which is a stream of requests
            with one reply, each next part.
        keep_alive: seconds that a connection stays open without a request.
        write_timeout: seconds for which a client may take nothing of what is sent to it, where the system can watch
            that (Linux).
    """

    body: int = setting(4 << 20, integer(1024, 2**31 - 1))
    header: int = setting(32 << 10, integer(1024, 2**24))
    connections: int = setting(10_000, integer(1, 1_000_000))
    head_timeout: float = setting(10.0, period)
    body_timeout: float = setting(10.0, period)
    keep_alive: float = setting(75.0, duration)
    write_timeout: float = setting(60.0, span(0.001, 86_400))


@dataclass(frozen=True, slots=True)
class JsonSettings(Table):
    """How messages are written as JSON; everything is read.

    Attributes:
        defaults: write fields that have their default value too.
        proto_names: write `user_id`, not `userId`.
        enum_numbers: write enums as numbers.
        ignore_unknown: skip fields that do not exist instead of refusing them.
    """

    defaults: bool = setting(False, boolean)
    proto_names: bool = setting(False, boolean)
    enum_numbers: bool = setting(False, boolean)
    ignore_unknown: bool = setting(False, boolean)


@dataclass(frozen=True, slots=True)
class WebSettings(Table):
    """`[server.http]`, and what `[gateway]` has in common with it.

    Attributes:
        port: 0 is any free port; None ("none" in a file) is not to serve HTTP.
        cors: which pages of other origins may call.
        limits: what a client may take up.
        json: how messages are written as JSON.
        unknown_query: `reject` or `ignore` query parameters that are no fields.
        compress_above: bytes from which on replies are compressed for clients that accept it; None ("none") is never.
        heartbeat: seconds of silence after which a comment is sent on an event stream.
        max_timeout: seconds that a caller may ask for at most.
        trusted: proxies whose X-Forwarded-* headers are believed; those of others are dropped.
        rate_limit: how often each caller may call, all methods together.
        rate_limits: the same for single methods or services, by full name, `shop.orders.v1.Orders/PlaceOrder`.
        docs: serve `/docs`, `/openapi.json` and `/openapi.yaml`; AUTHENTICATED to those only who may call.
        rate_key: request header by which callers of one identity, or without one of one address, are told apart,
            `x-tenant`; empty is not at all.
        tls: certificates; HTTP beside gRPC has those of gRPC when there are none here.
        plaintext: plain text may be served beyond this machine; beside gRPC, even though gRPC has certificates.
    """

    port: int | None = setting(None, optional(integer(0, 65535)))
    cors: CorsSettings = table(CorsSettings(), CorsSettings)
    limits: HttpLimits = table(HttpLimits(), HttpLimits)
    json: JsonSettings = table(JsonSettings(), JsonSettings)
    unknown_query: Literal["reject", "ignore"] = setting("reject", choice("reject", "ignore"))
    compress_above: int | None = setting(1024, optional(integer(0, 2**31 - 1)))
    heartbeat: float = setting(15.0, period)
    max_timeout: float = setting(float("inf"), duration_or_ever)
    trusted: tuple[str, ...] = setting((), networks)
    rate_limit: RateSettings = table(RateSettings(), RateSettings, off=NO_RATE_LIMIT)
    rate_limits: Mapping[str, RateSettings] = field(default_factory=lambda: MappingProxyType({}))
    docs: bool | Literal["authenticated"] = setting(True, _docs)
    rate_key: str = setting("", text)
    tls: ServerTls = table(ServerTls(), ServerTls, off=NO_TLS)
    plaintext: bool = setting(False, boolean)

    @classmethod
    def parse(cls, given: Any, where: str, base: Self | None = None) -> Self:
        """Settings from a table of a file over `base`."""
        inner = dict(given) if isinstance(given, Mapping) else given
        own = inner.pop("rate_limits", {}) if isinstance(inner, dict) else {}
        if not isinstance(own, Mapping):
            raise ConfigError(f"{where}.rate_limits is {own!r}; it must be a table of methods")
        limits = {name: RateSettings.parse(value, f"{where}.rate_limits.{name}") for name, value in own.items()}
        parsed = super(WebSettings, cls).parse(inner, where, base)
        if not limits:
            return parsed
        return dataclasses.replace(parsed, rate_limits=MappingProxyType({**parsed.rate_limits, **limits}))


@dataclass(frozen=True, slots=True)
class GatewaySettings(WebSettings):
    """`[gateway]`.

    Attributes:
        host: address to listen on.
        workers: processes that serve; "auto" is one for each CPU that can be used.
        services: names of the services to serve; empty is every service in the registry.
        descriptors: files with descriptor sets, by the name of the service that they describe; the others are asked.
        refresh: seconds between two looks at which services there are.
        linger: seconds that a service without an instance is answered for with UNAVAILABLE, before it is forgotten.
        validate: refuse requests that break the rules of their proto, before a service is called.
    """

    host: str = setting("127.0.0.1", text)
    port: int | None = setting(8080, integer(0, 65535))
    workers: int | Literal["auto"] = setting(1, workers)
    services: tuple[str, ...] = setting((), words(re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*"), "name of a service"))
    descriptors: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    refresh: float = setting(1.0, period)
    linger: float = setting(60.0, duration)
    validate: bool = setting(True, boolean)

    @classmethod
    def parse(cls, given: Any, where: str, base: Self | None = None) -> Self:
        """Settings from a table of a file over `base`."""
        inner = dict(given) if isinstance(given, Mapping) else given
        files = inner.pop("descriptors", {}) if isinstance(inner, dict) else {}
        if not isinstance(files, Mapping) or not all(isinstance(file, str) for file in files.values()):
            raise ConfigError(f"{where}.descriptors is {files!r}; it must be a table of files by name of the service")
        parsed = super(GatewaySettings, cls).parse(inner, where, base)
        if not files:
            return parsed
        return dataclasses.replace(parsed, descriptors=MappingProxyType({**parsed.descriptors, **files}))
