"""What `fuzz` sends: valid requests of every protocol, and what becomes of them when they are broken."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from google.protobuf import json_format

from framework.call import Method
from framework.http.app import HttpApp
from framework.http.rpc import frame
from tests.http import lab
from tests.http.grammar import Grammar
from tests.http.grammar import message as json_message

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True)
class Input:
    """A request as a server hands it on; for a WebSocket the parts are frames.

    Attributes:
        kind: where the seed came from, `rest` or `connect-stream`.
        leaves: the client goes behind the last part, and does not end the body.
    """

    kind: str
    http: str
    path: bytes
    query: bytes = b""
    headers: Headers = ()
    parts: tuple[bytes, ...] = ()
    leaves: bool = False


# Seeds

_JSON: Headers = ((b"content-type", b"application/json"),)
_WORDS = (
    *(
        b"%",
        b"%00",
        b"%zz",
        b"%2F",
        b"%C3%28",
        b"/",
        b"//",
        b"..",
        b":",
        b"*",
        b"&",
        b"=",
        b"[",
        b"]",
        b"{",
        b"}",
        b"\x00",
    ),
    *(
        b'"',
        b"\\",
        b"\\u0000",
        b"\\ud800",
        b"\\udc00\\ud800",
        b"\xff",
        b"\xf0\x9f\x98\x80",
        b"\xed\xa0\x80",
        b"null",
        b"true",
        b"NaN",
    ),
    *(
        b"-Infinity",
        b"1e999",
        b"-1",
        b"0",
        b"9" * 20,
        b"9" * 5000,
        b"1" + b"0" * 400,
        b"1e-999",
        b"0x10",
        b"-0",
        b"2147483648",
    ),
    *(
        b"filter.also.",
        b"inner.child.",
        b"[[",
        b'{"a":',
        b"labels[",
        b"@type",
        b"type.googleapis.com/",
        b"\r\n",
        b",",
        b";",
        b"q=",
        b"q=nan",
    ),
    *(
        b"gzip",
        b"br",
        b"identity",
        b"charset=utf-16",
        b"base64=1",
        b"message=",
        b"encoding=json",
        b"compression=gzip",
        b"inf",
        b"\xef\xbb\xbf",
    ),
)
_HEADERS: Headers = (
    *((b"accept", value) for value in (b"text/event-stream", b"application/json;q=nan, */*;q=1e400", b"*/*", b",;,")),
    *((b"accept-encoding", value) for value in (b"br;q=x, gzip", b"gzip;q=0", b"zstd,deflate,*")),
    *((b"content-encoding", value) for value in (b"gzip", b"br", b"zstd", b"identity", b"deflate", b"\xe9")),
    *((b"content-length", value) for value in (b"0", b"1", b"99999999999", b"9" * 5000, b"-1", b"x", b"\xb2")),
    *(
        (b"content-type", value)
        for value in (b"", b"application/json; charset=utf-16", b"application/proto", b"\xff\xfe")
    ),
    *((b"grpc-timeout", value) for value in (b"1n", b"99999999H", b"0m", b"x", b"-1S")),
    *((b"connect-timeout-ms", value) for value in (b"1", b"9999999999", b"x")),
    *((b"x-server-timeout", value) for value in (b"0.001", b"9999999999", b"nan", b"1e9")),
    *((b"connect-content-encoding", value) for value in (b"gzip", b"nope")),
    *((b"grpc-encoding", value) for value in (b"gzip", b"nope", b"\xe9")),
    *((b"connect-accept-encoding", b"gzip"), (b"grpc-accept-encoding", b"br"), (b"connect-protocol-version", b"1")),
    *((b"transfer-encoding", b"chunked"), (b"x-some-bin", b"!!"), (b"x-some-bin", b"YQ,Yg=="), (b"x-odd", b"\xff\x7f")),
    *((b"last-event-id", value) for value in (b"5", b"9" * 30, b"\xb2")),
    *((b"origin", b"https://a.example"), (b"access-control-request-method", b"PUT"), (b"x-forwarded-for", b"\xe9, 1")),
    *((b"grpc-metadata-", b"x"), (b"grpc-metadata-content-type", b"x"), (b"host", b"\xff"), (b"connection", b"x-odd")),
)
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY", "TRACE", "get", "X" * 50)


class Seeds:
    """Valid requests of every protocol, of the services whose names begin with `service`."""

    def __init__(self, app: HttpApp, service: str = "lab.") -> None:
        self._rules = [route.rule for route in app.routes if route.rule.method.service.startswith(service)]
        self._annotated = [rule for rule in self._rules if "/m/" in rule.template.text]
        self._methods = [rpc.method for rpc in app.methods.values() if rpc.method.service.startswith(service)]
        self._unary = [method for method in self._methods if not (method.client_streaming or method.server_streaming)]
        self._streams = [method for method in self._methods if method not in self._unary]
        self._kinds: tuple[Callable[[Random], Input], ...] = (
            *(self._rest, self._shelf, self._connect, self._connect_get, self._connect_stream),
            *(self._grpc_web, self._grpc_web_text, self._websocket),
        )

    def make(self, rng: Random) -> Input:
        """One of them."""
        return rng.choice(self._kinds)(rng)

    def _rest(self, rng: Random) -> Input:
        made = Grammar(self._annotated, rng).request()
        path, _, query = made.target.partition("?")
        parts = () if made.body is None else (made.body,)
        return Input("rest", made.http, path.encode(), query.encode(), _JSON if parts else (), parts)

    def _shelf(self, rng: Random) -> Input:
        """The routes of the library, whose templates are other ones."""
        http, path, query, body = rng.choice(
            (
                ("GET", "/v1/shelves/1/books/2", "readMask=name", b""),
                (
                    "GET",
                    "/v1/shelves/1/books",
                    "filter.also.also.color=RED&filter.scores[a]=1&filter.writers[a].givenName=x",
                    b"",
                ),
                ("GET", "/v1/shelves/1/books:total", "page_size=1&filter.any_value=%7B%7D", b""),
                (
                    "POST",
                    "/v1/shelves/1/books",
                    "request_id=a",
                    b'{"title":"t","labels":{"a":"b"},"extra":{"a":[1,null]}}',
                ),
                ("PATCH", "/v1/shelves/1/books/2", "", b'{"title":"t","author":{"givenName":"x"},"extra":{"a":1}}'),
                ("PUT", "/v1/files/a/b", "note=x", b"\x00\xff"),
                ("GET", "/v1/files/a/b%2Fc", "", b""),
                ("GET", "/v1/shelves/1:titles", "count=3", b""),
                ("GET", "/v1/streams/x", "", b""),
                ("POST", "/v1/rooms/r/lines", "", b'{"text":"a"}\n{"text":"b"}'),
                ("POST", "/v1/rooms/r:chat", "", b'[{"text":"a"}, {"text":"b","number":5}]'),
                ("GET", "/m/show", "inner." + "child." * rng.choice((3, 98, 99, 5000)) + "text=x", b""),
                ("POST", "/v1/stores", "", b"abc"),
                ("QUERY", "/v1/echo", "", json.dumps(json_message(lab.message("All").DESCRIPTOR, rng)).encode()),
            )
        )
        return Input("shelf", http, path.encode(), query.encode(), _JSON if body else (), (body,) if body else ())

    def _message(self, method: Method[Any, Any], rng: Random, name: str) -> bytes:
        written = json.dumps(json_message(method.request.DESCRIPTOR, rng)).encode()
        if name == "json":
            return written
        try:
            made: bytes = json_format.Parse(written, method.request()).SerializeToString()
        except json_format.ParseError:
            return b""
        return made

    def _connect(self, rng: Random) -> Input:
        method, name = rng.choice(self._unary), rng.choice(("json", "proto"))
        headers = ((b"content-type", b"application/" + name.encode()), (b"connect-protocol-version", b"1"))
        return Input("connect", "POST", method.path.encode(), b"", headers, (self._message(method, rng, name),))

    def _connect_get(self, rng: Random) -> Input:
        text = base64.urlsafe_b64encode(b'{"name":"x"}').rstrip(b"=")
        query = rng.choice((b"base64=1&encoding=json&connect=v1&message=" + text, b"encoding=proto&message=%0A%01x"))
        return Input("connect-get", "GET", b"/lab.v1.Library/GetBook", query)

    def _framed(self, method: Method[Any, Any], rng: Random, name: str) -> bytes:
        count = rng.randint(0, 3) if method.client_streaming else 1
        return b"".join(frame(0, self._message(method, rng, name)) for _ in range(count))

    def _connect_stream(self, rng: Random) -> Input:
        method, name = rng.choice(self._streams), rng.choice(("json", "proto"))
        headers = ((b"content-type", b"application/connect+" + name.encode()),)
        return Input("connect-stream", "POST", method.path.encode(), b"", headers, (self._framed(method, rng, name),))

    def _grpc_web(self, rng: Random) -> Input:
        method, name = rng.choice(self._methods), rng.choice(("json", "proto"))
        headers = ((b"content-type", b"application/grpc-web+" + name.encode()), (b"x-grpc-web", b"1"))
        return Input("grpc-web", "POST", method.path.encode(), b"", headers, (self._framed(method, rng, name),))

    def _grpc_web_text(self, rng: Random) -> Input:
        method = rng.choice(self._methods)
        headers = ((b"content-type", b"application/grpc-web-text"),)
        body = self._framed(method, rng, "proto")
        return Input("grpc-web-text", "POST", method.path.encode(), b"", headers, (base64.b64encode(body),))

    def _websocket(self, rng: Random) -> Input:
        path = rng.choice(
            (
                b"/v1/rooms/r:chat",
                b"/m/talk",
                b"/m/repeat/2",
                b"/m/gather",
                b"/lab.v1.Mirror/Talk",
                b"/v1/shelves/1:watch",
            )
        )
        all_fields = lab.message("All").DESCRIPTOR
        frames = tuple(json.dumps(json_message(all_fields, rng)).encode() for _ in range(rng.randint(0, 3)))
        return Input("websocket", "WS", path, b"", (), (*frames, b"") if rng.random() < 0.5 else frames)


# Mutations


def mangled(data: bytes, rng: Random) -> bytes:
    """Some bytes, changed in one to four places."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(made))
        to = min(len(made), at + rng.choice((1, 1, 2, 4, 16, 200)))
        match rng.randrange(8):
            case 0 if made:
                made[at % len(made)] ^= 1 << rng.randrange(8)
            case 1:
                del made[at:to]
            case 2:
                made[at:at] = made[at:to] * rng.choice((1, 2, 120))
            case 3:
                made[at:to] = rng.choice(_WORDS)
            case 4:
                del made[at:]
            case 5:
                made[at:at] = rng.choice(_WORDS) * rng.choice((2, 100, 300))
            case 6:
                made[at:at] = rng.randbytes(rng.randint(1, 8))
            case _:
                made[at:at] = rng.choice(_WORDS)
    return bytes(made[:200_000])


def reshaped(data: bytes, rng: Random) -> bytes:
    """A JSON text with one value replaced, and still JSON as a rule; other bytes are mangled."""
    try:
        root: Any = [json.loads(data)]
    except (ValueError, RecursionError):
        return mangled(data, rng)
    here: Any = root
    key: Any = 0
    while isinstance(here[key], dict | list) and here[key] and rng.random() < 0.7:
        here = here[key]
        key = rng.choice(list(here)) if isinstance(here, dict) else rng.randrange(len(here))
    deep = rng.choice((3, 90, 110, 2000))
    here[key] = rng.choice(
        (
            None,
            True,
            -1,
            2**64,
            1e308,
            0.5,
            "",
            "x" * 70_000,
            "\ud800",
            "1",
            "NaN",
            [],
            [[]],
            {},
            {"": {}},
            {"@type": "x"},
            {"value": 1},
        )
    )
    text = json.dumps(root[0], ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.1:
        opened = rng.choice(('{"child":', '{"a":', "[", '{"inner":{"child":', '{"value":', '{"struct":{"a":'))
        text = opened * deep + text + ("]" if opened == "[" else "}" * opened.count("{")) * deep
    return text.encode("utf-8", "surrogatepass")


def reframed(data: bytes, rng: Random) -> bytes:
    """Frames whose payloads are changed, and their lengths right."""
    made, at = b"", 0
    while at + 5 <= len(data):
        size = int.from_bytes(data[at + 1 : at + 5], "big")
        payload = data[at + 5 : at + 5 + size]
        if rng.random() < 0.7:
            payload = reshaped(payload, rng) if payload[:1] == b"{" else mangled(payload, rng)
        flags = rng.choice((0, 0, 0, 0, 0, 1, 2, 0x80, 255))
        if flags == 1 and rng.random() < 0.7:
            payload = gzip.compress(payload, 1)
        made += frame(flags, payload)
        at += 5 + size
    return made or mangled(data, rng)


def _body(made: Input, body: bytes, rng: Random) -> bytes:
    if made.kind == "grpc-web-text":
        try:
            binary = base64.b64decode(body, validate=True) if rng.random() < 0.5 else b""
        except ValueError:
            binary = b""
        return base64.b64encode(reframed(binary, rng)) if binary else mangled(body, rng)
    if made.kind in ("connect-stream", "grpc-web") and rng.random() < 0.6:
        return reframed(body, rng)
    return reshaped(body, rng) if rng.random() < 0.5 else mangled(body, rng)


def _header(made: Input, rng: Random) -> Headers:
    headers = list(made.headers)
    if headers and rng.random() < 0.4:
        at = rng.randrange(len(headers))
        name, value = headers[at]
        headers[at] = (name, mangled(value, rng)[:8000])
    for _ in range(rng.randint(0, 3)):
        headers.append(rng.choice(_HEADERS))
    if rng.random() < 0.1:
        name, value = rng.choice(_HEADERS)
        headers.append((mangled(name, rng)[:200], value))
    return tuple(headers)


_NAME = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+.^_`|~-")


def _sendable(made: Input) -> Input:
    """Without what no HTTP server would hand on: control characters in headers, spaces in targets."""

    def target(raw: bytes) -> bytes:
        return bytes(byte for byte in raw if byte > 0x20 and byte != 0x7F)[:60_000]

    headers = tuple(
        (bytes(byte for byte in name.lower() if byte in _NAME), bytes(b for b in value if b >= 0x20 or b == 9).strip())
        for name, value in made.headers
    )
    path = target(made.path).replace(b"?", b"")
    return replace(
        made,
        path=path if path[:1] == b"/" else b"/" + path,
        query=target(made.query),
        headers=tuple(h for h in headers if h[0]),
    )


def input_of(seeds: Seeds, seed: int, number: int) -> Input:
    """The input of a seed and a number."""
    rng = Random(f"{seed}/{number}")
    made = seeds.make(rng)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        match rng.randrange(8):
            case 0:
                made = replace(made, path=mangled(made.path, rng))
            case 1 | 2:
                made = replace(made, query=mangled(made.query, rng))
            case 3:
                made = replace(made, headers=_header(made, rng))
            case 4 if made.http != "WS" and rng.random() < 0.3:
                made = replace(made, http=rng.choice(_METHODS))
            case _ if made.parts:
                at = rng.randrange(len(made.parts))
                changed = _body(made, made.parts[at], rng)
                made = replace(made, parts=(*made.parts[:at], changed, *made.parts[at + 1 :]))
    if made.http != "WS" and made.parts:
        body = made.parts[0]
        if rng.random() < 0.08:
            body = gzip.compress(body, 1)
            made = replace(made, headers=(*made.headers, (b"content-encoding", b"gzip")))
            if rng.random() < 0.5:
                body = mangled(body, rng)
        if not any(name == b"content-length" for name, _ in made.headers):
            made = replace(made, headers=(*made.headers, (b"content-length", b"%d" % len(body))))
        cuts = sorted(rng.randint(0, len(body)) for _ in range(rng.choice((0, 0, 1, 3))))
        made = replace(made, parts=tuple(body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)))
    return _sendable(replace(made, leaves=rng.random() < 0.05))
