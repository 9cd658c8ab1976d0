"""How a response leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import uvicorn
from uvicorn.server import ServerState

from framework.http.conduct import Inbox
from framework.http.protocol import Joined, LimitedProtocol, WebSocketProtocol, limited
from framework.web import HttpLimits


class Socket(asyncio.Transport):
    """A transport that notes what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        assert not self.closed
        self.sent.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return name


async def test_what_is_written_in_one_turn_leaves_together() -> None:
    """A head and its body are one system call, and in order."""
    socket = Socket()
    joined = Joined(socket, asyncio.get_running_loop())
    joined.write(b"head")
    joined.write(b"body")
    assert socket.sent == []
    await asyncio.sleep(0)
    joined.write(b"more")
    await asyncio.sleep(0)
    assert socket.sent == [b"headbody", b"more"]


async def test_closing_sends_what_was_written() -> None:
    """An answer before a close is not lost."""
    socket = Socket()
    joined = Joined(socket, asyncio.get_running_loop())
    joined.write(b"answer")
    joined.close()
    assert (socket.sent, socket.closed) == ([b"answer"], True)


async def test_nothing_is_sent_to_a_client_that_has_gone() -> None:
    """Even if it goes between the write and the turn in which it would leave."""
    socket = Socket()
    joined = Joined(socket, asyncio.get_running_loop())
    joined.write(b"answer")
    socket.close()
    await asyncio.sleep(0)
    assert socket.sent == []


async def test_all_else_is_the_transports_own() -> None:
    """uvicorn asks it who the client is, and pauses it."""
    assert Joined(Socket(), asyncio.get_running_loop()).get_extra_info("peername") == "peername"


class Nobody(Socket):
    """One that knows nothing of the other end, and whether it is read."""

    def __init__(self) -> None:
        super().__init__()
        self._reading = True

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


P = TypeVar("P", LimitedProtocol, WebSocketProtocol)


def connected(app: Any, kind: Callable[..., P]) -> tuple[P, Nobody]:
    """A connection to an application, and what leaves on it."""
    config = uvicorn.Config(app, log_config=None, access_log=False)
    protocol = kind(config=config, server_state=ServerState(), app_state={})
    socket = Nobody()
    protocol.connection_made(socket)
    return protocol, socket


SMALL = limited(HttpLimits(header=1024))


CHUNKED = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n"


@pytest.mark.parametrize(("answered", "expected"), [(False, b"HTTP/1.1 431 "), (True, b"HTTP/1.1 200 ")])
async def test_who_says_too_much_beside_a_body(answered: bool, expected: bytes) -> None:
    """It is told as long as there is no answer yet, which two of them would break."""
    begun = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if answered:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        begun.set()
        while (await receive())["type"] == "http.request":
            pass

    protocol, socket = connected(app, SMALL)
    protocol.data_received(CHUNKED + b"0\r\n")
    await begun.wait()
    protocol.data_received(b"x-a: " + b"a" * 1000)
    assert not socket.closed
    protocol.data_received(b"a" * 20)
    sent = b"".join(socket.sent)
    assert (socket.closed, sent[:13], sent.count(b"HTTP/1.1 ")) == (True, expected, 1)
    protocol.connection_lost(None)


async def test_what_is_refused_behind_a_request_that_is_served_has_no_answer() -> None:
    """It would be taken for that of the first."""
    begun = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        begun.set()
        while (await receive())["type"] == "http.request":
            pass

    for second in (b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", b"FOO / HTTP/1.1\r\n", CHUNKED + b"-1\r\n"):
        protocol, socket = connected(app, SMALL)
        protocol.data_received(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        await begun.wait()
        protocol.data_received(second)
        assert (socket.closed, socket.sent) == (True, [])
        protocol.connection_lost(None)
        begun.clear()


GREETING = (
    b"GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def test_a_websocket_is_not_read_while_its_client_does_not_read() -> None:
    """Or the answers to its pings would pile up; not even when the application has taken all that came before."""
    accepted, more = asyncio.Event(), asyncio.Event()
    taken: asyncio.Queue[Any] = asyncio.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        accepted.set()
        await more.wait()
        while True:
            taken.put_nowait((await receive())["text"])

    protocol, socket = connected(app, WebSocketProtocol)
    protocol.data_received(GREETING)
    await accepted.wait()
    protocol.pause_writing()
    assert not socket.is_reading()
    protocol.data_received(b"\x81\x82\0\0\0\0hi")  # that had arrived already
    more.set()
    assert (await taken.get(), socket.is_reading()) == ("hi", False)
    protocol.resume_writing()
    assert socket.is_reading()
    protocol.data_received(b"\x81\x82\0\0\0\0ho")
    protocol.pause_writing()
    protocol.resume_writing()
    assert not socket.is_reading()  # one message at a time, as ever
    assert (await taken.get(), socket.is_reading()) == ("ho", True)
    (task,) = protocol.tasks
    task.cancel()
    await asyncio.wait([task])


def inbox(*said: Any) -> Inbox:
    """What a client says: parts of a body, None for a pause in between, and an exception in place of one."""
    coming = list(said)

    async def receive() -> Any:
        while (one := coming.pop(0)) is None:  # noqa: ASYNC110  # a pause, and no wait for something
            await asyncio.sleep(0.001)
        if isinstance(one, Exception):
            raise one
        return {"type": "http.request", "body": one, "more_body": bool(coming)}

    return Inbox(receive, set())


async def test_a_body_that_is_there_is_taken_without_waiting() -> None:
    """As nearly all are: then nothing need watch how long it takes."""
    box = inbox(b"all")
    assert (box.at_hand(), box.complete, await box.read()) == (b"all", True, None)


async def test_a_body_that_is_not_there_is_waited_for() -> None:
    """The look for it has begun to receive, and is gone on with: nothing is lost, and nothing is in the wrong order."""
    box = inbox(None, None, b"a", None, b"b")
    assert (box.at_hand(), box.complete) == (b"", False)
    assert [await box.read(), await box.read(), await box.read()] == [b"a", b"b", None]


async def test_a_wait_for_a_body_can_be_cancelled_and_can_fail() -> None:
    """Just as if it had not begun before."""
    box = inbox(*[None] * 10_000)
    box.at_hand()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await box.read()
    box = inbox(None, OSError("gone"))
    box.at_hand()
    with pytest.raises(OSError, match="gone"):
        await box.read()
