"""What services tell each other of whom they call for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import jwt as library
import pytest

from framework.access import InternalSettings
from framework.errors import ConfigError
from framework.identity import Identity
from framework.interceptors.identity import NOBODY
from framework.parsing import Secret
from framework.security.authentication import Refused
from framework.security.jwt import INTERNAL
from framework.security.tokens import Tokens, private_key, trusted_keys
from tests.security.lab import ED25519, OTHER, RSA, SECRET, private_pem, public_pem
from tests.security.test_jwt import NOW, Clock

ANN = Identity("ann", "jwt", "https://login.test/", frozenset({"buyer"}), frozenset({"read"}))


def sharing(name: str, clock: Clock | None = None, **settings: Any) -> Tokens:
    """Those of a service that shares a secret with others."""
    said = InternalSettings(**{"secret": Secret(SECRET), **settings})
    return Tokens(name, said, now=clock or Clock())


def signing(name: str, key: Any, clock: Clock | None = None, **trusted: Any) -> Tokens:
    """Those of a service that has a key of its own."""
    said = InternalSettings(key="a", trusted="b")
    return Tokens(name, said, key, {one: other.public_key() for one, other in trusted.items()}, clock or Clock())


def made(tokens: Tokens, identity: Identity | None = ANN, audience: str = "payments") -> str:
    """A token."""
    found = tokens.token(identity, audience, None)
    assert found is not None
    return found


PAIRS = {
    "secret": lambda clock: (sharing("orders", clock), sharing("payments", clock)),
    "keys": lambda clock: (signing("orders", ED25519, clock), signing("payments", OTHER, clock, orders=ED25519)),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_told(pair: str) -> None:
    """The other side learns who the caller is, as it was found out first, and which service calls."""
    orders, payments = PAIRS[pair](Clock())
    found = payments.verify(made(orders), ("payments", "pay.Payments"))
    assert found == Identity("ann", "jwt", "https://login.test/", ANN.roles, ANN.scopes, service="orders")
    assert payments.verify(made(orders, audience="pay.Payments"), ("payments", "pay.Payments")).subject == "ann"


@pytest.mark.parametrize("pair", PAIRS)
def test_the_service_itself(pair: str) -> None:
    """A call that a service makes for itself is told as that; one for nobody as one for nobody."""
    orders, payments = PAIRS[pair](Clock())
    assert payments.verify(made(orders, None), ("payments",)) == Identity("orders", "service", service="orders")
    found = payments.verify(made(orders, NOBODY), ("payments",))
    assert found == Identity("", "anonymous", service="orders")


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("again", [False, True], ids=["first", "seen"])
def test_replayed_elsewhere(pair: str, again: bool) -> None:
    """A token for one service is refused by every other, whether it was seen before or not."""
    orders, payments = PAIRS[pair](Clock())
    text = made(orders)
    if again:
        payments.verify(text, ("payments",))
    with pytest.raises(Refused, match="for somebody else"):
        payments.verify(text, ("inventory", "stock.Inventory"))


@pytest.mark.parametrize("pair", PAIRS)
def test_expired(pair: str) -> None:
    """A token counts for a minute, and the few seconds that clocks may differ."""
    clock = Clock()
    orders, payments = PAIRS[pair](clock)
    text = made(orders)
    clock.now = NOW + 60
    payments.verify(text, ("payments",))
    clock.now = NOW + 67
    with pytest.raises(Refused, match="expired"):
        payments.verify(text, ("payments",))


def test_made_once() -> None:
    """For the same caller and service a token is used for half its life; for others there is another."""
    clock = Clock()
    orders = sharing("orders", clock)
    first = made(orders)
    clock.now = NOW + 29
    assert made(orders, Identity("ann", "jwt", "https://login.test/", ANN.roles, ANN.scopes)) == first
    assert made(orders, Identity("bob", "jwt")) != first
    assert made(orders, audience="inventory") != first
    clock.now = NOW + 30
    assert made(orders) != first
    orders._made.clear()
    for number in range(5000):
        orders._made[number] = ("", 0.0, 0.0)  # type: ignore[index]  # stands for a caller
        if len(orders._made) > 4096:
            del orders._made[next(iter(orders._made))]
    made(orders, Identity("eve", "jwt"))
    assert len(orders._made) == 4096


async def test_long_calls() -> None:
    """A token lives as long as the call that it goes with, so that the last attempt has one that counts."""
    clock = Clock()
    orders, payments = sharing("orders", clock), sharing("payments", clock)
    short = made(orders)
    text = orders.token(ANN, "payments", asyncio.get_running_loop().time() + 600)
    assert text is not None
    assert text != short
    clock.now = NOW + 590
    assert payments.verify(text, ("payments",)).subject == "ann"


def test_rotation_of_the_secret() -> None:
    """While a new secret is rolled out, tokens of the old one count; afterwards they do not."""
    other = "f" * 64
    text = made(sharing("orders"))
    assert (
        sharing("payments", secret=Secret(other), previous=Secret(SECRET)).verify(text, ("payments",)).subject == "ann"
    )
    with pytest.raises(Refused, match="signature"):
        sharing("payments", secret=Secret(other)).verify(text, ("payments",))


def test_speaking_as_another() -> None:
    """A service that signs with its own key cannot say that it is another one."""
    payments = signing("payments", OTHER, orders=ED25519, catalog=RSA)
    body = {"iss": "catalog", "aud": "payments", "sub": "ann", "iat": int(NOW), "exp": int(NOW) + 60}
    as_catalog = library.encode(body, ED25519, "EdDSA", {"typ": INTERNAL, "kid": "orders"})
    with pytest.raises(Refused, match="another issuer"):
        payments.verify(as_catalog, ("payments",))
    with pytest.raises(Refused, match="signature"):
        payments.verify(library.encode(body, ED25519, "EdDSA", {"typ": INTERNAL, "kid": "catalog"}), ("payments",))
    with pytest.raises(Refused, match="not known"):
        payments.verify(made(signing("eve", OTHER)), ("payments",))


@pytest.mark.parametrize(
    ("header", "key", "algorithm", "reason"),
    [
        ({"typ": "JWT"}, SECRET, "HS256", "is none"),
        ({}, SECRET, "HS256", "is none"),
        ({"typ": INTERNAL}, SECRET + SECRET, "HS512", "not allowed"),
        ({"typ": INTERNAL}, ED25519, "EdDSA", "not allowed"),
        ({"typ": INTERNAL}, None, "none", "not allowed"),
        ({"typ": INTERNAL}, "f" * 32, "HS256", "signature"),
        ({"typ": INTERNAL, "crit": ["exp"], "exp": 1}, SECRET, "HS256", "is none"),
    ],
)
def test_refused(header: dict[str, Any], key: Any, algorithm: str, reason: str) -> None:
    """Only tokens that are meant to be such, and are signed as they should be, count."""
    body = {"iss": "orders", "aud": "payments", "sub": "ann", "iat": int(NOW), "exp": int(NOW) + 60}
    with pytest.raises(Refused, match=reason):
        sharing("payments").verify(library.encode(body, key, algorithm, header), ("payments",))


@pytest.mark.parametrize("text", ["", "garbage", "a.b.c", "\u00e4"])
def test_garbage(text: str) -> None:
    """Anything else is refused."""
    with pytest.raises(Refused):
        sharing("payments").verify(text, ("payments",))


def test_claims() -> None:
    """Of the other claims those go along that the settings name."""
    ann = Identity("ann", "jwt", claims={"tenant": "t1", "email": "ann@test"})
    orders, payments = sharing("orders", claims=("tenant", "plan")), sharing("payments")
    assert dict(payments.verify(made(orders, ann), ("payments",)).claims) == {"tenant": "t1"}
    other = Identity("ann", "jwt", claims={"tenant": "t2"})
    assert dict(payments.verify(made(orders, other), ("payments",)).claims) == {"tenant": "t2"}


def test_without_a_key() -> None:
    """Who has no key of its own tells nothing, and reads what others say."""
    payments = signing("payments", None, orders=ED25519)
    assert payments.token(ANN, "orders", None) is None
    assert payments.verify(made(signing("orders", ED25519)), ("payments",)).subject == "ann"


def test_key_files(tmp_path: Path) -> None:
    """Keys are read from files, and the name of a file is that of the service."""
    (tmp_path / "own.key").write_bytes(private_pem(ED25519))
    (tmp_path / "trusted").mkdir()
    (tmp_path / "trusted" / "orders.pem").write_bytes(public_pem(ED25519))
    orders = signing("orders", private_key(tmp_path / "own.key"))
    payments = Tokens("payments", InternalSettings(), None, trusted_keys(tmp_path / "trusted"), Clock())
    assert payments.verify(made(orders), ("payments",)).service == "orders"
    assert repr(payments) == "<Tokens of payments by a key of its own, 1 are believed>"
    (tmp_path / "own.key").write_bytes(private_pem(RSA))
    with pytest.raises(ConfigError, match=r"own.key holds no Ed25519 private key; make one with: openssl"):
        private_key(tmp_path / "own.key")
    (tmp_path / "trusted" / "orders.pem").write_bytes(public_pem(RSA))
    with pytest.raises(ConfigError, match=r"orders.pem holds no Ed25519 key"):
        trusted_keys(tmp_path / "trusted")
    with pytest.raises(ConfigError, match="is no folder"):
        trusted_keys(tmp_path / "own.key")
