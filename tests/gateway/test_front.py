"""CORS, origins of WebSockets, request ids and forwarded headers, before any application."""

from __future__ import annotations

from typing import Any

import pytest

from framework.config import Settings
from framework.errors import ConfigError
from framework.http.admission import client_of
from framework.http.asgi import peer_of
from framework.http.forwarded import Proxies
from framework.http.front import Front
from framework.reload import changes
from framework.web import CorsSettings, GatewaySettings, WebSettings
from tests.http.driver import Conversation, Response, open_socket, scope

SHOP = "https://shop.example.com"


async def answer(seen: Any, receive: Any, send: Any) -> None:
    if seen["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        return
    body = f"{seen['method']} {client_of(seen)}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
    seen["state"]["headers"] = seen["headers"]


async def ask(cors: Any, method: str, *headers: tuple[str, str], **settings: Any) -> Response:
    front = Front(answer, WebSettings.parse({"cors": cors, **settings}, "server.http"))
    conversation = Conversation(front, scope(method, "/path", headers, state={}))
    return await conversation.done()


def cors_of(response: Response) -> dict[str, str]:
    return {
        name.removeprefix("access-control-"): value
        for name, value in response.headers.items()
        if name.startswith("access-control-")
    }


PREFLIGHT = (("origin", SHOP), ("access-control-request-method", "PUT"), ("access-control-request-headers", "x-a,x-b"))


@pytest.mark.parametrize("origins", [[SHOP], ["https://*.example.com"], ["https://a", SHOP]])
async def test_preflight(origins: list[str]) -> None:
    """A page asks first, and is told what it may do."""
    response = await ask({"origins": origins, "credentials": True, "max_age": "5m"}, "OPTIONS", *PREFLIGHT)
    assert (response.status, response.body) == (204, b"")
    assert cors_of(response) == {
        "allow-origin": SHOP,
        "allow-credentials": "true",
        "allow-methods": "GET, HEAD, POST, PUT, PATCH, DELETE",
        "allow-headers": "x-a,x-b",
        "max-age": "300",
        "expose-headers": cors_of(response)["expose-headers"],
    }
    assert "origin" in response.headers["vary"]
    assert len(response.headers["x-request-id"]) > 8


@pytest.mark.parametrize(
    "origins",
    [[], ["https://other.example.com"], ["https://*.com.example"], ["http://*.example.com"], ["https://example.com"]],
)
async def test_preflight_of_a_stranger(origins: list[str]) -> None:
    """It is refused, and nothing allows it anything."""
    response = await ask({"origins": origins}, "OPTIONS", *PREFLIGHT)
    assert (response.status, response.json["code"]) == (403, 7)
    assert SHOP in response.json["message"]
    assert cors_of(response) == {}


async def test_a_request_of_a_page() -> None:
    """It is answered to whom it may concern; a stranger's browser keeps the answer from its page."""
    response = await ask({"origins": [SHOP]}, "GET", ("origin", SHOP))
    assert cors_of(response)["allow-origin"] == SHOP
    assert "grpc-status" in cors_of(response)["expose-headers"]
    assert response.headers["vary"] == "origin"
    response = await ask({"origins": [SHOP]}, "GET", ("origin", "https://evil.example.com"))
    assert (response.status, cors_of(response), response.headers["vary"]) == (200, {}, "origin")
    response = await ask({"origins": [SHOP]}, "GET")
    assert (cors_of(response), response.headers["vary"]) == ({}, "origin")


async def test_everybody() -> None:
    """The star is answered as such, and never with credentials."""
    response = await ask({"origins": ["*"]}, "GET", ("origin", SHOP))
    assert cors_of(response)["allow-origin"] == "*"
    assert "vary" not in response.headers
    with pytest.raises(ConfigError, match="let every page act for the user"):
        CorsSettings(origins=("*",), credentials=True)


async def test_options_that_are_no_preflight() -> None:
    """They are the application's."""
    response = await ask({"origins": [SHOP]}, "OPTIONS", ("origin", SHOP))
    assert response.body.startswith(b"OPTIONS")


@pytest.mark.parametrize(
    ("origin", "allowed"), [(SHOP, True), ("https://evil", False), ("http://here:80", True), (None, True)]
)
async def test_websockets(origin: str | None, allowed: bool) -> None:
    """Browsers do not ask first for them, so a strange page is turned away; one from here is not."""
    front = Front(answer, WebSettings(cors=CorsSettings(origins=(SHOP,))))
    headers = [("host", "here:80")] + ([] if origin is None else [("origin", origin)])
    conversation = open_socket(front, "/path", headers)
    await conversation.done()
    first = conversation.sent[0]
    assert (first["type"], first.get("status")) == (
        ("websocket.accept", None) if allowed else ("websocket.http.response.start", 403)
    )


@pytest.mark.parametrize(
    ("trusted", "forwarded", "client"),
    [
        ([], "1.1.1.1", "10.0.0.9"),
        (["10.0.0.9"], "1.1.1.1", "1.1.1.1"),
        (["10.0.0.0/8"], "6.6.6.6, 1.1.1.1, 10.2.3.4", "1.1.1.1"),
        (["10.0.0.0/8"], "10.1.1.1, 10.2.3.4", "10.1.1.1"),
        (["10.0.0.0/8"], "1.1.1.1:4711", "1.1.1.1"),
        (["10.0.0.0/8"], "[2001:db8::1]:4711", "2001:db8::1"),
        (["10.0.0.0/8"], "nonsense, ", "10.0.0.9"),
        (["192.168.0.0/16"], "1.1.1.1", "10.0.0.9"),
    ],
)
async def test_where_a_request_comes_from(trusted: list[str], forwarded: str, client: str) -> None:
    """From the last address that is no proxy of ours; what it says itself is not believed."""
    response = await ask({}, "GET", ("x-forwarded-for", forwarded), trusted=trusted)
    assert response.body.decode() == f"GET {client}"


@pytest.mark.parametrize(
    ("trusted", "forwarded", "peer"),
    [
        ([], "1.1.1.1", "ipv4:10.0.0.9:4711"),
        (["10.0.0.9"], "1.1.1.1:80", "ipv4:1.1.1.1"),
        (["10.0.0.9"], "[2001:db8::1]:80", "ipv6:[2001:db8::1]"),
        (["10.0.0.9"], "10.0.0.9", "ipv4:10.0.0.9:4711"),
    ],
)
async def test_how_a_client_is_written(trusted: list[str], forwarded: str, peer: str) -> None:
    """As gRPC writes it; of one behind proxies no port is known."""
    front = Front(answer, WebSettings.parse({"trusted": trusted}, "server.http"))
    seen = scope("GET", "/path", [("x-forwarded-for", forwarded)], state={})
    await Conversation(front, seen).done()
    assert peer_of(seen) == peer


async def test_headers_that_are_not_believed() -> None:
    """They do not get to the application, unless a proxy sent them."""
    sent = [("x-forwarded-for", "1.1.1.1"), ("x-forwarded-proto", "https"), ("forwarded", "for=1.1.1.1"), ("x-a", "b")]
    for trusted, names in (((), ["x-a"]), (("10.0.0.9",), [name for name, _ in sent])):
        front = Front(answer, WebSettings(trusted=trusted))
        seen = scope("GET", "/path", sent, state={})
        await Conversation(front, seen).done()
        assert [name.decode() for name, _ in seen["state"]["headers"] if name != b"x-request-id"] == names


@pytest.mark.parametrize("sent", [("a b",), ("",), ("a\tb",), ("x" * 129,), ("a", "b")])
async def test_request_ids(sent: tuple[str, ...]) -> None:
    """There is one, whatever came; the answer has the same."""
    front = Front(answer, WebSettings())
    seen = scope("GET", "/path", [("x-request-id", one) for one in sent], state={})
    response = await Conversation(front, seen).done()
    [id] = [value.decode() for name, value in seen["state"]["headers"] if name == b"x-request-id"]
    assert response.headers["x-request-id"] == id
    assert id == "a" if sent[0] == "a" else id not in sent


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cors": {"origins": ["example.com"]}}, "server.http.cors.origins has 'example.com', which is no origin"),
        ({"trusted": ["10.0.0.1/8"]}, "server.http.trusted has '10.0.0.1/8', which is no address or network"),
        (
            {"rate_limits": {"a.B/C": {"rat": 1}}},
            "server.http.rate_limits.a.B/C.rat is not a setting. Did you mean rate",
        ),
        (
            {"rate_limit": {"burst": 5}},
            'server.http.rate_limit has no rate, as in { rate = 50, burst = 100 }; for no limit write "off"',
        ),
        ({"rate_limits": {"a.B/C": {}}}, "server.http.rate_limits.a.B/C has no rate"),
        (
            {"rate_limit": {"rate": 0}},
            'server.http.rate_limit.rate is 0; it must be more than 0; for no limit write "off"',
        ),
        ({"limits": {"head_timeout": 0}}, "server.http.limits.head_timeout is 0"),
        ({"cors": {"headers": "x a"}}, "server.http.cors.headers has 'x a', which is no header"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    """Each is told with its place and what may stand there."""
    with pytest.raises(ConfigError) as raised:
        WebSettings.parse(settings, "server.http")
    assert message in str(raised.value)


def test_proxies_remember() -> None:
    """What is no address is nobody's proxy."""
    proxies = Proxies(["10.0.0.0/8", "::1"])
    assert [proxies.trusts(one) for one in ("10.9.9.9", "::1", "11.0.0.1", "unix", "")] == [
        *(True, True, False, False, False)
    ]


def test_changes_of_the_file() -> None:
    """What a gateway was started with stays; the log is to say so."""
    old, new = Settings(), Settings(gateway=GatewaySettings(services=("a", "b"), cors=CorsSettings(max_age=5.0)))
    assert [(str(one), one.restart) for one in changes(old, new)] == [
        ("gateway.cors.max_age 10m -> 5s", True),
        ("gateway.services none -> a, b", True),
    ]
