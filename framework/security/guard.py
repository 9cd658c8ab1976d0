"""What a process has of all this, as its settings say: the composition, and what runs beside it.

async with guarded("orders", settings, authenticators) as guard:
    Pipeline((*guard.interceptors, ...))
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from framework.access import AccessSettings, Rules
from framework.call import Call, Interceptor, Method
from framework.config import Settings
from framework.errors import ConfigError, RpcError
from framework.identity import Identity, Peer
from framework.interceptors.identity import NOBODY, Signer, signer
from framework.reload import watch
from framework.security import access as policies
from framework.security.access import Access
from framework.security.authentication import Authentication, Authenticator, Credentials, as_authenticator, load
from framework.security.files import Followed, Looked, follow

log = logging.getLogger("framework.security")


class Guard:
    """Who callers are, and whether they may.

    Attributes:
        authentication, access: as their names say.
        signer: how others are told for whom this process calls; None when they are not.
        interceptors: around every handler of a server, the first outermost.
    """

    def __init__(self, name: str, authentication: Authentication, access: Access, signer: Signer | None) -> None:
        self.authentication = authentication
        self.access = access
        self.signer = signer
        self.interceptors: tuple[Interceptor, ...] = (authentication.interceptor(name), access.interceptor)
        self._name = name

    async def identify(self, credentials: Credentials, *, twice: bool = False) -> Identity:
        """Who a caller over HTTP is; NOBODY for one who shows nothing.

        Args:
            twice: credentials of one kind have come twice.

        Raises:
            RpcError: what it shows does not hold.
        """
        if twice:
            raise self.authentication.refusal("the same kind of credentials comes twice", credentials)
        return await self.authentication.identify(credentials) or NOBODY

    def permit(self, method: Method[Any, Any], identity: Identity, *, told: bool = False) -> None:
        """Let a caller over HTTP call a method.

        Args:
            told: what is called is told by us who it is.

        Raises:
            RpcError: it may not.
        """
        if not self.access.held(method).public:
            known = None if identity is NOBODY else identity
            self.access.check(method, dataclasses.replace(identity, service=self._name) if told else known)

    def __repr__(self) -> str:
        return f"<Guard of {self._name}: {self.authentication!r}, {self.access!r}>"


@asynccontextmanager
async def guarded(
    name: str, settings: Settings, authenticators: Iterable[Authenticator] = ()
) -> AsyncIterator[Guard | None]:
    """What the settings say of callers, while the block runs; None when they say nothing.

    What connects to others in the block tells them for whom it calls.

    Args:
        name: of the service.
        authenticators: of the user's own, asked before those of the settings.

    Raises:
        ConfigError: the settings cannot be used; the message says what to write.
    """
    given = tuple(as_authenticator(one, f"authenticators of {name}: {one!r}") for one in authenticators)
    auth, access = settings.auth, settings.access
    if not auth.on and not given:
        if access.on:
            raise ConfigError(
                "[access] says who may call, and nothing says how callers are known: set up [auth], or remove [access]"
            )
        yield None
        return
    auth.verify()
    if auth.mtls and not any(one.ca for one in (settings.server.tls, settings.server.http.tls, settings.gateway.tls)):
        raise ConfigError(
            "auth.mtls goes by the certificates of callers, and nothing asks for one: name the `ca` that signs them in"
            " [server.tls], [server.http.tls] or [gateway.tls], or remove it"
        )
    try:
        built = _built(name, settings, given)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("jwt", "cryptography"):
            raise
        raise ConfigError(
            f"{error.name} is not installed; [auth] takes: pip install framework-grpc[security]"
        ) from None
    guard, rules, files, running = built
    tasks = [asyncio.create_task(one) for one in (follow(files), *(one.run() for one in running))]
    forget = watch(settings, lambda new: rules.take_over(new.access)) if _from_file(settings) else lambda: None
    before = signer.get()
    signer.set(guard.signer)
    try:
        yield guard
    finally:
        signer.set(before)
        forget()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in running:
            await one.aclose()


def _from_file(settings: Settings) -> bool:
    """The rules are those of a file, and not changed by code since."""
    return settings.source is not None and settings.access == settings.source.read.access


class _Rules:
    """Where the rules come from: the settings, and the file that these name, which may become another one.

    Args:
        settings: as the process starts with them.
        missing: see `Access`.
    """

    def __init__(self, settings: AccessSettings, missing: Callable[[], RpcError]) -> None:
        self._start = Path.cwd()
        self._name = settings.file
        self._file = self._opened(Path(settings.file)) if settings.file else None
        self.access = Access(settings, None if self._file is None else self._file.value, missing=missing)

    def _opened(self, path: Path) -> Followed[Mapping[str, Rules]]:
        return Followed(path, policies.read, lambda found: self.access.apply(more=found))

    def look(self) -> None:
        """Take over what has changed in the file."""
        if self._file is not None:
            self._file.look()

    def take_over(self, settings: AccessSettings) -> None:
        """Go by other settings."""
        try:
            file = self._file
            if settings.file != self._name:
                file = self._opened(self._start / settings.file) if settings.file else None
            self.access.apply(settings, {} if file is None else file.value)
        except ConfigError as error:
            log.warning("%s; the rules stay as they were", error)
            return
        self._name, self._file = settings.file, file


def _built(
    name: str, settings: Settings, given: tuple[Authenticator, ...]
) -> tuple[Guard, _Rules, list[Looked], list[Any]]:
    auth = settings.auth
    files: list[Looked] = []
    running: list[Any] = []
    jwt: Any = None
    keys: Any = None
    tokens: Any = None
    if auth.jwt.on:
        from framework.security.jwks import Jwks, OneKey, public_key
        from framework.security.jwt import Jwt

        if auth.jwt.jwks:
            source: Any = Jwks(auth.jwt.jwks, auth.jwt.refresh)
            running.append(source)
            jwt = Jwt(auth.jwt, source)
            source.changed = jwt.verified.clear
        else:
            source = OneKey(None)
            jwt = Jwt(auth.jwt, source)

            def another(key: Any) -> None:
                source.key = key
                jwt.verified.clear()

            file = Followed(Path(auth.jwt.key), public_key, another)
            source.key = file.value
            files.append(file)
    if auth.keys:
        from framework.security import keys as api_keys

        keys = api_keys.ApiKeys({})

        def others(entries: Any) -> None:
            keys.entries = entries

        entries = Followed(Path(auth.keys), api_keys.read, others)
        keys.entries = entries.value
        files.append(entries)
    if auth.internal.on:
        from framework.security.tokens import Tokens, private_key, trusted_keys

        own = private_key(Path(auth.internal.key)) if auth.internal.key else None
        tokens = Tokens(name, auth.internal, own)
        if auth.internal.trusted:

            def trust(found: Any) -> None:
                tokens.trusted = found
                tokens.verified.clear()

            trusted = Followed(Path(auth.internal.trusted), trusted_keys, trust)
            tokens.trusted = trusted.value
            files.append(trusted)
    authentication = Authentication(
        (*given, *load(auth.authenticators)), jwt=jwt, keys=keys, tokens=tokens, mtls=auth.mtls, peer_of=_peer_of
    )
    rules = _Rules(settings.access, authentication.missing)
    files.append(rules)
    signs = tokens if tokens is not None and tokens.signs else None
    return Guard(name, authentication, rules.access, signs), rules, files, running


def _peer_of(call: Call) -> Peer | None:
    ask = getattr(call.wire, "peer_identity", None)  # not every wire has certificates
    found: Peer | None = None if ask is None else ask()
    return found


def warn_of_rules(name: str, methods: Iterable[Method[Any, Any]]) -> None:
    """Say that protos have rules which nobody goes by."""
    if declared := [method.name for method in methods if method.access]:
        log.info("%s has rules for who may call %d methods; without [auth] everybody may", name, len(declared))
