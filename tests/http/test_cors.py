"""Browsers on pages of other origins."""

from __future__ import annotations

import pytest

from framework.errors import ConfigError
from framework.http.settings import HttpSettings
from framework.web import CorsSettings
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
