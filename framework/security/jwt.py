"""Tokens that an issuer has signed: from `authorization: Bearer ...` to an identity.

Which algorithms count, the settings say, and what kind of key each takes, a table: what the header of a token says is
only looked up there, so that neither `none` nor a public key taken for a secret gets through.

Source: RFC 7519, RFC 8725 (best practices).
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from jwt import PyJWS
from jwt.exceptions import PyJWTError

from framework.access import JwtSettings
from framework.identity import Identity
from framework.security.authentication import LONGEST, Refused, Verified
from framework.security.jwks import KeySource

INTERNAL = "framework-identity+jwt"
"""The `typ` of tokens that services make for each other; no other token is one, and one of them is no other."""

LATEST = 1e15
"""Seconds since the epoch of which no token speaks; there are numbers in JSON that no clock can be compared with."""

_SIGNATURES = PyJWS()
"""PyJWT's algorithms. Its own way from a token to them looks at every letter in Python, which takes as long as to check
a signature."""


class Jwt:
    """Checks tokens.

    Args:
        settings: complete; see `JwtSettings.verify`.
        keys: of the issuer.
        now: seconds since the epoch.

    Attributes:
        verified: tokens that were checked.
    """

    def __init__(self, settings: JwtSettings, keys: KeySource, now: Callable[[], float] = time.time) -> None:
        self.verified = Verified()
        self._settings = settings
        self._keys = keys
        self._now = now
        self._algorithms = frozenset(settings.algorithms)

    async def verify(self, token: str) -> Identity:
        """Whom a token stands for.

        Raises:
            Refused: it does not hold.
            Unavailable: that cannot be found out now.
        """
        now = self._now()
        if (kept := self.verified.get(token, now)) is not None:
            return kept[0]
        signed = parse(token)
        header = signed.header
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in self._algorithms:
            raise Refused("the token is signed with an algorithm that is not allowed")
        if header.get("typ") == INTERNAL or "crit" in header:
            raise Refused("the token is of a kind that is not accepted")
        if kid is not None and not isinstance(kid, str):
            raise Refused("the token is malformed")
        if not (known := self._keys.find(kid)):
            await self._keys.seek()
            if not (known := self._keys.find(kid)):
                raise Refused("the token is signed with a key that is not known")
        keys = [one.key for one in known if one.fits(algorithm)]
        if not keys:
            raise Refused("the token's algorithm is not that of its key")
        claims = checked(
            signed, keys, algorithm, audience=self._settings.audience, issuer=self._settings.issuer, required=("sub",)
        )
        until = lifetime(claims, now, self._settings.leeway)
        identity = self._identity(claims)
        self.verified.put(token, identity, "", until)
        return identity

    def _identity(self, claims: Mapping[str, Any]) -> Identity:
        subject = claims["sub"]
        if not isinstance(subject, str) or not subject:
            raise Refused("the token has no subject")
        return Identity(
            subject,
            "jwt",
            self._settings.issuer,
            roles=words(_at(claims, self._settings.roles)),
            scopes=words(_at(claims, self._settings.scopes)),
            claims=MappingProxyType(dict(claims)),
        )


class Signed(NamedTuple):
    """A token taken apart. Nothing in it is to be believed before `checked` has said so.

    Attributes:
        header: what it says of itself.
        text: what the signature is of.
        payload: the claims, as JSON.
    """

    header: Mapping[str, Any]
    text: bytes
    payload: bytes
    signature: bytes


def parse(token: str) -> Signed:
    """Take a token apart, in the compact form of RFC 7515. Raises Refused."""
    if len(token) > LONGEST:
        raise Refused("the token is too long")
    try:
        raw = token.encode("ascii")
        head, payload, signature = map(_decoded, raw.split(b"."))
        header = json.loads(head)
    except (ValueError, RecursionError):
        raise Refused("the token is malformed") from None
    if not isinstance(header, dict):
        raise Refused("the token is malformed")
    return Signed(header, raw[: raw.rindex(b".")], payload, signature)


def _decoded(part: bytes) -> bytes:
    """base64url; padding, which some issuers leave there, may be. Raises ValueError for what nothing encodes to."""
    bare = part.rstrip(b"=")
    if len(part) - len(bare) not in (0, -len(bare) % 4):  # or one token could be written in any number of ways
        raise ValueError("not base64url")
    decoded = base64.urlsafe_b64decode(bare + b"=" * (-len(bare) % 4))
    if base64.urlsafe_b64encode(decoded).rstrip(b"=") != bare:  # letters that are none, or bits that nobody needs
        raise ValueError("not base64url")
    return decoded


def checked(
    token: Signed,
    keys: Iterable[Any],
    algorithm: str,
    *,
    audience: tuple[str, ...],
    issuer: str | None,
    required: tuple[str, ...] = (),
) -> Mapping[str, Any]:
    """The claims of a token that is signed with one of these keys, for this audience, by this issuer.

    Raises:
        Refused: it is not.
    """
    signs = _SIGNATURES.get_algorithm_by_name(algorithm)
    try:
        holds = any(signs.verify(token.text, signs.prepare_key(key), token.signature) for key in keys)
        claims = json.loads(token.payload) if holds else None
    except (PyJWTError, ValueError, TypeError, RecursionError):
        claims = None
    if not isinstance(claims, dict):
        raise Refused("the token's signature does not hold, or it is malformed")
    for name in ("exp", "iss", "aud", *required):
        if claims.get(name) is None:
            raise Refused(f"the token lacks {name}")
    if not (said := claims["aud"]):
        raise Refused("the token lacks aud")
    if not any(
        one in audience for one in ([said] if isinstance(said, str) else said if isinstance(said, list) else ())
    ):
        raise Refused("the token is for somebody else")
    if issuer is not None and claims["iss"] != issuer:
        raise Refused("the token is of another issuer")
    return claims


def lifetime(claims: Mapping[str, Any], now: float, leeway: float) -> float:
    """Until when a token counts. Raises Refused when it does not now."""
    times = {}
    for name, value in (("exp", claims.get("exp")), ("nbf", claims.get("nbf", 0)), ("iat", claims.get("iat", 0))):
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LATEST:  # nor nan
            raise Refused(f"{name} of the token is no time")
        times[name] = float(value)
    if now >= times["exp"] + leeway:
        raise Refused("the token has expired")
    if now < max(times["nbf"], times["iat"]) - leeway:
        raise Refused("the token does not count yet")
    return times["exp"] + leeway


def words(value: Any) -> frozenset[str]:
    """Roles or scopes: a list, or a text with spaces."""
    if isinstance(value, str):
        return frozenset(value.split())
    if isinstance(value, list | tuple):
        return frozenset(one for one in value if isinstance(one, str))
    return frozenset()


def _at(claims: Mapping[str, Any], path: str) -> Any:
    """A claim, or one inside others; a name with dots in it is looked up whole first."""
    if path in claims:
        return claims[path]
    found: Any = claims
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found
