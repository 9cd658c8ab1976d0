"""A balancer at work in simulated time: many calls on servers of a known speed, without a loop or a network."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from framework import Call, Handler, Instance, Method, RpcError, Unavailable
from framework.client.balancer import Balancer
from framework.client.endpoint import Endpoint


async def _echo(call: Call) -> Any:
    return call.request


class FakeTransport:
    """A transport that is in the state the test says, and counts the wishes to connect.

    Attributes:
        problem: why it has failed.
        outdated: another one would have other certificates.
        answer: what becomes of a call on it.
        on_connect: what a wish to connect leads to.
    """

    def __init__(self, *, ready: bool = True, failed: bool = False) -> None:
        self.ready = ready
        self.failed = failed
        self.problem = ""
        self.outdated = False
        self.connects = 0
        self.closed = False
        self.changed: Callable[[], None] = lambda: None
        self.answer: Handler = _echo
        self.on_connect: Callable[[FakeTransport], None] = lambda transport: None

    def bind(self, method: Method[Any, Any]) -> Handler:
        return lambda call: self.answer(call)

    def connect(self) -> None:
        self.connects += 1
        self.on_connect(self)

    async def aclose(self) -> None:
        self.closed = True

    def become(self, *, ready: bool = False, failed: bool = False) -> None:
        """Change the state, and say so."""
        self.ready, self.failed = ready, failed
        self.changed()


def endpoint(name: str, *, ready: bool = True) -> Endpoint:
    """An endpoint of its own transport."""
    return Endpoint(Instance(name, "catalog", f"{name}:1"), FakeTransport(ready=ready))


def endpoints(count: int) -> list[Endpoint]:
    return [endpoint(f"e{number}") for number in range(count)]


Answer = Callable[[random.Random], tuple[float, RpcError | None]]
"""What a server does with a call: seconds it takes, and how it fails, if it does."""


def takes(seconds: float) -> Answer:
    """Answers after about this time."""
    return lambda rng: (seconds * rng.uniform(0.7, 1.3), None)


def fails(seconds: float) -> Answer:
    """Fails after this time."""
    return lambda rng: (seconds, Unavailable("broken", remote=True))


def never() -> Answer:
    """Does not answer."""
    return lambda rng: (float("inf"), None)


def pick(balancer: Balancer, targets: Sequence[Endpoint], now: float) -> Endpoint:
    """The pick among endpoints that are all ready."""
    found = balancer.pick(targets, targets, now)
    assert found is not None
    return found


def simulate(
    balancer: Balancer,
    targets: Sequence[Endpoint],
    answers: dict[str, Answer],
    *,
    calls: int,
    rate: float,
    rng: random.Random,
    patience: float = 1.0,
) -> tuple[Counter[str], dict[str, float]]:
    """Calls arrive at random at a rate; returns how many each endpoint got, and the mean number in flight on each."""
    start = now = last = max(target.last_pick for target in targets)
    picks: Counter[str] = Counter()
    load: dict[str, float] = dict.fromkeys((target.instance.id for target in targets), 0.0)
    ends: list[tuple[float, int, Endpoint, float, RpcError | None]] = []

    def pass_time(to: float) -> None:
        nonlocal last
        for target in targets:
            load[target.instance.id] += target.pending * (to - last)
        last = to

    def finish(until: float) -> None:
        while ends and ends[0][0] <= until:
            moment, _, target, started, error = heapq.heappop(ends)
            pass_time(moment)
            target.pending -= 1
            if error is None:
                target.observe(moment, moment - started)
            else:
                target.observe_failure(moment, moment - started, error.code, error.remote, patience)

    for number in range(calls):
        now += rng.expovariate(rate)
        finish(now)
        pass_time(now)
        target = pick(balancer, targets, now)
        picks[target.instance.id] += 1
        target.begin(now)
        seconds, error = answers[target.instance.id](rng)
        if seconds != float("inf"):
            heapq.heappush(ends, (now + seconds, number, target, now, error))
    finish(float("inf"))
    return picks, {name: total / (last - start) for name, total in load.items()}
