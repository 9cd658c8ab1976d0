"""A request that never became a call has a line in the log too, whichever protocol it speaks."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from framework.call import Handler, Method
from framework.errors import Unauthenticated
from framework.http.app import HttpApp
from framework.observation import LogSettings, TelemetrySettings
from framework.telemetry.telemetry import Telemetry
from tests.http.driver import ask, open_socket
from tests.http.library import Library, application

CONNECT = {"connect_protocol_version": "1", "content_type": "application/json"}


async def locked(scope: Any, method: Method[Any, Any] | None) -> None:
    """A guard that knows nobody."""
    raise Unauthenticated("no credentials: Bearer abcdefgh")


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[int, dict[str, Any]]]:
    """The lines of requests that were refused, without the peer."""
    found = []
    for record in caplog.records:
        if record.name == "framework.calls" and record.getMessage().startswith("refused"):
            fields = dict(vars(record)["fields"])
            assert fields.pop("peer").startswith("ipv4:")
            found.append((record.levelno, fields))
    return found


@pytest.mark.parametrize(
    ("request_line", "body", "headers", "status"),
    [
        ("GET /v1/shelves/1/books/2", None, {}, 401),
        ("GET /nothing", None, {}, 401),
        ("POST /lab.v1.Library/GetBook", "{}", CONNECT, 401),
        ("POST /lab.v1.Library/GetBook", b"\0\0\0\0\0", {"content_type": "application/grpc-web"}, 200),
    ],
)
async def test_who_has_no_credentials(
    library: Library, caplog: pytest.LogCaptureFixture, request_line: str, body: Any, headers: Any, status: int
) -> None:
    """A warning, with what was asked for, by whom and why not; no credentials are in it."""
    app = application(library)
    app.guard = locked
    with caplog.at_level(logging.INFO, "framework.calls"):
        assert (await ask(app, request_line, body, x_request_id="r-1", **headers)).status == status
    said = {"request": request_line, "status": status, "request_id": "r-1", "code": "UNAUTHENTICATED"}
    ((level, fields),) = lines(caplog)
    assert "abcdefgh" not in fields["error"]
    assert fields.pop("error").startswith("no credentials: Bearer ")
    assert (level, fields) == (logging.WARNING, said)


@pytest.mark.parametrize(
    ("request_line", "body", "headers", "status", "code", "level"),
    [
        ("GET /nothing", None, {}, 404, "NOT_FOUND", logging.INFO),
        ("PATCH /v1/files/a/b", None, {}, 405, "UNIMPLEMENTED", logging.WARNING),
        ("POST /v1/shelves/1/books", "{", {}, 400, "INVALID_ARGUMENT", logging.INFO),
        ("POST /lab.v1.Library/GetBook", "{", CONNECT, 400, "INVALID_ARGUMENT", logging.INFO),
        ("POST /lab.v1.Nobody/Get", "{}", CONNECT, 404, "UNIMPLEMENTED", logging.WARNING),
    ],
)
async def test_what_is_no_call(
    app: HttpApp, caplog: pytest.LogCaptureFixture,
    request_line: str, body: Any, headers: Any, status: int, code: str, level: int,
) -> None:  # fmt: skip
    """Nothing at a path, another HTTP method, a body that is no message."""
    with caplog.at_level(logging.INFO, "framework.calls"):
        assert (await ask(app, request_line, body, **headers)).status == status
    ((found, fields),) = lines(caplog)
    assert (found, fields["request"], fields["status"], fields["code"]) == (level, request_line, status, code)


async def test_a_websocket(app: HttpApp, caplog: pytest.LogCaptureFixture) -> None:
    """One that is not accepted."""
    with caplog.at_level(logging.INFO, "framework.calls"):
        await open_socket(app, "/nothing").done()
    ((_, fields),) = lines(caplog)
    assert (fields["request"], fields["code"]) == ("GET /nothing", "NOT_FOUND")


async def test_a_call_has_its_own_line(app: HttpApp, caplog: pytest.LogCaptureFixture) -> None:
    """A failure of the method is none of the request's."""
    with caplog.at_level(logging.INFO, "framework.calls"):
        assert (await ask(app, "POST /lab.v1.Library/GetBook", '{"name": "fail"}')).status == 404
        assert (await ask(app, "GET /v1/shelves/1/books/2")).status == 200
    assert lines(caplog) == []


async def test_calls_without_lines(library: Library, caplog: pytest.LogCaptureFixture) -> None:
    """`server = "none"` goes for these too, and so many in a second have one."""
    plain = application(library)

    def bind(method: Method[Any, Any]) -> Handler:
        return plain.methods[method.path].handler

    for settings, expected in ((LogSettings(server="none"), 0), (LogSettings(per_second=2), 2)):
        caplog.clear()
        telemetry = Telemetry(TelemetrySettings(logs=settings))
        app = HttpApp(plain.services, bind, telemetry=telemetry)
        with caplog.at_level(logging.INFO, "framework.calls"):
            for _ in range(5):
                await ask(app, "GET /nothing")
        assert len(lines(caplog)) == expected
