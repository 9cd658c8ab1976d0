"""Who may call, and how often: asked before a request is read, whatever protocol it speaks."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

from google.rpc.error_details_pb2 import RetryInfo

from framework.call import Method
from framework.errors import ConfigError, Internal, ResourceExhausted, RpcError
from framework.http.exchange import PEER, Scope
from framework.http.rates import Buckets, Rate, Rates
from framework.identity import Peer
from framework.web import AUTHENTICATED, WebSettings

log = logging.getLogger("framework.http")

CLIENT = "framework.client"
"""Where a scope has the address of the client, as far as it is believed."""

IDENTITY = "framework.identity"
"""Where a scope has who the caller is."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """The head of a request, as an `Authenticate` function is given it.

    Attributes:
        http: the HTTP method; GET of a WebSocket too.
        path: as it was sent, percent-encoded.
        query: as it was sent.
        headers: by name in lower case; of several of a name the last.
        client: the address of the client.
        method: what it calls; None when there is nothing at its path.
        peer: who is at the other end, by the certificate shown; None for who has shown none.
    """

    http: str
    path: str
    query: str
    headers: Mapping[str, str]
    client: str
    method: Method[Any, Any] | None
    peer: Peer | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the caller is.

    Attributes:
        name: what rate limits go by.
        headers: what services are told, in place of what the caller said under the same names: `{"x-user": "ada"}`.
    """

    name: str
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


Authenticate: TypeAlias = Callable[[HttpRequest], Awaitable[Identity | None]]
"""Says who the caller is, None for somebody who need not say. Raises Unauthenticated or PermissionDenied."""


class Admission:
    """The guard of an HttpApp.

    Args:
        settings: with the limits.
        authenticate: says who the caller is.
        rates: where it is kept how often somebody called.
    """

    def __init__(
        self, settings: WebSettings, authenticate: Authenticate | None = None, rates: Rates | None = None
    ) -> None:
        if settings.docs == AUTHENTICATED and authenticate is None:
            raise ConfigError(f'docs = "{AUTHENTICATED}" takes a hook that says who may see them: authenticate=...')
        self._authenticate = authenticate
        self._rates = rates or Buckets()
        self._all = Rate.of(settings.rate_limit)
        self._own = {name: Rate.of(limit) for name, limit in settings.rate_limits.items()}
        self._key = settings.rate_key.lower()
        self.needed = authenticate is not None or self._all is not None or any(self._own.values())

    async def __call__(self, scope: Scope, method: Method[Any, Any] | None) -> None:
        """Let a request pass.

        Raises:
            RpcError: it may not; Unauthenticated, PermissionDenied or ResourceExhausted as a rule.
        """
        name = ""
        if self._authenticate is not None:
            identity = await self._identify(self._authenticate, request_of(scope, method))
            if identity is not None:
                scope[IDENTITY] = identity
                name = identity.name
                if identity.headers:
                    _tell(scope, identity.headers)
        if self._all is not None:
            await self._take(f"{self._caller(scope, name)}\n", self._all)
        if self._own and method is not None:
            for limited in (method.full_name, method.service):
                rate = self._own.get(limited)
                if rate is not None:
                    await self._take(f"{self._caller(scope, name)}\n{limited}", rate)

    async def _identify(self, authenticate: Authenticate, request: HttpRequest) -> Identity | None:
        try:
            return await authenticate(request)
        except RpcError:
            raise
        except Exception as error:
            error_id = secrets.token_hex(4)
            log.error("authentication failed, error %s", error_id, exc_info=error)
            raise Internal(f"internal error {error_id}; its cause stands in the log of the server") from error

    def _caller(self, scope: Scope, identity: str) -> str:
        if self._key:
            raw = self._key.encode()
            for key, value in scope["headers"]:
                if key == raw:
                    return f"key {value.decode('latin-1')}"
        return f"identity {identity}" if identity else f"address {client_of(scope)}"

    async def _take(self, key: str, rate: Rate) -> None:
        wait = await self._rates.take(key, rate, asyncio.get_running_loop().time())
        if wait > 0:
            info = RetryInfo()
            info.retry_delay.FromNanoseconds(round(wait * 1e9))
            raise ResourceExhausted(
                f"too many requests: {rate.per_second:g} a second are allowed; try again in {wait:.1f} s",
                details=[info],
            )


def client_of(scope: Scope) -> str:
    """The address of the client, empty when there is none."""
    found: str | None = scope.get(CLIENT)
    if found is None:
        client = scope.get("client")
        found = client[0] if client else ""
    return found


def request_of(scope: Scope, method: Method[Any, Any] | None) -> HttpRequest:
    """The head of a request."""
    raw: bytes | None = scope.get("raw_path")
    return HttpRequest(
        scope.get("method", "GET"),
        scope["path"] if raw is None else raw.decode("latin-1"),
        scope["query_string"].decode("latin-1"),
        {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]},
        client_of(scope),
        method,
        scope.get(PEER),
    )


def _tell(scope: Scope, headers: Mapping[str, str]) -> None:
    told = {name.lower().encode("latin-1"): value.encode("latin-1", "replace") for name, value in headers.items()}
    scope["headers"] = [pair for pair in scope["headers"] if pair[0] not in told] + list(told.items())
