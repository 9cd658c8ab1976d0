"""ASGI below the pipeline: plain gRPC for a server that speaks HTTP/2 and sends trailers, raw bytes in and out.

What is shared with other applications is the port: requests that are not gRPC are another application's.

Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, TypeAlias

from framework.config import Settings, active
from framework.errors import DeadlineExceeded, Internal, RpcError, Unimplemented
from framework.metadata import unwelcome
from framework.server.asgi_wire import FINE, START, AsgiWire, Gone, Requests, Scope, Send, trailers_of
from framework.server.context import ServerCall, incoming_call
from framework.server.pipeline import Pipeline
from framework.server.presence import Presence, Receive

App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_NAMES = 1000
LONGEST_NAME = 100
"""How many header names are remembered, and how long they are."""

TYPES = frozenset((b"application/grpc", b"application/grpc+proto"))

_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}

# What a header name stands for; text is the key of metadata under its own name.
_SKIPPED: Final = 0
_TYPE: Final = 1
_DEADLINE: Final = 2
_ENCODING: Final = 3
_BINARY: Final = 4
_NAMES: Mapping[bytes, str | int] = {
    b"content-type": _TYPE,
    b"grpc-timeout": _DEADLINE,
    b"grpc-encoding": _ENCODING,
    b"grpc-previous-rpc-attempts": "grpc-previous-rpc-attempts",
    b"host": _SKIPPED,
    b"te": _SKIPPED,
    b"content-length": _SKIPPED,
}


class GrpcApp:
    """An ASGI 3 application that serves gRPC, and leaves everything else to another.

    Args:
        pipeline: what to serve, complete.
        settings: of the service.
        other: what answers requests that are no gRPC.

    Attributes:
        presence: notices that clients have gone.
    """

    def __init__(self, pipeline: Pipeline, settings: Settings, other: App) -> None:
        self._pipeline = pipeline
        self._settings = settings
        self._limit = settings.server.max_message
        self._most = settings.server.limits.metadata
        self._other = other
        self._bound = {bound.method.path: bound for bound in pipeline.methods}
        self._names: dict[bytes, str | int] = dict(_NAMES)
        self._loop = asyncio.get_running_loop()
        self._young: set[ServerCall] = set()
        self._watched: set[ServerCall] = set()
        self._answering: set[asyncio.Task[None]] = set()
        self.presence = Presence(self._loop, self._look)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of ASGI."""
        if scope["type"] != "http":
            await self._other(scope, receive, send)
            return
        names = self._names
        pairs: list[tuple[str, str | bytes]] = []
        kind = timeout = encoding = None
        for raw, value in scope["headers"]:
            name = names.get(raw)
            if name is None:
                name = self._learn(raw)
            if name.__class__ is str:
                pairs.append((name, value.decode("latin-1")))
            elif name == _TYPE:
                kind = value
            elif name == _DEADLINE:
                timeout = value
            elif name == _ENCODING:
                encoding = value
            elif name == _BINARY:
                pairs += _binary(raw.decode("latin-1"), value)
        if kind not in TYPES or scope["method"] != "POST" or scope["http_version"] == "1.1":
            await self._other(scope, receive, send)
            return
        wire = AsgiWire(scope, receive, send, self._limit, encoding)
        unfit = unwelcome(pairs, self._most)
        bound = self._bound.get(scope["path"])
        if unfit is not None or bound is None or timeout is not None or encoding is not None:
            try:
                if unfit is not None:
                    raise unfit
                if bound is None:
                    raise Unimplemented(f"there is no method {scope['path'][:200]}")
                deadline = None if timeout is None else self._pipeline.time() + _seconds(timeout)
                wire.check_encoding()
            except RpcError as error:
                self._pipeline.turned_away(error.code)
                await wire.refuse(error)
                return
        else:
            deadline = None
        call = incoming_call(bound.method, tuple(pairs), deadline=deadline, peer=wire.peer, wire=wire)
        wire.call = call
        active.set(self._settings)
        if not self.presence.ticking:
            self.presence.start()
        timer = raw = None
        streams = bound.method.server_streaming
        try:
            if deadline is not None:
                timer = self._loop.call_at(deadline, self._expire, call)
            if bound.method.client_streaming:
                call.request = Requests(wire, bound.decode)
            else:
                message = await receive()
                wire.complete = not message.get("more_body", False)
                raw = _only(message["body"]) if wire.complete and message["type"] == "http.request" else None
                if raw is None or len(raw) > self._limit or call.expelled is not None:
                    raw = await wire.only(message)
            if streams:
                await self._pipeline.stream(bound, call, raw, wire.write)
            else:
                raw = await self._pipeline.answer(bound, call, raw)
        except RpcError as error:
            if call.expelled is None or call.outcome is not None:  # else it has been answered
                await wire.fail(call, error)
            return
        except Gone:
            return
        except asyncio.CancelledError:
            await wire.break_off(call)
            return
        finally:
            wire.call = None  # which holds the wire: what is no cycle needs no collector
            if timer is not None:
                timer.cancel()
        if wire.started or call.header or streams or wire.packing:
            await wire.finish(call, None if streams else raw)
            return
        try:  # the usual way of a call with one reply
            await send(START)
            await send({"type": "http.response.body", "body": b"\0" + len(raw).to_bytes(4, "big") + raw})
            await send(FINE if not call.trailer else trailers_of(0, "", call.trailer))
        except OSError:
            pass  # the client has gone, and the call has ended all the same

    def _expire(self, call: ServerCall) -> None:
        error = DeadlineExceeded("the deadline has passed")
        call.expel(error)
        if call.task is None and call.outcome is None:  # its request is still coming, and is not to be waited for
            self._pipeline.turned_away(error.code)
            answering = self._loop.create_task(call.wire.overdue(call, error))
            self._answering.add(answering)
            answering.add_done_callback(self._answering.discard)

    def _learn(self, raw: bytes) -> str | int:
        name = raw.decode("latin-1")
        meaning: str | int = _BINARY if name.endswith("-bin") else name
        if name.startswith(("grpc-", ":", "x-envoy-")):
            meaning = _SKIPPED
        if len(self._names) < MOST_NAMES and len(raw) <= LONGEST_NAME:
            self._names[raw] = meaning
        return meaning

    def _look(self) -> bool:
        """Have the clients of calls watched that were here in the round before; whether there are any calls."""
        calls = self._pipeline.calls
        for call in self._young & calls:
            if type(call.wire) is not AsgiWire:
                continue
            if call.wire.complete:
                self.presence.watch(call.wire)
                self._watched.add(call)
            else:
                call.wire.look()
        self._watched &= calls
        self._young = calls - self._watched
        return bool(calls)

    def __repr__(self) -> str:
        return f"<GrpcApp with {len(self._bound)} methods>"


def _only(body: bytes) -> bytes | None:
    """The message in a body that is one message, as it is; None for any other."""
    return body[5:] if len(body) >= 5 and not body[0] and int.from_bytes(body[1:5], "big") == len(body) - 5 else None


def _seconds(timeout: bytes) -> float:
    match = _TIMEOUT.fullmatch(timeout)
    if match is None:
        raise Internal(f"{timeout[:40].decode('latin-1')!r} is no timeout")
    return int(match[1]) * _UNITS[match[2]]


def _binary(name: str, raw: bytes) -> Iterable[tuple[str, bytes]]:
    """The values of a binary header: base64, padded or not, several after another with commas."""
    for part in raw.split(b","):
        part = part.strip().rstrip(b"=")
        try:
            yield name, base64.b64decode(part + b"=" * (-len(part) % 4), validate=True)
        except (binascii.Error, ValueError):
            continue
