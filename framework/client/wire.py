"""grpc.aio below an endpoint: one channel per instance, raw bytes in and out.

A call is handed to grpc only once the connection is READY. So a call that finds none is known not to have been sent,
and may go to another endpoint whatever its method is.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

import grpc
import grpc.aio

from framework.call import Call, Handler, Metadata, Method, Reply
from framework.certificates import Material, TlsFiles
from framework.client.direct import Direct
from framework.client.rpcs import streams, unary, upload
from framework.codec import decoder, encoder
from framework.errors import Unavailable
from framework.loop import guard_loop
from framework.policy import KeepaliveSettings
from framework.tls import SYSTEM

READY = grpc.ChannelConnectivity.READY
TRANSIENT_FAILURE = grpc.ChannelConnectivity.TRANSIENT_FAILURE


LONGEST = 99_999_999.0
"""Seconds that a call may take at most: eight digits, as the protocol has it. grpc takes much more for none."""


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
        kind = streams if method.server_streaming else upload if method.client_streaming else unary
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
            if timeout is not None and timeout > LONGEST:
                timeout = LONGEST
            return make(call, start, timeout) if request is None else make(call, start, timeout, request)

        if self.direct is None or kind is not unary:
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
        past: Handler | None = None

        def chosen(call: Call) -> Awaitable[Reply]:
            nonlocal past
            if direct.connection is not None:
                if past is None:
                    time = asyncio.get_running_loop().time
                    past = direct.bind(method, encode, decode, handler, time)
                return past(call)
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
