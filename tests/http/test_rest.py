"""REST: one message both ways, and how failures are told."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import pytest

from framework.call import Call, Handler, Method
from framework.errors import Code, ResourceExhausted
from framework.http import compression
from framework.http.app import HttpApp
from tests.http import lab
from tests.http.driver import ask, open_request, open_socket
from tests.http.library import SERVICE, Library, application


async def test_a_get(app: HttpApp) -> None:
    """Path in, JSON out."""
    response = await ask(app, "GET /v1/shelves/1/books/2")
    assert (response.status, response.headers["content-type"]) == (200, "application/json")
    assert response.json == {"name": "shelves/1/books/2", "pages": "7", "color": "RED"}
    assert response.headers["content-length"] == str(len(response.body))


async def test_a_post(app: HttpApp) -> None:
    """Path, query and body make one message."""
    response = await ask(app, "POST /v1/shelves/1/books?requestId=r", '{"title": "Café", "tags": ["a"]}')
    assert response.json == {"name": "shelves/1/books/r", "title": "Café", "tags": ["a"]}


async def test_the_path_that_every_method_has(app: HttpApp) -> None:
    """A method can be called under its own name, annotated or not."""
    response = await ask(app, "POST /lab.v1.Library/GetBook", '{"name": "x"}')
    assert (response.status, response.json["name"]) == (200, "x")


async def test_an_empty_reply(app: HttpApp) -> None:
    """A message without fields is an empty object."""
    response = await ask(app, "DELETE /v1/shelves/1/books/2")
    assert (response.status, response.body) == (200, b"{}")


@pytest.mark.parametrize(
    ("verb", "there", "empty"),
    [
        ("only", [{"title": "shelves/1"}], []),
        ("counts", {"a": 1}, {}),
        ("token", "next", ""),
        ("best", {"title": "best"}, None),
        ("total", 5, 0),
    ],
)
async def test_one_field_of_the_reply(app: HttpApp, verb: str, there: Any, empty: Any) -> None:
    """`response_body` takes one field out of the reply, whatever it is, and its default when it is not set."""
    assert (await ask(app, f"GET /v1/shelves/1/books:{verb}?page_size=1")).json == there
    assert (await ask(app, f"GET /v1/shelves/1/books:{verb}")).json == empty


async def test_a_body_that_is_no_json(app: HttpApp) -> None:
    """An HttpBody goes out as it is, and comes in as it is."""
    response = await ask(app, "GET /v1/files/a/b", accept_encoding="gzip")
    assert (response.headers["content-type"], response.body) == ("image/png", b"a/b" * 300)
    response = await ask(app, "PUT /v1/files/x?note=n", b"\xff\x00", content_type="image/gif")
    assert (response.headers["content-type"], response.body) == ("image/gif", b"\xff\x00")


async def test_a_method_of_its_own(app: HttpApp) -> None:
    """A custom rule may have any HTTP method."""
    response = await ask(app, "QUERY /v1/echo", '{"fl": 0.1, "any": {"@type": "type.googleapis.com/lab.v1.Inner"}}')
    assert response.json == {"fl": 0.1, "any": {"@type": "type.googleapis.com/lab.v1.Inner"}}


@pytest.mark.parametrize(
    ("code", "status"),
    [
        *((Code.CANCELLED, 499), (Code.UNKNOWN, 500), (Code.INVALID_ARGUMENT, 400), (Code.DEADLINE_EXCEEDED, 504)),
        *((Code.NOT_FOUND, 404), (Code.ALREADY_EXISTS, 409), (Code.PERMISSION_DENIED, 403)),
        *((Code.RESOURCE_EXHAUSTED, 429), (Code.FAILED_PRECONDITION, 400), (Code.ABORTED, 409)),
        *((Code.OUT_OF_RANGE, 400), (Code.UNIMPLEMENTED, 501), (Code.INTERNAL, 500), (Code.UNAVAILABLE, 503)),
        *((Code.DATA_LOSS, 500), (Code.UNAUTHENTICATED, 401)),
    ],
)
async def test_codes(app: HttpApp, code: Code, status: int) -> None:
    """Each code has its HTTP status, and its number in the body."""
    response = await ask(app, f"GET /v1/books/{code.value}")
    assert (response.status, response.json) == (status, {"code": code.value, "message": f"code {code.value}"})


async def test_a_failure_with_details(app: HttpApp) -> None:
    """Details are in the body, metadata of the failure in headers."""
    response = await ask(app, "GET /v1/books/fail", x_request_id="r7")
    assert response.status == 404
    assert response.json == {
        "code": 5,
        "message": "no such book",
        "details": [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "LOST"}],
    }
    assert (response.headers["grpc-trailer-x-why"], response.headers["x-request-id"]) == ("fire", "r7")


async def test_when_to_come_back(app: HttpApp) -> None:
    """RetryInfo is a Retry-After too, in whole seconds."""
    response = await ask(app, "GET /v1/books/busy")
    assert (response.status, response.headers["retry-after"]) == (503, "4")


async def test_a_server_that_is_overloaded(library: Library) -> None:
    """What the server tells gRPC clients of when to come back is told here too."""

    def bind(method: Method[Any, Any]) -> Handler:
        async def handler(call: Call) -> Any:
            raise ResourceExhausted("busy", metadata=(("grpc-retry-pushback-ms", "1500"),))

        return handler

    response = await ask(HttpApp([SERVICE], bind), "GET /v1/books/x")
    assert (response.status, response.headers["retry-after"]) == (429, "2")
    assert "grpc-trailer-grpc-retry-pushback-ms" not in response.headers


async def test_a_detail_that_nobody_knows(library: Library, app: HttpApp) -> None:
    """An Any of an unknown type does not lose the error."""
    from google.protobuf.any_pb2 import Any as Packed

    shown = app.details.status(5, "m", [Packed(type_url="type.googleapis.com/no.Such", value=b"\xff")])
    assert shown["details"] == [{"@type": "type.googleapis.com/no.Such", "value": "/w=="}]
    inner = Packed()
    inner.Pack(lab.message("Inner")(text="x"))
    assert app.details.status(5, "m", [inner])["details"][0]["text"] == "x"


async def test_a_bug_is_not_told(app: HttpApp, caplog: pytest.LogCaptureFixture) -> None:
    """An exception of a handler is INTERNAL with an id, and its text stays in the log."""
    response = await ask(app, "GET /v1/books/bug")
    assert (response.status, response.json["code"]) == (500, 13)
    assert b"secret" not in response.body
    assert "secret" in caplog.text


async def test_a_defect_of_our_own(library: Library, caplog: pytest.LogCaptureFixture) -> None:
    """What must not happen is answered too, and logged."""
    app = application(library)
    app.router.find = lambda http, path: 1 / 0  # type: ignore[assignment, method-assign, return-value]  # broken on purpose
    response = await ask(app, "GET /v1/books/x")
    assert (response.status, response.json["code"]) == (500, 13)
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    ("request_", "status", "code", "allow"),
    [
        ("GET /nope", 404, 5, None),
        ("DELETE /v1/books/x", 405, 12, "GET, HEAD, OPTIONS"),
        ("GET /lab.v1.Library/GetBook", 400, 3, None),
        ("PUT /lab.v1.Library/GetBook", 405, 12, "GET, OPTIONS, POST"),
        ("GET /lab.v1.Library/CreateBook", 405, 12, "OPTIONS, POST"),
        ("POST /v1/shelves/1/books/2", 405, 12, "DELETE, GET, HEAD, OPTIONS, PATCH, PUT"),
        ("GET /v1/books/%zz", 400, 3, None),
        ("GET /v1/books/x?nope=1", 400, 3, None),
    ],
)
async def test_what_is_not_there(app: HttpApp, request_: str, status: int, code: int, allow: str | None) -> None:
    """No path, no such method on a path, and a request that does not fit are kept apart."""
    response = await ask(app, request_)
    assert (response.status, response.json["code"], response.headers.get("allow")) == (status, code, allow)


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=UTF-8", 200),
        ("application/vnd.lab+json", 200),
        ("application/json; charset=latin1", 415),
        ("application/x-www-form-urlencoded", 415),
        ("application/xml", 415),
    ],
)
async def test_types_of_bodies(app: HttpApp, content_type: str, status: int) -> None:
    """JSON in UTF-8 is read, and 415 says that something else is not."""
    response = await ask(app, "POST /v1/books:get", '{"name": "x"}', content_type=content_type)
    assert response.status == status


async def test_head_and_options(library: Library, app: HttpApp) -> None:
    """HEAD is a GET without its body; OPTIONS tells what is allowed."""
    got, head = await ask(app, "GET /v1/books/x"), await ask(app, "HEAD /v1/books/x")
    assert (head.status, head.headers, head.body) == (200, got.headers, b"")
    options = await ask(app, "OPTIONS /v1/books/x")
    assert (options.status, options.headers["allow"], options.body) == (204, "GET, HEAD, OPTIONS", b"")
    assert (await ask(app, "OPTIONS *")).status == 204
    head = await ask(app, "HEAD /v1/shelves/1:watch", accept="text/event-stream")
    assert (head.headers["content-type"], "content-length" in head.headers) == ("text/event-stream", False)
    assert head.body == b""
    assert library.seen == []  # a stream is not begun for it


async def test_a_body_that_is_too_large(library: Library) -> None:
    """413 for a body that says so, for one that turns out so, and for one that unpacks to it."""
    app = application(library, max_message=1000)
    body = json.dumps({"title": "x" * 1000}).encode()
    said = await ask(app, "POST /v1/shelves/1/books", body, content_length=str(len(body)))
    endless = await ask(app, "POST /v1/shelves/1/books", body, content_length="9" * 5000)
    untold = await ask(app, "POST /v1/shelves/1/books", body)
    packed = await ask(app, "POST /v1/shelves/1/books", gzip.compress(body), content_encoding="gzip")
    assert [(r.status, r.json["code"]) for r in (said, endless, untold, packed)] == [(413, 8)] * 4
    parted = open_request(app, "POST /v1/shelves/1/books", [("content-type", "application/json")])
    for at in range(0, len(body), 300):
        parted.body(body[at : at + 300], more=True)
    assert (await parted.done()).status == 413
    assert library.seen == []


@pytest.mark.parametrize("encoding", compression.NAMES)
async def test_compression(app: HttpApp, encoding: str) -> None:
    """Bodies are unpacked, and packed for clients that take it, when it is worth it."""
    body = compression.pack(encoding, b'{"name": "x", "big": true}')
    response = await ask(app, "POST /v1/books:get", body, content_encoding=encoding, accept_encoding=encoding)
    assert (response.headers["content-encoding"], response.headers["vary"]) == (encoding, "accept-encoding")
    assert len(json.loads(compression.unpack(encoding, response.body, 1 << 20))["tags"]) == 500
    small = await ask(app, "GET /v1/books/x", accept_encoding=encoding)
    assert "content-encoding" not in small.headers


async def test_encodings_that_are_none(app: HttpApp) -> None:
    """An unknown encoding is 415 with those that are known; rubbish is 400."""
    unknown = await ask(app, "POST /v1/books:get", "{}", content_encoding="lzw")
    assert (unknown.status, unknown.headers["accept-encoding"]) == (415, "zstd, br, gzip")
    assert (await ask(app, "POST /v1/books:get", "{}", content_encoding="gzip")).status == 400


async def test_metadata(library: Library, app: HttpApp) -> None:
    """What the settings name passes, and what is added tells where the request came from."""
    await ask(
        app,
        "GET /v1/books/x",
        authorization="Bearer t",
        x_tenant="a",
        grpc_metadata_color="blue",
        x_raw_bin=base64.b64encode(b"\xff\x00").decode(),
        x_broken_bin="!",
        cookie="c",
        connection="close",
        grpc_encoding="gzip",
        x_latin="é",
        x_forwarded_for="1.2.3.4",
        grpc_metadata_x_forwarded_for="6.6.6.6",
        host="books.example",
    )
    assert sorted(library.metadata) == [
        ("authorization", "Bearer t"),
        ("color", "blue"),
        ("x-forwarded-for", "1.2.3.4, 10.0.0.9"),
        ("x-forwarded-host", "books.example"),
        ("x-forwarded-proto", "http"),
        ("x-raw-bin", b"\xff\x00"),
        ("x-tenant", "a"),
    ]


NEVER = (
    *(
        "connection",
        "transfer-encoding",
        "upgrade",
        "keep-alive",
        "proxy-connection",
        "host",
        "te",
        "trailer",
        "expect",
    ),
    *("content-length", "content-type", "content-encoding", ":path", "grpc-timeout", "framework-identity"),
    *("x-forwarded-for", "x-forwarded-port", "forwarded", "x-real-ip", "x-request-id", "authorization", "x-api-key"),
)


@pytest.mark.parametrize("name", NEVER)
async def test_metadata_that_is_none(app: HttpApp, library: Library, name: str) -> None:
    """What HTTP/2 would take for its own, or was looked at under its own name, cannot be had under another name."""
    sent = [("host", "books.example"), (f"grpc-metadata-{name}", "5"), (f"grpc-metadata-grpc-metadata-{name}", "5")]
    request = open_request(app, "GET /v1/books/x", sent)
    request.body()
    assert ((await request.done()).status, "5" in dict(library.metadata).values()) == (200, False)
    conversation = open_socket(app, "/v1/shelves/1:watch", sent)
    await conversation.done()
    assert library.seen == [1, 2, 3]
    assert "5" not in dict(library.metadata).values()


@pytest.mark.parametrize("name", ["transfer-encoding", "te", "expect", "http2-settings", "content-language"])
async def test_metadata_that_is_none_in_connect(app: HttpApp, library: Library, name: str) -> None:
    """The same for the protocols in which all other headers are metadata."""
    sent = [("connect-protocol-version", "1"), ("content-type", "application/json"), (name, "5"), ("x-mine", "6")]
    conversation = open_request(app, "POST /lab.v1.Library/GetBook", sent)
    conversation.body(b"{}")
    assert (await conversation.done()).status == 200
    assert [value for value in dict(library.metadata).values() if value in ("5", "6")] == ["6"]


async def test_metadata_of_replies(app: HttpApp) -> None:
    """Headers and trailers of the reply are headers, binary ones in base64; some under their own names."""
    response = await ask(app, "GET /v1/books/headers")
    found = {key: value for key, value in response.headers.items() if not key.startswith("content")}
    assert found == {
        "etag": '"5"',
        "grpc-metadata-x-own": "a",
        "grpc-metadata-x-own-bin": "/wA",
        "grpc-trailer-x-last": "z",
        "grpc-trailer-x-last-bin": "AQ",
    }


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    ("header", "value"), [("grpc_timeout", "50m"), ("connect_timeout_ms", "50"), ("x_server_timeout", "0.05")]
)
async def test_deadlines(header: str, value: str) -> None:
    """A timeout in any of three headers is the deadline of the call, and ends it."""
    library = Library()
    response = await ask(application(library), "GET /v1/books/hang", **{header: value})
    assert (response.status, response.json["code"]) == (504, 4)
    assert library.remaining == pytest.approx(0.05)
    assert library.cancelled.is_set()


@pytest.mark.parametrize("value", ["", "5", "-1S", "1h", "99999999999S"])
async def test_deadlines_that_are_none(app: HttpApp, value: str) -> None:
    """A timeout that is no duration is refused."""
    assert (await ask(app, "GET /v1/books/x", grpc_timeout=value)).status == 400


@pytest.mark.virtual_time
async def test_a_deadline_that_is_too_long_is_cut() -> None:
    """The settings say how long a call may be at most."""
    library = Library()
    await ask(application(library, max_timeout=2), "GET /v1/books/x", grpc_timeout="1H")
    assert library.remaining == pytest.approx(2)


async def test_the_client_goes(library: Library, app: HttpApp) -> None:
    """A call is cancelled when nobody waits for it, and nothing is sent."""
    conversation = open_request(app, "GET /v1/books/hang")
    conversation.body()
    await library.entered.wait()
    conversation.leave()
    response = await conversation.done()
    assert (library.cancelled.is_set(), response.status) == (True, 0)


async def test_the_client_goes_before_its_body_is_there(library: Library, app: HttpApp) -> None:
    """Half a body is no request."""
    conversation = open_request(app, "POST /v1/shelves/1/books", [("content-type", "application/json")])
    conversation.body(b'{"title": ', more=True)
    conversation.leave()
    response = await conversation.done()
    assert (library.seen, response.status) == ([], 0)


@pytest.mark.virtual_time
@pytest.mark.parametrize("sent", [b"", b'{"title": '])
async def test_a_body_that_does_not_come(sent: bytes) -> None:
    """A body has so long to arrive, then 408 says so."""
    app = application(Library(), body_timeout=3600)
    headers = [("content-type", "application/json"), ("content-length", "50")]
    conversation = open_request(app, "POST /v1/shelves/1/books", headers)
    if sent:
        conversation.body(sent, more=True)
    assert (await conversation.done()).status == 408


async def test_a_prefix(app: HttpApp) -> None:
    """An application that is mounted under a prefix serves what is below it."""
    from tests.http.driver import Conversation, scope

    conversation = Conversation(app, scope("GET", "/api/v1/books/x", root_path="/api"))
    conversation.body()
    assert (await conversation.done()).json["name"] == "x"
    conversation = Conversation(app, scope("GET", "/apix/v1/books/x", root_path="/api"))
    conversation.body()
    assert (await conversation.done()).status == 404


async def test_lifespan(app: HttpApp) -> None:
    """A server may ask whether the application has started, and stopped."""
    from tests.http.driver import Conversation

    conversation = Conversation(app, {"type": "lifespan"})
    conversation.event("lifespan.startup")
    conversation.event("lifespan.shutdown")
    await conversation.done()
    assert [m["type"] for m in conversation.sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_a_reply_that_has_no_json(app: HttpApp) -> None:
    """A reply that cannot be shown is a failure of this side, in every protocol and before a stream begins."""
    plain = await ask(app, "POST /lab.v1.Library/Unshown", "{}")
    stream = await ask(app, "POST /lab.v1.Library/UnshownStream", "{}")
    connect = await ask(app, "POST /lab.v1.Library/Unshown", "{}", connect_protocol_version="1")
    for response in (plain, stream):
        assert (response.status, response.json["code"]) == (500, 13)
        assert "no.Such" in response.json["message"]
    assert (connect.status, connect.json["code"]) == (500, "internal")


async def test_other_names_and_defaults(library: Library) -> None:
    """Options of JSON hold for whole replies and for one field of them."""
    from framework.http.json import JsonOptions

    app = application(library, json=JsonOptions(defaults=True, proto_names=True, enum_numbers=True))
    book = (await ask(app, "GET /v1/books/x")).json
    assert (book["color"], book["tags"], "author" in book) == (1, [], False)
    assert (await ask(app, "GET /v1/shelves/1/books:total?page_size=1")).json == 5
    assert (await ask(app, "GET /v1/shelves/1/books:token")).json == ""
    assert "next_page_token" in (await ask(app, "GET /v1/shelves/1/books")).json


async def test_a_server_without_raw_paths(app: HttpApp) -> None:
    """A server that gives only the decoded path is served as well as can be."""
    from tests.http.driver import Conversation, scope

    given = scope("GET", "/v1/books/a b")
    del given["raw_path"]
    conversation = Conversation(app, given)
    conversation.body()
    assert (await conversation.done()).json["name"] == "a b"
