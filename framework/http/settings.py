"""How HTTP is served, beyond what the rules of the methods say."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass, field, fields

from framework.errors import ConfigError
from framework.http.binding import Unknown
from framework.http.json import JsonOptions
from framework.web import CorsSettings, WebSettings

HEALTHZ, READYZ = "/healthz", "/readyz"
DOCS, OPENAPI_JSON, OPENAPI_YAML = "/docs", "/openapi.json", "/openapi.yaml"
_HEADER = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """Settings of the application.

    Attributes:
        max_message: bytes that a message or a whole body may have, after it is unpacked.
        body_timeout: seconds that the rest of a body may take to arrive; of an upload, which is a stream of requests
            with one reply, each next part.
        max_timeout: seconds that a caller may ask for at most; longer ones are cut.
        unknown_query: `reject` or `ignore` query parameters that are no fields.
        json: how messages are written as JSON.
        headers: request headers that become metadata, beside those of `header_prefixes`; lower case.
        header_prefixes: beginnings of headers that become metadata under their own names.
        strip_prefix: the beginning of headers that become metadata without it.
        reply_headers: metadata of replies that become headers under their own names; others get a prefix.
        cors: which pages of other origins may call.
        compress_above: bytes from which on replies are compressed for clients that accept it.
        heartbeat: seconds of silence after which a comment is sent on an event stream.
        retry: seconds after which a client of an event stream is to connect again; None says nothing.
        pages: paths at which somebody before the application answers GET.
    """

    max_message: int = 4 << 20
    body_timeout: float = 30.0
    max_timeout: float = math.inf
    unknown_query: Unknown = "reject"
    json: JsonOptions = field(default_factory=JsonOptions)
    headers: tuple[str, ...] = (
        *("authorization", "accept-language", "baggage", "idempotency-key", "if-match", "if-none-match"),
        *("last-event-id", "traceparent", "tracestate", "user-agent"),
    )
    header_prefixes: tuple[str, ...] = ("x-",)
    strip_prefix: str = "grpc-metadata-"
    reply_headers: tuple[str, ...] = (
        *("cache-control", "content-disposition", "content-language", "deprecation", "etag", "last-modified", "link"),
        *("location", "retry-after", "set-cookie", "sunset", "www-authenticate", "x-request-id"),
    )
    cors: CorsSettings = field(default_factory=CorsSettings)
    compress_above: int = 1024
    heartbeat: float = 15.0
    retry: float | None = 3.0
    pages: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_message", "body_timeout", "max_timeout", "heartbeat"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"HttpSettings.{name} is {getattr(self, name)!r}; it must be more than 0")
        if self.unknown_query not in ("reject", "ignore"):
            raise ConfigError(f"HttpSettings.unknown_query is {self.unknown_query!r}; choose one of reject, ignore")
        for name in (*self.headers, *self.header_prefixes, self.strip_prefix, *self.reply_headers):
            if not _HEADER.fullmatch(name):
                raise ConfigError(f"HttpSettings: {name!r} is no header; they are written in lower case")

    @classmethod
    def of(cls, web: WebSettings) -> HttpSettings:
        """What a settings file says; its `cors` is for whoever stands before the application."""
        return cls(
            max_message=web.limits.body,
            body_timeout=web.limits.body_timeout,
            max_timeout=web.max_timeout,
            unknown_query=web.unknown_query,
            json=JsonOptions(**{f.name: getattr(web.json, f.name) for f in fields(JsonOptions)}),
            compress_above=sys.maxsize if web.compress_above is None else web.compress_above,
            heartbeat=web.heartbeat,
            pages=(HEALTHZ, READYZ, *((DOCS, OPENAPI_JSON, OPENAPI_YAML) if web.docs else ())),
        )
