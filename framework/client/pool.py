"""The endpoints of one service: what the registry reports, which of them are ready, and the next one for a call.

An endpoint connects when a balancer first looks at it. While any is ready, calls go only to ready ones; while none is,
a call wakes a few and waits for the first, within its deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
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
        self._known = False
        self._changed = asyncio.Event()
        self._follower: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Every endpoint known now."""
        return tuple(self._all.items)

    def start(self) -> None:
        """Begin to follow the registry; harmless when done already."""
        if self._follower is None:
            self._follower = asyncio.create_task(self._follow(), name=f"follow {self.service}")

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
            self._notify()

        transport.changed = changed
        if transport.ready:
            self._ready.add(endpoint)

    def _retire(self, endpoint: Endpoint) -> None:
        endpoint.retired = True
        self._all.discard(endpoint)
        self._ready.discard(endpoint)
        if endpoint.pending == 0:
            self._close_soon(endpoint)

    def _close_soon(self, endpoint: Endpoint) -> None:
        self._open.discard(endpoint)
        task = asyncio.ensure_future(endpoint.transport.aclose())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def done(self, endpoint: Endpoint) -> None:
        """A call on this endpoint has ended; the last one on an endpoint that is gone closes its connection."""
        endpoint.pending -= 1
        if endpoint.retired and endpoint.pending == 0 and not self._closed:
            self._close_soon(endpoint)

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def pick(self, now: float) -> Endpoint | None:
        """A ready endpoint, or None while there is none; idle ones that it comes by start to connect."""
        return self._balancer.pick(self._all.items, self._ready.items, now) if self._all.items else None

    async def wait(self, call: Call) -> Endpoint:
        """A ready endpoint that the call has not tried, as soon as there is one.

        Raises:
            Unavailable: there is no instance, or none can be reached; the message says which service and where.
            DeadlineExceeded: the call's deadline passed while connections were still being made.
        """
        if not self._closed:
            self.start()
        tried = call.tried or ()
        woken: set[Endpoint] = set()
        loop = asyncio.get_running_loop()
        while True:
            changed = self._changed
            if self._closed:
                raise self._error(call, Unavailable, f"the channel to {self.service} is closed")
            if self._known and not self._all.items:
                raise self._error(call, Unavailable, f"no instance of {self.service} in {self.where}")
            left = [endpoint for endpoint in self._ready.items if endpoint not in tried]
            if left and (endpoint := self._balancer.pick(left, left, loop.time())) is not None:
                return endpoint
            candidates = [endpoint for endpoint in self._all.items if endpoint not in tried]
            alive = [endpoint for endpoint in candidates if not (endpoint in woken and endpoint.transport.failed)]
            if self._known and not alive:
                raise self._error(call, Unavailable, self._unreachable())
            fresh = [endpoint for endpoint in alive if endpoint not in woken]
            for endpoint in self._rng.sample(fresh, min(HEDGED_CONNECTS, len(fresh))):
                woken.add(endpoint)
                endpoint.transport.connect()
            remaining = None if call.deadline is None else call.deadline - loop.time()
            if remaining is not None and remaining <= 0:
                raise self._too_late(call)
            pause = IMPATIENCE if remaining is None else min(IMPATIENCE, remaining)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await changed.wait()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once the condition holds; looked at whenever an endpoint or the set of them changes."""
        while not condition():
            await self._changed.wait()

    def _unreachable(self) -> str:
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
            self._all.discard(endpoint)
            self._ready.discard(endpoint)
            self._close_soon(endpoint)
        await asyncio.gather(*self._closing, return_exceptions=True)

    def __repr__(self) -> str:
        return (
            f"<Pool {self.service} from {self.where}: {len(self._all.items)} endpoints, {len(self._ready.items)} ready>"
        )
