"""One instance of a service, and all that a client knows of it: load, latency, and what is held against it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any, Protocol

from framework.call import Handler, Method, Outcome
from framework.client.breaker import Begun, Breaker, Treatment
from framework.client.outlier import Host
from framework.discovery import Instance
from framework.errors import Code
from framework.policy import FAILURES, BreakerSettings

TAU = 10.0
"""Seconds in which the weight of an old latency falls to 1/e."""

UNKNOWN_COST = 1e9
"""Seconds that an endpoint costs which has calls but no answer yet: it gets one probe, not a crowd."""

DEARER = FAILURES | {Code.RESOURCE_EXHAUSTED}
"""Codes that an endpoint answers for: they cost the patience of the caller."""

_SUCCESS, _FAILURE, _UNANSWERED = Treatment.SUCCESS, Treatment.FAILURE, Treatment.UNANSWERED


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

    @property
    def problem(self) -> str:
        """Why it cannot connect, as far as that is known."""

    @property
    def outdated(self) -> bool:
        """A new one would connect with other certificates."""

    def bind(self, method: Method[Any, Any]) -> Handler:
        """The handler of a method over this transport."""

    def connect(self) -> None:
        """Start to connect when it is idle; does not wait."""

    async def aclose(self) -> None:
        """Close; calls in flight are cancelled."""


class Endpoint:
    """One instance, and what is known of it.

    The cost is the peak-EWMA of latency times the calls in flight and one more: a latency above the average replaces
    it at once, better ones win slowly. Source: Finagle's PeakEwma; P2C: Mitzenmacher, "The Power of Two Choices".

    Attributes:
        instance: what the registry says of it.
        transport: the way to it.
        breaker, host: what is held against it: its own failures, and doing worse than the others.
        available: it may be picked and a call would leave at once; kept here by the pool, since a pick looks at
            nothing else.
        handlers: of the methods that were bound on it.
        pending: calls in flight.
        last_pick: when it was picked last, on the loop's clock in seconds.
        picks: how often it was.
        retired: the registry does not have it any more.
    """

    __slots__ = (
        "_ewma",
        "_stamp",
        "available",
        "breaker",
        "handlers",
        "host",
        "instance",
        "last_pick",
        "pending",
        "picks",
        "retired",
        "transport",
    )

    def __init__(self, instance: Instance, transport: Transport, breaker: Breaker | None = None) -> None:
        self.instance = instance
        self.transport = transport
        self.breaker = breaker or Breaker(BreakerSettings(), random.Random())
        self.host = Host()
        self.available = transport.ready
        self.pending = 0
        self.picks = 0
        self.last_pick = 0.0
        self.retired = False
        self._ewma = 0.0
        self._stamp = 0.0
        self.handlers: dict[Method[Any, Any], Handler] = {}

    def over(self, transport: Transport) -> Endpoint:
        """The same instance over another transport, with all that is known of it."""
        fresh = Endpoint(self.instance, transport, self.breaker)
        fresh.host, fresh.last_pick = self.host, self.last_pick
        fresh._ewma, fresh._stamp = self._ewma, self._stamp
        fresh.picks, self.picks = self.picks, 0
        return fresh

    def bind(self, method: Method[Any, Any]) -> Handler:
        """The handler of a method on this endpoint."""
        handler = self.handlers.get(method)
        if handler is None:
            handler = self.handlers[method] = self.transport.bind(method)
        return handler

    @property
    def latency(self) -> float:
        """Seconds that its calls take lately; 0 while none has ended."""
        return self._ewma

    def healthy(self, now: float) -> bool:
        """Whether neither its breaker nor an ejection speaks against it."""
        return not self.host.ejected and self.breaker.available(now)

    def cost(self, now: float) -> float:
        """Expected seconds of one more call."""
        if self._ewma == 0.0:
            return UNKNOWN_COST if self.pending else 0.0
        return self._ewma * math.exp((self._stamp - now) / TAU) * (self.pending + 1)

    def begin(self, now: float) -> int:
        """A call starts here: the permit to end it with, or 0 when its breaker is not closed and must be asked."""
        self.pending += 1
        self.picks += 1
        self.last_pick = now
        breaker = self.breaker
        return breaker.generation if breaker.closed else 0

    def answered(self, now: float, permit: int, latency: float) -> None:
        """A call was answered with OK after `latency` seconds, and has ended."""
        self.pending -= 1
        self.host.successes += 1
        self.breaker.end(now, permit, _SUCCESS, latency)
        weight = math.exp((self._stamp - now) / TAU)  # as `observe` does; every call comes here
        self._stamp = now
        if latency < self._ewma:
            latency = self._ewma * weight + latency * (1.0 - weight)
        self._ewma = latency if latency > 1e-9 else 1e-9

    def began(self, now: float, permit: int, latency: float) -> Begun:
        """A stream has begun after `latency` seconds: all is well so far, and it is in flight until `ended`."""
        self.observe(now, latency)
        self.host.successes += 1
        return self.breaker.begun(now, permit, latency)

    def ended(self) -> None:
        """A stream that had begun has ended with OK."""
        self.pending -= 1

    def broke(
        self, now: float, stream: Begun, latency: float, outcome: Outcome, treatment: Treatment, patience: float
    ) -> None:
        """A stream that had begun has ended, and not with OK: as `failed`."""
        self.pending -= 1
        if outcome.sent:
            self.observe_failure(now, latency, outcome.code, outcome.remote, patience)
        if treatment is _FAILURE:
            self.host.failures += 1
        if self.breaker.broke(now, stream, treatment) and self.host.successes:
            self.host.successes -= 1

    def failed(
        self, now: float, permit: int, latency: float, outcome: Outcome, treatment: Treatment, patience: float
    ) -> None:
        """A call has ended, and not with OK.

        Args:
            treatment: what that says about the endpoint.
            patience: seconds that a failure counts as, so that one that fails at once does not look fast.
        """
        self.pending -= 1
        if treatment is _UNANSWERED:
            self.observe(now, latency)  # it would have taken longer
        if outcome.sent:
            self.observe_failure(now, latency, outcome.code, outcome.remote, patience)
        if treatment is _FAILURE:
            self.host.failures += 1
        elif treatment is _SUCCESS:
            self.host.successes += 1
        self.breaker.end(now, permit, treatment, latency)

    def observe(self, now: float, latency: float) -> None:
        """A call took `latency` seconds, or longer than that."""
        weight = math.exp((self._stamp - now) / TAU)
        self._stamp = now
        if latency < self._ewma:
            latency = self._ewma * weight + latency * (1.0 - weight)
        self._ewma = max(latency, 1e-9)

    def observe_failure(self, now: float, latency: float, code: Code, remote: bool, patience: float) -> None:
        """A call failed; one that the endpoint answers for counts as if it had taken all the patience of the caller.

        Otherwise an instance that fails at once would look fast and draw all traffic.
        """
        if remote:
            self.observe(now, max(latency, patience) if code in DEARER else latency)
        elif code in FAILURES or code is Code.DEADLINE_EXCEEDED:
            self.observe(now, max(latency, patience))

    def __repr__(self) -> str:
        state = "ready" if self.transport.ready else "failed" if self.transport.failed else "idle"
        return f"<Endpoint {self.instance.address} {state} pending={self.pending} ewma={self._ewma * 1000:.1f}ms>"
