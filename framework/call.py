"""An RPC is one async function: the types that client, server, gateway and events share.

    Handler     = (Call) -> awaitable message or Stream
    Interceptor = (Method, Handler) -> Handler          bound once per method, never per call

All four arities have this one shape: a streamed request is an async iterable in `Call.request`, a streamed reply is a
`Stream` that the handler returns. Whoever creates a Call or a Stream ends it, exactly once; everybody else only asks to
be told with `on_end`. Nothing here does I/O, and nothing is held across a `yield`.

Reading order: Method, Outcome, Ending, Call, Stream, stack.
"""

from __future__ import annotations

import enum
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, Self, TypeAlias, TypeVar

from framework.errors import Code, FrameworkError, RpcError
from framework.identity import Identity

log = logging.getLogger("framework")

Req = TypeVar("Req")
Res = TypeVar("Res")
Item = TypeVar("Item", covariant=True)

Metadata: TypeAlias = tuple[tuple[str, str | bytes], ...]
"""Ordered pairs of lower-case key and value; a key that ends in `-bin` has bytes."""


class Idempotency(enum.IntEnum):
    """`idempotency_level` of google/protobuf/descriptor.proto: what may be sent twice."""

    UNKNOWN = 0
    NO_SIDE_EFFECTS = 1
    IDEMPOTENT = 2


class Criticality(enum.IntEnum):
    """Whose calls go first when not all can be served; the lower the number, the more it matters.

    A call that says nothing is CRITICAL. Source: "Site Reliability Engineering", chapter 21, Handling Overload.
    """

    CRITICAL_PLUS = 0
    """Its failure is seen by many users at once."""

    CRITICAL = 1
    """Its failure is seen by a user."""

    SHEDDABLE_PLUS = 2
    """It may fail for minutes and be retried: batches."""

    SHEDDABLE = 3
    """It may fail often, and for hours."""


@dataclass(frozen=True, eq=False)  # without slots: they break Method[A, B](...) of a frozen dataclass on 3.11
class Method(Generic[Req, Res]):
    """One method of a service, as its proto declares it. Compared by identity; generated code holds one per method.

    Attributes:
        service: full name of the service, `shop.catalog.v1.Catalog`.
        name: `GetProduct`.
        request, reply: the message classes.
        client_streaming, server_streaming: the arity.
        idempotency: what the proto declares.
        timeout: default deadline in seconds that the proto declares, or None.
        options: what else the proto says of how it is called, as `[client.NAME.methods.METHOD]` would say it.
        access: who may call it, as the proto says: any of these, and everybody who is allowed when there are none.
        encode, decode: what this side sends and receives with, instead of the codec of its message classes.
    """

    service: str
    name: str
    request: type[Req]
    reply: type[Res]
    client_streaming: bool = False
    server_streaming: bool = False
    idempotency: Idempotency = Idempotency.UNKNOWN
    timeout: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    access: tuple[Mapping[str, Any], ...] = ()
    encode: Callable[[Any], bytes] | None = None
    decode: Callable[[bytes], Any] | None = None
    full_name: str = field(init=False)
    path: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "full_name", f"{self.service}/{self.name}")
        object.__setattr__(self, "path", f"/{self.service}/{self.name}")

    def __repr__(self) -> str:
        request = f"stream {self.request.__name__}" if self.client_streaming else self.request.__name__
        reply = f"stream {self.reply.__name__}" if self.server_streaming else self.reply.__name__
        return f"<Method {self.full_name} ({request}) returns ({reply})>"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended.

    Attributes:
        code: OK or the code of the failure.
        error: the exception, None when OK or when the call was abandoned.
        remote: True when the peer decided, False when this process did (deadline, cancel, no endpoint).
        sent: False only when the request provably never left this process.
    """

    code: Code
    error: BaseException | None = None
    remote: bool = True
    sent: bool = True

    @classmethod
    def of(cls, error: BaseException) -> Outcome:
        """The outcome of a call that ended with this exception; an exception of Python's own counts as UNKNOWN."""
        if isinstance(error, RpcError):
            return cls(error.code, error, error.remote, error.sent)
        return cls(Code.UNKNOWN, error, remote=False)


OK = Outcome(Code.OK)
ABANDONED = Outcome(Code.CANCELLED, remote=False)


class Ending:
    """Something that ends exactly once and tells those who asked."""

    __slots__ = ("_callbacks", "outcome")

    def __init__(self) -> None:
        self.outcome: Outcome | None = None
        self._callbacks: list[Callable[[Outcome], None]] | None = None

    def on_end(self, callback: Callable[[Outcome], None]) -> None:
        """Call `callback(outcome)` once, when this ends; at once when it has ended already."""
        if self.outcome is not None:
            callback(self.outcome)
        elif self._callbacks is None:
            self._callbacks = [callback]
        else:
            self._callbacks.append(callback)

    def end(self, outcome: Outcome) -> None:
        """End this. Only its creator calls it; a second call changes nothing."""
        if self.outcome is not None:
            return
        self.outcome = outcome
        if self._callbacks is not None:
            self._tell(outcome)

    def _tell(self, outcome: Outcome) -> None:
        callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks or ():
            try:
                callback(outcome)
            except Exception:  # a listener must not change how a call ends
                log.exception("an on_end callback failed")


class Call(Ending):
    """One call, or one attempt of it: what a handler is given.

    Attributes:
        method: the method called.
        request: the message, or an async iterable of messages when the client streams.
        metadata: what the caller sends.
        deadline: the moment, on the running loop's clock in seconds, after which nobody waits; None is never.
        timeout: seconds the caller asked for explicitly, or None; the deadline is made of it.
        idle: seconds a stream of replies may be silent while its reader waits, or None.
        inherited: the deadline is that of the call which this process serves.
        request_id: the same along the whole chain of calls that one request causes; empty where it begins.
        peer: the address of the other side, empty until it is known.
        caller: the address of whoever outside this call is passed on for, by a gateway; None for all other calls.
        header, trailer: metadata that came back, or that a servicer sends back.
        received: for a reply that is one message, how to fetch header and trailer when somebody asks; None before.
        attempt: number of the attempt, from 1.
        give_up: ends an attempt that waits for its one reply, without waiting; set by the wire, None before.
        fault: what the iterable of requests raised, if the call fails of that; set by the wire.
        criticality: how much it matters, None when nobody said so.
        began: when it began, on the exact clock of the loop; 0 while nobody watches.
        identity: who the call is made for, where that was verified; None for somebody who is not known.
        trace: the span of the call while it is traced, and what makes spans of its attempts; None when it is not.
        watch: is told of the end before all others, one function for all calls of a method; None while nobody watches.
        wire: what the serving wire keeps with the call; None on clients.
    """

    __slots__ = (
        "__weakref__",
        "attempt",
        "began",
        "caller",
        "criticality",
        "deadline",
        "fault",
        "give_up",
        "header",
        "identity",
        "idle",
        "inherited",
        "metadata",
        "method",
        "peer",
        "request",
        "received",
        "request_id",
        "timeout",
        "trace",
        "trailer",
        "watch",
        "wire",
    )

    def __init__(
        self,
        method: Method[Any, Any],
        request: Any,
        metadata: Metadata = (),
        *,
        deadline: float | None = None,
        timeout: float | None = None,
        request_id: str = "",
        peer: str = "",
        wire: Any = None,
    ) -> None:
        self.outcome = None
        self._callbacks = None
        self.method = method
        self.request = request
        self.metadata = metadata
        self.deadline = deadline
        self.timeout = timeout
        self.idle: float | None = None
        self.inherited = False
        self.request_id = request_id
        self.peer = peer
        self.header: Metadata = ()
        self.trailer: Metadata = ()
        self.received: Callable[[], Awaitable[tuple[Metadata, Metadata]]] | None = None
        self.attempt = 1
        self.give_up: Callable[[], Any] | None = None
        self.fault: BaseException | None = None
        self.criticality: Criticality | None = None
        self.began = 0.0
        self.caller: str | None = None
        self.identity: Identity | None = None
        self.trace: Any = None
        self.watch: Callable[[Call, Outcome], None] | None = None
        self.wire = wire

    def end(self, outcome: Outcome) -> None:
        """End this. Only its creator calls it; a second call changes nothing."""
        if self.outcome is not None:
            return
        self.outcome = outcome
        if self.watch is not None:
            try:
                self.watch(self, outcome)
            except Exception:  # as with a listener
                log.exception("what watches a call failed")
        if self._callbacks is not None:
            self._tell(outcome)

    def get(self, key: str) -> str | bytes | None:
        """The first value of a metadata key, or None."""
        for name, value in self.metadata:
            if name == key:
                return value
        return None

    def __repr__(self) -> str:
        state = self.outcome.code.name if self.outcome else "open"
        return f"<Call {self.method.full_name} {state} attempt={self.attempt} peer={self.peer or '-'}>"


class Stream(Ending, ABC, Generic[Item]):
    """A stream of messages being received. Iterate it to its end, or close it: `async with stream:` does both.

    A class and not an async generator: a generator that was never started never runs its `finally`, and every
    generator around another costs each message. A subclass implements `_next` and `_close`, and this class ends the
    stream exactly once: exhausted, failed, closed or dropped.
    """

    __slots__ = ("__weakref__",)

    @abstractmethod
    async def __anext__(self) -> Item:
        """The next message. Raises StopAsyncIteration at the end and RpcError when the call failed."""

    @abstractmethod
    def cancel(self, reason: BaseException | None = None) -> None:
        """Give the stream up now, without waiting; `reason` is what a reader that still waits is told."""

    async def aclose(self, reason: BaseException | None = None) -> None:
        """Give the stream up, and the call with it; harmless when it has ended."""
        self.cancel(reason)

    def __aiter__(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose(error)

    def __del__(self) -> None:
        # A consumer that broke out of its loop and dropped the stream has cancelled the call.
        if getattr(self, "outcome", ABANDONED) is None:
            self.cancel()


Reply: TypeAlias = Any
"""A message, or a Stream of messages when the server streams."""

Handler: TypeAlias = Callable[[Call], Awaitable[Reply]]
Interceptor: TypeAlias = Callable[[Method[Any, Any], Handler], Handler]

current: ContextVar[Call | None] = ContextVar("framework.current", default=None)
"""The call that this task is serving; what it calls inherits deadline, request id and trace from it."""


def stack(interceptors: Iterable[Interceptor], method: Method[Any, Any], handler: Handler) -> Handler:
    """Wrap a handler, the first interceptor outermost; done once per method, when it is bound."""
    for interceptor in reversed(tuple(interceptors)):
        handler = interceptor(method, handler)
        if not callable(handler):
            raise FrameworkError(f"interceptor {interceptor!r} returned {handler!r} for {method!r}, and not a handler")
    return handler
