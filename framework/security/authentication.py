"""From what a caller shows to who it is.

    | the caller shows                     | and is                                                                |
    |--------------------------------------|-----------------------------------------------------------------------|
    | what an authenticator of yours knows | whom that says                                                        |
    | `framework-identity`, from a service | for whom that service calls; only when it is signed, and for us       |
    | `authorization: Bearer ...`          | the subject of the token                                              |
    | `x-api-key`                          | whom the key was made for                                             |
    | a certificate                        | the service that it names; beside one of the others, who calls for it |
    | nothing                              | nobody: None                                                          |

The first row that applies decides, and those below it are not looked at; beside a bearer token a key is, and beside
anything a certificate. What is looked at and does not hold is refused, and so are credentials that nothing here is set
up for. Only a key beside a token is left alone then: proxies have keys of their own. Callers are not told why; the log
is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from framework.call import Call, Handler, Interceptor, Method, Reply
from framework.errors import ConfigError, RpcError, Unauthenticated
from framework.identity import Identity, Peer
from framework.interceptors.identity import NOBODY

if TYPE_CHECKING:
    from framework.security.jwt import Jwt
    from framework.security.keys import ApiKeys
    from framework.security.tokens import Tokens

log = logging.getLogger("framework.security")

AUTHORIZATION = "authorization"
API_KEY = "x-api-key"
SHOWN = frozenset((AUTHORIZATION, API_KEY))
"""Metadata that may come once at most: of two, one hop could have looked at the other one."""

LONGEST = 16384
"""Characters of a token that is looked at."""

QUIET = 1.0
"""Seconds in which the same reason of a refusal is not logged again."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a caller shows, as an authenticator is given it.

    Attributes:
        metadata: by name in lower case, headers at a gateway; of several of a name the first.
        method: what it calls; None at a gateway, when there is nothing at its path.
        peer: what its certificate says; None without one.
        address: where it calls from.
    """

    metadata: Mapping[str, str | bytes]
    method: Method[Any, Any] | None = None
    peer: Peer | None = None
    address: str = ""

    def get(self, name: str) -> str:
        """The text of a name; empty when there is none."""
        value = self.metadata.get(name, "")
        return value if isinstance(value, str) else ""

    @property
    def bearer(self) -> str:
        """The token of `authorization: Bearer ...`; empty when it says something else."""
        scheme, _, token = self.get(AUTHORIZATION).partition(" ")
        return token.strip() if scheme.lower() == "bearer" else ""

    def __repr__(self) -> str:  # what they are is nobody's business
        return f"<Credentials {', '.join(sorted(SHOWN & self.metadata.keys())) or 'none'}>"


class Authenticator(Protocol):
    """Says who a caller is."""

    async def authenticate(self, credentials: Credentials) -> Identity | None:
        """Who it is; None when nothing is shown that this knows about.

        Raises:
            RpcError: it may not go on; Unauthenticated as a rule.
        """


class Refused(Exception):
    """Something that was shown does not hold. The text is for the log: it has nothing of what was shown."""


class Verified:
    """What was found to hold, by its hash, until it expires: checking a signature costs more than a look.

    Only what holds is kept, so nobody without it can push others out.

    Args:
        most: how many.
    """

    def __init__(self, most: int = 4096) -> None:
        self._kept: dict[bytes, tuple[Identity, str, float]] = {}
        self._most = most

    def get(self, token: str, now: float) -> tuple[Identity, str, float] | None:
        """Whom it stands for, for which audience and until when; None when it was not checked before."""
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        found = self._kept.get(digest)
        if found is not None and now >= found[2]:
            del self._kept[digest]
            return None
        return found

    def put(self, token: str, identity: Identity, audience: str, until: float) -> None:
        """It holds until then."""
        if len(self._kept) >= self._most:
            del self._kept[next(iter(self._kept))]
        self._kept[hashlib.sha256(token.encode()).digest()] = identity, audience, until

    def clear(self) -> None:
        """Check everything again: keys have changed."""
        self._kept.clear()

    def __len__(self) -> int:
        return len(self._kept)


def spiffe_services(template: str) -> Callable[[Peer | None], str]:
    """Which service a certificate is of; empty for none.

    Args:
        template: how SPIFFE ids name one, `spiffe://shop/{service}`; empty for not at all.
    """
    before, _, after = template.partition("{service}")
    pattern = re.compile(f"{re.escape(before)}([A-Za-z0-9][A-Za-z0-9_-]*){re.escape(after)}")

    def service_of(peer: Peer | None) -> str:
        if peer is None or not template:
            return ""
        match = pattern.fullmatch(peer.spiffe)
        return match[1] if match else ""

    return service_of


class Authentication:
    """Finds out who callers are.

    Args:
        own: authenticators of the user's own, asked first.
        jwt, keys, tokens: the framework's, as far as the settings have them.
        mtls: how SPIFFE ids name a service.
        peer_of: what the certificate of a call's connection says.
        now: seconds since the epoch.
    """

    def __init__(
        self,
        own: Iterable[Authenticator] = (),
        *,
        jwt: Jwt | None = None,
        keys: ApiKeys | None = None,
        tokens: Tokens | None = None,
        mtls: str = "",
        peer_of: Callable[[Call], Peer | None] = lambda call: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.own = tuple(own)
        self.jwt = jwt
        self.keys = keys
        self.tokens = tokens
        self._certificates = bool(mtls)
        self._service_of = spiffe_services(mtls)
        self._peer_of = peer_of
        self._now = now
        self._told: dict[str, float] = {}

    def interceptor(self, name: str = "") -> Interceptor:
        """Around every handler of a server.

        Args:
            name: of the service; tokens of other services are for it, or for what it serves.
        """

        def interceptor(method: Method[object, object], next: Handler) -> Handler:
            audiences = (name, method.service)
            known = self._known
            quick = not self.own

            async def identified(call: Any) -> Reply:
                call.identity = await self._identify(call, audiences)
                return await next(call)

            def handler(call: Any) -> Awaitable[Reply]:
                identity = call.identity
                if identity is None:
                    if not quick:
                        return identified(call)
                    identity = known(call, audiences)
                    if identity is None:
                        return identified(call)
                    call.identity = identity
                if identity is NOBODY:  # whoever received the call has found nobody, or there is nothing to look at
                    call.identity = None
                return next(call)

            return handler

        return interceptor

    def _known(self, call: Any, audiences: tuple[str, ...]) -> Identity | None:
        """Who shows what was checked before, NOBODY for who shows nothing; None when it has to be looked at closer."""
        service = self._service_of(self._peer_of(call)) if self._certificates else ""
        token: str | None = call.told
        authorization = None
        for key, value in call.metadata:
            if key in SHOWN:
                if authorization is not None or key != AUTHORIZATION:
                    return None
                authorization = value
        if token is not None:
            if self.tokens is None or authorization is not None:
                return None
            kept = self.tokens.verified.get(token, self._now())
            if kept is None or kept[1] not in audiences or (service and kept[0].service != service):
                return None
            return kept[0]
        if authorization is None:
            return None if service else NOBODY
        if service or self.jwt is None or authorization[:7] != "Bearer ":
            return None
        kept = self.jwt.verified.get(authorization[7:], self._now())
        return None if kept is None else kept[0]

    async def _identify(self, call: Any, audiences: tuple[str, ...]) -> Identity | None:
        shown: dict[str, str | bytes] = {}
        twice = False
        for key, value in call.metadata:
            twice = twice or (key in shown and key in SHOWN)
            shown.setdefault(key, value)
        peer = self._peer_of(call) if self._certificates or self.own else None
        credentials = Credentials(shown, call.method, peer, call.peer)
        if twice:
            raise self.refusal("the same kind of credentials comes twice", credentials)
        return await self.identify(credentials, call.told, audiences)

    async def identify(
        self, credentials: Credentials, told: str | None = None, audiences: tuple[str, ...] = ()
    ) -> Identity | None:
        """Who shows this; None for nobody.

        Args:
            told: what a service tells of whom it calls for; a gateway lets nobody tell.
            audiences: for whom that has to be said.

        Raises:
            RpcError: something does not hold.
        """
        try:
            service = self._service_of(credentials.peer)
            identity = await self._identity(credentials, told, audiences, service)
        except Refused as error:
            raise self.refusal(str(error), credentials) from None
        if service and identity is None:
            peer = credentials.peer
            return Identity(service, "mtls", "" if peer is None else str(peer), service=service)
        if service and identity is not None and identity.service != service:
            return dataclasses.replace(identity, service=service)
        return identity

    async def _identity(
        self, credentials: Credentials, told: str | None, audiences: tuple[str, ...], service: str
    ) -> Identity | None:
        identity: Identity | None = None
        for one in self.own:
            if (identity := await one.authenticate(credentials)) is not None:
                return identity
        if told is not None and self.tokens is not None:
            identity = self.tokens.verify(told, audiences)
            if service and identity.service != service:
                raise Refused(f"a token of {identity.service} comes from {service}")
            return identity
        if credentials.get(AUTHORIZATION):
            token = credentials.bearer
            if not token or self.jwt is None:
                raise Refused("credentials of a kind that is not accepted here")
            identity = await self.jwt.verify(token)
        key = credentials.get(API_KEY)
        if key and self.keys is not None:
            found = self.keys.verify(key)
            return found if identity is None else identity
        if key and identity is None:
            raise Refused("API keys are not accepted here")
        return identity

    def refusal(self, reason: str, credentials: Credentials) -> RpcError:
        """What the caller is told; the log gets the reason."""
        now = self._now()
        if now >= self._told.get(reason, 0.0) + QUIET:
            if len(self._told) > 1000:
                self._told.clear()
            self._told[reason] = now
            what = credentials.method.full_name if credentials.method is not None else "a request"
            log.warning("%s from %s is refused: %s", what, credentials.address or "somebody", reason)
        return unauthenticated("the credentials are not valid", self.challenge('error="invalid_token"'))

    def missing(self) -> RpcError:
        """What somebody is told who shows nothing and would have to."""
        return unauthenticated("credentials are needed", self.challenge())

    def challenge(self, more: str = "") -> str:
        """How to prove who one is, for the header WWW-Authenticate."""
        if self.jwt is None and self.keys is not None:
            return "ApiKey"
        return f"Bearer {more}".rstrip()

    def __repr__(self) -> str:
        kinds = [name for name in ("jwt", "keys", "tokens") if getattr(self, name) is not None]
        return f"<Authentication by {', '.join([*map(repr, self.own), *kinds, *(['mtls'] * self._certificates)])}>"


def unauthenticated(message: str, challenge: str) -> Unauthenticated:
    """The error of a caller who is not known."""
    return Unauthenticated(message, metadata=(("www-authenticate", challenge),))


def load(names: Iterable[str]) -> list[Authenticator]:
    """The authenticators that settings name, `module:object`: an object, or what makes one.

    Raises:
        ConfigError: there is none.
    """
    found: list[Authenticator] = []
    for name in names:
        module, _, attribute = name.partition(":")
        try:
            one: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not (module == error.name or module.startswith(error.name + ".")):
                raise  # the module is there, and one that it imports is not
            raise ConfigError(f"auth.authenticators: there is no module {module}") from None
        try:
            for part in attribute.split("."):
                one = getattr(one, part)
        except AttributeError:
            raise ConfigError(f"auth.authenticators: {module} has no {attribute}") from None
        found.append(as_authenticator(one() if isinstance(one, type) else one, f"auth.authenticators: {name}"))
    return found


def as_authenticator(one: Any, where: str) -> Authenticator:
    """Raise ConfigError unless something is an authenticator."""
    if isinstance(one, type) or not callable(getattr(one, "authenticate", None)):
        raise ConfigError(f"{where} is no authenticator: it lacks `async def authenticate(self, credentials)`")
    authenticator: Authenticator = one
    return authenticator
