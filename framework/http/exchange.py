"""One HTTP request and its response on ASGI."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, MutableMapping
from typing import Any

from framework.call import Call, Metadata, Method
from framework.errors import Code, DeadlineExceeded, ResourceExhausted, RpcError, error_for
from framework.http import compression
from framework.http.asgi import IDENTITY, PEER, Receive, Scope, Send, peer_of
from framework.http.conduct import Conduct, Gone, Inbox
from framework.http.settings import HttpSettings
from framework.http.status import Headers, HttpError

MOST_DIGITS = 18
"""Digits of a length that are looked at; Python makes no number of many thousands."""

LINGER = 1.0
"""Seconds that the rest of a body is taken for, when the answer is there before it."""


TURN = 16
"""Messages of a stream after which others get a turn. Sending waits only for a client that is slow, not for one that is
fast or has gone, and a handler that has all it sends would never let anybody notice."""


class Exchange:
    """A request being answered.

    Attributes:
        http: the HTTP method.
        path: as it was sent, percent-encoded.
        query: as it was sent.
        headers: the last of each name.
        started: the response has begun.
        status: of the response, once it has begun.
        called: a call was made for it.
        refused: the error that it ended with before one was.
    """

    __slots__ = (
        "_head",
        "_packer",
        "_send",
        "_written",
        "called",
        "headers",
        "http",
        "inbox",
        "path",
        "query",
        "refused",
        "scope",
        "settings",
        "started",
        "status",
    )

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, settings: HttpSettings, path: str, live: set[Conduct]
    ) -> None:
        self.scope = scope
        self.settings = settings
        self.http: str = scope["method"]
        self.path = path
        self.query: bytes = scope["query_string"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.inbox = Inbox(receive, live)
        self.started = self.called = False
        self.status = 0
        self.refused: tuple[Code, str] | None = None
        self._send = send
        self._head = self.http == "HEAD"
        self._packer: compression.Packer | None = None
        self._written = 0

    # The request

    def content_encoding(self) -> str:
        """How the body is packed, or empty. Raises HttpError for what is not known here."""
        raw = self.headers.get(b"content-encoding")
        if raw is None:
            return ""
        name = raw.decode("latin-1").strip().lower()
        if name in ("", "identity"):
            return ""
        if name not in compression.NAMES:
            known = ", ".join(compression.NAMES)
            error = error_for(
                Code.UNIMPLEMENTED, f"content-encoding {name[:40]!r} is not known here; there are {known}"
            )
            raise HttpError(415, error, [(b"accept-encoding", known.encode())])
        return name

    async def body(self) -> bytes:
        """All of the body, unpacked.

        Raises:
            HttpError: it is too large, cannot be unpacked, or does not arrive in time.
            Gone: the client has gone.
        """
        limit = self.settings.max_message
        encoding = self.content_encoding()
        length = self.headers.get(b"content-length")
        if length is not None and length.isdigit() and (len(length) > MOST_DIGITS or int(length) > limit):
            raise self.too_large()
        body = self.inbox.at_hand()
        if self.inbox.complete:
            pass  # nearly always, and a timer costs
        elif self._has_no_body():
            body = await self._whole(body)  # which is the end of it
        else:
            try:
                async with asyncio.timeout(self.settings.body_timeout):
                    body = await self._whole(body)
            except TimeoutError:
                raise self._too_slow("the body") from None
        if len(body) > limit:
            raise self.too_large()
        return self.unpacked(encoding, body) if encoding and body else body

    def _has_no_body(self) -> bool:
        """As HTTP/1 tells; in HTTP/2 one may come unannounced."""
        announced = b"content-length" in self.headers or b"transfer-encoding" in self.headers
        return not announced and not self.scope.get("http_version", "").startswith("2")

    async def _whole(self, first: bytes) -> bytes:
        parts, size = [first], len(first)
        while (part := await self.inbox.read()) is not None:
            size += len(part)
            if size > self.settings.max_message:
                raise self.too_large()
            parts.append(part)
        return b"".join(parts)

    def unpacked(self, encoding: str, data: bytes) -> bytes:
        """A message or a whole body, unpacked. Raises HttpError."""
        try:
            return compression.unpack(encoding, data, self.settings.max_message)
        except compression.TooLarge:
            raise self.too_large() from None
        except compression.Corrupt as error:
            raise HttpError(400, error_for(Code.INVALID_ARGUMENT, f"this is no {encoding}: {error}")) from None

    async def part(self, *, timed: bool) -> bytes | None:
        """The next part of the body, None at its end; when `timed` it has to arrive soon. Raises HttpError and Gone."""
        if not timed or self.inbox.complete:
            return await self.inbox.read()
        try:
            async with asyncio.timeout(self.settings.body_timeout):
                return await self.inbox.read()
        except TimeoutError:
            raise self._too_slow("the next part of the body") from None

    def _too_slow(self, what: str) -> HttpError:
        error = DeadlineExceeded(f"{what} did not arrive within {self.settings.body_timeout:g} s")
        return HttpError(408, error, [(b"connection", b"close")])

    async def parts(self, *, timed: bool) -> AsyncIterator[bytes]:
        """The body as it arrives, unpacked; see `part`."""
        encoding = self.content_encoding()
        unpacker = compression.unpacker(encoding) if encoding else None
        while (part := await self.part(timed=timed)) is not None:
            if unpacker is None:
                if part:
                    yield part
                continue
            for piece in self._pieces(unpacker, part):
                yield piece
        if unpacker is not None:
            try:
                unpacker.end()
            except compression.Corrupt as error:
                raise HttpError(400, error_for(Code.INVALID_ARGUMENT, f"this is no {encoding}: {error}")) from None

    def _pieces(self, unpacker: compression.Unpacker, part: bytes) -> Iterator[bytes]:
        try:
            yield from unpacker.feed(part)
        except compression.Corrupt as error:
            raise HttpError(400, error_for(Code.INVALID_ARGUMENT, f"the body cannot be unpacked: {error}")) from None

    def too_large(self) -> HttpError:
        """What is answered to a message that is larger than allowed."""
        error = ResourceExhausted(f"the message is larger than {self.settings.max_message} bytes")
        return HttpError(413, error, [(b"connection", b"close")])

    # The call

    def call(self, method: Method[Any, Any], request: Any, metadata: Metadata, timeout: float | None) -> Call:
        """The call that the request asks for."""
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        call = Call(
            method,
            request,
            metadata,
            deadline=deadline,
            timeout=timeout,
            peer=peer_of(self.scope),
            wire=self.scope.get(PEER),
        )
        call.identity = self.scope.get(IDENTITY)
        self.called = True
        return call

    def failed(self, error: RpcError) -> None:
        """Keep what the log is told when no call was made; not the error, whose traceback leads back here."""
        if not self.called:
            self.refused = error.code, error.message

    # The response

    async def respond(self, status: int, headers: Headers, body: bytes, *, pack: bool = True) -> None:
        """A whole response. `pack` allows compression."""
        if pack and len(body) >= self.settings.compress_above:
            headers.append((b"vary", b"accept-encoding"))
            if name := compression.accepted(self.headers.get(b"accept-encoding")):
                body = compression.pack(name, body)
                headers.append((b"content-encoding", name.encode()))
        if status not in (204, 304):
            headers.append((b"content-length", b"%d" % len(body)))
        self.started = True
        self.status = status
        await self._emit({"type": "http.response.start", "status": status, "headers": headers})
        if not self.inbox.complete:
            await self._emit({"type": "http.response.body", "body": b"" if self._head else body, "more_body": True})
            await self._drain()
            body = b""
        await self._emit({"type": "http.response.body", "body": b"" if self._head else body})

    async def start(self, status: int, headers: Headers, *, pack: bool = True) -> None:
        """Begin a response that comes in parts."""
        if pack:
            headers.append((b"vary", b"accept-encoding"))
            if name := compression.accepted(self.headers.get(b"accept-encoding")):
                self._packer = compression.packer(name)
                headers.append((b"content-encoding", name.encode()))
        self.started = True
        self.status = status
        await self._emit({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, part: bytes) -> None:
        """Send a part of the response, all of it; waits while the client does not read."""
        if self._packer is not None:
            part = self._packer.pack(part)
        if not self._head:
            await self._emit({"type": "http.response.body", "body": part, "more_body": True})
        self._written += 1
        if not self._written % TURN:
            await asyncio.sleep(0)

    async def finish(self, part: bytes = b"") -> None:
        """Send the last part."""
        if self._packer is not None:
            part = (self._packer.pack(part) if part else b"") + self._packer.end()
        if not self.inbox.complete and not self._head:
            await self._emit({"type": "http.response.body", "body": part, "more_body": True})
            await self._drain()
            part = b""
        await self._emit({"type": "http.response.body", "body": b"" if self._head else part})

    async def _emit(self, message: MutableMapping[str, Any]) -> None:
        """Raises Gone: servers may raise OSError when the client has gone, or say nothing."""
        try:
            await self._send(message)
        except OSError:
            self.inbox.gone = True
            raise Gone from None

    async def _drain(self) -> None:
        """Take what the client still sends, or many a client would not read the answer: but not for ever."""
        with contextlib.suppress(TimeoutError, Gone):
            async with asyncio.timeout(LINGER):
                while await self.inbox.read() is not None:
                    pass
