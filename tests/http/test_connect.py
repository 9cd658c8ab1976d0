"""Connect and gRPC-Web, byte by byte."""

from __future__ import annotations

import base64
import json

import pytest

from framework.http import compression
from framework.http.app import HttpApp
from framework.http.rpc import frame
from tests.http import lab
from tests.http.driver import Response, ask, open_request
from tests.http.library import Library, application

SERVICE = "/lab.v1.Library"
GetBookRequest, Book, Line, Lines, WatchRequest = map(
    lab.message, ("GetBookRequest", "Book", "Line", "Lines", "WatchRequest")
)


def frames(body: bytes) -> list[tuple[int, bytes]]:
    found = []
    while body:
        size = int.from_bytes(body[1:5], "big")
        found.append((body[0], body[5 : 5 + size]))
        body = body[5 + size :]
    return found


async def connect(app: HttpApp, name: str, body: bytes | str = b"{}", **headers: str) -> Response:
    return await ask(app, f"POST {SERVICE}/{name}", body, **{"connect_protocol_version": "1", **headers})


# Connect, unary


async def test_json(app: HttpApp) -> None:
    """A unary call in JSON is a plain POST."""
    response = await connect(app, "GetBook", '{"name": "x"}')
    assert (response.status, response.headers["content-type"]) == (200, "application/json")
    assert response.json == {"name": "x", "pages": "7", "color": "RED"}


async def test_proto(app: HttpApp) -> None:
    """And in bytes of protobuf."""
    response = await connect(
        app, "GetBook", GetBookRequest(name="x").SerializeToString(), content_type="application/proto"
    )
    assert (response.status, response.headers["content-type"]) == (200, "application/proto")
    assert Book.FromString(response.body) == Book(name="x", pages=7, color=1)


async def test_an_error(app: HttpApp) -> None:
    """An error has its name, its details in base64, and an HTTP status."""
    response = await connect(app, "GetBook", '{"name": "fail"}')
    assert (response.status, response.headers["content-type"]) == (404, "application/json")
    assert response.headers["trailer-x-why"] == "fire"
    shown = response.json
    (detail,) = shown.pop("details")
    assert shown == {"code": "not_found", "message": "no such book"}
    assert detail == {
        "type": "google.rpc.ErrorInfo",
        "value": base64.b64encode(b"\x0a\x04LOST").rstrip(b"=").decode(),
        "debug": {"reason": "LOST"},
    }


async def test_cancelled_has_one_l(app: HttpApp) -> None:
    """Connect spells one code as Go does."""
    assert (await connect(app, "GetBook", '{"name": "1"}')).json["code"] == "canceled"


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        (b"", "application/json", "this is no JSON: EOF while parsing a value, line 1 column 1"),
        (b'{"name": 1}', "application/json", "lab.v1.GetBookRequest.name: expected string got: number"),
        (b"\xff", "application/proto", "these bytes are no lab.v1.GetBookRequest"),
    ],
)
async def test_requests_that_are_none(app: HttpApp, body: bytes, content_type: str, message: str) -> None:
    """What is no message is an invalid argument."""
    response = await connect(app, "GetBook", body, content_type=content_type)
    assert (response.status, response.json) == (400, {"code": "invalid_argument", "message": message})


async def test_types(app: HttpApp) -> None:
    """A type that a method does not take is 415 with those that are taken."""
    for name, content_type in (
        ("GetBook", "text/plain"),
        ("Watch", "application/proto"),
        ("GetBook", "application/connect+json"),
    ):
        response = await connect(app, name, b"{}", content_type=content_type)
        assert (response.status, "application/proto" in response.headers["accept-post"]) == (415, True)


async def test_metadata(library: Library, app: HttpApp) -> None:
    """All headers are metadata but those of the protocol; trailers of the reply are headers with a prefix."""
    response = await connect(
        app, "GetBook", '{"name": "headers"}', tenant="a", x_raw_bin="/w", authorization="b", connect_timeout_ms="1000"
    )
    assert sorted(library.metadata) == [
        ("authorization", "b"),
        ("tenant", "a"),
        ("x-forwarded-for", "10.0.0.9"),
        ("x-forwarded-proto", "http"),
        ("x-raw-bin", b"\xff"),
    ]
    found = {key: value for key, value in response.headers.items() if not key.startswith("content")}
    assert found == {
        "etag": '"5"',
        "x-own": "a",
        "x-own-bin": "/wA",
        "trailer-x-last": "z",
        "trailer-x-last-bin": "AQ",
    }


@pytest.mark.virtual_time
async def test_a_deadline() -> None:
    """Milliseconds until the caller gives up."""
    response = await connect(application(Library()), "GetBook", '{"name": "hang"}', connect_timeout_ms="500")
    assert (response.status, response.json["code"]) == (504, "deadline_exceeded")


@pytest.mark.parametrize("encoding", compression.NAMES)
async def test_compression(app: HttpApp, encoding: str) -> None:
    """Whole bodies are packed as in HTTP."""
    body = compression.pack(encoding, b'{"name": "x", "big": true}')
    response = await connect(app, "GetBook", body, content_encoding=encoding, accept_encoding=encoding)
    assert response.headers["content-encoding"] == encoding
    assert len(json.loads(compression.unpack(encoding, response.body, 1 << 20))["tags"]) == 500


async def test_a_body_that_is_too_large(library: Library) -> None:
    """A limit holds for what is unpacked."""
    app = application(library, max_message=100)
    for body, headers in (
        (b'{"name": "%s"}' % (b"x" * 100), {}),
        (compression.pack("gzip", bytes(200)), {"content_encoding": "gzip"}),
    ):
        response = await connect(app, "GetBook", body, **headers)
        assert (response.status, response.json["code"]) == (413, "resource_exhausted")


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("connect=v1&encoding=json&message=%7B%22name%22%3A%22x%22%7D", 200),
        ("encoding=json&message=%7B%22name%22%3A%22x%22%7D", 200),
        ("connect=v1&encoding=json&base64=1&message=eyJuYW1lIjoieCJ9", 200),
        ("connect=v1&encoding=proto&base64=1&message=CgF4", 200),
        (
            "connect=v1&encoding=json&base64=1&compression=gzip&message="
            + base64.urlsafe_b64encode(compression.pack("gzip", b'{"name":"x"}')).rstrip(b"=").decode(),
            200,
        ),
        ("connect=v2&encoding=json&message=%7B%7D", 400),
        ("connect=v1&encoding=xml&message=%7B%7D", 415),
        ("connect=v1&encoding=json&base64=1&message=!", 400),
        ("connect=v1&encoding=json&compression=lzw&message=%7B%7D", 501),
    ],
)
async def test_get(app: HttpApp, query: str, status: int) -> None:
    """A method without side effects can be called by GET, for caches."""
    response = await ask(app, f"GET {SERVICE}/GetBook?{query}")
    assert response.status == status
    if status == 200 and "proto" in query:
        assert Book.FromString(response.body).name == "x"
    elif status == 200:
        assert response.json["name"] == "x"


async def test_get_with_bytes_that_are_no_text() -> None:
    """A binary message need not be in base64, and arrives as it is."""
    unknown = "%22%02%96%FF"  # a field that is not known, of two bytes that are no UTF-8
    query = f"connect=v1&encoding=proto&message={unknown}%0A%01x"
    response = await ask(application(Library()), f"GET {SERVICE}/GetBook?{query}")
    assert (response.status, Book.FromString(response.body).name) == (200, "x")


async def test_no_get(app: HttpApp) -> None:
    """A method that may have side effects cannot."""
    response = await ask(app, f"GET {SERVICE}/CreateBook?connect=v1&encoding=json&message=%7B%7D")
    assert (response.status, response.headers["allow"]) == (405, "POST")


# Connect, streams


async def connect_stream(app: HttpApp, name: str, *messages: bytes, kind: str = "json", **headers: str) -> Response:
    return await ask(
        app, f"POST {SERVICE}/{name}", b"".join(messages), content_type=f"application/connect+{kind}", **headers
    )


def texts(*values: str) -> list[bytes]:
    return [frame(0, b'{"text":"%s"}' % value.encode()) for value in values]


async def test_replies_in_frames(app: HttpApp) -> None:
    """Each reply is a frame, and the last frame says how it ended."""
    response = await connect_stream(app, "Watch", frame(0, b'{"count": 2}'))
    assert (response.status, response.headers["content-type"]) == (200, "application/connect+json")
    assert frames(response.body) == [(0, b'{"title":"book 1"}'), (0, b'{"title":"book 2"}'), (2, b"{}")]


async def test_requests_in_frames(app: HttpApp) -> None:
    """A method that takes many and answers once."""
    response = await connect_stream(app, "Collect", *texts("a", "b"))
    assert frames(response.body) == [(0, b'{"texts":["a","b"]}'), (2, b"{}")]


async def test_both_in_frames_of_proto(app: HttpApp) -> None:
    """Both directions, in bytes of protobuf."""
    sent = [frame(0, Line(text=text).SerializeToString()) for text in "ab"]
    response = await connect_stream(app, "Chat", *sent, kind="proto")
    *replies, end = frames(response.body)
    assert [Line.FromString(payload).text for _, payload in replies] == ["A", "B"]
    assert end == (2, b"{}")


async def test_a_stream_that_fails(app: HttpApp) -> None:
    """A failure is in the last frame, before the first message as after it."""
    for number in (1, 2):
        response = await connect_stream(app, "Watch", frame(0, b'{"failAt": %d}' % number))
        assert response.status == 200
        *replies, (flags, end) = frames(response.body)
        assert (len(replies), flags) == (number - 1, 2)
        error = json.loads(end)["error"]
        assert (error["code"], error["message"], error["details"][0]["debug"]) == (
            "aborted",
            "enough",
            {"reason": "TIRED"},
        )


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (frame(0, b"{}") + frame(0, b"{}"), "unimplemented"),
        (b"", "unimplemented"),
        (frame(0, b"{}")[:-1], "invalid_argument"),
        (b"\0\0", "invalid_argument"),
        (frame(0, b"{"), "invalid_argument"),
        (frame(0x40, b"{}"), "invalid_argument"),
        (frame(1, b"{}"), "internal"),
        (b"\0\xff\xff\xff\xff", "resource_exhausted"),
    ],
)
async def test_frames_that_are_none(app: HttpApp, body: bytes, code: str) -> None:
    """One request is one frame, and a frame is whole."""
    response = await connect_stream(app, "Watch", body)
    ((_, end),) = frames(response.body)
    assert json.loads(end)["error"]["code"] == code


@pytest.mark.parametrize("encoding", compression.NAMES)
async def test_compressed_frames(library: Library, encoding: str) -> None:
    """Frames are packed one by one."""
    app = application(library, compress_above=1)
    packed = frame(1, compression.pack(encoding, b'{"text":"a"}'))
    response = await connect_stream(
        app, "Chat", packed, *texts("b"), connect_content_encoding=encoding, connect_accept_encoding=encoding
    )
    assert response.headers["connect-content-encoding"] == encoding
    (flags, payload), _, _ = frames(response.body)
    assert (flags, compression.unpack(encoding, payload, 100)) == (1, b'{"text":"A","number":1}')


async def test_a_bomb_in_a_frame(library: Library) -> None:
    """A limit holds for each frame, after it is unpacked."""
    packed = frame(1, compression.pack("gzip", bytes(10_000)))
    response = await connect_stream(
        application(library, max_message=1000), "Collect", packed, connect_content_encoding="gzip"
    )
    ((_, end),) = frames(response.body)
    assert json.loads(end)["error"]["code"] == "resource_exhausted"
    assert "end" not in library.seen


async def test_an_encoding_that_is_not_known(app: HttpApp) -> None:
    """Even that is told in the last frame."""
    response = await connect_stream(app, "Collect", connect_content_encoding="lzw")
    ((_, end),) = frames(response.body)
    assert (response.status, json.loads(end)["error"]["code"]) == (200, "unimplemented")


async def test_a_stream_whose_client_goes(library: Library, app: HttpApp) -> None:
    """The call is cancelled, and the handler does not see the end of its requests."""
    conversation = open_request(app, f"POST {SERVICE}/Collect", [("content-type", "application/connect+json")])
    conversation.body(texts("a")[0], more=True)
    await library.entered.wait()
    conversation.leave()
    await conversation.done()
    assert library.seen == ["a"]


# gRPC-Web


async def grpc_web(app: HttpApp, name: str, *messages: bytes, kind: str = "grpc-web+proto", **headers: str) -> Response:
    body = b"".join(frame(0, message) for message in messages)
    if "text" in kind:
        body = base64.b64encode(body)
    return await ask(app, f"POST {SERVICE}/{name}", body, content_type=f"application/{kind}", **headers)


def status(payload: bytes) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in payload.decode().split("\r\n") if line)


async def test_grpc_web(app: HttpApp) -> None:
    """One message, and a frame with the status."""
    response = await grpc_web(app, "GetBook", GetBookRequest(name="x").SerializeToString())
    assert (response.status, response.headers["content-type"]) == (200, "application/grpc-web+proto")
    (_, book), (flags, end) = frames(response.body)
    assert (Book.FromString(book).name, flags, status(end)) == ("x", 0x80, {"grpc-status": "0"})


async def test_grpc_web_as_text(app: HttpApp) -> None:
    """The same in base64, frame by frame."""
    response = await grpc_web(app, "Watch", WatchRequest(count=2).SerializeToString(), kind="grpc-web-text")
    assert response.headers["content-type"] == "application/grpc-web-text"
    (one, two, end) = [frames(base64.b64decode(part))[0] for part in response.parts]
    assert [Book.FromString(payload).title for _, payload in (one, two)] == ["book 1", "book 2"]
    assert status(end[1]) == {"grpc-status": "0"}


async def test_text_in_pieces(app: HttpApp) -> None:
    """Base64 may come in pieces that are padded each, and cut anywhere."""
    sent = [base64.b64encode(frame(0, Line(text=text).SerializeToString())) for text in ("a", "bcd")]
    body = b"".join(sent)
    assert sent[0].endswith(b"=")
    conversation = open_request(app, f"POST {SERVICE}/Collect", [("content-type", "application/grpc-web-text")])
    for at in range(len(body)):
        conversation.body(body[at : at + 1], more=True)
    conversation.body()
    response = await conversation.done()
    assert list(Lines.FromString(frames(base64.b64decode(response.parts[0]))[0][1]).texts) == ["a", "bcd"]


async def test_grpc_web_in_json(app: HttpApp) -> None:
    """Messages may be JSON."""
    response = await grpc_web(app, "GetBook", b'{"name": "x"}', kind="grpc-web+json")
    assert json.loads(frames(response.body)[0][1])["name"] == "x"


async def test_grpc_web_that_fails(app: HttpApp) -> None:
    """The status has the code, the message, the details and the metadata."""
    response = await grpc_web(app, "GetBook", GetBookRequest(name="fail").SerializeToString())
    ((_, end),) = frames(response.body)
    found = status(end)
    details = base64.b64decode(found.pop("grpc-status-details-bin") + "==")
    assert b"type.googleapis.com/google.rpc.ErrorInfo" in details
    assert found == {"grpc-status": "5", "grpc-message": "no such book", "x-why": "fire"}


async def test_a_message_of_any_text(app: HttpApp) -> None:
    """A message is percent-encoded where it is no printable ASCII."""
    response = await grpc_web(app, "GetBook", b"\xff")
    assert status(frames(response.body)[0][1])["grpc-status"] == "3"
    from framework.errors import NotFound
    from framework.http.grpc_web import _end

    end = _end(None, NotFound("50% of Café\r\ngone"))
    assert status(end[5:])["grpc-message"] == "50%25 of Caf%C3%A9%0D%0Agone"


async def test_grpc_web_compressed(library: Library) -> None:
    """Frames are packed one by one, under gRPC's own headers."""
    app = application(library, compress_above=1)
    body = frame(1, compression.pack("gzip", GetBookRequest(name="x").SerializeToString()))
    response = await ask(
        app,
        f"POST {SERVICE}/GetBook",
        body,
        content_type="application/grpc-web",
        grpc_encoding="gzip",
        grpc_accept_encoding="gzip",
    )
    (flags, payload), _ = frames(response.body)
    assert (flags, response.headers["grpc-encoding"]) == (1, "gzip")
    assert Book.FromString(compression.unpack("gzip", payload, 100)).name == "x"


@pytest.mark.virtual_time
async def test_grpc_web_has_deadlines() -> None:
    """The timeout of gRPC is the deadline."""
    response = await grpc_web(
        application(Library()), "GetBook", GetBookRequest(name="hang").SerializeToString(), grpc_timeout="500m"
    )
    assert status(frames(response.body)[0][1])["grpc-status"] == "4"


async def test_grpc_web_in_an_encoding_that_is_not_known(app: HttpApp) -> None:
    """It is told with those that are known."""
    for kind in ("grpc-web", "grpc-web-text"):
        response = await grpc_web(app, "GetBook", b"", kind=kind, grpc_encoding="lzw")
        body = base64.b64decode(response.body) if "text" in kind else response.body
        assert status(frames(body)[0][1])["grpc-status"] == "12"
        assert response.headers["grpc-accept-encoding"] == "zstd,br,gzip"


async def test_methods_that_no_protocol_has(app: HttpApp) -> None:
    """Calls are made by POST, and by GET in Connect."""
    for kind in ("application/grpc-web", "application/proto"):
        response = await ask(app, f"PUT {SERVICE}/GetBook", b"x", content_type=kind)
        assert (response.status, response.headers["allow"].endswith("POST")) == (405, True)
    lost = await ask(app, f"POST {SERVICE}/NoSuch", b"x", content_type="application/proto")
    assert (lost.status, lost.body) == (404, b"")


async def test_bytes_that_no_protocol_has(app: HttpApp) -> None:
    """gRPC itself is not spoken here, and another flavour of gRPC-Web neither."""
    for kind in ("application/grpc", "application/grpc-web+thrift"):
        response = await ask(app, f"POST {SERVICE}/GetBook", b"x", content_type=kind)
        assert response.status == 415
