"""How a response leaves."""

from __future__ import annotations

import asyncio
from typing import Any

from framework.http.protocol import Joined


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
