"""Which pages of other origins may call. Source: https://fetch.spec.whatwg.org/#http-cors-protocol"""

from __future__ import annotations

import re

from framework.http.status import Headers
from framework.web import CorsSettings


class Cors:
    """The rules, ready to be asked.

    Args:
        settings: see CorsSettings.
    """

    def __init__(self, settings: CorsSettings) -> None:
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

    def preflight(self, origin: bytes, asked: bytes | None) -> Headers:
        """What an allowed origin is answered that asks first; `asked` are the headers that it wants to send."""
        allowed = [*self.headers(origin), *self._preflight]
        if self._any_header:  # `*` itself does not count for requests with credentials
            if asked:
                allowed.append((b"access-control-allow-headers", asked))
            allowed.append((b"vary", b"access-control-request-headers"))
        elif self._allow_headers:
            allowed.append((b"access-control-allow-headers", self._allow_headers))
        return allowed
