"""Streams over WebSocket, on the route that the annotation says.

Each text frame is one JSON message; an empty one says that no more requests come, which WebSocket itself cannot say.
A call that is OK closes with 1000. One that fails sends `{"error": google.rpc.Status}`, and closes with 4000 and its
gRPC code. A client that closes cancels the call.

Source: RFC 6455, section 7.4.2, for the codes from 4000 on
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from framework.call import Call
from framework.errors import (
    Cancelled,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    RpcError,
)
from framework.http.asgi import IDENTITY, Receive, Scope, Send, peer_of
from framework.http.binding import Preset
from framework.http.conduct import Conduct, Gone, Inbox
from framework.http.exchange import TURN
from framework.http.headers import timeout_of
from framework.http.json import JsonError
from framework.http.rest import RestRoute
from framework.http.routes import BadPath, Found
from framework.http.status import HTTP_STATUS, Headers, challenge, text
from framework.telemetry.http import ROUTE

if TYPE_CHECKING:
    from framework.http.app import HttpApp

CLOSE_OK = 1000
CLOSE_FAILED = 4000
LONGEST_REASON = 123


async def serve_websocket(app: HttpApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one WebSocket."""
    await receive()  # websocket.connect
    with contextlib.suppress(Gone):
        await _serve(app, scope, receive, _guarded(send))


def _guarded(send: Send) -> Send:
    async def guarded(message: MutableMapping[str, Any]) -> None:
        try:
            await send(message)
        except OSError:  # as servers say that the client has gone
            raise Gone from None

    return guarded


async def _serve(app: HttpApp, scope: Scope, receive: Receive, send: Send) -> None:
    from framework.http.app import raw_path

    try:
        headers = dict(scope["headers"])
        app.cors.check(headers)
        found = _route(app, raw_path(scope))
        route = found.route
        assert route is not None
        scope[ROUTE] = route.rule.template.text
        if app.guard is not None:
            await app.guard(scope, route.rule.method)
        preset = route.binder.preset(found.values, scope["query_string"])
        timeout = timeout_of(headers, app.settings.max_timeout)
    except RpcError as error:
        await _deny(app, scope, send, error)
        return
    await send({"type": "websocket.accept"})
    socket = Socket(receive, app.settings.max_message, app.live)
    requests = SocketRequests(route, preset, socket)
    loop = asyncio.get_running_loop()
    call = Call(
        route.rule.method,
        requests,
        route.incoming.metadata(scope),
        deadline=None if timeout is None else loop.time() + timeout,
        timeout=timeout,
        peer=peer_of(scope),
    )
    call.identity = scope.get(IDENTITY)
    try:
        await Conduct(call, socket).run(_run, route, call, requests, send)
    except RpcError as error:
        status = app.details.status(error.code, error.message, error.details)
        await send({"type": "websocket.send", "text": text({"error": status}).decode()})
        reason = error.message.encode("utf-8", "replace")[:LONGEST_REASON].decode(errors="ignore")
        await send({"type": "websocket.close", "code": CLOSE_FAILED + error.code, "reason": reason})
        return
    await send({"type": "websocket.close", "code": CLOSE_OK, "reason": ""})


def _route(app: HttpApp, path: str) -> Found[RestRoute]:
    """The streaming route at a path, whatever its HTTP method: a WebSocket always begins with GET."""
    try:
        for found in app.router.find_all(path):
            if found.route is not None:
                method = found.route.rule.method
                if (method.client_streaming or method.server_streaming) and not found.route.binder.raw:
                    return found
    except BadPath as error:
        raise InvalidArgument(str(error)) from None
    raise NotFound(f"there is no stream at {path[:200]}")


async def _deny(app: HttpApp, scope: Scope, send: Send, error: RpcError) -> None:
    app.note(scope, HTTP_STATUS[error.code], error.code, error.message)
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": CLOSE_FAILED + error.code, "reason": error.message[:60]})
        return
    body = text(app.details.status(error.code, error.message, error.details))
    headers: Headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    headers += challenge(error)
    status = HTTP_STATUS[error.code]
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


async def _run(route: RestRoute, call: Call, requests: SocketRequests, send: Send) -> None:
    method, write = route.rule.method, route.writer.write
    if not method.client_streaming:
        first = await anext(requests, None) if route.rule.body else None
        call.request = route.binder.message(requests.preset, b"") if first is None else first
    reply = await route.handler(call)
    try:
        if not method.server_streaming:
            await send({"type": "websocket.send", "text": write(reply).decode()})
            return
        async with reply:
            sent = 0
            async for one in reply:
                await send({"type": "websocket.send", "text": write(one).decode()})
                sent += 1
                if not sent % TURN:
                    await asyncio.sleep(0)
    except JsonError as error:
        raise Internal(error.message) from None


class Socket(Inbox):
    """What the client sends on a WebSocket: a frame is a part, and an empty one the end."""

    def __init__(self, receive: Receive, limit: int, live: set[Conduct]) -> None:
        async def told() -> MutableMapping[str, Any]:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return {"type": "http.disconnect"}
            sent = message.get("text")
            body = message.get("bytes") or b"" if sent is None else sent.encode("utf-8", "replace")
            return {"type": "http.request", "body": body, "more_body": bool(body)}

        super().__init__(told, live)
        self._limit = limit

    async def frame(self) -> bytes | None:
        """The next frame, None when there will be none. Raises ResourceExhausted and Gone."""
        body = await self.read()
        if body and len(body) > self._limit:
            raise ResourceExhausted(f"the message is larger than {self._limit} bytes")
        return body or None


class SocketRequests:
    """The requests that come as frames."""

    def __init__(self, route: RestRoute, preset: Preset, socket: Socket) -> None:
        self._binder = route.binder
        self.preset = preset
        self._socket = socket

    def __aiter__(self) -> SocketRequests:
        return self

    async def __anext__(self) -> Any:
        try:
            body = await self._socket.frame()
        except Gone:
            raise Cancelled("the client has gone") from None
        if body is None:
            raise StopAsyncIteration
        return self._binder.message(self.preset, body)
