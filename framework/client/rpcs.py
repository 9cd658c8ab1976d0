"""The RPCs of grpc.aio under one face: one reply, an upload, or a stream of replies.

What grpc.aio gets wrong is put right here: INTERNAL for whatever ends a call while it sends, a request iterator's
exception shown as a cancellation, a dropped stream that keeps the server busy, a feeding task that outlives its call.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc
import grpc.aio

from framework.call import ABANDONED, OK, Call, Metadata, Outcome, Reply, Stream
from framework.client.ending import given_up, local, status
from framework.client.heads import clean
from framework.client.upload import WRITE_FAILED, Feed, settled, trailer_of
from framework.errors import Code, DeadlineExceeded, Internal, Unimplemented


def unary(
    encode: Callable[[Any], bytes], decode: Callable[[bytes], Any], metadata_of: Callable[[Metadata], Any]
) -> Callable[..., Awaitable[Reply]]:
    async def unary(call: Call, start: Callable[..., Any], timeout: float | None, request: bytes | None = None) -> Any:
        metadata = metadata_of(call.metadata) if call.metadata else None
        rpc = start(encode(call.request) if request is None else request, timeout=timeout, metadata=metadata)
        call.give_up = rpc.cancel
        try:
            raw = await rpc
        except BaseException as error:
            raise _explain(call, rpc, error, None) from None
        call.received = partial(_received, rpc, None)
        if raw is None:  # grpc.aio takes OK without a message for an answer
            raise local(call, Unimplemented, "the response has no message")
        try:
            return decode(raw)
        except Internal as error:
            raise local(call, Internal, error.message) from None

    return unary


def upload(
    encode: Callable[[Any], bytes], decode: Callable[[bytes], Any], metadata_of: Callable[[Metadata], Any]
) -> Callable[..., Awaitable[Reply]]:
    async def upload(call: Call, start: Callable[..., Any], timeout: float | None) -> Any:
        rpc = start(timeout=timeout, metadata=metadata_of(call.metadata) if call.metadata else None)
        feed = Feed(rpc, call.request, encode)
        try:
            raw = await rpc
        except BaseException as error:
            raise _explain(call, rpc, await settled(rpc, error, feed), feed) from None
        finally:
            feed.stop()
        call.received = partial(_received, rpc, feed)
        if raw is None:  # grpc.aio takes OK without a message for an answer
            raise local(call, Unimplemented, "the response has no message")
        try:
            return decode(raw)
        except Internal as error:
            raise local(call, Internal, error.message) from None

    return upload


async def _received(rpc: Any, feed: Feed | None) -> tuple[Metadata, Metadata]:
    return clean(await rpc.initial_metadata()), await trailer_of(rpc, feed)


def streams(
    encode: Callable[[Any], bytes], decode: Callable[[bytes], Any], metadata_of: Callable[[Metadata], Any]
) -> Callable[..., Awaitable[Reply]]:
    async def stream(call: Call, start: Callable[..., Any], timeout: float | None) -> Stream[Any]:
        feed = None
        if call.method.client_streaming:
            rpc = start(timeout=timeout, metadata=metadata_of(call.metadata) if call.metadata else None)
            feed = Feed(rpc, call.request, encode)
        else:
            rpc = start(
                encode(call.request), timeout=timeout, metadata=metadata_of(call.metadata) if call.metadata else None
            )
        watchdog = None if call.idle is None else Watchdog(rpc, call.idle)
        replies = Replies(call, rpc, decode, feed, watchdog)
        call.on_end(lambda outcome: rpc.cancel())  # closed before the headers are there; harmless afterwards
        try:
            if watchdog is not None:
                watchdog.wait()
            call.header = clean(await rpc.initial_metadata())
            failed = rpc.done() and await rpc.code() is not grpc.StatusCode.OK and await rpc.details() != WRITE_FAILED
            if failed and not call.header:  # empty ones cannot be told from none
                await rpc.read()  # raises what the status says
        except BaseException as error:
            true = await settled(rpc, error, feed)
            try:
                if not isinstance(true, StopAsyncIteration):
                    raise replies.fail(true) from None
            finally:
                del true  # it knows this frame, and this frame would know it
        return replies

    return stream


class Replies(Stream[Any]):
    """The replies of one RPC."""

    __slots__ = ("_call", "_decode", "_feed", "_loop", "_next", "_rpc", "_watchdog")

    def __init__(
        self, call: Call, rpc: Any, decode: Callable[[bytes], Any], feed: Feed | None, watchdog: Watchdog | None
    ) -> None:
        super().__init__()
        self._call = call
        self._rpc = rpc
        self._decode = decode
        self._feed = feed
        self._watchdog = watchdog
        self._loop = asyncio.get_running_loop()
        self._next: Callable[[], Awaitable[bytes]] = rpc.__aiter__().__anext__

    async def __anext__(self) -> Any:
        if self.outcome is not None:
            raise StopAsyncIteration
        watchdog = self._watchdog
        try:
            if watchdog is None:
                return self._decode(await self._next())
            watchdog.wait()
            raw = await self._next()
            watchdog.since = None
            return self._decode(raw)
        except StopAsyncIteration:
            pass
        except BaseException as error:
            true = await settled(self._rpc, error, self._feed)
            try:
                if not isinstance(true, StopAsyncIteration):
                    raise self.fail(true) from None
            finally:
                del true  # it knows this frame, and this frame would know it
        if self.outcome is None:
            self._call.trailer = await trailer_of(self._rpc, self._feed)
            self._finish(OK)
        raise StopAsyncIteration

    def fail(self, error: BaseException) -> BaseException:
        """End the stream with what this exception means, which is returned."""
        if isinstance(error, Internal) and not error.method:
            error = local(self._call, Internal, error.message)
        else:
            error = _explain(self._call, self._rpc, error, self._feed, self._watchdog)
        self._rpc.cancel()
        self._finish(ABANDONED if isinstance(error, asyncio.CancelledError) else Outcome.of(error))
        return error

    def cancel(self, reason: BaseException | None = None) -> None:
        if self.outcome is None:
            if not self._rpc.cancel():
                _drain(self._loop, self._next)
            self._finish(ABANDONED if reason is None else Outcome.of(reason))

    def _finish(self, outcome: Outcome) -> None:
        if self._feed is not None:
            self._feed.stop()
        if self._watchdog is not None:
            self._watchdog.stop()
        self.end(outcome)


class Watchdog:
    """Cancels an RPC whose reader has waited for one message for longer than `idle` seconds.

    One timer a stream: a message costs two assignments. It knows the RPC and not the stream, which may be dropped.
    """

    __slots__ = ("_handle", "_loop", "_rpc", "fired", "idle", "since")

    def __init__(self, rpc: Any, idle: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._rpc = rpc
        self.idle = idle
        self.fired = False
        self.since: float | None = None
        self._handle = self._loop.call_later(idle, self._check)

    def wait(self) -> None:
        """The reader waits from now on."""
        self.since = self._loop.time()

    def _check(self) -> None:
        left = self.idle if self.since is None else self.since + self.idle - self._loop.time()
        if left <= 0:
            self.fired = True
            self._rpc.cancel()
        else:
            self._handle = self._loop.call_later(left, self._check)

    def stop(self) -> None:
        """The stream has ended."""
        self._handle.cancel()


def _drain(loop: asyncio.AbstractEventLoop, read: Callable[[], Awaitable[bytes]]) -> None:
    """Read a stream out that cannot be cancelled, since a failed write has ended it; grpc keeps it until then."""

    async def drain() -> None:
        with contextlib.suppress(StopAsyncIteration, grpc.aio.AioRpcError):
            while True:
                await read()

    if loop.is_running():  # a stream may be dropped long after its loop
        task = loop.create_task(drain())
        _draining.add(task)
        task.add_done_callback(_draining.discard)


_draining: set[asyncio.Task[None]] = set()


def _explain(
    call: Call, rpc: Any, error: BaseException, feed: Feed | None, watchdog: Watchdog | None = None
) -> BaseException:
    """What an exception out of grpc.aio means to the caller."""
    if feed is not None and feed.error is not None:
        call.fault = feed.error
        return feed.error
    if watchdog is not None and watchdog.fired:
        return local(
            call,
            DeadlineExceeded,
            f"no message for {watchdog.idle:g} s; `idle` in the settings says how long a stream may be silent",
        )
    if isinstance(error, grpc.aio.AioRpcError):
        call.header = call.header or clean(error.initial_metadata() or ())
        trailer = clean(error.trailing_metadata() or ())
        return status(call, Code(error.code().value[0]), error.details() or "", trailer)
    rpc.cancel()
    return given_up(call, error)
