"""How services tell each other for whom they call: tokens that are good for a minute, and for one service.

A token says who the caller is, how that was proved, which service calls (`iss`) and which is called (`aud`). It is
signed with a secret that all services share, or with a key of the service's own: then it counts only as a word of that
service. One is made for each caller and each service that is called, and used for half its life.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from jwt import PyJWT

from framework.access import InternalSettings
from framework.errors import ConfigError
from framework.identity import Identity
from framework.security.authentication import Refused, Verified
from framework.security.files import text_of
from framework.security.jwks import Key, public_key
from framework.security.jwt import INTERNAL, Signed, checked, lifetime, parse, words

LEEWAY = 5.0
"""Seconds by which the clocks of two services may differ."""

MOST_KEPT = 4096
"""Tokens that are kept to be used again."""

LONGEST_LIFE = 3600.0
"""Seconds that a token is good for at most, however long the call may take that it goes with."""

_coder = PyJWT()


class Tokens:
    """Makes and checks the tokens of services.

    Args:
        name: of this service.
        settings: complete; see `InternalSettings.verify`.
        key: that this service signs with; None when there is a secret, or it tells nobody anything.
        trusted: keys of the services that are believed, by their names.
        now: seconds since the epoch.

    Attributes:
        verified: tokens that were checked.
        trusted: may be replaced.
    """

    def __init__(
        self,
        name: str,
        settings: InternalSettings,
        key: Key | None = None,
        trusted: Mapping[str, Key] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.verified = Verified()
        self.trusted = dict(trusted or {})
        self._name = name
        self._settings = settings
        self._key = key
        self._now = now
        self._secrets = [one.reveal() for one in (settings.secret, settings.previous) if one]
        self._made: dict[tuple[Any, ...], tuple[str, float, float]] = {}
        self._own = Identity(name, "service", service=name)

    @property
    def signs(self) -> bool:
        """It can make tokens, and not only check them."""
        return bool(self._secrets) or self._key is not None

    def token(self, identity: Identity | None, audience: str, deadline: float | None) -> str | None:
        """See `framework.interceptors.identity.Signer`."""
        if not self.signs:
            return None
        who = self._own if identity is None else identity
        now = self._now()
        needed = now if deadline is None else now + min(deadline - asyncio.get_running_loop().time(), LONGEST_LIFE)
        told = {name: who.claims[name] for name in self._settings.claims if name in who.claims}
        place = (who, audience, json.dumps(told, sort_keys=True)) if told else (who, audience)
        made = self._made.get(place)
        if made is not None and now < made[1] and needed <= made[2]:
            return made[0]
        life = self._settings.lifetime
        until = max(now + life, needed)
        token = self._sign(who, audience, told, now, until)
        self._made.pop(place, None)
        if len(self._made) >= MOST_KEPT:
            del self._made[next(iter(self._made))]
        self._made[place] = token, now + life / 2, until
        return token

    def _sign(self, who: Identity, audience: str, told: Mapping[str, Any], now: float, until: float) -> str:
        claims: dict[str, Any] = {"iss": self._name, "aud": audience, "sub": who.subject, "knd": who.kind}
        claims |= {"iat": int(now), "exp": int(until) + 1}
        if who.issuer:
            claims["org"] = who.issuer
        if who.roles:
            claims["roles"] = sorted(who.roles)
        if who.scopes:
            claims["scope"] = " ".join(sorted(who.scopes))
        if told:
            claims["claims"] = dict(told)
        if self._key is not None:
            return _coder.encode(claims, self._key, "EdDSA", {"typ": INTERNAL, "kid": self._name})
        return _coder.encode(claims, self._secrets[0], "HS256", {"typ": INTERNAL})

    def verify(self, token: str, audiences: tuple[str, ...]) -> Identity:
        """For whom a service calls.

        Args:
            audiences: for whom the token may be.

        Raises:
            Refused: it does not hold, or is for somebody else.
        """
        now = self._now()
        kept = self.verified.get(token, now)
        if kept is None:
            kept = self._check(token, audiences, now)
            self.verified.put(token, *kept)
        if kept[1] not in audiences:
            raise Refused("a token of a service is for somebody else")
        return kept[0]

    def _check(self, token: str, audiences: tuple[str, ...], now: float) -> tuple[Identity, str, float]:
        signed = parse(token)
        header = signed.header
        if header.get("typ") != INTERNAL or "crit" in header:
            raise Refused("what should be a token of a service is none")
        claims = self._claims(signed, audiences)
        until = lifetime(claims, now, LEEWAY)
        subject, service, audience = claims.get("sub"), claims["iss"], claims["aud"]
        if not isinstance(subject, str) or not isinstance(audience, str) or not isinstance(service, str):
            raise Refused("a token of a service is malformed")
        told = claims.get("claims", {})
        identity = Identity(
            subject,
            str(claims.get("knd", "")),
            str(claims.get("org", "")),
            roles=words(claims.get("roles")),
            scopes=words(claims.get("scope")),
            service=service,
            claims=MappingProxyType(dict(told) if isinstance(told, dict) else {}),
        )
        return identity, audience, until

    def _claims(self, token: Signed, audiences: tuple[str, ...]) -> Mapping[str, Any]:
        header = token.header
        if not self._secrets:
            name = header.get("kid")
            key = self.trusted.get(name) if isinstance(name, str) else None
            if key is None or header.get("alg") != "EdDSA":
                raise Refused("a token of a service is signed with a key that is not known")
            # By the key is known which service it is: none can speak as another.
            return checked(token, (key,), "EdDSA", audience=audiences, issuer=str(name))
        if header.get("alg") != "HS256":
            raise Refused("a token of a service is signed with an algorithm that is not allowed")
        return checked(token, self._secrets, "HS256", audience=audiences, issuer=None)

    def __repr__(self) -> str:
        how = "a shared secret" if self._secrets else f"a key of its own, {len(self.trusted)} are believed"
        return f"<Tokens of {self._name} by {how}>"


def private_key(path: Path) -> Key:
    """The Ed25519 private key in a PEM file. Raises ConfigError."""
    try:
        key = serialization.load_pem_private_key(text_of(path).encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ConfigError(f"{path} holds no Ed25519 private key; make one with: openssl genpkey -algorithm ed25519")
    return key


def trusted_keys(path: Path) -> dict[str, Key]:
    """The public keys in a folder, by the names of the services they are of. Raises ConfigError."""
    if not path.is_dir():
        raise ConfigError(f"auth.internal.trusted is {path}, which is no folder")
    found = {one.stem: public_key(one) for one in sorted(path.glob("*.pem"))}
    for name, key in found.items():
        if not isinstance(key, ed25519.Ed25519PublicKey):
            raise ConfigError(f"{path / name}.pem holds no Ed25519 key")
    if not found:
        raise ConfigError(f"there is no NAME.pem in {path}")
    return found
