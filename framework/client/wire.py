"""grpc.aio below an endpoint: one channel per instance, raw bytes in and out.

A call is handed to grpc only once the connection is READY. So a call that finds none is known not to have been sent,
and may go to another endpoint whatever its method is.

What grpc.aio gets wrong is put right here: INTERNAL for whatever ends a call while it sends, a request iterator's
exception shown as a cancellation, a dropped stream that keeps the server busy, a feeding task that outlives its call.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from typing import Any

import grpc
import grpc.aio

from framework.call import ABANDONED, OK, Call, Handler, Metadata, Method, Outcome, Reply, Stream
from framework.certificates import Material, TlsFiles
from framework.client.direct import Direct
from framework.client.upload import WRITE_FAILED, Feed, settled, trailer_of
from framework.codec import decoder, encoder
from framework.details import KEY as DETAILS
from framework.details import ORIGIN, from_metadata
from framework.errors import (
    BY_CODE,
    Cancelled,
    Code,
    DeadlineExceeded,
    Internal,
    MessageTooLarge,
    ResourceExhausted,
    RpcError,
    Unavailable,
    Unimplemented,
    Unknown,
)
from framework.interceptors.request_id import KEY as REQUEST_ID
from framework.loop import guard_loop
from framework.policy import KeepaliveSettings
from framework.tls import SYSTEM

_MADE_HERE = frozenset(
    {
        Code.UNAVAILABLE,
        Code.DEADLINE_EXCEEDED,
        Code.CANCELLED,
        Code.INTERNAL,
        Code.RESOURCE_EXHAUSTED,
        Code.UNKNOWN,
    }
)
"""Codes that grpc itself gives to calls; every other code was sent by the peer."""

_OURS = frozenset({ORIGIN, DETAILS, REQUEST_ID})
"""Trailers that are told in other ways."""

READY = grpc.ChannelConnectivity.READY
TRANSIENT_FAILURE = grpc.ChannelConnectivity.TRANSIENT_FAILURE


def _unchanged() -> None:
    pass


_KEEPALIVE = KeepaliveSettings()


class Pairs(grpc.aio.Metadata):
    """A call's metadata as grpc.aio wants it, without the copies into a dict and back that its own class makes."""

    def __init__(self, pairs: Metadata) -> None:
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def __iter__(self) -> Iterator[tuple[str, str | bytes]]:
        return iter(self._pairs)


class GrpcTransport:
    """The connection to one instance. Nothing is opened before `connect`.

    Args:
        address: `host:port`, or a target of grpc's own.
        connect_timeout: seconds an attempt to connect may take.
        max_message: bytes a message may have, in and out.
        keepalive: how a dead connection is found out.
        interceptors: a user's own grpc.aio client interceptors.
        tls: whom to trust, and what to show; None is plain text.
        server_name: the name that the certificate of the instance has to have; empty is the host of the address.
        trusted: the only certificate to trust, in PEM; empty is those of the authorities.
        direct: calls with one request and one reply go past grpc where they can; not with the machine's authorities.

    Attributes:
        direct: the way past grpc, if there may be one.
    """

    def __init__(
        self,
        address: str,
        *,
        connect_timeout: float,
        max_message: int,
        keepalive: KeepaliveSettings = _KEEPALIVE,
        interceptors: Iterable[Any] = (),
        tls: TlsFiles | None = None,
        server_name: str = "",
        trusted: bytes = b"",
        direct: bool = False,
    ) -> None:
        self.ready = False
        self.failed = False
        self.problem = ""
        self.changed: Callable[[], None] = _unchanged
        self._address = address
        self._interceptors = list(interceptors)
        self._options = (
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
            ("grpc.min_reconnect_backoff_ms", int(connect_timeout * 1000)),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.max_receive_message_length", max_message),
            ("grpc.max_send_message_length", max_message),
            ("grpc.keepalive_time_ms", int(keepalive.interval * 1000)),
            ("grpc.keepalive_timeout_ms", int(keepalive.timeout * 1000)),
            ("grpc.http2.ping_timeout_ms", int(keepalive.timeout * 1000)),  # a minute at least without it
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),  # as many as it takes
            ("grpc.lb_policy_name", "round_robin" if address.startswith("dns:") else "pick_first"),
            *((("grpc.ssl_target_name_override", server_name),) if tls is not None and server_name else ()),
        )
        self._tls = tls
        self._trusted = trusted
        self._material: Material | None = None
        self._channel: Any = None
        self._watcher: asyncio.Task[None] | None = None
        self.direct: Direct | None = None
        known = tls is None or tls.settings.ca != SYSTEM  # grpc has its own idea of what the machine trusts
        if direct and known and not (trusted or self._interceptors) and Direct.reaches(address):
            self.direct = Direct(
                address,
                connect_timeout=connect_timeout,
                max_message=max_message,
                keepalive=keepalive,
                secure=None if tls is None else tls.context,
                server_name=server_name,
            )

    def connect(self) -> None:
        if self._channel is None:
            guard_loop()
            self._channel = self._open()
            # A context of its own, or the call that it is opened for would be kept alive by it.
            self._watcher = asyncio.get_running_loop().create_task(
                self._watch(), name=f"watch {self._address}", context=contextvars.Context()
            )
        elif not self.failed:
            self._channel.get_state(try_to_connect=True)

    @property
    def outdated(self) -> bool:
        """It was opened with certificates that others have replaced since."""
        return self._tls is not None and self._channel is not None and self._material is not self._tls.current

    def _open(self) -> Any:
        if self._tls is None:
            return grpc.aio.insecure_channel(self._address, options=self._options, interceptors=self._interceptors)
        self._material = material = self._tls.current
        credentials = grpc.ssl_channel_credentials(
            self._trusted or material.ca or None, material.key or None, material.certificate or None
        )
        return grpc.aio.secure_channel(
            self._address, credentials, options=self._options, interceptors=self._interceptors
        )

    async def _ask_why(self) -> str:
        """Why there is no connection, which grpc tells only to a call that fails of it."""
        try:
            await self._channel.unary_unary("/")(b"", timeout=1.0)
        except grpc.aio.AioRpcError as error:
            return _reason(error.details() or "")
        return ""

    async def _watch(self) -> None:
        state = self._channel.get_state(try_to_connect=True)
        while True:
            ready, failed = state is READY, state is TRANSIENT_FAILURE
            if failed and not self.failed and self._tls is not None:
                self.problem = await self._ask_why()
            if (ready, failed) != (self.ready, self.failed):
                self.ready, self.failed = ready, failed
                if ready and self.direct is not None:
                    self.direct.connect()
                self.changed()
            await self._channel.wait_for_state_change(state)
            state = self._channel.get_state()

    def _lost(self) -> None:
        """The connection is gone, and the watcher has not been told yet."""
        if self.ready:
            self.ready = False
            self.changed()

    async def aclose(self) -> None:
        self.ready = False
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        if self.direct is not None:
            await self.direct.aclose()
        if self._channel is not None:
            await self._channel.close()

    def bind(self, method: Method[Any, Any]) -> Handler:
        encode = method.encode or encoder(method.request, method.full_name)
        decode = method.decode or decoder(method.reply, method.full_name)
        metadata_of = tuple if self._interceptors else Pairs  # interceptors may look into it, and change it
        kind = _streams if method.server_streaming else _upload if method.client_streaming else _unary
        make = kind(encode, decode, metadata_of)
        arity = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
        start: Callable[..., Any] | None = None
        time: Callable[[], float] = math.inf.__float__

        def handler(call: Call, request: bytes | None = None) -> Awaitable[Reply]:
            nonlocal start, time
            if start is None:
                if self._channel is None:
                    self.connect()
                time = asyncio.get_running_loop().time
                start = getattr(self._channel, arity)(method.path)
            if self._channel.get_state() is not READY:
                self._lost()
                raise Unavailable(
                    f"the connection to {self._address} is gone",
                    sent=False,
                    method=method.full_name,
                    attempts=call.attempt,
                )
            call.peer = self._address
            timeout = None if call.deadline is None else call.deadline - time()
            return make(call, start, timeout) if request is None else make(call, start, timeout, request)

        if self.direct is None or kind is not _unary:
            return handler
        return self._past_grpc(method, self.direct, encode, decode, handler)

    def _past_grpc(
        self,
        method: Method[Any, Any],
        direct: Direct,
        encode: Callable[[Any], bytes],
        decode: Callable[[bytes], Any],
        handler: Callable[..., Awaitable[Reply]],
    ) -> Handler:
        """A handler that takes the direct way while there is one, and otherwise another."""
        unary: Handler | None = None

        def chosen(call: Call) -> Awaitable[Reply]:
            nonlocal unary
            if direct.connection is not None:
                if unary is None:
                    time = asyncio.get_running_loop().time
                    unary = direct.bind(method, encode, decode, handler, _status, _given_up, time)
                return unary(call)
            if self.ready:
                direct.connect()
            return handler(call)

        return chosen


def _reason(details: str) -> str:
    """The last of what grpc says about a connection that failed; most of it says where, which others know better."""
    told = re.sub(r"^.*last error: \w+: \S+ ", "", details)
    if "Hostname Verification" in told:
        return "its certificate is for another name"
    if "CERTIFICATE_VERIFY_FAILED" in told:
        return "its certificate is signed by nobody that is trusted, or has expired"
    if "WRONG_VERSION_NUMBER" in told:
        return "it speaks no TLS"
    if told in ("Socket closed", "Connection reset by peer") or "ALERT" in told.upper():
        return f"it broke off, as it does with a client whose certificate it does not take ({told})"
    return told


def _unary(
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
            raise _local(call, Unimplemented, "the response has no message")
        try:
            return decode(raw)
        except Internal as error:
            raise _local(call, Internal, error.message) from None

    return unary


def _upload(
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
            raise _local(call, Unimplemented, "the response has no message")
        try:
            return decode(raw)
        except Internal as error:
            raise _local(call, Internal, error.message) from None

    return upload


async def _received(rpc: Any, feed: Feed | None) -> tuple[Metadata, Metadata]:
    return tuple(await rpc.initial_metadata()), await trailer_of(rpc, feed)


def _streams(
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
            call.header = tuple(await rpc.initial_metadata())
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
            error = _local(self._call, Internal, error.message)
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


def _local(call: Call, kind: type[RpcError], message: str) -> RpcError:
    error = kind(message, method=call.method.full_name, attempts=call.attempt)
    if isinstance(error, DeadlineExceeded):
        error.inherited = call.inherited
    return error


def _explain(
    call: Call, rpc: Any, error: BaseException, feed: Feed | None, watchdog: Watchdog | None = None
) -> BaseException:
    """What an exception out of grpc.aio means to the caller."""
    if feed is not None and feed.error is not None:
        call.fault = feed.error
        return feed.error
    if watchdog is not None and watchdog.fired:
        return _local(
            call,
            DeadlineExceeded,
            f"no message for {watchdog.idle:g} s; `idle` in the settings says how long a stream may be silent",
        )
    if isinstance(error, grpc.aio.AioRpcError):
        call.header = call.header or tuple(error.initial_metadata() or ())
        return _status(call, Code(error.code().value[0]), error.details() or "", tuple(error.trailing_metadata() or ()))
    rpc.cancel()
    return _given_up(call, error)


def _given_up(call: Call, error: BaseException) -> BaseException:
    """What an exception means to the caller that ended the wait for a reply."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        if task is None or not task.cancelling():  # not the caller: the channel was closed, or an interceptor gave up
            return _local(call, Cancelled, "the call was cancelled in this process")
    return error


_TOO_LARGE = re.compile(r"(CLIENT|SERVER)\b.*?(Sent|Received) message larger than max \((\d+) vs\. (\d+)\)")
"""What grpc says of a message that it does not let through."""


def _exhausted(call: Call, message: str, remote: bool) -> tuple[type[RpcError], str, bool]:
    """A message that is too large is no lack of anything; told so that it names the limit."""
    if message.startswith(MessageTooLarge.PREFIX):
        return MessageTooLarge, message, remote
    if (match := _TOO_LARGE.search(message)) is None:
        return ResourceExhausted, message, remote
    here = match[1] == "CLIENT"
    what = "request" if here == (match[2] == "Sent") else "reply"
    who = f"this client {'sends' if what == 'request' else 'takes'}" if here else f"{call.peer} takes"
    text = (
        f"{MessageTooLarge.PREFIX}the {what} has {match[3]} bytes, {who} up to {match[4]}"
        f" (`max_message` in {'the' if here else 'its'} settings)"
    )
    return MessageTooLarge, text, not here


def _status(call: Call, code: Code, message: str, trailer: Metadata) -> RpcError:
    ours = any(key == ORIGIN for key, _ in trailer)
    remote = ours or code not in _MADE_HERE or bool(trailer)
    late = call.deadline is not None and asyncio.get_running_loop().time() >= call.deadline - 0.001
    if not ours and late and code in (Code.INTERNAL, Code.CANCELLED, Code.UNKNOWN, Code.DEADLINE_EXCEEDED):
        code, remote = Code.DEADLINE_EXCEEDED, False
    if code is Code.DEADLINE_EXCEEDED and not remote:
        message = f"no answer from {call.peer} before the deadline"
    kind = BY_CODE.get(code, Unknown)
    if code is Code.RESOURCE_EXHAUSTED:
        kind, message, remote = _exhausted(call, message, remote)
    result = kind(
        message,
        details=from_metadata(trailer),
        metadata=tuple(pair for pair in trailer if pair[0] not in _OURS),
        remote=remote,
        method=call.method.full_name,
        attempts=call.attempt,
        request_id=call.request_id or next((str(value) for key, value in trailer if key == REQUEST_ID), ""),
    )
    if isinstance(result, DeadlineExceeded):
        result.inherited = call.inherited and not remote
    call.trailer = result.metadata
    return result
