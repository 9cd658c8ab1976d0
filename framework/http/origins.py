"""Browsers on pages of other origins: who may call, and how they are told (CORS).

Source: https://fetch.spec.whatwg.org/#http-cors-protocol
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from framework.http.exchange import Scope, Send
from framework.http.status import Headers

EVERYBODY = "*"
_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_REMEMBERED = b"7200"


class Origins:
    """The origins that may call.

    Args:
        allowed: as browsers write them, `https://shop.example`; `*` is every one. Cookies are never asked for.
    """

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self._allowed = frozenset(allowed)

    def headers(self, headers: Mapping[bytes, bytes]) -> Headers:
        """What every response to a request says."""
        if not self._allowed:
            return []
        said: Headers = [] if EVERYBODY in self._allowed else [(b"vary", b"origin")]
        origin = headers.get(b"origin")
        if origin is not None and self._may(origin):
            said.append((b"access-control-allow-origin", origin if said else b"*"))
            said.append((b"access-control-expose-headers", b"*"))
        return said

    def _may(self, origin: bytes) -> bool:
        return EVERYBODY in self._allowed or origin.decode("latin-1") in self._allowed

    def preflight(self, http: str, headers: Mapping[bytes, bytes]) -> Headers | None:
        """What else is answered to a browser that asks before it calls; None to a request that is no such question."""
        if http != "OPTIONS" or b"access-control-request-method" not in headers or not self._allowed:
            return None
        if not self._may(headers.get(b"origin", b"")):
            return []
        said = [(b"access-control-allow-methods", _METHODS), (b"access-control-max-age", _REMEMBERED)]
        if (asked := headers.get(b"access-control-request-headers")) is not None:
            said.append((b"access-control-allow-headers", asked))
        return said

    def may_open(self, headers: Mapping[bytes, bytes]) -> bool:
        """A WebSocket may be opened: browsers do not ask first, so that a foreign page could read what is sent."""
        origin = headers.get(b"origin")
        if origin is None or self._may(origin):
            return True
        own = headers.get(b"host", b"").lower()
        return own != b"" and origin.lower().partition(b"://")[2] == own

    def telling(self, scope: Scope, send: Send) -> Send:
        """A `send` that adds what a response is to say."""
        said = self.headers(dict(scope["headers"]))
        if not said:
            return send

        async def telling(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *said]
            await send(message)

        return telling
