"""From a path to a handler: what every wire serves calls with.

A wire makes a `ServerCall`, looks its method up and awaits `answer` (one reply) or `stream` (many). Both raise nothing
but RpcError, which the wire sends, and CancelledError when nobody waits for an answer any more.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from framework.call import OK, Handler, Interceptor, Metadata, Method, Outcome, current, stack
from framework.codec import decoder, encoder
from framework.details import KEY as DETAILS
from framework.details import pack
from framework.errors import Code, DeadlineExceeded, Internal, RpcError, error_for
from framework.interceptors.request_id import KEY as REQUEST_ID
from framework.metadata import pairs
from framework.server.context import ServerCall
from framework.server.servicer import Servicer, ServicerError, handler_of

log = logging.getLogger("framework.server")

ErrorMap: TypeAlias = Mapping[type[Exception], type[RpcError] | Callable[[Any], RpcError]]
"""Exceptions of the user's own, and what each becomes: a class of the family with its text, or what a function says."""


LATE = 0.005
"""Seconds before the deadline from which on a call that is given up counts as late, not as cancelled."""


class Broken(Exception):
    """A wire's write failed because the call is gone: cancelled, or past its deadline."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A method ready to serve: its handler inside all interceptors, and its codec."""

    method: Method[Any, Any]
    handler: Handler
    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]


class Pipeline:
    """The methods that are served, and the calls in flight.

    Args:
        interceptors: around every handler, the first outermost.
        errors: exceptions of the user's own and what they become.
    """

    def __init__(self, interceptors: Iterable[Interceptor] = (), errors: ErrorMap | None = None) -> None:
        self._interceptors = tuple(interceptors)
        self._errors = dict(errors or {})
        given: Iterable[tuple[Any, Any]] = self._errors.items()
        for kind, mapped in given:
            if not isinstance(kind, type) or (isinstance(mapped, type) and not issubclass(mapped, RpcError)):
                raise ServicerError(f"errors maps {kind!r} to {mapped!r}; it maps exceptions to errors like NotFound")
        self._bound: dict[str, Bound] = {}
        self._complete = False
        self.calls: set[ServerCall] = set()

    @property
    def services(self) -> tuple[str, ...]:
        """Full names of the services served, in order of their names."""
        return tuple(sorted({bound.method.service for bound in self._bound.values()}))

    @property
    def methods(self) -> tuple[Bound, ...]:
        """Every method served."""
        return tuple(self._bound.values())

    def complete(self) -> None:
        """No more methods are added: serving begins."""
        self._complete = True

    def find(self, path: str) -> Bound | None:
        """The method at `/package.Service/Method`, or None."""
        return self._bound.get(path)

    def add(self, servicer: Servicer) -> None:
        """Serve the methods of a generated servicer.

        Raises:
            ServicerError: it is no servicer, a method is not asynchronous, or its service is served already.
        """
        if not isinstance(cast(object, servicer), Servicer):
            hint = f"{servicer.__name__}()" if isinstance(servicer, type) else "an instance of a generated servicer"
            raise ServicerError(f"{servicer!r} is not a servicer; add {hint}")
        for method in servicer.__methods__:
            self.add_method(method, getattr(servicer, method.name))

    def add_method(
        self,
        method: Method[Any, Any],
        function: Callable[..., Any],
        decode: Callable[[bytes], Any] | None = None,
        encode: Callable[[Any], bytes] | None = None,
    ) -> None:
        """Serve one method with a function of request and context; the codec defaults to that of its messages."""
        if self._complete:
            raise ServicerError(f"{method.full_name} comes too late: the server serves already; add it in the lifespan")
        if method.path in self._bound:
            raise ServicerError(f"{method.full_name} is served already; add one servicer per service")
        self._bound[method.path] = Bound(
            method,
            stack(self._interceptors, method, handler_of(method, function)),
            decode or decoder(method.request, method.full_name),
            encode or encoder(method.reply, method.full_name),
        )

    async def answer(self, bound: Bound, call: ServerCall, raw: bytes | None) -> bytes:
        """Serve a call with one reply; `raw` is the request, or None when `call.request` is a stream of them."""
        try:
            self._begin(call)
            if raw is not None:
                call.request = bound.decode(raw)
            reply = await bound.handler(call)
            _raise_for_ending(call)
            encoded = bound.encode(reply)
        except BaseException as error:
            raise self._fail(call, error) from error
        self.calls.discard(call)
        call.end(OK)
        return encoded

    async def stream(
        self, bound: Bound, call: ServerCall, raw: bytes | None, write: Callable[[bytes], Awaitable[None]]
    ) -> None:
        """Serve a call with a stream of replies, each handed to `write`, which raises Broken when the call is gone."""
        encode = bound.encode
        replies = None
        try:
            self._begin(call)
            if raw is not None:
                call.request = bound.decode(raw)
            replies = await bound.handler(call)
            async for reply in replies:
                await write(encode(reply))
            _raise_for_ending(call)
        except BaseException as error:
            failure = self._fail(call, error)
            if replies is not None and replies.outcome is None:
                await self._abandon(replies, failure)
            raise failure from error
        self.calls.discard(call)
        call.end(OK)

    async def _abandon(self, replies: Any, reason: BaseException) -> None:
        try:
            await replies.aclose(reason)
        except Exception:
            log.exception("a handler failed while its abandoned stream was closed")

    def _begin(self, call: ServerCall) -> None:
        call.task = asyncio.current_task()
        current.set(call)
        self.calls.add(call)
        if call.deadline is not None and call.remaining() == 0.0:  # it waited for so long that nobody waits for it
            raise Broken

    def _fail(self, call: ServerCall, error: BaseException) -> BaseException:
        """End a failed call; returns what the wire is to raise: an RpcError, or CancelledError when nobody waits."""
        self.calls.discard(call)
        gone = isinstance(error, Broken)
        if isinstance(error, asyncio.CancelledError):
            if call.expelled is not None:
                if call.task is not None:
                    call.task.uncancel()
                call.end(Outcome(call.expelled.code, call.expelled, remote=False))
                return call.expelled
            gone = call.task is not None and call.task.cancelling() > 0
        elif isinstance(error, KeyboardInterrupt | SystemExit):
            call.end(Outcome.of(error))
            return error
        if gone:
            remaining = call.remaining()  # a caller's deadline passes, and is known here, a moment before our own
            late = remaining is not None and remaining < LATE
            code = Code.DEADLINE_EXCEEDED if late else Code.CANCELLED
            call.end(Outcome(code, error_for(code, "the caller stopped waiting"), remote=not late))
            return asyncio.CancelledError()
        failure = call.aborted or self._translate(call, error)
        call.end(Outcome(failure.code, error, remote=False))
        return failure

    def _translate(self, call: ServerCall, error: BaseException) -> RpcError:
        """What the caller may know of an exception."""
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]  # a task group's only failure is the failure
        if isinstance(error, RpcError) and not error.method:
            return error  # raised by the handler, for the caller
        if isinstance(error, DeadlineExceeded) and error.inherited:
            return DeadlineExceeded(f"the deadline passed while {call.method.full_name} waited for {error.method}")
        for kind in type(error).__mro__:
            if (mapped := self._errors.get(kind)) is not None:
                text = error.message if isinstance(error, RpcError) else str(error)
                answer: RpcError = mapped(text) if isinstance(mapped, type) else mapped(error)
                return answer
        return internal(call, error)


ROOM = 7000
"""Bytes that a failure's message, details and trailing metadata may have; grpc refuses more than 8 kB of headers."""


def status_of(call: ServerCall, error: RpcError) -> tuple[str, Metadata]:
    """The message and the trailing metadata that a failed call ends with.

    What does not fit is left out, the details first: the code and the beginning of the message always arrive.

    Raises:
        TypeError, ValueError: what the handler gave cannot be sent.
    """
    message = str(error.message).encode("utf-8", "replace").decode()
    own: Metadata = () if error.metadata is call.trailer else pairs(error.metadata)
    details: Metadata = ((DETAILS, pack(error)),) if error.details else ()
    told = () if call.get(REQUEST_ID) is not None else ((REQUEST_ID, call.request_id),)
    trailer = (*call.trailer, *own, *told, *details)
    if _size(message, trailer) > ROOM:
        for trailer in ((*call.trailer, *own, *told), told):
            if _size("", trailer) <= ROOM // 2:
                break
        while len(message) > 20 and _size(message, trailer) > ROOM:
            message = f"{message[: len(message) * 3 // 4]}..."
        log.warning("%s failed with more than %d bytes; some are left out: %s", call.method.full_name, ROOM, message)
    return message, trailer


def _size(message: str, trailer: Metadata) -> int:
    """Bytes in headers, where what is no ASCII takes three and binary values a third more."""
    text = len(message) if message.isascii() else 3 * len(message.encode())
    return text + sum(32 + len(key) + len(value) * 4 // 3 for key, value in trailer)


def internal(call: ServerCall, error: BaseException) -> Internal:
    """What the caller is told of a failure that is none of its business; the log has the cause under the same id."""
    error_id = secrets.token_hex(4)
    log.error("%s failed, error %s", call.method.full_name, error_id, exc_info=error)
    return Internal(f"internal error {error_id}; its cause stands in the log of the server")


def _raise_for_ending(call: ServerCall) -> None:
    """A handler that returns may have set a status, or have swallowed its cancellation."""
    if call.task is not None and call.task.cancelling():
        raise asyncio.CancelledError
    if call.aborted is not None:
        raise call.aborted
    code, details = call.status
    if code is not Code.OK:
        raise error_for(code, details, metadata=call.trailer)
