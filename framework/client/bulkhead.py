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

        if bulkhead.out < bulkhead.calls:        # written out where calls are made: nearly all need no more
            bulkhead.out += 1
        else:
            await bulkhead.wait(call)
        try: ...
        finally:
            bulkhead.out -= 1
            if bulkhead.line:
                bulkhead.let_in()

    Attributes:
        calls: as many may be out.
        out: as many are, or have been let in and are about to run.
        line: those that wait.
    """

    __slots__ = ("_queue", "calls", "line", "out")

    calls: int
    _queue: int

    def __init__(self, settings: BulkheadSettings | None) -> None:
        self.out = 0
        self.line: deque[asyncio.Future[None]] = deque()
        self.configure(settings)

    def configure(self, settings: BulkheadSettings | None) -> None:
        """Go by other settings; calls that are out still count, and those that wait are let in if they now may."""
        settings = settings or UNLIMITED
        self.calls = settings.calls
        self._queue = settings.queue
        self.let_in()

    async def wait(self, call: Call) -> None:
        """Wait to be let in.

        Raises:
            ResourceExhausted: too many wait already.
            DeadlineExceeded: the call's deadline passed in the line.
        """
        name = call.method.full_name
        if len(self.line) >= self._queue:
            raise ResourceExhausted(
                f"{self.out} calls are out and {len(self.line)} wait; `bulkhead` in the client's settings says how many"
                " may",
                sent=False,
                method=name,
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.line.append(turn)
        try:
            async with asyncio.timeout_at(call.deadline):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # it was let in too late
                self.out -= 1
                self.let_in()
            elif turn in self.line:  # else one that left has come by it meanwhile
                self.line.remove(turn)
            if isinstance(error, TimeoutError):
                late = DeadlineExceeded(f"the deadline passed while {self.out} other calls were out", sent=False)
                late.method, late.inherited = name, call.inherited
                raise late from None
            raise

    def let_in(self) -> None:
        """Let in those that there is room for."""
        while self.line and self.out < self.calls:
            turn = self.line.popleft()
            if not turn.done():
                self.out += 1
                turn.set_result(None)

    def __repr__(self) -> str:
        return f"<Bulkhead {self.out} of {self.calls} out, {len(self.line)} waiting>"
