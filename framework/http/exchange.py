"""One HTTP request and its response on ASGI, and the call that is made between the two.

The call is cancelled when the client goes. Whoever reads the body notices that; while nobody reads, a look at what
comes next is taken from time to time, and not at once: most calls are over before, and the look is not free.

ASGI: https://asgi.readthedocs.io/en/latest/specs/www.html
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, MutableMapping
from typing import Any, ParamSpec, TypeVar

from framework.call import OK, Call, Metadata, Method, Outcome
from framework.errors import Cancelled, Code, DeadlineExceeded, Internal, ResourceExhausted, RpcError, error_for
from framework.http import compression
from framework.http.settings import HttpSettings
from framework.http.status import Headers, HttpError

log = logging.getLogger("framework.http")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
T = TypeVar("T")
P = ParamSpec("P")

IDENTITY = "framework.identity"
"""Where a scope has who the caller is, once that was found out."""

PATIENCE = 0.02
"""Seconds after which it is looked whether the client is still there."""

MOST_DIGITS = 18
"""Digits of a length that are looked at; Python makes no number of many thousands."""

PEER = "framework.peer"
"""Where a scope has who is at the other end, by its certificate."""

LINGER = 1.0
"""Seconds that the rest of a body is taken for, when the answer is there before it."""


TURN = 16
"""Messages of a stream after which others get a turn. Sending waits only for a client that is slow, not for one that is
fast or has gone, and a handler that has all it sends would never let anybody notice."""


class Gone(Exception):
    """The client has gone."""


class Begun(Awaitable[T]):
    """What was begun and waits for something, to be awaited to its end."""

    __slots__ = ("_steps", "_waits_for")

    def __init__(self, steps: Generator[Any, Any, T], waits_for: Any) -> None:
        self._steps = steps
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, T]:
        steps, waits_for = self._steps, self._waits_for
        try:
            while True:
                try:
                    said = yield waits_for
                except BaseException as error:
                    waits_for = steps.throw(error)
                else:
                    waits_for = steps.send(said)
        except StopIteration as done:
            found: T = done.value
            return found


class Inbox:
    """What the client sends: the parts of the body, and that it has gone.

    Attributes:
        live: the calls in flight, of all clients.
    """

    __slots__ = ("_ahead", "_begun", "_on_gone", "_reading", "_receive", "complete", "gone", "live")

    def __init__(self, receive: Receive, live: set[Conduct]) -> None:
        self._receive = receive
        self.live = live
        self._ahead: asyncio.Task[MutableMapping[str, Any]] | None = None
        self._begun: Begun[MutableMapping[str, Any]] | None = None
        self._reading = False
        self._on_gone: Callable[[], None] | None = None
        self.complete = False
        self.gone = False

    def at_hand(self) -> bytes:
        """What is there of the body without waiting, perhaps nothing yet. Raises Gone."""
        if self.complete or self._ahead is not None:
            return b""
        steps: Any = self._receive().__await__()
        try:
            waits_for = next(steps)
        except StopIteration as done:
            return self._taken(done.value)
        self._begun = Begun(steps, waits_for)
        return b""

    async def read(self) -> bytes | None:
        """The next part of the body, None at its end. Raises Gone."""
        if self.complete:
            return None
        self._reading = True
        try:
            if self._begun is not None:
                begun, self._begun = self._begun, None
                message = await begun
            elif self._ahead is None:
                message = await self._receive()
            else:
                ahead, self._ahead = self._ahead, None  # it goes with a reader that is cancelled
                message = await ahead
        finally:
            self._reading = False
        return self._taken(message)

    def _taken(self, message: MutableMapping[str, Any]) -> bytes:
        if message["type"] == "http.disconnect":
            self.gone = True
            raise Gone
        self.complete = not message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body

    def look(self, on_gone: Callable[[], None]) -> None:
        """Call `on_gone` when the client goes, while nobody reads."""
        self._on_gone = on_gone
        if self._ahead is None and not self._reading:
            self._ahead = asyncio.ensure_future(self._receive())
            self._ahead.add_done_callback(self._arrived)

    def _arrived(self, task: asyncio.Task[MutableMapping[str, Any]]) -> None:
        if task.cancelled() or task.exception() is not None:
            return
        if task.result()["type"] == "http.disconnect":
            self.gone = True
            if self._on_gone is not None:
                self._on_gone()
        elif self.complete and self._on_gone is not None:  # more than the end: it is not read, but look on
            self._ahead = None
            self.look(self._on_gone)

    def close(self) -> None:
        """Nobody is interested any more."""
        self._on_gone = None
        if self._ahead is not None and not self._ahead.done():
            self._ahead.cancel()
            self._ahead = None


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
        elif length is None and b"transfer-encoding" not in self.headers:
            body = await self._whole(body)  # there is none, as a rule
        else:
            try:
                async with asyncio.timeout(self.settings.body_timeout):
                    body = await self._whole(body)
            except TimeoutError:
                raise self._too_slow("the body") from None
        if len(body) > limit:
            raise self.too_large()
        return self.unpacked(encoding, body) if encoding and body else body

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


def peer_of(scope: Scope) -> str:
    """The address of the other side, as gRPC writes it: `ipv4:127.0.0.1:50123`."""
    client = scope.get("client")
    if not client:
        return ""
    return f"ipv6:[{client[0]}]:{client[1]}" if ":" in client[0] else f"ipv4:{client[0]}:{client[1]}"


class Conduct:
    """A call from its beginning to its end: cancelled at its deadline, and when the client goes.

    Args:
        call: the call, which this ends.
        inbox: where the client's going is noticed.
    """

    __slots__ = ("_call", "_inbox", "_loop", "_reason", "_task", "_timers")

    def __init__(self, call: Call, inbox: Inbox) -> None:
        self._call = call
        self._inbox = inbox
        self._reason: BaseException | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[Any] | None = None

    async def run(self, work: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do the work of the call.

        Raises:
            RpcError: the call failed.
            Gone: the client has gone.
        """
        call = self._call
        self._task = asyncio.current_task()
        if call.deadline is not None:
            self._timers.append(self._loop.call_at(call.deadline, self._expire))
        self._timers.append(self._loop.call_later(PATIENCE, self._look))
        self._inbox.live.add(self)
        try:
            result = await work(*args, **kwargs)
            self._check()
        except BaseException as error:
            failure = self._failure(error)
            call.end(outcome_of(failure))
            if failure is error:
                raise
            raise failure from error
        finally:
            for timer in self._timers:
                timer.cancel()
            self._inbox.live.discard(self)
            self._inbox.close()
        call.end(OK)
        return result

    @property
    def call(self) -> Call:
        """The call."""
        return self._call

    @property
    def streams(self) -> bool:
        """The call is one that may last."""
        return self._call.method.client_streaming or self._call.method.server_streaming

    def expel(self, error: RpcError) -> None:
        """End the call from outside with this error; the client is told."""
        self._stop(error)

    def _check(self) -> None:
        """The work may have swallowed that it was cancelled."""
        if self._reason is not None:
            raise asyncio.CancelledError

    def _failure(self, error: BaseException) -> BaseException:
        if self._reason is not None:
            if self._task is not None:
                self._task.uncancel()
            return self._reason
        if not isinstance(error, Exception):
            return error
        if self._inbox.gone:  # noticed by the reader of the body, and passed on as whatever it became
            return error if isinstance(error, Gone) else Gone()
        if isinstance(error, RpcError | HttpError):
            return error
        log.error("%s failed", self._call.method.full_name, exc_info=error)
        return Internal("internal error; its cause stands in the log of the server")

    def _stop(self, reason: BaseException) -> None:
        if self._reason is None:
            self._reason = reason
            if self._task is not None:
                self._task.cancel()

    def _expire(self) -> None:
        self._stop(DeadlineExceeded("no answer before the deadline", method=self._call.method.full_name))

    def _look(self) -> None:
        self._inbox.look(self._left)
        if not self._inbox.complete:  # a reader may have taken over what was looked at
            self._timers[-1] = self._loop.call_later(50 * PATIENCE, self._look)

    def _left(self) -> None:
        self._stop(Gone())


def outcome_of(error: BaseException) -> Outcome:
    """How a call ended that failed with this."""
    if isinstance(error, Gone):
        return Outcome(Code.CANCELLED, Cancelled("the client has gone"), remote=False)
    if isinstance(error, asyncio.CancelledError):
        return Outcome(Code.CANCELLED, error, remote=False)
    if isinstance(error, HttpError):
        return Outcome.of(error.error)
    return Outcome.of(error)
