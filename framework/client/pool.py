"""The endpoints of one service: what the registry reports, which of them are ready, and the next one for a call.

An endpoint connects when a balancer first looks at it. While any is ready, calls go only to ready ones; while none is,
a call wakes a few and waits for the first, within its deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import math
import random
from collections.abc import Callable

from framework.call import Call
from framework.client.balancer import Balancer, Endpoint, Transport
from framework.discovery import Instance, Snapshot, Watch
from framework.errors import DeadlineExceeded, RpcError, Unavailable

log = logging.getLogger("framework.client")

HEDGED_CONNECTS = 3
"""Endpoints that a call without any ready one wakes at a time."""

IMPATIENCE = 0.25
"""Seconds after which it wakes more."""

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


class Pool:
    """Follows the instances of a service and hands out endpoints.

    Args:
        service: its name, for messages.
        watch: its instances, as a registry reports them.
        dial: makes the transport to an instance; it does not connect yet.
        balancer: picks among endpoints.
        where: the registry, for messages.
        rng: what picks the endpoints that are woken when none is ready.
    """

    def __init__(
        self,
        service: str,
        watch: Watch,
        dial: Callable[[Instance], Transport],
        balancer: Balancer,
        *,
        where: str,
        rng: random.Random,
    ) -> None:
        self.service = service
        self.where = where
        self._watch = watch
        self._dial = dial
        self._balancer = balancer
        self._rng = rng
        self._by_id: dict[str, Endpoint] = {}
        self._open: set[Endpoint] = set()  # the retired ones that still have calls among them
        self._all = Bag()
        self._ready = Bag()
        self._failed = Bag()
        self._waking: set[Endpoint] = set()
        self._woken = 0.0
        self._known = False
        self._changed = asyncio.Event()
        self._follower: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def closed(self) -> bool:
        """No call goes through any more."""
        return self._closed

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Every endpoint known now."""
        return tuple(self._all.items)

    def start(self) -> None:
        """Begin to follow the registry; harmless when done already."""
        if self._follower is None:
            # A context of its own, or the call that came first would be kept alive by it.
            self._follower = asyncio.get_running_loop().create_task(
                self._follow(), name=f"follow {self.service}", context=contextvars.Context()
            )

    async def _follow(self) -> None:
        try:
            async for snapshot in self._watch:
                self.apply(snapshot)
        except Exception:
            # A watch heals by itself; what arrives here is a defect, and the endpoints that are known stay in use.
            log.exception("following %s in %s failed", self.service, self.where)

    def apply(self, snapshot: Snapshot) -> None:
        """Take over a complete set of instances; connections to those that stay are not touched."""
        for gone in self._by_id.keys() - snapshot.keys():
            self._retire(self._by_id.pop(gone))
        for name, instance in snapshot.items():
            endpoint = self._by_id.get(name)
            if endpoint is not None:
                if endpoint.instance is instance:
                    continue
                if endpoint.instance.address == instance.address:
                    endpoint.instance = instance
                    continue
                self._retire(endpoint)
            self._add(instance)
        self._known = True
        self._notify()

    def _add(self, instance: Instance) -> None:
        transport = self._dial(instance)
        endpoint = Endpoint(instance, transport)
        self._by_id[instance.id] = endpoint
        self._open.add(endpoint)
        self._all.add(endpoint)

        def changed() -> None:
            endpoint.available = transport.ready
            if endpoint.available and not endpoint.retired:
                self._ready.add(endpoint)
            else:
                self._ready.discard(endpoint)
            if transport.failed and not endpoint.retired:
                self._failed.add(endpoint)
            else:
                self._failed.discard(endpoint)
            self._notify()

        transport.changed = changed
        changed()

    def _retire(self, endpoint: Endpoint) -> None:
        endpoint.retired = True
        self._forget(endpoint)
        if endpoint.pending == 0:
            self._close_soon(endpoint)

    def _forget(self, endpoint: Endpoint) -> None:
        for bag in (self._all, self._ready, self._failed):
            bag.discard(endpoint)

    def _close_soon(self, endpoint: Endpoint) -> None:
        self._open.discard(endpoint)
        task = asyncio.get_running_loop().create_task(endpoint.transport.aclose(), context=contextvars.Context())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def refused(self, endpoint: Endpoint) -> None:
        """It did not take a call although it seemed ready: it is out until its transport tells a change."""
        endpoint.available = False
        self._ready.discard(endpoint)
        if endpoint.transport.ready:
            self._failed.add(endpoint)

    def done(self, endpoint: Endpoint) -> None:
        """A call on this endpoint has ended; the last one on an endpoint that is gone closes its connection."""
        endpoint.pending -= 1
        if endpoint.retired and endpoint.pending == 0 and not self._closed:
            self._close_soon(endpoint)

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def pick(self, now: float, refused: tuple[Endpoint, ...] = ()) -> Endpoint | None:
        """A ready endpoint, or None while there is none; idle ones that it comes by start to connect.

        Args:
            now: the loop's clock in seconds.
            refused: endpoints that did not take this call; others are picked while there are any.
        """
        if refused:
            others = [endpoint for endpoint in self._ready.items if endpoint not in refused]
            return self._balancer.pick(others, others, now) if others else None
        return self._balancer.pick(self._all.items, self._ready.items, now) if self._all.items else None

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
        if self.where == f"static://{self.service}":
            return f"cannot connect to {self.service}; does it listen there?"
        addresses = ", ".join(sorted(endpoint.instance.address for endpoint in self._all.items)[:5])
        more = f" and {len(self._all.items) - 5} more" if len(self._all.items) > 5 else ""
        return f"cannot connect to {self.service} at {addresses}{more} (instances from {self.where})"

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
        error = kind(message, sent=False, attempts=call.attempt - 1, method=call.method.full_name)
        if isinstance(error, DeadlineExceeded):
            error.inherited = call.inherited
        return error

    async def aclose(self) -> None:
        """Stop following and close every connection; calls in flight are cancelled."""
        self._closed = True
        self._notify()
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)
        await self._watch.aclose()
        for endpoint in tuple(self._open):
            endpoint.retired = True
            self._forget(endpoint)
            self._close_soon(endpoint)
        await asyncio.gather(*self._closing, return_exceptions=True)
        self._notify()

    def __repr__(self) -> str:
        return (
            f"<Pool {self.service} from {self.where}: {len(self._all.items)} endpoints, {len(self._ready.items)} ready>"
        )
