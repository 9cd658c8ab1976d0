"""How long calls take, as percentiles over the last while: what a hedge waits for, and whether a retry still fits.

    record(now, seconds)    counts a call in the current window
    quantile(now, q)        over the current window and the one before: between one and two windows of history
    a window passes         the current becomes the one before, and that is forgotten

A histogram with eight buckets to every doubling. A percentile is the upper edge of its bucket: never less than the
true one and at most 9.1% more, so that a hedge meant for 2% of the calls is not sent for more of them.

Source: logarithmic buckets as in G. Tene's HdrHistogram and in DDSketch (Masson, Rim and Lee, VLDB 2019); a hedge
after a percentile: Dean and Barroso, "The Tail at Scale", 2013.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import accumulate
from operator import add

WINDOW = 30.0
"""Seconds of one window."""

MINIMUM = 20
"""Calls below which there is no history to speak of."""

_PER_DOUBLING = 8
_FIRST = 17 * _PER_DOUBLING  # from 8 us
_SIZE = _FIRST + 12 * _PER_DOUBLING  # up to 68 minutes
_LAST = _SIZE - 1
_EDGES: list[float] = [2.0 ** ((index + 1 - _FIRST) / _PER_DOUBLING) for index in range(_SIZE)]
_STALE = 32


class Latencies:
    """Latencies of calls of one kind, such as one method.

    Args:
        window: seconds of one window.
        minimum: calls within the windows below which no percentile is given.

    Percentiles may lag by 32 calls, or an eighth of the calls when that is more.
    """

    __slots__ = ("_before", "_count", "_counts", "_cumulative", "_minimum", "_stale_at", "_turn", "_window")

    def __init__(self, window: float = WINDOW, minimum: int = MINIMUM) -> None:
        self._window = window
        self._minimum = minimum
        self._before = [0] * _SIZE
        self._counts = [0] * _SIZE
        self._count = 0  # in both
        self._turn = -math.inf  # when the current window ends
        self._cumulative: list[int] = []
        self._stale_at = 0  # the count from which on `_cumulative` is made again

    def record(self, now: float, seconds: float) -> None:
        """A call that took `seconds` ended at `now` seconds."""
        if now >= self._turn:
            self._rotate(now)
        self._counts[bisect_left(_EDGES, seconds, 0, _LAST)] += 1
        self._count += 1

    def quantile(self, now: float, q: float) -> float | None:
        """Seconds within which the share `q` of calls ended, or None while there is no history.

        Args:
            now: seconds.
            q: above 0 and at most 1; 0.98 is the 98th percentile.
        """
        if now >= self._turn:
            self._rotate(now)
        count = self._count
        if count < self._minimum:
            return None
        if count >= self._stale_at:
            self._cumulative = list(accumulate(map(add, self._before, self._counts)))
            self._stale_at = count + max(_STALE, count >> 3)
        rank = math.ceil(q * self._cumulative[-1])
        return _EDGES[bisect_left(self._cumulative, rank)]

    def _rotate(self, now: float) -> None:
        late = now >= self._turn + self._window
        self._before = [0] * _SIZE if late else self._counts
        self._counts = [0] * _SIZE
        self._count = sum(self._before)
        self._turn = now + self._window if late else self._turn + self._window
        self._stale_at = 0

    def __repr__(self) -> str:
        return f"<Latencies of {self._count} calls>"
