"""What ASGI looks like here: its types, and what this puts into a scope.

ASGI: https://asgi.readthedocs.io/en/latest/specs/www.html
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

IDENTITY = "framework.identity"
"""Where a scope has who the caller is, once that was found out."""

PEER = "framework.peer"
"""Where a scope has who is at the other end, by its certificate."""


OUTSIDE = "framework.outside"
"""Where a scope has whom a trusted proxy has forwarded a request for, as `peer_of` writes it."""


def peer_of(scope: Scope) -> str:
    """The address of the client, as gRPC writes it: `ipv4:127.0.0.1:50123`; behind trusted proxies without a port."""
    outside: str | None = scope.get(OUTSIDE)
    if outside is not None:
        return outside
    client = scope.get("client")
    if not client:
        return ""
    return f"{address_of(client[0])}:{client[1]}"


def address_of(host: str) -> str:
    """A host as gRPC writes it, `ipv6:[::1]`; what is none as it is."""
    return f"ipv6:[{host}]" if ":" in host else f"ipv4:{host}"
