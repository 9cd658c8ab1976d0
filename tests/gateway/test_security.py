"""The gateway as the place where callers are asked who they are, and services are told."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import websockets

from framework import Identity, Peer, Settings, Unauthenticated
from framework.access import AuthSettings, InternalSettings
from framework.gateway import Gateway
from framework.http.admission import Admission, Suspects
from framework.http.asgi import IDENTITY, PEER
from framework.http.openapi import document
from framework.interceptors.identity import KEY
from framework.parsing import Secret
from framework.security import keys
from framework.security.authentication import Credentials
from framework.security.guard import guarded
from framework.security.tokens import Tokens
from framework.tls import ServerTls
from framework.web import GatewaySettings
from tests.gateway.lab import OTHER as OTHER_PROTO
from tests.gateway.lab import SHOP, Shop, Town, eventually, until
from tests.security.lab import OTHER, SECRET, settings_of, token

OWNER = token(sub="olga", roles=["owner"])
RULES: Any = {
    "rules": {
        "lab.Shop/Get": {"roles": ["buyer"]},
        "lab.Shop/Buy": "public",
        "lab.Shop/*": {"roles": ["owner"]},
    }
}


def inside(path: Path, **access: Any) -> Settings:
    """Settings of a service that believes the gateway, and no tokens of the issuer."""
    settings = settings_of(path, **access)
    return dataclasses.replace(settings, auth=AuthSettings(internal=InternalSettings(secret=Secret(SECRET))))


@pytest.fixture
def rules(tmp_path: Path) -> Settings:
    """Settings of a gateway."""
    return settings_of(tmp_path, **RULES)


async def test_who_calls_is_told_signed(town: Town, tmp_path: Path, rules: Settings) -> None:
    """A service behind it knows the caller by the gateway's word, and gets nothing that the caller made up."""
    shop, _ = await town.add("shop", settings=inside(tmp_path, default="authenticated"))
    running = await town.gateway(settings=rules)
    client = await town.client(running)
    made_up = Tokens("orders", InternalSettings(secret=Secret(SECRET))).token(Identity("root"), "shop", None) or ""
    headers = {
        "authorization": f"Bearer {token(scope='read')}",
        KEY: made_up,
        f"grpc-metadata-{KEY}": made_up,
        "x-api-key": "made up",
        "grpc-metadata-authorization": "Bearer made up",
        "Grpc-Metadata-X-Api-Key": "made up",
    }
    for request in (
        client.get("/v1/things/lamp", headers=headers),
        client.post("/lab.Shop/Get", json={}, headers={**headers, "connect-protocol-version": "1"}),
    ):
        response = await request
        assert response.status_code == 200, response.text
        assert shop.identity == Identity(
            "ann", "jwt", "https://login.test/", frozenset({"buyer"}), frozenset({"read"}), "gateway"
        )
        assert not {KEY, "authorization", "x-api-key"} & shop.metadata.keys()
    socket = await websockets.connect(
        f"ws://{running.address}/v1/things/lamp:watch", additional_headers={"authorization": f"Bearer {OWNER}"}
    )
    assert "lamp" in await socket.recv()
    assert str(shop.identity) == "olga"
    await socket.close()


async def test_statuses(town: Town, tmp_path: Path, rules: Settings) -> None:
    """401 with how to prove who one is, 403 without a reason, and what is public for everybody."""
    shop, _ = await town.add("shop", settings=inside(tmp_path, rules={"lab.Shop/*": {"services": ["gateway"]}}))
    running = await town.gateway(settings=rules)
    client = await town.client(running)
    for headers, challenge in (
        ({}, "Bearer"),
        ({"authorization": "Bearer " + token(OTHER)}, 'Bearer error="invalid_token"'),
        ({"authorization": "Basic YTpi"}, 'Bearer error="invalid_token"'),
        ({KEY: "made up"}, "Bearer"),
    ):
        for refused in (
            await client.get("/v1/things/lamp", headers=headers),
            await client.post("/lab.Shop/Get", json={}, headers={**headers, "connect-protocol-version": "1"}),
        ):
            assert (refused.status_code, refused.headers.get("www-authenticate")) == (401, challenge)
            assert refused.json()["message"] in ("credentials are needed", "the credentials are not valid")
    two = [("authorization", f"Bearer {token()}"), ("authorization", f"Bearer {token(sub='eve')}")]
    assert (await client.get("/v1/things/lamp", headers=two)).status_code == 401
    seller = {"authorization": "Bearer " + token(roles=["seller"])}
    denied = await client.get("/v1/things/lamp", headers=seller)
    assert (denied.status_code, denied.json()["message"]) == (403, "lab.Shop/Get is not for this caller")
    assert "buyer" not in denied.text
    assert not shop.entered.is_set()
    assert (await client.post("/v1/things", json={"name": "lamp"})).json() == {"name": "lamp"}
    with pytest.raises(websockets.InvalidStatus, match="401"):
        await websockets.connect(f"ws://{running.address}/v1/talk")


async def test_document_and_page(town: Town, tmp_path: Path, rules: Settings) -> None:
    """The document says how callers prove who they are, and for which methods they need not; the page is for all."""
    await town.add("shop", settings=inside(tmp_path))
    key = tmp_path / "keys.toml"
    key.write_text(keys.line("ci", keys.new("ci")))
    settings = dataclasses.replace(rules, auth=dataclasses.replace(rules.auth, keys=str(key)))
    client = await town.client(await town.gateway(settings=settings))
    shown = (await client.get("/openapi.json")).json()
    assert shown["components"]["securitySchemes"] == {
        "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
        "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    assert shown["security"] == [{"bearer": []}, {"key": []}]
    assert shown["paths"]["/v1/things"]["post"]["security"] == []
    assert "security" not in shown["paths"]["/v1/things/{name}"]["get"]
    assert (await client.get("/docs")).status_code == 200
    assert (await client.get("/healthz")).status_code == 200


async def test_document_without_authentication(town: Town) -> None:
    """Where nobody is asked, the document says nothing of it."""
    await town.add("shop")
    client = await town.client(await town.gateway())
    shown = (await client.get("/openapi.json")).json()
    assert "security" not in shown
    assert "securitySchemes" not in shown["components"]
    assert document(()) != shown


async def test_rules_of_protos_at_the_gateway(town: Town, tmp_path: Path) -> None:
    """What a proto says counts at the gateway, and closes what says nothing, before anybody has called either."""
    ruled = SHOP.replace('get: "/v1/things/{name}" }; }', 'get: "/v1/things/{name}" }; RULE }', 1)
    ruled = ruled.replace("RULE", 'option (framework.method).access = {roles: "buyer"};')
    ruled = ruled.replace("import ", 'import "framework/options.proto";\nimport ', 1)
    await town.add("shop", ruled, settings=inside(tmp_path, default="public"))
    await town.add("bank", OTHER_PROTO, Shop(OTHER_PROTO, "other.Bank"), settings=inside(tmp_path))
    running = await town.gateway(settings=settings_of(tmp_path))
    client = await town.client(running)
    shown = {"authorization": f"Bearer {token()}"}
    assert (await until(client, "POST /v1/payments", 403, {"cents": "5"}, shown)).status_code == 403
    assert (await client.get("/v1/things/lamp")).status_code == 401
    assert (await client.get("/v1/things/lamp", headers=shown)).status_code == 200


async def test_keys_at_the_gateway(town: Town, tmp_path: Path) -> None:
    """An API key does as well as a token, and is told as what it is."""
    shop, _ = await town.add("shop", settings=inside(tmp_path))
    key = keys.new("ci")
    (tmp_path / "keys.toml").write_text(keys.line("ci", key, ("buyer",)))
    auth = AuthSettings(keys=str(tmp_path / "keys.toml"), internal=InternalSettings(secret=Secret(SECRET)))
    client = await town.client(await town.gateway(settings=Settings(auth=auth)))
    assert (await client.get("/v1/things/lamp", headers={"x-api-key": key})).status_code == 200
    assert shop.identity == Identity("ci", "key", roles=frozenset({"buyer"}), service="gateway")
    refused = await client.get("/v1/things/lamp", headers={"x-api-key": keys.new("ci")})
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "ApiKey")


async def test_passed_on_where_services_check_themselves(town: Town, tmp_path: Path) -> None:
    """Without a way to tell services, what callers show is passed on, and services check it."""
    settings = settings_of(tmp_path, reflection="public", rules={"lab.Shop/Get": {"roles": ["buyer"]}})
    auth = dataclasses.replace(settings.auth, internal=InternalSettings())
    shop, _ = await town.add("shop", settings=dataclasses.replace(settings, auth=auth))
    client = await town.client(await town.gateway())
    refused = await client.get("/v1/things/lamp")
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    good = await client.get("/v1/things/lamp", headers={"authorization": f"Bearer {token()}"})
    assert good.status_code == 200
    assert shop.identity is not None
    assert (shop.identity.subject, shop.identity.service) == ("ann", "")


async def test_rate_limits_go_by_who_it_is(town: Town, tmp_path: Path) -> None:
    """Two callers at one address have a limit each."""
    await town.add("shop", settings=inside(tmp_path))
    running = await town.gateway(settings=settings_of(tmp_path), rate_limit={"rate": 0.001, "burst": 1})
    client = await town.client(running)

    async def status(subject: str) -> int:
        headers = {"authorization": "Bearer " + token(sub=subject)}
        return (await client.get("/v1/things/lamp", headers=headers)).status_code

    assert [await status(one) for one in ("ann", "ann", "bob", "bob")] == [200, 429, 200, 429]


class Guessed:
    """Knows one key, and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def authenticate(self, credentials: Credentials) -> Identity | None:
        key = credentials.get("x-key")
        self.asked += bool(key)
        if key not in ("", "right"):
            raise Unauthenticated("no such key")
        return Identity("ann", "own") if key else None


async def test_guesses_are_counted(town: Town) -> None:
    """Who guesses is stopped before the next guess is looked at, also when it is right; for others nothing changes."""
    await town.add("shop")
    own = Guessed()
    running = await town.gateway(
        gateway=Gateway(authenticators=[own]), rate_limit={"rate": 0.001, "burst": 3}, trusted=["127.0.0.1"]
    )
    client = await town.client(running)

    async def status(key: str, address: str) -> int:
        headers = {"x-key": key, "x-forwarded-for": address}
        return (await client.get("/v1/things/lamp", headers=headers)).status_code

    assert [await status(f"{n}", "1.1.1.1") for n in range(10)] == [*[401] * 3, *[429] * 7]
    assert own.asked == 4  # the one that was too many was looked at
    assert (await status("right", "1.1.1.1"), own.asked) == (429, 4)
    assert await status("right", "2.2.2.2") == 200


async def test_calls_that_are_denied_are_counted(town: Town, tmp_path: Path, rules: Settings) -> None:
    """Who is known and may not call uses up its own limit, and nobody's of its address."""
    await town.add("shop", settings=inside(tmp_path))
    running = await town.gateway(settings=rules, rate_limit={"rate": 0.001, "burst": 2})
    client = await town.client(running)

    async def status(subject: str, role: str) -> int:
        headers = {"authorization": f"Bearer {token(sub=subject, roles=[role])}"}
        return (await client.get("/v1/things/lamp", headers=headers)).status_code

    assert [await status("eve", "seller") for _ in range(3)] == [403, 403, 429]
    assert [await status("ann", "buyer") for _ in range(3)] == [200, 200, 429]


def test_suspects() -> None:
    """They are ones until a moment, which only moves on, and are not more than so many."""
    suspects = Suspects(most=2)
    suspects.add("a", 10.0)
    suspects.add("a", 5.0)
    assert [suspects.knows("a", now) for now in (9.0, 10.0, 9.0)] == [True, False, False]
    for address in ("a", "b", "a", "c"):
        suspects.add(address, 20.0)
    assert [suspects.knows(address, 0.0) for address in ("a", "b", "c")] == [True, False, True]
    assert repr(suspects) == "<Suspects: 2>"


async def test_a_service_that_does_not_believe_the_gateway(
    town: Town, tmp_path: Path, rules: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """A gateway with another secret cannot speak for anybody: it does not even learn what there is."""
    other = dataclasses.replace(inside(tmp_path), auth=AuthSettings(internal=InternalSettings(secret=Secret("f" * 32))))
    await town.add("shop", settings=other)
    running = await town.gateway(settings=rules, ready=False)
    client = await town.client(running)

    async def informed() -> bool:
        return "does not say what it serves: UNAUTHENTICATED" in caplog.text

    await eventually(informed)
    assert (await client.get("/readyz")).status_code == 503


async def test_certificates_at_the_gateway(tmp_path: Path) -> None:
    """A certificate that a client shows over HTTP names its service, as over gRPC."""
    settings = settings_of(tmp_path)
    auth = dataclasses.replace(settings.auth, mtls="spiffe://shop/{service}")
    web = GatewaySettings(tls=ServerTls("cert.pem", ca="ca.pem"))
    async with guarded("gateway", dataclasses.replace(settings, auth=auth, gateway=web)) as security:
        admission = Admission(web, security)
        scope: dict[str, Any] = {"headers": [], PEER: Peer((), "spiffe://shop/partner")}
        await admission(scope, None)
        assert scope[IDENTITY] == Identity("partner", "mtls", "spiffe://shop/partner", service="partner")
