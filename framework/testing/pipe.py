"""One direction of a stream in memory: the pipe, what a client feeds into it, and what a servicer reads from it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from framework.call import ABANDONED, OK, Outcome, Stream
from framework.server.context import ServerCall
from framework.server.pipeline import Broken

WINDOW = 16
"""Messages that a stream holds before its writer waits."""


class Pipe:
    """One direction of a stream: a bounded queue that can end, or break."""

    __slots__ = ("_broken", "_ended", "_items", "_reader", "_writer")

    def __init__(self) -> None:
        self._items: deque[bytes] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._ended = False
        self._broken = False

    async def write(self, item: bytes) -> None:
        """Raises Broken when nobody reads any more."""
        while len(self._items) >= WINDOW and not self._broken:
            self._writer = asyncio.get_running_loop().create_future()
            await self._writer
        if self._broken:
            raise Broken
        self._items.append(item)
        wake(self._reader)

    async def read(self) -> bytes | None:
        """The next message, or None at the end. Raises Broken when the writer has gone without one."""
        while not self._items:
            if self._broken:
                raise Broken
            if self._ended:
                return None
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        item = self._items.popleft()
        wake(self._writer)
        return item

    @property
    def empty(self) -> bool:
        """No message waits to be read."""
        return not self._items

    def end(self) -> None:
        """No more messages."""
        self._ended = True
        wake(self._reader)

    def break_off(self) -> None:
        """One side has gone."""
        self._broken = True
        wake(self._reader)
        wake(self._writer)


def wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


class Requests(Stream[Any]):
    """The requests that a servicer reads."""

    __slots__ = ("_call", "_decode", "_pipe")

    def __init__(self, call: ServerCall, pipe: Pipe, decode: Callable[[bytes], Any]) -> None:
        super().__init__()
        self._call = call
        self._pipe = pipe
        self._decode = decode

    async def __anext__(self) -> Any:
        if self.outcome is not None:
            raise StopAsyncIteration
        raw = await self._pipe.read()
        if raw is not None:
            return self._decode(raw)
        if self._call.remaining() == 0.0:
            raise Broken
        if not self._call.header_sent:  # as the real wire does, to learn whether the call is still there
            self._call.header_sent = True
            await self._call.wire.send_header(self._call.header)
        self.end(OK)
        raise StopAsyncIteration

    def cancel(self, reason: BaseException | None = None) -> None:
        self.end(ABANDONED if reason is None else Outcome.of(reason))

    def __del__(self) -> None:
        pass  # not reading to the end is the servicer's right; the call's end ends the upload


class Feed:
    """Reads a user's requests, in the client's context, into a pipe."""

    __slots__ = ("_pipe", "_task", "error", "failed")

    def __init__(self, requests: Any, pipe: Pipe, encode: Callable[[Any], bytes]) -> None:
        self.error: BaseException | None = None
        self.failed: Callable[[], None] = lambda: None
        self._pipe = pipe
        self._task = asyncio.create_task(self._run(requests, encode))

    async def _run(self, requests: Any, encode: Callable[[Any], bytes]) -> None:
        try:
            if hasattr(requests, "__aiter__"):
                iterator = aiter(requests)
                try:
                    async for request in iterator:
                        await self._pipe.write(encode(request))
                finally:
                    if hasattr(iterator, "aclose"):
                        await iterator.aclose()
            else:
                for request in requests:
                    await self._pipe.write(encode(request))
            self._pipe.end()
        except Broken:
            pass  # the call has ended; its status says why
        except BaseException as error:
            task = asyncio.current_task()
            self._pipe.break_off()
            if task is None or not task.cancelling():
                self.error = error
                self.failed()

    def stop(self) -> None:
        """The call has ended."""
        if not self._task.done():
            self._task.cancel()
