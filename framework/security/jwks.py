"""The public keys of an issuer: from its JWKS endpoint, or from a file.

    | keys are asked for                      | what happens                                                           |
    |-----------------------------------------|------------------------------------------------------------------------|
    | `refresh` has passed                    | fetched in the background; when that fails, again soon, and the keys   |
    |                                         | that are known stay, however long                                      |
    | a token names a key that is not known   | fetched at once, unless that was tried within `COOLDOWN`; all tokens   |
    |                                         | that wait share one fetch                                              |
    | none is known, and none can be fetched  | calls fail with UNAVAILABLE: their tokens may be well                  |

Source: RFC 7517.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt import PyJWK

from framework.access import ALGORITHMS
from framework.errors import ConfigError, Unavailable
from framework.security.files import text_of

log = logging.getLogger("framework.security")

COOLDOWN = 10.0
"""Seconds between two fetches, whatever keys tokens name."""

TIMEOUT = 5.0
"""Seconds that a fetch may take."""

LARGEST = 1 << 20
"""Bytes that a key set may have."""

LEAST_RSA = 2048
"""Bits that an RSA key has to have. Source: RFC 7518, section 3.3."""

Key: TypeAlias = Any


class Known(NamedTuple):
    """A public key of an issuer.

    Attributes:
        algorithm: the only one that it is for; empty when that is not said.
    """

    key: Key
    algorithm: str = ""

    def fits(self, algorithm: str) -> bool:
        """Whether something signed with this algorithm can be signed with this key."""
        return kind_of(self.key) == ALGORITHMS[algorithm] and self.algorithm in ("", algorithm)


Keys: TypeAlias = Mapping[str, tuple[Known, ...]]
"""Public keys by their id, which nothing makes unique; those without one by the empty text."""

Fetch: TypeAlias = Callable[[str], Awaitable[bytes]]


class KeySource(Protocol):
    """Where the keys of an issuer come from."""

    def find(self, kid: str | None) -> tuple[Known, ...]:
        """The keys of an id; when a token names none, those without one, or the only one there is."""

    async def seek(self) -> None:
        """Look for keys that are not known yet. Raises Unavailable when nothing is known."""


def kind_of(key: Key) -> str:
    """The kind of a public key, as ALGORITHMS has it; empty for one that nothing may be signed with."""
    if isinstance(key, rsa.RSAPublicKey):
        return "RSA" if key.key_size >= LEAST_RSA else ""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return {"secp256r1": "EC P-256", "secp384r1": "EC P-384", "secp521r1": "EC P-521"}.get(key.curve.name, "")
    return "Ed25519" if isinstance(key, ed25519.Ed25519PublicKey) else ""


def parse(raw: bytes) -> dict[str, tuple[Known, ...]]:
    """The keys in a key set, without those that no token may be signed with.

    Raises:
        ValueError: it is none.
    """
    try:
        given = json.loads(raw)["keys"]
        assert isinstance(given, list)
    except (ValueError, KeyError, TypeError, AssertionError, RecursionError):
        raise ValueError("that is no key set") from None
    found: dict[str, tuple[Known, ...]] = {}
    for one in given:
        if isinstance(one, dict) and (known := _known(one)) is not None:
            kid = str(one.get("kid", ""))
            found[kid] = (*found.get(kid, ()), known)
    return found


def _known(given: Mapping[str, Any]) -> Known | None:
    """One key of a set; None for one that no token may be signed with."""
    declared = given.get("alg")
    if given.get("use", "sig") != "sig" or given.get("kty") == "oct":
        return None
    if declared is not None and not (isinstance(declared, str) and declared in ALGORITHMS):
        return None
    try:
        known = Known(PyJWK({name: value for name, value in given.items() if name != "alg"}).key, declared or "")
        return known if kind_of(known.key) and (not declared or known.fits(declared)) else None
    except Exception:  # whatever is wrong with it: the others count all the same
        return None


def public_key(path: Path) -> Key:
    """The public key in a PEM file, or that of the private key in it.

    Raises:
        ConfigError: there is none that tokens may be signed with.
    """
    raw = text_of(path).encode()
    try:
        if b"PRIVATE KEY" in raw:
            key: Any = serialization.load_pem_private_key(raw, None).public_key()
        else:
            key = serialization.load_pem_public_key(raw)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"{path} holds no PEM key, or one with a password") from None
    if not kind_of(key):
        raise ConfigError(f"{path} holds a key of a kind or size that no token may be signed with")
    return key


class OneKey:
    """The key of an issuer that has only one, whatever id tokens name."""

    def __init__(self, key: Key) -> None:
        self.key = key

    def find(self, kid: str | None) -> tuple[Known, ...]:
        return (Known(self.key),)

    async def seek(self) -> None:
        """There are no others."""


class Jwks:
    """The keys at a URL.

    Args:
        url: where they are.
        refresh: seconds between two looks.
        changed: is called when keys have come or gone.
        fetch: gets what is at a URL; given by tests.
    """

    def __init__(
        self,
        url: str,
        refresh: float = 300.0,
        changed: Callable[[], object] = lambda: None,
        fetch: Fetch | None = None,
    ) -> None:
        self.url = url
        self.keys: Keys = {}
        self._refresh = refresh
        self.changed = changed
        self._fetch = fetch or _fetch
        self._tried = -math.inf
        self._fetching: asyncio.Task[None] | None = None
        self._trouble = ""

    def find(self, kid: str | None) -> tuple[Known, ...]:
        """See KeySource."""
        if kid is None and len(self.keys) == 1:
            return next(iter(self.keys.values()))
        return self.keys.get(kid or "", ())

    async def seek(self) -> None:
        """See KeySource."""
        loop = asyncio.get_running_loop()
        if self._fetching is None and loop.time() >= self._tried + COOLDOWN:
            self._begin()
        if self._fetching is not None:
            await asyncio.shield(self._fetching)  # others wait for it too
        if not self.keys:
            raise Unavailable("who callers are cannot be checked at the moment")

    async def run(self) -> None:
        """Keep the keys fresh until cancelled."""
        while True:
            if self._fetching is None:
                self._begin()
            assert self._fetching is not None
            await asyncio.shield(self._fetching)
            await asyncio.sleep(min(COOLDOWN, self._refresh) if self._trouble else self._refresh)

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        self._tried = loop.time()
        self._fetching = loop.create_task(self._load())

    async def _load(self) -> None:
        try:
            async with asyncio.timeout(TIMEOUT):
                found = parse(await self._fetch(self.url))
            if not found:
                raise ValueError("it has no key that tokens may be signed with")
        except Exception as error:
            trouble = str(error) or type(error).__name__
            if trouble != self._trouble:
                stays = f"the {sum(map(len, self.keys.values()))} that are known stay" if self.keys else "none is known"
                log.warning("the keys at %s cannot be had, %s: %s", self.url, stays, trouble)
            self._trouble = trouble
        else:
            if self._trouble or found.keys() != self.keys.keys():
                log.info(
                    "the keys at %s are: %s", self.url, ", ".join(kid or "one without an id" for kid in sorted(found))
                )
            self._trouble = ""
            before, self.keys = self.keys, found
            if before and _told_apart(before) != _told_apart(found):
                self.changed()
        finally:
            self._fetching = None

    async def aclose(self) -> None:
        """Give up a fetch that is under way."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait([self._fetching])

    def __repr__(self) -> str:
        return f"<Jwks {self.url} with {sum(map(len, self.keys.values()))} keys>"


def _told_apart(keys: Keys) -> dict[str, set[tuple[bytes, str]]]:
    """The same for the same keys, which cannot be compared themselves."""
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return {kid: {(one.key.public_bytes(*form), one.algorithm) for one in known} for kid, known in keys.items()}


async def _fetch(url: str) -> bytes:
    import aiohttp

    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT)) as client,
        # Where keys are is said in the settings, and not by whoever answers there.
        client.get(url, allow_redirects=False) as response,
    ):
        if response.status != 200:
            raise ValueError(f"status {response.status}")
        raw = b""
        async for part in response.content.iter_chunked(1 << 16):
            raw += part
            if len(raw) > LARGEST:
                raise ValueError(f"more than {LARGEST} bytes")
        return raw
