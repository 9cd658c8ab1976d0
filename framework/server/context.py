"""What a handler is given beside the request.

`Context` has the names of `grpc.aio.ServicerContext`, so that servicers written for grpc.aio move unchanged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NoReturn, Protocol

from framework.call import Call, Criticality, Metadata, Method, Outcome
from framework.errors import Code, RpcError, error_for
from framework.identity import Identity, Peer
from framework.interceptors.criticality import BY_NAME
from framework.interceptors.criticality import KEY as CRITICALITY
from framework.interceptors.identity import KEY as IDENTITY
from framework.interceptors.request_id import KEY as REQUEST_ID
from framework.interceptors.request_id import LONGEST, new_request_id
from framework.metadata import pairs

ATTEMPTS = ("x-previous-rpc-attempts", "grpc-previous-rpc-attempts")
"""Metadata of a call that was made before: how often. The first is our clients', which cannot send that of gRFC A6."""

_READ = frozenset({REQUEST_ID, CRITICALITY, IDENTITY, *ATTEMPTS})

PUSHBACK = "grpc-retry-pushback-ms"
"""Trailer that says when a failed call may be made again. Source: gRFC A6."""

UNSET = (Code.OK, "")
"""The status of a call whose handler has set none."""

END_OF_STREAM: Any = None
"""What `Context.read` returns at the end of the requests; the wire puts the engine's own mark here."""


class Wire(Protocol):
    """What a serving wire offers a call: grpc.aio, or memory in tests."""

    async def send_header(self, metadata: Metadata) -> None:
        """Send response headers now. Raises CancelledError when the call is gone."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """What the transport's security knows of the peer."""

    def peer_identity(self) -> Peer | None:
        """Who the peer is by its certificate; None when it has shown none."""

    def set_compression(self, compression: Any) -> None:
        """Compress replies; before headers are sent."""

    def disable_next_message_compression(self) -> None:
        """Send the next message as it is."""


class ServerCall(Call):
    """A call being served. `wire` is set by whoever serves it.

    Attributes:
        task: the task that serves it.
        expelled: what the caller is told when the server ends the call before its handler does.
        aborted: what `Context.abort` raised; it ends the call even if the handler catches it.
        header_sent: response headers are on their way.
        status: code and message set by `Context.set_code` and `set_details`.
        write: how a handler that uses `Context.write` sends, None for others.
        told: what a service tells of whom it calls for, to be checked, which handlers do not see; None for nothing.
        pushback: milliseconds after which the caller of a call that failed may try again, below 0 not at all, or None.
    """

    __slots__ = (
        "_peer",
        "_request_id",
        "aborted",
        "expelled",
        "header_sent",
        "pushback",
        "status",
        "task",
        "told",
        "write",
    )

    caller: str | None = None  # of the class: nothing that is served here is passed on
    wire: Any
    _peer: str | Callable[[], str]
    _request_id: str

    def __init__(
        self,
        method: Method[Any, Any],
        metadata: Metadata,
        deadline: float | None,
        peer: str | Callable[[], str],
        wire: Any,
    ) -> None:
        # All that Call has is set here, and not by its __init__: every call that is served pays for this.
        self.outcome = None
        self._callbacks = None
        self.method = method
        self.request = None
        self.metadata = metadata
        self.deadline = deadline
        self.timeout = None
        self.idle = None
        self.inherited = False
        self._request_id = ""
        self._peer = peer
        self.header = ()
        self.trailer = ()
        self.received = None
        self.attempt = 1
        self.give_up = None
        self.fault = None
        self.criticality = None
        self.began = 0.0
        self.identity = None
        self.trace = None
        self.watch = None
        self.wire = wire
        self.task: asyncio.Task[Any] | None = None
        self.expelled: RpcError | None = None
        self.aborted: RpcError | None = None
        self.header_sent = False
        self.status: tuple[Code, str] = UNSET
        self.write: Callable[[Any], Awaitable[None]] | None = None
        self.pushback: int | None = None
        self.told: str | None = None

    @property
    def peer(self) -> str:
        """The address of the caller; asked for when somebody wants to know it."""
        peer = self._peer
        if not isinstance(peer, str):
            peer = self._peer = peer()
        return peer

    @peer.setter
    def peer(self, value: str | Callable[[], str]) -> None:
        self._peer = value

    @property
    def request_id(self) -> str:
        """The same along the whole chain of calls; made when it is first asked for, where the chain begins."""
        if not self._request_id:
            self._request_id = new_request_id()
        return self._request_id

    @request_id.setter
    def request_id(self, value: str) -> None:
        self._request_id = value

    def expel(self, error: RpcError) -> None:
        """End the call from outside with this error; its handler is cancelled."""
        if self.outcome is None and self.expelled is None:
            self.expelled = error
            if self.task is not None:
                self.task.cancel()

    def remaining(self) -> float | None:
        """Seconds until the deadline, at least 0; None without one."""
        if self.deadline is None:
            return None
        return max(0.0, self.deadline - asyncio.get_running_loop().time())


def incoming_call(
    method: Method[Any, Any],
    metadata: Metadata,
    *,
    deadline: float | None,
    peer: str | Callable[[], str],
    wire: Any = None,
) -> ServerCall:
    """The call that a wire has received: what its metadata says is read here, in one go.

    Args:
        peer: the address of the caller, or what tells it.
    """
    call = ServerCall(method, metadata, deadline, peer, wire)
    for key, value in metadata:
        if key not in _READ:
            continue
        if key == REQUEST_ID:
            if len(value) <= LONGEST:
                call.request_id = call._request_id or str(value)
        elif key == CRITICALITY:
            call.criticality = BY_NAME.get(value)  # type: ignore[arg-type]  # this key has text
        elif key == IDENTITY:
            call.told = "" if call.told is not None else str(value)  # told twice, it holds neither way
        else:
            call.attempt = 1 + int(value) if len(value) < 4 and value.isdigit() else 1
    if call.told is not None:
        call.metadata = tuple(pair for pair in metadata if pair[0] != IDENTITY)
    return call


class Context:
    """The context of one call that a servicer serves.

    Attributes:
        deadline: the moment on the loop's clock when the caller stops waiting, or None.
        request_id: the same along the whole chain of calls.
        criticality: how much the call matters; CRITICAL when its caller does not say.
        identity: whom the request is made for, as was verified; None for a caller who is not known.
    """

    __slots__ = ("_call",)

    def __init__(self, call: ServerCall) -> None:
        self._call = call

    @property
    def call(self) -> Call:
        """The call itself."""
        return self._call

    @property
    def deadline(self) -> float | None:
        return self._call.deadline

    @property
    def request_id(self) -> str:
        return self._call.request_id

    @property
    def criticality(self) -> Criticality:
        said = self._call.criticality
        return Criticality.CRITICAL if said is None else said

    @property
    def identity(self) -> Identity | None:
        return self._call.identity

    @property
    def peer_identity(self) -> Peer | None:
        """Who has called, by the certificate of its connection; None without one."""
        found: Peer | None = self._call.wire.peer_identity()
        return found

    def invocation_metadata(self) -> Metadata:
        """What the caller sent, as pairs of key and value."""
        return self._call.metadata

    def peer(self) -> str:
        """The address of the caller, `ipv4:127.0.0.1:50123`."""
        return self._call.peer

    def time_remaining(self) -> float | None:
        """Seconds until the deadline, at least 0; None without one."""
        return self._call.remaining()

    async def abort(self, code: Any, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        """End the call with a status. `code` is a `framework.Code` or a `grpc.StatusCode`.

        Raises:
            RpcError: always; raising one of its subclasses is the shorter way.
        """
        code = as_code(code)
        if code is Code.OK:
            raise ValueError("a call cannot be aborted with OK")
        error = error_for(code, details, metadata=tuple(trailing_metadata) or self._call.trailer)
        self._call.aborted = error
        raise error

    async def abort_with_status(self, status: Any) -> NoReturn:
        """`abort` with a `grpc.Status`."""
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    def set_code(self, code: Any) -> None:
        """Set the status to end with when the handler returns."""
        self._call.status = (as_code(code), self._call.status[1])

    def code(self) -> Code:
        """The status code set so far."""
        return self._call.status[0]

    def set_details(self, details: str) -> None:
        """Set the status message to end with when the handler returns."""
        self._call.status = (self._call.status[0], details)

    def details(self) -> str:
        """The status message set so far."""
        return self._call.status[1]

    async def send_initial_metadata(self, metadata: Metadata) -> None:
        """Send response headers now, once, before the first reply.

        A handler that has read all of a streamed request finds them sent already: the server sends them when the
        upload ends, to tell a complete one from one that broke off.
        """
        if self._call.header_sent:
            raise RuntimeError("response headers are sent already; set them before the end of the requests is read")
        self._call.header = pairs(metadata)
        self._call.header_sent = True
        await self._call.wire.send_header(self._call.header)

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        """Set what is sent with the status, on success and on failure."""
        self._call.trailer = pairs(metadata)

    def trailing_metadata(self) -> Metadata:
        """The trailing metadata set so far."""
        return self._call.trailer

    async def read(self) -> Any:
        """The next request of a stream, or `grpc.aio.EOF`. Iterating over the requests is the shorter way."""
        try:
            return await anext(self._call.request)
        except StopAsyncIteration:
            return END_OF_STREAM

    async def write(self, message: Any) -> None:
        """Send one reply of a stream from a handler that is a coroutine. An async generator is the shorter way."""
        if self._call.write is None:
            raise RuntimeError(f"{self._call.method.full_name} yields its replies, so it cannot write() them too")
        await self._call.write(message)

    def cancelled(self) -> bool:
        """True when the caller has gone or the deadline has passed."""
        outcome = self._call.outcome
        return outcome is not None and outcome.code in (Code.CANCELLED, Code.DEADLINE_EXCEEDED)

    def done(self) -> bool:
        """True when the call has ended."""
        return self._call.outcome is not None

    def add_done_callback(self, callback: Callable[[Context], None]) -> None:
        """Call `callback(context)` when the call has ended."""

        def ended(outcome: Outcome) -> None:
            callback(self)

        self._call.on_end(ended)

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """What TLS knows of the peer; empty without it."""
        found: Mapping[str, Iterable[bytes]] = self._call.wire.auth_context()
        return found

    def peer_identity_key(self) -> str | None:
        """The property of `auth_context` that names the peer, or None."""
        found = self._call.wire.auth_context()
        return next((key for key in ("x509_subject_alternative_name", "x509_common_name") if key in found), None)

    def peer_identities(self) -> Iterable[bytes] | None:
        """The values under `peer_identity_key`, or None."""
        key = self.peer_identity_key()
        return None if key is None else self._call.wire.auth_context()[key]

    def set_compression(self, compression: Any) -> None:
        """Compress the replies with a `grpc.Compression`; before the first is sent."""
        self._call.wire.set_compression(compression)

    def disable_next_message_compression(self) -> None:
        """Send the next reply as it is."""
        self._call.wire.disable_next_message_compression()

    def __repr__(self) -> str:
        return f"<Context of {self._call!r}>"


def as_code(code: Any) -> Code:
    """A `Code` from a `Code`, a number or a `grpc.StatusCode`."""
    if isinstance(code, int):
        return Code(code)
    return Code[code.name]
