"""gRPC-Web, binary and as text.

Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md
"""

from __future__ import annotations

import base64
from urllib.parse import quote

from framework.call import Call
from framework.details import KEY as DETAILS
from framework.details import pack
from framework.errors import RpcError
from framework.http import compression
from framework.http.connect import base_type
from framework.http.exchange import Exchange
from framework.http.headers import encoded, outgoing, timeout_of
from framework.http.rpc import Coding, Dialect, FrameRequests, Frames, RpcMethod, converse, frame, known_encoding
from framework.http.status import Headers

TRAILERS = 0x80
_TYPES = {
    b"application/grpc-web": ("proto", False),
    b"application/grpc-web+proto": ("proto", False),
    b"application/grpc-web+json": ("json", False),
    b"application/grpc-web-text": ("proto", True),
    b"application/grpc-web-text+proto": ("proto", True),
}
EXPOSED = b"grpc-status, grpc-message"


def speaks_grpc_web(exchange: Exchange) -> bool:
    """A request is gRPC-Web."""
    return exchange.headers.get(b"content-type", b"").startswith(b"application/grpc-web")


async def serve(rpc: RpcMethod, exchange: Exchange) -> None:
    """Answer a request in gRPC-Web. Raises Gone when nobody waits for an answer."""
    kind = base_type(exchange.headers.get(b"content-type", b""))
    if kind not in _TYPES or exchange.http != "POST":
        await exchange.respond(415 if exchange.http == "POST" else 405, [(b"allow", b"POST")], b"")
        return
    name, as_text = _TYPES[kind]
    coding: Coding = getattr(rpc, name)
    best = compression.accepted(exchange.headers.get(b"grpc-accept-encoding"))

    def headers(call: Call | None) -> Headers:
        sent: Headers = [(b"content-type", kind)]
        if best:
            sent.append((b"grpc-encoding", best.encode()))
        return sent if call is None else sent + outgoing(call.header)

    dialect = Dialect(headers, _end, best, as_text)
    try:
        encoding = known_encoding(exchange.headers.get(b"grpc-encoding"))
        timeout = timeout_of(exchange.headers, rpc.settings.max_timeout)
    except RpcError as error:
        exchange.failed(error)
        sent = headers(None)
        sent.append((b"grpc-accept-encoding", ",".join(compression.NAMES).encode()))
        await exchange.start(200, sent, pack=False)
        last = _end(None, error)
        await exchange.finish(base64.b64encode(last) if as_text else last)
        return
    requests = FrameRequests(Frames(exchange, encoding, timed=rpc.timed, as_text=as_text), coding.decode)
    await converse(rpc, exchange, coding, requests, timeout, dialect)


async def refuse(rpc: RpcMethod, exchange: Exchange, error: RpcError) -> None:
    """Answer a request with an error, before it is looked at."""
    exchange.failed(error)
    kind = base_type(exchange.headers.get(b"content-type", b""))
    _, as_text = _TYPES.get(kind, ("proto", False))
    await exchange.start(200, [(b"content-type", kind)], pack=False)
    last = _end(None, error)
    await exchange.finish(base64.b64encode(last) if as_text else last)


def _end(call: Call | None, error: RpcError | None) -> bytes:
    lines = [b"grpc-status: %d" % (0 if error is None else error.code)]
    if error is not None:
        if error.message:
            lines.append(b"grpc-message: %s" % _message(error.message))
        if error.details:
            lines.append(f"{DETAILS}: ".encode() + base64.b64encode(pack(error)).rstrip(b"="))
    trailer = (error.metadata if error is not None else ()) or (call.trailer if call is not None else ())
    for key, value in trailer:
        if not key.startswith("grpc-"):
            lines.append(f"{key}: ".encode() + encoded(key, value))
    return frame(TRAILERS, b"".join(line + b"\r\n" for line in lines))


def _message(text: str) -> bytes:
    """Percent-encoded as gRPC does: all but printable ASCII, and the percent sign itself."""
    return quote(text, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~", errors="replace").encode()
