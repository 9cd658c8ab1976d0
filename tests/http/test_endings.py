"""Every call that HTTP makes ends, exactly once, whichever protocol made it and however it went."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from framework.call import Call, Handler, Method, Outcome
from framework.errors import PermissionDenied
from framework.http.app import HttpApp
from framework.http.rpc import frame
from framework.server.local import Local
from framework.server.pipeline import Pipeline
from tests.http.driver import Conversation, open_request, open_socket
from tests.http.library import SERVICE, Library

RPC = "POST /lab.v1.Library"


class World:
    """The library behind HTTP, and how its calls ended on both sides."""

    def __init__(self) -> None:
        self.library = Library()
        self.outcomes: list[Outcome] = []
        self.pipeline = Pipeline()
        self.pipeline.add(self.library)
        self.app = HttpApp([SERVICE], self.bind)

    def bind(self, method: Method[Any, Any]) -> Handler:
        handler = Local(self.pipeline).bind(method)

        def recorded(call: Call) -> Any:
            call.on_end(self.outcomes.append)
            if call.get("x-refuse"):
                raise PermissionDenied("not you")  # at once, and not when it is awaited
            return handler(call)

        return recorded

    def codes(self) -> list[str]:
        assert not self.pipeline.calls
        return [outcome.code.name for outcome in self.outcomes]


def start(world: World, protocol: str, method: str, body: str, *headers: tuple[str, str]) -> Conversation:
    """A call with one request in some protocol."""
    raw = body.encode()
    kind = {
        "rest": "application/json",
        "connect": "application/json",
        "stream": "application/connect+json",
        "web": "application/grpc-web+json",
        "text": "application/grpc-web-text",
    }.get(protocol, "")
    if protocol == "socket":
        conversation = open_socket(world.app, f"/lab.v1.Library/{method}", headers)
        conversation.text(body)
        return conversation
    if protocol == "text":
        kind, raw = "application/grpc-web-text", base64.b64encode(frame(0, b""))
    elif protocol in ("stream", "web"):
        raw = frame(0, raw)
    more = [("connect-protocol-version", "1")] if protocol == "connect" else []
    conversation = open_request(world.app, f"{RPC}/{method}", [("content-type", kind), *more, *headers])
    conversation.body(raw)
    return conversation


UNARY = ["rest", "connect", "web"]
STREAMS = ["rest", "stream", "web", "socket"]


@pytest.mark.parametrize(
    ("protocol", "method", "body", "code"),
    [
        *((protocol, "GetBook", '{"name": "x"}', "OK") for protocol in [*UNARY, "text"]),
        *((protocol, "GetBook", '{"name": "fail"}', "NOT_FOUND") for protocol in UNARY),
        *((protocol, "Watch", '{"count": 2}', "OK") for protocol in STREAMS),
        *((protocol, "Watch", '{"failAt": 1}', "ABORTED") for protocol in STREAMS),
        *((protocol, "Watch", '{"failAt": 2}', "ABORTED") for protocol in STREAMS),
        *((protocol, "Collect", '{"text": "a"}', "OK") for protocol in STREAMS if protocol != "socket"),
        *((protocol, "Chat", '{"text": "boom"}', "INVALID_ARGUMENT") for protocol in STREAMS),
        *((protocol, "Chat", '{"text": 1}', "INVALID_ARGUMENT") for protocol in STREAMS),
    ],
)
async def test_a_call_ends(protocol: str, method: str, body: str, code: str) -> None:
    """With OK and with each failure, once."""
    world = World()
    await start(world, protocol, method, body).done()
    assert world.codes() == [code]


@pytest.mark.parametrize("protocol", [*UNARY, "text"])
async def test_a_call_that_is_refused_at_once(protocol: str) -> None:
    """An interceptor may raise before anything is awaited."""
    world = World()
    await start(world, protocol, "GetBook", "{}", ("x-refuse", "1")).done()
    assert world.codes() == ["PERMISSION_DENIED"]


@pytest.mark.parametrize(
    ("protocol", "method", "body"),
    [
        *((protocol, "GetBook", '{"name": "hang"}') for protocol in UNARY),
        *((protocol, "Watch", '{"shelf": "shelves/slow"}') for protocol in STREAMS),
    ],
)
async def test_a_client_that_goes(protocol: str, method: str, body: str) -> None:
    """The call is CANCELLED, and its handler with it."""
    world = World()
    conversation = start(world, protocol, method, body)
    await asyncio.wait_for(world.library.entered.wait(), 5)
    conversation.leave("websocket.disconnect" if protocol == "socket" else "http.disconnect")
    await conversation.done()
    assert (world.codes(), world.library.cancelled.is_set()) == (["CANCELLED"], True)


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    ("protocol", "method", "body"),
    [
        *((protocol, "GetBook", '{"name": "hang"}') for protocol in UNARY),
        *((protocol, "Watch", '{"shelf": "shelves/slow"}') for protocol in STREAMS),
    ],
)
async def test_a_deadline(protocol: str, method: str, body: str) -> None:
    """The call is over at its deadline, and its handler with it."""
    world = World()
    await start(world, protocol, method, body, ("grpc-timeout", "5S")).done()
    assert (world.codes(), world.library.cancelled.is_set()) == (["DEADLINE_EXCEEDED"], True)
