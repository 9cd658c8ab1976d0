"""A tiny client of ASGI applications: requests in parts, responses as they come, and leaving in between."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterable, MutableMapping
from types import TracebackType
from typing import Any, Self

Message = MutableMapping[str, Any]


class Response:
    """What came back.

    Attributes:
        status, headers, body: of HTTP; header names in lower case, values of a name joined with a comma.
        parts: the body as it was sent, part by part.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.parts: list[bytes] = []
        self.complete = False

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]

    def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            assert not self.status
            self.status = message["status"]
            for raw, value in message["headers"]:
                assert raw == raw.lower()
                name = raw.decode()
                text = value.decode("latin-1")
                self.headers[name] = f"{self.headers[name]},{text}" if name in self.headers else text
        else:
            assert self.status
            assert not self.complete
            if message.get("body"):
                self.parts.append(message["body"])
            self.complete = not message.get("more_body", False)


class Conversation:
    """One request being answered. Used as `async with`, which leaves: the application sees the client go."""

    def __init__(self, app: Any, scope: dict[str, Any], *, hold: bool = False) -> None:
        self._incoming: asyncio.Queue[Message] = asyncio.Queue()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        if not hold:
            self._room.set()
        self.response = Response()
        self.sent: list[Message] = []
        self.broken = False
        self._task = asyncio.create_task(app(scope, self._incoming.get, self._send))
        self._task.add_done_callback(lambda task: self._changed.set())

    async def _send(self, message: Message) -> None:
        await self._room.wait()
        if self.broken:
            raise OSError("the connection is lost")
        self.sent.append(message)
        if message["type"].startswith("http.response"):
            self.response.take(message)
        self._changed.set()

    def body(self, part: bytes = b"", *, more: bool = False) -> None:
        """Send a part of the body."""
        self._incoming.put_nowait({"type": "http.request", "body": part, "more_body": more})

    def text(self, text: str) -> None:
        """Send a frame of a WebSocket."""
        self._incoming.put_nowait({"type": "websocket.receive", "text": text})

    def event(self, kind: str, **fields: Any) -> None:
        self._incoming.put_nowait({"type": kind, **fields})

    def leave(self, kind: str = "http.disconnect") -> None:
        """Go."""
        self._incoming.put_nowait({"type": kind})

    def release(self) -> None:
        """Let the application send what it waits to send."""
        self._room.set()

    async def until(self, count: int) -> None:
        """Wait for so many parts of the response, or frames."""
        while len(self.response.parts or self.sent) < count and not self._task.done():
            self._changed.clear()
            await self._changed.wait()

    async def done(self) -> Response:
        """Wait for the application; raises what it raised."""
        await self._task
        return self.response

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: Any, traceback: TracebackType | None) -> None:
        self.leave()
        await self._task


def scope(method: str, target: str, headers: Iterable[tuple[str, str]] = (), **more: Any) -> dict[str, Any]:
    path, _, query = target.partition("?")
    return {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers],
        "client": ("10.0.0.9", 4711),
        "server": ("127.0.0.1", 80),
        **more,
    }


def open_request(app: Any, request: str, headers: Iterable[tuple[str, str]] = (), **more: Any) -> Conversation:
    """Begin a request, given as `GET /path?query`, of which the body is still to come."""
    method, _, target = request.partition(" ")
    return Conversation(app, scope(method, target, headers), **more)


async def ask(app: Any, request: str, body: bytes | str | None = None, /, **headers: str) -> Response:
    """Make a request; a body is JSON unless `content_type` says something else."""
    sent = [(name.replace("_", "-"), value) for name, value in headers.items()]
    if body and "content_type" not in headers:
        sent.append(("content-type", "application/json"))
    conversation = open_request(app, request, sent)
    conversation.body(body.encode() if isinstance(body, str) else body or b"")
    return await conversation.done()


def open_socket(app: Any, target: str, headers: Iterable[tuple[str, str]] = ()) -> Conversation:
    """Begin a WebSocket."""
    conversation = Conversation(app, {**scope("GET", target, headers), "type": "websocket", "scheme": "ws"})
    conversation.event("websocket.connect")
    return conversation


def loopback() -> socket.socket:
    """A free port of this machine.

    It names its protocol, since asyncio turns Nagle's delay off only for sockets that do, and accepted ones inherit it:
    without, an answer in two parts takes 40 ms longer.
    """
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    found.bind(("127.0.0.1", 0))
    found.listen()
    return found
