"""The client's own HTTP/2 connection, against a peer that is written out frame by frame."""

from __future__ import annotations

import asyncio
import gzip
import struct
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import grpc.aio
import hpack
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from framework.call import Metadata
from framework.client import heads, http2, rpcs
from framework.client.answers import Answer
from framework.client.heads import opening
from framework.client.http2 import Connection
from framework.errors import Code

START = opening("/echo.v1.Echo/UnaryUnary", "127.0.0.1:1", "test/1")
RESPONSE = ((":status", "200"), ("content-type", "application/grpc"))
OK = (("grpc-status", "0"),)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def block(*pairs: tuple[str, str]) -> bytes:
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    return encoder.encode(pairs)


def decoded(sent: bytes) -> list[tuple[str, str]]:
    return [(name.decode(), value.decode()) for name, value in hpack.Decoder().decode(sent, raw=True)]


def headers(stream: int, *pairs: tuple[str, str], end: bool = False) -> bytes:
    return frame(http2.HEADERS, http2.END_HEADERS | (http2.END_STREAM if end else 0), stream, block(*pairs))


def message(stream: int, body: bytes = b"reply", *, packed: int = 0) -> bytes:
    return frame(http2.DATA, 0, stream, struct.pack(">BI", packed, len(body)) + body)


def reset(stream: int, reason: int) -> bytes:
    return frame(http2.RST_STREAM, 0, stream, struct.pack(">I", reason))


def goaway(last: int, reason: int = 0) -> bytes:
    return frame(http2.GOAWAY, 0, 0, struct.pack(">II", last, reason))


def settings(**values: int) -> bytes:
    pairs = (struct.pack(">HI", getattr(http2, key), value) for key, value in values.items())
    return frame(http2.SETTINGS, 0, 0, b"".join(pairs))


def page(stream: int) -> bytes:
    """What a proxy says to people."""
    return frame(http2.DATA, 0, stream, b"<html>") + frame(http2.DATA, http2.END_STREAM, stream, b"down")


def well(stream: int) -> bytes:
    """A response that is as it should be."""
    return headers(stream, *RESPONSE) + message(stream) + headers(stream, *OK, end=True)


class Peer(asyncio.Transport):
    """The other end: what was sent to it, and whether it is still there."""

    def __init__(self, *, interval: float = 60.0, timeout: float = 60.0, max_message: int = 100_000) -> None:
        super().__init__()
        self.got = b""
        self.closed = self.aborted = False
        self.changes: list[bool] = []
        self.connection = Connection(max_message, interval, timeout, self.changed)
        self.connection.connection_made(self)

    def changed(self, connection: Connection) -> None:
        self.changes.append(connection.open)

    def get_write_buffer_size(self) -> int:
        return len(self.got)

    def write(self, data: Any) -> None:
        assert not self.closed
        self.got += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.connection.connection_lost, None)

    def abort(self) -> None:
        self.aborted = True
        self.close()

    def says(self, data: bytes) -> None:
        self.connection.data_received(data)

    async def frames(self) -> list[tuple[int, int, int, bytes]]:
        """Kind, flags, stream and payload of what was sent since the last look; without the preface."""
        await asyncio.sleep(0)
        data, self.got = self.got.removeprefix(http2.PREFACE), b""
        found = []
        while data:
            length = int.from_bytes(data[:3], "big")
            kind, flags, stream = struct.unpack(">BBI", data[3:9])
            found.append((kind, flags, stream, data[9 : 9 + length]))
            data = data[9 + length :]
        return found

    async def kinds(self) -> list[int]:
        return [kind for kind, *_ in await self.frames()]

    def call(self, request: bytes = b"request", metadata: Metadata = (), timeout: float | None = None) -> Answer | None:
        return self.connection.begin(START, metadata, request, timeout)

    def called(self, request: bytes = b"request", timeout: float | None = None) -> Answer:
        answer = self.call(request, (), timeout)
        assert answer is not None
        return answer


async def open_peer(*, interval: float = 60.0, timeout: float = 60.0, max_message: int = 100_000) -> Peer:
    """A peer that has said how it wants it."""
    peer = Peer(interval=interval, timeout=timeout, max_message=max_message)
    peer.says(settings())
    await peer.frames()
    return peer


async def test_a_connection_takes_calls_once_the_peer_has_said_its_settings() -> None:
    """Before, nobody knows what the peer takes."""
    peer = Peer()
    assert (peer.call(), peer.connection.open) == (None, False)
    peer.says(settings())
    assert peer.changes == [True]
    assert peer.call() is not None


async def test_a_peer_that_greets_when_nobody_waits_for_it_any_more() -> None:
    """Its settings come in the turn of the loop in which the wait for them was given up: they hold all the same."""
    peer = Peer()
    peer.connection.greeted.cancel()
    peer.says(settings())
    assert (peer.changes, peer.connection.broken) == ([True], "")
    assert peer.call() is not None


async def test_a_request_is_what_the_protocol_says() -> None:
    """Head and message in two frames, and nothing else."""
    peer = await open_peer()
    peer.call(b"hello", (("x-a", "b"), ("x-bin", b"\x00\xff"), ("user-agent", "mine")), 1.5)
    (kind, flags, stream, sent), (*data, body) = await peer.frames()
    assert (kind, flags, stream) == (http2.HEADERS, http2.END_HEADERS, 1)
    assert decoded(sent) == [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/echo.v1.Echo/UnaryUnary"),
        (":authority", "127.0.0.1:1"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", "test/1"),
        ("grpc-accept-encoding", "identity,gzip,deflate"),
        ("grpc-timeout", "1500000u"),
        ("x-a", "b"),
        ("x-bin", "AP8"),
    ]
    assert (data, body) == ([http2.DATA, http2.END_STREAM, 1], b"\x00\x00\x00\x00\x05hello")


@pytest.mark.parametrize("size", [0, 16_378, 16_379, 16_380, 32_763, 32_764, 60_000])
async def test_a_large_request_goes_in_frames_that_every_peer_takes(size: int) -> None:
    """No frame is longer than 16 kB, the last one ends the request, and nothing is lost in between."""
    peer = await open_peer()
    request = bytes(number % 251 for number in range(size))
    peer.called(request)
    _, *data = await peer.frames()
    assert struct.pack(">BI", 0, size) + request == b"".join(payload for *_, payload in data)
    assert all(len(payload) <= http2.FRAME for *_, payload in data)
    assert [0] * (len(data) - 1) + [http2.END_STREAM] == [flags for _, flags, *_ in data]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0000001, "1u"),
        (0.25, "250000u"),
        (99.9, "99900000u"),
        (100.0, "100000m"),
        (1e6, "1000000S"),
        (1e12, "99999999S"),
    ],
)
async def test_a_timeout_has_at_most_eight_digits(seconds: float, shown: str) -> None:
    """As the protocol says; the unit grows, and nothing is rounded down."""
    peer = await open_peer()
    peer.called(timeout=seconds)
    (*_, sent), _ = await peer.frames()
    assert ("grpc-timeout", shown) in decoded(sent)


async def test_an_answer_comes_with_its_metadata() -> None:
    """Head and trailers, text and bytes, without what belongs to the protocol."""
    peer = await open_peer()
    answer = peer.called()
    peer.says(headers(1, *RESPONSE, ("x-a", "b"), ("x-bin", "AP8,AA==")))
    peer.says(message(1, b"re") + headers(1, *OK, ("t", "u"), end=True))
    await answer.arrived
    assert (answer.code, answer.body) == (Code.OK, b"re")
    assert answer.head is not None
    assert answer.tail is not None
    assert answer.head.metadata == (("x-a", "b"), ("x-bin", b"\x00\xff"), ("x-bin", b"\x00"))
    assert answer.tail.metadata == (("t", "u"),)


def continued(stream: int) -> bytes:
    whole = block(*RESPONSE)
    return (
        frame(http2.HEADERS, 0, stream, whole[:5])
        + frame(http2.CONTINUATION, 0, stream, whole[5:9])
        + frame(http2.CONTINUATION, http2.END_HEADERS, stream, whole[9:])
    )


def padded(stream: int) -> bytes:
    flags = http2.END_HEADERS | http2.PADDED | http2.PRIORITIZED
    head = frame(http2.HEADERS, flags, stream, b"\x02" + bytes(5) + block(*RESPONSE) + bytes(2))
    return head + frame(http2.DATA, http2.PADDED, stream, b"\x03\x00\x00\x00\x00\x05reply" + bytes(3))


WELL: dict[str, Callable[[], bytes]] = {
    "plain": lambda: well(1),
    "padded": lambda: padded(1) + headers(1, *OK, end=True),
    "continued": lambda: continued(1) + message(1) + headers(1, *OK, end=True),
    "interim": lambda: headers(1, (":status", "103")) + well(1),
    "in pieces": lambda: (
        headers(1, *RESPONSE)
        + frame(http2.DATA, 0, 1)
        + frame(http2.DATA, 0, 1, b"\x00\x00\x00")
        + frame(http2.DATA, 0, 1, b"\x00\x05re")
        + frame(http2.DATA, 0, 1, b"ply")
        + headers(1, *OK, end=True)
    ),
    "among others": lambda: (
        frame(99, 7, 3, b"new") + frame(http2.PRIORITY, 0, 3, bytes(5)) + well(1) + message(1) + reset(1, 0)
    ),
    "going": lambda: goaway(1) + well(1),
}


@pytest.mark.parametrize("how", WELL)
@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_a_response_may_come_in_any_form_that_http_allows(how: str, size: int) -> None:
    """Padded, continued, in pieces, between frames of others; and cut anywhere by the network."""
    peer = await open_peer()
    answer = peer.called()
    data = WELL[how]()
    for at in range(0, len(data), size):
        peer.says(data[at : at + size])
    await answer.arrived
    assert (answer.code, answer.body, peer.connection.broken) == (Code.OK, b"reply", "")


WRONG: dict[str, tuple[Callable[[], bytes], Code, str, bool]] = {
    "status": (
        lambda: headers(1, *RESPONSE, ("grpc-status", "5"), ("grpc-message", "no %C3%A9"), end=True),
        *(Code.NOT_FOUND, "no é", True),
    ),
    "unknown status": (lambda: headers(1, *RESPONSE, ("grpc-status", "99"), end=True), Code.UNKNOWN, "", True),
    "no status": (
        lambda: headers(1, *RESPONSE) + message(1) + headers(1, ("x", "y"), end=True),
        *(Code.UNKNOWN, "the response has no grpc-status", True),
    ),
    "proxy": (
        lambda: headers(1, (":status", "503"), ("content-type", "text/html"), end=True),
        *(Code.UNAVAILABLE, "the response is no gRPC, but HTTP 503", True),
    ),
    "proxy with a page": (
        lambda: headers(1, (":status", "502"), ("content-type", "text/html")) + page(1),
        *(Code.UNAVAILABLE, "the response is no gRPC, but HTTP 502", True),
    ),
    "proxy that wants a password": (
        lambda: headers(1, (":status", "401"), ("content-type", "text/html")) + page(1),
        *(Code.UNAUTHENTICATED, "the response is no gRPC, but HTTP 401", True),
    ),
    "page": (
        lambda: headers(1, (":status", "200"), ("content-type", "text/html")) + page(1),
        *(Code.UNKNOWN, "the response is no gRPC, but HTTP 200", True),
    ),
    "page of a proxy that speaks gRPC": (
        lambda: headers(1, (":status", "503"), RESPONSE[1]) + headers(1, ("grpc-status", "5"), end=True),
        *(Code.UNAVAILABLE, "the response is no gRPC, but HTTP 503", True),
    ),
    "status without a type": (
        lambda: headers(1, (":status", "200"), ("grpc-status", "5"), ("grpc-message", "nope"), end=True),
        *(Code.NOT_FOUND, "nope", True),
    ),
    "status beside one of HTTP": (
        lambda: headers(1, (":status", "503"), ("grpc-status", "5"), ("grpc-message", "nope"), end=True),
        *(Code.NOT_FOUND, "nope", True),
    ),
    "not grpc": (
        lambda: headers(1, (":status", "404")) + headers(1, ("x", "y"), end=True),
        *(Code.UNIMPLEMENTED, "the response is no gRPC, but HTTP 404", True),
    ),
    "no message": (
        lambda: headers(1, *RESPONSE) + headers(1, *OK, end=True),
        *(Code.UNIMPLEMENTED, "the response has no message", True),
    ),
    "no message in one block": (
        lambda: headers(1, *RESPONSE, *OK, end=True),
        *(Code.UNIMPLEMENTED, "the response has no message", True),
    ),
    "two messages": (
        lambda: headers(1, *RESPONSE) + message(1) + message(1) + headers(1, *OK, end=True),
        *(Code.UNIMPLEMENTED, "the response has more than one message", True),
    ),
    "half a message": (
        lambda: headers(1, *RESPONSE) + frame(http2.DATA, 0, 1, b"\0\0\0\0\x05re") + headers(1, *OK, end=True),
        *(Code.INTERNAL, "the message of the response is not complete", True),
    ),
    "half a prefix": (
        lambda: headers(1, *RESPONSE) + frame(http2.DATA, 0, 1, b"\0\0") + headers(1, *OK, end=True),
        *(Code.INTERNAL, "the message of the response is not complete", True),
    ),
    "packed, and nobody says how": (
        lambda: headers(1, *RESPONSE) + message(1, packed=1) + headers(1, *OK, end=True),
        *(Code.INTERNAL, "the message of the response is packed as b''", True),
    ),
    "packed in an unknown way": (
        lambda: headers(1, *RESPONSE, ("grpc-encoding", "snappy")) + message(1, packed=1) + headers(1, *OK, end=True),
        *(Code.INTERNAL, "the message of the response is packed as b'snappy'", True),
    ),
    "packed badly": (
        lambda: headers(1, *RESPONSE, ("grpc-encoding", "gzip")) + message(1, packed=1) + headers(1, *OK, end=True),
        *(Code.INTERNAL, "the message of the response cannot be unpacked", True),
    ),
    "no head": (
        lambda: message(1) + headers(1, *RESPONSE, *OK, end=True),
        *(Code.INTERNAL, "the response has no head", True),
    ),
    "no status of HTTP": (
        lambda: headers(1, (":status", "abc"), ("content-type", "text/html"), end=True),
        *(Code.UNKNOWN, "the response is no gRPC, but HTTP 0", True),
    ),
    "a status of very many digits": (
        lambda: headers(1, *RESPONSE, ("grpc-status", "1" * 10_000), end=True),
        *(Code.UNKNOWN, "", True),
    ),
    "a name that is none": (
        lambda: headers(1, *RESPONSE, ("grpc-status", "5"), ("n\xe9", "x"), end=True),
        *(Code.NOT_FOUND, "", True),
    ),
    "refused after an answer": (
        lambda: headers(1, *RESPONSE) + reset(1, 7),
        *(Code.UNAVAILABLE, "the peer did not take the call", True),
    ),
    "gone after an answer": (
        lambda: headers(1, *RESPONSE) + goaway(0),
        *(Code.UNAVAILABLE, "the peer goes away", True),
    ),
    "no trailers": (
        lambda: headers(1, *RESPONSE) + frame(http2.DATA, http2.END_STREAM, 1, b"\x00\x00\x00\x00\x00"),
        *(Code.INTERNAL, "the response has no trailers", True),
    ),
    "two heads": (
        lambda: headers(1, *RESPONSE) + headers(1, *RESPONSE),
        *(Code.INTERNAL, "the response has two heads", True),
    ),
    "refused": (lambda: reset(1, 7), Code.UNAVAILABLE, "the peer did not take the call", False),
    "cancelled": (lambda: reset(1, 8), Code.CANCELLED, "the peer broke the call off (error 8)", True),
    "broken off": (lambda: reset(1, 2), Code.INTERNAL, "the peer broke the call off (error 2)", True),
    "gone before": (lambda: goaway(0), Code.UNAVAILABLE, "the peer goes away", False),
}


@pytest.mark.parametrize("how", WRONG)
async def test_what_a_response_means_that_is_not_as_it_should_be(how: str) -> None:
    """A status, and whether the call can have been looked at."""
    says, code, text, sent = WRONG[how]
    peer = await open_peer()
    answer = peer.called()
    peer.says(says())
    assert answer.arrived.done()
    assert (code, text, sent) == (answer.code, answer.message, answer.sent)


async def test_nothing_more_is_wanted_of_a_response_that_is_no_grpc() -> None:
    """The call has ended, the peer is told, and the connection takes the next one."""
    peer = await open_peer()
    answer = peer.called()
    await peer.frames()
    peer.says(headers(1, (":status", "503"), ("content-type", "text/html")))
    assert (answer.arrived.done(), answer.code) == (True, Code.UNAVAILABLE)
    assert await peer.frames() == [(http2.RST_STREAM, 0, 1, struct.pack(">I", http2.CANCEL))]
    peer.says(page(1))
    answer = peer.called()
    peer.says(well(3))
    await answer.arrived
    assert (answer.code, answer.body, peer.connection.broken) == (Code.OK, b"reply", "")


async def test_a_lost_connection_fails_what_is_out() -> None:
    """Nobody knows what became of it, and no more is taken."""
    peer = await open_peer()
    answer = peer.called()
    await peer.frames()
    late = peer.called()
    peer.connection.connection_lost(None)
    assert (answer.code, answer.sent) == (Code.UNAVAILABLE, True)
    assert (late.code, late.sent) == (Code.UNAVAILABLE, False)  # nothing of it had left
    assert (peer.changes, peer.call()) == ([True, False, False], None)


async def test_a_reply_that_is_too_large_is_stopped_before_it_is_there() -> None:
    """The message tells both sizes, as grpc's own does, which is what errors are made of."""
    peer = await open_peer(max_message=20_000)
    answer = peer.called()
    await peer.frames()
    peer.says(headers(1, *RESPONSE) + frame(http2.DATA, 0, 1, struct.pack(">BI", 0, 30_000) + bytes(16_000)))
    assert not answer.arrived.done()
    peer.says(frame(http2.DATA, 0, 1, bytes(14_000)))
    assert answer.message == "CLIENT: Received message larger than max (30000 vs. 20000)"
    assert await peer.kinds() == [http2.RST_STREAM]


async def test_a_request_is_taken_only_when_the_peer_lets_all_of_it_be_sent() -> None:
    """Whatever does not fit goes another way, and leaves no trace here."""
    peer = await open_peer()
    assert peer.call(bytes(65_531)) is None
    peer.called(bytes(65_000))
    assert peer.call(bytes(1000)) is None
    peer.says(frame(http2.WINDOW_UPDATE, 0, 0, struct.pack(">I", 10_000)))
    peer.called(bytes(1000))
    peer.says(settings(INITIAL_WINDOW=100))
    assert peer.call(bytes(1000)) is None


async def test_the_peer_says_how_many_calls_there_may_be() -> None:
    """One more goes another way, until one has ended."""
    peer = await open_peer()
    peer.says(settings(MOST_STREAMS=2))
    first = peer.called()
    peer.called()
    assert peer.call() is None
    peer.says(well(1))
    assert first.arrived.done()
    assert peer.call() is not None


async def test_nothing_is_taken_while_the_socket_is_full() -> None:
    """What is not taken need not be kept here."""
    peer = await open_peer()
    peer.connection.pause_writing()
    assert peer.call() is None
    peer.connection.resume_writing()
    assert peer.call() is not None


@pytest.mark.parametrize(
    "pair", [("x-a", "é"), ("x-a", "a\nb"), ("X-A", "b"), ("x a", "b"), ("x-a", b"b"), ("te", "b")]
)
async def test_metadata_that_grpc_cannot_send_is_left_to_grpc(pair: Any) -> None:
    """It knows what to say."""
    peer = await open_peer()
    assert peer.call(b"", (pair,)) is None


@pytest.mark.parametrize("key", ["user-agent", "content-length"])
async def test_metadata_that_grpc_keeps_to_itself_is_not_sent(key: str) -> None:
    """A length that is not the request's would make the peer refuse the call."""
    peer = await open_peer()
    assert peer.call(b"", ((key, "3"), ("x-a", "b"))) is not None
    [(_, _, _, head), _] = await peer.frames()
    assert decoded(head)[-1] == ("x-a", "b")
    assert (key, "3") not in decoded(head)


async def test_a_call_that_is_given_up_is_told_to_the_peer() -> None:
    """Once; and what still comes for it does no harm."""
    peer = await open_peer()
    answer = peer.called()
    answer.give_up()
    peer.connection.cancel(answer)
    peer.connection.cancel(answer)
    assert await peer.kinds() == [http2.HEADERS, http2.DATA, http2.RST_STREAM]
    peer.says(well(1))
    assert not peer.connection.broken


async def test_a_deadline_ends_a_call() -> None:
    """Here as well as there: the peer is told."""
    peer = await open_peer()
    answer = peer.called(timeout=0.001)
    await answer.arrived
    assert (answer.code, answer.sent) == (Code.DEADLINE_EXCEEDED, True)
    assert await peer.kinds() == [http2.HEADERS, http2.DATA, http2.RST_STREAM]


async def test_a_peer_that_goes_gets_no_more_calls_and_finishes_those_it_has() -> None:
    """Then the connection is closed."""
    peer = await open_peer()
    answer = peer.called()
    peer.says(goaway(2**31 - 1))
    assert (peer.changes, peer.call(), peer.closed) == ([True, False], None, False)
    peer.says(well(1))
    assert (answer.code, peer.closed) == (Code.OK, True)


async def test_a_peer_that_is_asked_answers() -> None:
    """Settings and pings are confirmed; what confirms ours is not."""
    peer = await open_peer()
    peer.says(frame(http2.PING, 0, 0, b"12345678") + frame(http2.PING, http2.ACK, 0, bytes(8)))
    peer.says(settings() + frame(http2.SETTINGS, http2.ACK, 0))
    assert await peer.frames() == [
        (http2.PING, http2.ACK, 0, b"12345678"),
        (http2.SETTINGS, http2.ACK, 0, b""),
    ]


async def test_the_peer_may_go_on_sending() -> None:
    """What was received is confirmed, so that the window of the connection does not run out."""
    peer = await open_peer()
    peer.connection.cancel(peer.called())
    await peer.frames()
    for _ in range(http2.CONFIRMED // 16_000):
        peer.says(frame(http2.DATA, 0, 1, bytes(16_000)))
    assert await peer.frames() == []
    peer.says(frame(http2.DATA, 0, 1, bytes(16_000)))
    ((kind, _, stream, payload),) = await peer.frames()
    count = (http2.CONFIRMED // 16_000 + 1) * 16_000
    assert (http2.WINDOW_UPDATE, 0, count) == (kind, stream, int.from_bytes(payload, "big"))


async def test_a_peer_that_is_silent_is_asked_and_then_given_up() -> None:
    """Calls that are out fail; a connection on which something arrives is asked nothing."""
    peer = await open_peer(interval=0.02, timeout=0.02)
    answer = peer.called()
    await asyncio.wait_for(answer.arrived, 5)
    assert (answer.code, peer.aborted) == (Code.UNAVAILABLE, True)
    assert await peer.kinds() == [http2.HEADERS, http2.DATA, http2.PING]


async def test_a_peer_that_answers_stays() -> None:
    """However long it has nothing else to say."""
    peer = await open_peer(interval=0.01, timeout=0.3)
    for _ in range(3):
        while http2.PING not in await peer.kinds():  # noqa: ASYNC110  # the peer has no event for it
            await asyncio.sleep(0.002)
        peer.says(frame(http2.PING, http2.ACK, 0, bytes(8)))
    assert not peer.aborted
    peer.connection.close()


async def test_closing_gives_up_what_is_out() -> None:
    """Whoever waits is told."""
    peer = await open_peer()
    answer = peer.called()
    peer.connection.close()
    assert (answer.arrived.cancelled(), peer.closed) == (True, True)


NONSENSE = {
    "a frame that is too large": b"\x00\x40\x01" + bytes(6),
    "padding without payload": frame(http2.DATA, http2.PADDED, 1, b"\x05ab"),
    "a continuation of nothing": frame(http2.CONTINUATION, http2.END_HEADERS, 1, b""),
    "a head that is broken off": frame(http2.HEADERS, 0, 1, b"") + frame(http2.PING, 0, 0, bytes(8)),
    "a head that is none": frame(http2.HEADERS, http2.END_HEADERS, 1, b"\xff\xff\xff\xff\xff"),
    "a head that needs a table": frame(http2.HEADERS, http2.END_HEADERS, 1, b"\xbe"),
    "a short window update": frame(http2.WINDOW_UPDATE, 0, 0, b"\x01"),
    "a ping that is none": frame(http2.PING, 0, 0, b"1234"),
    "a head of no request": headers(3, *RESPONSE),
    "a head of the connection": headers(0, *RESPONSE),
    "a head of a push": headers(2, *RESPONSE),
    "data of no request": message(3),
    "a reset of no request": reset(3, 8),
    "a head that uses a table": frame(http2.HEADERS, http2.END_HEADERS, 1, b"\x40\x01a\x01b\xbe"),
    "a head that makes a table": frame(http2.HEADERS, http2.END_HEADERS, 1, b"\x3f\xe1\x1f"),
    "a continuation of another": frame(http2.HEADERS, 0, 1) + frame(http2.CONTINUATION, 4, 3),
    "continuations without end": frame(http2.HEADERS, 0, 1) + frame(http2.CONTINUATION, 0, 1) * 5000,
    "a head without end": frame(http2.HEADERS, 0, 1) + frame(http2.CONTINUATION, 0, 1, bytes(16_000)) * 20,
    "a window update of nothing": frame(http2.WINDOW_UPDATE, 0, 0, bytes(4)),
    "a window that is too large": frame(http2.WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**31 - 1)),
    "an initial window that is too large": settings(INITIAL_WINDOW=2**31),
    "settings of a call": frame(http2.SETTINGS, 0, 1),
    "half a setting": frame(http2.SETTINGS, 0, 0, b"\0\x04\0"),
    "half a goaway": frame(http2.GOAWAY, 0, 0, b"\0\0\0\0"),
    "HTTP/1.1": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "a push": frame(http2.PUSH_PROMISE, http2.END_HEADERS, 1, bytes(4)),
}


@pytest.mark.parametrize("what", NONSENSE)
async def test_a_peer_that_does_not_speak_http_is_left(what: str) -> None:
    """For good: its next connection would be no better."""
    peer = await open_peer()
    answer = peer.called()
    peer.says(NONSENSE[what])
    assert (peer.connection.open, peer.call()) == (False, None)
    await answer.arrived
    assert (peer.aborted, peer.connection.broken != "", answer.code) == (True, True, Code.UNAVAILABLE)
    assert (http2.GOAWAY, bytes(4) + struct.pack(">I", http2.PROTOCOL_ERROR)) in [
        (kind, payload) for kind, _, _, payload in await peer.frames()
    ]


KINDS = st.integers(0, 10)


def _frames() -> st.SearchStrategy[bytes]:
    parts = st.builds(
        frame,
        KINDS,
        st.integers(0, 255),
        st.sampled_from((0, 1, 3)),
        st.binary(max_size=40) | st.just(block(*RESPONSE)),
    )
    return st.lists(parts | st.binary(max_size=20), max_size=8).map(b"".join)


@hypothesis_settings(deadline=None)
@given(_frames())
def test_nothing_that_a_peer_says_fails_inside(said: bytes) -> None:
    """Whatever it is: calls end, or wait, and no exception comes out."""

    async def hear() -> None:
        peer = await open_peer()
        peer.called()
        peer.says(said)
        peer.connection.close()
        await peer.frames()

    asyncio.run(hear())


async def test_the_first_block_says_that_no_table_is_to_be_kept() -> None:
    """A peer that allows none is told so, as RFC 7541 wants it; and it is told once."""
    peer = await open_peer()
    peer.says(settings(TABLE_SIZE=0))
    await peer.frames()
    peer.called()
    peer.called()
    first, _, second, _ = await peer.frames()
    assert (first[3][:1], first[3][1:]) == (heads.NO_TABLE, second[3])


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_reply_may_be_packed(encoding: str) -> None:
    """As servers do that were told to, whoever asks."""
    peer = await open_peer()
    answer = peer.called()
    body = gzip.compress(b"reply") if encoding == "gzip" else zlib.compress(b"reply")
    peer.says(headers(1, *RESPONSE, ("grpc-encoding", encoding)) + message(1, body, packed=1))
    peer.says(headers(1, *OK, end=True))
    assert (answer.code, answer.body) == (Code.OK, b"reply")


async def test_a_packed_reply_is_not_unpacked_beyond_the_limit() -> None:
    """A few bytes that say very much are stopped, and told as too large."""
    peer = await open_peer(max_message=20_000)
    answer = peer.called()
    body = gzip.compress(bytes(50_000_000))[:19_000]
    peer.says(headers(1, *RESPONSE, ("grpc-encoding", "gzip")))
    for at in range(0, len(framed := struct.pack(">BI", 1, len(body)) + body), http2.FRAME):
        peer.says(frame(http2.DATA, 0, 1, framed[at : at + http2.FRAME]))
    peer.says(headers(1, *OK, end=True))
    assert answer.message == "CLIENT: Received message larger than max (20001 vs. 20000)"
    assert len(answer.body) <= 20_001


async def test_a_head_that_says_too_much_ends_its_call_alone() -> None:
    """The others go on, and so does the connection."""
    peer = await open_peer()
    answer, other = peer.called(), peer.called()
    await peer.frames()
    much = block(*RESPONSE, *((f"x-{number}", "y" * 1000) for number in range(70)))
    peer.says(frame(http2.HEADERS, 0, 1, much[:16_000]))
    for at in range(16_000, len(much), 16_000):
        last = http2.END_HEADERS if at + 16_000 >= len(much) else 0
        peer.says(frame(http2.CONTINUATION, last, 1, much[at : at + 16_000]))
    assert (answer.code, await peer.kinds()) == (Code.RESOURCE_EXHAUSTED, [http2.RST_STREAM])
    peer.says(well(3))
    assert (other.code, peer.connection.broken) == (Code.OK, "")


async def test_a_head_that_the_peer_does_not_take_is_left_to_grpc() -> None:
    """It has said how much it takes."""
    peer = await open_peer()
    peer.says(settings(HEAD_SIZE=2000))
    assert peer.call(b"", (("x-a", "b" * 1500),)) is None
    assert peer.call(b"", (("x-a", "b" * 1000),)) is not None


async def test_a_call_whose_deadline_has_passed_is_left_to_grpc() -> None:
    """It is not sent, and so not executed."""
    peer = await open_peer()
    assert (peer.call(timeout=0.0), peer.call(timeout=-1.0), await peer.kinds()) == (None, None, [])


async def test_nothing_is_kept_of_frames_without_content() -> None:
    """Any number of them costs no memory."""
    peer = await open_peer()
    answer = peer.called()
    peer.says(headers(1, *RESPONSE) + frame(http2.DATA, 0, 1) * 1000)
    assert (answer.parts, answer.size) == ([], 0)


async def test_a_peer_that_asks_and_does_not_read_is_left() -> None:
    """Answers to pings are not kept without end."""
    peer = await open_peer()
    peer.connection.pause_writing()
    pings = frame(http2.PING, 0, 0, bytes(8)) * 1000
    for _ in range(http2.UNREAD // len(pings) + 2):
        if peer.aborted:
            break
        peer.says(pings)
        await asyncio.sleep(0)
    assert (peer.aborted, peer.connection.broken) == (True, "it reads no answers")


async def test_a_peer_that_sends_no_more_gets_no_more_calls() -> None:
    """Between its end and that of the connection there is a moment in which calls would be lost."""
    peer = await open_peer()
    answer = peer.called()
    peer.connection.eof_received()
    assert (peer.call(), answer.arrived.done()) == (None, False)
    assert peer.closed  # or one over TLS would stay open for what can never be sent


async def test_a_peer_that_is_asked_too_often_says_so() -> None:
    """The next connection will ask less often; nothing is broken."""
    peer = await open_peer()
    peer.says(goaway(0, http2.ENHANCE_YOUR_CALM))
    assert (peer.connection.calm, peer.connection.broken) == (True, "")


async def test_a_peer_that_goes_twice_says_at_last_what_it_has_taken() -> None:
    """The first time it may still take everything, and the second time not."""
    peer = await open_peer()
    answer, late = peer.called(), peer.called()
    peer.says(goaway(2**31 - 1))
    assert not late.arrived.done()
    peer.says(goaway(2**31 | 1))  # the first bit means nothing
    assert (late.code, late.sent, answer.arrived.done()) == (Code.UNAVAILABLE, False, False)
    peer.says(well(1))
    assert (answer.code, peer.closed) == (Code.OK, True)


def test_a_call_that_is_dropped_after_its_loop_does_no_harm() -> None:
    """Its coroutine may be collected long after."""
    peers: list[tuple[Peer, Answer]] = []

    async def begin() -> None:
        peer = await open_peer()
        peers.append((peer, peer.called()))

    asyncio.run(begin())
    ((peer, answer),) = peers
    peer.connection.cancel(answer)


def test_metadata_with_line_ends_is_dropped() -> None:
    """Where HTTP/1 goes on, the rest of a value would be headers of its own; and so for names."""
    evil = [("x-note", "a\r\nset-cookie: evil=1"), ("x-nul", "a\0"), ("x a", "b"), ("x-b\r\nc", "d"), ("X-UPPER", "u")]
    good = [("x-good", "a\tb \u00e9"), ("x-bin", "AA0K")]
    head = heads.head_of(block(*RESPONSE, *evil, *good))
    assert head.metadata == (("x-good", "a\tb \u00e9"), ("x-bin", b"\0\r\n"))


async def test_metadata_with_line_ends_is_dropped_when_grpc_has_read_it() -> None:
    """grpc lets it pass."""

    class Rpc:
        async def initial_metadata(self) -> Any:
            return grpc.aio.Metadata(("x-note", "a\r\nb"), ("x-good", "a"), ("x-bin", b"\r\n"))

        trailing_metadata = initial_metadata

    kept = (("x-good", "a"), ("x-bin", b"\r\n"))
    assert await rpcs._received(Rpc(), None) == (kept, kept)


def test_header_blocks_are_remembered_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same block is read once; very many different ones do not fill the memory."""
    read: list[bytes] = []
    monkeypatch.setattr(heads, "_heads", {})
    monkeypatch.setattr(heads, "REMEMBERED", 3)

    def reading(block: bytes) -> str:
        read.append(block)
        return "read"

    monkeypatch.setattr(heads, "_read", reading)

    def see(blocks: Iterable[bytes]) -> int:
        for one in blocks:
            heads.head_of(one)
        return len(heads._heads)

    assert (see([b"a", b"a", b"a"]), see([b"b", b"c"]), see([b"d"])) == (1, 3, 1)
    assert read == [b"a", b"b", b"c", b"d"]
    assert see([bytes(heads.LONGEST_REMEMBERED + 1)]) == 1
