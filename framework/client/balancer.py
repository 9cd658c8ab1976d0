"""Which endpoint gets the next call. Pure: endpoints in, one out, with the time and the randomness given.

Each pick is O(1). While not every endpoint is ready, a pick also looks at one of all, and lets it connect.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol

from framework.client.endpoint import Endpoint
from framework.policy import BalancerName

FORGOTTEN = 1.0
"""Seconds after which an endpoint that loses every comparison is picked once, to learn whether it has recovered."""

MOST_DOUBLINGS = 4
"""Failures in a row of which each doubles them."""


class Balancer(Protocol):
    """Picks among endpoints that are ready. One that it looks at and finds idle starts to connect."""

    def pick(self, endpoints: Sequence[Endpoint], ready: Sequence[Endpoint], now: float) -> Endpoint | None:
        """The endpoint for the next call, or None while none is ready.

        Args:
            endpoints: all of them, at least one.
            ready: those of them that are available.
            now: the loop's clock in seconds.
        """

    def changed(self) -> None:
        """Which endpoints are ready, or their weights, is not as it was."""


class PeakEwma:
    """Power of two choices over peak-EWMA cost."""

    def __init__(self, rng: random.Random) -> None:
        self._random = rng.random

    def pick(self, endpoints: Sequence[Endpoint], ready: Sequence[Endpoint], now: float) -> Endpoint | None:
        count = len(ready)
        if count < len(endpoints):
            _wake(endpoints[int(self._random() * len(endpoints))])
        if count < 2:
            return ready[0] if count else None
        first = int(self._random() * count)
        second = int(self._random() * (count - 1))
        a, b = ready[first], ready[second + (second >= first)]
        if a.cost(now) > b.cost(now):
            a, b = b, a
        if b.last_pick + FORGOTTEN < now and b.pending == 0 and not _lately_failed(b, now):
            return b
        return a

    def changed(self) -> None:
        pass


class LeastLoaded:
    """Power of two choices over the calls in flight."""

    def __init__(self, rng: random.Random) -> None:
        self._random = rng.random

    def pick(self, endpoints: Sequence[Endpoint], ready: Sequence[Endpoint], now: float) -> Endpoint | None:
        count = len(ready)
        if count < len(endpoints):
            _wake(endpoints[int(self._random() * len(endpoints))])
        if count < 2:
            return ready[0] if count else None
        first = int(self._random() * count)
        second = int(self._random() * (count - 1))
        a, b = ready[first], ready[second + (second >= first)]
        return a if a.pending <= b.pending else b

    def changed(self) -> None:
        pass


class RoundRobin:
    """One ready endpoint after the other."""

    def __init__(self, rng: random.Random) -> None:
        self._next = self._look = rng.randrange(1 << 16)

    def pick(self, endpoints: Sequence[Endpoint], ready: Sequence[Endpoint], now: float) -> Endpoint | None:
        if len(ready) < len(endpoints):
            self._look += 1
            _wake(endpoints[self._look % len(endpoints)])
        if not ready:
            return None
        self._next += 1
        return ready[self._next % len(ready)]

    def changed(self) -> None:
        pass


class Weighted:
    """At random by the weights of the instances, whatever the load. Source: the alias method of Walker and Vose."""

    def __init__(self, rng: random.Random) -> None:
        self._random = rng.random
        self._of: Sequence[Endpoint] = ()
        self._shares: list[float] = []
        self._others: list[int] = []

    def pick(self, endpoints: Sequence[Endpoint], ready: Sequence[Endpoint], now: float) -> Endpoint | None:
        if len(ready) < len(endpoints):
            _wake(endpoints[int(self._random() * len(endpoints))])
        if not ready:
            return None
        if self._of is not ready or len(self._shares) != len(ready):
            self._of = ready
            self._shares, self._others = _aliases([endpoint.instance.weight for endpoint in ready])
        where = self._random() * len(ready)
        index = int(where)
        return ready[index if where - index < self._shares[index] else self._others[index]]

    def changed(self) -> None:
        self._shares = []


def _aliases(weights: Sequence[float]) -> tuple[list[float], list[int]]:
    """By index, the share of its draws that it keeps, and who gets the others."""
    mean = sum(weights) / len(weights)
    left = [weight / mean for weight in weights]
    shares = [1.0] * len(left)
    others = list(range(len(left)))
    small = [index for index, share in enumerate(left) if share < 1.0]
    large = [index for index, share in enumerate(left) if share >= 1.0]
    while small and large:
        poor, rich = small.pop(), large[-1]
        shares[poor], others[poor] = left[poor], rich
        left[rich] -= 1.0 - left[poor]
        if left[rich] < 1.0:
            small.append(large.pop())
    return shares, others


def _lately_failed(endpoint: Endpoint, now: float) -> bool:
    """Every failure in a row doubles the time after which it is tried again: each try may cost a call."""
    return endpoint.last_pick + FORGOTTEN * 2.0 ** min(endpoint.breaker.row, MOST_DOUBLINGS) >= now


def _wake(endpoint: Endpoint) -> None:
    if not endpoint.available:
        endpoint.transport.connect()


BALANCERS: dict[BalancerName, Callable[[random.Random], Balancer]] = {
    "peak_ewma": PeakEwma,
    "least_loaded": LeastLoaded,
    "round_robin": RoundRobin,
    "weighted": Weighted,
}
