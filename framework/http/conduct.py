"""A call that is made for an HTTP request, which ends when the client goes.

Whoever reads the body notices that; while nobody reads, a look at what comes next is taken from time to time, and not
at once: most calls are over before, and the look is not free.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Generator, MutableMapping
from typing import Any, ParamSpec, TypeVar

from framework.call import OK, Call, Outcome
from framework.errors import Cancelled, Code, DeadlineExceeded, Internal, RpcError
from framework.http.asgi import Receive
from framework.http.status import HttpError

log = logging.getLogger("framework.http")

T = TypeVar("T")
P = ParamSpec("P")

PATIENCE = 0.02
"""Seconds after which it is looked whether the client is still there."""


class Gone(Exception):
    """The client has gone."""


class Begun(Awaitable[T]):
    """What was begun and waits for something, to be awaited to its end."""

    __slots__ = ("_steps", "_waits_for")

    def __init__(self, steps: Generator[Any, Any, T], waits_for: Any) -> None:
        self._steps = steps
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, T]:
        steps, waits_for = self._steps, self._waits_for
        try:
            while True:
                try:
                    said = yield waits_for
                except BaseException as error:
                    waits_for = steps.throw(error)
                else:
                    waits_for = steps.send(said)
        except StopIteration as done:
            found: T = done.value
            return found


class Inbox:
    """What the client sends: the parts of the body, and that it has gone.

    Attributes:
        live: the calls in flight, of all clients.
    """

    __slots__ = ("_ahead", "_begun", "_on_gone", "_reading", "_receive", "complete", "gone", "live")

    def __init__(self, receive: Receive, live: set[Conduct]) -> None:
        self._receive = receive
        self.live = live
        self._ahead: asyncio.Task[MutableMapping[str, Any]] | None = None
        self._begun: Begun[MutableMapping[str, Any]] | None = None
        self._reading = False
        self._on_gone: Callable[[], None] | None = None
        self.complete = False
        self.gone = False

    def at_hand(self) -> bytes:
        """What is there of the body without waiting, perhaps nothing yet. Raises Gone."""
        if self.complete or self._ahead is not None:
            return b""
        steps: Any = self._receive().__await__()
        try:
            waits_for = next(steps)
        except StopIteration as done:
            return self._taken(done.value)
        self._begun = Begun(steps, waits_for)
        return b""

    async def read(self) -> bytes | None:
        """The next part of the body, None at its end. Raises Gone."""
        if self.complete:
            return None
        self._reading = True
        try:
            if self._begun is not None:
                begun, self._begun = self._begun, None
                message = await begun
            elif self._ahead is None:
                message = await self._receive()
            else:
                ahead, self._ahead = self._ahead, None  # it goes with a reader that is cancelled
                message = await ahead
        finally:
            self._reading = False
        return self._taken(message)

    def _taken(self, message: MutableMapping[str, Any]) -> bytes:
        if message["type"] == "http.disconnect":
            self.gone = True
            raise Gone
        self.complete = not message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body

    def look(self, on_gone: Callable[[], None]) -> None:
        """Call `on_gone` when the client goes, while nobody reads."""
        self._on_gone = on_gone
        if self._ahead is None and not self._reading:
            self._ahead = asyncio.ensure_future(self._receive())
            self._ahead.add_done_callback(self._arrived)

    def _arrived(self, task: asyncio.Task[MutableMapping[str, Any]]) -> None:
        if task.cancelled() or task.exception() is not None:
            return
        if task.result()["type"] == "http.disconnect":
            self.gone = True
            if self._on_gone is not None:
                self._on_gone()
        elif self.complete and self._on_gone is not None:  # more than the end: it is not read, but look on
            self._ahead = None
            self.look(self._on_gone)

    def close(self) -> None:
        """Nobody is interested any more."""
        self._on_gone = None
        if self._ahead is not None and not self._ahead.done():
            self._ahead.cancel()
            self._ahead = None


class Conduct:
    """A call from its beginning to its end: cancelled at its deadline, and when the client goes.

    Args:
        call: the call, which this ends.
        inbox: where the client's going is noticed.
    """

    __slots__ = ("_call", "_inbox", "_loop", "_reason", "_task", "_timers")

    def __init__(self, call: Call, inbox: Inbox) -> None:
        self._call = call
        self._inbox = inbox
        self._reason: BaseException | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[Any] | None = None

    async def run(self, work: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do the work of the call.

        Raises:
            RpcError: the call failed.
            Gone: the client has gone.
        """
        call = self._call
        self._task = asyncio.current_task()
        if call.deadline is not None:
            self._timers.append(self._loop.call_at(call.deadline, self._expire))
        self._timers.append(self._loop.call_later(PATIENCE, self._look))
        self._inbox.live.add(self)
        try:
            result = await work(*args, **kwargs)
            self._check()
        except BaseException as error:
            failure = self._failure(error)
            call.end(outcome_of(failure))
            if failure is error:
                raise
            raise failure from error
        finally:
            for timer in self._timers:
                timer.cancel()
            self._inbox.live.discard(self)
            self._inbox.close()
        call.end(OK)
        return result

    @property
    def call(self) -> Call:
        """The call."""
        return self._call

    @property
    def streams(self) -> bool:
        """The call is one that may last."""
        return self._call.method.client_streaming or self._call.method.server_streaming

    def expel(self, error: RpcError) -> None:
        """End the call from outside with this error; the client is told."""
        self._stop(error)

    def _check(self) -> None:
        """The work may have swallowed that it was cancelled."""
        if self._reason is not None:
            raise asyncio.CancelledError

    def _failure(self, error: BaseException) -> BaseException:
        if self._reason is not None:
            if self._task is not None:
                self._task.uncancel()
            return self._reason
        if not isinstance(error, Exception):
            return error
        if self._inbox.gone:  # noticed by the reader of the body, and passed on as whatever it became
            return error if isinstance(error, Gone) else Gone()
        if isinstance(error, RpcError | HttpError):
            return error
        log.error("%s failed", self._call.method.full_name, exc_info=error)
        return Internal("internal error; its cause stands in the log of the server")

    def _stop(self, reason: BaseException) -> None:
        if self._reason is None:
            self._reason = reason
            if self._task is not None:
                self._task.cancel()

    def _expire(self) -> None:
        self._stop(DeadlineExceeded("no answer before the deadline", method=self._call.method.full_name))

    def _look(self) -> None:
        self._inbox.look(self._left)
        if not self._inbox.complete:  # a reader may have taken over what was looked at
            self._timers[-1] = self._loop.call_later(50 * PATIENCE, self._look)

    def _left(self) -> None:
        self._stop(Gone())


def outcome_of(error: BaseException) -> Outcome:
    """How a call ended that failed with this."""
    if isinstance(error, Gone):
        return Outcome(Code.CANCELLED, Cancelled("the client has gone"), remote=False)
    if isinstance(error, asyncio.CancelledError):
        return Outcome(Code.CANCELLED, error, remote=False)
    if isinstance(error, HttpError):
        return Outcome.of(error.error)
    return Outcome.of(error)
