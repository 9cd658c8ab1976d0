"""Tokens that an issuer has signed: from `authorization: Bearer ...` to an identity.

Which algorithms count, the settings say, and what kind of key each takes, a table: what the header of a token says is
only looked up there, so that neither `none` nor a public key taken for a secret gets through.

Source: RFC 7519, RFC 8725 (best practices).
"""

from __future__ import annotations

import base64
import json
import math
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from jwt import PyJWT
from jwt.exceptions import InvalidAudienceError, InvalidIssuerError, MissingRequiredClaimError, PyJWTError

from framework.access import ALGORITHMS, JwtSettings
from framework.identity import Identity
from framework.security.authentication import LONGEST, Refused, Verified
from framework.security.jwks import KeySource, kind_of

INTERNAL = "framework-identity+jwt"
"""The `typ` of tokens that services make for each other; no other token is one, and one of them is no other."""

_decoder = PyJWT()


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
        header = header_of(token)
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in self._algorithms:
            raise Refused("the token is signed with an algorithm that is not allowed")
        if header.get("typ") == INTERNAL or "crit" in header:
            raise Refused("the token is of a kind that is not accepted")
        if kid is not None and not isinstance(kid, str):
            raise Refused("the token is malformed")
        if (key := self._keys.find(kid)) is None:
            await self._keys.seek()
            if (key := self._keys.find(kid)) is None:
                raise Refused("the token is signed with a key that is not known")
        if kind_of(key) != ALGORITHMS[algorithm]:
            raise Refused("the token's algorithm is not that of its key")
        claims = checked(
            token, key, algorithm, audience=self._settings.audience, issuer=self._settings.issuer, required=("sub",)
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


def header_of(token: str) -> Mapping[str, Any]:
    """The header of a token, of which nothing is to be believed yet. Raises Refused."""
    if len(token) > LONGEST:
        raise Refused("the token is too long")
    try:
        raw = token.partition(".")[0].encode("ascii")
        header = json.loads(base64.urlsafe_b64decode(raw + b"=" * (-len(raw) % 4)))
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise Refused("the token is malformed")
    return header


def checked(
    token: str,
    key: Any,
    algorithm: str,
    *,
    audience: tuple[str, ...],
    issuer: str | None,
    required: tuple[str, ...] = (),
) -> Mapping[str, Any]:
    """The claims of a token that is signed with this key, for this audience, by this issuer.

    Raises:
        Refused: it is not.
    """
    try:
        claims: Mapping[str, Any] = _decoder.decode(
            token,
            key,
            [algorithm],
            audience=audience,
            issuer=issuer,
            # The times are looked at here, by a clock that tests can set.
            options={
                "require": ["exp", "iss", "aud", *required],
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
            },
        )
    except InvalidAudienceError:
        raise Refused("the token is for somebody else") from None
    except InvalidIssuerError:
        raise Refused("the token is of another issuer") from None
    except MissingRequiredClaimError as error:
        raise Refused(f"the token lacks {error.claim}") from None
    except (PyJWTError, ValueError, TypeError, RecursionError):
        raise Refused("the token's signature does not hold, or it is malformed") from None
    return claims


def lifetime(claims: Mapping[str, Any], now: float, leeway: float) -> float:
    """Until when a token counts. Raises Refused when it does not now."""
    times = {}
    for name, value in (("exp", claims.get("exp")), ("nbf", claims.get("nbf", 0)), ("iat", claims.get("iat", 0))):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
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
