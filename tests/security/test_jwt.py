"""Tokens of an issuer: which hold, and for whom."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
from typing import Any

import jwt as library
import pytest

from framework.access import JwtSettings
from framework.identity import Identity
from framework.security.authentication import Refused
from framework.security.jwks import OneKey
from framework.security.jwt import INTERNAL, Jwt
from tests.security.lab import AUDIENCE, ED25519, ISSUER, OTHER, P256, RSA, claims, public_pem, token

NOW = 1_800_000_000.0


class Clock:
    """Seconds since the epoch, as the test says."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def checker(key: Any = ED25519, *algorithms: str, clock: Clock | None = None, **settings: Any) -> Jwt:
    """What checks the tokens of the issuer."""
    said = JwtSettings(
        **{"issuer": ISSUER, "audience": (AUDIENCE,), "algorithms": algorithms or ("EdDSA",), "key": "a", **settings}
    )
    return Jwt(said, OneKey(key.public_key()), clock or Clock())


def forged(header: dict[str, Any], body: dict[str, Any], signature: bytes = b"") -> str:
    """A token put together by hand."""
    parts = [json.dumps(header).encode(), json.dumps(body).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def signed_with_public_key(header: dict[str, Any]) -> str:
    """A token whose secret is the issuer's public key, which everybody has."""
    start = forged(header, claims(NOW)).rpartition(".")[0]
    digest = hmac.new(public_pem(RSA), start.encode(), hashlib.sha256).digest()
    return f"{start}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


async def test_identity() -> None:
    """Subject, roles and scopes are those of the token, the rest is there as claims."""
    found = await checker().verify(token(now=NOW, scope="read write", email="ann@test"))
    expected = Identity("ann", "jwt", ISSUER, frozenset({"buyer"}), frozenset({"read", "write"}))
    assert expected == found
    assert found.claims["email"] == "ann@test"
    assert "ann@test" not in repr(found)


@pytest.mark.parametrize(("key", "algorithm"), [(ED25519, "EdDSA"), (RSA, "RS256"), (RSA, "PS384"), (P256, "ES256")])
async def test_algorithms(key: Any, algorithm: str) -> None:
    """What the settings name is taken."""
    found = await checker(key, algorithm).verify(token(key, algorithm, NOW))
    assert found.subject == "ann"


@pytest.mark.parametrize(
    ("path", "said", "expected"),
    [
        ("realm_access.roles", {"realm_access": {"roles": ["a", "b"]}}, {"a", "b"}),
        ("https://shop.test/roles", {"https://shop.test/roles": ["a"]}, {"a"}),
        ("groups", {"groups": "a b"}, {"a", "b"}),
        ("groups", {"groups": [1, "a", None]}, {"a"}),
        ("groups.x", {"groups": 5}, set()),
    ],
)
async def test_where_roles_are(path: str, said: dict[str, Any], expected: set[str]) -> None:
    """Roles are found in the claim that the settings name, inside others too."""
    found = await checker(roles=path).verify(token(now=NOW, roles=None, **said))
    assert expected == found.roles


BAD: dict[str, tuple[str, str]] = {
    "none": (forged({"alg": "none"}, claims(NOW)), "algorithm that is not allowed"),
    "None": (forged({"alg": "None", "typ": "JWT"}, claims(NOW)), "algorithm that is not allowed"),
    "no algorithm": (forged({}, claims(NOW)), "algorithm that is not allowed"),
    "algorithm that is no text": (forged({"alg": ["EdDSA"]}, claims(NOW)), "algorithm that is not allowed"),
    "other algorithm": (token(RSA, "RS256", NOW), "algorithm that is not allowed"),
    "other key": (token(OTHER, now=NOW), "signature does not hold"),
    "no signature": (token(now=NOW).rpartition(".")[0] + ".", "signature does not hold"),
    "other claims": (
        ".".join((token(now=NOW).split(".")[0], token(now=NOW, sub="eve").split(".")[1], token(now=NOW).split(".")[2])),
        "signature does not hold",
    ),
    "expired": (token(now=NOW, exp=int(NOW) - 31), "expired"),
    "no expiry": (token(now=NOW, exp=None), "lacks exp"),
    "not yet": (token(now=NOW, nbf=int(NOW) + 31), "does not count yet"),
    "from the future": (token(now=NOW, iat=int(NOW) + 31), "does not count yet"),
    "expiry that is no number": (token(now=NOW, exp="4000000000"), "no time"),
    "expiry beyond all floats": (token(now=NOW, exp=10**400), "no time"),
    "beginning beyond all floats": (token(now=NOW, nbf=-(10**400)), "no time"),
    "expiry that is infinite": (token(now=NOW, exp=float("inf")), "no time"),
    "padding of one": (token(now=NOW) + "=", "malformed"),
    "padding of three": (token(now=NOW) + "===", "malformed"),
    "padding without end": (token(now=NOW) + "=" * 1000, "malformed"),
    "expiry that is true": (token(now=NOW, exp=True), "no time"),
    "other audience": (token(now=NOW, aud="bank"), "somebody else"),
    "no audience": (token(now=NOW, aud=None), "lacks aud"),
    "audience that is nothing": (token(now=NOW, aud=[]), "lacks aud"),
    "audience that is a number": (token(now=NOW, aud=7), "somebody else"),
    "other issuer": (token(now=NOW, iss="https://evil.test/"), "another issuer"),
    "no issuer": (token(now=NOW, iss=None), "lacks iss"),
    "no subject": (token(now=NOW, sub=None), "lacks sub"),
    "empty subject": (token(now=NOW, sub=""), "no subject"),
    "critical header": (library.encode(claims(NOW), ED25519, "EdDSA", {"crit": ["b64"], "b64": True}), "not accepted"),
    "of a service": (library.encode(claims(NOW), ED25519, "EdDSA", {"typ": INTERNAL}), "not accepted"),
    "kid that is no text": (forged({"alg": "EdDSA", "kid": 5}, claims(NOW)), "malformed"),
    "garbage": ("garbage", "malformed"),
    "empty": ("", "malformed"),
    "not ASCII": ("\u00e4.\u00e4.\u00e4", "malformed"),
    "header that is a list": (forged([], claims(NOW)), "malformed"),  # type: ignore[arg-type]  # on purpose
    "deep": (base64.urlsafe_b64encode(b"[" * 9000).decode() + ".e30.", "malformed"),
    "too long": ("a" * 20000, "too long"),
    "five parts": (token(now=NOW) + ".a.b", "malformed"),
}


@pytest.mark.parametrize("name", BAD)
async def test_refused(name: str) -> None:
    """What does not hold is refused; the reason has nothing of the token."""
    bad, reason = BAD[name]
    with pytest.raises(Refused, match=reason) as caught:
        await checker().verify(bad)
    assert not bad or bad[:20] not in str(caught.value)


@pytest.mark.parametrize("algorithm", ["HS256", "RS256"])
async def test_public_key_taken_for_a_secret(algorithm: str) -> None:
    """A token that was signed with the public key as if it were a secret is refused, whatever its header says."""
    with pytest.raises(Refused):
        await checker(RSA, "RS256").verify(signed_with_public_key({"alg": algorithm}))


async def test_algorithm_of_another_kind_of_key() -> None:
    """An algorithm that is allowed, and not that of the key, is refused."""
    with pytest.raises(Refused, match="not that of its key"):
        await checker(RSA, "RS256", "EdDSA").verify(token(now=NOW))


async def test_key_in_the_header_is_not_taken() -> None:
    """A token that brings its own key along is checked with the issuer's."""
    own = json.loads(library.algorithms.OKPAlgorithm.to_jwk(OTHER.public_key()))
    bad = library.encode(claims(NOW), OTHER, "EdDSA", {"jwk": own, "jku": "https://evil.test/keys"})
    with pytest.raises(Refused, match="signature"):
        await checker().verify(bad)


async def test_checked_once() -> None:
    """A token that holds is checked once, and counts until it expires and no longer."""
    clock = Clock()
    check = checker(clock=clock)
    text = token(now=NOW)
    found = await check.verify(text)
    clock.now = NOW + 629
    assert await check.verify(text) is found  # and none that is equal
    clock.now = NOW + 630
    with pytest.raises(Refused, match="expired"):
        await check.verify(text)
    assert len(check.verified) == 0


async def test_what_is_kept_is_bounded() -> None:
    """Of tokens that were checked only so many are kept, the latest."""
    check = checker()
    texts = [token(now=NOW, jti=str(number)) for number in range(5)]
    check.verified._most = 3
    for text in texts:
        await check.verify(text)
    assert [check.verified.get(text, NOW) is not None for text in texts] == [False, False, True, True, True]


async def test_what_is_refused_is_not_kept() -> None:
    """Nobody without a token that holds takes up memory."""
    check = checker()
    for bad, _ in BAD.values():
        with pytest.raises(Refused):
            await check.verify(bad)
    assert len(check.verified) == 0


async def test_one_token_in_many_spellings() -> None:
    """What may be written in two ways, with padding and without, takes no more than two places among what is known."""
    check = checker()
    given = token(now=NOW)
    for more in range(10):
        with contextlib.suppress(Refused):
            await check.verify(given + "=" * more)
    assert len(check.verified) == 2
