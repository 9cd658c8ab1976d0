"""The methods of a service for callers in the same process: handlers that run its pipeline, without a wire between.

What serves HTTP beside gRPC calls these. A call runs in the task of its caller, on the messages of its caller.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

from framework.call import ABANDONED, OK, Call, Handler, Metadata, Method, Outcome, Reply, Stream, current
from framework.errors import DeadlineExceeded, RpcError, Unimplemented
from framework.identity import Peer
from framework.server.context import PUSHBACK, ServerCall, incoming_call
from framework.server.pipeline import Bound, Pipeline, _raise_for_ending


class _Wire:
    """Of a call that has none: headers stay with the call, from where its caller takes them."""

    def __init__(self, peer: Peer | None = None) -> None:
        self._peer = peer

    def peer_identity(self) -> Peer | None:
        return self._peer

    async def send_header(self, metadata: Metadata) -> None:
        pass

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return {}

    def set_compression(self, compression: Any) -> None:
        pass

    def disable_next_message_compression(self) -> None:
        pass


_WIRE = _Wire()


class Local:
    """Binds methods to a pipeline of this process.

    Args:
        pipeline: of the service.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def bind(self, method: Method[Any, Any]) -> Handler:
        """The handler of a method. A call of one that is not served raises Unimplemented."""
        found = self._pipeline.find(method.path)
        if found is None:
            return _unimplemented
        observe = self._pipeline.telemetry.server(found.method, inside=True)
        bound = dataclasses.replace(found, decode=_same, encode=_checked(found.method), observe=observe)
        return _stream(self._pipeline, bound) if method.server_streaming else _unary(self._pipeline, bound)


async def _unimplemented(call: Call) -> Reply:
    raise Unimplemented(f"{call.method.full_name} is not served here")


def _same(message: Any) -> Any:
    return message


class _Unsent:
    """A reply that stays in this process, where its size matters to nobody."""

    __slots__ = ("message",)

    def __init__(self, message: Any) -> None:
        self.message = message

    def __len__(self) -> int:
        return 0


def _checked(method: Method[Any, Any]) -> Any:
    kind, name = method.reply, method.full_name

    def encode(message: Any) -> _Unsent:
        if type(message) is not kind:
            raise TypeError(f"{name} takes {kind.__name__} here, not {type(message).__name__}")
        return _Unsent(message)

    return encode


async def _each(requests: Iterable[Any]) -> AsyncIterator[Any]:
    for request in requests:
        yield request


def _serving(bound: Bound, call: Call) -> ServerCall:
    request = call.request
    if bound.method.client_streaming and not hasattr(request, "__anext__"):
        request = aiter(request) if hasattr(request, "__aiter__") else _each(request)
    wire = _WIRE if call.wire is None else _Wire(call.wire)
    serving = incoming_call(bound.method, call.metadata, deadline=call.deadline, peer=call.peer, wire=wire)
    serving.request = request
    serving.identity = call.identity
    return serving


def _given_up(serving: ServerCall, error: BaseException) -> BaseException:
    """Nobody cancels a call that was late from the start; its caller is told the reason instead."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and not task.cancelling():
        return DeadlineExceeded("the deadline had passed before the call was served")
    if isinstance(error, RpcError):
        error.request_id = error.request_id or serving.request_id
        if serving.pushback is not None:
            error.metadata = (*error.metadata, (PUSHBACK, str(serving.pushback)))
    return error


def _unary(pipeline: Pipeline, bound: Bound) -> Handler:
    async def handler(call: Call) -> Reply:
        serving = _serving(bound, call)
        before = current.get()
        try:
            reply: Any = await pipeline.answer(bound, serving, None)
        except BaseException as error:
            raise _given_up(serving, error) from error.__cause__
        finally:
            current.set(before)
            if serving.trace is not None:
                serving.trace.leave()
            call.header, call.trailer = serving.header, serving.trailer
        return reply.message

    return handler


def _stream(pipeline: Pipeline, bound: Bound) -> Handler:
    async def handler(call: Call) -> Reply:
        serving = _serving(bound, call)
        before = current.get()
        try:
            if bound.observe is not None:
                bound.observe(serving)
            pipeline._begin(bound, serving)
            replies = await bound.handler(serving)
        except BaseException as error:
            raise _given_up(serving, pipeline._fail(serving, error)) from error
        finally:
            current.set(before)
            if serving.trace is not None:
                serving.trace.leave()
        serving.task = None  # until somebody reads, in whatever task that is
        call.header = serving.header
        return _Replies(pipeline, bound, call, serving, replies)

    return handler


class _Replies(Stream[Any]):
    """The replies of a handler, read by its caller."""

    __slots__ = ("_bound", "_call", "_pipeline", "_replies", "_serving")

    def __init__(self, pipeline: Pipeline, bound: Bound, call: Call, serving: ServerCall, replies: Stream[Any]) -> None:
        super().__init__()
        self._pipeline = pipeline
        self._bound = bound
        self._call = call
        self._serving = serving
        self._replies = replies

    async def __anext__(self) -> Any:
        if self.outcome is not None:
            raise StopAsyncIteration
        serving = self._serving
        if serving.expelled is not None:
            raise await self._failed(serving.expelled)
        serving.task = asyncio.current_task()
        before = current.get()
        current.set(serving)  # a generator runs in the context of whoever asks it
        if serving.trace is not None:
            serving.trace.enter()
        try:
            reply: Any = self._bound.encode(await anext(self._replies))
        except StopAsyncIteration:
            try:
                _raise_for_ending(serving)
            except BaseException as error:
                raise await self._failed(error) from error
            self._pipeline.calls.discard(serving)
            serving.end(OK)
            self._ended(OK)
            raise
        except BaseException as error:
            raise await self._failed(error) from error
        finally:
            current.set(before)
            serving.task = None
            if serving.trace is not None:
                serving.trace.leave()
        self._call.header = serving.header
        return reply.message

    async def _failed(self, error: BaseException) -> BaseException:
        failure = self._pipeline._fail(self._serving, error)
        if self._replies.outcome is None:
            await self._pipeline._abandon(self._replies, failure)
        failure = _given_up(self._serving, failure)
        self._ended(Outcome.of(failure))
        return failure

    def _ended(self, outcome: Outcome) -> None:
        self._call.header, self._call.trailer = self._serving.header, self._serving.trailer
        self.end(outcome)

    def cancel(self, reason: BaseException | None = None) -> None:
        if self.outcome is None:
            self._pipeline.calls.discard(self._serving)
            self._serving.end(ABANDONED)
            self._replies.cancel(reason)
            self._ended(ABANDONED)

    async def aclose(self, reason: BaseException | None = None) -> None:
        if self.outcome is None:
            self.cancel(reason)
            await self._pipeline._abandon(self._replies, reason or asyncio.CancelledError())
