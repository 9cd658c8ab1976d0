"""The Connect protocol: unary calls by POST and GET, and streams in frames.

Source: https://connectrpc.com/docs/protocol
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl

from framework.call import Call, Idempotency, Metadata
from framework.errors import InvalidArgument, RpcError, Unimplemented
from framework.http import compression
from framework.http.conduct import Conduct
from framework.http.exchange import Exchange
from framework.http.headers import encoded, outgoing, timeout_of
from framework.http.rpc import (
    Coding,
    Dialect,
    FrameRequests,
    Frames,
    RpcMethod,
    converse,
    frame,
    known_encoding,
    received,
)
from framework.http.status import HTTP_STATUS, Details, Headers, HttpError, challenge, packed, retry_after, text

END_STREAM = 0x02
VERSION = b"connect-protocol-version"
UNARY = {b"application/json": "json", b"application/proto": "proto"}
STREAM = {b"application/connect+json": "json", b"application/connect+proto": "proto"}
ACCEPT_POST = b"application/json, application/proto, application/connect+json, application/connect+proto"


def code_name(error: RpcError) -> str:
    """The name of a code in Connect, `not_found`."""
    return "canceled" if error.code.name == "CANCELLED" else error.code.name.lower()


def error_json(error: RpcError, details: Details) -> dict[str, Any]:
    """An error as Connect writes it."""
    shown: dict[str, Any] = {"code": code_name(error)}
    if error.message:
        shown["message"] = error.message
    if error.details:
        shown["details"] = [_detail(detail, details) for detail in error.details]
    return shown


def _detail(detail: Any, details: Details) -> dict[str, Any]:
    holder = packed(detail)
    shown: dict[str, Any] = {
        "type": holder.type_url.rpartition("/")[2],
        "value": base64.b64encode(holder.value).rstrip(b"=").decode(),
    }
    debug = details.shown(holder)
    if debug.pop("@type", None) and "value" not in debug:
        shown["debug"] = debug
    return shown


def base_type(content_type: bytes) -> bytes:
    """A content type without its parameters."""
    return content_type.partition(b";")[0].strip().lower()


def speaks_connect(exchange: Exchange) -> bool:
    """A request to a method's own path is Connect, and not REST or another protocol."""
    if exchange.http == "GET":
        return b"message=" in exchange.query and b"encoding=" in exchange.query
    kind = base_type(exchange.headers.get(b"content-type", b""))
    return is_rpc(exchange) or (bool(kind) and not kind.endswith((b"json", b"jsonl", b"jsonlines", b"/form-data")))


def is_rpc(exchange: Exchange) -> bool:
    """A request is meant for a method, by its type: one that is not there has no answer in JSON then."""
    kind = exchange.headers.get(b"content-type", b"")
    return kind.startswith((b"application/connect+", b"application/grpc", b"application/proto")) or (
        VERSION in exchange.headers
    )


async def serve(rpc: RpcMethod, exchange: Exchange) -> None:
    """Answer a request in Connect. Raises Gone when nobody waits for an answer."""
    kind = base_type(exchange.headers.get(b"content-type", b""))
    if exchange.http == "POST" and kind in STREAM and rpc.streaming:
        await _stream(rpc, exchange, STREAM[kind])
        return
    if exchange.http not in ("GET", "POST"):
        allow = b"GET, POST" if takes_get(rpc) else b"POST"
        await exchange.respond(405, [(b"allow", allow)], b"")
        return
    try:
        if exchange.http == "GET":
            name, body = await _from_query(rpc, exchange)
        elif kind in UNARY and not rpc.streaming:
            name, body = UNARY[kind], await exchange.body()
        else:
            await exchange.respond(415, [(b"accept-post", ACCEPT_POST)], b"")
            return
        await _unary(rpc, exchange, name, body)
    except HttpError as error:
        await _fail(rpc, exchange, error.error, None, error.headers, error.status)
    except RpcError as error:
        await _fail(rpc, exchange, error, None)


async def refuse(rpc: RpcMethod, exchange: Exchange, error: RpcError) -> None:
    """Answer a request with an error, before it is looked at."""
    exchange.failed(error)
    kind = base_type(exchange.headers.get(b"content-type", b""))
    if kind not in STREAM:
        await _fail(rpc, exchange, error, None)
        return
    await exchange.start(200, [(b"content-type", kind)], pack=False)
    await exchange.finish(frame(END_STREAM, text({"error": error_json(error, rpc.details)})))


def takes_get(rpc: RpcMethod) -> bool:
    """Whether a method may be called by GET."""
    return rpc.method.idempotency is Idempotency.NO_SIDE_EFFECTS and not rpc.streaming


async def _from_query(rpc: RpcMethod, exchange: Exchange) -> tuple[str, bytes]:
    if not takes_get(rpc):
        raise HttpError(405, Unimplemented(f"{rpc.method.full_name} has side effects; use POST"), [(b"allow", b"POST")])
    # A character for a byte, since a message may be of any bytes.
    query = dict(parse_qsl(exchange.query.decode("latin-1"), keep_blank_values=True, encoding="latin-1"))
    if query.get("connect", "v1") != "v1":
        raise InvalidArgument(f"connect={query['connect'][:40]} is not known here; there is v1")
    name = query.get("encoding", "")
    if name not in ("json", "proto"):
        raise HttpError(415, InvalidArgument(f"encoding={name[:40]} is not known here; there are json, proto"))
    body = query.get("message", "").encode("latin-1")
    if query.get("base64") == "1":
        try:
            body = base64.b64decode(
                body.rstrip(b"=") + b"=" * (-len(body.rstrip(b"=")) % 4), altchars=b"-_", validate=True
            )
        except binascii.Error:
            raise InvalidArgument("message is no base64") from None
    if len(body) > rpc.settings.max_message:
        raise exchange.too_large()
    encoding = known_encoding(query.get("compression", "").encode("latin-1"))
    return name, exchange.unpacked(encoding, body) if encoding and body else body


async def _unary(rpc: RpcMethod, exchange: Exchange, name: str, body: bytes) -> None:
    coding: Coding = getattr(rpc, name)
    call: Call | None = None
    try:
        timeout = timeout_of(exchange.headers, rpc.settings.max_timeout)
        request = coding.decode(body)
        call = exchange.call(rpc.method, request, rpc.incoming.metadata(exchange.scope), timeout)
        reply = await Conduct(call, exchange.inbox).run(rpc.handler, call)
        await received(call)
        sent = coding.encode(reply)
    except RpcError as error:
        await _fail(rpc, exchange, error, call)
        return
    headers: Headers = [(b"content-type", f"application/{name}".encode()), *_metadata(call.header, call.trailer)]
    await exchange.respond(200, headers, sent)


def _metadata(header: Metadata, trailer: Metadata) -> Headers:
    if not header and not trailer:
        return []
    return [*outgoing(header), *((b"trailer-" + key, value) for key, value in outgoing(trailer))]


async def _fail(
    rpc: RpcMethod,
    exchange: Exchange,
    error: RpcError,
    call: Call | None,
    headers: Iterable[tuple[bytes, bytes]] = (),
    status: int | None = None,
) -> None:
    exchange.failed(error)
    trailer = error.metadata or (call.trailer if call is not None else ())
    sent: Headers = [(b"content-type", b"application/json"), *headers]
    sent += _metadata(call.header if call is not None else (), trailer)
    sent += challenge(error)
    if error.details:
        sent += retry_after(error)
    shown = text(error_json(error, rpc.details))
    await exchange.respond(HTTP_STATUS[error.code] if status is None else status, sent, shown)


async def _stream(rpc: RpcMethod, exchange: Exchange, name: str) -> None:
    coding: Coding = getattr(rpc, name)
    content_type = f"application/connect+{name}".encode()
    best = compression.accepted(exchange.headers.get(b"connect-accept-encoding"))

    def headers(call: Call | None) -> Headers:
        sent: Headers = [(b"content-type", content_type)]
        if best:
            sent.append((b"connect-content-encoding", best.encode()))
        return sent if call is None else sent + outgoing(call.header)

    def end(call: Call | None, error: RpcError | None) -> bytes:
        shown: dict[str, Any] = {} if error is None else {"error": error_json(error, rpc.details)}
        trailer = (error.metadata if error is not None else ()) or (call.trailer if call is not None else ())
        if trailer:
            lists: dict[str, list[str]] = {}
            for key, value in trailer:
                lists.setdefault(key, []).append(encoded(key, value).decode("latin-1"))
            shown["metadata"] = lists
        return frame(END_STREAM, text(shown))

    dialect = Dialect(headers, end, best)
    try:
        encoding = known_encoding(exchange.headers.get(b"connect-content-encoding"))
        timeout = timeout_of(exchange.headers, rpc.settings.max_timeout)
    except RpcError as error:
        exchange.failed(error)
        await exchange.start(200, headers(None), pack=False)
        await exchange.finish(end(None, error))
        return
    requests = FrameRequests(Frames(exchange, encoding, timed=rpc.timed), coding.decode)
    await converse(rpc, exchange, coding, requests, timeout, dialect)
