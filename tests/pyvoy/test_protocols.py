"""What the engine pyvoy answers on its one port, to clients that know nothing of it."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from google.protobuf.wrappers_pb2 import Int32Value as Number
from google.protobuf.wrappers_pb2 import StringValue as Text  # the same on the wire as the lab's own
from google.rpc.error_details_pb2 import ResourceInfo

from framework.details import unpack
from tests.cli.lab import Serving
from tests.tools import tool

PATIENCE = 5.0
"""Seconds in which something that should happen at once has happened."""


def bound(channel: grpc.aio.Channel, name: str) -> Any:
    """A method of the lab as a stub would have it."""
    kind: dict[str, tuple[str, Any]] = {"Count": ("unary_stream", Number), "Add": ("stream_unary", Number)}
    arity, message = {**kind, "Shout": ("stream_stream", Text)}.get(name, ("unary_unary", Text))
    return getattr(channel, arity)(f"/lab.v1.Lab/{name}", message.SerializeToString, message.FromString)


async def greet(channel: grpc.aio.Channel, text: str, **options: Any) -> str:
    return str((await bound(channel, "Greet")(Text(value=text), timeout=PATIENCE, **options)).value)


async def each(*messages: Any) -> AsyncIterator[Any]:
    for message in messages:
        yield message


async def test_every_arity(channel: grpc.aio.Channel) -> None:
    """One or many requests, one or many replies."""
    assert await greet(channel, "Ada") == "Hello, Ada!"
    assert [reply.value async for reply in bound(channel, "Count")(Number(value=3))] == [1, 2, 3]
    assert (await bound(channel, "Add")(each(*(Number(value=n) for n in (1, 2, 3))))).value == 6
    assert [reply.value async for reply in bound(channel, "Shout")(each(Text(value="a"), Text(value="b")))] == [
        "A",
        "B",
    ]


async def test_many_replies_arrive_in_order(channel: grpc.aio.Channel) -> None:
    """Replies that are collected while others are being sent stay apart, and in their order."""
    assert list(range(1, 5001)) == [reply.value async for reply in bound(channel, "Count")(Number(value=5000))]


async def test_a_conversation(channel: grpc.aio.Channel) -> None:
    """Each request is answered before the next is sent."""
    call = bound(channel, "Shout")()
    for word in ("one", "two"):
        await call.write(Text(value=word))
        assert word.upper() == (await call.read()).value
    await call.done_writing()
    assert await call.code() == grpc.StatusCode.OK


async def test_failures(channel: grpc.aio.Channel) -> None:
    """A failure has its code, its message and its details; what the handler did not mean to say stays with it."""
    with pytest.raises(grpc.aio.AioRpcError) as missing:
        await greet(channel, "missing pärt")
    assert (missing.value.code(), missing.value.details()) == (grpc.StatusCode.NOT_FOUND, "no pärt")
    trailers = dict(missing.value.trailing_metadata() or ())
    assert [ResourceInfo(resource_name="pärt")] == list(unpack(trailers["grpc-status-details-bin"]))
    with pytest.raises(grpc.aio.AioRpcError, match="internal error") as broken:
        await greet(channel, "broken")
    assert broken.value.code() == grpc.StatusCode.INTERNAL
    with pytest.raises(grpc.aio.AioRpcError, match="there is no method") as absent:
        await bound(channel, "Nothing")(Text())
    assert absent.value.code() == grpc.StatusCode.UNIMPLEMENTED
    call = bound(channel, "Count")(Number(value=13))
    assert [(await call.read()).value for _ in range(13)] == list(range(1, 14))
    with pytest.raises(grpc.aio.AioRpcError, match="nothing after 13"):
        await call.read()


async def test_metadata(channel: grpc.aio.Channel) -> None:
    """Metadata passes both ways, bytes as bytes."""
    sent = (("x-lab", "a"), ("x-lab-bin", b"\0\xff"), ("x-lab-bin", b"b"))
    assert str(list(sent)) == await greet(channel, "headers", metadata=sent)
    call = bound(channel, "Greet")(Text(value="metadata"))
    head, tail = dict(await call.initial_metadata()), dict(await call.trailing_metadata())
    assert (head["x-lab-head"], head["x-lab-head-bin"], tail["x-lab-tail-bin"]) == ("a", b"\0\1", b"\2")


async def ended(channel: grpc.aio.Channel, name: str) -> None:
    """Wait until the handler of a call has ended, whose client has not waited for it."""
    async with asyncio.timeout(PATIENCE):
        while name not in (await greet(channel, "ended")).split():  # noqa: ASYNC110  # it is in another process
            await asyncio.sleep(0.01)


async def test_deadlines(channel: grpc.aio.Channel) -> None:
    """A deadline reaches the handler, which is cancelled when it passes."""
    assert (await bound(channel, "Greet")(Text(value="time"), timeout=30)).value == "30 s"
    with pytest.raises(grpc.aio.AioRpcError) as late:
        await bound(channel, "Greet")(Text(value="wait late"), timeout=0.2)
    assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await ended(channel, "late")


STARTED: dict[str, Callable[[grpc.aio.Channel], Any]] = {
    "gone": lambda channel: bound(channel, "Greet")(Text(value="wait gone")),
    "Count": lambda channel: bound(channel, "Count")(Number(value=-1)),
    "Shout": lambda channel: bound(channel, "Shout")(),
    "Add": lambda channel: bound(channel, "Add")(),
}


@pytest.mark.parametrize("name", STARTED)
async def test_a_client_that_goes(channel: grpc.aio.Channel, name: str) -> None:
    """The handler of a call that is given up is cancelled, whatever it waits for."""
    call = STARTED[name](channel)
    if name == "Add":
        await call.write(Number(value=1))
    elif name == "Shout":
        await call.write(Text(value="a"))
    if name in ("Shout", "Count"):
        await call.read()
    else:
        await greet(channel, "later than the call before")
    call.cancel()
    await ended(channel, name)


async def test_compression(channel: grpc.aio.Channel) -> None:
    """Requests may be packed, and replies are when the handler says so."""
    assert await greet(channel, "Ada", compression=grpc.Compression.Gzip) == "Hello, Ada!"
    assert await greet(channel, "packed") == "x" * 10_000


async def test_large_messages(channel: grpc.aio.Channel) -> None:
    """Up to the limit they pass; more is refused by name, and the connection lives."""
    assert len(await greet(channel, f"large {3 << 20}")) == 3 << 20
    assert f"Hello, {'y' * (3 << 20)}!" == await greet(channel, "y" * (3 << 20))
    for asked in ("y" * (5 << 20), f"large {5 << 20}"):
        with pytest.raises(grpc.aio.AioRpcError, match="message too large") as large:
            await greet(channel, asked)
        assert large.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_handler_slower_than_its_client(channel: grpc.aio.Channel) -> None:
    """What a handler has not asked for waits with the client."""
    message = Number(value=1000).SerializeToString() + b"\x7a\xff\xff\x03" + b"x" * 65535  # an unknown field
    add: Any = channel.stream_unary("/lab.v1.Lab/Add", None, Number.FromString)
    assert (await add(each(*[message] * 200), timeout=30)).value == 200_000


def test_grpcurl(server: Serving) -> None:
    """A client that asks the server what it serves; and health."""

    def grpcurl(*arguments: str) -> str:
        command = [tool("grpcurl"), "-plaintext", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout

    assert "lab.v1.Lab" in grpcurl(server.address, "list").split()
    said = grpcurl("-d", '{"text": "Ada"}', server.address, "lab.v1.Lab/Greet")
    assert json.loads(said) == {"text": "Hello, Ada!"}
    assert json.loads(grpcurl(server.address, "grpc.health.v1.Health/Check")) == {"status": "SERVING"}


async def test_http_on_the_same_port(server: Serving) -> None:
    """REST, Connect and gRPC-Web, and a handler that is told that the client has gone."""
    async with httpx.AsyncClient(base_url=f"http://{server.address}", timeout=PATIENCE) as http:
        path = "/lab.v1.Lab/Greet"
        assert (await http.post(path, json={"text": "Ada"})).json() == {"text": "Hello, Ada!"}
        connect = {"connect-protocol-version": "1"}
        missing = await http.post(path, json={"text": "missing p"}, headers=connect)
        assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
        raw = Text(value="Ada").SerializeToString()
        web = {"content-type": "application/grpc-web-text"}
        said = await http.post(path, content=base64.b64encode(b"\0" + len(raw).to_bytes(4, "big") + raw), headers=web)
        assert b"Hello, Ada!" in base64.b64decode(said.content[:28])
        with pytest.raises(httpx.ReadTimeout):
            await http.post(path, json={"text": "wait http"}, timeout=0.3)
        async with asyncio.timeout(PATIENCE):
            while "http" not in (await http.post(path, json={"text": "ended"})).text:  # noqa: ASYNC110  # as above
                await asyncio.sleep(0.01)
