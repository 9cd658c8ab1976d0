"""Who may call, and how often: asked before a request is read, whatever protocol it speaks."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from google.rpc.error_details_pb2 import RetryInfo

from framework.call import Method
from framework.errors import Code, ConfigError, Internal, ResourceExhausted, RpcError
from framework.http.asgi import IDENTITY, PEER, Scope
from framework.http.rates import MOST, Buckets, Rate, Rates
from framework.identity import Identity
from framework.interceptors.identity import NOBODY
from framework.security.access import misnamed
from framework.security.authentication import SHOWN, Credentials
from framework.security.guard import Guard
from framework.web import AUTHENTICATED, WebSettings

log = logging.getLogger("framework.http")

CLIENT = "framework.client"
"""Where a scope has the address of the client, as far as it is believed."""

_HIDDEN = frozenset(name.encode() for name in SHOWN)
_WRONG = frozenset((Code.UNAUTHENTICATED, Code.PERMISSION_DENIED, Code.INVALID_ARGUMENT))

MOST_NAMES = 10
"""Callers of `rate_key` that may call as often as they may from one address, or under one identity: anybody can make up
names, and only that would limit nothing."""

LONGEST = 200
"""Letters of such a name that are kept as they are."""


class Limit(NamedTuple):
    """A limit that holds for a request.

    Attributes:
        name: of what it limits: a method, a service, or empty for everything.
        rate: of each caller.
        together: of all that one caller calls itself.
    """

    name: str
    rate: Rate
    together: Rate

    @classmethod
    def of(cls, name: str, rate: Rate) -> Limit:
        """The limit of a name in the settings."""
        return cls(name, rate, Rate(rate.per_second * MOST_NAMES, rate.burst * MOST_NAMES))


class Admission:
    """The guard of an HttpApp.

    Args:
        settings: with the limits.
        security: says who a caller is, and whether it may call.
        rates: where it is kept how often somebody called.
        hide: what callers show is not passed on.

    Raises:
        ConfigError: settings that cannot be used.
    """

    def __init__(
        self, settings: WebSettings, security: Guard | None = None, rates: Rates | None = None, *, hide: bool = False
    ) -> None:
        if settings.docs == AUTHENTICATED and security is None:
            raise ConfigError(f'docs = "{AUTHENTICATED}" takes a way to know who asks: set up [auth]')
        self._security = security
        self._rates = rates or Buckets()
        everything = Rate.of(settings.rate_limit)
        own = {name.removesuffix("/*"): Rate.of(limit) for name, limit in settings.rate_limits.items()}
        self._all = () if everything is None else (Limit.of("", everything),)
        self._own = {name: Limit.of(name, rate) for name, rate in own.items() if rate is not None}
        self._limits: dict[str, tuple[Limit, ...]] = {}
        self._key = settings.rate_key.lower().encode()
        self._hide = hide
        self._suspects = Suspects()
        self.needed = security is not None or bool(self._all or self._own)

    async def __call__(self, scope: Scope, method: Method[Any, Any] | None) -> None:
        """Let a request pass.

        Raises:
            RpcError: it may not; Unauthenticated, PermissionDenied or ResourceExhausted as a rule.
        """
        limits = self._all if method is None or not self._own else self._limits_of(method)
        identity = NOBODY
        if self._security is not None:
            if limits:
                identity = await self._identify_seldom(self._security, scope, method, limits)
            else:
                identity = await self._identify(self._security, scope, method)
            scope[IDENTITY] = identity
        if limits:
            await self._count(scope, identity, limits)
        if self._security is not None and method is not None:
            self._security.permit(method, identity, told=self._hide)
        if self._hide:
            scope["headers"] = [pair for pair in scope["headers"] if pair[0] not in _HIDDEN]

    async def known(self, scope: Scope, method: Method[Any, Any] | None) -> None:
        """Let a request pass of somebody who is known. Raises RpcError."""
        await self(scope, method)
        if self._security is not None and not scope[IDENTITY].subject:
            raise self._security.authentication.missing()

    def doubts(self, methods: Iterable[Method[Any, Any]]) -> Iterator[str]:
        """What the settings say of methods that the services of `methods` do not have, a line for each."""
        methods = tuple(methods)
        services = {method.service for method in methods}
        for wrong in misnamed(self._own, methods):
            yield f"there is a rate limit for {wrong}"
        for name in self._own:
            service, _, last = name.rpartition(".")
            if "/" not in name and name not in services and service in services:
                yield f"there is a rate limit for {name}, which is no service. Did you mean {service}/{last}?"
        if self._security is not None:
            for wrong in misnamed(self._security.access.patterns, methods):
                yield f"there is a rule for {wrong}"

    def _limits_of(self, method: Method[Any, Any]) -> tuple[Limit, ...]:
        found = self._limits.get(method.full_name)
        if found is None:
            own = (self._own[name] for name in (method.full_name, method.service) if name in self._own)
            found = self._limits[method.full_name] = (*self._all, *own)
        return found

    async def _identify_seldom(
        self, security: Guard, scope: Scope, method: Method[Any, Any] | None, limits: tuple[Limit, ...]
    ) -> Identity:
        """Who calls. What does not hold counts for the address; when it was too often, so does what does, until then.

        Looking first at what is shown would tell whoever guesses when it was right.
        """
        address = client_of(scope)
        suspect = self._suspects.knows(address, asyncio.get_running_loop().time())
        if suspect:
            await self._count_wrong(address, limits)
        try:
            return await self._identify(security, scope, method)
        except RpcError as error:
            if error.code in _WRONG:
                if not suspect:
                    await self._count_wrong(address, limits)
                else:
                    self._suspect(address, limits)
            raise

    async def _count_wrong(self, address: str, limits: tuple[Limit, ...]) -> None:
        for limit in limits:
            try:
                await self._take(f"wrong {address}\n{limit.name}", limit.rate)
            except ResourceExhausted:
                self._suspect(address, limits)
                raise

    def _suspect(self, address: str, limits: tuple[Limit, ...]) -> None:
        longest = max(limit.rate.burst / limit.rate.per_second for limit in limits)
        self._suspects.add(address, asyncio.get_running_loop().time() + longest)

    async def _identify(self, security: Guard, scope: Scope, method: Method[Any, Any] | None) -> Identity:
        shown: dict[str, str | bytes] = {}
        twice = False
        for key, value in scope["headers"]:
            name = key.decode("latin-1")
            twice = twice or (name in shown and name in SHOWN)
            shown.setdefault(name, value.decode("latin-1"))
        try:
            return await security.identify(Credentials(shown, method, scope.get(PEER), client_of(scope)), twice=twice)
        except RpcError:
            raise
        except Exception as error:
            error_id = secrets.token_hex(4)
            log.error("authentication failed, error %s", error_id, exc_info=error)
            raise Internal(f"internal error {error_id}; its cause stands in the log of the server") from error

    async def _count(self, scope: Scope, identity: Identity, limits: tuple[Limit, ...]) -> None:
        name = "" if identity is NOBODY else str(identity)
        caller = f"identity {identity.kind} {name}" if name else f"address {client_of(scope)}"
        key = self._key and next((value for name, value in scope["headers"] if name == self._key), None)
        if not key:
            for limit in limits:
                await self._take(f"{caller}\n{limit.name}", limit.rate)
            return
        if len(key) > LONGEST:
            key = hashlib.sha256(key).hexdigest().encode()
        for limit in limits:  # whoever calls too often under one name does not use up what the others have
            await self._take(f"key {key.decode('latin-1')}\n{limit.name}", limit.rate)
            await self._take(f"all of {caller}\n{limit.name}", limit.together)

    async def _take(self, key: str, rate: Rate) -> None:
        wait = await self._rates.take(key, rate, asyncio.get_running_loop().time())
        if wait > 0:
            info = RetryInfo()
            info.retry_delay.FromNanoseconds(round(wait * 1e9))
            raise ResourceExhausted(
                f"too many requests: the limit is {rate.per_second:g} a second; try again in {wait:.1f} s",
                details=[info],
            )


class Suspects:
    """Addresses that have shown too often what does not hold, each until when it is one. Pure: it is told the time.

    Args:
        most: how many; then the one that has done nothing wrong for longest is forgotten.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._until: OrderedDict[str, float] = OrderedDict()

    def add(self, address: str, until: float) -> None:
        """It is one, until then."""
        self._until[address] = max(until, self._until.get(address, until))
        self._until.move_to_end(address)
        if len(self._until) > self._most:
            self._until.popitem(last=False)

    def knows(self, address: str, now: float) -> bool:
        """Whether this is one of them."""
        until = self._until.get(address) if self._until else None
        if until is None or now < until:
            return until is not None
        del self._until[address]
        return False

    def __len__(self) -> int:
        return len(self._until)

    def __repr__(self) -> str:
        return f"<Suspects: {len(self)}>"


def client_of(scope: Scope) -> str:
    """The address of the client, empty when there is none."""
    found: str | None = scope.get(CLIENT)
    if found is None:
        client = scope.get("client")
        found = client[0] if client else ""
    return found
