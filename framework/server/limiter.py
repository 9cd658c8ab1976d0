"""How many calls a server works on at a time, found by how their latency answers; the rest is refused at once.

    | event                               | effect                                                                   |
    |-------------------------------------|--------------------------------------------------------------------------|
    | admit(criticality)                  | refused when in flight >= its share of the limit; else in flight + 1     |
    | end(now, seconds)                   | in flight - 1, and one more sample in the window                         |
    | end(now, seconds, expired=True)     | the same; the sample does not tell how long calls take when all is well  |
    | leave()                             | in flight - 1; how long the call took says nothing                       |
    | the window is over:                 |                                                                          |
    |   more than a tenth expired         | min(limit, most in flight) * min(gradient, 1 - share expired / 2)        |
    |   else, in flight from limit / 2 on | limit + 0.2 * (limit * gradient + 4 - limit)                             |
    |   else, slower, and more in flight  |                                                                          |
    |   than twice what did no harm       | the same, from what was in flight                                        |
    |   otherwise                         | limit unchanged: what was not used is not known to be good               |
    |   ... and always                    | from minimum to maximum                                                  |

What may be shed is admitted only where it is known to do no harm: up to a share of twice the calls that were in flight
lately while all was well, though of no less than the minimum. All else may use the limit itself, which begins high: a
server does not know at first how many calls at once are too many, and must not turn its users away to find out.

    gradient = clamp(max(1.5 * long, 0.02 s) / short, 0.5, 1)
    short    = mean latency of the window
    long     = its exponential average over 600 windows, expired calls left out; it falls by a twentieth with every
               window in which it is more than twice the short one, so that it recovers from a long overload

Source: `Gradient2Limit` of Netflix's concurrency-limits. It keeps growing while all calls end with the same timeout,
because constant latency looks healthy (its issue 137), and it does not shrink while the deadlines of the callers keep
fewer calls in flight than half of it; here expired calls lower it, from what was in flight. It also shrinks when calls
of one millisecond take two, say while another process needs the CPUs for a moment; here latency counts only from where
a refused client would have to wait as long. Shares of the limit by criticality: "Site Reliability Engineering",
chapter 21.
"""

from __future__ import annotations

import random

from framework.call import Criticality
from framework.policy import LimiterSettings

SHARES = {
    Criticality.CRITICAL_PLUS: 100,
    Criticality.CRITICAL: 95,
    Criticality.SHEDDABLE_PLUS: 60,
    Criticality.SHEDDABLE: 40,
}
"""Percent of the limit, or of what is known to do no harm, that calls in flight may have reached for one more."""

TOLERANCE = 1.5
"""Latency may be so many times the long average before the limit shrinks."""

SMOOTHING = 0.2
"""Share of a change that is made at once."""

KEPT = 0.999
"""Share of the calls known to do no harm that is still believed a window later."""

HEADROOM = 2.0
"""So many times as many calls as are known to do no harm are let in of those that may be shed."""

QUEUE = 4
"""Calls by which the limit grows when latency is well; they find out whether there is more."""

WINDOW = 0.1
"""Seconds that a window lasts at least."""

SAMPLES = 10
"""Calls that a window has at least."""

LONG = 600
"""Windows that the long average is taken over."""

WARM_UP = 10
"""Windows at the beginning whose plain mean it is."""

MAX_EXPIRED = 0.1
"""Share of expired calls in a window with which the limit does not grow."""

MIN_PUSHBACK, MAX_PUSHBACK = 0.02, 1.0
"""Seconds that a refused client is asked to stay away, jitter aside. Calls that take less than the first do not show
an overload: to refuse one would make its client wait longer than to let it in."""


class Limiter:
    """The limit of one server.

    Attributes:
        in_flight: calls admitted that have not ended.
    """

    __slots__ = (
        "_count",
        "_due",
        "_expired",
        "_expired_seconds",
        "_limit",
        "_long",
        "_peak",
        "_proven",
        "_random",
        "_rooms",
        "_seconds",
        "_settings",
        "_short",
        "_windows",
        "in_flight",
    )

    def __init__(self, settings: LimiterSettings, rng: random.Random) -> None:
        self._settings = settings
        self._random = rng.random
        self.in_flight = 0
        self._limit = float(settings.initial)
        self._proven = 0.0  # calls in flight at which all was well, lately
        self._rooms = _rooms(settings.initial, settings.minimum)
        self._long = self._short = 0.0
        self._windows = 0  # that `_long` is made of, as far as that matters
        self._peak = 0  # most calls in flight in this window
        self._count = self._expired = 0  # calls of this window that ended in time, and that did not
        self._seconds = self._expired_seconds = 0.0  # what they took
        self._due = 0.0  # this window may end

    @property
    def limit(self) -> int:
        """Calls that the server works on at a time now."""
        return int(self._limit)

    def admit(self, criticality: Criticality) -> bool:
        """Let a call in, which is then ended with `end` or `leave` exactly once; False when it must be refused."""
        in_flight = self.in_flight
        if in_flight >= self._rooms[criticality]:
            return False
        self.in_flight = in_flight = in_flight + 1
        if in_flight > self._peak:
            self._peak = in_flight
        return True

    def end(self, now: float, seconds: float, *, expired: bool = False) -> None:
        """An admitted call has ended.

        Args:
            now: seconds.
            seconds: how long it took.
            expired: its deadline passed, or that of a call it waited for, so that it might have taken longer.
        """
        self.in_flight -= 1
        if expired:
            self._expired += 1
            self._expired_seconds += seconds
        else:
            self._count += 1
            self._seconds += seconds
        if now >= self._due and self._count + self._expired >= SAMPLES:
            self._update()
            self._due = now + WINDOW
            self._peak = self.in_flight
            self._count = self._expired = 0
            self._seconds = self._expired_seconds = 0.0

    def leave(self) -> None:
        """An admitted call has ended whose duration says nothing: cancelled, or failed before any work."""
        self.in_flight -= 1

    def pushback(self) -> float:
        """Seconds after which a client that was refused may come back: about one call's latency later, jittered.

        The jitter is added here, since clients wait exactly as long as they are told (gRFC A6).
        """
        return min(max(self._short, MIN_PUSHBACK), MAX_PUSHBACK) * (0.8 + 0.4 * self._random())

    def _update(self) -> None:
        if self._count:
            self._learn(self._seconds / self._count)
        count = self._count + self._expired
        self._short = short = (self._seconds + self._expired_seconds) / count
        limit = self._limit
        tolerable = max(TOLERANCE * self._long, MIN_PUSHBACK)
        gradient = max(0.5, min(1.0, tolerable / short)) if short and self._windows else 1.0
        if self._expired > MAX_EXPIRED * count:
            gradient = min(gradient, 1.0 - self._expired / count / 2)
            limit = min(limit, float(self._peak)) * gradient
        elif self._peak >= limit / 2 or (gradient < 1.0 and self._peak > HEADROOM * self._proven):
            limit = limit if self._peak >= limit / 2 else float(self._peak)
            limit += SMOOTHING * (limit * gradient + QUEUE - limit)
        minimum = float(self._settings.minimum)
        self._limit = limit = max(minimum, min(float(self._settings.maximum), limit))
        self._proven = max(self._proven * KEPT, float(self._peak)) if gradient == 1.0 else self._proven * gradient
        self._rooms = _rooms(limit, max(minimum, min(limit, HEADROOM * self._proven)))

    def _learn(self, seconds: float) -> None:
        if self._windows < WARM_UP:
            self._windows += 1
            self._long += (seconds - self._long) / self._windows
        else:
            self._long += (seconds - self._long) * 2 / (LONG + 1)
        if self._long > 2 * seconds:
            self._long *= 0.95

    def __repr__(self) -> str:
        return (
            f"<Limiter {self.in_flight} of {self.limit} in flight,"
            f" short={self._short * 1000:.1f}ms long={self._long * 1000:.1f}ms>"
        )


def _rooms(limit: float, careful: float) -> tuple[int, ...]:
    """By criticality, how many calls in flight leave room for one more."""
    of = {Criticality.CRITICAL_PLUS: limit, Criticality.CRITICAL: limit}
    return tuple(max(1, int(of.get(level, careful) * SHARES[level] / 100)) for level in Criticality)
