"""A service with one method of each arity, written as `framework generate` would write it, without a proto.

All four methods do the same thing, which the test gives as one function from requests to replies.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import Any

from google.protobuf.wrappers_pb2 import StringValue

from framework.rpc import Channel, Context, Metadata, Method, Servicer, StreamReply, UnaryReply

Behaviour = Callable[[AsyncIterator[StringValue], Context], AsyncIterator[Any]]
Requests = AsyncIterable[StringValue] | Iterable[StringValue]


class EchoMethods:
    """The methods of Echo, as data."""

    UnaryUnary = Method("echo.v1.Echo", "UnaryUnary", StringValue, StringValue)
    UnaryStream = Method("echo.v1.Echo", "UnaryStream", StringValue, StringValue, server_streaming=True)
    StreamUnary = Method("echo.v1.Echo", "StreamUnary", StringValue, StringValue, client_streaming=True)
    StreamStream = Method(
        "echo.v1.Echo", "StreamStream", StringValue, StringValue, client_streaming=True, server_streaming=True
    )


class EchoServicer(Servicer):
    """Says again what it is told."""

    __methods__ = (
        EchoMethods.UnaryUnary,
        EchoMethods.UnaryStream,
        EchoMethods.StreamUnary,
        EchoMethods.StreamStream,
    )

    @abstractmethod
    async def UnaryUnary(self, request: StringValue, context: Context, /) -> StringValue: ...

    @abstractmethod
    def UnaryStream(self, request: StringValue, context: Context, /) -> AsyncIterator[StringValue]: ...

    @abstractmethod
    async def StreamUnary(self, requests: AsyncIterator[StringValue], context: Context, /) -> StringValue: ...

    @abstractmethod
    def StreamStream(self, requests: AsyncIterator[StringValue], context: Context, /) -> AsyncIterator[StringValue]: ...


class EchoClient:
    """Says again what it is told."""

    def __init__(self, channel: Channel) -> None:
        self._UnaryUnary = channel.bind(EchoMethods.UnaryUnary)
        self._UnaryStream = channel.bind(EchoMethods.UnaryStream)
        self._StreamUnary = channel.bind(EchoMethods.StreamUnary)
        self._StreamStream = channel.bind(EchoMethods.StreamStream)

    def UnaryUnary(
        self, request: StringValue, /, *, timeout: float | None = None, metadata: Metadata = ()
    ) -> UnaryReply[StringValue]:
        return UnaryReply(self._UnaryUnary, EchoMethods.UnaryUnary, request, timeout, metadata)

    def UnaryStream(
        self, request: StringValue, /, *, timeout: float | None = None, metadata: Metadata = ()
    ) -> StreamReply[StringValue]:
        return StreamReply(self._UnaryStream, EchoMethods.UnaryStream, request, timeout, metadata)

    def StreamUnary(
        self, requests: Requests, /, *, timeout: float | None = None, metadata: Metadata = ()
    ) -> UnaryReply[StringValue]:
        return UnaryReply(self._StreamUnary, EchoMethods.StreamUnary, requests, timeout, metadata)

    def StreamStream(
        self, requests: Requests, /, *, timeout: float | None = None, metadata: Metadata = ()
    ) -> StreamReply[StringValue]:
        return StreamReply(self._StreamStream, EchoMethods.StreamStream, requests, timeout, metadata)


def text(value: str) -> StringValue:
    """A message."""
    return StringValue(value=value)


async def repeat(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
    """Every request is a reply."""
    async for request in requests:
        yield request


class Echo(EchoServicer):
    """Does what it is given. A method with one reply gives the last one."""

    def __init__(self, behave: Behaviour = repeat) -> None:
        self.behave = behave

    async def UnaryUnary(self, request: StringValue, context: Context, /) -> Any:
        return await _last(self.behave(_one(request), context))

    async def UnaryStream(self, request: StringValue, context: Context, /) -> AsyncIterator[StringValue]:
        async with aclosing(self.behave(_one(request), context)) as replies:  # type: ignore[type-var]  # a generator
            async for reply in replies:
                yield reply

    async def StreamUnary(self, requests: AsyncIterator[StringValue], context: Context, /) -> Any:
        return await _last(self.behave(requests, context))

    async def StreamStream(
        self, requests: AsyncIterator[StringValue], context: Context, /
    ) -> AsyncIterator[StringValue]:
        async with aclosing(self.behave(requests, context)) as replies:  # type: ignore[type-var]  # a generator
            async for reply in replies:
                yield reply


async def _one(request: StringValue) -> AsyncIterator[StringValue]:
    yield request


async def _last(replies: AsyncIterator[Any]) -> Any:
    reply = None
    async for reply in replies:  # noqa: B007  # the last one is what it is about
        pass
    return reply


def raising(error: BaseException, *, read: bool = True, replies: int = 0) -> Behaviour:
    """A behaviour that replies some times and then raises."""

    async def behave(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        if read:
            async for _ in requests:
                pass
        for number in range(replies):
            yield text(str(number))
        raise error

    return behave


async def never() -> None:
    """Wait for ever."""
    await asyncio.get_running_loop().create_future()


class Blocked:
    """A behaviour that gets as far as it is told, and then waits for ever.

    Args:
        read: requests to read first; None is all of them.
        header: send response headers.
        replies: replies to send.
    """

    def __init__(self, *, read: int | None = 1, header: bool = False, replies: int = 0) -> None:
        self._read = read
        self._header = header
        self._replies = replies
        self.waits = asyncio.Event()
        self.ended = asyncio.Event()
        self.error: BaseException | None = None

    async def __call__(self, requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        try:
            count = 0
            while count != self._read and (await anext(requests, None)) is not None:
                count += 1
            if self._header:
                await context.send_initial_metadata((("early", "yes"),))
            for number in range(self._replies):
                yield text(str(number))
            self.waits.set()
            await never()
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.ended.set()
