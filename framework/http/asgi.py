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


def peer_of(scope: Scope) -> str:
    """The address of the other side, as gRPC writes it: `ipv4:127.0.0.1:50123`."""
    client = scope.get("client")
    if not client:
        return ""
    return f"ipv6:[{client[0]}]:{client[1]}" if ":" in client[0] else f"ipv4:{client[0]}:{client[1]}"
