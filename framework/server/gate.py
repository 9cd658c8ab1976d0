"""Calls wait here for their turn while the event loop is busy, so that those behind them are seen and can be refused.

An overloaded server that computes does not look overloaded from inside: grpc.aio hands over one call in every few turns
of the loop, a turn takes as long as the handlers that run in it, and the queue grows where no code of ours can see it.
So work pauses now and then, until everything that has arrived is known:

    | event                                       | effect                                                   |
    |---------------------------------------------|----------------------------------------------------------|
    | arrived()                                   | grpc has handed over a call, and is asked for the next   |
    | a call may begin, BUSY seconds after that   | it waits                                                 |
    |   and EACH for every other begun meanwhile  |                                                          |
    | ... sooner, and nobody waits                | it begins                                                |
    | a turn of the loop, a round after the pause | a pause begins                                           |
    | a turn of the loop, in a pause              | it ends when nobody arrives any more, or MOST have       |
    | a turn of the loop, else                    | the first that waits begins                              |

Nobody arrives any more when the loop had nothing to do for QUIET seconds. How long one more call would wait is the
number of those that wait times how long it takes, lately, from one beginning to the next.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar

from framework.call import Metadata

BUSY = 0.004
"""Seconds from the arrival of a call to its beginning."""

EACH = 0.001
"""Seconds that a call may take from the loop: where handlers compute less, those at once wait for each other for a
while too, but are not to pay for a pause, which takes as long as many of them."""

ROUND = 0.03
"""Seconds of work between two pauses."""

QUIET = 0.002
"""Seconds without an arrival after which nobody is left in grpc's queue; lost in every round. To hand over a call grpc
needs six turns and a tenth of that; but its threads take longer on a machine that is short of processors."""

TURN = 0.0002
"""Seconds that a turn counts at most; what took longer was somebody's work, and grpc could not get on meanwhile."""

MOST = 64
"""Arrivals that a pause lasts for; with more, work would not get on."""

SMOOTHING = 0.1
"""Weight of the latest interval between two beginnings."""

arrival: ContextVar[tuple[float, int, Metadata | None] | None] = ContextVar("framework.arrival", default=None)
"""Of the call that this task is going to serve, when grpc has handed it over: when that was, how many calls had begun
before, and its metadata if that is known by now."""


class Gate:
    """The calls of one server that wait for their turn.

    Args:
        clock: seconds, exact within a turn of the loop.
        soon: calls a function in the next turn of the loop.

    Attributes:
        line: those that wait.
    """

    __slots__ = (
        "_arrivals",
        "_began",
        "_begun",
        "_clock",
        "_interval",
        "_looked",
        "_paused",
        "_pausing",
        "_quiet",
        "_seen",
        "_soon",
        "line",
    )

    def __init__(self, clock: Callable[[], float], soon: Callable[[Callable[[], None]], object]) -> None:
        self._clock = clock
        self._soon = soon
        self.line: deque[asyncio.Future[None]] = deque()
        self._begun = 0  # calls that did, or waited first
        self._began = 0.0  # the latest call that had waited
        self._interval = 0.0  # from one beginning to the next
        self._paused = 0.0  # end of the latest pause
        self._pausing = False
        self._arrivals = 0  # in this pause
        self._seen = 0  # of them
        self._quiet = 0.0  # seconds in which nobody arrived
        self._looked = 0.0  # the latest turn

    @property
    def waiting(self) -> int:
        """Calls that wait."""
        return len(self.line)

    @property
    def wait(self) -> float:
        """Seconds that one more call would wait."""
        return len(self.line) * self._interval

    def arrived(self, metadata: Metadata | None = None) -> None:
        """A call has been handed over."""
        self._arrivals += 1
        arrival.set((self._clock(), self._begun, metadata))

    def busy(self, at: float, before: int, now: float) -> bool:
        """Whether a call that could begin now has to wait for its turn.

        Args:
            at: when it arrived.
            before: calls that had begun by then.
        """
        meanwhile = self._begun - before
        self._begun += 1
        return bool(self.line) or now - at > BUSY + EACH * meanwhile

    async def turn(self) -> None:
        """Wait until the caller may begin."""
        waiter = asyncio.get_running_loop().create_future()
        self.line.append(waiter)
        if len(self.line) == 1:
            self._began = self._clock()
            self._soon(self._look)
        await waiter

    def _look(self) -> None:
        now = self._clock()
        if not self._pausing and now - self._paused > ROUND:
            self._pausing = True
            self._arrivals = self._seen = 0
            self._quiet = 0.0
            self._looked = now
        if self._pausing:
            self._pausing = self._still_arriving(now)
            self._paused = now
        while self.line and not self._pausing:
            waiter = self.line.popleft()
            if not waiter.done():  # else its caller has gone
                waiter.set_result(None)
                self._interval += SMOOTHING * (now - self._began - self._interval)
                self._began = now
                break
        if self.line:
            self._soon(self._look)

    def _still_arriving(self, now: float) -> bool:
        turn, self._looked = now - self._looked, now
        if self._arrivals != self._seen:
            self._seen = self._arrivals
            self._quiet = 0.0
            return self._arrivals < MOST
        self._quiet += min(turn, TURN)
        return self._quiet < QUIET

    def __repr__(self) -> str:
        return f"<Gate {len(self.line)} waiting, one in {self._interval * 1000:.1f}ms>"
