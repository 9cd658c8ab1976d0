"""A circuit breaker: takes one endpoint out of the pick while it fails, and lets a few probes find out when it is back.

    | state     | event                                                      | next state                              |
    |-----------|------------------------------------------------------------|-----------------------------------------|
    | CLOSED    | `consecutive` failures, or calls without an answer, in a row | OPEN                                  |
    | CLOSED    | `failure_rate` of at least `minimum` calls failed          | OPEN                                    |
    | CLOSED    | `slow_rate` of at least `minimum` calls took `slow`        | OPEN                                    |
    | OPEN      | its wait is over, and a call begins: a probe               | HALF_OPEN                               |
    | HALF_OPEN | a probe fails, or takes `slow`                             | OPEN, for twice as long                 |
    | HALF_OPEN | a probe is still out `probe_wait` after it began           | OPEN, for twice as long                 |
    | HALF_OPEN | a probe is ignored                                         | HALF_OPEN, its permit is free again     |
    | HALF_OPEN | `probes` have succeeded                                    | CLOSED, with nothing remembered         |
    | any       | a stream begins: its response headers have arrived         | as of a call that has succeeded         |
    | CLOSED    | a stream fails that had begun                              | its beginning was no success, but a     |
    |           |                                                            | failure                                 |
    | any       | a call ends that began in an earlier state, or uncounted   | the same; the call is ignored           |

OPEN lasts half + U(0, half) with half = open * 2^n and never more than `open_max`; n counts the openings since the
endpoint was last well. Time passes without a timer: whoever asks next sees what has become due.

A server that has stopped answering fails no call: its callers give up. So a call that was given up here, by a deadline
or because another endpoint was faster, when it had taken longer than nearly every call does, is one more in the row.

Sources: Finagle's `FailureAccrualFactory` and `Backoff.equalJittered`, resilience4j's `CircuitBreaker` (rates, permits,
the longest time half open), Linkerd's unified breaker; counted per endpoint, never per service.
"""

from __future__ import annotations

import enum
import math
import random
from typing import Final, NamedTuple

from framework.call import Outcome
from framework.errors import Code
from framework.policy import FAILURES, BreakerSettings

BUCKETS = 10
"""Parts of the window that are forgotten one by one."""

_NO_MARKS = [(0, 0, 0)] * BUCKETS

UNCOUNTED: Final = 0
"""The permit of a call made although the breaker is open, because there was no better endpoint."""


class Treatment(enum.Enum):
    """What the end of a call says about its endpoint."""

    SUCCESS = "success"
    FAILURE = "failure"
    RATE_ONLY = "rate only"
    IGNORED = "ignored"
    UNANSWERED = "unanswered"


_TREATMENTS = [Treatment.SUCCESS] * len(Code)
for _code in FAILURES:
    _TREATMENTS[_code] = Treatment.FAILURE
_TREATMENTS[Code.RESOURCE_EXHAUSTED] = Treatment.RATE_ONLY


def treatment(
    outcome: Outcome, *, own_timeout: bool = False, locally_made: bool = False, overdue: bool = False
) -> Treatment:
    """What an outcome says about the endpoint that was called.

        FAILURE     UNAVAILABLE, INTERNAL, UNKNOWN, DATA_LOSS; DEADLINE_EXCEEDED when our own timer fired
        RATE_ONLY   RESOURCE_EXHAUSTED: part of the failure rate, but never of a row of failures
        IGNORED     CANCELLED and losers of a hedge; what this process made itself; a deadline not the attempt's own
        UNANSWERED  given up here, by whomever, long after nearly every call has its answer: part of a row of failures
        SUCCESS     everything else: the endpoint answered

    Args:
        outcome: how the attempt ended.
        own_timeout: the timer of this attempt ended it.
        locally_made: this process made the failure (no endpoint, breaker open, shed, bulkhead), not the endpoint.
        overdue: the attempt had taken longer than nearly every one that is answered.
    """
    if locally_made:
        return Treatment.IGNORED
    code = outcome.code
    if code is Code.DEADLINE_EXCEEDED and own_timeout:
        return Treatment.FAILURE
    if code is Code.DEADLINE_EXCEEDED and outcome.remote:
        return Treatment.SUCCESS
    if code is Code.DEADLINE_EXCEEDED or code is Code.CANCELLED:
        return Treatment.UNANSWERED if overdue and not outcome.remote else Treatment.IGNORED
    return _TREATMENTS[code]


class Begun(NamedTuple):
    """What is remembered of a stream that has begun, to take back that it was a success.

    Attributes:
        permit: of the state that it counts in, for better or worse.
        row: failures in a row before it.
        successes: those that had been counted then, with its own.
        until: when its beginning is forgotten, in seconds.
    """

    permit: int
    row: int
    successes: int
    until: float


class State(enum.Enum):
    """What a breaker does with its endpoint."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half open"


# A member of an enum costs more to look up than a global, and every call does.
_CLOSED, _OPEN, _HALF_OPEN = State
_SUCCESS, _FAILURE, _, _IGNORED, _UNANSWERED = Treatment


class Breaker:
    """The breaker of one endpoint. Whoever picks asks `available`; every call made is begun and ended.

    Attributes:
        closed: all is well; a plain attribute, since every call looks at it.
        row: failures, and calls without an answer, since the last success.
        generation: another number in every state that it enters; the permit of a call that counts in this one.
        reason: why it opened last, for people.
        entered: how often it has entered each state.
    """

    __slots__ = (
        "_bucket",
        "_buckets_per_second",
        "_calls",
        "_calls_before",
        "_failures",
        "_failures_before",
        "_give_up",
        "_half",
        "_marks",
        "_permits",
        "_random",
        "_retracted",
        "_settings",
        "_slow",
        "_slows",
        "_slows_before",
        "_state",
        "_turn",
        "_until",
        "_wanted",
        "closed",
        "entered",
        "generation",
        "reason",
        "row",
    )

    def __init__(self, settings: BreakerSettings, rng: random.Random) -> None:
        self._random = rng.random
        self.entered = dict.fromkeys(State, 0)
        self._state = _CLOSED
        self.generation = UNCOUNTED
        self.row = 0  # CLOSED: failures since the last success
        self._retracted = 0  # CLOSED: of the failures, those that had been counted as a success
        self._calls = self._failures = self._slows = 0  # CLOSED: since it is
        self._calls_before = self._failures_before = self._slows_before = 0  # of them, before the window
        self._marks = _NO_MARKS  # of them, before each bucket of the window
        self.configure(settings)
        self.reason = ""
        self._until = 0.0  # OPEN: the wait ends
        self._give_up = math.inf  # HALF_OPEN: probes that are out have failed
        self._permits = 0  # HALF_OPEN: probes that may begin
        self._wanted = 0  # HALF_OPEN: probes that must still succeed, begun or not
        self._enter(_CLOSED)
        self.entered[_CLOSED] = 0  # it began there

    def configure(self, settings: BreakerSettings) -> None:
        """Go by other settings from now on: in the same state, with the counts of the window begun anew."""
        self._settings = settings
        if self._state is _CLOSED:  # else how often it has opened stays known
            self._half = settings.open
        self._slow = math.inf if settings.slow is None else settings.slow
        self._buckets_per_second = BUCKETS / settings.window
        self._bucket = 0
        self._turn = 1 / self._buckets_per_second  # the bucket ends
        self._clear()

    def state(self, now: float) -> State:
        """The state at `now` seconds."""
        if now >= self._give_up:
            self._open(self._give_up, f"no answer to a probe within {self._settings.probe_wait:g}s")
        return self._state

    @property
    def latest(self) -> State:
        """The state that the last call saw; looking does not change it, as `state` may."""
        return self._state

    def due(self) -> float:
        """The moment at which it changes by itself, in seconds; math.inf when only a call can change it."""
        if self._state is _OPEN:
            return self._until
        return self._give_up

    def available(self, now: float) -> bool:
        """Whether a call begun at `now` seconds would be let through."""
        state = self._state
        if state is _CLOSED:
            return True
        if state is _HALF_OPEN:
            state = self.state(now)
        return now >= self._until if state is _OPEN else self._permits > 0

    def begin(self, now: float) -> int:
        """A call begins at `now` seconds; the permit it must be ended with. UNCOUNTED when it is not `available`."""
        if self._state is _CLOSED:
            return self.generation
        if not self.available(now):
            return UNCOUNTED
        if self._state is _OPEN:
            self._enter(_HALF_OPEN)
        if self._permits == self._wanted:
            self._give_up = now + self._settings.probe_wait
        self._permits -= 1
        return self.generation

    def end(self, now: float, permit: int, treatment: Treatment, duration: float) -> None:
        """A call has ended at `now` seconds, `duration` seconds after it began; exactly once for every `begin`."""
        if self._state is not _CLOSED:
            self._probed(now, permit, treatment, duration)
            return
        if permit != self.generation or treatment is _IGNORED:
            return
        if treatment is _UNANSWERED:
            self.row += 1
            self._in_a_row(now, "calls in a row failed or had no answer")
            return
        if now >= self._turn:
            self._forget(int(now * self._buckets_per_second))
        self._calls += 1
        if duration >= self._slow:
            self._slows += 1
        if treatment is _SUCCESS:
            self.row = 0
        else:
            self._failures += 1
            if treatment is _FAILURE:
                self.row += 1
                if self._in_a_row(now, "failures in a row"):
                    return
        calls = self._calls - self._calls_before
        if calls >= self._settings.minimum:
            self._judge(now, calls, self._failures - self._failures_before, self._slows - self._slows_before)

    def begun(self, now: float, permit: int, duration: float) -> Begun:
        """A stream has begun, `duration` seconds after the call did: a success, though it may go on for hours.

        Its call is ended by this; `broke` tells of a failure later on.
        """
        counted, row = permit == self.generation, self.row
        self.end(now, permit, _SUCCESS, duration)
        until = now + self._settings.window
        return Begun(self.generation if counted else UNCOUNTED, row, self._succeeded(), until)

    def broke(self, now: float, stream: Begun, treatment: Treatment) -> bool:
        """A stream that had begun has ended, and not well; whether that takes back a success that still counts."""
        if treatment is _IGNORED or treatment is _SUCCESS or stream.permit != self.generation:
            return False
        if self._state is not _CLOSED:
            if self.state(now) is _HALF_OPEN and stream.permit == self.generation:
                self._open(now, "a probe failed")
            return False
        if now >= self._turn:
            self._forget(int(now * self._buckets_per_second))
        if self._succeeded() == stream.successes:
            self.row += stream.row  # none since: as if it had never ended the row
        self._failures += 1
        recent = now < stream.until
        if recent:
            self._retracted += 1
        else:
            self._calls += 1
        if treatment is _FAILURE:
            self.row += 1
        if self._in_a_row(now, "failures in a row"):
            return recent
        calls = self._calls - self._calls_before
        if calls >= self._settings.minimum:
            self._judge(now, calls, self._failures - self._failures_before, self._slows - self._slows_before)
        return recent

    def _succeeded(self) -> int:
        return self._calls - self._failures + self._retracted

    def _in_a_row(self, now: float, what: str) -> bool:
        if not 0 < self._settings.consecutive <= self.row:
            return False
        self._open(now, f"{self.row} {what}")
        return True

    def _judge(self, now: float, calls: int, failures: int, slows: int) -> None:
        settings = self._settings
        if failures and 0 < settings.failure_rate * calls <= failures:
            self._open(now, f"{failures} of {calls} calls within {settings.window:g}s failed")
        elif slows and settings.slow_rate * calls <= slows:
            self._open(now, f"{slows} of {calls} calls within {settings.window:g}s took {self._slow:g}s or more")

    def _probed(self, now: float, permit: int, treatment: Treatment, duration: float) -> None:
        if self.state(now) is not _HALF_OPEN or permit != self.generation:
            return
        if treatment is _IGNORED:
            self._permits += 1
        elif treatment is not _SUCCESS:
            self._open(now, "a probe failed")
            return
        elif duration >= self._slow:
            self._open(now, f"a probe took {self._slow:g}s or more")
            return
        else:
            self._wanted -= 1
            if self._wanted == 0:
                self._half = self._settings.open
                self._enter(_CLOSED)
                return
        if self._permits == self._wanted:
            self._give_up = math.inf  # none is out

    def _open(self, now: float, reason: str) -> None:
        half = min(self._half, self._settings.open_max / 2)
        self._half = 2 * half
        self._until = now + half + half * self._random()
        self.reason = reason
        self._enter(_OPEN)

    def _enter(self, state: State) -> None:
        self._state = state
        self.entered[state] += 1
        self.closed = state is _CLOSED
        self.generation += 1
        self._give_up = math.inf
        self._permits = self._wanted = self._settings.probes
        self._clear()

    def _clear(self) -> None:
        self.row = self._calls = self._failures = self._slows = self._retracted = 0
        self._calls_before = self._failures_before = self._slows_before = 0
        self._marks = _NO_MARKS.copy()

    def _forget(self, bucket: int) -> None:
        mark = (self._calls, self._failures, self._slows)
        for begun in range(max(self._bucket, bucket - BUCKETS) + 1, bucket + 1):
            self._marks[begun % BUCKETS] = mark
        self._bucket = bucket
        self._turn = (bucket + 1) / self._buckets_per_second
        self._calls_before, self._failures_before, self._slows_before = self._marks[(bucket + 1) % BUCKETS]

    def __repr__(self) -> str:
        if self._state is _CLOSED:
            calls, failures = self._calls - self._calls_before, self._failures - self._failures_before
            return f"<Breaker closed: {failures} of {calls} failed, {self.row} in a row>"
        if self._state is _OPEN:
            return f"<Breaker open until {self._until:.3f}: {self.reason}>"
        return f"<Breaker half open: {self._wanted - self._permits} probes out, {self._wanted} to succeed>"
