"""Hostile credentials, over gRPC and over HTTP: tokens that do not hold, keys that are none, and who pretends to be a
service."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import jwt
import pytest
import pytest_asyncio

from framework import Code, Settings
from framework.access import InternalSettings
from framework.identity import Identity
from framework.parsing import Secret
from framework.security import keys
from framework.security.tokens import Tokens
from tests.hostile.hall import Attacked, attacked, frames, message, thing, told_nothing
from tests.security.lab import ED25519, ISSUER, OTHER, SECRET, bearer, claims, public_pem, settings_of, token

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = keys.new("robot")
Shown = tuple[tuple[str, str], ...]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Attacked]:
    """The service, which asks who calls."""
    path = tmp_path_factory.mktemp("keys")
    (path / "keys.toml").write_text(keys.line("robot", KEY))
    (path / "keys.toml").chmod(0o600)
    settings: Settings = settings_of(path, default="authenticated")
    settings = replace(settings, auth=replace(settings.auth, keys=str(path / "keys.toml")))
    async with attacked(whole=settings) as one:
        one.shown = bearer(token())
        yield one


def by_hand(header: Any, body: Any = None, signature: bytes = b"") -> str:
    """A token put together from parts."""
    parts = [json.dumps(one).encode() if not isinstance(one, bytes) else one for one in (header, body or claims())]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (*parts, signature))


def confused(secret: bytes) -> str:
    """A token signed with the public key as if it were a secret."""
    start = by_hand({"alg": "HS256", "typ": "JWT"}).rpartition(".")[0]
    return (
        f"{start}.{base64.urlsafe_b64encode(hmac.digest(secret, start.encode(), hashlib.sha256)).decode().rstrip('=')}"
    )


def headed(**header: Any) -> str:
    """A token that is right, but for what its header says beside."""
    return jwt.encode(claims(), ED25519, "EdDSA", header)


def internal(service: str = "front", audience: str = "hall", secret: str = SECRET, ago: float = 0.0) -> str:
    """What a service says of its caller."""
    made = Tokens(service, InternalSettings(secret=Secret(secret)), now=lambda: time.time() - ago)
    found = made.token(Identity("root", "jwt", roles=frozenset({"admin"})), audience, None)
    assert found is not None
    return found


def signed_part(text: str) -> str:
    return text[:-4] + ("AAAA" if text[-4:] != "AAAA" else "BBBB")


HOSTILE: dict[str, Callable[[], Shown]] = {
    "nothing": lambda: (),
    "expired": lambda: bearer(token(exp=int(time.time()) - 3600)),
    "without an end": lambda: bearer(token(exp=None)),
    "an end that is text": lambda: bearer(token(exp="tomorrow")),
    "an end beyond all time": lambda: bearer(by_hand({"alg": "EdDSA"}, {**claims(), "exp": 1e400})),
    "not yet": lambda: bearer(token(nbf=int(time.time()) + 3600)),
    "for somebody else": lambda: bearer(token(aud="bank")),
    "for nobody": lambda: bearer(token(aud=None)),
    "of another issuer": lambda: bearer(token(iss="https://evil.example/")),
    "of an issuer that begins like ours": lambda: bearer(token(iss=ISSUER + ".evil.example")),
    "without a subject": lambda: bearer(token(sub=None)),
    "a subject that is a list": lambda: bearer(token(sub=["ann"])),
    "signed with none": lambda: bearer(by_hand({"alg": "none"})),
    "signed with None": lambda: bearer(by_hand({"alg": "nOnE"})),
    "signed by somebody else": lambda: bearer(token(OTHER)),
    "signed with our public key": lambda: bearer(confused(public_pem(ED25519))),
    "an algorithm that is a list": lambda: bearer(by_hand({"alg": ["EdDSA"]})),
    "a signature changed": lambda: bearer(signed_part(token())),
    "claims changed": lambda: bearer(".".join([(one := token().split("."))[0], by_hand({}).split(".")[1], one[2]])),
    "a key of its own": lambda: bearer(jwt.encode(claims(), OTHER, "EdDSA", {"jwk": {"kty": "OKP", "x": "a"}})),
    "a place where its key is": lambda: bearer(jwt.encode(claims(), OTHER, "EdDSA", {"jku": "http://evil.example/"})),
    "a certificate of its own": lambda: bearer(jwt.encode(claims(), OTHER, "EdDSA", {"x5c": ["MIIB"], "x5u": "a"})),
    "what must be understood": lambda: bearer(headed(crit=["exp"])),
    "the kind of services": lambda: bearer(headed(typ="framework-identity+jwt")),
    "a key that is a path": lambda: bearer(jwt.encode(claims(), OTHER, "EdDSA", {"kid": "../../dev/null"})),
    "a megabyte": lambda: bearer("a" * 10_000),
    "two parts": lambda: bearer("a.b"),
    "noise": lambda: bearer("!!!.???.;;;"),
    "deep in its header": lambda: bearer(by_hand(b"[" * 5000)),
    "no token at all": lambda: (("authorization", "Bearer"),),
    "a password": lambda: (("authorization", "Basic YWRtaW46YWRtaW4="),),
    "two tokens": lambda: bearer(token()) + bearer(token()),
    "a key that is none": lambda: (("x-api-key", "secret"),),
    "a key but its last letter": lambda: (("x-api-key", KEY[:-1] + ("0" if KEY[-1] != "0" else "1")),),
    "a wrong key beside a good token": lambda: (*bearer(token()), ("x-api-key", "fwk_robot_" + "0" * 64)),
    "a wrong token beside a good key": lambda: (*bearer("a.b.c"), ("x-api-key", KEY)),
    "a key of nobody": lambda: (("x-api-key", "fwk_nobody_" + "0" * 64),),
    "the name of a key": lambda: (("x-api-key", "fwk_robot_"),),
    "an identity in the clear": lambda: (("framework-identity", "root"),),
    "an identity that nobody signed": lambda: (("framework-identity", by_hand({"alg": "none"})),),
    "an identity of another secret": lambda: (("framework-identity", internal(secret="f" * 32)),),
    "an identity told to somebody else": lambda: (("framework-identity", internal(audience="payments")),),
    "an identity of yesterday": lambda: (("framework-identity", internal(ago=86_400)),),
    "an identity that is a token of the issuer": lambda: (("framework-identity", token()),),
    "a user's header": lambda: (("x-user", "root"), ("x-forwarded-user", "root"), ("x-roles", "admin")),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_over_grpc(hall: Attacked, name: str) -> None:
    """UNAUTHENTICATED, without a word of why, and no handler runs."""
    async with frames(hall.port) as connection:
        answer = await connection.call("/hall.Hall/Echo", message(thing()().SerializeToString()), HOSTILE[name]())
        assert answer.status == Code.UNAUTHENTICATED
        told_nothing(answer.shown)
        assert SECRET not in answer.shown
    assert hall.servicer.calls == 0


@pytest.mark.parametrize("name", HOSTILE)
async def test_over_http(hall: Attacked, name: str) -> None:
    """401, in REST and Connect, with the challenge that says what is needed."""
    shown = list(HOSTILE[name]())
    rest = await hall.http.get("/v1/things/a", headers=shown)
    connect = await hall.http.post(
        "/hall.Hall/Echo", content=b"{}", headers=[*shown, ("content-type", "application/json")]
    )
    assert [rest.status_code, connect.status_code] == [401, 401]
    assert "www-authenticate" in rest.headers
    told_nothing(rest.text, connect.text)
    assert hall.servicer.calls == 0


@pytest.mark.parametrize("shown", [lambda: bearer(token()), lambda: (("x-api-key", KEY),)], ids=["token", "key"])
async def test_who_is_known_is_served(hall: Attacked, shown: Callable[[], Shown]) -> None:
    """Without which all of the above would prove nothing."""
    async with frames(hall.port) as connection:
        body = message(thing()().SerializeToString())
        assert (await connection.call("/hall.Hall/Echo", body, shown())).status == Code.OK


async def test_a_signed_identity_comes_from_services_only(hall: Attacked) -> None:
    """What a service may say over gRPC, a caller over HTTP may not, even word for word."""
    told = (("framework-identity", internal()),)
    async with frames(hall.port) as connection:
        body = message(thing()().SerializeToString())
        assert (await connection.call("/hall.Hall/Echo", body, told)).status == Code.OK
    for name in ("framework-identity", "grpc-metadata-framework-identity", "Framework-Identity"):
        assert (await hall.http.get("/v1/things/a", headers={name: told[0][1]})).status_code == 401
