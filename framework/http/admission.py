"""Who may call, and how often: asked before a request is read, whatever protocol it speaks."""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import Any

from google.rpc.error_details_pb2 import RetryInfo

from framework.call import Method
from framework.errors import ConfigError, Internal, ResourceExhausted, RpcError
from framework.http.asgi import IDENTITY, PEER, Scope
from framework.http.rates import Buckets, Rate, Rates
from framework.identity import Identity
from framework.security.authentication import SHOWN, Credentials
from framework.security.guard import Guard
from framework.web import AUTHENTICATED, WebSettings

log = logging.getLogger("framework.http")

CLIENT = "framework.client"
"""Where a scope has the address of the client, as far as it is believed."""

_HIDDEN = frozenset(name.encode() for name in SHOWN)


class Admission:
    """The guard of an HttpApp.

    Args:
        settings: with the limits.
        security: says who a caller is, and whether it may call.
        rates: where it is kept how often somebody called.
        hide: what callers show is not passed on.
    """

    def __init__(
        self, settings: WebSettings, security: Guard | None = None, rates: Rates | None = None, *, hide: bool = False
    ) -> None:
        if settings.docs == AUTHENTICATED and security is None:
            raise ConfigError(f'docs = "{AUTHENTICATED}" takes a way to know who asks: set up [auth]')
        self._security = security
        self._rates = rates or Buckets()
        self._all = Rate.of(settings.rate_limit)
        self._own = {name: Rate.of(limit) for name, limit in settings.rate_limits.items()}
        self._key = settings.rate_key.lower()
        self._hide = hide
        self.needed = security is not None or self._all is not None or any(self._own.values())

    async def __call__(self, scope: Scope, method: Method[Any, Any] | None) -> None:
        """Let a request pass.

        Raises:
            RpcError: it may not; Unauthenticated, PermissionDenied or ResourceExhausted as a rule.
        """
        name = ""
        if self._security is not None:
            identity = await self._identify(self._security, scope, method)
            scope[IDENTITY] = identity
            name = f"{identity.kind} {identity}" if str(identity) else ""
        if self._all is not None:
            await self._take(f"{self._caller(scope, name)}\n", self._all)
        if self._own and method is not None:
            for limited in (method.full_name, method.service):
                rate = self._own.get(limited)
                if rate is not None:
                    await self._take(f"{self._caller(scope, name)}\n{limited}", rate)
        if self._hide:
            scope["headers"] = [pair for pair in scope["headers"] if pair[0] not in _HIDDEN]

    async def known(self, scope: Scope, method: Method[Any, Any] | None) -> None:
        """Let a request pass of somebody who is known. Raises RpcError."""
        await self(scope, method)
        if self._security is not None and not scope[IDENTITY].subject:
            raise self._security.authentication.missing()

    async def _identify(self, security: Guard, scope: Scope, method: Method[Any, Any] | None) -> Identity:
        shown: dict[str, str | bytes] = {}
        twice = False
        for key, value in scope["headers"]:
            name = key.decode("latin-1")
            twice = twice or (name in shown and name in SHOWN)
            shown.setdefault(name, value.decode("latin-1"))
        try:
            return await security.admit(
                Credentials(shown, method, scope.get(PEER), client_of(scope)), twice=twice, told=self._hide
            )
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
