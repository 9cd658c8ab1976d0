"""HTTP in front of gRPC methods: one ASGI application that turns requests into calls.

Reading order: `methods` (what is served), `rules` and `routes` (from a path to a method), `json` and `binding` (from a
request to a message), `app` (from ASGI to one of the protocols), `rest`, `connect`, `grpc_web`. What is told of it all:
`schemas`, `operations` and `openapi`, and `docs`, the page.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from framework.http.app import HttpApp
    from framework.http.json import JsonOptions
    from framework.http.settings import HttpSettings

__all__ = ["HttpApp", "HttpSettings", "JsonOptions"]

_WHERE = {"HttpApp": "app", "HttpSettings": "settings", "JsonOptions": "json"}


def __getattr__(name: str) -> Any:
    # When it is asked for: whoever only reads rules does not wait for a server.
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
