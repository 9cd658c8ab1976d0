"""Which endpoint gets the next call. Pure: endpoints in, one out, with the time and the randomness given."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from framework.call import Handler, Method
from framework.discovery import Instance
from framework.errors import Code
from framework.policy import BalancerName

TAU = 10.0
"""Seconds in which the weight of an old latency falls to 1/e."""

UNKNOWN_COST = 1e9
"""Seconds that an endpoint costs which has calls but no answer yet: it gets one probe, not a crowd."""

FORGOTTEN = 1.0
"""Seconds after which an endpoint that loses every comparison is picked once, to learn whether it has recovered."""

FAILURES = frozenset({Code.UNAVAILABLE, Code.INTERNAL, Code.UNKNOWN, Code.DATA_LOSS, Code.RESOURCE_EXHAUSTED})
"""Codes that an endpoint answers for."""


class Transport(Protocol):
    """The way to one instance: grpc.aio, or memory in tests."""

    changed: Callable[[], None]
    """Called after `ready` or `failed` has changed; whoever owns the transport sets it."""

    @property
    def ready(self) -> bool:
        """A call given to it now leaves at once."""

    @property
    def failed(self) -> bool:
        """The last attempt to connect failed, and the next is not due yet."""

    def bind(self, method: Method[Any, Any]) -> Handler:
        """The handler of a method over this transport."""

    def connect(self) -> None:
        """Start to connect when it is idle; does not wait."""

    async def aclose(self) -> None:
        """Close; calls in flight are cancelled."""


class Endpoint:
    """One instance, and what a balancer knows of it.

    The cost is the peak-EWMA of latency times the calls in flight and one more: a latency above the average replaces
    it at once, better ones win slowly. Source: Finagle's PeakEwma; P2C: Mitzenmacher, "The Power of Two Choices".

    Attributes:
        instance: what the registry says of it.
        transport: the way to it.
        available: a call would leave at once; kept here by the pool, since a pick looks at nothing else.
        pending: calls in flight.
        last_pick: when it was picked last, on the loop's clock in seconds.
        retired: the registry does not have it any more.
    """

    __slots__ = ("_bound", "_ewma", "_stamp", "available", "instance", "last_pick", "pending", "retired", "transport")

    def __init__(self, instance: Instance, transport: Transport) -> None:
        self.instance = instance
        self.transport = transport
        self.available = transport.ready
        self.pending = 0
        self.last_pick = 0.0
        self.retired = False
        self._ewma = 0.0
        self._stamp = 0.0
        self._bound: dict[Method[Any, Any], Handler] = {}

    def bind(self, method: Method[Any, Any]) -> Handler:
        """The handler of a method on this endpoint."""
        handler = self._bound.get(method)
        if handler is None:
            handler = self._bound[method] = self.transport.bind(method)
        return handler

    def cost(self, now: float) -> float:
        """Expected seconds of one more call."""
        if self._ewma == 0.0:
            return UNKNOWN_COST if self.pending else 0.0
        return self._ewma * math.exp((self._stamp - now) / TAU) * (self.pending + 1)

    def begin(self, now: float) -> None:
        """A call starts here."""
        self.pending += 1
        self.last_pick = now

    def observe(self, now: float, latency: float) -> None:
        """A call was answered after `latency` seconds."""
        weight = math.exp((self._stamp - now) / TAU)
        self._stamp = now
        if latency < self._ewma:
            latency = self._ewma * weight + latency * (1.0 - weight)
        self._ewma = max(latency, 1e-9)

    def observe_failure(self, now: float, latency: float, code: Code, remote: bool, patience: float) -> None:
        """A call failed; one that the endpoint answers for counts as if it had taken all the patience of the caller.

        Otherwise an instance that fails at once would look fast and draw all traffic.
        """
        if code in FAILURES or (code is Code.DEADLINE_EXCEEDED and not remote):
            self.observe(now, max(latency, patience))
        elif remote:
            self.observe(now, latency)

    def __repr__(self) -> str:
        state = "ready" if self.transport.ready else "failed" if self.transport.failed else "idle"
        return f"<Endpoint {self.instance.address} {state} pending={self.pending} ewma={self._ewma * 1000:.1f}ms>"


class Balancer(Protocol):
    """Picks among endpoints that are ready. One that it looks at and finds idle starts to connect."""

    def pick(self, endpoints: Sequence[Endpoint], ready: Sequence[Endpoint], now: float) -> Endpoint | None:
        """The endpoint for the next call, or None while none is ready.

        Args:
            endpoints: all of them, at least one.
            ready: those of them that are available.
            now: the loop's clock in seconds.
        """


class PeakEwma:
    """Power of two choices over peak-EWMA cost."""

    def __init__(self, rng: random.Random) -> None:
        self._random = rng.random

    def pick(self, endpoints: Sequence[Endpoint], ready: Sequence[Endpoint], now: float) -> Endpoint | None:
        count = len(endpoints)
        if count == 1:
            return _wake(endpoints[0])
        first = int(self._random() * count)
        second = int(self._random() * (count - 1))
        a, b = endpoints[first], endpoints[second + (second >= first)]
        if not (a.available and b.available):
            only = _wake(a) or _wake(b)
            _wake(b)
            return only or (self.pick(ready, ready, now) if ready else None)
        if a.cost(now) > b.cost(now):
            a, b = b, a
        return b if b.last_pick + FORGOTTEN < now and b.pending == 0 else a


class RoundRobin:
    """One ready endpoint after the other; the others are looked at in turn."""

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


def _wake(endpoint: Endpoint) -> Endpoint | None:
    """The endpoint when it is available; it starts to connect otherwise."""
    if endpoint.available:
        return endpoint
    endpoint.transport.connect()
    return None


BALANCERS: dict[BalancerName, Callable[[random.Random], Balancer]] = {"peak_ewma": PeakEwma, "round_robin": RoundRobin}
