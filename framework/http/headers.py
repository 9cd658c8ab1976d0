"""Headers to metadata and back, and the deadline that a caller names."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from framework.call import Metadata
from framework.errors import InvalidArgument
from framework.http.settings import HttpSettings
from framework.http.status import Headers
from framework.interceptors.request_id import KEY as REQUEST_ID
from framework.security.authentication import SHOWN

HOP_BY_HOP = frozenset(
    (
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer"),
        *("trailers", "transfer-encoding", "upgrade", "host", "expect", "http2-settings"),
    )
)
FORWARDED = "x-forwarded-"
TOLD_OF_CLIENT = frozenset((*(FORWARDED + name for name in ("for", "host", "proto", "port")), "forwarded", "x-real-ip"))
"""What proxies tell of a client: believed only of those that are trusted."""

_LOOKED_AT = TOLD_OF_CLIENT | SHOWN | {REQUEST_ID}
"""What is checked, set or taken out by its own name before metadata is made, so that no other name may lead to it."""

MOST_NAMES = 1000
"""Header names whose meaning is remembered."""

LONGEST_NAME = 100
"""Bytes of a header name that is remembered."""

_KEY = re.compile(r"[0-9a-z_.-]+")
_VALUE = re.compile(rb"[ -~]*")
_TEXT = re.compile(r"[ -~]+")
_OWN = ("grpc-", "framework-", ":", "content-")


class Incoming:
    """Request headers as metadata, and with them what a proxy tells of the client.

    Args:
        named: the metadata key of a header's name, or None for one that does not pass.
    """

    def __init__(self, named: Callable[[str], str | None]) -> None:
        self._named = named
        self._known: dict[bytes, str | None] = {}

    def metadata(self, scope: Mapping[str, Any]) -> Metadata:
        """What passes of the headers of a request."""
        pairs: list[tuple[str, str | bytes]] = []
        known = self._known
        via: list[str] = []
        told = {"host": "", "proto": scope["scheme"]}
        for raw_key, raw in scope["headers"]:
            try:
                key = known[raw_key]
            except KeyError:
                key = self._learn(raw_key)
            if key is None:
                if raw_key == b"host":
                    told["host"] = told["host"] or raw.decode("latin-1")
                elif raw_key == b"x-forwarded-for":
                    via.append(raw.decode("latin-1"))
                elif raw_key in (b"x-forwarded-host", b"x-forwarded-proto"):
                    told[raw_key[12:].decode()] = raw.decode("latin-1")
            elif not _VALUE.fullmatch(raw):
                continue
            elif key.endswith("-bin"):
                pairs.extend((key, binary) for binary in _binary(raw))
            else:
                pairs.append((key, raw.decode()))
        client = scope.get("client")
        if client:
            via.append(client[0])
        for name, value in (("for", ", ".join(via)), *told.items()):
            if _TEXT.fullmatch(value):
                pairs.append((FORWARDED + name, value))
        return tuple(pairs)

    def _learn(self, raw_key: bytes) -> str | None:
        name = raw_key.decode("latin-1").lower()
        key = self._named(name)
        if key is not None and not _passes(name, key):
            key = None
        if len(self._known) < MOST_NAMES and len(raw_key) <= LONGEST_NAME:
            self._known[raw_key] = key
        return key


def _passes(name: str, key: str) -> bool:
    """Whether a header may be metadata of a key, which is a header again on its next way, over HTTP/2."""
    if not _KEY.fullmatch(key) or key in HOP_BY_HOP or name in HOP_BY_HOP:
        return False
    if key.startswith((*_OWN, FORWARDED)):  # what is told of the client, or among services, is not told by the client
        return False
    return key == name or key not in _LOOKED_AT


def _binary(raw: bytes) -> Iterable[bytes]:
    """The values of a binary header: base64, padded or not, several after another with commas."""
    for part in raw.split(b","):
        part = part.strip().rstrip(b"=")
        try:
            yield base64.b64decode(part + b"=" * (-len(part) % 4), validate=True)
        except (binascii.Error, ValueError):
            continue


def rest_named(settings: HttpSettings) -> Callable[[str], str | None]:
    """What passes in REST: what the settings name."""
    allowed, prefixes, strip = frozenset(settings.headers), settings.header_prefixes, settings.strip_prefix

    def named(name: str) -> str | None:
        if name.startswith(strip):
            return name[len(strip) :]
        return name if name in allowed or name.startswith(prefixes) else None

    return named


_PROTOCOL = frozenset(
    (
        *("accept", "accept-encoding", "cache-control", "content-encoding", "content-length", "content-type", "origin"),
        *("connect-accept-encoding", "connect-content-encoding", "connect-protocol-version", "connect-timeout-ms"),
        *("x-grpc-web", "date", "pragma", "referer"),
    )
)


def rpc_named(name: str) -> str | None:
    """What passes in Connect and gRPC-Web: all but what belongs to the protocols."""
    return None if name in _PROTOCOL or name.startswith(("sec-", "access-control-", "grpc-")) else name


def encoded(key: str, value: str | bytes) -> bytes:
    """The value of a header for a value of metadata."""
    return base64.b64encode(value).rstrip(b"=") if isinstance(value, bytes) else value.encode("latin-1", "replace")


def outgoing(metadata: Metadata, prefix: str = "", plain: Iterable[str] = ()) -> Headers:
    """Metadata as response headers.

    Args:
        prefix: of all keys but those in `plain`.
    """
    headers: Headers = []
    for key, value in metadata:
        if key in plain:
            headers.append((key.encode(), encoded(key, value)))
        elif key not in HOP_BY_HOP and not key.startswith(_OWN):
            headers.append((f"{prefix}{key}".encode(), encoded(key, value)))
    return headers


# Deadlines

_GRPC_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_CONNECT_TIMEOUT = re.compile(rb"[0-9]{1,10}")
_SECONDS = re.compile(rb"[0-9]{1,10}(\.[0-9]{1,9})?")


def timeout_of(headers: Mapping[bytes, bytes], longest: float) -> float | None:
    """Seconds that the caller waits, or None when it does not say.

    Raises:
        InvalidArgument: a header that is no duration.
    """
    found: float | None = None
    if (raw := headers.get(b"grpc-timeout")) is not None:
        match = _GRPC_TIMEOUT.fullmatch(raw)
        found = None if match is None else int(match[1]) * _UNITS[match[2]]
    elif (raw := headers.get(b"connect-timeout-ms")) is not None:
        found = int(raw) / 1000 if _CONNECT_TIMEOUT.fullmatch(raw) else None
    elif (raw := headers.get(b"x-server-timeout")) is not None:
        found = float(raw) if _SECONDS.fullmatch(raw) else None
    else:
        return None
    if found is None:
        raise InvalidArgument(f"{raw[:40].decode('latin-1')!r} is no timeout")
    return min(found, longest)
