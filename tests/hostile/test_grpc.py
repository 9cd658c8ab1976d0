"""Hostile calls over gRPC: messages, metadata and deadlines that no honest client sends."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from typing import Any

import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from framework import Code
from tests.hostile.frames import CONTINUATION, PREFACE, SETTINGS, frame
from tests.hostile.hall import Attacked, attacked, frames, message, thing, told_nothing, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

ECHO, COUNT, SUM, TALK = (f"/hall.Hall/{name}" for name in ("Echo", "Count", "Sum", "Talk"))
HEALTH, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
MOST = 4 << 20


def encoded(**fields: Any) -> bytes:
    """A message that is as it should be."""
    return message(thing()(**fields).SerializeToString())


def deep(levels: int) -> bytes:
    """A message inside a message, so many times."""
    inner = b""
    for _ in range(levels):
        size, prefix = len(inner), bytearray(b"\x3a")
        while size > 127:
            prefix.append(0x80 | (size & 127))
            size >>= 7
        inner = bytes(prefix) + bytes([size]) + inner
    return inner


def bomb(size: int) -> bytes:
    """So many bytes of zeros, packed."""
    return gzip.compress(bytes(size), 9)


MESSAGES = {
    "a length of 4 GB": (message(b"", length=2**32 - 1), Code.RESOURCE_EXHAUSTED),
    "a byte more than allowed": (message(bytes(1 << 20), length=MOST + 1), Code.RESOURCE_EXHAUSTED),
    "noise": (message(b"\xff" * 40), Code.INTERNAL),
    "a field that breaks off": (message(b"\x0a\x7fabc"), Code.INTERNAL),
    "a varint that does not end": (message(b"\x10" + b"\xff" * 11), Code.INTERNAL),
    "field number 0": (message(b"\x02\x01a"), Code.INTERNAL),
    "a group that nobody ends": (message(b"\x0b\x0b\x0b"), Code.INTERNAL),
    "wire type 7": (message(b"\x0f"), Code.INTERNAL),
    "text that is no UTF-8": (message(b"\x0a\x02\xc3\x28"), Code.INTERNAL),
    "text with half a surrogate": (message(b"\x0a\x03\xed\xa0\x80"), Code.INTERNAL),
    "101 messages inside each other": (message(deep(101)), Code.INTERNAL),
    "10,000 messages inside each other": (message(deep(10_000)), Code.INTERNAL),
    "1,000 groups inside each other": (message(b"\x1b" * 1000), Code.INTERNAL),
    "a bit for compression and none agreed": (message(b"x", packed=True), Code.INTERNAL),
    "a rule broken": (message(b"\x5a\x0b" + b"x" * 11), Code.INVALID_ARGUMENT),
}


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("path", [ECHO, TALK])
async def test_messages(hall: Attacked, path: str, name: str) -> None:
    """Each is refused on every arity, with the status that says why, before a handler has seen it."""
    raw, expected = MESSAGES[name]
    async with frames(hall.port) as connection:
        answer = await connection.call(path, raw)
        assert answer.status == expected
        told_nothing(answer.shown)
    assert hall.servicer.calls == 0 or path == TALK  # whose handler begins before the first message


PACKED = {
    "a bomb of 200 MB": ("gzip", bomb(200 << 20), Code.RESOURCE_EXHAUSTED),
    "a bomb in deflate": ("deflate", zlib.compress(bytes(100 << 20), 9), Code.RESOURCE_EXHAUSTED),
    "what is not packed": ("gzip", b"not packed at all", Code.INTERNAL),
    "what breaks off": ("gzip", gzip.compress(bytes(1000))[:-12], Code.INTERNAL),
    "what is packed in an unknown way": ("snappy", b"x", Code.INTERNAL),
}


@pytest.mark.parametrize("name", PACKED)
async def test_packed_messages(hall: Attacked, name: str) -> None:
    """What comes out counts, and nothing is unpacked beyond the limit."""
    encoding, raw, expected = PACKED[name]
    async with frames(hall.port) as connection:
        answer = await connection.call(ECHO, message(raw, packed=True), [("grpc-encoding", encoding)])
        assert answer.status == expected
        told_nothing(answer.shown)
    assert hall.servicer.calls == 0


async def test_a_stream_of_bombs(hall: Attacked) -> None:
    """The first ends the call, and the others are not unpacked."""
    one = message(bomb(50 << 20), packed=True)
    async with frames(hall.port) as connection:
        stream = connection.open(SUM, [("grpc-encoding", "gzip")])
        connection.send(stream, one * 20)
        assert (await connection.answer(stream)).status == Code.RESOURCE_EXHAUSTED


METADATA: dict[str, tuple[list[tuple[str, Any]], Code]] = {
    "a value that is no UTF-8": ([("x-a", b"\xff\xfe")], Code.INVALID_ARGUMENT),
    "a value of letters with accents": ([("x-a", "caf\u00e9".encode())], Code.INVALID_ARGUMENT),
    "a line end, and a header behind it": ([("x-a", "a\r\nx-admin: yes")], Code.INVALID_ARGUMENT),
    "a line end alone": ([("x-request-id", "a\nERROR forged")], Code.INVALID_ARGUMENT),
    "a NUL": ([("x-a", "a\0b")], Code.INVALID_ARGUMENT),
    "a key in capitals": ([("X-Admin", "yes")], Code.INTERNAL),
    "a key with a space": ([("x admin", "yes")], Code.INTERNAL),
    "a key that is empty": ([("", "yes")], Code.INTERNAL),
    "a pseudo header of its own": ([(":admin", "yes")], Code.INTERNAL),
    "base64 that is none": ([("x-a-bin", "!!!")], Code.INTERNAL),
    "one value of 17 kB": ([("x-a", "v" * 17_000)], Code.RESOURCE_EXHAUSTED),
    "a thousand small pairs": ([(f"x-{number}", "v") for number in range(1000)], Code.RESOURCE_EXHAUSTED),
    "details of 18 kB that are none": ([("grpc-status-details-bin", "A" * 24_000)], Code.RESOURCE_EXHAUSTED),
    "a million attempts before": ([("grpc-previous-rpc-attempts", "9" * 1000)], Code.INTERNAL),
    "a timeout of no unit": ([("grpc-timeout", "100")], Code.INTERNAL),
    "a timeout below nothing": ([("grpc-timeout", "-1S")], Code.INTERNAL),
    "a timeout of words": ([("grpc-timeout", "soon")], Code.INTERNAL),
    "a timeout of nothing": ([("grpc-timeout", "0n")], Code.DEADLINE_EXCEEDED),
}


@pytest.mark.parametrize(
    ("name", "polite"),
    [*((name, True) for name in METADATA), ("one value of 17 kB", False), ("a thousand small pairs", False)],
)
async def test_metadata(hall: Attacked, name: str, polite: bool) -> None:
    """Each is refused; what is too large also when the client has not confirmed that it knows of the limit."""
    headers, expected = METADATA[name]
    async with frames(hall.port, rude=not polite) as connection:
        answer = await connection.call(ECHO, encoded(), headers)
        assert answer.status == expected
        told_nothing(answer.shown)
    assert hall.servicer.calls == 0


ODD = {
    "a trace that is none": [("traceparent", "00-zzz-" + "f" * 200), ("tracestate", "=,=,=")],
    "a trace of zeros": [("traceparent", f"00-{'0' * 32}-{'0' * 16}-01")],
    "a criticality that does not exist": [("framework-criticality", "EMPEROR")],
    "fewer attempts than none": [("x-previous-rpc-attempts", "-1")],
    "attempts beyond counting": [("x-previous-rpc-attempts", "9" * 1000)],
    "trailers of a server": [("grpc-status", "0"), ("framework-origin", "server"), ("grpc-retry-pushback-ms", "-1")],
    "a timeout of eleven digits": [("grpc-timeout", "99999999999S")],
    "a timeout of ten thousand years": [("grpc-timeout", "99999999H")],
    "a hundred times the same key": [("x-a", "v")] * 100,
    "cookies and a host": [("cookie", "a=b"), ("host", "evil.example"), ("connection-id", "1")],
}


@pytest.mark.parametrize("name", ODD)
async def test_odd_metadata_is_nothing_to_refuse(hall: Attacked, name: str) -> None:
    """What cannot be understood is ignored, and the call is served."""
    async with frames(hall.port) as connection:
        assert (await connection.call(ECHO, encoded(text="a"), ODD[name])).status == Code.OK


async def test_a_request_id_of_kilobytes_is_not_taken_over(hall: Attacked) -> None:
    """It would stand in every line of every log of the chain; such a caller gets an id of ours."""
    async with frames(hall.port) as connection:
        await connection.call(ECHO, encoded(), [("x-request-id", "i" * 5000)])
        await connection.call(ECHO, encoded(), [("x-request-id", "of-the-caller.1")])
    assert [len(hall.servicer.ids[0]) < 100, "of-the-caller.1"] == [True, hall.servicer.ids[1]]


PATHS = {
    "no such method": "/hall.Hall/Drop",
    "dots": "/hall.Hall/../Echo",
    "an encoded slash": "/hall.Hall%2FEcho",
    "a NUL": "/hall.Hall/Echo%00",
    "two slashes": "//hall.Hall/Echo",
    "an asterisk": "*",
    "a name of Python": "/hall.Hall/__init__",
    "other capitals": "/hall.hall/echo",
    "8,000 letters": "/" + "a" * 8000,
}


@pytest.mark.parametrize("name", PATHS)
async def test_paths(hall: Attacked, name: str) -> None:
    """Only the exact name of a method is one; everything else is UNIMPLEMENTED."""
    async with frames(hall.port) as connection:
        answer = await connection.call(PATHS[name], encoded())
        assert answer.status == Code.UNIMPLEMENTED
        told_nothing(answer.shown)


REQUESTS: dict[str, dict[str, Any]] = {
    "GET": {"method": "GET"},
    "without a method": {"method": None},
    "without a scheme": {"scheme": None},
    "without an authority": {"authority": None},
    "without trailers": {"te": None},
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_requests_that_are_no_calls(hall: Attacked, name: str) -> None:
    """The stream is reset, and no handler runs."""
    async with frames(hall.port) as connection:
        answer = await connection.call(ECHO, encoded(), **REQUESTS[name])
        assert (answer.status, answer.reset) == (None, 2)
    assert hall.servicer.calls == 0


async def test_a_failure_inside_tells_an_id_and_nothing_else(hall: Attacked) -> None:
    """The exception, its text and where it was raised stay in the log."""
    async with frames(hall.port) as connection:
        answer = await connection.call(ECHO, encoded(text="bug"))
    assert answer.status == Code.INTERNAL
    assert answer.headers["grpc-message"].startswith("internal error ")
    told_nothing(answer.shown)


@pytest.mark.parametrize("data", [b"", b"\0\0", encoded(text="x" * 100)[:40]], ids=["none", "a part", "most"])
async def test_a_message_that_never_comes(hall: Attacked, data: bytes) -> None:
    """The caller's own deadline ends the call, as it ends every other."""
    async with frames(hall.port) as connection:
        stream = connection.open(ECHO, [("grpc-timeout", "200m")])
        connection.send(stream, data, end=not data)
        assert (await connection.answer(stream)).status == Code.DEADLINE_EXCEEDED
    assert hall.servicer.calls == 0


async def test_an_upload_that_breaks_off(hall: Attacked) -> None:
    """A client that goes in mid-message leaves nothing behind."""
    async with frames(hall.port) as connection:
        stream = connection.open(SUM)
        connection.send(stream, encoded(text="a") * 50 + b"\0\0\0", end=False)
        await until(lambda: hall.server.pipeline.calls)
    await hall.idle()


async def test_a_client_that_does_not_read(hall: Attacked) -> None:
    """Replies are made as they are taken: the handler waits at the window, and ends when the client goes."""
    async with frames(hall.port, greet=False) as connection:
        connection.write(PREFACE + frame(SETTINGS, b"\0\4\0\0\0\0"))  # a window of nothing
        connection.force(COUNT, 1)
        connection.send(1, encoded(number=2_000_000_000))
        await until(lambda: hall.server.pipeline.calls)
        await asyncio.sleep(0.2)  # in which millions would have been made
    await hall.idle()


async def test_more_metadata_than_memory() -> None:
    """A head that goes on in frames without an end is thrown away from 16 MB on, and its connection closed."""
    pair = b"\0\3x-a\x7f\xa1\x1e" + b"v" * 4000
    async with (
        attacked(room=96 << 20, limits={"handshake": "500ms"}) as strict,
        frames(strict.port, greet=False) as connection,
    ):
        connection.write(PREFACE + frame(SETTINGS))
        connection.force(ECHO, 1, flags=0)
        for _ in range(2000):  # 32 MB
            connection.write(frame(CONTINUATION, pair * 4, 1))
            await connection.drain()
            if connection.closed:
                break
        await connection.end()
        assert connection.closed


# What every server has


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "nobody", "a" * 10_000, "hall.Hall\0"])
async def test_health_of_what_does_not_exist(hall: Attacked, name: str) -> None:
    """NOT_FOUND, but for the server itself, and the name is not told back."""
    async with frames(hall.port) as connection:
        answer = await connection.call(HEALTH, message(health_pb2.HealthCheckRequest(service=name).SerializeToString()))
        assert answer.status == (Code.NOT_FOUND if name else Code.OK)
        told_nothing(answer.shown)


async def test_watchers_of_health_that_go_leave_nothing(hall: Attacked) -> None:
    """Two hundred of them wait, and are gone with their connection."""
    request = message(health_pb2.HealthCheckRequest().SerializeToString())
    async with frames(hall.port) as connection:
        for stream in [connection.open(WATCH) for _ in range(100)]:
            connection.send(stream, request)
        await until(lambda: len(hall.server.pipeline.calls) == 100)
    await hall.idle()


@pytest.mark.parametrize(
    "asked",
    [
        {"file_by_filename": "../../../etc/passwd"},
        {"file_by_filename": "/etc/passwd"},
        {"file_containing_symbol": "hall.Hall\0"},
        {"file_containing_symbol": "x" * 100_000},
        {"all_extension_numbers_of_type": "nobody"},
        {"file_containing_extension": {"containing_type": "hall.Thing", "extension_number": -1}},
        {},
    ],
    ids=["up", "absolute", "nul", "long", "nobody", "extension", "nothing"],
)
async def test_reflection_of_what_does_not_exist(hall: Attacked, asked: dict[str, Any]) -> None:
    """An error in the answer, or a status; no file of this machine."""
    request = reflection_pb2.ServerReflectionRequest(**asked).SerializeToString()
    async with frames(hall.port) as connection:
        answer = await connection.call(REFLECTION, message(request))
    assert answer.status in (Code.OK, Code.INVALID_ARGUMENT)
    if answer.status == Code.OK:
        reply = reflection_pb2.ServerReflectionResponse.FromString(answer.data[5:])
        assert reply.error_response.error_code in (Code.NOT_FOUND, Code.INVALID_ARGUMENT)
    assert b"root:" not in answer.data
    told_nothing(answer.shown)


async def test_reflection_asked_a_thousand_times_in_one_stream(hall: Attacked) -> None:
    """Each is answered in its turn."""
    request = message(reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString())
    async with frames(hall.port) as connection:
        answer = await connection.call(REFLECTION, request * 1000)
    assert answer.status == Code.OK


async def test_calls_at_once_beyond_what_is_served(hall: Attacked) -> None:
    """Two thousand that hang are shed, not queued; health still answers, and when they go nothing is left."""
    async with frames(hall.port) as connection, frames(hall.port) as another:
        for stream in range(1, 4000, 2):
            connection.force(ECHO, stream)
            connection.send(stream, encoded(text="hang"))
        await until(lambda: len(hall.server.pipeline.calls) >= 400)
        assert (await another.call(HEALTH, message(b""))).status == Code.OK
    await hall.idle()
