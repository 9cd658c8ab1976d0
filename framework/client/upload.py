"""The writing half of the wire: requests that stream, and the true status of a call whose writing failed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

import grpc
import grpc.aio

from framework.call import Metadata
from framework.client.heads import clean

T = TypeVar("T")


class Feed:
    """Writes the requests of a user's iterable.

    Attributes:
        error: what the iterable raised, for whoever awaits the replies.
        status: the RPC's status as it arrived, since a write that fails after it puts a made-up one in its place.
    """

    __slots__ = ("_task", "error", "status")

    def __init__(self, rpc: Any, requests: Any, encode: Callable[[Any], bytes]) -> None:
        self.error: BaseException | None = None
        self.status: grpc.aio.AioRpcError | None = None
        rpc.add_done_callback(self._ended)
        self._task = asyncio.create_task(self._run(rpc, requests, encode))

    def _ended(self, rpc: Any) -> None:
        status = _at_once(_status_of(rpc))
        if status.details() != WRITE_FAILED:
            self.status = status

    async def _run(self, rpc: Any, requests: Any, encode: Callable[[Any], bytes]) -> None:
        try:
            if hasattr(requests, "__aiter__"):
                iterator = aiter(requests)
                try:
                    async for request in iterator:
                        if not await _written(rpc, encode(request)):
                            return
                finally:
                    await _close(iterator)
            else:
                for request in requests:
                    if not await _written(rpc, encode(request)):
                        return
            with contextlib.suppress(grpc.aio.AioRpcError, grpc.aio.BaseError):
                await rpc.done_writing()
        except BaseException as error:
            task = asyncio.current_task()
            if task is None or not task.cancelling():
                self.error = error
                rpc.cancel()

    def stop(self) -> None:
        """The RPC has ended: stop writing, and tell the user's iterable."""
        self._task.cancel()


async def _written(rpc: Any, request: bytes) -> bool:
    """False when the RPC has ended; its status says why."""
    try:
        await rpc.write(request)
    except (grpc.aio.AioRpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
        return False
    except asyncio.CancelledError:
        if not rpc.done():
            raise
        return False
    return True


async def _close(iterator: AsyncIterator[Any]) -> None:
    close = getattr(iterator, "aclose", None)
    if close is not None:
        with contextlib.suppress(Exception):  # the call has ended; how its iterable closes is its own affair
            await close()


WRITE_FAILED = "Internal error from Core"
"""The message of the status that grpc.aio makes up when a write fails."""

_SETTLE = 200
"""Looks for the true status, a millisecond apart; it is on its way when a write has failed."""


async def settled(rpc: Any, error: BaseException, feed: Feed | None) -> BaseException:
    """The error that the RPC's true status makes of this one; StopAsyncIteration when that is OK.

    A write fails because the call has ended: a deadline, a server that answered early, a lost connection. grpc.aio then
    calls the whole call INTERNAL until the status arrives that says why, which is once all replies have been read, and
    nothing tells when it has.
    """
    if not isinstance(error, grpc.aio.AioRpcError) or error.details() != WRITE_FAILED or feed is None:
        return error
    status = feed.status
    for _ in range(_SETTLE):
        status = status or await _status_of(rpc)
        if status.details() != WRITE_FAILED:
            break
        status = None
        await asyncio.sleep(0.001)
    if status is None:
        return error
    return StopAsyncIteration() if status.code() is grpc.StatusCode.OK else status


async def trailer_of(rpc: Any, feed: Feed | None) -> Metadata:
    if feed is not None and feed.status is not None:
        return clean(feed.status.trailing_metadata())
    return clean(await rpc.trailing_metadata())


async def _status_of(rpc: Any) -> grpc.aio.AioRpcError:
    """The status of an RPC, OK too."""
    return grpc.aio.AioRpcError(
        await rpc.code(), await rpc.initial_metadata(), await rpc.trailing_metadata(), details=await rpc.details()
    )


def _at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise RuntimeError("it had to wait")
