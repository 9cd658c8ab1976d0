"""What a generated client returns: a call that starts when it is awaited or iterated over, not before."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Coroutine, Generator
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar, cast

from framework.call import OK, Call, Handler, Metadata, Method, Outcome, Stream
from framework.errors import Cancelled, Code, RpcError
from framework.metadata import pairs

Res = TypeVar("Res")


class Channel(Protocol):
    """What a generated client is given: something that binds methods to handlers."""

    def bind(self, method: Method[Any, Any]) -> Handler:
        """The handler of a method, interceptors and all; the same one every time."""


def outcome_of(call: Call, error: BaseException) -> Outcome:
    """How a call ended that raised this here."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):  # the latter when its coroutine is closed
        return Outcome(Code.CANCELLED, error, remote=False)
    if isinstance(error, RpcError) and not error.method:
        error.method = call.method.full_name  # an interceptor's own: no handler is to pass it on as its own
    return Outcome.of(error)


def _made(method: Method[Any, Any], request: Any, timeout: float | None, metadata: Metadata) -> Call:
    if timeout is not None and not (isinstance(cast(object, timeout), int | float) and timeout == timeout):
        raise TypeError(f"timeout is a number of seconds, not {timeout!r}")
    return Call(method, request, pairs(metadata) if metadata else (), timeout=timeout)


async def _ended(call: Call) -> Outcome:
    """Wait for the end of a call that somebody else drives."""
    if call.outcome is None:
        ended = asyncio.get_running_loop().create_future()
        call.on_end(lambda outcome: None if ended.done() else ended.set_result(None))
        await ended
    assert call.outcome is not None
    return call.outcome


class UnaryReply(Coroutine[Any, Any, Res]):
    """A call with one reply: `await` it, or make a task of it as of any coroutine.

    Raises, when awaited:
        RpcError: the call failed; the class says with which code.
    """

    __slots__ = ("__weakref__", "_driver", "_handler", "_reply", "_started", "call")

    def __init__(
        self,
        handler: Handler,
        method: Method[Any, Res],
        request: Any,
        timeout: float | None = None,
        metadata: Metadata = (),
    ) -> None:
        if timeout is None and not metadata:
            self.call = Call(method, request)
        else:
            self.call = _made(method, request, timeout, metadata)
        self._handler = handler
        self._reply: Res | None = None
        self._started = False
        self._driver: Coroutine[Any, Any, Res] | None = None

    def send(self, value: Any, /) -> Any:
        """As of a coroutine."""
        if self._driver is None:
            self._driver = self._run()
        return self._driver.send(value)

    def throw(self, *error: Any) -> Any:
        """As of a coroutine."""
        if self._driver is None:
            self._driver = self._run()
        return self._driver.throw(*error)

    def close(self) -> None:
        """As of a coroutine: give a call up that is being made; one that was not made is never made."""
        self._started = True
        if self._driver is not None:
            self._driver.close()

    def __await__(self) -> Generator[Any, None, Res]:
        return self._run().__await__()

    async def _run(self) -> Res:
        call = self.call
        if self._started:
            return await self._again()
        self._started = True
        try:
            reply: Res = await self._handler(call)
        except BaseException as error:
            call.end(outcome_of(call, error))
            raise
        self._reply = reply
        call.end(OK)
        return reply

    async def _again(self) -> Res:
        """For whoever asks second, or at the same time."""
        outcome = await _ended(self.call)
        if isinstance(outcome.error, asyncio.CancelledError):
            raise Cancelled("the call was cancelled by the task that made it", method=self.call.method.full_name)
        if outcome.error is not None:
            raise outcome.error
        return self._reply  # type: ignore[return-value]  # an OK call has one

    def __del__(self) -> None:
        if not getattr(self, "_started", True):
            name = self.call.method.full_name
            warnings.warn(f"a call of {name} was never awaited, and so never made", RuntimeWarning, 2, source=self)

    async def initial_metadata(self) -> Metadata:
        """Response headers; awaits the reply. Raises like awaiting it."""
        return (await self._received())[0]

    async def trailing_metadata(self) -> Metadata:
        """Response trailers; awaits the reply. Raises like awaiting it; a failure has them in `error.metadata`."""
        return (await self._received())[1]

    async def _received(self) -> tuple[Metadata, Metadata]:
        await self
        call = self.call
        if call.received is not None:
            call.header, call.trailer = await call.received()
            call.received = None
        return call.header, call.trailer

    def __repr__(self) -> str:
        return f"<UnaryReply of {self.call!r}>"


class StreamReply(AsyncIterator[Res]):
    """A call with a stream of replies: `async for` over it.

    Breaking out of the loop and dropping this cancels the call; `async with` and `aclose()` do so at a definite point.

    Raises, when iterated:
        RpcError: the call failed; the class says with which code.
    """

    __slots__ = ("_handler", "_starting", "_stream", "call")

    def __init__(
        self,
        handler: Handler,
        method: Method[Any, Res],
        request: Any,
        timeout: float | None = None,
        metadata: Metadata = (),
    ) -> None:
        if timeout is None and not metadata:
            self.call = Call(method, request)
        else:
            self.call = _made(method, request, timeout, metadata)
        self._handler = handler
        self._stream: Stream[Res] | None = None
        self._starting: asyncio.Future[None] | None = None

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[Any, Any, Res]:
        if self._stream is not None:
            return self._stream.__anext__()
        return self._first()

    async def _first(self) -> Res:
        return await (await self._start()).__anext__()

    async def _start(self) -> Stream[Res]:
        if self._starting is not None:  # by another task
            await asyncio.wait([self._starting])
        if self._stream is not None:
            return self._stream
        call = self.call
        if call.outcome is not None:  # it failed before its first message, or was closed
            raise call.outcome.error if isinstance(call.outcome.error, RpcError) else StopAsyncIteration
        self._starting = asyncio.get_running_loop().create_future()
        try:
            stream: Stream[Res] = await self._handler(call)
        except BaseException as error:
            call.end(outcome_of(call, error))
            raise
        finally:
            self._starting.set_result(None)
            self._starting = None
        stream.on_end(call.end)
        if self.call.outcome is not None:  # closed meanwhile
            stream.cancel()
        self._stream = stream
        return stream

    async def initial_metadata(self) -> Metadata:
        """Response headers; starts the call. Raises like iterating over it."""
        await self._start()
        return self.call.header

    def trailing_metadata(self) -> Metadata:
        """Response trailers; empty before the stream has ended. A failure has them in `error.metadata`."""
        return self.call.trailer

    async def aclose(self, reason: BaseException | None = None) -> None:
        """Cancel the call; harmless when it has ended or has not begun."""
        if self._stream is not None:
            await self._stream.aclose(reason)
        else:
            self.call.end(Outcome(Code.CANCELLED, remote=False, sent=False))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<StreamReply of {self.call!r}>"
