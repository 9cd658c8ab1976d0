"""gRPC over ASGI without a server: what arrives broken, clients that go, clients that do not read."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest

from framework import Code, Context, Outcome, Settings
from framework.server.asgi import GrpcApp
from framework.server.asgi_wire import BEHIND, AsgiWire
from framework.server.context import Wire
from framework.server.pipeline import Pipeline
from tests.invariants.conftest import recording, soon, until
from tests.invariants.echo import Behaviour, Echo, repeat, text

OTHER = {"type": "other"}


def framed(payload: bytes, flags: int = 0) -> bytes:
    return bytes((flags,)) + len(payload).to_bytes(4, "big") + payload


ONE = framed(text("a").SerializeToString())


class Client:
    """One request to an echo, and what came of it.

    Args:
        waits: `receive` waits for the client to go once the request is complete, as ASGI has it.
    """

    def __init__(self, method: str, behave: Behaviour = repeat, *, waits: bool = False, headers: Any = ()) -> None:
        self.outcomes: list[Outcome] = []
        pipeline = Pipeline([recording(self.outcomes)])
        pipeline.add(Echo(behave))
        self.sent: list[Any] = []
        self.room = asyncio.Event()
        self.room.set()
        self._waits = waits
        self._coming: asyncio.Queue[tuple[bytes, bool] | None] = asyncio.Queue()
        self._complete = False
        self._gone = asyncio.Event()
        named = {"content-type": "application/grpc", **dict(headers)}
        scope = {
            "type": "http",
            "http_version": "2",
            "method": "POST",
            "path": f"/echo.v1.Echo/{method}",
            "headers": [(key.encode(), value.encode()) for key, value in named.items()],
        }
        self.task = asyncio.create_task(GrpcApp(pipeline, Settings(), self._other)(scope, self._receive, self._send))

    async def _other(self, scope: Any, receive: Any, send: Any) -> None:
        await send(OTHER)

    async def _receive(self) -> Any:
        if self._complete and not self._gone.is_set() and not self._waits:
            return {"type": "http.request", "body": b"", "more_body": False}
        if self._complete or self._gone.is_set():
            await self._gone.wait()
            return {"type": "http.disconnect"}
        part = await self._coming.get()
        if part is None:
            return {"type": "http.disconnect"}
        self._complete = not part[1]
        return {"type": "http.request", "body": part[0], "more_body": part[1]}

    async def _send(self, message: Any) -> None:
        await self.room.wait()
        self.sent.append(message)

    def body(self, part: bytes = b"", *, more: bool = False) -> None:
        self._coming.put_nowait((part, more))

    def leave(self) -> None:
        self._gone.set()
        self._coming.put_nowait(None)

    async def status(self) -> tuple[int, str]:
        """How the call ended for the client."""
        await soon(self.task)
        head = dict(self.sent[-1].get("headers") or self.sent[0]["headers"])
        return int(head[b"grpc-status"]), head.get(b"grpc-message", b"").decode()


@pytest.mark.parametrize("method", ["UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream"])
async def test_a_call(method: str) -> None:
    """Headers, messages in frames, and the status in trailers."""
    client = Client(method)
    client.body(ONE[:3], more=True)
    client.body(ONE[3:])
    assert await client.status() == (0, "")
    assert b"".join(message.get("body", b"") for message in client.sent) == ONE
    assert [outcome.code for outcome in client.outcomes] == [Code.OK]


@pytest.mark.parametrize("method", ["UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream"])
async def test_nothing_waits_for_the_collector(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that has ended is in no cycle: it is gone before anybody collects garbage."""
    wires: list[weakref.ref[AsgiWire]] = []

    def wire(*arguments: Any) -> AsgiWire:
        made = AsgiWire(*arguments)
        wires.append(weakref.ref(made))
        return made

    monkeypatch.setattr("framework.server.asgi.AsgiWire", wire)
    gc.disable()
    try:
        client = Client(method)
        client.body(ONE)
        assert await client.status() == (0, "")
        del client.task  # a cycle of this test's own
        await until(lambda: wires[0]() is None)
    finally:
        gc.enable()


@pytest.mark.parametrize("method", ["UnaryUnary", "StreamUnary"])
@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (framed(b"a", flags=2), {}, (13, "a message has the flags 0x02, which are not known here")),
        (framed(b"a", flags=1), {}, (13, "a message is marked as compressed, and no compression was named")),
        (framed(b"abc", flags=1), {"grpc-encoding": "gzip"}, (13, "a message cannot be unpacked")),
        (framed(b"\xff"), {}, (13, "echo.v1.Echo/")),
        (ONE[:-1], {}, (13, "the request")),
        (ONE, {"grpc-encoding": "br"}, (12, "compression 'br' is not known here; there are identity,deflate,gzip")),
        (ONE, {"grpc-timeout": "soon"}, (13, "'soon' is no timeout")),
        (b"\0\xff\0\0\0", {}, (8, "message too large: the request has 4278190080 bytes")),
    ],
)
async def test_what_is_no_request(method: str, body: bytes, headers: dict[str, str], status: tuple[int, str]) -> None:
    """The client is told what is wrong."""
    client = Client(method, headers=headers)
    client.body(body)
    code, message = await client.status()
    assert (code, message.startswith(status[1])) == (status[0], True), message


@pytest.mark.parametrize("method", ["UnaryUnary", "StreamStream"])
@pytest.mark.parametrize(
    ("value", "status"),
    [
        ("a\nb", (3, "metadata x-key is not printable ASCII")),
        ("\x1b[31m", (3, "metadata x-key is not printable ASCII")),
        ("\xff", (3, "metadata x-key is not printable ASCII")),
        ("a" * 16_500, (8, "the metadata has 16537 bytes, the server takes up to 16384 (`limits.metadata`)")),
    ],
)
async def test_metadata_that_is_not_taken(method: str, value: str, status: tuple[int, str]) -> None:
    """It is refused as over grpc, before the method knows of the call."""
    client = Client(method, headers={"x-key": value})
    client.body(ONE)
    assert await client.status() == status
    assert client.outcomes == []


async def test_all_that_a_context_asks_a_wire_for() -> None:
    """Each is there, and a client whose certificate is the server's has shown none here."""
    asked: list[Any] = []

    async def behave(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        asked.append(context.peer_identity)
        yield text("")

    assert {name for name in vars(Wire) if not name.startswith("_")} <= set(dir(AsgiWire))
    client = Client("UnaryUnary", behave)
    client.body(ONE)
    assert await client.status() == (0, "")
    assert asked == [None]


@pytest.mark.parametrize("parts", [(), (ONE[:3],)], ids=["nothing", "a part"])
@pytest.mark.parametrize("method", ["UnaryUnary", "UnaryStream", "StreamUnary"])
async def test_a_request_that_is_overdue(method: str, parts: tuple[bytes, ...]) -> None:
    """The deadline holds from the beginning; what comes of the request later is let go."""
    client = Client(method, headers={"grpc-timeout": "20m"})
    for part in parts:
        client.body(part, more=True)
    await until(lambda: len(client.sent) == 2)
    client.body(ONE[3:] if parts else ONE)
    assert await client.status() == (4, "the deadline has passed")
    assert len(client.sent) == 2


async def test_requests_of_others() -> None:
    """What is no gRPC, or cannot have trailers, is another application's."""
    for headers in ({"content-type": "application/grpc-web"}, {"content-type": "application/json"}):
        client = Client("UnaryUnary", headers=headers)
        await soon(client.task)
        assert client.sent == [OTHER]


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("method", ["UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream"])
async def test_a_client_that_goes(method: str, waits: bool) -> None:
    """The handler is cancelled, whether the server tells by itself that the client has gone or only when asked."""
    entered = asyncio.Event()

    async def behave(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        entered.set()
        await asyncio.Event().wait()
        yield text("never")

    client = Client(method, behave, waits=waits)
    client.body(ONE)
    await soon(entered.wait())
    client.leave()
    await until(lambda: client.outcomes)
    assert client.outcomes[0].code is Code.CANCELLED
    await soon(client.task)


async def test_an_upload_that_breaks_off() -> None:
    """A handler does not take it for a complete one."""
    seen: list[str] = []

    async def behave(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            seen.append(request.value)
        seen.append("complete")
        yield text("")

    client = Client("StreamUnary", behave)
    client.body(ONE + ONE, more=True)
    await until(lambda: len(seen) == 2)
    client.leave()
    await soon(client.task)
    assert seen == ["a", "a"]


async def test_a_client_that_does_not_read() -> None:
    """The handler waits when some replies are on their way."""
    made = 0
    go_on = asyncio.Event()

    async def behave(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        nonlocal made
        yield text("first")
        await go_on.wait()
        while made < 100:
            made += 1
            yield text("x" * 1000)

    client = Client("UnaryStream", behave)
    client.body(ONE)
    await until(lambda: len(client.sent) == 2)
    client.room.clear()
    go_on.set()
    await until(lambda: made)
    for _ in range(50):
        await asyncio.sleep(0)
    assert made <= BEHIND // 1000 + 2
    client.room.set()
    assert await client.status() == (0, "")
    assert sum(len(message.get("body", b"")) for message in client.sent) > 100_000
