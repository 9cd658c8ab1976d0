"""How many calls of one method may be out at a time, so that one slow method does not take everything."""

from __future__ import annotations

import asyncio
from collections import deque

from framework.call import Call
from framework.errors import DeadlineExceeded, ResourceExhausted
from framework.policy import BulkheadSettings

UNLIMITED = BulkheadSettings(calls=1_000_000)


class Bulkhead:
    """Counts the calls of one method; those for which there is no room wait in line, within their deadlines.

        if bulkhead.full:
            await bulkhead.wait(call)
        bulkhead.in_flight += 1
        try: ...
        finally: bulkhead.leave()

    Attributes:
        in_flight: calls that have been let in and have not left.
        full: the next call has to wait.
    """

    __slots__ = ("_promised", "_settings", "_waiting", "in_flight")

    def __init__(self, settings: BulkheadSettings | None) -> None:
        self._settings = settings or UNLIMITED
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._promised = 0  # rooms of calls that have left, and whose successors are about to run
        self.in_flight = 0

    @property
    def full(self) -> bool:
        return self.in_flight + self._promised >= self._settings.calls

    async def wait(self, call: Call) -> None:
        """Wait for room.

        Raises:
            ResourceExhausted: too many wait already.
            DeadlineExceeded: the call's deadline passed in the line.
        """
        name = call.method.full_name
        if len(self._waiting) >= self._settings.queue:
            raise ResourceExhausted(
                f"{self.in_flight} calls are out and {len(self._waiting)} wait; `bulkhead` in the client's settings"
                " says how many may",
                sent=False,
                method=name,
            )
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout_at(call.deadline):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._promised -= 1  # it came too late
                self._call_next()
            else:
                self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                late = DeadlineExceeded(
                    f"the deadline passed while {self.in_flight} other calls were out", sent=False, method=name
                )
                late.inherited = call.inherited
                raise late from None
            raise
        self._promised -= 1

    def leave(self) -> None:
        """A call has ended."""
        self.in_flight -= 1
        if self._waiting:
            self._call_next()

    def _call_next(self) -> None:
        while self._waiting and not self.full:
            turn = self._waiting.popleft()
            if not turn.done():
                self._promised += 1
                turn.set_result(None)

    def __repr__(self) -> str:
        return f"<Bulkhead {self.in_flight} of {self._settings.calls} out, {len(self._waiting)} waiting>"
