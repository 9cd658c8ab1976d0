"""Hostile bodies and paths over HTTP: JSON, packed bodies, queries, and what protocols frame."""

from __future__ import annotations

import base64
import gzip
import zlib
from typing import Any

import brotli
import httpx
import pytest

from framework.http import compression
from tests.hostile.hall import Attacked, message, thing, told_nothing

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEEP = 100_000


def inside(before: bytes, levels: int, after: bytes = b"", middle: bytes = b"{}") -> bytes:
    return before * levels + middle + after * levels


BODIES = {
    "100,000 lists inside each other": b"[" * DEEP,
    "100,000 objects inside each other": b'{"parts":[' * DEEP,
    "100,000 lists in a value": inside(b"[", DEEP, b"]").join((b'{"value":', b"}")),
    "100,000 lists in a field that does not exist": inside(b"[", DEEP, b"]").join((b'{"nothing":', b"}")),
    "101 messages inside each other": inside(b'{"parts":[', 101, b"]}"),
    "200 messages packed in each other": inside(
        b'{"any":{"@type":"type.googleapis.com/google.protobuf.Any","value":', 200, b"}}"
    ),
    "a number beyond all": b'{"ratio":1e400}',
    "a number of 100,000 digits": b'{"number":' + b"9" * DEEP + b"}",
    "a text of 100,000 digits": b'{"large":"' + b"9" * DEEP + b'"}',
    "a number to the billionth": b'{"number":1e1000000000}',
    "a number too small": b'{"number":-2147483649}',
    "a half": b'{"number":1.5}',
    "no number": b'{"ratio":NaN}',
    "a number in hexadecimal": b'{"number":0x10}',
    "a number with a zero before it": b'{"number":01}',
    "200,000 unknown names": b"{" + b",".join(b'"k%d":""' % number for number in range(200_000)) + b"}",
    "a prototype": b'{"__proto__":{"admin":true}}',
    "half a surrogate": b'{"text":"\\ud800"}',
    "surrogates the wrong way round": b'{"text":"\\udc00\\ud800"}',
    "bytes that are no UTF-8": b'{"text":"\xc3\x28"}',
    "a slash in two bytes": b'{"text":"\xc0\xaf"}',
    "a byte order mark": b'\xef\xbb\xbf{"text":"a"}',
    "UTF-16": '{"text":"a"}'.encode("utf-16"),
    "a NUL": b'{"text":"a\0b"}',
    "a line end in a text": b'{"text":"a\nb"}',
    "something behind": b'{"text":"a"} x',
    "two messages": b"{}{}",
    "a comment": b"{/**/}",
    "null": b"null",
    "a list": b"[]",
    "a text": b'"a"',
    "quotes of Python": b"{'text':'a'}",
    "a comma too many": b'{"text":"a",}',
    "half a message": b'{"text":"a',
    "no name": b'{"":1}',
    "a number for a text": b'{"text":1}',
    "an object for a list": b'{"parts":{}}',
    "null in a list": b'{"parts":[null]}',
    "base64 that is none": b'{"raw":"!!!"}',
    "a color that does not exist": b'{"color":"BLUE"}',
    "a type that does not exist": b'{"any":{"@type":"type.googleapis.com/no.Such"}}',
    "a type that is a file": b'{"any":{"@type":"file:///etc/passwd"}}',
    "a type that is a number": b'{"any":{"@type":1}}',
    "a packed message that is wrong": b'{"any":{"@type":"type.googleapis.com/hall.Thing","number":"x"}}',
    "a rule broken": b'{"short":"xxxxxxxxxxx"}',
}


@pytest.mark.parametrize("name", BODIES)
async def test_json(hall: Attacked, name: str) -> None:
    """400, and in REST and Connect the same; no handler runs and the process lives."""
    headers = {"content-type": "application/json"}
    rest = await hall.http.post("/v1/things", content=BODIES[name], headers=headers)
    connect = await hall.http.post(
        "/hall.Hall/Echo", content=BODIES[name], headers={**headers, "connect-protocol-version": "1"}
    )
    assert (rest.status_code, rest.json()["code"]) == (400, 3)
    assert (connect.status_code, connect.json()["code"]) == (400, "invalid_argument")
    told_nothing(rest.text, connect.text)
    assert len(rest.text) < 2000
    assert hall.servicer.calls == 0


async def test_a_name_twice(hall: Attacked) -> None:
    """The last counts, as for every parser that is not told otherwise; what it says is what the service gets."""
    answer = await hall.http.post("/v1/things", content=b'{"text":"a","text":"b"}')
    assert answer.json() == {"text": "b"}


async def test_names_made_to_collide(hall: Attacked) -> None:
    """A hundred thousand keys of a map take time in proportion."""
    body = b'{"labels":{' + b",".join(b'"%s":""' % (b"Aa" * 8 + b"%d" % n) for n in range(100_000)) + b"}}"
    assert (await hall.http.post("/v1/things", content=body)).status_code == 200


def packed(name: str, data: bytes) -> bytes:
    return compression.pack(name, data)


PACKED: dict[str, tuple[str, bytes, int]] = {
    "a bomb of gzip": ("gzip", gzip.compress(bytes(200 << 20), 9), 413),
    "a bomb of brotli": ("br", brotli.compress(bytes(200 << 20), quality=1), 413),
    "a bomb of zstd": ("zstd", packed("zstd", bytes(200 << 20)), 413),
    "a bomb in a bomb": ("gzip, gzip", gzip.compress(gzip.compress(bytes(200 << 20), 9)), 415),
    "50,000 members of gzip with nothing in them": ("gzip", gzip.compress(b"") * 50_000, 400),
    "50,000 frames of zstd with nothing in them": ("zstd", packed("zstd", b"") * 50_000, 400),
    "a window of zstd of 4 GB": ("zstd", b"\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00", 400),
    "no gzip": ("gzip", b"no", 400),
    "no brotli": ("br", b"\xff" * 50, 400),
    "no zstd": ("zstd", b"no", 400),
    "gzip that breaks off": ("gzip", gzip.compress(b"{}" * 50)[:-9], 400),
    "gzip with something behind": ("gzip", gzip.compress(b"{}") + b"junk", 400),
    "gzip with a wrong sum": ("gzip", gzip.compress(b"{}")[:-8] + bytes(8), 400),
    "deflate": ("deflate", zlib.compress(b"{}"), 415),
    "what nobody knows": ("lzma", b"{}", 415),
}


@pytest.mark.parametrize("path", ["/v1/things", "/v1/sum"])
@pytest.mark.parametrize("name", PACKED)
async def test_packed_bodies(hall: Attacked, name: str, path: str) -> None:
    """What comes out is bounded while it comes out; for a stream as for one message."""
    encoding, body, expected = PACKED[name]
    headers = {"content-type": "application/json", "content-encoding": encoding}
    answer = await hall.http.post(path, content=body, headers=headers)
    assert answer.status_code == expected
    told_nothing(answer.text)


PATHS = {
    "6,000 parameters": ("/v1/things/a?" + "&".join(["number=1"] * 6_000), 431),
    "3,000 parameters": ("/v1/things/a?" + "&".join(["number=1"] * 3_000), 400),
    "a parameter that does not exist": ("/v1/things/a?nothing=1", 400),
    "a parameter 500 messages down": ("/v1/things/a?" + ".".join(["parts"] * 500) + "=1", 400),
    "a parameter of Python": ("/v1/things/a?__class__=1", 400),
    "a bracket that stays open": ("/v1/things/a?labels[x=1", 400),
    "a percent of nothing": ("/v1/things/%zz", 400),
    "a percent at the end": ("/v1/things/%", 400),
    "a slash in two bytes": ("/v1/things/%c0%af", 400),
    "bytes that are no UTF-8": ("/v1/things/%ff", 400),
    "a query that is no UTF-8": ("/v1/count?text=%ff", 400),
    "a percent of nothing in a query": ("/v1/count?text=%zz", 400),
    "up from the page": ("/docs/%2e%2e/%2e%2e/etc/passwd", 404),
    "up from the document": ("/openapi.json/%2e%2e/secrets", 404),
    "backslashes": ("/docs/..\\..\\etc\\passwd", 404),
    "10,000 segments": ("/" + "a/" * 10_000, 404),
    "two slashes": ("//v1/things/a", 404),
    "a number in Arabic": ("/v1/count?number=%D9%A1", 400),
    "a number with a line": ("/v1/count?number=1_0", 400),
    "a number with a space": ("/v1/count?number=%201", 400),
    "a number too large": ("/v1/count?number=99999999999", 400),
    "no number": ("/v1/things/a?ratio=nan", 400),
    "base64 that is none": ("/v1/things/a?raw=!!", 400),
    "a method of Python": ("/hall.Hall/__class__", 404),
    "what is for machines only": ("/grpc.health.v1.Health/Check", 404),
    "reflection": ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", 404),
}


@pytest.mark.parametrize("name", PATHS)
async def test_paths(hall: Attacked, name: str) -> None:
    """Neither a method nor a file: 400, 404 or 431, and what is told back is short."""
    path, expected = PATHS[name]
    url = httpx.URL(str(hall.http.base_url)).copy_with(raw_path=path.encode())
    answer = await hall.http.get(url)
    assert answer.status_code == expected
    assert len(answer.text) < 4000
    assert "root:" not in answer.text
    told_nothing(answer.text)
    assert hall.servicer.calls == 0


DATA = {
    "dots": ("/v1/trees/%2e%2e/%2e%2e/etc/passwd", "../../etc/passwd"),
    "line ends": ("/v1/things/a%0d%0ax-admin:%201", "a\r\nx-admin: 1"),
    "a NUL": ("/v1/things/a%00b", "a\0b"),
    "encoded twice": ("/v1/things/%252e%252e%252f", "%2e%2e%2f"),
    "from right to left": ("/v1/things/%E2%80%AE", "\u202e"),
    "a semicolon": ("/v1/things/a;admin=1", "a;admin=1"),
}


@pytest.mark.parametrize("name", DATA)
async def test_what_is_data_stays_data(hall: Attacked, name: str) -> None:
    """Text in a path is the value of a field, decoded once, and nothing else becomes of it."""
    path, expected = DATA[name]
    url = httpx.URL(str(hall.http.base_url)).copy_with(raw_path=path.encode())
    answer = await hall.http.get(url)
    assert (answer.status_code, answer.json()["text"]) == (200, expected)
    assert "x-admin" not in answer.headers


TIMEOUTS: dict[str, list[Any]] = {
    "grpc-timeout": ["-1S", "1", "abc", "999999999S", "1.5S", "\u0661S".encode(), "1S, 2S"],
    "connect-timeout-ms": ["-1", "1e3", "99999999999", "0x1"],
    "x-server-timeout": ["nan", "inf", "-1", "1e400", "1_0", "1" * 400],
}


@pytest.mark.parametrize(("header", "value"), [(name, value) for name, all in TIMEOUTS.items() for value in all])
async def test_timeouts(hall: Attacked, header: str, value: Any) -> None:
    """A timeout that is none is refused before the call is made."""
    answer = await hall.http.get("/v1/things/a", headers={header: value})
    assert answer.status_code == 400
    told_nothing(answer.text)
    assert hall.servicer.calls == 0


@pytest.mark.parametrize("kind", ["text/html", "application/json; charset=utf-7", "multipart/mixed", "x" * 5000])
async def test_types_that_are_not_read(hall: Attacked, kind: str) -> None:
    """415, whatever is in the body."""
    answer = await hall.http.post("/v1/things", content=b"{}", headers={"content-type": kind})
    assert (answer.status_code, hall.servicer.calls) == (415, 0)


# Connect and gRPC-Web

ENVELOPES = {
    "a length of 4 GB": (message(b"", length=2**32 - 1), 8),
    "an unknown flag": (b"\x7f" + message(b"")[1:], 3),
    "an end that only a server says": (b"\x80" + message(b"grpc-status: 0\r\n")[1:], 3),
    "half a frame": (message(b"\x0a\x7fabc", length=100), 3),
    "half a head": (b"\0\0", 3),
    "noise": (message(b"\xff" * 30), 3),
    "a bomb": (message(gzip.compress(bytes(200 << 20), 9), packed=True), 8),
    "what is not packed": (message(b"no", packed=True), 3),
    "101 messages inside each other": (message(thing()().SerializeToString() + b"\x3a\x00" * 2 + b"\x3a\x05" * 3), 3),
}


@pytest.mark.parametrize("protocol", ["connect", "grpc-web"])
@pytest.mark.parametrize("name", ENVELOPES)
async def test_frames(hall: Attacked, protocol: str, name: str) -> None:
    """Connect's streams and gRPC-Web say so in the words of their protocol."""
    raw, expected = ENVELOPES[name]
    if protocol == "connect":
        path, headers = (
            "/hall.Hall/Count",
            {"content-type": "application/connect+proto", "connect-content-encoding": "gzip"},
        )
    else:
        path, headers = "/hall.Hall/Echo", {"content-type": "application/grpc-web+proto", "grpc-encoding": "gzip"}
    answer = await hall.http.post(path, content=raw, headers=headers)
    shown = answer.text + str(dict(answer.headers))
    names = {3: "invalid_argument", 8: "resource_exhausted"}
    found = f'"code":"{names[expected]}"' in shown if protocol == "connect" else f"grpc-status: {expected}" in shown
    assert found or answer.headers.get("grpc-status") == str(expected), shown
    told_nothing(shown)
    assert hall.servicer.calls == 0


async def test_text_of_grpc_web_that_is_no_base64(hall: Attacked) -> None:
    """It is refused in gRPC-Web's own words."""
    answer = await hall.http.post(
        "/hall.Hall/Echo", content=b"!!!!", headers={"content-type": "application/grpc-web-text"}
    )
    trailer = base64.b64decode(answer.text).decode("latin-1")
    assert "grpc-status: 3" in trailer + f"grpc-status: {answer.headers.get('grpc-status')}"
    assert hall.servicer.calls == 0


@pytest.mark.parametrize(
    "query",
    ["message=!!&encoding=proto&base64=1", "message=%7B&encoding=json", "encoding=json", "message=&encoding=pickle"],
)
async def test_get_of_connect(hall: Attacked, query: str) -> None:
    """A method that may change something cannot be called with GET at all."""
    answer = await hall.http.get(f"/hall.Hall/Echo?connect=v1&{query}")
    assert answer.status_code in (400, 404, 405, 415)
    told_nothing(answer.text)
    assert hall.servicer.calls == 0
