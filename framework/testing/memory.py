"""The wire of the network in memory: a client's call becomes a task that serves it.

As on a real wire, messages are encoded and decoded, the two sides have contexts of their own, the deadline is enforced,
and each side ends at once when the other gives up.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from framework.call import ABANDONED, OK, Call, Handler, Metadata, Method, Outcome, Reply, Stream
from framework.codec import decoder, encoder
from framework.details import KEY as DETAILS
from framework.details import from_metadata
from framework.errors import Cancelled, DeadlineExceeded, RpcError, Unavailable, Unimplemented, error_for
from framework.identity import Peer
from framework.interceptors.request_id import KEY as REQUEST_ID
from framework.server.context import ServerCall, incoming_call
from framework.server.pipeline import Bound, Broken, internal, status_of
from framework.testing.pipe import Feed, Pipe, Requests, wake

if TYPE_CHECKING:
    from framework.testing.network import Hosted

PEER = "memory:client"


class MemoryWire:
    """The server's side of one call."""

    __slots__ = ("header_sent",)

    def __init__(self, header_sent: asyncio.Future[Metadata] | None) -> None:
        self.header_sent = header_sent

    async def send_header(self, metadata: Metadata) -> None:
        self.send_header_now(metadata)

    def send_header_now(self, metadata: Metadata) -> None:
        if self.header_sent is not None and not self.header_sent.done():
            self.header_sent.set_result(metadata)

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return {}

    def peer_identity(self) -> Peer | None:
        return None

    def set_compression(self, compression: Any) -> None:
        pass

    def disable_next_message_compression(self) -> None:
        pass


class MemoryTransport:
    """The way to a service hosted in this process."""

    problem = ""
    outdated = False

    def __init__(self, hosted: Hosted) -> None:
        self._hosted = hosted
        self._exchanges: set[Exchange] = set()
        self.changed: Callable[[], None] = lambda: None
        hosted.transports.add(self)

    @property
    def ready(self) -> bool:
        return self._hosted.reachable and self._hosted.started

    @property
    def failed(self) -> bool:
        return not self._hosted.reachable

    def connect(self) -> None:
        pass

    async def aclose(self) -> None:
        self._hosted.transports.discard(self)
        for exchange in tuple(self._exchanges):
            exchange.fail(Cancelled("the call was cancelled in this process", method=exchange.method))

    def break_off(self) -> None:
        """The connection is lost, and with it the calls on it."""
        for exchange in tuple(self._exchanges):
            exchange.fail(Unavailable(f"the connection to {self._hosted.name} is lost", method=exchange.method))

    def bind(self, method: Method[Any, Any]) -> Handler:
        encode = method.encode or encoder(method.request, method.full_name)
        decode = method.decode or decoder(method.reply, method.full_name)

        def open_call(call: Call) -> tuple[Bound, ServerCall]:
            hosted = self._hosted
            if hosted.error is not None:
                raise hosted.error
            if not hosted.reachable:
                raise Unavailable(
                    f"the connection to {hosted.name} is gone",
                    sent=False,
                    method=method.full_name,
                    attempts=call.attempt,
                )
            bound = hosted.pipeline.find(method.path)
            if bound is None:
                raise Unimplemented("Method not found!", remote=True, method=method.full_name, attempts=call.attempt)
            call.peer = hosted.name
            return bound, incoming_call(bound.method, call.metadata, deadline=call.deadline, peer=PEER)

        async def unary(call: Call) -> Reply:
            bound, serving = open_call(call)
            serving.wire = MemoryWire(None)
            feed, raw = _request(call, serving, bound, encode)
            exchange = Exchange(
                self._exchanges,
                self._hosted.context,
                call,
                serving,
                self._hosted.pipeline.answer(bound, serving, raw),
                feed,
            )
            call.give_up = exchange.give_up
            try:
                reply = await exchange.finished()
            finally:
                exchange.close()
            call.header, call.trailer = serving.header, serving.trailer
            return decode(reply)

        async def stream(call: Call) -> Reply:
            bound, serving = open_call(call)
            header: asyncio.Future[Metadata] = asyncio.get_running_loop().create_future()
            wire = serving.wire = MemoryWire(header)
            feed, raw = _request(call, serving, bound, encode)
            pipe = Pipe()

            async def write(reply: bytes) -> None:
                serving.header_sent = True
                wire.send_header_now(serving.header)
                await pipe.write(reply)

            exchange = Exchange(
                self._exchanges,
                self._hosted.context,
                call,
                serving,
                self._hosted.pipeline.stream(bound, serving, raw, write),
                feed,
                pipe,
                call.idle,
            )
            replies = Replies(call, exchange, pipe, decode)
            call.on_end(lambda outcome: exchange.close())  # closed before the headers are there
            exchange.task.add_done_callback(lambda task: wire.send_header_now(serving.header))
            try:
                await exchange.waiting(header)
                if exchange.task.done() and pipe.empty and not serving.header_sent:
                    exchange.raise_failure()
            except BaseException as error:
                raise replies.fail(error) from None
            call.header = serving.header
            return replies

        return stream if method.server_streaming else unary


def _request(
    call: Call, serving: ServerCall, bound: Bound, encode: Callable[[Any], bytes]
) -> tuple[Feed | None, bytes | None]:
    if not call.method.client_streaming:
        return None, encode(call.request)
    pipe = Pipe()
    serving.request = Requests(serving, pipe, bound.decode)
    return Feed(call.request, pipe, encode), None


class Exchange:
    """One call between a client and the task that serves it: whoever ends first, the other is told."""

    __slots__ = (
        "_call",
        "_cancelled",
        "_failure",
        "_feed",
        "_idle",
        "_loop",
        "_pipe",
        "_serving",
        "_siblings",
        "_timer",
        "_waiter",
        "method",
        "task",
    )

    def __init__(
        self,
        siblings: set[Exchange],
        context: contextvars.Context,
        call: Call,
        serving: ServerCall,
        work: Any,
        feed: Feed | None,
        pipe: Pipe | None = None,
        idle: float | None = None,
    ) -> None:
        loop = self._loop = asyncio.get_running_loop()
        self.method = call.method.full_name
        self._siblings = siblings
        siblings.add(self)
        self._call = call
        self._serving = serving
        self._feed = feed
        self._pipe = pipe
        self._idle = idle
        self._failure: RpcError | None = None
        self._cancelled = False
        self._waiter: asyncio.Future[None] | None = None
        # The server's context, or its context variables and the client's would be the same.
        self.task: asyncio.Task[Any] = loop.create_task(work, context=context.copy())
        self.task.add_done_callback(self._served)
        self._timer = None if call.deadline is None else loop.call_at(call.deadline, self._expire)
        if feed is not None:
            feed.failed = self._interrupt

    def _served(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled():
            task.exception()
        if self._pipe is not None:
            self._pipe.end()
        if self._feed is not None:
            self._feed.stop()
        self._interrupt()

    def _interrupt(self) -> None:
        wake(self._waiter)

    def _expire(self) -> None:
        call = self._call
        error = DeadlineExceeded(
            f"no answer from {call.peer} before the deadline", method=call.method.full_name, attempts=call.attempt
        )
        error.inherited = call.inherited
        self.fail(error)

    def fail(self, error: RpcError) -> None:
        """End the call on both sides, the client's with this error."""
        error.attempts = self._call.attempt
        self._failure = self._failure or error
        self._cancel()
        if self._pipe is not None:
            self._pipe.break_off()
        self._interrupt()

    def give_up(self) -> None:
        """End the call: nobody wants its reply any more."""
        self.fail(Cancelled("the call was cancelled in this process", method=self.method))

    async def finished(self) -> bytes:
        """The reply. Raises what the call failed with."""
        while not self.task.done():
            await self._wait()
            if self._failure is not None or (self._feed is not None and self._feed.error is not None):
                break
        self.raise_failure()
        reply: bytes = self.task.result()
        return reply

    async def waiting(self, future: Awaitable[Any]) -> None:
        """Wait for a future of the server's, or for the call to end."""
        future = asyncio.ensure_future(future)
        future.add_done_callback(lambda done: self._interrupt())
        with self._watched():
            while not future.done() and self._failure is None and (self._feed is None or self._feed.error is None):
                await self._wait()
        self.raise_failure(only_local=True)

    async def read(self, pipe: Pipe) -> bytes | None:
        """The next reply, None at the end. Raises what the call failed with."""
        try:
            with self._watched():
                raw = await pipe.read()
        except Broken:
            raw = None
        if raw is None:
            self.raise_failure()
        return raw

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        timer = None if self._idle is None else self._loop.call_later(self._idle, self._silent)
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()

    def _silent(self) -> None:
        self.fail(
            DeadlineExceeded(
                f"no message for {self._idle:g} s; `idle` in the settings says how long a stream may be silent",
                method=self._call.method.full_name,
                attempts=self._call.attempt,
            )
        )

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def raise_failure(self, *, only_local: bool = False) -> None:
        """Raise what the call has failed with by now, as it would arrive over a network."""
        if self._feed is not None and self._feed.error is not None:
            self._call.fault = self._feed.error
            raise self._feed.error
        if self._failure is not None:
            raise self._failure
        if only_local or not self.task.done():
            return
        if self.task.cancelled():
            raise Cancelled("the call was cancelled in this process", method=self._call.method.full_name)
        error = self.task.exception()
        if isinstance(error, RpcError):
            raise _received(error, self._call, self._serving)
        if error is not None:
            raise error

    def close(self) -> None:
        """The client's side is done: stop the timer, the feed, and the handler if it still works."""
        self._siblings.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._feed is not None:
            self._feed.stop()
        if self._pipe is not None:
            self._pipe.break_off()
        self._cancel()

    def _cancel(self) -> None:
        """Once: a handler that cleans up is not to be cancelled again."""
        if not self._cancelled and not self.task.done():
            self._cancelled = True
            self.task.cancel()


def _received(error: RpcError, call: Call, serving: ServerCall) -> RpcError:
    """The error as it arrives over a network."""
    try:
        message, trailer = status_of(serving, error)
    except Exception as defect:
        error = internal(serving, defect)
        message, trailer = error.message, ()
    metadata = tuple(pair for pair in trailer if pair[0] not in (DETAILS, REQUEST_ID))
    call.trailer = metadata
    return error_for(
        error.code,
        message,
        details=from_metadata(trailer),
        metadata=metadata,
        remote=True,
        method=call.method.full_name,
        attempts=call.attempt,
        request_id=serving.request_id,
    )


class Replies(Stream[Any]):
    """The replies that a client reads."""

    __slots__ = ("_call", "_decode", "_exchange", "_pipe")

    def __init__(self, call: Call, exchange: Exchange, pipe: Pipe, decode: Callable[[bytes], Any]) -> None:
        super().__init__()
        self._call = call
        self._exchange = exchange
        self._pipe = pipe
        self._decode = decode

    async def __anext__(self) -> Any:
        if self.outcome is not None:
            raise StopAsyncIteration
        try:
            raw = await self._exchange.read(self._pipe)
            if raw is not None:
                return self._decode(raw)
        except BaseException as error:
            raise self.fail(error) from None
        self._call.trailer = self._exchange._serving.trailer
        self._exchange.close()
        self.end(OK)
        raise StopAsyncIteration

    def fail(self, error: BaseException) -> BaseException:
        """End the stream with this exception, which is returned."""
        self._exchange.close()
        self.end(ABANDONED if isinstance(error, asyncio.CancelledError) else Outcome.of(error))
        return error

    def cancel(self, reason: BaseException | None = None) -> None:
        if self.outcome is None:
            self._exchange.close()
            self.end(ABANDONED if reason is None else Outcome.of(reason))
