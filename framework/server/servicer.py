"""One handler out of one method of a servicer.

A servicer's methods are `async def` for one reply and async generators for a stream of replies. A coroutine that
sends its stream with `context.write` works too; it runs in a task of its own, which the others do not pay for.
"""

from __future__ import annotations

import asyncio
import inspect
from abc import ABC
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, ClassVar

from framework.call import ABANDONED, OK, Call, Handler, Method, Outcome, Stream
from framework.errors import FrameworkError
from framework.server.context import Context, ServerCall


class ServicerError(FrameworkError):
    """A servicer that cannot be served; the message says which method and what to write."""


class Servicer(ABC):
    """Base of every generated servicer.

    Raises:
        ServicerError: when a class is instantiated that leaves methods of its service out.
    """

    __methods__: ClassVar[tuple[Method[Any, Any], ...]] = ()

    if not TYPE_CHECKING:  # a type checker is to see the signature of the user's own __init__

        def __new__(cls, *args, **kwargs):
            if missing := sorted(cls.__abstractmethods__):
                shapes = [signature(method) for method in cls.__methods__ if method.name in missing] or missing
                raise ServicerError(
                    f"{cls.__name__} does not implement {', '.join(missing)}. Write: {'; '.join(shapes)}"
                )
            return super().__new__(cls)


def signature(method: Method[Any, Any]) -> str:
    """How a handler of this method is written, for messages."""
    argument = "requests" if method.client_streaming else "request"
    body = "... yield" if method.server_streaming else "..."
    return f"async def {method.name}(self, {argument}, context): {body}"


def handler_of(method: Method[Any, Any], function: Callable[..., Any]) -> Handler:
    """The innermost handler of a method, chosen once by what the function is.

    Raises:
        ServicerError: the function is not asynchronous.
    """
    _check_arguments(method, function)
    if method.server_streaming:
        if inspect.isasyncgenfunction(function):
            return _generating(function)
        if inspect.iscoroutinefunction(function):
            return _writing(function)
        if not inspect.isgeneratorfunction(function):
            return _returning(method, function)
    elif inspect.iscoroutinefunction(function):
        return _unary(function)
    name = getattr(function, "__qualname__", repr(function))
    raise ServicerError(
        f"{name} is not asynchronous, and one that blocks would stop every other call. Write: {signature(method)} "
        "(blocking work goes to `await asyncio.to_thread(...)`)"
    )


def _check_arguments(method: Method[Any, Any], function: Callable[..., Any]) -> None:
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        name = getattr(function, "__qualname__", repr(function))
        raise ServicerError(f"{name} must take the request and the context. Write: {signature(method)}") from None
    except ValueError:
        pass  # it does not tell its arguments


def _unary(function: Callable[..., Any]) -> Handler:
    def handler(call: Call) -> Any:
        return function(call.request, Context(call))  # type: ignore[arg-type]  # a server's calls are ServerCalls

    return handler


def _generating(function: Callable[..., AsyncIterator[Any]]) -> Handler:
    async def handler(call: Call) -> Stream[Any]:
        return Replies(function(call.request, Context(call)))  # type: ignore[arg-type]  # as above

    return handler


def _returning(method: Method[Any, Any], function: Callable[..., Any]) -> Handler:
    async def handler(call: Call) -> Stream[Any]:
        replies = function(call.request, Context(call))  # type: ignore[arg-type]  # as above
        if not hasattr(replies, "__anext__"):
            raise TypeError(f"{method.full_name} returned {type(replies).__name__}, not an async iterator")
        return Replies(replies)

    return handler


def _writing(function: Callable[..., Any]) -> Handler:
    async def handler(call: Call) -> Stream[Any]:
        return Pump(function, call)  # type: ignore[arg-type]  # as above

    return handler


class Replies(Stream[Any]):
    """The replies of an async generator."""

    __slots__ = ("_iterator", "_next")

    def __init__(self, iterator: AsyncIterator[Any]) -> None:
        super().__init__()
        self._iterator = iterator
        self._next = iterator.__anext__

    async def __anext__(self) -> Any:
        try:
            return await self._next()
        except StopAsyncIteration:
            self.end(OK)
            raise
        except BaseException as error:
            self.end(Outcome.of(error))
            raise

    def cancel(self, reason: BaseException | None = None) -> None:
        self.end(ABANDONED if reason is None else Outcome.of(reason))

    async def aclose(self, reason: BaseException | None = None) -> None:
        self.cancel(reason)
        close = getattr(self._iterator, "aclose", None)
        if close is not None:
            await close()


class Pump(Stream[Any]):
    """The replies of a coroutine that calls `context.write`: a task that hands over one message at a time."""

    __slots__ = ("_call", "_function", "_message", "_ready", "_taken", "_task", "_writing")

    def __init__(self, function: Callable[..., Any], call: ServerCall) -> None:
        super().__init__()
        self._function = function
        self._call = call
        self._task: asyncio.Task[None] | None = None
        self._message: Any = None
        self._ready = asyncio.Event()
        self._taken = asyncio.Event()
        self._writing = asyncio.Lock()
        call.write = self._write

    async def _write(self, message: Any) -> None:
        async with self._writing:
            self._message = message
            self._taken.clear()
            self._ready.set()
            await self._taken.wait()

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._ready.set()

    async def __anext__(self) -> Any:
        if self._task is None:
            self._task = asyncio.create_task(self._function(self._call.request, Context(self._call)))
            self._task.add_done_callback(self._finished)
        self._taken.set()  # the message before this one is on the wire
        await self._ready.wait()
        if self._message is not None:
            message, self._message = self._message, None
            if not self._task.done():
                self._ready.clear()
            return message
        try:
            returned: object = self._task.result()
            if returned is not None:
                name = self._call.method.full_name
                raise TypeError(f"{name} returned {type(returned).__name__}; make it an async generator with `yield`")
        except BaseException as error:
            self.end(Outcome.of(error))
            raise
        self.end(OK)
        raise StopAsyncIteration

    def cancel(self, reason: BaseException | None = None) -> None:
        if self._task is not None:
            self._task.cancel()
        self.end(ABANDONED if reason is None else Outcome.of(reason))

    async def aclose(self, reason: BaseException | None = None) -> None:
        self.cancel(reason)
        if self._task is not None:
            await asyncio.wait([self._task])
            if not self._task.cancelled():
                self._task.exception()  # it has been told to stop; how it did so is its own affair
