"""The endpoints of one service: what the registry reports, which of them may be picked, and the next one for a call.

    | an endpoint is | when                                                             | and is picked         |
    |----------------|------------------------------------------------------------------|-----------------------|
    | not connected  | nobody has looked at it yet, or its connection is gone           | never                 |
    | ready          | it is connected, and nothing speaks against it                   | as the balancer says  |
    | suspect        | it is connected, but its breaker is open, or it is an outlier    | only in a panic       |

A panic is when fewer than half of the connected ones are not suspect: then all of them are used, since what is left
would break down under the whole load. So a client never turns all of its servers off by itself.

An endpoint connects when a balancer first looks at it. While none is ready, a call wakes a few and waits for the first,
within its deadline. Nothing here has a timer: what has become due is seen by the next pick.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import math
import random
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from framework.call import Call
from framework.client.balancer import BALANCERS
from framework.client.breaker import Breaker, State
from framework.client.ending import for_outside
from framework.client.endpoint import Endpoint, Transport
from framework.client.outlier import panicking, sweep
from framework.client.subset import Subset
from framework.discovery import Instance, Snapshot, Watch
from framework.errors import DeadlineExceeded, RpcError, Unavailable
from framework.policy import ClientSettings
from framework.telemetry.figures import Sample
from framework.telemetry.names import (
    BREAKER_CHANGES,
    BREAKER_STATE,
    CLIENT_IN_FLIGHT,
    DISCOVERY_AGE,
    DISCOVERY_UPDATES,
    OTHER,
    PICKS,
)

log = logging.getLogger("framework.client")

HEDGED_CONNECTS = 3
"""Endpoints that a call without any ready one wakes at a time."""

IMPATIENCE = 0.25
"""Seconds after which it wakes more."""

SECOND_LOOKS = 3
"""Picks that may give an endpoint that was tried before the others are listed."""

MOST_TOLD = 100
"""Endpoints that figures tell apart."""

_LEVELS = {State.CLOSED: 0.0, State.HALF_OPEN: 1.0, State.OPEN: 2.0}

SPREAD = 1.0
"""Seconds over which clients that see new certificates begin to connect again."""

AGAIN = 5.0
"""Seconds after which connections that new certificates did not get are tried again."""

MANY = 32
"""Endpoints up to which it looks at all for that; of more it looks at as many, taken at random."""


class Bag:
    """Endpoints in no order, in the list `items`; adding, removing and picking by number are O(1)."""

    __slots__ = ("_positions", "items")

    def __init__(self) -> None:
        self.items: list[Endpoint] = []
        self._positions: dict[Endpoint, int] = {}

    def add(self, endpoint: Endpoint) -> None:
        if endpoint not in self._positions:
            self._positions[endpoint] = len(self.items)
            self.items.append(endpoint)

    def discard(self, endpoint: Endpoint) -> None:
        position = self._positions.pop(endpoint, None)
        if position is not None:
            last = self.items.pop()
            if last is not endpoint:
                self.items[position] = last
                self._positions[last] = position


live: weakref.WeakSet[Pool] = weakref.WeakSet()
"""Those of this process that follow their instances; for people who look at it from outside."""


class Pool:
    """Follows the instances of a service and hands out endpoints.

    Args:
        service: its name, for messages.
        watch: its instances, as a registry reports them.
        dial: makes the transport to an instance; it does not connect yet.
        settings: balancer, subset, breaker and outlier ejection.
        where: the registry, for messages.
        rng: the randomness of all that.
    """

    def __init__(
        self,
        service: str,
        watch: Watch,
        dial: Callable[[Instance], Transport],
        settings: ClientSettings,
        *,
        where: str,
        rng: random.Random,
    ) -> None:
        self.service = service
        self.where = where
        self._watch = watch
        self._dial = dial
        self._settings = settings
        self._rng = rng
        self._balancer = BALANCERS[settings.balancer](rng)
        self._subset = Subset(settings.subset, rng)
        self._snapshot: Snapshot = {}
        self._by_id: dict[str, Endpoint] = {}
        self._open: set[Endpoint] = set()  # the retired ones that still have calls among them
        self._all = Bag()
        self._ready = Bag()
        self._failed = Bag()
        self._suspects: set[Endpoint] = set()
        self._panic = False
        self._sweep_at = self._due = -math.inf
        self._waking: set[Endpoint] = set()
        self._woken = 0.0
        self._known = False
        self._changed = asyncio.Event()
        self._follower: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False
        self._updates = 0
        self._gone_picks = 0  # of endpoints that are not there any more
        self._gone_changes: Counter[State] = Counter()
        self._starting: list[Callable[[], object]] = []

    @property
    def closed(self) -> bool:
        """No call goes through any more."""
        return self._closed

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Every endpoint known now."""
        return tuple(self._all.items)

    def configure(self, settings: ClientSettings) -> None:
        """Go by other settings from now on; connections, and what is known of every endpoint, stay."""
        before, self._settings = self._settings, settings
        if settings.balancer != before.balancer:
            self._balancer = BALANCERS[settings.balancer](self._rng)
        if settings.breaker != before.breaker:
            for endpoint in self._open:
                endpoint.breaker.configure(settings.breaker)
        if settings.subset != before.subset:
            self._subset.size = settings.subset
            if self._known:
                self.apply(self._snapshot)

    def start(self) -> None:
        """Begin to follow the registry; harmless when done already."""
        if self._follower is None:
            live.add(self)
            # A context of its own, or the call that came first would be kept alive by it.
            self._follower = asyncio.get_running_loop().create_task(
                self._follow(), name=f"follow {self.service}", context=contextvars.Context()
            )
            for callback in self._starting:
                callback()
            self._starting.clear()

    def on_start(self, callback: Callable[[], object]) -> None:
        """Call back when it begins to follow the registry, from the loop that it is used on."""
        self._starting.append(callback)

    async def _follow(self) -> None:
        try:
            async for snapshot in self._watch:
                self.apply(snapshot)
        except Exception:
            # A watch heals by itself; what arrives here is a defect, and the endpoints that are known stay in use.
            log.exception("following %s in %s failed", self.service, self.where)

    def apply(self, snapshot: Snapshot) -> None:
        """Take over a complete set of instances; connections to those that stay are not touched."""
        self._snapshot = snapshot
        self._updates += 1
        snapshot = self._subset.of(snapshot)
        for gone in self._by_id.keys() - snapshot.keys():
            self._retire(self._by_id.pop(gone))
        for name, instance in snapshot.items():
            endpoint = self._by_id.get(name)
            if endpoint is not None:
                if endpoint.instance is instance:
                    continue
                before = endpoint.instance
                if (before.address, before.protocol) == (instance.address, instance.protocol):
                    endpoint.instance = instance
                    continue
                self._retire(endpoint)
            self._add(instance)
        self._known = True
        self._balancer.changed()
        self._notify()

    def _add(self, instance: Instance) -> None:
        self._admit(Endpoint(instance, self._dial(instance), Breaker(self._settings.breaker, self._rng)))

    def _admit(self, endpoint: Endpoint) -> None:
        transport = endpoint.transport
        self._by_id[endpoint.instance.id] = endpoint
        self._open.add(endpoint)
        self._all.add(endpoint)

        def changed() -> None:
            self._place(endpoint)
            if transport.failed and not endpoint.retired:
                self._failed.add(endpoint)
            else:
                self._failed.discard(endpoint)
            if self._suspects:
                self._settle()
            self._notify()

        transport.changed = changed
        changed()

    def renew(self) -> None:
        """Replace connections that were made with certificates of before, by and by; no call is lost."""
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.get_running_loop().create_task(
                self._renew(), name=f"renew {self.service}", context=contextvars.Context()
            )

    async def _renew(self) -> None:
        """One after another, and not at the moment when every other client does the same."""
        await asyncio.sleep(self._rng.uniform(0.0, SPREAD))
        told = False
        while outdated := [one for one in self._all.items if one.transport.outdated]:
            failed = 0
            for endpoint in outdated:
                if not endpoint.retired and not await self._reconnect(endpoint):
                    failed += 1
            if failed and not told:
                told = True
                log.warning(
                    "%d of %d connections to %s cannot be made with the new certificates; those of before stay",
                    failed, len(outdated), self.service,
                )  # fmt: skip
            if failed:
                await asyncio.sleep(AGAIN)
        log.info("the connections to %s go by the new certificates", self.service)

    async def _reconnect(self, endpoint: Endpoint) -> bool:
        """Put a new connection in the place of one; one that works is kept until the other does."""
        transport = self._dial(endpoint.instance)
        if endpoint.transport.ready:
            changed = asyncio.Event()
            transport.changed = changed.set
            transport.connect()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.connect_timeout):
                    while not (transport.ready or transport.failed):
                        await changed.wait()
                        changed.clear()
            if endpoint.retired or not transport.ready:
                await transport.aclose()
                return endpoint.retired
        fresh = endpoint.over(transport)
        if endpoint in self._suspects:
            self._suspects.add(fresh)
        self._admit(fresh)
        self._retire(endpoint)
        self._balancer.changed()
        return True

    def _place(self, endpoint: Endpoint) -> None:
        """Among those that may be picked, or not."""
        endpoint.available = endpoint.transport.ready and (self._panic or endpoint not in self._suspects)
        if endpoint.available and not endpoint.retired:
            self._ready.add(endpoint)
        else:
            self._ready.discard(endpoint)
        self._balancer.changed()

    def judge(self, endpoint: Endpoint, now: float) -> None:
        """Its breaker has changed: see whether it may be picked at `now` seconds."""
        if endpoint.retired:
            return
        healthy = endpoint.healthy(now)
        if healthy == (endpoint in self._suspects):
            if healthy:
                self._suspects.discard(endpoint)
            else:
                self._suspects.add(endpoint)
            self._tell(endpoint, healthy, now)
            self._place(endpoint)
            self._settle()
            self._notify()
        if not healthy:
            self._due = min(self._due, _due(endpoint))  # too early does no harm: a review plans anew

    def _tell(self, endpoint: Endpoint, healthy: bool, now: float) -> None:
        where, state = endpoint.instance.address, endpoint.breaker.state(now)
        if endpoint.host.ejected:
            log.warning("%s of %s is out of use: it fails more often than the others", where, self.service)
        elif not healthy and state is State.OPEN:
            log.warning("%s of %s is out of use: %s", where, self.service, endpoint.breaker.reason)
        elif healthy and state is State.CLOSED:
            log.info("%s of %s is in use again", where, self.service)

    def _settle(self) -> None:
        """Use the suspects as well while they are more than the others, and not otherwise."""
        connected = sum(endpoint.transport.ready for endpoint in self._suspects)
        healthy = len(self._ready.items) - (connected if self._panic else 0)
        panic = panicking(healthy, healthy + connected)
        if panic != self._panic:
            self._panic = panic
            if panic:
                log.warning(
                    "%d of %d endpoints of %s are suspect: all are used", connected, healthy + connected, self.service
                )
            for endpoint in self._suspects:
                self._place(endpoint)

    def _plan(self) -> None:
        """When something becomes due next."""
        self._due = min(map(_due, self._suspects), default=math.inf)
        self._due = min(self._due, self._sweep_at)

    def _review(self, now: float) -> None:
        """Do what has become due."""
        if now >= self._sweep_at:
            self._sweep_at = now + self._settings.outlier.interval
            by_host = {endpoint.host: endpoint for endpoint in self._all.items}
            for host in sweep(list(by_host), now, self._settings.outlier):
                self.judge(by_host[host], now)
        for endpoint in tuple(self._suspects):
            self.judge(endpoint, now)
        self._plan()

    def suspects(self, now: float) -> str:
        """Which endpoints are out of use and why, for a message; empty when none is."""
        told = [
            f"{one.instance.address} ({'an outlier' if one.host.ejected else one.breaker.reason})"
            for one in sorted(self._suspects, key=lambda one: one.instance.address)
            if not one.healthy(now)
        ]
        return ", ".join(told[:3]) + (f" and {len(told) - 3} more" if len(told) > 3 else "")

    def _retire(self, endpoint: Endpoint) -> None:
        endpoint.retired = True
        self._suspects.discard(endpoint)
        self._forget(endpoint)
        self._settle()
        if endpoint.pending == 0:
            self._close_soon(endpoint)

    def _forget(self, endpoint: Endpoint) -> None:
        for bag in (self._all, self._ready, self._failed):
            bag.discard(endpoint)

    def _close_soon(self, endpoint: Endpoint) -> None:
        if endpoint in self._open:
            self._open.discard(endpoint)
            self._gone_picks += endpoint.picks
            successor = self._by_id.get(endpoint.instance.id)
            if successor is None or successor.breaker is not endpoint.breaker:
                self._gone_changes.update(endpoint.breaker.entered)
        task = asyncio.get_running_loop().create_task(endpoint.transport.aclose(), context=contextvars.Context())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def refused(self, endpoint: Endpoint) -> None:
        """It did not take a call although it seemed ready: it is out until its transport tells a change."""
        endpoint.available = False
        self._ready.discard(endpoint)
        self._balancer.changed()
        if endpoint.transport.ready:
            self._failed.add(endpoint)

    def done(self, endpoint: Endpoint) -> None:
        """A call on an endpoint that is retired has ended; the last one closes its connection."""
        if endpoint.pending == 0 and not self._closed:
            self._close_soon(endpoint)

    def probe(self, endpoint: Endpoint, now: float) -> int:
        """The permit of a call to an endpoint whose breaker is not closed."""
        permit = endpoint.breaker.begin(now)
        self.judge(endpoint, now)
        return permit

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def pick(self, now: float, tried: Sequence[Endpoint] = ()) -> Endpoint | None:
        """A ready endpoint, or None while there is none; idle ones that it comes by start to connect.

        Args:
            now: the loop's clock in seconds.
            tried: endpoints that had this call before; others are picked while there are any.
        """
        if now >= self._due:
            self._review(now)
        if not self._all.items:
            return None
        found = self._balancer.pick(self._all.items, self._ready.items, now)
        if tried and found in tried:
            for _ in range(SECOND_LOOKS):
                found = self._balancer.pick(self._all.items, self._ready.items, now)
                if found not in tried:
                    return found
            others = [endpoint for endpoint in self._ready.items if endpoint not in tried]
            if others:
                return self._rng.choice(others)
        return found

    def has_others(self, tried: Sequence[Endpoint]) -> bool:
        """Whether an endpoint may be picked that is not one of these."""
        return any(endpoint not in tried for endpoint in self._ready.items[: len(tried) + 1])

    async def wait(self, call: Call) -> Endpoint:
        """A ready endpoint, as soon as there is one.

        Raises:
            Unavailable: there is no instance, or none can be reached; the message says which service and where.
            DeadlineExceeded: the call's deadline passed while connections were still being made.
        """
        if not self._closed:
            self.start()
        loop = asyncio.get_running_loop()
        while True:
            changed = self._changed
            if self._closed:
                raise self._error(call, Unavailable, f"the channel to {self.service} is closed")
            now = loop.time()
            if self._ready.items and (endpoint := self.pick(now)) is not None:
                return endpoint
            if self._known and not self._all.items:
                raise self._error(call, Unavailable, f"no instance of {self.service} in {self.where}")
            if self._known and len(self._failed.items) == len(self._all.items):
                raise self._error(call, Unavailable, self._unreachable())
            self._wake_some(now)
            remaining = math.inf if call.deadline is None else call.deadline - now
            if remaining <= 0:
                raise self._too_late(call)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(IMPATIENCE, remaining)):
                    await changed.wait()

    def _wake_some(self, now: float) -> None:
        """Let a few endpoints connect, for all calls that wait; more of them when these take too long."""
        self._waking = {one for one in self._waking if not (one.retired or one.available or one.transport.failed)}
        for endpoint in self._waking:
            endpoint.transport.connect()  # again when it has fallen back to idle
        if self._waking and now < self._woken + IMPATIENCE:
            return
        self._woken = now
        some = self._all.items
        if len(some) > MANY:
            some = self._rng.choices(some, k=MANY)
        fresh = [one for one in dict.fromkeys(some) if one not in self._waking and not one.transport.failed]
        for endpoint in self._rng.sample(fresh, min(HEDGED_CONNECTS, len(fresh))):
            self._waking.add(endpoint)
            endpoint.transport.connect()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once the condition holds; looked at whenever an endpoint or the set of them changes."""
        while not condition():
            await self._changed.wait()

    def _unreachable(self) -> str:
        problems = dict.fromkeys(
            one.transport.problem for one in self._all.items[:MANY] if one.transport.failed and one.transport.problem
        )
        why = f": {'; '.join(list(problems)[:3])}" if problems else ""
        if self.where == f"static://{self.service}":
            return f"cannot connect to {self.service}{why or '; does it listen there?'}"
        addresses = ", ".join(sorted(endpoint.instance.address for endpoint in self._all.items)[:5])
        more = f" and {len(self._all.items) - 5} more" if len(self._all.items) > 5 else ""
        return f"cannot connect to {self.service} at {addresses}{more} (instances from {self.where}){why}"

    def _too_late(self, call: Call) -> RpcError:
        if self._known:
            return self._error(call, DeadlineExceeded, f"the deadline passed before a connection was made: {self!r}")
        problem = self._watch.problem
        if problem:
            return self._error(call, Unavailable, f"instances of {self.service} are not known: {problem}")
        return self._error(
            call, DeadlineExceeded, f"the deadline passed before {self.where} said where {self.service} is"
        )

    def _error(self, call: Call, kind: type[RpcError], message: str) -> RpcError:
        late = issubclass(kind, DeadlineExceeded)
        outside = f"{self.service} {'was not reached before the deadline' if late else 'cannot be reached now'}"
        error = for_outside(
            call, kind(message, sent=False, attempts=call.attempt - 1, method=call.method.full_name), outside
        )
        if isinstance(error, DeadlineExceeded):
            error.inherited = call.inherited
        return error

    async def aclose(self) -> None:
        """Stop following and close every connection; calls in flight are cancelled."""
        self._closed = True
        live.discard(self)
        self._notify()
        for task in (self._follower, self._renewing):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self._watch.aclose()
        for endpoint in tuple(self._open):
            endpoint.retired = True
            self._forget(endpoint)
            self._close_soon(endpoint)
        await asyncio.gather(*self._closing, return_exceptions=True)
        self._notify()

    def figures(self) -> Iterable[Sample]:
        """What is counted of its endpoints; there may be thousands, of which a hundred are told apart."""
        service = ("service", self.service)
        changes = Counter(self._gone_changes)
        in_flight, others = 0, self._gone_picks
        known = list(self._open)  # at once: this may be asked on another thread
        known.sort(key=lambda one: one.instance.address)
        for number, endpoint in enumerate(known):
            in_flight += endpoint.pending
            changes.update(endpoint.breaker.entered)
            if number >= MOST_TOLD:
                others += endpoint.picks
                continue
            labels = (service, ("endpoint", endpoint.instance.address))
            yield PICKS, labels, float(endpoint.picks)
            if not endpoint.retired:
                yield BREAKER_STATE, labels, _LEVELS[endpoint.breaker.latest]
        if others:
            yield PICKS, (service, ("endpoint", OTHER)), float(others)
        yield CLIENT_IN_FLIGHT, (service,), float(in_flight)
        for state in State:
            yield BREAKER_CHANGES, (service, ("state", state.name.lower())), float(changes[state])
        yield DISCOVERY_UPDATES, (service,), float(self._updates)
        yield DISCOVERY_AGE, (service,), float(getattr(self._watch, "age", 0.0))

    def __repr__(self) -> str:
        return (
            f"<Pool {self.service} from {self.where}: {len(self._all.items)} endpoints, {len(self._ready.items)} ready>"
        )


def _due(endpoint: Endpoint) -> float:
    """When a suspect may be well again by itself; one that is ejected is not before a sweep says so."""
    return math.inf if endpoint.host.ejected else endpoint.breaker.due()
