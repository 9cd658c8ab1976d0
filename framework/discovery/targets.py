"""Which registry a string means, and which service in it. `parse` is pure; `open_registry` makes the object.

    target, what a client connects to             its registry, and the service in it
    catalog                                       the default registry, catalog
    consul://host:8500/catalog                    consul://host:8500, catalog
    sqlite:///registry.db#catalog                 sqlite:///registry.db, catalog
    host:port                                     static://host:port
    static://host:port,host:port                  the same
    dns:///name:port, unix:path, ...              static://dns:///name:port: names that grpc itself resolves

    registry
    local                                         the default file of this user on this machine
    sqlite:///relative/file, sqlite:////abs/file  a file; three slashes and a relative path, or four
    consul://host:8500?dc=east&ca=ca.pem          an agent; what can follow: `ConsulSettings.parse`
    static://host:port,host:port                  a fixed list

A secret has no place in a URL, which ends up in logs: Consul's ACL token comes from CONSUL_HTTP_TOKEN.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

from framework.discovery import Registry
from framework.errors import ConfigError

GRPC_SCHEMES = ("dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock")

NO_REGISTRY = "none"
"""What stands in place of a registry for services that nobody looks up."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9][A-Za-z0-9._-]*):(\d{1,5})")


@dataclass(frozen=True, slots=True)
class Target:
    """What a client connects to.

    Attributes:
        registry: URL of the registry, for `open_registry`.
        service: name to watch in it; a fixed list is its own name.
    """

    registry: str
    service: str


def parse(target: str, default_registry: str) -> Target:
    """The registry and service that a target names.

    Args:
        target: one of the forms above.
        default_registry: URL of the registry in which a bare name is looked up.

    Raises:
        ConfigError: the target has none of the forms; the message lists them.
    """
    if _NAME.fullmatch(target):
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(target)
            raise ConfigError(f"Target {target!r} lacks a port. Write {target}:50051, or whatever its port is.")
        return Target(default_registry, target)
    if _is_address(target) or (target.partition(":")[0] in GRPC_SCHEMES and target.partition(":")[2].strip("/")):
        return Target(f"static://{target}", target)
    url = _split(target)
    if url.scheme == "static":
        return Target(f"static://{','.join(_addresses(target))}", ",".join(_addresses(target)))
    if url.scheme == "consul" and _NAME.fullmatch(url.path[1:]):
        return Target(url._replace(path="").geturl(), url.path[1:])
    if url.scheme == "sqlite" and _NAME.fullmatch(url.fragment):
        return Target(target.partition("#")[0], url.fragment)
    missing = " The name of the service is missing." if url.scheme in ("consul", "sqlite") else ""
    raise ConfigError(
        f"Target {target!r} is not understood.{missing} Write catalog (in the default registry), host:port, "
        "consul://host:8500/catalog, sqlite:///file#catalog, static://host:port,host:port, dns:///name:port or "
        "unix:path."
    )


def open_registry(url: str, *, token: str | None = None) -> Registry:
    """The registry at a URL. Nothing is contacted before it is used.

    Args:
        url: one of the forms above.
        token: Consul's ACL token; None takes CONSUL_HTTP_TOKEN from the environment, as Consul's own tools do.

    Raises:
        ConfigError: the URL has none of the forms, or says something impossible.
    """
    if url == "local":
        from framework.discovery.local import LocalRegistry, default_file

        return LocalRegistry(default_file())
    parts = _split(url)
    if parts.scheme == "sqlite" and not (parts.netloc or parts.query or parts.fragment) and parts.path.strip("/"):
        from framework.discovery.local import LocalRegistry

        return LocalRegistry(unquote(parts.path[1:]))
    if parts.scheme == "consul" and parts.path in ("", "/") and not parts.fragment:
        from framework.discovery.consul import ConsulRegistry  # the only one that costs time to import
        from framework.discovery.consul_terms import ConsulSettings

        return ConsulRegistry(ConsulSettings.parse(url), token=token)
    if parts.scheme == "static":
        from framework.discovery.static import StaticRegistry

        return StaticRegistry(_addresses(url))
    raise ConfigError(
        f"Registry {url!r} is not understood. Write local, sqlite:///relative/file or sqlite:////absolute/file, "
        "consul://host:8500 or static://host:port,host:port."
    )


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        if parts.scheme == "consul" and (parts.username or parts.password or "token=" in parts.query):
            # Not repeated in the message: it would be in a log after all.
            raise ConfigError(f"A token has no place in the URL of {parts.hostname}: set CONSUL_HTTP_TOKEN instead.")
        _ = parts.port if parts.scheme == "consul" else None
        return parts
    except ValueError as error:
        raise ConfigError(f"{url!r} is not a URL: {error}.") from None


def _addresses(url: str) -> tuple[str, ...]:
    addresses = tuple(one.strip() for one in url.removeprefix("static://").split(",") if one.strip())
    for one in addresses:
        if not _is_address(one) and one.partition(":")[0] not in GRPC_SCHEMES:
            raise ConfigError(f"{one!r} in {url!r} is not an address: write host:port or [v6]:port.")
    if not addresses:
        raise ConfigError(f"{url!r} lists no address: write static://host:port,host:port.")
    return addresses


def _is_address(text: str) -> bool:
    match = _ADDRESS.fullmatch(text)
    return match is not None and 0 < int(match[2]) < 65536
