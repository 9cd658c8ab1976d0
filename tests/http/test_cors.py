"""Browsers on pages of other origins."""

from __future__ import annotations

from typing import Any

import pytest

from framework.errors import ConfigError
from framework.http.front import Front
from framework.http.settings import HttpSettings
from framework.web import CorsSettings, WebSettings
from tests.http.driver import ask, open_socket
from tests.http.library import Library, application

SHOP = "https://shop.example"
EXPOSED = ", ".join(CorsSettings().expose)


def told(headers: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in headers.items() if key.startswith("access-control") or key == "vary"}


async def test_a_page_that_may_call(library: Library) -> None:
    """A browser that asks is told, and reads the answer, an error as well."""
    app = application(library, cors=CorsSettings(origins=(SHOP,)))
    asked = await ask(
        app,
        "OPTIONS /v1/books/x",
        origin=SHOP,
        access_control_request_method="GET",
        access_control_request_headers="x-tenant",
    )
    assert asked.status == 204
    assert told(asked.headers) == {
        "access-control-allow-origin": SHOP,
        "access-control-allow-methods": "GET, HEAD, POST, PUT, PATCH, DELETE",
        "access-control-allow-headers": "x-tenant",
        "access-control-max-age": "600",
        "access-control-expose-headers": EXPOSED,
        "vary": "origin,access-control-request-headers",
    }
    for request in ("GET /v1/books/x", "GET /v1/books/fail", "GET /nope", "GET /v1/shelves/1:watch"):
        response = await ask(app, request, origin=SHOP)
        assert response.headers["access-control-allow-origin"] == SHOP


async def test_a_page_that_may_not(library: Library) -> None:
    """Another origin is told nothing, which is a no; neither is one when no origin is allowed."""
    for origins in ((SHOP,), ()):
        app = application(library, cors=CorsSettings(origins=origins))
        asked = await ask(
            app, "OPTIONS /v1/books/x", origin="https://evil.example", access_control_request_method="GET"
        )
        called = await ask(app, "GET /v1/books/x", origin="https://evil.example")
        for response in (asked, called):
            assert "access-control-allow-origin" not in response.headers


async def test_everybody(library: Library) -> None:
    """A star is every origin, and the same answer for all."""
    response = await ask(application(library, cors=CorsSettings(origins=("*",))), "GET /v1/books/x", origin=SHOP)
    assert told(response.headers) == {"access-control-allow-origin": "*", "access-control-expose-headers": EXPOSED}


@pytest.mark.parametrize(
    ("origins", "origin", "opens"),
    [
        ((), None, True),
        ((), "http://books.example", True),
        ((), SHOP, False),
        ((SHOP,), SHOP, True),
        ((SHOP,), "https://evil.example", False),
        (("*",), SHOP, True),
        ((), "http://böcher.example", False),
        ((), "http://[", False),
        ((), "null", False),
    ],
)
async def test_websockets(library: Library, origins: tuple[str, ...], origin: str | None, opens: bool) -> None:
    """A page may open a WebSocket on its own origin, and elsewhere when that is allowed; others are no browsers."""
    headers = [("host", "books.example"), *([("origin", origin)] if origin else [])]
    conversation = open_socket(application(library, cors=CorsSettings(origins=origins)), "/v1/shelves/1:watch", headers)
    await conversation.done()
    assert (conversation.sent[0]["type"] == "websocket.accept") is opens


BOOK = '{"title": "x"}'
UNASKED = {
    "no type": ("POST /v1/shelves/1/books", BOOK, ""),
    "no body": ("POST /v1/shelves/1/books", "", ""),
    "parameters without a type": ("POST /v1/shelves/1/books", BOOK, "; charset=utf-8"),
    "text that is JSON": ("POST /v1/shelves/1/books", BOOK, "Text/Plain; charset=utf-8; application/json"),
    "a form": ("POST /v1/shelves/1/books", "title=x", "application/x-www-form-urlencoded"),
    "no body to be": ("DELETE /v1/shelves/1/books/x", "", ""),
    "bytes": ("PUT /v1/files/x", "x", "text/plain"),
    "a stream": ("POST /v1/lines", '{"text": "x"}', ""),
    "a method's own path": ("POST /lab.v1.Library/CreateBook", BOOK, ""),
    "another content type there": ("POST /lab.v1.Library/CreateBook", BOOK, "text/plain"),
}


@pytest.mark.parametrize("name", UNASKED)
@pytest.mark.parametrize("fronted", [True, False])
async def test_what_browsers_send_without_asking(library: Library, name: str, fronted: bool) -> None:
    """A page that may not call is refused what its browser sends anywhere, before anything is called."""
    request, body, content_type = UNASKED[name]
    cors = CorsSettings(origins=(SHOP,))
    app: Any = Front(application(library), WebSettings(cors=cors)) if fronted else application(library, cors=cors)
    headers = {"host": "books.example", "content_type": content_type}
    for origin in ("https://evil.example", "null"):
        refused = await ask(app, request, body, origin=origin, **headers)
        assert (refused.status, refused.json["code"], library.seen) == (403, 7, [])
    for own in ({"origin": SHOP}, {"origin": "https://books.example"}, {}):
        assert (await ask(app, request, body, **headers, **own)).status != 403
    behind = {"host": "10.0.0.1", "content_type": content_type, "origin": "https://books.example"}
    assert (await ask(app, request, body, **behind)).status == 403
    assert (await ask(app, request, body, **behind, sec_fetch_site="same-origin")).status != 403
    assert (await ask(app, request, body, **behind, sec_fetch_site="same-site")).status == 403


@pytest.mark.parametrize("request_", ["GET /v1/books/x", "HEAD /v1/books/x"])
async def test_pages_may_look(library: Library, request_: str) -> None:
    """Reading does nothing, and browsers show the answer to nobody who may not see it."""
    app = application(library, cors=CorsSettings(origins=(SHOP,)))
    assert (await ask(app, request_, origin="https://evil.example", host="books.example")).status == 200


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_message": 0}, "HttpSettings.max_message is 0; it must be more than 0"),
        ({"heartbeat": -1}, "HttpSettings.heartbeat is -1; it must be more than 0"),
        ({"unknown_query": "x"}, "HttpSettings.unknown_query is 'x'; choose one of reject, ignore"),
        ({"headers": ("X-Tenant",)}, "HttpSettings: 'X-Tenant' is no header; they are written in lower case"),
    ],
)
def test_settings_that_are_none(settings: dict[str, object], message: str) -> None:
    """Settings refuse what cannot be, in one line."""
    with pytest.raises(ConfigError) as raised:
        HttpSettings(**settings)  # type: ignore[arg-type]  # on purpose
    assert str(raised.value) == message
