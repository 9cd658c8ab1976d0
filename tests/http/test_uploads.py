"""Forms with files, and bytes as they are."""

from __future__ import annotations

import gzip
from functools import cache
from typing import Any

import pytest

from framework.call import Call, Handler, Method
from framework.http.app import HttpApp
from framework.http.front import Front
from framework.http.methods import services_in
from framework.http.openapi import document
from framework.http.settings import HttpSettings
from framework.web import CorsSettings, WebSettings
from tests.http.driver import Response, ask, open_request
from tests.http.lab import compile_text

FILES = """
syntax = "proto3";
package files;
import "google/api/annotations.proto";
import "google/api/httpbody.proto";

service Files {
  rpc Save(File) returns (File) { option (google.api.http) = { post: "/v1/files/{name}" body: "*" }; }
  rpc Put(File) returns (File) { option (google.api.http) = { put: "/v1/files/{name}" body: "data" }; }
  rpc Describe(File) returns (File) { option (google.api.http) = { post: "/v1/files/{name}:describe" body: "meta" }; }
  rpc Upload(stream File) returns (File) { option (google.api.http) = { post: "/v1/uploads/{name}" body: "*" }; }
  rpc Append(stream File) returns (File) { option (google.api.http) = { post: "/v1/appends/{name}" body: "data" }; }
}

message File {
  string name = 1;
  bytes data = 2;
  repeated bytes pages = 3;
  Meta meta = 4;
  google.api.HttpBody picture = 5;
  map<string, string> labels = 6;
  int32 number = 7;
  oneof kind { string word = 8; bytes blob = 9; }
}
message Meta { string title = 1; bytes icon = 2; }
"""

EDGE = "-----edge"
FORM = f"multipart/form-data; boundary={EDGE}"


@cache
def files() -> Any:
    """The service."""
    return services_in(compile_text(FILES), ["files.Files"])


class Desk:
    """An application that keeps the requests, and answers with the last."""

    def __init__(self, **settings: Any) -> None:
        self.requests: list[Any] = []
        self.ended = False
        self.app = HttpApp(files(), self._bind, HttpSettings(**settings))

    def _bind(self, method: Method[Any, Any]) -> Handler:
        async def handler(call: Call) -> Any:
            if not method.client_streaming:
                self.requests.append(call.request)
            else:
                async for one in call.request:
                    self.requests.append(one)
            self.ended = True
            return method.reply()

        return handler

    async def send(self, request: str, *parts: tuple[str, bytes], **headers: str) -> Response:
        """Send a form."""
        return await ask(self.app, request, form(*parts), **{"content_type": FORM, **headers})


def form(*parts: tuple[str, bytes]) -> bytes:
    """A form whose parts are each what stands behind `form-data; name=`, with more headers perhaps, and data."""
    written = b"".join(
        f"--{EDGE}\r\ncontent-disposition: form-data; name={head}\r\n\r\n".encode() + data + b"\r\n"
        for head, data in parts
    )
    return written + f"--{EDGE}--\r\n".encode()


async def test_a_form() -> None:
    """Each part is a field: files as they are, messages as JSON, all else as text; the path has the last word."""
    desk = Desk()
    response = await desk.send(
        "POST /v1/files/a",
        ('"data"; filename="x.bin"', b"\xff\x00\r\n"),
        ('"pages"', b"one"),
        ('"pages"; filename="2"', b""),
        ('"meta"\r\ncontent-type: application/json', b'{"title": "Caf\\u00e9"}'),
        ('"picture"; filename="p.png"\r\ncontent-type: image/png', b"\x89PNG"),
        ('"labels[color]"', b"red"),
        ('"number"', b"7"),
    )
    assert response.status == 200
    (request,) = desk.requests
    assert (request.name, request.data, list(request.pages)) == ("a", b"\xff\x00\r\n", [b"one", b""])
    assert (request.meta.title, request.labels["color"], request.number) == ("Café", "red", 7)
    assert (request.picture.content_type, request.picture.data) == ("image/png", b"\x89PNG")


async def test_a_form_for_one_field() -> None:
    """Where the rule names a message, the parts are the fields of that."""
    desk = Desk()
    response = await desk.send("POST /v1/files/a:describe", ('"title"', b"t"), ('"icon"; filename="i"', b"\xff"))
    assert response.status == 200
    (request,) = desk.requests
    assert (request.name, request.meta.title, request.meta.icon) == ("a", "t", b"\xff")


async def test_bytes_as_they_are() -> None:
    """A body of any type but JSON is what a field of bytes holds; JSON is base64 as always."""
    desk = Desk()
    for content_type, body in (("image/png", b"\x89PNG"), ("application/json", b'"iVBORw=="')):
        assert (await ask(desk.app, "PUT /v1/files/a", body, content_type=content_type)).status == 200
    assert [(one.name, one.data) for one in desk.requests] == [("a", b"\x89PNG"), ("a", b"\x89PNG")]


async def test_what_does_not_fit() -> None:
    """One violation for each part that does not, and no call."""
    desk = Desk()
    response = await desk.send(
        "POST /v1/files/a",
        ('"number"', b"x"),
        ('"nope"', b""),
        ('"data"', b"1"),
        ('"data"', b"2"),
        ('"meta"', b'{"titel": 1}'),
        ('"labels[a]"', b"\xff"),
        ('"word"', b"w"),
        ('"blob"', b"b"),
    )
    violations = response.json["details"][0]["fieldViolations"]
    assert (response.status, desk.requests) == (400, [])
    assert [(one["field"], one["description"]) for one in violations] == [
        ("number", "'x' is no whole number"),
        ("nope", 'files.File has no field "nope"'),
        ("data", "this is set twice"),
        ("meta", 'files.Meta has no field "titel"; did you mean "title"?'),
        ("labels[a]", "this is no UTF-8"),
        ("blob", "only one of kind can be set, and word is"),
    ]


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("multipart/form-data", b"x", 400),
        (FORM, b"x", 400),
        (FORM, form(('"number"', b"1"))[:-6], 400),
        (FORM, form(*[('"pages"', b"")] * 1001), 400),
        ("text/plain", b"x", 415),
        ("multipart/mixed; boundary=x", b"x", 415),
    ],
)
async def test_what_is_no_form(content_type: str, body: bytes, status: int) -> None:
    """It is refused, and so is one of too many parts, and what is not read here."""
    desk = Desk()
    response = await ask(desk.app, "POST /v1/files/a", body, content_type=content_type)
    assert (response.status, desk.requests) == (status, [])


async def test_a_form_that_is_too_large() -> None:
    """All of it counts where it is one message, after it is unpacked."""
    desk = Desk(max_message=2000)
    body = gzip.compress(form(('"data"', b"x" * 2000)))
    response = await ask(desk.app, "POST /v1/files/a", body, content_type=FORM, content_encoding="gzip")
    assert (response.status, desk.requests) == (413, [])


async def test_a_form_for_a_stream() -> None:
    """Each part is a message, and a file as many as it comes in, before the next part is there."""
    desk = Desk()
    conversation = open_request(desk.app, "POST /v1/uploads/a", [("content-type", FORM)])
    whole = form(('"word"', b"w"), ('"blob"; filename="f"', b"x" * 100_000), ('"number"', b"7"))
    for at in range(0, len(whole), 30_000):
        conversation.body(whole[at : at + 30_000], more=True)
    conversation.body()
    assert (await conversation.done()).status == 200
    first, *blobs, last = desk.requests
    assert (first.word, last.number, {one.name for one in desk.requests}) == ("w", 7, {"a"})
    assert (len(blobs) >= 3, b"".join(one.blob for one in blobs)) == (True, b"x" * 100_000)


async def test_bytes_for_a_stream() -> None:
    """Any other type than JSON is a message for each part that comes."""
    desk = Desk()
    conversation = open_request(desk.app, "POST /v1/appends/a", [("content-type", "text/csv")])
    conversation.body(b"a,b\n", more=True)
    conversation.body(b"c,d\n")
    assert (await conversation.done()).status == 200
    assert [(one.name, one.data) for one in desk.requests] == [("a", b"a,b\n"), ("a", b"c,d\n")]


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([('"blob"; filename="f"', b"x"), ('"nope"', b"")], 400),
        ([('"blob"; filename="f"', b"x"), ('"nope"; filename="f"', b"")], 400),
        ([('"number"', b"x")], 400),
        ([('"word"', b"x" * 3000)], 413),
        ([('"blob"; filename="f"', b"x" * 3000)], 200),
    ],
)
async def test_streams_that_do_not_fit(parts: list[tuple[str, bytes]], status: int) -> None:
    """The handler never sees their end; how large a message may be is no bound for a file."""
    desk = Desk(max_message=2000)
    response = await desk.send("POST /v1/uploads/a", *parts)
    assert (response.status, desk.ended) == (status, status == 200)


async def test_a_stream_that_breaks_off() -> None:
    """A form without its end is no form."""
    desk = Desk()
    body = form(('"blob"; filename="f"', b"x"))[:-6]
    response = await ask(desk.app, "POST /v1/uploads/a", body, content_type=FORM)
    assert (response.status, desk.ended) == (400, False)


@pytest.mark.parametrize(
    ("origin", "status"),
    [("https://evil.example", 403), ("https://shop.example", 200), ("http://files.example", 200), ("null", 403)],
)
@pytest.mark.parametrize("fronted", [True, False])
async def test_pages_of_other_origins(origin: str, status: int, fronted: bool) -> None:
    """A browser sends a form anywhere without asking, so the origin is looked at."""
    cors = CorsSettings(origins=("https://shop.example",))
    desk = Desk() if fronted else Desk(cors=cors)
    app: Any = Front(desk.app, WebSettings(cors=cors)) if fronted else desk.app
    headers = {"content_type": FORM, "origin": origin, "host": "files.example"}
    assert (await ask(app, "POST /v1/files/a", form(('"number"', b"1")), **headers)).status == status


def test_in_openapi() -> None:
    """Forms are documented where there are bytes to send, and bytes where they are the body."""
    paths = document(files())["paths"]
    saved = paths["/v1/files/{name}"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert saved["data"] == {"type": "string", "contentMediaType": "application/octet-stream"}
    assert saved["number"]["type"] == "integer"
    assert "name" not in saved
    assert "application/octet-stream" in paths["/v1/files/{name}"]["put"]["requestBody"]["content"]
    assert "multipart/form-data" in paths["/v1/uploads/{name}"]["post"]["requestBody"]["content"]
