"""Browsers on pages of other origins: which may call, and how they are told (CORS).

Source: https://fetch.spec.whatwg.org/#http-cors-protocol
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from typing import Any

from framework.errors import PermissionDenied
from framework.http.asgi import Scope, Send
from framework.http.status import Headers, text
from framework.web import CorsSettings

FOREIGN = "framework.foreign"
"""Where a scope says that somebody has looked already whether it is a page that may call, and what came out."""

_READING = ("GET", "HEAD")
_UNASKED = frozenset((b"", b"application/x-www-form-urlencoded", b"multipart/form-data", b"text/plain"))
"""Content types that browsers send anywhere without asking first; none at all is one, too."""


class Cors:
    """The rules, ready to be asked.

    Args:
        settings: see CorsSettings.

    Attributes:
        needed: there are origins that may call.
    """

    def __init__(self, settings: CorsSettings) -> None:
        self.needed = bool(settings.origins)
        self._everybody = "*" in settings.origins
        patterns = [re.escape(one).replace(r"\*", r"[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*") for one in settings.origins]
        self._origins = re.compile("|".join(patterns), re.IGNORECASE) if settings.origins else None
        self._credentials = settings.credentials
        self._any_header = "*" in settings.headers
        self._preflight: Headers = [
            (b"access-control-allow-methods", ", ".join(settings.methods).encode()),
            (b"access-control-max-age", b"%d" % settings.max_age),
        ]
        self._allow_headers = ", ".join(settings.headers).encode()
        self._expose = ", ".join(settings.expose).encode()

    def allows(self, origin: bytes) -> bool:
        """Whether pages of an origin may call."""
        if self._everybody:
            return True
        return self._origins is not None and self._origins.fullmatch(origin.decode("latin-1")) is not None

    def headers(self, origin: bytes | None) -> Headers:
        """What a response says to a page of an origin; None is a request that names none."""
        if self._origins is None:
            return []
        if self._everybody:
            allowed: Headers = [] if origin is None else [(b"access-control-allow-origin", b"*")]
        else:
            allowed = [(b"vary", b"origin")]  # a cache must not give one page what another was answered
            if origin is None or not self.allows(origin):
                return allowed
            allowed.append((b"access-control-allow-origin", origin))
        if origin is not None:
            if self._credentials:
                allowed.append((b"access-control-allow-credentials", b"true"))
            if self._expose:
                allowed.append((b"access-control-expose-headers", self._expose))
        return allowed

    def preflight(self, http: str, headers: Mapping[bytes, bytes]) -> tuple[int, Headers, bytes] | None:
        """What a browser is answered that asks before it calls, None for every other request: status, headers, body."""
        origin = headers.get(b"origin")
        if http != "OPTIONS" or origin is None or b"access-control-request-method" not in headers:
            return None
        said = self.headers(origin)
        if not self.allows(origin):
            error = foreign(origin)
            body = text({"code": int(error.code), "message": error.message})
            return 403, [(b"content-type", b"application/json"), *said], body
        said += self._preflight
        if self._any_header:  # `*` itself does not count for requests with credentials
            if asked := headers.get(b"access-control-request-headers"):
                said.append((b"access-control-allow-headers", asked))
            said.append((b"vary", b"access-control-request-headers"))
        elif self._allow_headers:
            said.append((b"access-control-allow-headers", self._allow_headers))
        return 204, said, b""

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Raises PermissionDenied for pages that may not call, where browsers do not ask first, as for WebSockets."""
        if self.is_foreign(headers):
            raise foreign(headers[b"origin"])

    def check_unasked(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        """Raises PermissionDenied for what pages that may not call can send all the same, and that does something."""
        if scope["method"] in _READING or scope.get(FOREIGN) is False:
            return
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind in _UNASKED and (FOREIGN in scope or self.is_foreign(headers)):
            raise foreign(headers[b"origin"])

    def is_foreign(self, headers: Mapping[bytes, bytes]) -> bool:
        """A page sends this that may not call, and is not from here."""
        origin = headers.get(b"origin")
        if origin is None or self.allows(origin):
            return False
        if headers.get(b"sec-fetch-site") == b"same-origin":  # pages cannot set it, and a proxy may change the host
            return False
        own = headers.get(b"host", b"").lower()
        return not own or origin.lower().partition(b"://")[2] != own

    def telling(self, scope: Scope, send: Send) -> Send:
        """A `send` that adds what a response is to say."""
        said = self.headers(next((value for name, value in scope["headers"] if name == b"origin"), None))

        async def telling(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *said]
            await send(message)

        return telling if said else send


def foreign(origin: bytes) -> PermissionDenied:
    """What pages of an origin are told that may not call."""
    shown = origin[:100].decode("latin-1")
    return PermissionDenied(f"pages of {shown} may not call here (`cors.origins` in the settings)")


async def respond(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """Send a whole response."""
    if status not in (204, 304):
        headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
